"""The strong augmentation of FixMatch on whole batches, with parameters of its own for every sample.

RandAugment as FixMatch uses it (Sohn et al. 2020, arXiv:2001.07685, appendix D and google-research/fixmatch), followed
by a cutout. `hybridgen.data.pillow_policy` is the same policy in Pillow.

The operations count in 8-bit levels as Pillow does, and equal it level for level: images are rounded to the nearest
multiple of 1/255 first, and geometric operations take the nearest pixel. Equalize, solarize and posterize are kornia's
(0.9 or newer, which no longer loops over samples), the others those of `hybridgen.data.levels`. kornia is
imported when they are first used: that takes a tenth of a second, and few runs need it.

Nothing waits for the device: no shape depends on a drawn value, and no value is read back.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hybridgen.data.augment import flipped_and_shifted, uniform_integers
from hybridgen.data.levels import (
    GEOMETRIC,
    MAGNITUDES,
    affine_maps,
    autocontrast_table,
    blend,
    brightness_table,
    contrast_table,
    enhancement,
    look_up,
    luminance,
    moved,
    smooth,
    to_images,
    to_levels,
)
from hybridgen.types import Images, InputError, exact

GREY = 0.5
"""What the cutout leaves behind."""

Magnitude = Float[Tensor, " batch"]
"""One number in 0..10 a sample; in -10..10 for the geometric operations."""

Compute = Callable[[Tensor, Tensor], Tensor]
"""From 8-bit levels and one magnitude a sample, in float64, to levels, or to tables of them."""


# --- The fourteen operations --------------------------------------------------------------------------------

_TABLES: dict[str, Compute] = {
    "autocontrast": lambda levels, magnitude: autocontrast_table(levels),
    "contrast": lambda levels, magnitude: contrast_table(levels, enhancement(magnitude)),
    "brightness": lambda levels, magnitude: brightness_table(levels, enhancement(magnitude)),
}

_DEGENERATES: dict[str, Callable[[Tensor], Tensor]] = {"color": luminance, "sharpness": smooth}


def _equalize(levels: Tensor, magnitude: Tensor) -> Tensor:
    from kornia import enhance

    return to_levels(enhance.equalize(to_images(levels)))


def _solarize(levels: Tensor, magnitude: Tensor) -> Tensor:
    """Inverts levels from 256 - int(25.6 m) upwards; the threshold lies between two levels."""
    from kornia import enhance

    threshold = 255.5 - (magnitude * 256 / MAGNITUDES).trunc()
    return to_levels(enhance.solarize(to_images(levels), threshold.float() / 255))


def _posterize(levels: Tensor, magnitude: Tensor) -> Tensor:
    """Keeps 8 to 4 bits, the range of the paper; the reference's code keeps 4 to 0."""
    from kornia import enhance

    bits = 8 - (magnitude * 4 / MAGNITUDES).int()
    return to_levels(enhance.posterize(to_images(levels), bits))


_KORNIA: dict[str, Compute] = {
    "equalize": _equalize,
    "solarize": _solarize,
    "posterize": _posterize,
}


def _operation(name: str, compute: Compute) -> Callable[[Images, Magnitude], Images]:
    def operation(images: Images, magnitude: Magnitude) -> Images:
        return to_images(compute(to_levels(images), exact(magnitude)), images.dtype)

    operation.__name__ = operation.__qualname__ = name
    return operation


def _by_table(table: Compute) -> Compute:
    def compute(levels: Tensor, magnitude: Tensor) -> Tensor:
        entries = table(levels, magnitude).to(torch.uint8)
        return look_up(levels, entries.expand(levels.shape[0], levels.shape[1], 256))

    return compute


def _by_affine(name: str) -> Compute:
    def compute(levels: Tensor, magnitude: Tensor) -> Tensor:
        chosen = lambda other: torch.full_like(magnitude, other == name, dtype=torch.bool)
        return moved(levels, affine_maps(chosen, magnitude, *levels.shape[-2:]))

    return compute


def _by_blend(degenerate: Callable[[Tensor], Tensor]) -> Compute:
    return lambda levels, magnitude: blend(degenerate(levels), levels, enhancement(magnitude)[:, None, None, None])


OPERATIONS: dict[str, Callable[[Images, Magnitude], Images]] = {
    "identity": _operation("identity", lambda levels, magnitude: levels),
    **{name: _operation(name, _by_table(table)) for name, table in _TABLES.items()},
    **{name: _operation(name, _by_affine(name)) for name in GEOMETRIC},
    **{name: _operation(name, _by_blend(degenerate)) for name, degenerate in _DEGENERATES.items()},
    **{name: _operation(name, compute) for name, compute in _KORNIA.items()},
}
"""The 14 operations of FixMatch's RandAugment, each alone: images in [0, 1] and one magnitude a sample.

Magnitudes are in 0..10, and in -10..10 for rotate, shear_x, shear_y, translate_x and translate_y. Color,
contrast, brightness and sharpness change nothing at 5, the others at 0, except autocontrast and equalize,
which heed no magnitude. Results are multiples of 1/255.
"""

_NUMBER = {name: number for number, name in enumerate(OPERATIONS)}


# --- The policy ---------------------------------------------------------------------------------------------


class Draw(NamedTuple):
    """Which operation meets which sample. The last axis is a place in the queue, not a sample."""

    order: Int64[Tensor, "operations batch"]
    """The sample at each place."""
    choice: Int64[Tensor, "operations batch"]
    """Its operation, a position in `OPERATIONS`; `len(OPERATIONS)` for none. Ascending."""
    magnitude: Int64[Tensor, "operations batch"]
    """1 to 9, with a random sign that only geometric operations heed."""


def draw_operations(batch: int, generator: torch.Generator, *, operations: int, probability: float) -> Draw:
    """Draw each sample's operations, on the generator's device.

    Systematic sampling: the samples queue up in random order, and the queue, shifted by a random fraction of
    a place, is cut into 14 equal parts for the operations and a rest of 1 - `probability` for none. A
    sample's operation is then exactly uniform and its slots are independent, while an operation's count
    within a batch differs by less than one from its expectation: where its samples stand is known
    beforehand, up to one place, which spares waiting for the device. Different samples of a batch are not
    quite independent.
    """
    device = generator.device
    order = torch.rand(operations, batch, generator=generator, device=device).argsort(1)
    offset = exact(torch.rand(operations, 1, generator=generator, device=device))
    place = torch.arange(batch, device=device) + offset
    width = batch * probability / len(OPERATIONS)
    limit = exact(torch.arange(1, len(OPERATIONS) + 1, device=device)) * width
    choice = (place[:, :, None] >= limit).sum(2)
    magnitude = torch.randint(1, MAGNITUDES, (operations, batch), generator=generator, device=device)
    sign = torch.randint(0, 2, (operations, batch), generator=generator, device=device)
    return Draw(order, choice, magnitude * (2 * sign - 1))


def _places(first: str, last: str, batch: int, probability: float) -> slice:
    """The places of the queue that these operations may have; `Draw.choice` says which they do have."""
    width = batch * probability / len(OPERATIONS)
    return slice(math.floor(_NUMBER[first] * width), min(math.ceil((_NUMBER[last] + 1) * width), batch))


def _apply_in_place(queue: Tensor, choice: Tensor, magnitude: Tensor, probability: float) -> None:
    """Replace every image of the queue by what its operation makes of it.

    Operations of one kind share one pass over their places, with parameters that change nothing at the places
    that turn out to be a neighbour's.
    """
    batch, channels, height, width = queue.shape
    strength = magnitude.abs()

    # Tables
    names = list(_TABLES)
    places = _places(names[0], names[-1], batch, probability)
    start, group = places.start, queue[places]
    tables = torch.arange(256, dtype=torch.uint8, device=queue.device).repeat(group.shape[0], channels, 1)
    for name, table in _TABLES.items():
        places = _places(name, name, batch, probability)
        own = tables[places.start - start : places.stop - start]
        chosen = (choice[places] == _NUMBER[name])[:, None, None]
        own.copy_(torch.where(chosen, table(queue[places], strength[places]).to(torch.uint8), own))
    group.copy_(look_up(group, tables))

    # Affine maps
    places = _places(GEOMETRIC[0], GEOMETRIC[-1], batch, probability)
    numbers, group = choice[places], queue[places]
    affine = affine_maps(lambda name: numbers == _NUMBER[name], magnitude[places], height, width)
    group.copy_(moved(group, affine))

    # Blends
    for name, degenerate in _DEGENERATES.items():
        places = _places(name, name, batch, probability)
        factor = torch.where(choice[places] == _NUMBER[name], enhancement(strength[places]), 1.0)
        group = queue[places]
        group.copy_(blend(degenerate(group), group, factor[:, None, None, None]))

    # kornia
    for name, compute in _KORNIA.items():
        places = _places(name, name, batch, probability)
        chosen = (choice[places] == _NUMBER[name])[:, None, None, None]
        group = queue[places]
        group.copy_(torch.where(chosen, compute(group, strength[places]), group))


def strong(
    images: Images,
    generator: torch.Generator,
    *,
    flip: bool,
    shift: int,
    operations: int = 2,
    probability: float = 0.5,
    cutout: int = 16,
) -> Images:
    """`weak`, then RandAugment, then a cutout: the strong augmentation of FixMatch.

    Every sample draws `operations` of the 14 with replacement, each applied with `probability` and at a
    magnitude of 1 to 9 tenths, geometric ones with a random sign. A square of `cutout` pixels a side, its
    centre uniform over the image, clipped at the borders, becomes 0.5 grey. All else is a multiple of 1/255.

    Operations are spread evenly over the batch (`draw_operations`): each sample's are distributed as if drawn
    alone, but those of different samples are not quite independent.

    Raises `InputError` for a `shift` outside 0..side - 1, a `probability` outside 0..1, or negative counts.
    """
    if not 0 <= probability <= 1:
        raise InputError(f"probability: {probability}; give 0 to 1")
    if operations < 0 or cutout < 0:
        raise InputError(f"operations, cutout: {operations}, {cutout}; give 0 or more")
    batch, _, height, width = images.shape

    # Weak augmentation
    levels = flipped_and_shifted(to_levels(images), generator, flip=flip, shift=shift, padding="reflection")

    # RandAugment
    draw = draw_operations(batch, generator, operations=operations, probability=probability)
    place = torch.arange(batch, device=images.device)
    for order, choice, magnitude in zip(*draw, strict=True):
        levels = levels.index_select(0, place[order])
        _apply_in_place(levels, choice, exact(magnitude), probability)
        place = order.argsort()
    levels = levels.index_select(0, place)

    # Cutout
    top = uniform_integers(batch, 0, height - 1, images, generator) - cutout // 2
    left = uniform_integers(batch, 0, width - 1, images, generator) - cutout // 2
    row = torch.arange(height, device=images.device)
    column = torch.arange(width, device=images.device)
    rows = (row >= top).logical_and_(row < top + cutout).to(images.dtype)
    columns = (column >= left).logical_and_(column < left + cutout).to(images.dtype)
    hole = rows[:, None, :, None] * columns[:, None, None, :]
    grey = torch.full((), GREY, dtype=images.dtype, device=images.device)
    return to_images(levels, images.dtype).lerp_(grey, hole)
