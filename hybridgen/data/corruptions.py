"""The fifteen corruptions of Hendrycks and Dietterich (2019), computed here, on whole batches with every image's own
draws, on the images' device.

They are this package's own: noise, blur, weather and digital faults of the same kinds, with the parameters that
CIFAR-10-C has for 32×32 pixels as far as they are known, and not the files of that benchmark, which `cifar_c` reads.
Lengths are in pixels and stay the same for other sizes, but for those of `elastic`, which are shares of the shorter
side. Blurs repeat the last pixel beyond the borders. Where an operation differs more than in its draws its docstring
says so. Nothing waits for the device.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from kornia.filters import gaussian_blur2d
from torch import Generator, Tensor

from hybridgen.types import Images, InputError

Kernels = Float[Tensor, "batch side side"]
Layer = Float[Tensor, "batch 1 height width"]


class Corruption(NamedTuple):
    """One way to spoil images."""

    make: Callable[..., Images]
    """Of images, a generator on their device and the parameters; values may leave [0, 1]."""
    at: tuple[tuple[float, ...], ...]
    """Its parameters at the severities 1 to 5."""


def corrupt(images: Images, name: str, severity: int, generator: Generator) -> Images:
    """The images corrupted, in [0, 1]; at severity 0 they are what they were.

    `generator`, on the images' device, draws what is random, for each image its own. InputError for a name that is not
    in `CORRUPTIONS` and a severity outside 0 to 5.
    """
    check_corruptions([name])
    if not 0 <= severity <= SEVERITIES:
        raise InputError(f"severity: {severity} is none of 0 to {SEVERITIES}")
    if severity == 0:
        return images
    corruption = CORRUPTIONS[name]
    return corruption.make(images, generator, *corruption.at[severity - 1]).clamp(0, 1)


def check_corruptions(names: Sequence[str], *, flag: str = "corruptions") -> None:
    """InputError for none, an unknown one, and one that is there twice."""
    if unknown := [name for name in names if name not in CORRUPTIONS]:
        raise InputError(f"{flag}: {unknown[0]!r} is unknown; there are {', '.join(CORRUPTIONS)}")
    if not names or len(set(names)) < len(names):
        raise InputError(f"{flag}: {' '.join(names) or 'none'}; one or more are needed, each once")


# --- Noise --------------------------------------------------------------------------------------------------


def gaussian_noise(images: Images, generator: Generator, deviation: float) -> Images:
    """Normal noise of this standard deviation on every value."""
    return images + deviation * _normal(images, generator)


def shot_noise(images: Images, generator: Generator, photons: float) -> Images:
    """Poisson's: a value of 1 is so many photons in the mean."""
    return torch.poisson(images.clamp(min=0) * photons, generator) / photons


def impulse_noise(images: Images, generator: Generator, share: float) -> Images:
    """This share of all values is 0 or 1, as often one as the other."""
    drawn = _uniform(images.shape, images, generator)
    return torch.where(drawn < share / 2, 0.0, torch.where(drawn >= 1 - share / 2, 1.0, images))


# --- Blur ---------------------------------------------------------------------------------------------------


def disk(radius: float, softness: float) -> Float[Tensor, "side side"]:
    """A disk of this radius in pixels, whose edge a Gaussian of this deviation, three pixels wide, softens; its sum is
    1."""
    reach = math.floor(radius) + 1
    at = torch.arange(-reach, reach + 1, dtype=torch.float64)
    sharp = (at.square()[:, None] + at.square() <= radius**2).double()
    edge = torch.exp(-torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64) / (2 * softness**2))
    edge = edge.outer(edge)
    soft = F.conv2d(sharp[None, None], (edge / edge.sum())[None, None], padding=1)[0, 0]
    return soft / soft.sum()


def defocus_blur(images: Images, generator: Generator, radius: float, softness: float) -> Images:
    return _filtered(images, disk(radius, softness).to(images).expand(len(images), -1, -1))


def glass_blur(images: Images, generator: Generator, deviation: float, reach: float, times: float) -> Images:
    """Between two Gaussian blurs, every pixel is taken from a place up to `reach` away either way, so many times. (The
    authors exchange pixels with their neighbours, one after another.)"""
    batch, _, height, width = images.shape
    images = _gaussian(images, deviation)
    for _ in range(int(times)):
        shifts = torch.randint(
            -int(reach), int(reach) + 1, (2, batch, height, width), generator=generator, device=images.device
        )
        row = (torch.arange(height, device=images.device)[:, None] + shifts[0]).clamp(0, height - 1)
        column = (torch.arange(width, device=images.device) + shifts[1]).clamp(0, width - 1)
        source = (row * width + column).flatten(1)[:, None].expand(-1, images.shape[1], -1)
        images = images.flatten(2).gather(2, source).view(images.shape)
    return _gaussian(images, deviation)


def motion_kernels(angles: Float[Tensor, " batch"], radius: int, deviation: float) -> Kernels:
    """For each angle, in radians from the row's direction downwards, half a Gaussian along a line that starts in the
    middle; between pixels, bilinear. Each sums to 1."""
    along = torch.arange(radius + 1, dtype=angles.dtype, device=angles.device)
    weights = torch.exp(-along.square() / (2 * deviation**2))
    places = torch.arange(-radius, radius + 1, dtype=angles.dtype, device=angles.device)
    rows, columns = (
        (1 - (places - (along * direction[:, None])[:, :, None]).abs()).clamp(min=0)
        for direction in (angles.sin(), angles.cos())
    )
    return torch.einsum("i,biy,bix->byx", weights / weights.sum(), rows, columns)


def motion_blur(images: Images, generator: Generator, radius: float, deviation: float) -> Images:
    """Along a line of up to 45° either way from the row, as ImageMagick's."""
    angles = (_uniform((len(images),), images, generator) - 0.5) * math.pi / 2
    return _filtered(images, motion_kernels(angles, int(radius), deviation))


def zoom_blur(images: Images, generator: Generator, zooms: float) -> Images:
    """The mean of the image and of what it is enlarged by 1.00, 1.01, ..., so many times."""
    together = images.clone()
    for step in range(int(zooms)):
        together += _zoomed(images, 1 + 0.01 * step)
    return together / (int(zooms) + 1)


# --- Weather ------------------------------------------------------------------------------------------------


def snow(
    images: Images,
    generator: Generator,
    mean: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: float,
    blur: float,
    kept: float,
) -> Images:
    """Flakes are normal noise above a threshold, enlarged and blurred along their fall; what is behind them pales."""
    flakes = mean + deviation * _normal(images[:, :1], generator)
    flakes = _zoomed(flakes, zoom)
    flakes = flakes.masked_fill(flakes < threshold, 0).clamp(0, 1)
    angles = (_uniform((len(images),), images, generator) - 1.5) * math.pi / 2  # -135° to -45°
    flakes = _filtered(flakes, motion_kernels(angles, int(radius), blur))
    pale = kept * images + (1 - kept) * torch.maximum(images, 1.5 * _grey(images) + 0.5)
    return pale + flakes + flakes.flip(2, 3)


def frost(images: Images, generator: Generator, kept: float, laid: float) -> Images:
    """Bluish crystals, the ridges of fractal noise, laid over the image. (The authors lay parts of photographs.)"""
    ridges = 1 - (2 * fractal(images, generator, decay=1.4) - 1).abs()
    colour = images.new_tensor([0.8, 0.9, 1.0])[:, None, None]
    return kept * images + laid * ridges * colour


def fog(images: Images, generator: Generator, thickness: float, decay: float) -> Images:
    """Fractal noise added, so that the brightest value stays as it is."""
    brightest = images.amax(dim=(1, 2, 3), keepdim=True)
    return (images + thickness * fractal(images, generator, decay=decay)) * brightest / (brightest + thickness)


def fractal(images: Images, generator: Generator, *, decay: float) -> Layer:
    """Plasma in [0, 1], both reached: noise on finer and finer grids, each `decay` times as weak as the one before.
    (The authors' grows on one grid, by diamonds and squares.)"""
    batch, _, height, width = images.shape
    octaves = max(1, math.ceil(math.log2(max(height, width))))
    plasma = images.new_zeros(batch, 1, 2**octaves, 2**octaves)
    for octave in range(octaves):
        coarse = 2 * _uniform((batch, 1, 2**octave + 1, 2**octave + 1), images, generator) - 1
        plasma += F.interpolate(coarse, size=plasma.shape[2:], mode="bilinear", align_corners=True) / decay**octave
    plasma = plasma[:, :, :height, :width]
    low, high = plasma.amin(dim=(2, 3), keepdim=True), plasma.amax(dim=(2, 3), keepdim=True)
    return (plasma - low) / (high - low).clamp(min=torch.finfo(plasma.dtype).tiny)


# --- Digital ------------------------------------------------------------------------------------------------


def brightness(images: Images, generator: Generator, more: float) -> Images:
    """More of HSV's value, hue and saturation as they are."""
    value = images.amax(dim=1, keepdim=True)
    brighter = (value + more).clamp(max=1)
    return torch.where(value > 0, images * (brighter / value), brighter)


def contrast(images: Images, generator: Generator, kept: float) -> Images:
    """This part of the differences from each channel's mean."""
    return torch.lerp(images.mean(dim=(2, 3), keepdim=True), images, kept)


def elastic(images: Images, generator: Generator, strength: float, smoothness: float, affine: float) -> Images:
    """An affine map that moves three points by up to `affine`, and displacements that a Gaussian of `smoothness`
    smooths, `strength` times; all in shares of the shorter side. Mirrored beyond the borders; resampled once."""
    batch, _, height, width = images.shape
    side = min(height, width)
    places = torch.stack(
        torch.meshgrid(*(torch.arange(n, device=images.device).to(images) for n in (height, width)), indexing="ij")
    ).expand(batch, -1, -1, -1)
    if strength:
        drawn = 2 * _uniform(places.shape, images, generator) - 1
        places = places + strength * side * _gaussian(drawn, smoothness * side, reach=3)

    # From where the points go back to where they were
    middle = images.new_tensor([height // 2, width // 2])
    before = middle + side // 3 * images.new_tensor([[1, 1], [1, -1], [-1, -1]])
    after = before + affine * side * (2 * _uniform((batch, 3, 2), images, generator) - 1)
    back = torch.linalg.solve(F.pad(after, (0, 1), value=1), before.expand(batch, -1, -1))
    rows, columns = torch.einsum("bphw,bpq->bqhw", F.pad(places, (0, 0, 0, 0, 0, 1), value=1), back).unbind(1)
    return _sampled(images, rows, columns)


def pixelate(images: Images, generator: Generator, kept: float) -> Images:
    """Brought to this part of the sides by the means of whole pixels, and back by repeating them, as Pillow's box."""
    rows, columns = (_pixelating(side, max(1, int(kept * side))).to(images) for side in images.shape[2:])
    return rows @ images @ columns.T


def _pixelating(side: int, few: int) -> Float[Tensor, "side side"]:
    """Every place gets the mean of those that lie in the same of `few` equal parts; one whose middle is between two
    counts in the first and gets the second."""
    middles = (torch.arange(side, dtype=torch.float64) + 0.5) * few / side
    counted, got = (F.one_hot(part.long(), few).double() for part in (middles.ceil() - 1, middles.floor()))
    return got @ (counted / counted.sum(dim=0)).T


def jpeg(images: Images, generator: Generator, quality: float) -> Images:
    """Baseline JPEG of this quality and back, colours at half the resolution (ITU-T T.81, JFIF)."""
    height, width = images.shape[2:]
    pixels = F.pad((255 * images).round(), (0, -width % 16, 0, -height % 16), mode="replicate")
    planes = torch.einsum("pc,bchw->bphw", pixels.new_tensor(YCBCR), pixels).round()
    light, colours = planes[:, :1] - 128, F.avg_pool2d(planes[:, 1:], 2).round()
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    light, colours = (
        _quantized(plane, ((pixels.new_tensor(steps).view(8, 8) * scale + 50) / 100).floor().clamp(1, 255))
        for plane, steps in ((light, LIGHT_STEPS), (colours, COLOUR_STEPS))
    )
    light = (light + 128).round().clamp(0, 255)
    colours = colours.round().clamp(-128, 127)[:, :, : (height + 1) // 2, : (width + 1) // 2]
    colours = F.interpolate(colours, scale_factor=2, mode="bilinear")
    planes = torch.cat([plane[:, :, :height, :width] for plane in (light, colours)], dim=1)
    back = torch.linalg.inv(pixels.new_tensor(YCBCR))
    return torch.einsum("cp,bphw->bchw", back, planes).round().clamp(0, 255) / 255


YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
"""JFIF's rows of Y, Cb and Cr, without their offsets."""

LIGHT_STEPS = (
    *(16, 11, 10, 16, 24, 40, 51, 61),
    *(12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56),
    *(14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77),
    *(24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101),
    *(72, 92, 95, 98, 112, 100, 103, 99),
)
COLOUR_STEPS = (
    *(17, 18, 24, 47, 99, 99, 99, 99),
    *(18, 21, 26, 66, 99, 99, 99, 99),
    *(24, 26, 56, 99, 99, 99, 99, 99),
    *(47, 66, 99, 99, 99, 99, 99, 99),
    *(99,) * 32,
)
"""Quantization of Y, and of Cb and Cr, at quality 50 (T.81, tables K.1 and K.2)."""


def _quantized(planes: Tensor, steps: Tensor) -> Tensor:
    """Blocks of 8×8 whose cosine coefficients are multiples of the steps."""
    k = torch.arange(8, dtype=torch.float64)
    cosines = torch.cos(math.pi * k[:, None] * (2 * k + 1) / 16) / 2
    cosines[0] /= math.sqrt(2)
    cosines = cosines.to(planes)
    blocks = planes.unfold(2, 8, 8).unfold(3, 8, 8)
    multiples = (cosines @ blocks @ cosines.T) / steps
    coefficients = steps * multiples.sign() * (multiples.abs() + 0.5).floor()
    return (cosines.T @ coefficients @ cosines).transpose(3, 4).reshape(planes.shape)


# --- What they share ----------------------------------------------------------------------------------------


def _normal(images: Tensor, generator: Generator) -> Tensor:
    return torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)


def _uniform(shape: tuple[int, ...], images: Tensor, generator: Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=images.device, dtype=images.dtype)


def _grey(images: Images) -> Layer:
    return torch.einsum("c,bchw->bhw", images.new_tensor(YCBCR[0]), images)[:, None]


def _filtered(images: Tensor, kernels: Kernels) -> Tensor:
    """Every image with its own kernel, of odd sides: what lies at +d from a kernel's middle is what comes from +d."""
    reach = kernels.shape[-1] // 2
    padded = F.pad(images, (reach,) * 4, mode="replicate").transpose(0, 1)
    return F.conv2d(padded, kernels[:, None], groups=len(images)).transpose(0, 1)


def _gaussian(images: Tensor, deviation: float, *, reach: float = 4) -> Tensor:
    """Of so many deviations on either side."""
    side = 2 * math.ceil(reach * deviation) + 1
    return gaussian_blur2d(images, (side, side), (deviation, deviation), border_type="replicate")


def _zoomed(images: Tensor, zoom: float) -> Tensor:
    """Enlarged about the middle, of the same size, bilinearly."""
    if zoom == 1:
        return images
    theta = images.new_tensor([[1 / zoom, 0, 0], [0, 1 / zoom, 0]]).expand(len(images), -1, -1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _sampled(images: Images, rows: Float[Tensor, "batch h w"], columns: Float[Tensor, "batch h w"]) -> Images:
    """The images at these places, in pixels from the middle of the first one; bilinear, mirrored beyond the borders."""
    sides = (max(1, side - 1) for side in images.shape[:1:-1])
    grid = torch.stack([2 * at / side - 1 for at, side in zip((columns, rows), sides, strict=True)], dim=3)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=True)


CORRUPTIONS = {
    "gaussian-noise": Corruption(gaussian_noise, ((0.04,), (0.06,), (0.08,), (0.09,), (0.1,))),
    "shot-noise": Corruption(shot_noise, ((500,), (250,), (100,), (75,), (50,))),
    "impulse-noise": Corruption(impulse_noise, ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,))),
    "defocus-blur": Corruption(defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass-blur": Corruption(glass_blur, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))),
    "motion-blur": Corruption(motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom-blur": Corruption(zoom_blur, ((6,), (11,), (16,), (21,), (26,))),
    "snow": Corruption(
        snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": Corruption(frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": Corruption(fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": Corruption(brightness, ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,))),
    "contrast": Corruption(contrast, ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,))),
    "elastic": Corruption(
        elastic,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": Corruption(pixelate, ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,))),
    "jpeg": Corruption(jpeg, ((80,), (65,), (58,), (50,), (40,))),
}
SEVERITIES = 5
