"""AugMix against Pillow and float64, sample by sample and chain by chain."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.utils._python_dispatch import TorchDispatchMode

from hybridgen.data import augmix, levels
from hybridgen.data.pillow_policy import FILL
from hybridgen.data.randaugment import OPERATIONS
from hybridgen.types import InputError


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


class TestAugMix:
    """Sample by sample, chain by chain, through Pillow and float64."""

    @staticmethod
    def operate(name: str, image: Image.Image, level: float) -> Image.Image:
        """google-research/augmix, but for the nearest pixel and the grey."""
        width, height = image.size
        whole = lambda highest: int(level * highest / 10)
        size = abs(level)
        move = lambda *numbers: image.transform(image.size, Image.Transform.AFFINE, numbers, fillcolor=FILL)
        match name:
            case "autocontrast":
                return ImageOps.autocontrast(image)
            case "equalize":
                return ImageOps.equalize(image)
            case "posterize":
                return ImageOps.posterize(image, 4 - int(size * 4 / 10))
            case "solarize":
                return ImageOps.solarize(image, 256 - int(size * 256 / 10))
            case "rotate":
                return image.rotate(whole(30), fillcolor=FILL)
            case "shear_x":
                return move(1, level * 0.3 / 10, 0, 0, 1, 0)
            case "shear_y":
                return move(1, 0, 0, level * 0.3 / 10, 1, 0)
            case "translate_x":
                return move(1, 0, whole(width / 3), 0, 1, 0)
            case "translate_y":
                return move(1, 0, 0, 0, 1, whole(height / 3))

    @pytest.mark.parametrize("size", [(32, 32), (17, 24), (1, 1)])
    @pytest.mark.parametrize("options", [{}, {"severity": 10, "alpha": 0.2}, {"width": 2, "depth": 4, "severity": 6},
                                         {"depth": 4, "operations": augmix.WITHOUT_CONTRAST}])  # fmt: skip
    def test_equals_the_reference(self, size, options, random_pixels):
        options = dict(width=3, depth=None, severity=3, alpha=1.0) | options
        pixels = random_pixels(40, *size)
        result = augmix.augmix(to_images(pixels).double(), generator(), **options)
        drawn = augmix.draw_chains(40, generator(), **options)
        assert drawn.choice.shape == (options["depth"] or 3, options["width"], 40)
        for i in range(40):
            mixture = np.zeros(pixels.shape[1:])
            for chain in range(options["width"]):
                image = Image.fromarray(pixels[i])
                for choice, level in zip(
                    drawn.choice[:, chain, i].tolist(), drawn.level[:, chain, i].tolist(), strict=True
                ):
                    if choice < len(augmix.AUGMIX_OPERATIONS):
                        image = self.operate(augmix.AUGMIX_OPERATIONS[choice], image, level)
                mixture += drawn.weight[chain, i].double().item() * np.asarray(image) / 255
            share = drawn.share[i].double().item()
            expected = (1 - share) * pixels[i] / 255 + share * mixture
            np.testing.assert_allclose(result[i].permute(1, 2, 0), expected, rtol=0, atol=1e-6)

    def test_draws(self):
        """Operations, depths, levels, weights and shares have the paper's distributions; each chain its own."""
        drawn = augmix.draw_chains(20_000, generator(), width=3, depth=None, severity=3, alpha=1.0)
        count = len(augmix.AUGMIX_OPERATIONS)
        assert count == 9 and set(augmix.AUGMIX_OPERATIONS) < set(OPERATIONS)
        shares = torch.bincount(drawn.choice[0].flatten(), minlength=count).double() / 60_000
        assert shares.sub(1 / 9).abs().max() < 0.01
        depths = (drawn.choice < count).sum(dim=0)
        assert (torch.bincount(depths.flatten())[1:] / 60_000).sub(1 / 3).abs().max() < 0.01
        assert ((drawn.choice < count).long().diff(dim=0) <= 0).all()  # none comes last
        level = drawn.level.abs()
        assert level.min() >= 0.1 and level.max() <= 3 and level.mean().item() == pytest.approx(1.55, abs=0.01)
        assert (drawn.level > 0).double().mean().item() == pytest.approx(0.5, abs=0.01)
        torch.testing.assert_close(drawn.weight.sum(dim=0), torch.ones(20_000))
        expected = np.random.default_rng(0).dirichlet([1, 1, 1], 20_000)
        assert drawn.weight[1].std().item() == pytest.approx(expected[:, 1].std(), abs=0.01)
        assert drawn.share.std().item() == pytest.approx(12**-0.5, abs=0.01)
        depth = augmix.draw_chains(50, generator(), width=2, depth=5, severity=3, alpha=1.0).choice
        assert depth.shape == (5, 2, 50) and depth.max() < count

    def test_operations_are_drawn_of_those_that_are_given(self):
        """Those of the thesis, A.1.3.1."""
        assert set(augmix.WITHOUT_CONTRAST) == {
            "equalize", "posterize", "rotate", "solarize", "shear_x", "shear_y", "translate_x", "translate_y"
        }  # fmt: skip
        options = dict(width=3, depth=4, severity=3, alpha=1.0, operations=augmix.WITHOUT_CONTRAST)
        choice = augmix.draw_chains(5000, generator(), **options).choice
        shares = torch.bincount(choice.flatten(), minlength=9).double() / choice.numel()
        contrast = augmix.AUGMIX_OPERATIONS.index("autocontrast")
        assert shares[contrast] == 0 and shares[[i for i in range(9) if i != contrast]].sub(1 / 8).abs().max() < 0.01

    @pytest.mark.parametrize("alpha", [0.01, 0.3, 5.0])
    def test_any_alpha(self, alpha):
        drawn = augmix.draw_chains(5000, generator(), width=3, depth=1, severity=3, alpha=alpha)
        expected = np.random.default_rng(0).dirichlet([alpha] * 3, 5000)
        assert drawn.weight.isfinite().all() and drawn.share.isfinite().all()
        assert drawn.weight[0].std().item() == pytest.approx(expected[:, 0].std(), abs=0.015)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
    def test_stays_in_range_and_precision(self, dtype, random_images):
        images = torch.cat([random_images(30), torch.ones(2, 3, 32, 32), torch.zeros(2, 3, 32, 32)]).to(dtype)
        before = images.clone()
        for seed in range(3):
            result = augmix.augmix(images, generator(seed), severity=10)
            assert result.dtype == dtype and result.shape == images.shape
            assert result.min() >= 0 and result.max() <= 1
        assert torch.equal(images, before)
        assert augmix.augmix(images[:0], generator()).shape == (0, 3, 32, 32)

    def test_the_generator_decides(self, random_images):
        images, state = random_images(12), torch.get_rng_state()
        first, again, other = (augmix.augmix(images, generator(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, again) and not torch.equal(first, other)
        assert torch.equal(torch.get_rng_state(), state)

    def test_nothing_is_read_back_from_a_device(self):
        """The meta device has nothing to read."""
        assert augmix.augmix(torch.empty(6, 3, 9, 12, device="meta"), generator()).shape == (6, 3, 9, 12)

    @pytest.mark.parametrize(
        "bad", [{"width": 0}, {"depth": 0}, {"severity": 11}, {"severity": 0}, {"alpha": 0.0}, {"alpha": float("nan")}]
    )
    def test_bad_options(self, bad, random_images):
        (name,) = bad
        with pytest.raises(InputError, match=name):
            augmix.augmix(random_images(2), generator(), **bad)

    def test_needs_no_float64_where_there_is_none(self, monkeypatch, random_images):
        images = random_images(60, 24)
        exactly = augmix.augmix(images, generator(), severity=10)
        for module in (levels, augmix):
            monkeypatch.setattr(module, "exact", lambda values: values.float())
        with NoDoubles():
            result = augmix.augmix(images, generator(), severity=10)
        assert ((result - exactly).abs() > 1e-6).double().mean() < 0.02
