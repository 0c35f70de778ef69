"""Changes of colour against torchvision's, sample by sample, and against their formulas in float64."""

from itertools import permutations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from hybridgen.data.augment import color_jitter, lighting
from hybridgen.types import InputError

ADJUST = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)
"""In the order in which the factors are drawn."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(count: int) -> torch.Tensor:
    """Noise on colours of their own, not square."""
    colours = torch.rand(count, 3, 1, 1, generator=generator(1))
    return (colours + 0.3 * torch.randn(count, 3, 9, 14, generator=generator(2))).clamp(0, 1)


def blended(image: np.ndarray, kind: int, factor: float) -> np.ndarray:
    """CutMix's formulas in float64, [3, h, w]."""
    grey = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
    return factor * image + (1 - factor) * (np.zeros_like(grey), np.full_like(grey, grey.mean()), grey)[kind]


def jitter_draws(count: int, ranges: tuple[float, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors [3, count], and which change comes first, second and last [3, count]."""
    draws = torch.rand(6, count, generator=generator())
    return 1 + torch.tensor(ranges)[:, None] * (2 * draws[:3] - 1), draws[3:].argsort(dim=0)


@pytest.mark.parametrize("ranges", [(0.4, 0.4, 0.4), (0.9, 0.2, 0.6), (0.0, 1.0, 0.3)])
def test_jitter_is_torchvisions_sample_by_sample(ranges):
    images = random_images(40)
    options = dict(zip(("brightness", "contrast", "saturation"), ranges, strict=True))
    result = color_jitter(images, generator(), **options)
    factors, order = jitter_draws(40, ranges)
    assert len({tuple(own) for own in order.T.tolist()}) == 6
    for i, image in enumerate(images):
        for kind in order[:, i].tolist():
            image = ADJUST[kind](image, factors[kind, i].item())
        torch.testing.assert_close(result[i], image, atol=4e-4, rtol=0)  # there red counts 0.2989


def test_jitter_without_clipping_is_cutmixs_formula():
    images = random_images(40).double()
    result = color_jitter(images, generator(), clip=False)
    factors, order = jitter_draws(40, (0.4, 0.4, 0.4))
    for i, image in enumerate(images.numpy()):
        for kind in order[:, i].tolist():
            image = blended(image, kind, factors[kind, i].item())
        np.testing.assert_allclose(result[i].numpy(), image, rtol=0, atol=1e-6)
    assert result.max() > 1


def test_jitter_draws_factors_and_orders_evenly():
    """Read off the pictures: grey ones heed brightness alone; of two colours the order tells."""
    count = 6000
    flat = torch.full((count, 3, 2, 3), 0.5)
    factor = color_jitter(flat, generator(3))[:, 0, 0, 0] / 0.5
    assert 0.6 <= factor.min() < 0.605 and 1.395 < factor.max() <= 1.4
    assert torch.histc(factor, 8, 0.6, 1.4).div(count).sub(1 / 8).abs().max() < 0.02
    image = random_images(1).double().expand(count, -1, -1, -1)
    ours = color_jitter(image, generator(), clip=True)
    factors, order = jitter_draws(count, (0.4, 0.4, 0.4))
    shares = [(torch.tensor(each) == order.T).all(1).double().mean() for each in permutations(range(3))]
    assert torch.stack(shares).sub(1 / 6).abs().max() < 0.02
    assert torch.corrcoef(factors).fill_diagonal_(0).abs().max() < 0.05
    assert len(ours.flatten(1).unique(dim=0)) == count


@pytest.mark.parametrize("function", [color_jitter, lighting])
class TestBoth:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_keep_range_type_and_input(self, function, dtype):
        images = torch.cat([random_images(30), torch.ones(2, 3, 9, 14), torch.zeros(2, 3, 9, 14)]).to(dtype)
        before = images.clone()
        result = function(images, generator())
        assert result.dtype == dtype and result.shape == images.shape
        assert result.min() >= 0 and result.max() <= 1
        assert torch.equal(images, before) and not torch.equal(result, images)
        assert function(images[:0], generator()).shape == (0, 3, 9, 14)

    def test_depend_on_the_generator_alone(self, function):
        images, state = random_images(8), torch.get_rng_state()
        first, again, other = (function(images, generator(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, again) and not torch.equal(first, other)
        assert torch.equal(torch.get_rng_state(), state)

    def test_read_nothing_back(self, function):
        """The meta device has nothing to read."""
        images = torch.empty(6, 3, 9, 14, device="meta")
        assert function(images, generator()).shape == images.shape


def test_jitter_of_nothing_changes_nothing():
    images = random_images(5)
    result = color_jitter(images, generator(), brightness=0.0, contrast=0.0, saturation=0.0)
    torch.testing.assert_close(result, images, atol=1e-6, rtol=0)


@pytest.mark.parametrize("std", [0.1, 0.5])
def test_lighting_is_its_formula_in_float64(std):
    """Krizhevsky et al. 2012, section 4.1: [p1, p2, p3] [a1 l1, a2 l2, a3 l3]^T is added to every pixel."""
    images = random_images(20).double()
    alpha = torch.randn(3, 20, generator=generator()).double().numpy() * std
    values = np.array([0.2175, 0.0188, 0.0045])
    vectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    shifts = (vectors @ (alpha * values[:, None])).T[:, :, None, None]
    result = lighting(images, generator(), std=std, clip=False)
    np.testing.assert_allclose(result.numpy(), images.numpy() + shifts, rtol=0, atol=1e-7)
    clipped = lighting(images, generator(), std=std)
    np.testing.assert_allclose(clipped.numpy(), (images.numpy() + shifts).clip(0, 1), rtol=0, atol=1e-7)


def test_lighting_has_the_covariance_of_imagenets_colours():
    """The axes are orthonormal, so that the shift's covariance is theirs with the deviations squared, times std²."""
    images = torch.zeros(50_000, 3, 1, 1)
    shift = lighting(images, generator(), clip=False)[:, :, 0, 0].double()
    values, vectors = np.linalg.eigh(shift.T.cov().numpy())
    np.testing.assert_allclose(values[::-1] ** 0.5, np.array([0.2175, 0.0188, 0.0045]) * 0.1, rtol=0.02)
    assert abs(vectors[:, -1] @ np.array([-0.5675, -0.5808, -0.5836])) > 0.999


@pytest.mark.parametrize(
    ("function", "options"),
    [(color_jitter, {"brightness": -0.1}), (color_jitter, {"contrast": 1.1}), (color_jitter, {"saturation": 2.0}),
     (lighting, {"std": -0.1}), (lighting, {"std": float("nan")})],
)  # fmt: skip
def test_impossible_options_are_refused(function, options):
    (field,) = options
    with pytest.raises(InputError, match=f"^{field}: "):
        function(random_images(2), generator(), **options)
