"""Masks against loops and numpy in float64: areas and their distribution, shapes, any size of image."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from hybridgen.mixing import masks
from hybridgen.types import InputError

SIZES = [(32, 32), (17, 24), (5, 64), (1, 7), (2, 1), (1, 1)]

SHAPES = {
    "box": lambda ratio, h, w, g: masks.inside(masks.cutmix_boxes(ratio, h, w, g), h, w),
    "left": lambda ratio, h, w, g: masks.halves(ratio, h, w, vertical=False),
    "above": lambda ratio, h, w, g: masks.halves(ratio, h, w, vertical=True),
    "fourier": lambda ratio, h, w, g: masks.fourier(ratio, h, w, generator=g),
    "cow": lambda ratio, h, w, g: masks.cow(ratio, h, w, generator=g),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def uniform(count, seed=1):
    return torch.rand(count, generator=generator(seed))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SHAPES)
def test_masks_are_binary_and_full_at_one(name, size):
    ratio = torch.cat([uniform(20), torch.zeros(4), torch.ones(4)])
    mask = SHAPES[name](ratio, *size, generator())
    assert mask.shape == (28, 1, *size) and mask.dtype == torch.float32
    assert ((mask == 0) | (mask == 1)).all()
    assert (mask[24:] == 1).all()
    if name != "box":  # which is cut off at the borders
        assert (mask[20:24] == 0).all()


@pytest.mark.parametrize("size", [(32, 32), (17, 24), (1, 50), (96, 80)])
@pytest.mark.parametrize("name", ["left", "above", "fourier", "cow"])
def test_the_realised_share_is_the_ratio_but_for_whole_places(name, size):
    """A line is a row or column from its place at most by half; a threshold by a thousandth and half a pixel."""
    ratio = uniform(64)
    realised = SHAPES[name](ratio, *size, generator()).mean(dim=(1, 2, 3))
    slack = {"left": 0.5 / size[1], "above": 0.5 / size[0]}.get(name, 0.6 / math.prod(size) + 2e-3)
    assert (realised - ratio).abs().max() <= slack + 1e-6


def test_boxes_pixel_by_pixel():
    """Around the pixels that come next from the generator, cut off at the borders: Yun et al.'s rand_bbox."""
    ratio, height, width = uniform(50), 12, 9
    boxes = masks.cutmix_boxes(ratio, height, width, generator())
    mask = masks.inside(boxes, height, width)
    g = generator()
    rows, columns = (torch.randint(length, (50,), generator=g).tolist() for length in (height, width))
    for i, share in enumerate(ratio.tolist()):
        cut = math.sqrt(1 - share)
        half_height, half_width = int(cut * height) // 2, int(cut * width) // 2
        top, bottom = max(rows[i] - half_height, 0), min(rows[i] + half_height, height)
        left, right = max(columns[i] - half_width, 0), min(columns[i] + half_width, width)
        assert boxes[i].tolist() == [top, left, bottom - top, right - left]
        expected = np.ones((height, width))
        expected[top:bottom, left:right] = 0
        np.testing.assert_array_equal(mask[i, 0], expected)


def test_a_box_is_as_large_as_the_ratio_leaves_room_for():
    """At ratio 0 all of the image from a box at its centre, a quarter from one in the corner; no share is too small."""
    boxes = masks.cutmix_boxes(torch.zeros(500), 8, 6, generator())
    shares = masks.inside(boxes, 8, 6).mean(dim=(1, 2, 3))
    assert shares.min() == 0 and shares.max() == pytest.approx(0.75)
    ratio = uniform(2000)
    shares = masks.inside(masks.cutmix_boxes(ratio, 16, 16, generator()), 16, 16).mean(dim=(1, 2, 3))
    assert (shares >= ratio - 1e-6).all() and len(shares.unique()) > 50
    empty = masks.inside(torch.tensor([[3, 2, 0, 4], [3, 2, 1, 1]]), 8, 6)
    assert empty.sum(dim=(1, 2, 3)).tolist() == [48, 47]


def test_the_left_and_the_upper_part():
    ratio = torch.tensor([0.3, 0.5])
    left, above = (masks.halves(ratio, 4, 10, vertical=vertical)[:, 0] for vertical in (False, True))
    assert left[0].tolist() == [[1.0] * 3 + [0.0] * 7] * 4
    assert above[0].tolist() == [[1.0] * 10] + [[0.0] * 10] * 3
    assert above[1].tolist() == [[1.0] * 10] * 2 + [[0.0] * 10] * 2


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 8.0])
def test_shares_are_betas(alpha):
    """Moments and quantiles against numpy's; no NaN for a small alpha, where nearly all are 0 or 1."""
    drawn = masks.beta(20_000, alpha, generator()).double().numpy()
    expected = np.random.default_rng(0).beta(alpha, alpha, 20_000)
    assert np.isfinite(drawn).all() and drawn.min() >= 0 and drawn.max() <= 1
    assert drawn.mean() == pytest.approx(0.5, abs=0.015)
    assert drawn.std() == pytest.approx(expected.std(), abs=0.006)
    quantiles = np.linspace(0.05, 0.45, 5)
    np.testing.assert_allclose(np.quantile(drawn, quantiles), np.quantile(expected, quantiles), atol=0.03)
    assert masks.beta(3, alpha, generator(), dtype=torch.float64).dtype == torch.float64


@pytest.mark.parametrize("alpha", [0.001, 0.1, 0.75, 1.0, 16.0])
def test_the_larger_of_a_betas_two_shares(alpha):
    """Of its log odds; in [½, 1] and each its own."""
    share = masks.beta_log_odds(20_000, alpha, generator()).abs().sigmoid()
    drawn = np.random.default_rng(0).beta(alpha, alpha, 20_000)
    drawn = np.maximum(drawn, 1 - drawn)
    assert share.min() >= 0.5 and share.max() <= 1 and len(share.unique()) > 100
    assert share.mean().item() == pytest.approx(drawn.mean(), abs=0.006)
    assert share.std().item() == pytest.approx(drawn.std(), abs=0.006)


@pytest.mark.parametrize("size", [(16, 16), (9, 14)])
def test_fmix_is_filtered_noise_above_its_quantile(size):
    """The field of the same draws, by numpy."""
    height, width = size
    ratio = uniform(6)
    mask = masks.fourier(ratio, height, width, decay=2.5, generator=generator())
    noise = torch.randn(6, height, width // 2 + 1, 2, generator=generator()).double().numpy()
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    spectrum = (noise[..., 0] + 1j * noise[..., 1]) / np.maximum(frequency, 1 / max(size)) ** 2.5
    field = np.fft.irfft2(spectrum, s=size).reshape(6, -1)
    assert_highest(mask, field)


def assert_highest(mask, field):
    """Every place that a mask keeps is higher than every one that it leaves."""
    for own, kept in zip(field, mask.flatten(1).bool().numpy(), strict=True):
        assert not kept.any() or kept.all() or own[kept].min() > own[~kept].max() - 1e-4 * np.ptp(own)


@pytest.mark.parametrize("size", [(32, 32), (12, 33), (40, 9), (50, 1)])
@pytest.mark.parametrize("sigmas", [(4.0, 16.0), (1.5, 3.0), (2.0, 2.0)])
def test_cow_is_white_noise_under_scipys_gaussian_filter(size, sigmas):
    """The field of the same draws: noise whose every wave has variance 1, filtered in float64 with reflection; the
    deviations are log-uniform, in pixels of an image whose longer side has 32."""
    ratio = uniform(8)
    mask = masks.cow(ratio, *size, sigmas=sigmas, generator=generator())
    g = generator()
    draws = torch.rand(8, 1, generator=g).double().numpy()[:, 0]
    deviations = sigmas[0] ** (1 - draws) * sigmas[1] ** draws * max(size) / 32
    bases = [masks._waves(side, torch.ones(1, 1), sigmas[0] * max(size) / 32)[0].double().numpy() for side in size]
    noise = torch.randn(8, *map(len, bases), generator=g).double().numpy()
    fields = [
        gaussian_filter(bases[0].T @ waves @ bases[1], deviation, mode="reflect", truncate=8)
        for waves, deviation in zip(noise, deviations, strict=True)
    ]
    assert_highest(mask, np.stack(fields).reshape(8, -1))


@pytest.mark.parametrize("sigma", [1.5, 2.0, 9.0])
@pytest.mark.parametrize("length", [1, 2, 12, 33])
def test_waves_of_a_filter_that_reflects(length, sigma):
    """They make white noise but for what is left out, and what is left of it is scipy's filter of every place."""
    basis, passed = masks._waves(length, torch.tensor([[sigma]]), sigma)
    torch.testing.assert_close(basis @ basis.mT, torch.eye(len(basis)), rtol=0, atol=1e-5)
    expected = gaussian_filter1d(np.eye(length), sigma, axis=0, mode="reflect", truncate=8)
    np.testing.assert_allclose((basis.mT * passed) @ basis, expected, rtol=0, atol=1e-5)
    assert len(basis) == length or np.exp(-((np.pi * sigma * len(basis) / length) ** 2) / 2) < 1e-7


def test_deviations_are_log_uniform():
    """Of many masks; half of them lie below the geometric mean. What is seen is a border's length, by its inverse."""
    ratio = torch.full((600,), 0.5)
    length = lambda mask: (mask[..., 1:] != mask[..., :-1]).float().mean(dim=(1, 2, 3))
    drawn = length(masks.cow(ratio, 64, 64, sigmas=(1.0, 9.0), generator=generator()))
    middle = length(masks.cow(ratio, 64, 64, sigmas=(3.0, 3.0), generator=generator(1))).mean()
    assert (drawn < middle).float().mean().item() == pytest.approx(0.5, abs=0.06)


def test_a_cows_spots_grow_with_sigma_and_with_the_image():
    """Changes between neighbours, a border's length, fall with sigma."""
    edges = lambda mask: (mask[..., 1:] != mask[..., :-1]).float().mean().item()
    half = torch.full((200,), 0.5)
    fine, coarse = (masks.cow(half, 32, 32, sigmas=(s, s), generator=generator()) for s in (2.0, 8.0))
    large = masks.cow(half, 64, 64, sigmas=(2.0, 2.0), generator=generator())
    assert edges(fine) > 2 * edges(coarse)
    assert edges(large) == pytest.approx(edges(fine) / 2, rel=0.1)


def test_highest_places():
    values = torch.randn(50, 1, 20, 20, generator=generator())
    mask = masks.highest(values, uniform(50))
    assert_highest(mask, values.flatten(1).numpy())
    assert ((mask.sum(dim=(1, 2, 3)) - uniform(50) * 400).abs() <= 1.5).all()
    flat = masks.highest(torch.full((3, 1, 4, 4), 0.7), torch.tensor([0.0, 1.0, 0.4])).mean(dim=(1, 2, 3))
    assert flat[:2].tolist() == [0, 1] and flat[2] in (0, 1)  # ties stand or fall together


@pytest.mark.parametrize("side", [1, 3, 7])
def test_blocks_are_squares_around_the_drawn_places(side):
    mask = masks.blocks(torch.tensor([0.03, 0.0, 1.0]), 11, 8, side=side, channels=2, generator=generator())
    centres = torch.rand(3, 2, 11, 8, generator=generator()) < torch.tensor([0.03, 0.0, 1.0]).view(-1, 1, 1, 1)
    expected = np.ones((3, 2, 11, 8))
    for i, c, row, column in centres.nonzero().tolist():
        reach = side // 2
        expected[i, c, max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1] = 0
    np.testing.assert_array_equal(mask, expected)
    assert 0 < mask[0].mean() < 1 and mask[1].all() and not mask[2].any()


def picture(height, width, seed):
    """Squares of 6 pixels under noise, in 8 bits."""
    draw = np.random.RandomState(seed)
    coarse = draw.randint(0, 200, (-(-height // 6), -(-width // 6), 3)).repeat(6, 0).repeat(6, 1)[:height, :width]
    return (coarse + draw.randint(0, 56, (height, width, 3))).astype(np.uint8)


def as_images(*pictures):
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize(
    ("size", "seed", "peak", "total", "some"),
    [
        ((32, 32), 0, (9, 25), 90823, [43, 42, 73, 163, 52, 193]),
        ((32, 32), 1, (2, 16), 115569, [40, 181, 137, 65, 87, 94]),
        ((24, 40), 2, (14, 14), 99401, [68, 142, 218, 33, 79, 40]),
        ((40, 24), 3, (21, 15), 74218, [72, 86, 69, 48, 27, 43]),
        ((24, 40), 4, (3, 15), 93232, [146, 148, 81, 69, 10, 198]),
        ((70, 130), 1, (14, 27), 668936, [14, 33, 42, 23, 26, 20]),
        ((5, 3), 0, (0, 0), 1143, [255, 63, 255, 0, 0, 63]),
    ],
)
def test_saliency_is_opencvs(size, seed, peak, total, some):
    """Recorded from OpenCV 5.0's StaticSaliencyFineGrained, on the same picture as BGR: the peak, the sum of all
    levels, those of the corners and of two places inside."""
    other = as_images(picture(*size, seed + 50))
    seen = masks.saliency(torch.cat([other, as_images(picture(*size, seed))]))[1]
    levels = (255 * seen).round().int()
    assert divmod(int(seen.argmax()), size[1]) == peak
    height, width = size
    places = ((0, 0), (0, -1), (-1, 0), (-1, -1), (height // 2, width // 3), (height // 3, width // 2))
    assert [levels[place].item() for place in places] == some
    assert levels.sum() == total
    torch.testing.assert_close(seen * 255, levels.float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(9, 13), (40, 26), (1, 6), (5, 1), (1, 1), (2, 2)])
def test_saliency_by_hand(size):
    """Loops over pixels, in whole numbers and float64."""
    height, width = size
    pictures = [picture(*size, seed) for seed in (0, 1)] + [np.full((*size, 3), 77, np.uint8)]
    for own, given in zip(masks.saliency(as_images(*pictures)), pictures, strict=True):
        grey = (given.astype(int) @ [9798, 19235, 3735] + 2**14) >> 15
        reflected = lambda place, last: 0 if last == 0 else last - abs(last - abs(place))
        for _ in range(2):
            grey = np.array([[sum(
                (1 + (i == 0)) * (1 + (j == 0)) * grey[reflected(row + i, height - 1), reflected(column + j, width - 1)]
                for i in (-1, 0, 1) for j in (-1, 0, 1)
            ) + 8 >> 4 for column in range(width)] for row in range(height)])  # fmt: skip
        bright, dark = np.zeros(size), np.zeros(size)
        for reach in (12, 24, 28, 48, 56, 112):
            for row in range(height if height * width > 1 else 0):
                for column in range(width):
                    rows, columns = (
                        slice(max(row - reach + 1, 0), row + reach + 1),
                        slice(max(column - reach + 1, 0), column + reach + 1),
                    )
                    around = grey[rows, columns]
                    mean = (around.sum() - grey[row, column]) / (around.size - 1)
                    bright[row, column] += math.floor(max(grey[row, column] - mean, 0))
                    dark[row, column] += math.floor(max(mean - grey[row, column], 0))
        expected = sum(np.floor(255 * part / max(part.max(), 1)) for part in (bright, dark)) / 255
        np.testing.assert_allclose(own, expected, rtol=0, atol=1e-6)


def test_saliency_of_other_ranges_and_channels():
    """Standardised images are brought into [0, 1], each by itself; channels that are not RGB count alike."""
    images = as_images(picture(9, 14, 0), picture(9, 14, 1))
    images[:, :, 0, 0], images[:, :, 0, 1] = 0, 1
    other = images[:1] * torch.tensor([2.0]) - 0.5
    seen = masks.saliency(torch.cat([other, images[1:]]))
    assert torch.equal(seen, masks.saliency(images))
    grey = images[:, :1]
    torch.testing.assert_close(masks.saliency(grey), masks.saliency(grey.expand(-1, 3, -1, -1)))
    assert masks.saliency(grey.expand(-1, 5, -1, -1)).isfinite().all()


@pytest.mark.parametrize("name", [*SHAPES, "saliency"])
def test_mixed_precision_around_changes_nothing(name):
    images = torch.rand(5, 3, 12, 9, generator=generator())
    draw = lambda: SHAPES[name](uniform(60), 12, 9, generator()) if name in SHAPES else masks.saliency(images)
    expected = draw()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(draw(), expected)


@pytest.mark.parametrize("name", [*SHAPES, "blocks"])
def test_the_generator_decides(name):
    draw = SHAPES.get(name) or (lambda ratio, h, w, g: masks.blocks(ratio, h, w, side=3, generator=g))
    ratio, state = uniform(9) / 2, torch.get_rng_state()
    first, again = draw(ratio, 12, 9, generator(3)), draw(ratio, 12, 9, generator(3))
    assert torch.equal(first, again) and torch.equal(torch.get_rng_state(), state)
    if name not in ("left", "above"):
        assert not torch.equal(first, draw(ratio, 12, 9, generator(4)))


@pytest.mark.parametrize("name", [*SHAPES, "blocks"])
def test_a_ratio_outside_the_interval(name):
    draw = SHAPES.get(name) or (lambda ratio, h, w, g: masks.blocks(ratio, h, w, side=3, generator=g))
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match=r"^(ratio|rate): in .*not in \[0, 1\]"):
            draw(torch.tensor([0.5, bad]), 8, 8, None)
