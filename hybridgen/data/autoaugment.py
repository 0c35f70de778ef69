"""AutoAugment (Cubuk et al. 2019, arXiv:1805.09501) on whole batches, with a sub-policy of its own for every sample.

The policies, their magnitudes and what they mean are torchvision's. As in `strong`, operations count in 8-bit levels,
which they equal level for level in Pillow, take the nearest pixel, and leave grey behind.
"""

from collections.abc import Callable
from functools import cache
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor

from hybridgen.data.levels import (
    affine_map,
    autocontrast_table,
    blend,
    brightness_table,
    contrast_table,
    equalize_table,
    every_level,
    look_up,
    luminance,
    moved,
    smooth,
    to_images,
    to_levels,
)
from hybridgen.types import Images, exact

Policy = Literal["cifar10", "imagenet"]
"""What a policy was searched on."""

Values = Float[Tensor, " batch"]
"""What the magnitude of a sample's operation means."""

MAGNITUDES = 10
"""Of each operation, numbered from 0."""

TRANSLATION = 150 / 331
"""Largest part of the side by which images move: 150 of the paper's 331 pixels."""


# --- The operations ---------------------------------------------------------------------------------------------


MAPS = {
    "ShearX": "slant_x",
    "ShearY": "slant_y",
    "TranslateX": "move_x",
    "TranslateY": "move_y",
    "Rotate": "degrees",
}
"""Which part of `affine_map` is an operation's value."""


def _posterized(levels: Tensor, bits: Tensor) -> Tensor:
    gone = (8 - bits.long())[:, None, None]
    return every_level(levels) >> gone << gone


def _solarized(levels: Tensor, threshold: Tensor) -> Tensor:
    level = every_level(levels)
    return torch.where(level >= threshold[:, None, None], 255 - level, level)


TABLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Brightness": lambda levels, value: brightness_table(levels, 1 + value),
    "Contrast": lambda levels, value: contrast_table(levels, 1 + value),
    "Posterize": _posterized,
    "Solarize": _solarized,
    "AutoContrast": lambda levels, value: autocontrast_table(levels),
    "Equalize": lambda levels, value: equalize_table(levels),
    "Invert": lambda levels, value: 255 - every_level(levels),
}
"""From 8-bit levels and one value a sample, in float64, to what becomes of every level."""

BLENDS: dict[str, Callable[[Tensor], Tensor]] = {"Color": luminance, "Sharpness": smooth}
"""What is mixed with the image, of which there is 1 + the value."""

OPERATIONS = (*MAPS, *TABLES, *BLENDS)
"""By torchvision's names."""

SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")
"""Those whose magnitude has a random sign."""


@cache
def values(height: int, width: int) -> Float32[Tensor, "operations magnitudes"]:
    """What each magnitude means at this size of images: a slant, pixels, degrees, a factor's distance from 1, bits that
    are left, or the lowest level that is inverted. In float32's precision, as torchvision has them."""
    rising = lambda highest: torch.linspace(0.0, highest, MAGNITUDES)
    bits = 8 - (torch.arange(MAGNITUDES) / ((MAGNITUDES - 1) / 4)).round()
    by_name = {
        "ShearX": rising(0.3),
        "ShearY": rising(0.3),
        "TranslateX": -rising(TRANSLATION * width).trunc(),
        "TranslateY": -rising(TRANSLATION * height).trunc(),
        "Rotate": rising(30.0),
        "Posterize": bits,
        "Solarize": torch.linspace(255.0, 0.0, MAGNITUDES),
    } | dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), rising(0.9))
    nothing = torch.zeros(MAGNITUDES)
    return torch.stack([by_name.get(name, nothing) for name in OPERATIONS])


# --- The policies -----------------------------------------------------------------------------------------------


class SubPolicies(NamedTuple):
    """Each of two operations, which follow each other."""

    operation: Int64[Tensor, "2 policies"]
    """A position in `OPERATIONS`."""
    probability: Float32[Tensor, "2 policies"]
    magnitude: Int64[Tensor, "2 policies"]
    """0 where the operation has none."""


@cache
def sub_policies(policy: Policy) -> SubPolicies:
    """torchvision's, in its order."""
    from torchvision.transforms import AutoAugment, AutoAugmentPolicy

    steps = list(zip(*AutoAugment(AutoAugmentPolicy(policy)).policies, strict=True))
    of = lambda part: [[each[part] or 0 for each in step] for step in steps]
    operations = [[OPERATIONS.index(name) for name in row] for row in of(0)]
    return SubPolicies(torch.tensor(operations), torch.tensor(of(1)), torch.tensor(of(2)))


class Chosen(NamedTuple):
    """What every sample undergoes, one after the other."""

    operation: Int64[Tensor, "2 batch"]
    """A position in `OPERATIONS`; the number of them for none."""
    magnitude: Int64[Tensor, "2 batch"]
    positive: Bool[Tensor, "2 batch"]
    """Its sign, where it has one."""


def draw(batch: int, generator: torch.Generator, policy: Policy) -> Chosen:
    """Each sample's sub-policy, on the generator's device."""
    on = dict(generator=generator, device=generator.device)
    known = [each.to(generator.device) for each in sub_policies(policy)]
    chosen = torch.randint(known[0].shape[1], (batch,), **on)
    operation, probability, magnitude = (each[:, chosen] for each in known)
    applied = torch.rand(2, batch, **on) <= probability
    return Chosen(
        torch.where(applied, operation, len(OPERATIONS)), magnitude, torch.randint(2, (2, batch), **on).bool()
    )


def operate(
    levels: UInt8[Tensor, "batch channels height width"], operation: Int64[Tensor, " batch"], value: Values
) -> UInt8[Tensor, "batch channels height width"]:
    """Every sample through its own operation."""
    levels = levels.clone()
    number = {name: place for place, name in enumerate(OPERATIONS)}

    # Maps
    places = _those(operation < len(MAPS))
    ours, own = operation[places], value[places]
    parts = {part: torch.where(ours == number[name], own, 0.0) for name, part in MAPS.items()}
    levels[places] = moved(levels[places], affine_map(*levels.shape[-2:], **parts))

    # Tables
    places = _those((operation >= len(MAPS)) & (operation < len(MAPS) + len(TABLES)))
    group, ours, own = levels[places], operation[places], value[places]
    table = every_level(levels).to(torch.uint8).repeat(*group.shape[:2], 1)
    for name, make in TABLES.items():
        chosen = ours == number[name]
        inside = _those(chosen)
        if len(own[inside]):
            entries = make(group[inside], own[inside]).to(torch.uint8)
            table[inside] = torch.where(chosen[inside][:, None, None], entries, table[inside])
    levels[places] = look_up(group, table)

    # Blends
    for name, degenerate in BLENDS.items():
        chosen = operation == number[name]
        places = _those(chosen)
        factor = torch.where(chosen, 1 + value, 1.0)[places]
        group = levels[places]
        levels[places] = blend(degenerate(group), group, factor[:, None, None, None])
    return levels


def _those(chosen: Bool[Tensor, " batch"]) -> Tensor | slice:
    """Their places, where counting waits for nothing, on a CPU; else all."""
    return chosen.nonzero().squeeze(1) if chosen.device.type == "cpu" else slice(None)


def autoaugment(images: Images, generator: torch.Generator, *, policy: Policy) -> Images:
    """AutoAugment: of the policy's 25 sub-policies every sample draws one, each of whose two operations is applied with
    its probability and, where its magnitude has a sign, a random one.

    Results are multiples of 1/255. Draws come from the generator, on its device; nothing waits for a device that is not
    a CPU.
    """
    levels = to_levels(images)
    known = exact(values(*levels.shape[-2:]).to(images.device, non_blocking=True))
    signed = torch.tensor([name in SIGNED for name in OPERATIONS] + [False]).to(images.device, non_blocking=True)
    known = torch.cat([known, torch.zeros_like(known[:1])])
    for drawn in zip(*draw(len(images), generator, policy), strict=True):
        operation, magnitude, positive = (
            each.to(images.device, non_blocking=images.device.type != "cpu") for each in drawn
        )
        value = known[operation, magnitude]
        levels = operate(levels, operation, torch.where(signed[operation] & ~positive, -value, value))
    return to_images(levels, images.dtype)
