"""FixMatch's RandAugment against Pillow, and the distribution of what it draws."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from hybridgen.data import levels, randaugment
from hybridgen.data.augment import weak
from hybridgen.data.levels import FILL_LEVEL
from hybridgen.data.pillow_policy import FILL, GEOMETRIC, PILLOW_OPERATIONS, pillow_strong
from hybridgen.data.randaugment import GREY, OPERATIONS, draw_operations, strong
from hybridgen.types import InputError

ENHANCERS = ("color", "contrast", "brightness", "sharpness")


class NoDoubles(TorchDispatchMode):
    """A device without float64, as MPS."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves(result):
            assert not (isinstance(value, torch.Tensor) and value.dtype == torch.float64), f"{function} in float64"
        return result


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def to_images(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 255


def to_pixels(images: torch.Tensor) -> np.ndarray:
    levels = images * 255
    assert (levels - levels.round()).abs().max() < 1e-3, "not multiples of 1/255"
    return levels.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def through_pillow(name: str, pixels: np.ndarray, magnitude: float) -> np.ndarray:
    return np.stack([PILLOW_OPERATIONS[name](Image.fromarray(image), magnitude) for image in pixels])


class TestOperations:
    def test_are_the_fourteen(self):
        assert OPERATIONS.keys() == PILLOW_OPERATIONS.keys()
        assert len(OPERATIONS) == 14

    # The tolerance is zero levels, at borders too.
    @pytest.mark.parametrize("size", [(32, 32), (17, 24), (2, 3)])
    @pytest.mark.parametrize("name", OPERATIONS)
    def test_equal_pillow_level_for_level(self, name, size, random_pixels):
        pixels = random_pixels(24, *size)
        lowest = -10 if name in GEOMETRIC else 0
        for magnitude in range(lowest, 11):
            result = OPERATIONS[name](to_images(pixels), torch.full((24,), float(magnitude)))
            np.testing.assert_array_equal(
                to_pixels(result), through_pillow(name, pixels, magnitude), err_msg=f"magnitude {magnitude}"
            )

    @pytest.mark.parametrize("name", OPERATIONS)
    def test_take_one_magnitude_a_sample(self, name, random_images):
        images = random_images(20)
        magnitude = torch.arange(20) / 2
        together = OPERATIONS[name](images, magnitude)
        alone = [OPERATIONS[name](images[i : i + 1], magnitude[i : i + 1]) for i in range(20)]
        assert torch.equal(together, torch.cat(alone))

    @pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"autocontrast", "equalize"}))
    def test_change_nothing_at_their_neutral_magnitude(self, name, random_images):
        images = random_images(12)
        neutral = torch.full((12,), 5.0 if name in ENHANCERS else 0.0)
        assert torch.equal(OPERATIONS[name](images, neutral), images)

    @pytest.mark.parametrize("name", OPERATIONS)
    def test_leave_their_input_alone_and_stay_in_range(self, name):
        images = torch.rand(20, 3, 16, 16, generator=generator())
        before = images.clone()
        for magnitude in (1.0, 9.0):
            result = OPERATIONS[name](images, torch.full((20,), magnitude))
            assert result.dtype == images.dtype
            assert result.min() >= 0 and result.max() <= 1
        assert torch.equal(images, before)
        assert OPERATIONS[name](images.half(), torch.full((20,), 9.0)).dtype == torch.float16

    @pytest.mark.parametrize("name", OPERATIONS)
    def test_round_to_the_nearest_level_first(self, name):
        images = torch.rand(20, 3, 16, 16, generator=generator())
        rounded = (images * 255).round() / 255
        magnitude = torch.full((20,), 7.0)
        assert torch.equal(OPERATIONS[name](images, magnitude), OPERATIONS[name](rounded, magnitude))

    def test_enhancers_both_weaken_and_strengthen(self):
        """kekmodel/FixMatch-pytorch and its copies stop at a factor of 0.95: they never brighten."""
        images = 0.3 + 0.4 * torch.rand(9, 3, 16, 16, generator=generator())
        magnitude = torch.arange(1, 10).float()

        def spread_of(result):
            return result.flatten(1).std(1)

        def colourfulness_of(result):
            return result.std(1).mean((1, 2))

        for name, strength_of in {
            "brightness": lambda result: result.mean((1, 2, 3)),
            "contrast": spread_of,
            "color": colourfulness_of,
            "sharpness": spread_of,
        }.items():
            change = strength_of(OPERATIONS[name](images, magnitude)) - strength_of(images)
            assert (change[:4] < 0).all(), name
            assert (change[5:] > 0).all(), name

        bright = torch.full((1, 3, 4, 4), 153 / 255)
        brightest = OPERATIONS["brightness"](bright, torch.tensor([8.0]))  # factor 1.54
        assert torch.allclose(brightest, torch.tensor(235 / 255))

    def test_geometric_ones_uncover_grey(self):
        images = torch.ones(1, 3, 32, 32)
        moved = OPERATIONS["translate_x"](images, torch.tensor([9.0]))  # int(0.27 * 32) = 8 pixels
        assert torch.equal(moved[..., :-8], images[..., :-8])
        assert torch.allclose(moved[..., -8:], torch.tensor(FILL_LEVEL / 255))
        assert FILL == (FILL_LEVEL,) * 3


class TestDrawOperations:
    def test_gives_each_sample_each_operation_equally_often(self):
        batch, repeats = 37, 4000
        counts = torch.zeros(batch, 15)
        magnitudes = torch.zeros(19)
        pairs = torch.zeros(15, 15)
        source = generator()
        for _ in range(repeats):
            order, choice, magnitude = draw_operations(batch, source, operations=2, probability=0.5)
            by_sample = torch.empty_like(choice).scatter_(1, order, choice)
            counts += torch.nn.functional.one_hot(by_sample[0], 15)
            pairs += torch.bincount(by_sample[0] * 15 + by_sample[1], minlength=225).view(15, 15)
            magnitudes += torch.bincount(magnitude.flatten() + 9, minlength=19)
        expected = torch.tensor([0.5 / 14] * 14 + [0.5])

        # Every sample: every operation
        error = (counts / repeats - expected) / (expected * (1 - expected) / repeats).sqrt()
        assert error.abs().max() < 5

        # The two slots: with replacement, independent of one another
        joint = expected[:, None] * expected
        total = batch * repeats
        assert ((pairs / total - joint) / (joint / total).sqrt()).abs().max() < 5

        # Magnitudes 1 to 9 of either sign
        assert magnitudes[9] == 0
        share = magnitudes / magnitudes.sum()
        assert (share[torch.arange(19) != 9] - 1 / 18).abs().max() < 0.002

    def test_draws_magnitudes_independently_of_operations(self):
        _, choice, magnitude = draw_operations(100_000, generator(), operations=1, probability=0.5)
        table = torch.zeros(15, 9).index_put_((choice[0], magnitude[0].abs() - 1), torch.ones(()), True)
        share = table / table.sum(1, keepdim=True)
        assert (share - 1 / 9).abs().max() < 0.025

    @pytest.mark.parametrize("batch", [1, 2, 5, 13, 14, 28, 64, 447, 448])
    @pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.9, 1.0])
    def test_puts_operations_where_they_are_looked_for(self, batch, probability):
        source = generator(batch)
        for _ in range(20):
            order, choice, _ = draw_operations(batch, source, operations=2, probability=probability)
            assert torch.equal(order.sort(1).values, torch.arange(batch).expand(2, -1))
            for number, name in enumerate(OPERATIONS):
                places = randaugment._places(name, name, batch, probability)
                inside = (choice[:, places] == number).sum(1)
                assert torch.equal(inside, (choice == number).sum(1))
                assert ((inside - batch * probability / 14).abs() < 1).all()


def through_pillow_policy(images: torch.Tensor, draw: randaugment.Draw) -> np.ndarray:
    """The drawn operations, sample by sample."""
    names = (*OPERATIONS, "identity")
    results = [Image.fromarray(image) for image in to_pixels(images)]
    for order, choice, magnitude in zip(*draw, strict=True):
        for sample, number, signed in zip(order.tolist(), choice.tolist(), magnitude.tolist(), strict=True):
            name = names[number]
            results[sample] = PILLOW_OPERATIONS[name](results[sample], signed if name in GEOMETRIC else abs(signed))
    return np.stack(results)


class TestStrong:
    @pytest.mark.parametrize("batch", [1, 3, 29, 128])
    @pytest.mark.parametrize("probability", [0.5, 1.0])
    def test_applies_the_drawn_operations_as_pillow_does(self, batch, probability, monkeypatch, random_images):
        draws = []

        def draw(*arguments, **options):
            draws.append(draw_operations(*arguments, **options))
            return draws[-1]

        monkeypatch.setattr(randaugment, "draw_operations", draw)
        source = generator(batch)
        images = random_images(batch, 24)
        for _ in range(4):
            result = strong(images, source, flip=False, shift=0, operations=3, probability=probability, cutout=0)
            np.testing.assert_array_equal(to_pixels(result), through_pillow_policy(images, draws.pop()))

    def test_starts_with_weak(self, random_images):
        images = random_images(40)
        result = strong(images, generator(), flip=True, shift=4, operations=0, cutout=0)
        assert torch.equal(result, weak(images, generator(), flip=True, shift=4))

    def test_has_the_statistics_of_the_policy_in_pillow(self, random_pixels):
        """Mean, spread and distance from the original, averaged over many draws of the same images."""
        pixels = random_pixels(32, 16, 16)
        images, rng, source = to_images(pixels), np.random.default_rng(0), generator()
        ours, pillows = [], []
        for _ in range(60):
            ours.append(strong(images, source, flip=True, shift=2, cutout=8))
            augmented = [pillow_strong(Image.fromarray(image), rng, flip=True, shift=2, cutout=8) for image in pixels]
            pillows.append(to_images(np.stack(augmented)))

        def statistics(rounds):
            result = torch.stack(rounds)
            each = torch.stack([result.mean((2, 3, 4)), result.std((2, 3, 4)), (result - images).abs().mean((2, 3, 4))])
            return each.mean((1, 2)), each.std(1).mean(1) / each[0].numel() ** 0.5

        (our_mean, our_error), (pillow_mean, pillow_error) = statistics(ours), statistics(pillows)
        assert ((our_mean - pillow_mean).abs() < 4 * (our_error**2 + pillow_error**2).sqrt()).all()

    @pytest.mark.parametrize("batch", [0, 1, 2, 7, 50])
    @pytest.mark.parametrize("size", [16, 32, 96])
    def test_takes_any_batch_and_size(self, batch, size):
        images = torch.rand(batch, 3, size, size, generator=generator())
        before = images.clone()
        result = strong(images, generator(), flip=True, shift=4)
        assert result.shape == images.shape and result.dtype == images.dtype
        assert torch.equal(images, before)
        assert ((result >= 0) & (result <= 1)).all()

    def test_takes_images_of_a_pixel_and_oblong_ones(self):
        assert strong(torch.rand(4, 3, 1, 1), generator(), flip=True, shift=0).shape == (4, 3, 1, 1)
        assert strong(torch.rand(30, 3, 9, 40), generator(), flip=True, shift=3).shape == (30, 3, 9, 40)

    def test_ignores_the_memory_format(self, random_images):
        images = random_images(30)
        last = images.contiguous(memory_format=torch.channels_last)
        expected = strong(images, generator(), flip=True, shift=4)
        assert torch.equal(strong(last, generator(), flip=True, shift=4), expected)

    def test_depends_on_the_generator_alone(self, random_images):
        images = random_images(60)
        first = strong(images, generator(1), flip=True, shift=4)
        torch.manual_seed(99)
        assert torch.equal(first, strong(images, generator(1), flip=True, shift=4))
        assert not torch.equal(first, strong(images, generator(2), flip=True, shift=4))

    def test_draws_parameters_for_every_sample(self, random_images):
        one = random_images(2, seed=5)[:1]
        result = strong(one.expand(200, -1, -1, -1), generator(), flip=True, shift=4)
        assert len({sample.numpy().tobytes() for sample in result}) > 190

    def test_treats_samples_alike_wherever_they_stand(self, random_images):
        """The result at a place depends on the image there and on the draw, not on the other images."""
        images = random_images(50)
        others = images.clone()
        others[::2] = random_images(25, seed=8)
        one = strong(images, generator(), flip=True, shift=4)
        other = strong(others, generator(), flip=True, shift=4)
        assert torch.equal(one[1::2], other[1::2])
        assert not torch.equal(one[::2], other[::2])

    @pytest.mark.parametrize(("height", "width", "cutout"), [(32, 32, 16), (12, 20, 7), (8, 8, 16), (16, 16, 1)])
    def test_cuts_out_a_clipped_square_around_a_uniform_centre(self, height, width, cutout):
        count = 4000
        images = torch.zeros(count, 3, height, width)
        result = strong(images, generator(), flip=False, shift=0, operations=0, cutout=cutout)
        assert torch.equal(result.unique(), torch.tensor([GREY])) or torch.equal(
            result.unique(), torch.tensor([0.0, GREY])
        )
        hole = result[:, 0] > 0
        assert torch.equal(hole[:, None].expand_as(result), result > 0)

        # Each axis: one interval, whose centre is uniform and which is clipped at the borders
        rows, columns = hole.any(2), hole.any(1)
        assert torch.equal(hole, rows[:, :, None] & columns[:, None, :])
        for axis in (rows, columns):
            place = torch.arange(axis.shape[1])
            first = place[:, None] - cutout // 2
            expected = (place >= first) & (place < first + cutout)
            for interval in expected.unique(dim=0):
                weight = (expected == interval).all(1).double().mean()
                share = (axis == interval).all(1).double().mean()
                assert abs(share - weight) < 5 * (weight * (1 - weight) / count) ** 0.5 + 1e-9
        both = torch.corrcoef(torch.stack([rows.sum(1), columns.sum(1)]).double())[0, 1]
        assert torch.isnan(both) or both.abs() < 0.08

    def test_always_cuts_out(self, random_images):
        result = strong(random_images(300), generator(), flip=True, shift=4)
        area = (result == GREY).all(1).sum((1, 2))
        assert area.min() >= 8 * 8
        assert area.max() == 16 * 16

    @pytest.mark.parametrize(
        "wrong",
        [{"probability": 1.5}, {"probability": -0.1}, {"operations": -1}, {"cutout": -2}, {"shift": 32}],
    )
    def test_refuses_impossible_settings(self, wrong, random_images):
        with pytest.raises(InputError):
            strong(random_images(2), generator(), **{"flip": True, "shift": 4, **wrong})

    def test_reads_no_value_back(self):
        """On the meta device a value that is read back, or a shape that depends on one, is an error."""
        queue = torch.empty(50, 3, 16, 16, dtype=torch.uint8, device="meta")
        choice = torch.empty(50, dtype=torch.int64, device="meta")
        magnitude = torch.empty(50, dtype=torch.float64, device="meta")
        randaugment._apply_in_place(queue, choice, magnitude, 0.5)

    def test_needs_no_float64_where_there_is_none(self, monkeypatch, random_images):
        images = random_images(112, 24)
        exactly = strong(images, generator(), flip=True, shift=4)
        for module in (levels, randaugment):
            monkeypatch.setattr(module, "exact", lambda values: values.float())
        with NoDoubles():
            result = strong(images, generator(), flip=True, shift=4)
        assert (result != exactly).double().mean() < 0.01
