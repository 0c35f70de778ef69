"""AugMix (Hendrycks et al. 2020, arXiv:1912.02781) on whole batches, with chains of its own for every sample."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hybridgen.data.levels import (
    GEOMETRIC,
    MAGNITUDES,
    affine_maps,
    autocontrast_table,
    equalize_table,
    every_level,
    look_up,
    moved,
    to_images,
    to_levels,
)
from hybridgen.data.sources import to_device
from hybridgen.types import Images, InputError, exact

AUGMIX_OPERATIONS = ("autocontrast", "equalize", "posterize", "solarize", *GEOMETRIC)
"""None of those by which corruption benchmarks are made."""

WITHOUT_CONTRAST = tuple(name for name in AUGMIX_OPERATIONS if name != "autocontrast")
"""Nor one that undoes what they do (thesis A.1.3.1)."""


class Chains(NamedTuple):
    """What AugMix does to every sample."""

    choice: Int64[Tensor, "depth width batch"]
    """Operation of each step of each chain, a position in `AUGMIX_OPERATIONS`; the number of them for none."""
    level: Float[Tensor, "depth width batch"]
    """0.1 to the severity, with a random sign that only geometric operations heed."""
    weight: Float[Tensor, "width batch"]
    """Of each chain; they sum to 1."""
    share: Float[Tensor, " batch"]
    """Of the mixture of chains beside the image itself."""


def draw_chains(
    batch: int,
    generator: torch.Generator | None,
    *,
    width: int,
    depth: int | None,
    severity: float,
    alpha: float,
    operations: Sequence[str] = AUGMIX_OPERATIONS,
    device: torch.device | None = None,
) -> Chains:
    """Each sample's own chains of these operations, on the generator's device, or by torch's global one on `device`."""
    steps, device = depth or 3, device if generator is None else generator.device
    shape = (steps, width, batch)
    known = torch.tensor([AUGMIX_OPERATIONS.index(name) for name in operations]).to(device=device, non_blocking=True)
    choice = known[torch.randint(len(operations), shape, generator=generator, device=device)]
    if depth is None:
        length = torch.randint(1, steps + 1, shape[1:], generator=generator, device=device)
        here = torch.arange(steps, device=device)[:, None, None] < length
        choice = torch.where(here, choice, len(AUGMIX_OPERATIONS))
    level = 0.1 + (severity - 0.1) * torch.rand(shape, generator=generator, device=device)
    sign = 2 * torch.randint(2, shape, generator=generator, device=device) - 1
    weight, share = (_dirichlet(parts, batch, alpha, generator, device) for parts in (width, 2))
    return Chains(choice, level * sign, weight, share[0])


def _dirichlet(
    parts: int, batch: int, alpha: float, generator: torch.Generator | None, device: torch.device | None
) -> Tensor:
    """[parts batch]. By the logarithms of Gamma(alpha) = Gamma(alpha + 1) · U^(1/alpha), which do not underflow."""
    shape = torch.full((parts, batch), alpha + 1, device=device)
    gamma = torch._standard_gamma(shape, generator=generator)
    uniform = torch.rand(shape.shape, generator=generator, device=device)
    return (gamma.log() + uniform.log() / alpha).softmax(dim=0)


def augmix(
    images: Images,
    generator: torch.Generator | None,
    *,
    width: int = 3,
    depth: int | None = None,
    severity: float = 3,
    alpha: float = 1.0,
    operations: Sequence[str] = AUGMIX_OPERATIONS,
) -> Images:
    """AugMix (Hendrycks et al. 2020): the image and a mixture of `width` chains of `depth` of the `operations` each (1
    to 3 at random without one), mixed.

    Every sample draws its own chains, their weights, Dirichlet(alpha), and the mixture's share, Beta(alpha, alpha).
    Levels are drawn for each operation, uniformly from 0.1 to `severity` of 10, and mean what they mean in
    google-research/augmix: posterize keeps 4 bits and fewer, translations reach a third of the side. As in `strong`,
    operations count in 8-bit levels, take the nearest pixel and leave grey behind (there: bilinear, black).

    Draws come from the generator, on its device, or from torch's global one on the images'; nothing waits for the
    device. Raises `InputError` for a width or depth below 1, a severity outside 0.1..10, and an alpha that is not above
    0.
    """
    if width < 1 or (depth is not None and depth < 1):
        raise InputError(f"width, depth: {width}, {depth}; give 1 or more")
    if not 0.1 <= severity <= MAGNITUDES:
        raise InputError(f"severity: {severity}; give 0.1 to {MAGNITUDES}")
    if not 0 < alpha < math.inf:
        raise InputError(f"alpha: {alpha} is not a number above 0")
    batch, device = len(images), images.device
    drawn = draw_chains(
        batch, generator, width=width, depth=depth, severity=severity, alpha=alpha, operations=operations, device=device
    )
    choice, level, weight, share = (to_device(each, device) for each in drawn)
    levels = to_levels(images).repeat(width, 1, 1, 1)
    for step in range(len(choice)):
        levels = _operate(levels, choice[step].flatten(), exact(level[step].flatten()))
    chains = to_images(levels, images.dtype).unflatten(0, (width, batch))
    mixture = (weight.to(images.dtype)[:, :, None, None, None] * chains).sum(dim=0)
    return images.lerp(mixture, share.to(images.dtype).view(-1, 1, 1, 1)).clamp_(0, 1)


def _operate(levels: Tensor, choice: Tensor, level: Tensor) -> Tensor:
    """Every sample through its own operation: a table of levels and a move of pixels, one of which changes nothing."""
    chosen = lambda name: choice == AUGMIX_OPERATIONS.index(name)
    strength = level.abs()

    # Tables
    entry = every_level(levels)
    bits = (4 + (strength * 4 / MAGNITUDES).long())[:, None, None]
    inverted = 256 - (strength * 256 / MAGNITUDES).long()[:, None, None]
    table = entry.to(torch.uint8).expand(*levels.shape[:2], 256)
    for name, own in {
        "autocontrast": autocontrast_table(levels),
        "equalize": equalize_table(levels),
        "posterize": entry >> bits << bits,
        "solarize": torch.where(entry >= inverted, 255 - entry, entry),
    }.items():
        table = torch.where(chosen(name)[:, None, None], own.to(torch.uint8), table)
    levels = look_up(levels, table)

    # Affine maps; translations by level · side / 30, which are 0.3 · magnitude / 10 of it in `affine_maps`
    magnitude = torch.where(chosen("translate_x") | chosen("translate_y"), level * 10 / 9, level)
    return moved(levels, affine_maps(chosen, magnitude, *levels.shape[-2:]))
