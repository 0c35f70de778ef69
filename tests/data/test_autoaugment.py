"""AutoAugment against torchvision's on Pillow's images, level for level."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, InterpolationMode
from torchvision.transforms.autoaugment import _apply_op

from hybridgen.data import autoaugment, levels
from hybridgen.data.levels import FILL_LEVEL

SIZES = [(32, 32), (17, 24)]
POLICIES = ["cifar10", "imagenet"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def theirs(pixels: np.ndarray, name: str, magnitude: int, sign: int) -> np.ndarray:
    """torchvision's, with our grey where it has black."""
    values, signed = AutoAugment()._augmentation_space(10, pixels.shape[:2])[name]
    value = float(values[magnitude]) if values.ndim else 0.0
    assert signed == (name in autoaugment.SIGNED)
    value = sign * value if signed else value
    return np.asarray(_apply_op(Image.fromarray(pixels), name, value, InterpolationMode.NEAREST, [FILL_LEVEL] * 3))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", autoaugment.OPERATIONS)
def test_every_operation_at_every_magnitude(name, size, random_pixels):
    pixels, number = random_pixels(7, *size), autoaugment.OPERATIONS.index(name)
    for magnitude in range(10):
        for sign in (1, -1) if name in autoaugment.SIGNED else (1,):
            value = sign * autoaugment.values(*size)[number, magnitude].double().repeat(7)
            ours = autoaugment.operate(batch(pixels), torch.full((7,), number), value)
            expected = np.stack([theirs(each, name, magnitude, sign) for each in pixels])
            assert np.array_equal(ours.permute(0, 2, 3, 1), expected), (magnitude, sign)


def test_operations_of_one_batch_do_not_touch_each_other(random_pixels):
    """Two samples of each and two of none."""
    pixels = random_pixels(30)
    operation = torch.arange(30) % 15
    value = torch.cat([autoaugment.values(32, 32)[:, 7], torch.zeros(1)]).double()[operation]
    given = batch(pixels)
    ours = autoaugment.operate(given, operation, value).permute(0, 2, 3, 1).numpy()
    for number in range(30):
        name = (*autoaugment.OPERATIONS, None)[number % 15]
        assert np.array_equal(ours[number], theirs(pixels[number], name, 7, 1) if name else pixels[number])
    assert np.array_equal(given.permute(0, 2, 3, 1), pixels)


@pytest.mark.parametrize("policy", POLICIES)
def test_sub_policies_are_torchvisions(policy):
    found = autoaugment.sub_policies(policy)
    expected = AutoAugment(AutoAugmentPolicy(policy)).policies
    assert len(expected) == found.operation.shape[1] == 25
    for place, both in enumerate(expected):
        for step, (name, probability, magnitude) in enumerate(both):
            assert autoaugment.OPERATIONS[found.operation[step, place]] == name
            assert found.probability[step, place].item() == pytest.approx(probability, rel=1e-6)
            assert magnitude is None or found.magnitude[step, place] == magnitude


def test_first_sub_policies_are_the_papers():
    """Tables 7 and 9."""
    first = {"cifar10": [("Invert", 0.1, None), ("Contrast", 0.2, 6)],
             "imagenet": [("Posterize", 0.4, 8), ("Rotate", 0.6, 9)]}  # fmt: skip
    for policy, both in first.items():
        found = autoaugment.sub_policies(policy)
        for step, (name, probability, magnitude) in enumerate(both):
            assert autoaugment.OPERATIONS[found.operation[step, 0]] == name
            assert found.probability[step, 0].item() == pytest.approx(probability, rel=1e-6)
            assert magnitude is None or found.magnitude[step, 0] == magnitude


@pytest.mark.parametrize("policy", POLICIES)
def test_draws(policy):
    """Sub-policies come equally often, operations by their probabilities, signs evenly."""
    count, known = 50_000, autoaugment.sub_policies(policy)
    drawn = autoaugment.draw(count, generator(), policy)
    for step in range(2):
        for number in range(14):
            ours = known.operation[step] == number
            expected = known.probability[step][ours].sum().item() / 25
            chosen = drawn.operation[step] == number
            assert chosen.double().mean().item() == pytest.approx(expected, abs=0.006)
            assert set(drawn.magnitude[step][chosen].tolist()) <= set(known.magnitude[step][ours].tolist())
        assert drawn.positive[step].double().mean().item() == pytest.approx(0.5, abs=0.01)
    both = (drawn.operation < 14).all(dim=0).double().mean().item()
    assert both == pytest.approx(known.probability.prod(dim=0).mean().item(), abs=0.01)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("policy", POLICIES)
def test_images_go_through_what_is_drawn(policy, size, random_pixels):
    """Sample by sample, one operation after the other, in torchvision."""
    pixels = random_pixels(60, *size)
    ours = autoaugment.autoaugment(batch(pixels).double() / 255, generator(3), policy=policy)
    drawn = autoaugment.draw(60, generator(3), policy)
    for i in range(60):
        image = pixels[i]
        for step in range(2):
            if drawn.operation[step, i] < 14:
                name = autoaugment.OPERATIONS[drawn.operation[step, i]]
                image = theirs(image, name, int(drawn.magnitude[step, i]), 1 if drawn.positive[step, i] else -1)
        np.testing.assert_array_equal(ours[i].permute(1, 2, 0).mul(255).round(), image)
    assert ours.dtype == torch.float64 and ours.min() >= 0 and ours.max() <= 1


def test_nothing_waits_for_a_device():
    """No value is read back: what has none will do."""
    images = torch.empty(6, 3, 9, 12, device="meta")
    assert autoaugment.autoaugment(images, generator(), policy="cifar10").shape == (6, 3, 9, 12)


def test_devices_without_float64_will_do(random_pixels, monkeypatch):
    """As MPS, where `exact` keeps single precision."""

    class NoDoubles(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            for each in torch.utils._pytree.tree_leaves(made):
                assert not (isinstance(each, torch.Tensor) and each.dtype == torch.float64), f"{function} in float64"
            return made

    for module in (autoaugment, levels):
        monkeypatch.setattr(module, "exact", lambda values: values.float())
    images = batch(random_pixels(9)).float() / 255
    with NoDoubles():
        assert autoaugment.autoaugment(images, generator(), policy="cifar10").dtype == torch.float32


def test_empty_batches_stay_empty():
    assert autoaugment.autoaugment(torch.empty(0, 3, 8, 8), generator(), policy="imagenet").shape == (0, 3, 8, 8)
