"""Operations on 8-bit levels that equal Pillow's level for level, on whole batches with every sample's own magnitude.

RandAugment, AutoAugment and AugMix are made of them. Magnitudes come in float64, in which Pillow computes them too
(`exact`).
kornia's normalisation and enhancers keep fractions where Pillow truncates (a level's difference at a third of the
pixels), its sharpness takes twice the time, and its nearest-pixel shear picks the neighbour at up to 14 % of the
pixels, where Pillow's fixed point breaks ties.

Nothing waits for the device: no shape depends on a drawn value, and no value is read back.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hybridgen.types import exact

MAGNITUDES = 10
"""Magnitudes count from 0 to this."""

FILL_LEVEL = 127
"""What geometric operations leave behind, in 8-bit levels: 0.5 grey. (FixMatch's reference marks these pixels as
transparent black and paints them grey at the end; here the next operation sees the grey.)"""

GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
"""Those of which a magnitude has a sign."""


def to_levels(images: Tensor) -> Tensor:
    """Images in [0, 1] as uint8, rounded to the nearest level."""
    # By way of int16: torch's own conversion of floats to uint8 is four times slower on CPUs.
    return images.float().mul(255).round_().clamp_(0, 255).to(torch.int16).to(torch.uint8)


def to_images(levels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Levels as multiples of 1/255."""
    return levels.to(dtype).div_(255)


# --- Tables: each level to another, one table of 256 entries a sample and channel


def every_level(levels: Tensor) -> Tensor:
    """0 to 255, on the device of the levels."""
    return torch.arange(256, device=levels.device)


def enhancement(magnitude: Tensor) -> Tensor:
    """0.1 to 1.9, without effect at 5."""
    return magnitude * 1.8 / MAGNITUDES + 0.1


def blend(degenerate: Tensor, image: Tensor, factor: Tensor) -> Tensor:
    """Pillow's `Image.blend`: float32, clipped, truncated to levels."""
    degenerate = degenerate.float()
    mixed = (image.float() - degenerate) * factor.float()
    return mixed.add_(degenerate).clamp_(0, 255).to(torch.uint8)


def luminance(levels: Tensor) -> Tensor:
    """Pillow's conversion to mode L, [n 1 height width] in int32."""
    red, green, blue = levels.int().split(1, dim=1)
    return (red * 19595).add_(green * 38470).add_(blue * 7471).add_(0x8000).bitwise_right_shift_(16)


def brightness_table(levels: Tensor, factor: Tensor) -> Tensor:
    """Pillow's `ImageEnhance.Brightness`, [n 1 256]."""
    level = every_level(levels)
    return blend(torch.zeros_like(level), level, factor[:, None, None])


def contrast_table(levels: Tensor, factor: Tensor) -> Tensor:
    """Pillow's `ImageEnhance.Contrast`, [n 1 256]."""
    pixels = levels.shape[-2] * levels.shape[-1]
    total = luminance(levels).sum((1, 2, 3))
    mean = (2 * total + pixels) // (2 * pixels)
    return blend(mean[:, None, None], every_level(levels), factor[:, None, None])


def autocontrast_table(levels: Tensor) -> Tensor:
    """Pillow's `ImageOps.autocontrast`, [n channels 256]."""
    low = exact(levels.amin((2, 3))[:, :, None])
    high = exact(levels.amax((2, 3))[:, :, None])
    level = every_level(levels)
    # Not 255 / (high - low), which torch computes by way of a rounded reciprocal.
    scale = torch.full_like(high, 255) / (high - low).clamp(min=1)
    stretched = (level * scale - low * scale).clamp(0, 255).long()
    return torch.where(high > low, stretched, level)


def look_up(levels: Tensor, tables: Tensor) -> Tensor:
    """Every level replaced by its entry in the tables, [n channels 256]."""
    return tables.gather(2, levels.flatten(2).long()).view_as(levels)


def equalize_table(levels: Tensor) -> Tensor:
    """Pillow's `ImageOps.equalize`, [n channels 256]."""
    flat = levels.flatten(2)
    one = torch.ones((), dtype=torch.int32, device=levels.device)
    counts = one.new_zeros(*flat.shape[:2], 256).scatter_add_(2, flat.long(), one.expand(flat.shape))
    highest = counts.gather(2, flat.amax(dim=2, keepdim=True).long())
    step = (flat.shape[2] - highest) // 255
    below = counts.cumsum(dim=2, dtype=torch.int32) - counts
    table = (below.add_(step // 2) // step.clamp(min=1)).clamp_(max=255)
    return torch.where(step > 0, table, every_level(levels))


# --- Moves: one affine map from output to input coordinates a sample


def affine_maps(chosen: Callable[[str], Tensor], magnitude: Tensor, height: int, width: int) -> Tensor:
    """Those of RandAugment's and AugMix's operations: `affine_map` of whole degrees, of slants of up to 0.3, and of as
    large a part of the side.

    `chosen(name)` says which samples undergo an operation. They undergo one at most.
    """
    slant, zero = magnitude * 0.3 / MAGNITUDES, torch.zeros_like(magnitude)
    only = lambda name, value: torch.where(chosen(name), value, zero)
    return affine_map(
        height,
        width,
        degrees=only("rotate", (magnitude * 30 / MAGNITUDES).trunc()),
        slant_x=only("shear_x", slant),
        slant_y=only("shear_y", slant),
        move_x=only("translate_x", (slant * width).trunc()),
        move_y=only("translate_y", (slant * height).trunc()),
    )


def affine_map(
    height: int, width: int, *, degrees: Tensor, slant_x: Tensor, slant_y: Tensor, move_x: Tensor, move_y: Tensor
) -> Tensor:
    """The six numbers of `Image.transform`, [6 n]: x' = a x + b y + c, y' = d x + e y + f.

    Counter-clockwise around the centre, slanted, or moved to the left and up by so many pixels: of each sample one at
    most, so that the parts can be added.
    """
    angle = torch.deg2rad(degrees)
    cosine, sine = angle.cos(), angle.sin()
    x, y = width / 2, height / 2
    return torch.stack(
        [
            cosine,
            slant_x - sine,
            move_x + (x - cosine * x + sine * y),
            slant_y + sine,
            cosine,
            move_y + (y - sine * x - cosine * y),
        ]
    )


def moved(levels: Tensor, affine: Tensor) -> Tensor:
    """Nearest pixel in 16.16 fixed point, as Pillow computes it; `FILL_LEVEL` outside."""
    height, width = levels.shape[-2:]
    column = torch.arange(width, dtype=torch.int32, device=levels.device)
    row = torch.arange(height, dtype=torch.int32, device=levels.device)[:, None]
    a, b, c, d, e, f = affine
    # A frame of one pixel around the image, hence + 1, stands for everything outside.
    fixed = torch.stack([a, b, c + a * 0.5 + b * 0.5 + 1, d, e, f + d * 0.5 + e * 0.5 + 1])
    a, b, c, d, e, f = fixed.mul_(65536).add_(0.5).floor_().int()[..., None, None]
    x = (column * a + (row * b + c)).bitwise_right_shift_(16).clamp_(0, width + 1)
    y = (column * d + (row * e + f)).bitwise_right_shift_(16).clamp_(0, height + 1)
    source = y.mul_(width + 2).add_(x).long().flatten(1)
    framed = torch.nn.functional.pad(levels, (1, 1, 1, 1), value=FILL_LEVEL).flatten(2)
    return framed.gather(2, source[:, None].expand(-1, levels.shape[1], -1)).view_as(levels)


# --- Blends with a degenerate image


def smooth(levels: Tensor) -> Tensor:
    """Pillow's `ImageFilter.SMOOTH`: weights of 1, 5 in the middle, over 13, rounded; borders stay."""
    smooth = levels.int()
    if min(levels.shape[-2:]) < 3:
        return smooth
    rows = smooth[..., :-2, :] + smooth[..., 1:-1, :] + smooth[..., 2:, :]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * smooth[..., 1:-1, 1:-1]
    smooth[..., 1:-1, 1:-1] = (total / 13).round_()
    return smooth
