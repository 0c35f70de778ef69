"""Weak augmentation against numpy, and the distribution of what it draws."""

import numpy as np
import pytest
import torch
from PIL import Image

from hybridgen.data.augment import diff_augment, weak
from hybridgen.data.pillow_policy import pillow_weak
from hybridgen.types import InputError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def to_images(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 255


def to_pixels(images: torch.Tensor) -> np.ndarray:
    levels = images * 255
    assert (levels - levels.round()).abs().max() < 1e-3, "not multiples of 1/255"
    return levels.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def weak_candidates(
    pixels: np.ndarray, flip: bool, shift: int, mode: str = "reflect"
) -> dict[tuple[bool, int, int], np.ndarray]:
    """Every outcome that weak augmentation may have for one image, by numpy's padding."""
    height, width = pixels.shape[:2]
    outcomes = {}
    for flipped in (False, True) if flip else (False,):
        image = pixels[:, ::-1] if flipped else pixels
        padded = np.pad(image, ((shift, shift), (shift, shift), (0, 0)), mode=mode)
        for top in range(2 * shift + 1):
            for left in range(2 * shift + 1):
                outcomes[flipped, top, left] = padded[top : top + height, left : left + width]
    return outcomes


def weak_draws(
    pixels: np.ndarray, augmented: torch.Tensor, flip: bool, shift: int, mode: str = "reflect"
) -> list[tuple]:
    """Which flip and shift each sample got, read off the result; fails where none explains it.

    They are unique while the shift is below half the side.
    """
    draws = []
    for image, result in zip(pixels, to_pixels(augmented), strict=True):
        outcomes = weak_candidates(image, flip, shift, mode)
        found = [draw for draw, outcome in outcomes.items() if np.array_equal(outcome, result)]
        assert found
        draws.append(found[0])
    return draws


class TestWeak:
    @pytest.mark.parametrize("size", [(16, 16), (12, 20)])
    @pytest.mark.parametrize(("flip", "shift"), [(True, 4), (False, 4), (True, 0), (False, 0), (True, 11)])
    @pytest.mark.parametrize(("padding", "mode"), [("reflection", "reflect"), ("zeros", "constant")])
    def test_is_a_crop_of_the_flipped_and_padded_image(self, flip, shift, size, padding, mode):
        pixels = np.random.default_rng(0).integers(0, 256, (10, *size, 3), dtype=np.uint8)
        augmented = weak(to_images(pixels), generator(), flip=flip, shift=shift, padding=padding)
        weak_draws(pixels, augmented, flip, shift, mode)

    def test_draws_uniformly_for_every_sample(self):
        image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        count, shift = 20_000, 2
        augmented = weak(to_images(image[None]).expand(count, -1, -1, -1), generator(), flip=True, shift=shift)
        results = to_pixels(augmented).reshape(count, -1)
        matched = 0
        for outcome in weak_candidates(image, True, shift).values():
            share = (results == outcome.reshape(-1)).all(1).mean()
            matched += share
            assert abs(share - 1 / 50) < 4.5 * (0.02 * 0.98 / count) ** 0.5
        assert matched == pytest.approx(1)

    def test_depends_on_the_generator_alone(self):
        first = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
        other = np.random.default_rng(1).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
        draws = [
            weak_draws(pixels, weak(to_images(pixels), generator(seed), flip=True, shift=4), True, 4)
            for pixels, seed in ((first, 3), (first, 3), (other, 3), (first, 4))
        ]
        assert draws[0] == draws[1] == draws[2] != draws[3]
        assert len(set(draws[0])) > 20

    def test_keeps_values_that_are_no_levels(self):
        images = torch.rand(5, 3, 16, 16, generator=generator(), dtype=torch.float64)
        before = images.clone()
        augmented = weak(images, generator(), flip=True, shift=4)
        assert augmented.dtype == torch.float64
        assert torch.isin(augmented, images).all()
        assert torch.equal(images, before)
        still = weak(images, generator(), flip=False, shift=0)
        assert torch.equal(still, images)
        assert still.data_ptr() != images.data_ptr()

    @pytest.mark.parametrize("shift", [-1, 16])
    def test_refuses_a_shift_beyond_the_image(self, shift, random_images):
        with pytest.raises(InputError, match=r"^shift: "):
            weak(random_images(2, 16), generator(), flip=True, shift=shift)


# --- DiffAugment ---------------------------------------------------------------------------------------------


def diff_augmented(image: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """The authors' rand_brightness, rand_saturation, rand_contrast, rand_translation and rand_cutout of one image
    `[3, height, width]`, place by place, from seven numbers of [0, 1)."""
    height, width = image.shape[1:]
    image = image + (draws[0] - 0.5)
    grey = image.mean(axis=0, keepdims=True)
    image = (image - grey) * (draws[1] * 2) + grey
    image = (image - image.mean()) * (draws[2] + 0.5) + image.mean()
    shifts = [int(side * 0.125 + 0.5) for side in (height, width)]
    down, right = (int(draw * (2 * shift + 1)) - shift for draw, shift in zip(draws[[3, 5]], shifts, strict=True))
    holes = [int(side * 0.5 + 0.5) for side in (height, width)]
    tops = [
        int(draw * (side + 1 - hole % 2)) - hole // 2
        for draw, side, hole in zip(draws[[4, 6]], (height, width), holes, strict=True)
    ]
    made = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            inside = 0 <= row + down < height and 0 <= column + right < width
            cut = all(top <= at < top + hole for top, at, hole in zip(tops, (row, column), holes, strict=True))
            if inside and not cut:
                made[:, row, column] = image[:, row + down, column + right]
    return made


@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 20), (9, 7)])
def test_diff_augment_equals_its_authors_operations(height, width):
    images = torch.rand(40, 3, height, width, dtype=torch.float64, generator=generator(1), requires_grad=True)
    made = diff_augment(images, generator(2))
    draws = torch.rand(7, 40, 1, generator=generator(2))[:, :, 0].double().numpy()
    expected = np.stack([diff_augmented(image, draws[:, i]) for i, image in enumerate(images.detach().numpy())])
    np.testing.assert_allclose(made.detach().numpy(), expected, atol=1e-12)
    made.sum().backward()
    assert (images.grad.flatten(1).abs().sum(dim=1) > 0).all()


def test_diff_augment_is_drawn_from_the_global_generator_unless_told_otherwise():
    images = torch.rand(4, 3, 16, 16, generator=generator())
    torch.manual_seed(3)
    first, second = diff_augment(images), diff_augment(images)
    assert not torch.equal(first, second)
    assert torch.equal(first, diff_augment(images, generator(3)))
    assert len({tuple(image.flatten().tolist()) for image in diff_augment(images[:1].expand(50, -1, -1, -1))}) == 50


def test_pillows_weak_view_is_shifted_by_every_number_of_pixels_to_both_sides_and_flipped_half_the_time():
    """A lone bright pixel in the middle tells where the image went."""
    pixels = np.zeros((9, 13, 3), dtype=np.uint8)
    pixels[4, 7] = 255
    rng, seen, flips = np.random.default_rng(0), set(), 0
    for _ in range(400):
        ((row, column),) = np.argwhere(
            np.asarray(pillow_weak(Image.fromarray(pixels), rng, flip=False, shift=2))[..., 0]
        )
        seen.add((int(row) - 4, int(column) - 7))
        flips += bool(np.asarray(pillow_weak(Image.fromarray(pixels), rng, flip=True, shift=0))[4, 5, 0])
    assert seen == {(down, right) for down in range(-2, 3) for right in range(-2, 3)} and 160 < flips < 240
