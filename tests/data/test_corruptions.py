"""Corruptions against numpy, scipy and Pillow."""

import colorsys
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from hybridgen.data import corruptions
from hybridgen.data.corruptions import CORRUPTIONS, corrupt
from hybridgen.types import InputError

DRAWN = {
    "gaussian-noise", "shot-noise", "impulse-noise", "glass-blur", "motion-blur", "snow", "frost", "fog", "elastic",
}  # fmt: skip
"""Those that draw something."""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some(batch: int = 2, height: int = 20, width: int = 32) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=seeded(7), dtype=torch.float64)


def grey(value: float, batch: int = 8, side: int = 64) -> torch.Tensor:
    return torch.full((batch, 3, side, side), value)


def spot(height: int = 25, width: int = 31) -> torch.Tensor:
    """White in one pixel."""
    images = torch.zeros(1, 3, height, width, dtype=torch.float64)
    images[:, :, 12, 14] = 1
    return images


def at(name: str, severity: int) -> tuple[float, ...]:
    return CORRUPTIONS[name].at[severity - 1]


# --- All of them -------------------------------------------------------------------------------------------------


def test_there_are_fifteen_of_five_severities():
    assert len(CORRUPTIONS) == 15 and all(len(each.at) == 5 for each in CORRUPTIONS.values())
    assert set(CORRUPTIONS) > DRAWN


def test_severities_are_those_of_cifar_c():
    """Hendrycks and Dietterich's make_cifar_c.py; of zooms how many there are, 1 to 1.05, 1.1, ... by 0.01."""
    assert {name: list(each.at) for name, each in CORRUPTIONS.items()} == {
        "gaussian-noise": [(0.04,), (0.06,), (0.08,), (0.09,), (0.1,)],
        "shot-noise": [(500,), (250,), (100,), (75,), (50,)],
        "impulse-noise": [(0.01,), (0.02,), (0.03,), (0.05,), (0.07,)],
        "defocus-blur": [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
        "glass-blur": [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
        "motion-blur": [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
        "zoom-blur": [(6,), (11,), (16,), (21,), (26,)],
        "snow": [
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ],
        "frost": [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
        "fog": [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
        "brightness": [(0.05,), (0.1,), (0.15,), (0.2,), (0.3,)],
        "contrast": [(0.75,), (0.5,), (0.4,), (0.3,), (0.15,)],
        "elastic": [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)],
        "pixelate": [(0.95,), (0.9,), (0.85,), (0.75,), (0.65,)],
        "jpeg": [(80,), (65,), (58,), (50,), (40,)],
    }  # fmt: skip


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_what_holds_for_all(name):
    """Oblong images stay as large, in [0, 1]; the same from the same seed, every image with its own draws; the more
    severe, the further away (of the hardest and the mildest); nothing at severity 0."""
    one = ndimage.gaussian_filter(some(1, 20, 32).numpy(), (0, 0, 1, 1))
    images = torch.from_numpy((one - one.min()) / (one.max() - one.min())).repeat(3, 1, 1, 1)
    kept = images.clone()
    assert corrupt(images, name, 0, seeded()) is images
    distances = []
    for severity in range(1, 6):
        spoilt = corrupt(images, name, severity, seeded())
        assert spoilt.shape == images.shape and 0 <= spoilt.min() <= spoilt.max() <= 1
        assert torch.equal(spoilt, corrupt(images, name, severity, seeded())) and torch.equal(images, kept)
        assert torch.equal(spoilt[0], spoilt[1]) == (name not in DRAWN)
        distances.append((spoilt - images).square().mean().item())
    assert distances[0] > 1e-5 and (distances[4] > distances[0] or name == "elastic")


def test_other_names_and_severities_are_refused():
    for names, words in (([], "none; one or more are needed, each once"), (["fog", "fog"], "fog fog; one or more")):
        with pytest.raises(InputError, match=f"^--some: {words}"):
            corruptions.check_corruptions(names, flag="--some")
    with pytest.raises(InputError, match="'gaussian_noise' is unknown; there are gaussian-noise, shot-noise"):
        corrupt(some(), "gaussian_noise", 1, seeded())
    for severity in (-1, 6):
        with pytest.raises(InputError, match=f"severity: {severity} is none of 0 to 5"):
            corrupt(some(), "fog", severity, seeded())


# --- Noise -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("severity", "deviation"), [(1, 0.04), (3, 0.08), (5, 0.1)])
def test_gaussian_noise_has_its_deviation(severity, deviation):
    noise = corrupt(grey(0.5), "gaussian-noise", severity, seeded()) - 0.5
    assert noise.std().item() == pytest.approx(deviation, rel=0.02) and abs(noise.mean().item()) < 1e-3
    assert torch.corrcoef(noise.transpose(0, 1).flatten(1)).triu(1).abs().max() < 0.02


@pytest.mark.parametrize(("severity", "photons"), [(1, 500), (4, 75), (5, 50)])
def test_shot_noise_has_poissons_variance(severity, photons):
    for value in (0.25, 0.6):
        noisy = corrupt(grey(value), "shot-noise", severity, seeded())
        assert noisy.var().item() == pytest.approx(value / photons, rel=0.04)
        assert noisy.mean().item() == pytest.approx(value, abs=2e-3)
        assert ((noisy * photons).round() / photons - noisy).abs().max() < 1e-6


@pytest.mark.parametrize(("severity", "share"), [(1, 0.01), (3, 0.03), (5, 0.07)])
def test_impulses_are_as_often_black_as_white(severity, share):
    spoilt = corrupt(grey(0.5), "impulse-noise", severity, seeded())
    for value in (0, 1):
        assert (spoilt == value).double().mean().item() == pytest.approx(share / 2, rel=0.1)
    assert (spoilt == 0.5).double().mean().item() == pytest.approx(1 - share, rel=0.01)


# --- Blur --------------------------------------------------------------------------------------------------------


def test_the_disk_by_hand_and_scipys():
    edge = math.exp(-1 / (2 * 0.4**2))
    expected = np.outer([edge, 1, edge], [edge, 1, edge]) / (1 + 2 * edge) ** 2
    np.testing.assert_allclose(corruptions.disk(0.3, 0.4), expected)
    y, x = np.mgrid[-2:3, -2:3]
    sharp, soft = (x**2 + y**2 <= 1.5**2).astype(float), np.exp(-np.array([1, 0, 1]) / (2 * 0.1**2))
    expected = ndimage.convolve(sharp, np.outer(soft, soft), mode="constant")
    np.testing.assert_allclose(corruptions.disk(1.5, 0.1), expected / expected.sum(), atol=1e-12)


def test_a_spot_out_of_focus_is_the_disk():
    spoilt = corrupt(spot(), "defocus-blur", 5, seeded())
    kernel = corruptions.disk(*at("defocus-blur", 5))
    for channel in spoilt[0]:
        torch.testing.assert_close(channel[10:15, 12:17], kernel)
    assert spoilt[0, 0].sum().item() == pytest.approx(1)


def test_borders_are_repeated():
    ramp = torch.arange(9, dtype=torch.float64).expand(1, 3, 7, 9) / 9
    expected = ndimage.correlate(ramp[0, 0].numpy(), corruptions.disk(1.5, 0.1).numpy(), mode="nearest")
    np.testing.assert_allclose(corrupt(ramp, "defocus-blur", 5, seeded())[0, 2], expected)


def test_motion_goes_one_way_with_half_a_gaussian():
    angles = torch.tensor([0.0, math.pi / 2, math.atan2(3, 4)], dtype=torch.float64)
    along, down, between = corruptions.motion_kernels(angles, 5, 1.5)
    weights = np.exp(-(np.arange(6) ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    np.testing.assert_allclose(along[5, 5:], weights, atol=1e-12)
    np.testing.assert_allclose(down[5:, 5], weights, atol=1e-12)
    assert along.sum().item() == down.sum().item() == pytest.approx(1) and between.sum().item() == pytest.approx(1)
    places = torch.arange(-5, 6, dtype=torch.float64)
    middle = (weights * np.arange(6)).sum()
    assert (between.sum(dim=1) @ places).item() == pytest.approx(0.6 * middle)
    assert (between.sum(dim=0) @ places).item() == pytest.approx(0.8 * middle)


def test_motion_is_within_45_degrees_of_the_row():
    trails = corrupt(spot().repeat(200, 1, 1, 1), "motion-blur", 5, seeded())[:, 0]
    rows, columns = (torch.arange(n, dtype=torch.float64) - place for n, place in ((25, 12), (31, 14)))
    down, right = trails.sum(dim=2) @ rows, trails.sum(dim=1) @ columns
    steep = torch.atan2(down, -right) * 180 / math.pi
    assert (right < 0).all() and -45.5 < steep.min() < -38 and 38 < steep.max() < 45.5
    assert abs(steep.mean().item()) < 6
    weights = np.exp(-(np.arange(10) ** 2) / (2 * 2.5**2))
    np.testing.assert_allclose(torch.hypot(down, right), (weights * np.arange(10)).sum() / weights.sum())


def test_zoom_blur_is_the_mean_of_enlarged_images():
    images = some(1)
    expected = images[0].numpy().copy()
    y, x = (np.arange(n) - (n - 1) / 2 for n in (20, 32))
    for step in range(11):
        zoom = 1 + 0.01 * step
        places = np.meshgrid(y / zoom + 9.5, x / zoom + 15.5, indexing="ij")
        expected += [ndimage.map_coordinates(channel, places, order=1, mode="nearest") for channel in images[0].numpy()]
    np.testing.assert_allclose(corrupt(images, "zoom-blur", 2, seeded())[0], expected / 12, atol=1e-9)


@pytest.mark.parametrize("times", [1, 2])
def test_glass_takes_pixels_from_nearby(times):
    for axis in (2, 3):
        ramp = torch.arange(40, dtype=torch.float64).view([-1 if d == axis else 1 for d in range(4)])
        images = ramp.expand(4, 3, 40, 40)
        moved = (corruptions.glass_blur(images, seeded(), 0.05, 1, times) - images)[:, :, 4:-4, 4:-4]
        assert set(moved.round().unique().tolist()) == set(range(-times, times + 1))
        assert moved.var().item() == pytest.approx(times * 2 / 3, rel=0.06)
        assert torch.equal(moved[:, 0], moved[:, 1])


def test_glass_blurs_before_and_after():
    """Without a step in between, two Gaussians."""
    images = some(1, 33, 40)
    expected = images[0].numpy()
    for _ in range(2):
        expected = ndimage.gaussian_filter(expected, (0, 1.2, 1.2), mode="nearest", radius=5)
    np.testing.assert_allclose(corruptions.glass_blur(images, seeded(), 1.2, 1, 0)[0], expected, atol=1e-9)


# --- Weather -----------------------------------------------------------------------------------------------------


def test_plasma_fills_its_range_and_is_smoother_the_faster_it_decays():
    roughness = []
    for decay in (1.2, 2.0, 3.0):
        plasma = corruptions.fractal(some(4), seeded(), decay=decay)
        assert plasma.shape == (4, 1, 20, 32) and (plasma.amin((1, 2, 3)) == 0).all()
        assert torch.equal(plasma.amax((1, 2, 3)), torch.ones(4, dtype=torch.float64))
        roughness.append(plasma.diff(dim=3).abs().mean().item())
    assert roughness[0] > 1.5 * roughness[1] > 1.8 * roughness[2]


def test_fog_by_its_formula():
    images, (thickness, decay) = some(), at("fog", 2)
    plasma = corruptions.fractal(images, seeded(), decay=decay)
    for image, layer, spoilt in zip(images, plasma, corrupt(images, "fog", 2, seeded()), strict=True):
        expected = (image + 0.5 * layer) * image.max() / (image.max() + 0.5)
        torch.testing.assert_close(spoilt, expected.clamp(0, 1))
    assert (thickness, decay) == (0.5, 3)


def test_frost_is_laid_over_the_image():
    black = corrupt(torch.zeros(2, 3, 20, 32), "frost", 5, seeded())
    torch.testing.assert_close(black[:, 0] / 0.8, black[:, 2])
    assert black[:, 2].max().item() == pytest.approx(0.45, rel=0.05)
    images = 0.3 * some().float()
    torch.testing.assert_close(corrupt(images, "frost", 5, seeded()), 0.75 * images + black)
    ridges = 1 - (2 * corruptions.fractal(images, seeded(), decay=1.4) - 1).abs()  # bluish
    torch.testing.assert_close(black, 0.45 * ridges * torch.tensor([0.8, 0.9, 1.0])[:, None, None])


def test_snow_falls_and_pales():
    images = some()
    pale = corruptions.snow(images, seeded(), 0.1, 0.3, 1, 9.0, 8, 3, 0.8)  # no flake is so bright
    luma = (images * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    torch.testing.assert_close(pale, 0.8 * images + 0.2 * torch.maximum(images, 1.5 * luma + 0.5), rtol=1e-6, atol=1e-6)
    flakes = corruptions.snow(torch.zeros(16, 3, 40, 60), seeded(), 0.1, 0.2, 1, 0.6, 8, 3, 1.0)
    torch.testing.assert_close(flakes, flakes.flip(2, 3))
    down, across = (flakes.diff(dim=d).square().mean() for d in (2, 3))
    assert across > 1.5 * down > 0
    drawn = 0.1 + 0.2 * torch.randn(16, 1, 40, 60, generator=seeded())
    expected = 2 * drawn.where(drawn >= 0.6, 0).clamp(0, 1).mean()
    assert flakes.mean().item() == pytest.approx(expected.item(), rel=0.1)


def test_snow_by_hand():
    """Enlarged by 2.25, then cut off, then blurred by scipy; the same turned by 180° over it."""
    generator = seeded()
    drawn = 0.35 + 0.4 * torch.randn(1, 1, 20, 32, generator=generator, dtype=torch.float64)[0, 0].numpy()
    angle = (torch.rand(1, generator=generator, dtype=torch.float64) - 1.5) * math.pi / 2
    y, x = (np.arange(n) - (n - 1) / 2 for n in (20, 32))
    places = np.meshgrid(y / 2.25 + 9.5, x / 2.25 + 15.5, indexing="ij")
    flakes = ndimage.map_coordinates(drawn, places, order=1, mode="nearest")
    assert (flakes > 1).any()
    flakes = np.where(flakes < 0.5, 0, flakes.clip(0, 1))
    flakes = ndimage.correlate(flakes, corruptions.motion_kernels(angle, 7, 3)[0].numpy(), mode="nearest")
    made = corruptions.snow(torch.zeros(1, 3, 20, 32).double(), seeded(), 0.35, 0.4, 2.25, 0.5, 7, 3, 1.0)
    for channel in made[0]:
        np.testing.assert_allclose(channel, flakes + flakes[::-1, ::-1], atol=1e-9)


# --- Digital -----------------------------------------------------------------------------------------------------


def test_brightness_is_hsvs_value():
    images = some(1, 5, 6)
    images[0, :, 0, 0] = 0
    spoilt = corrupt(images, "brightness", 4, seeded())
    for pixel, brighter in zip(images[0].flatten(1).T.tolist(), spoilt[0].flatten(1).T.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        assert brighter == pytest.approx(colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.2)))


def test_contrast_keeps_each_channels_mean():
    images = some()
    mean = images.numpy().mean(axis=(2, 3), keepdims=True)
    np.testing.assert_allclose(corrupt(images, "contrast", 5, seeded()), mean + 0.15 * (images.numpy() - mean))


def test_pixels_are_means_of_blocks():
    images = some()
    means = images.numpy().reshape(2, 3, 10, 2, 16, 2).mean(axis=(3, 5))
    np.testing.assert_allclose(corruptions.pixelate(images, seeded(), 0.5), means.repeat(2, 2).repeat(2, 3))


@pytest.mark.parametrize(("kept", "height", "width"), [(0.95, 20, 32), (0.85, 20, 32), (0.65, 20, 32), (0.67, 12, 24)])
def test_pixels_are_pillows(kept, height, width):
    """In the last one middles of pixels lie between two parts."""
    pixels = (255 * some(1, height, width)[0]).byte()
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    small = image.resize((int(kept * width), int(kept * height)), Image.Resampling.BOX)
    expected = np.asarray(small.resize((width, height), Image.Resampling.BOX)).transpose(2, 0, 1)
    spoilt = corruptions.pixelate(pixels[None].double() / 255, seeded(), kept)[0]
    np.testing.assert_allclose(255 * spoilt, expected, atol=1.01)


def test_places_between_pixels_and_beyond_borders_are_scipys():
    images = some(1)
    rows, columns = (12 * torch.randn(1, 20, 32, generator=seeded(s), dtype=torch.float64) + 10 for s in (1, 2))
    expected = [
        ndimage.map_coordinates(channel, [rows[0], columns[0]], order=1, mode="mirror") for channel in images[0].numpy()
    ]
    np.testing.assert_allclose(corruptions._sampled(images, rows, columns)[0], expected, atol=1e-9)


def test_steps_of_jpeg_are_pillows_at_quality_50():
    """Tables K.1 and K.2 of T.81."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", quality=50)
    tables = Image.open(file).quantization
    assert tables == {0: list(corruptions.LIGHT_STEPS), 1: list(corruptions.COLOUR_STEPS)}
    assert corruptions.YCBCR == (
        (0.299, 0.587, 0.114),
        (-0.168736, -0.331264, 0.5),
        (0.5, -0.418688, -0.081312),
    )  # JFIF


def test_elastic_without_anything_is_nothing():
    images = some()
    torch.testing.assert_close(corruptions.elastic(images, seeded(), 0.0, 0.0, 0.0), images)


def ramps(batch: int, height: int = 60, width: int = 90) -> torch.Tensor:
    """Images that tell rows and columns of where their pixels came from."""
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (height, width)), indexing="ij")
    return torch.stack([rows, columns, columns]).expand(batch, -1, -1, -1)


def test_elastic_displacements_have_the_deviation_of_smoothed_noise():
    images = ramps(24)
    moved = (corruptions.elastic(images, seeded(), 0.1, 0.05, 0.0) - images)[:, :2, 12:-12, 12:-12]
    kernel = np.exp(-(np.arange(-9, 10) ** 2) / (2 * 3.0**2))
    kernel /= kernel.sum()
    expected = 0.1 * 60 / 3**0.5 * (kernel**2).sum()
    for axis in (0, 1):
        assert moved[:, axis].std().item() == pytest.approx(expected, rel=0.1)
        assert abs(moved[:, axis].mean().item()) < 0.2 * expected
    assert abs(np.corrcoef(moved[:, 0].flatten(), moved[:, 1].flatten())[0, 1]) < 0.15


def test_elastic_displacements_are_smoothed_up_to_three_deviations(monkeypatch):
    """As make_cifar_c.py cuts its filter off."""
    seen = []

    def noted(drawn, deviation, *, reach):
        seen.append((deviation, reach))
        return torch.zeros_like(drawn)

    monkeypatch.setattr(corruptions, "_gaussian", noted)
    images = ramps(1)
    torch.testing.assert_close(corruptions.elastic(images, seeded(), 0.1, 0.05, 0.0), images)
    assert seen == [(0.05 * 60, 3)]


def test_elastic_moves_three_points_affinely():
    """Where they lie afterwards is what was drawn; there the image shows what was at the points."""
    images = ramps(6)
    spoilt = corruptions.elastic(images, seeded(), 0.0, 0.0, 0.05)
    before = np.array([30, 45]) + 20 * np.array([[1, 1], [1, -1], [-1, -1]])
    drawn = torch.rand(6, 3, 2, generator=seeded(), dtype=torch.float64).numpy()
    for image, draws in zip(spoilt.numpy(), drawn, strict=True):
        for point, moved in zip(before, before + 0.05 * 60 * (2 * draws - 1), strict=True):
            shown = [ndimage.map_coordinates(image[axis], moved[:, None], order=1)[0] for axis in (0, 1)]
            np.testing.assert_allclose(shown, point, atol=1e-6)


@pytest.mark.parametrize(("severity", "quality"), [(1, 80), (4, 50), (5, 40)])
@pytest.mark.parametrize("coloured", [False, True])
def test_jpeg_is_pillows(severity, quality, coloured):
    """But for what libjpeg's whole numbers round otherwise, which is much less than what is lost."""
    y, x = np.mgrid[:20, :36]
    colours = [np.sin(x / 5) + y / 9, np.cos((x + y) / 7), np.sin(y / 3 - x / 11)]
    pixels = np.stack(colours if coloured else colours[:1] * 3, axis=2) * 60 + 128
    pixels = (pixels + 12 * np.random.RandomState(0).randn(20, 36, 1)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=quality)
    expected = np.array(Image.open(file)).astype(float)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].double() / 255
    spoilt = 255 * corrupt(images, "jpeg", severity, seeded())[0].permute(1, 2, 0).numpy()
    lost, apart = (np.abs(other - expected).mean() for other in (pixels, spoilt))
    assert 4.5 < lost < 10 and apart < (1.5 if coloured else 0.4)
    assert np.median(np.abs(spoilt - expected)) <= (1 if coloured else 0)
