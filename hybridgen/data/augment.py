"""Weak and strong augmentation of whole batches, with parameters of its own for every sample.

The strong policy is RandAugment as FixMatch uses it (Sohn et al. 2020, arXiv:2001.07685, appendix D and
google-research/fixmatch), followed by a cutout. `hybridgen.data.pillow_policy` is the same policy in Pillow.

The operations count in 8-bit levels as Pillow does, and equal it level for level: images are rounded to the
nearest multiple of 1/255 first, and geometric operations take the nearest pixel. Equalize, solarize and
posterize are kornia's (0.9 or newer, which no longer loops over samples). The others are written here:
kornia's enhancers and normalisation keep fractions where Pillow truncates (a level's difference at a third
of the pixels), its sharpness takes twice the time, and its nearest-pixel shear picks the neighbour at up to
14 % of the pixels, where Pillow's fixed point breaks ties.

Nothing waits for the device: no shape depends on a drawn value, and no value is read back.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from kornia import enhance
from torch import Tensor

from hybridgen.types import Images, InputError

MAGNITUDES = 10
"""Magnitudes count from 0 to this; the policy draws integers from 1 to one less."""

GREY = 0.5
"""What the cutout leaves behind."""

FILL_LEVEL = 127
"""What geometric operations leave behind, in 8-bit levels: 0.5 grey. (The reference marks these pixels as
transparent black and paints them grey at the end; here the next operation sees the grey.)"""

Magnitude = Float[Tensor, " batch"]
"""One number in 0..10 a sample; in -10..10 for the geometric operations."""

Compute = Callable[[Tensor, Tensor], Tensor]
Padding = Literal["reflection", "zeros"]
"""From 8-bit levels and one float64 magnitude a sample to levels, or to tables of them."""


# --- Operations that map each level to another: one table of 256 entries a sample and channel ---------------


def _every_level(levels: Tensor) -> Tensor:
    return torch.arange(256, device=levels.device)


def _enhancement(magnitude: Tensor) -> Tensor:
    """0.1 to 1.9, without effect at 5."""
    return magnitude * 1.8 / MAGNITUDES + 0.1


def _blend(degenerate: Tensor, image: Tensor, factor: Tensor) -> Tensor:
    """Pillow's `Image.blend`: float32, clipped, truncated to levels."""
    degenerate = degenerate.float()
    mixed = (image.float() - degenerate) * factor.float()
    return mixed.add_(degenerate).clamp_(0, 255).to(torch.uint8)


def _luminance(levels: Tensor) -> Tensor:
    """Pillow's conversion to mode L, [n 1 height width] in int32."""
    red, green, blue = levels.int().split(1, dim=1)
    return (red * 19595).add_(green * 38470).add_(blue * 7471).add_(0x8000).bitwise_right_shift_(16)


def _brightness_table(levels: Tensor, magnitude: Tensor) -> Tensor:
    level = _every_level(levels)
    return _blend(torch.zeros_like(level), level, _enhancement(magnitude)[:, None, None])


def _contrast_table(levels: Tensor, magnitude: Tensor) -> Tensor:
    pixels = levels.shape[-2] * levels.shape[-1]
    total = _luminance(levels).sum((1, 2, 3))
    mean = (2 * total + pixels) // (2 * pixels)
    return _blend(mean[:, None, None], _every_level(levels), _enhancement(magnitude)[:, None, None])


def _autocontrast_table(levels: Tensor, magnitude: Tensor) -> Tensor:
    low = levels.amin((2, 3))[:, :, None].double()
    high = levels.amax((2, 3))[:, :, None].double()
    level = _every_level(levels)
    # Not 255 / (high - low), which torch computes by way of a rounded reciprocal.
    scale = torch.full_like(high, 255) / (high - low).clamp(min=1)
    stretched = (level * scale - low * scale).clamp(0, 255).long()
    return torch.where(high > low, stretched, level)


_TABLES: dict[str, Compute] = {
    "autocontrast": _autocontrast_table,
    "contrast": _contrast_table,
    "brightness": _brightness_table,
}


def _look_up(levels: Tensor, tables: Tensor) -> Tensor:
    return tables.gather(2, levels.flatten(2).long()).view_as(levels)


# --- Operations that move pixels: one affine map from output to input coordinates a sample ------------------


_GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def _affine(chosen: Callable[[str], Tensor], magnitude: Tensor, height: int, width: int) -> Tensor:
    """The six numbers of `Image.transform`, [6 n]: x' = a x + b y + c, y' = d x + e y + f.

    `chosen(name)` says which samples undergo an operation. They undergo one at most, so the parts can be
    added.
    """
    slant = magnitude * 0.3 / MAGNITUDES
    zero = torch.zeros_like(magnitude)
    # Whole degrees, counter-clockwise around the centre
    angle = torch.deg2rad(torch.where(chosen("rotate"), (magnitude * 30 / MAGNITUDES).trunc(), zero))
    cosine, sine = angle.cos(), angle.sin()
    x, y = width / 2, height / 2
    return torch.stack(
        [
            cosine,
            torch.where(chosen("shear_x"), slant, zero) - sine,
            torch.where(chosen("translate_x"), (slant * width).trunc(), x - cosine * x + sine * y),
            torch.where(chosen("shear_y"), slant, zero) + sine,
            cosine,
            torch.where(chosen("translate_y"), (slant * height).trunc(), y - sine * x - cosine * y),
        ]
    )


def _move(levels: Tensor, affine: Tensor) -> Tensor:
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


# --- Operations that blend with a degenerate image ----------------------------------------------------------


def _smooth(levels: Tensor) -> Tensor:
    """Pillow's `ImageFilter.SMOOTH`: weights of 1, 5 in the middle, over 13, rounded; borders stay."""
    smooth = levels.int()
    if min(levels.shape[-2:]) < 3:
        return smooth
    rows = smooth[..., :-2, :] + smooth[..., 1:-1, :] + smooth[..., 2:, :]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * smooth[..., 1:-1, 1:-1]
    smooth[..., 1:-1, 1:-1] = (total / 13).round_()
    return smooth


_DEGENERATES: dict[str, Callable[[Tensor], Tensor]] = {"color": _luminance, "sharpness": _smooth}


# --- kornia's operations ------------------------------------------------------------------------------------


def _to_levels(images: Tensor) -> Tensor:
    # By way of int16: torch's own conversion of floats to uint8 is four times slower on CPUs.
    return images.float().mul(255).round_().clamp_(0, 255).to(torch.int16).to(torch.uint8)


def _to_images(levels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return levels.to(dtype).div_(255)


def _equalize(levels: Tensor, magnitude: Tensor) -> Tensor:
    return _to_levels(enhance.equalize(_to_images(levels)))


def _solarize(levels: Tensor, magnitude: Tensor) -> Tensor:
    """Inverts levels from 256 - int(25.6 m) upwards; the threshold lies between two levels."""
    threshold = 255.5 - (magnitude * 256 / MAGNITUDES).trunc()
    return _to_levels(enhance.solarize(_to_images(levels), threshold.float() / 255))


def _posterize(levels: Tensor, magnitude: Tensor) -> Tensor:
    """Keeps 8 to 4 bits, the range of the paper; the reference's code keeps 4 to 0."""
    bits = 8 - (magnitude * 4 / MAGNITUDES).int()
    return _to_levels(enhance.posterize(_to_images(levels), bits))


_KORNIA: dict[str, Compute] = {
    "equalize": _equalize,
    "solarize": _solarize,
    "posterize": _posterize,
}


# --- Each operation alone -----------------------------------------------------------------------------------


def _operation(name: str, compute: Compute) -> Callable[[Images, Magnitude], Images]:
    def operation(images: Images, magnitude: Magnitude) -> Images:
        return _to_images(compute(_to_levels(images), magnitude.double()), images.dtype)

    operation.__name__ = operation.__qualname__ = name
    return operation


def _by_table(table: Compute) -> Compute:
    def compute(levels: Tensor, magnitude: Tensor) -> Tensor:
        entries = table(levels, magnitude).to(torch.uint8)
        return _look_up(levels, entries.expand(levels.shape[0], levels.shape[1], 256))

    return compute


def _by_affine(name: str) -> Compute:
    def compute(levels: Tensor, magnitude: Tensor) -> Tensor:
        chosen = lambda other: torch.full_like(magnitude, other == name, dtype=torch.bool)
        return _move(levels, _affine(chosen, magnitude, *levels.shape[-2:]))

    return compute


def _by_blend(degenerate: Callable[[Tensor], Tensor]) -> Compute:
    return lambda levels, magnitude: _blend(degenerate(levels), levels, _enhancement(magnitude)[:, None, None, None])


OPERATIONS: dict[str, Callable[[Images, Magnitude], Images]] = {
    "identity": _operation("identity", lambda levels, magnitude: levels),
    **{name: _operation(name, _by_table(table)) for name, table in _TABLES.items()},
    **{name: _operation(name, _by_affine(name)) for name in _GEOMETRIC},
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
    offset = torch.rand(operations, 1, generator=generator, device=device).double()
    place = torch.arange(batch, device=device) + offset
    width = batch * probability / len(OPERATIONS)
    limit = torch.arange(1, len(OPERATIONS) + 1, dtype=torch.float64, device=device) * width
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
    group.copy_(_look_up(group, tables))

    # Affine maps
    places = _places(_GEOMETRIC[0], _GEOMETRIC[-1], batch, probability)
    numbers, group = choice[places], queue[places]
    affine = _affine(lambda name: numbers == _NUMBER[name], magnitude[places], height, width)
    group.copy_(_move(group, affine))

    # Blends
    for name, degenerate in _DEGENERATES.items():
        places = _places(name, name, batch, probability)
        factor = torch.where(choice[places] == _NUMBER[name], _enhancement(strength[places]), 1.0)
        group = queue[places]
        group.copy_(_blend(degenerate(group), group, factor[:, None, None, None]))

    # kornia
    for name, compute in _KORNIA.items():
        places = _places(name, name, batch, probability)
        chosen = (choice[places] == _NUMBER[name])[:, None, None, None]
        group = queue[places]
        group.copy_(torch.where(chosen, compute(group, strength[places]), group))


def _uniform(count: int, low: int, high: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """`count` integers from `low` to `high`, both included, as a column."""
    return torch.randint(low, high + 1, (count, 1), generator=generator, device=like.device)


def _weak(images: Tensor, generator: torch.Generator, *, flip: bool, shift: int, padding: Padding) -> Tensor:
    batch, channels, height, width = images.shape
    limit = min(height, width) - 1
    if not 0 <= shift <= limit:
        raise InputError(f"shift: {shift} pixels for images of {height}x{width}; give 0 to {limit}")
    flipped = _uniform(batch, 0, int(flip), images, generator)
    down = _uniform(batch, -shift, shift, images, generator)
    right = _uniform(batch, -shift, shift, images, generator)
    row = torch.arange(height, device=images.device) + down
    column = torch.arange(width, device=images.device) + right
    covered = ((row >= 0) & (row < height))[:, :, None] & ((column >= 0) & (column < width))[:, None, :]
    row = height - 1 - (height - 1 - row.abs()).abs()
    column = width - 1 - (width - 1 - column.abs()).abs()
    column = torch.where(flipped > 0, width - 1 - column, column)
    source = (row.mul_(width).int()[:, :, None] + column.int()[:, None, :]).long().flatten(1)
    shifted = images.flatten(2).gather(2, source[:, None].expand(-1, channels, -1)).view(images.shape)
    return shifted if padding == "reflection" else shifted.mul_(covered[:, None])


def weak(
    images: Images, generator: torch.Generator, *, flip: bool, shift: int, padding: Padding = "reflection"
) -> Images:
    """A horizontal flip with probability 1/2 (if `flip`), then a shift by up to `shift` pixels either way.

    What the shift uncovers is filled by reflection, the border pixel not repeated (google-research/fixmatch), or black
    (He et al. 2016: a random crop of the image with a margin of zeros). Every sample draws its own flip and shifts, on
    the generator's device, which is that of the images. Raises `InputError` if `shift` is not in 0..side - 1.
    """
    return _weak(images, generator, flip=flip, shift=shift, padding=padding)


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
    levels = _weak(_to_levels(images), generator, flip=flip, shift=shift, padding="reflection")

    # RandAugment
    draw = draw_operations(batch, generator, operations=operations, probability=probability)
    place = torch.arange(batch, device=images.device)
    for order, choice, magnitude in zip(*draw, strict=True):
        levels = levels.index_select(0, place[order])
        _apply_in_place(levels, choice, magnitude.double(), probability)
        place = order.argsort()
    levels = levels.index_select(0, place)

    # Cutout
    top = _uniform(batch, 0, height - 1, images, generator) - cutout // 2
    left = _uniform(batch, 0, width - 1, images, generator) - cutout // 2
    row = torch.arange(height, device=images.device)
    column = torch.arange(width, device=images.device)
    rows = (row >= top).logical_and_(row < top + cutout).to(images.dtype)
    columns = (column >= left).logical_and_(column < left + cutout).to(images.dtype)
    hole = rows[:, None, :, None] * columns[:, None, None, :]
    grey = torch.full((), GREY, dtype=images.dtype, device=images.device)
    return _to_images(levels, images.dtype).lerp_(grey, hole)


# --- AugMix -------------------------------------------------------------------------------------------------


AUGMIX_OPERATIONS = ("autocontrast", "equalize", "posterize", "solarize", *_GEOMETRIC)
"""None of those by which corruption benchmarks are made."""


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
    batch: int, generator: torch.Generator, *, width: int, depth: int | None, severity: float, alpha: float
) -> Chains:
    """Each sample's own chains, on the generator's device."""
    steps, device = depth or 3, generator.device
    shape = (steps, width, batch)
    choice = torch.randint(len(AUGMIX_OPERATIONS), shape, generator=generator, device=device)
    if depth is None:
        length = torch.randint(1, steps + 1, shape[1:], generator=generator, device=device)
        here = torch.arange(steps, device=device)[:, None, None] < length
        choice = torch.where(here, choice, len(AUGMIX_OPERATIONS))
    level = 0.1 + (severity - 0.1) * torch.rand(shape, generator=generator, device=device)
    sign = 2 * torch.randint(2, shape, generator=generator, device=device) - 1
    weight, share = (_dirichlet(parts, batch, alpha, generator) for parts in (width, 2))
    return Chains(choice, level * sign, weight, share[0])


def _dirichlet(parts: int, batch: int, alpha: float, generator: torch.Generator) -> Tensor:
    """[parts batch]. By the logarithms of Gamma(alpha) = Gamma(alpha + 1) · U^(1/alpha), which do not underflow."""
    shape = torch.full((parts, batch), alpha + 1, device=generator.device)
    gamma = torch._standard_gamma(shape, generator=generator)
    uniform = torch.rand(shape.shape, generator=generator, device=generator.device)
    return (gamma.log() + uniform.log() / alpha).softmax(dim=0)


def augmix(
    images: Images,
    generator: torch.Generator,
    *,
    width: int = 3,
    depth: int | None = None,
    severity: float = 3,
    alpha: float = 1.0,
) -> Images:
    """AugMix (Hendrycks et al. 2020): the image and a mixture of `width` chains of `depth` operations each (1 to 3 at
    random without one), mixed.

    Every sample draws its own chains, their weights, Dirichlet(alpha), and the mixture's share, Beta(alpha, alpha).
    Levels are drawn for each operation, uniformly from 0.1 to `severity` of 10, and mean what they mean in
    google-research/augmix: posterize keeps 4 bits and fewer, translations reach a third of the side. As in `strong`,
    operations count in 8-bit levels, take the nearest pixel and leave grey behind (there: bilinear, black).

    Draws come from the generator, on its device; nothing waits for the device. Raises `InputError` for a width or depth
    below 1, a severity outside 0.1..10, and an alpha that is not above 0.
    """
    if width < 1 or (depth is not None and depth < 1):
        raise InputError(f"width, depth: {width}, {depth}; give 1 or more")
    if not 0.1 <= severity <= MAGNITUDES:
        raise InputError(f"severity: {severity}; give 0.1 to {MAGNITUDES}")
    if not 0 < alpha < math.inf:
        raise InputError(f"alpha: {alpha} is not a number above 0")
    batch = len(images)
    drawn = draw_chains(batch, generator, width=width, depth=depth, severity=severity, alpha=alpha)
    choice, level, weight, share = (each.to(images.device, non_blocking=images.device.type != "cpu") for each in drawn)
    levels = _to_levels(images).repeat(width, 1, 1, 1)
    for step in range(len(choice)):
        levels = _operate(levels, choice[step].flatten(), level[step].flatten().double())
    chains = _to_images(levels, images.dtype).unflatten(0, (width, batch))
    mixture = (weight.to(images.dtype)[:, :, None, None, None] * chains).sum(dim=0)
    return images.lerp(mixture, share.to(images.dtype).view(-1, 1, 1, 1)).clamp_(0, 1)


def _operate(levels: Tensor, choice: Tensor, level: Tensor) -> Tensor:
    """Every sample through its own operation: a table of levels and a move of pixels, one of which changes nothing."""
    chosen = lambda name: choice == AUGMIX_OPERATIONS.index(name)
    strength = level.abs()

    # Tables
    entry = _every_level(levels)
    bits = (4 + (strength * 4 / MAGNITUDES).long())[:, None, None]
    inverted = 256 - (strength * 256 / MAGNITUDES).long()[:, None, None]
    table = entry.to(torch.uint8).expand(*levels.shape[:2], 256)
    for name, own in {
        "autocontrast": _autocontrast_table(levels, strength),
        "equalize": _equalize_table(levels),
        "posterize": entry >> bits << bits,
        "solarize": torch.where(entry >= inverted, 255 - entry, entry),
    }.items():
        table = torch.where(chosen(name)[:, None, None], own.to(torch.uint8), table)
    levels = _look_up(levels, table)

    # Affine maps; translations by level · side / 30, which are 0.3 · magnitude / 10 of it in `_affine`
    magnitude = torch.where(chosen("translate_x") | chosen("translate_y"), level * 10 / 9, level)
    return _move(levels, _affine(chosen, magnitude, *levels.shape[-2:]))


def _equalize_table(levels: Tensor) -> Tensor:
    """Pillow's `ImageOps.equalize`, [n channels 256]."""
    flat = levels.flatten(2)
    one = torch.ones((), dtype=torch.int32, device=levels.device)
    counts = one.new_zeros(*flat.shape[:2], 256).scatter_add_(2, flat.long(), one.expand(flat.shape))
    highest = counts.gather(2, flat.amax(dim=2, keepdim=True).long())
    step = (flat.shape[2] - highest) // 255
    below = counts.cumsum(dim=2, dtype=torch.int32) - counts
    table = (below.add_(step // 2) // step.clamp(min=1)).clamp_(max=255)
    return torch.where(step > 0, table, _every_level(levels))


# --- Larger images ------------------------------------------------------------------------------------------


def _rectangles(
    draws: Tensor, height: int, width: int, scale: tuple[float, float], aspect: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Heights and widths, in pixels of the image and at most its sides, from two numbers of [0, 1) each."""
    area = (scale[0] + (scale[1] - scale[0]) * draws[0]) * height * width
    low, high = math.log(aspect[0]), math.log(aspect[1])
    proportion = (low + (high - low) * draws[1]).exp()
    return (area / proportion).sqrt().clamp(max=height), (area * proportion).sqrt().clamp(max=width)


def resized_crop(
    images: Images,
    generator: torch.Generator,
    *,
    size: int,
    flip: bool,
    scale: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Float[Tensor, "batch 3 side side"]:
    """A random part of every image, of `scale` of its area and of these proportions (uniform in the area and in the
    logarithm of the aspect), brought to `size` × `size` by bilinear interpolation; flipped with probability 1/2 if
    `flip` (Szegedy et al. 2015, as torchvision's RandomResizedCrop).

    Sides that exceed the image are cut to it, where torchvision draws again. What is larger than `size` is not
    smoothed first: crops are at most the image, so that this matters little for images of up to twice the size.
    Draws come from the generator, on its device, which is that of the images. Raises `InputError` for a size below 1
    and for ranges that are not 0 < low <= high, scale's at most 1.
    """
    if size < 1:
        raise InputError(f"size: {size} is below 1")
    if not 0 < scale[0] <= scale[1] <= 1:
        raise InputError(f"scale: {scale} is not 0 < low <= high <= 1")
    if not 0 < aspect[0] <= aspect[1]:
        raise InputError(f"aspect: {aspect} is not 0 < low <= high")
    batch, _, height, width = images.shape
    draws = torch.rand(5, batch, generator=generator, device=images.device)
    tall, wide = _rectangles(draws[:2], height, width, scale, aspect)
    left, top = draws[2] * (width - wide), draws[3] * (height - tall)
    place = (torch.arange(size, device=images.device) + 0.5) / size
    column = left[:, None] + wide[:, None] * place
    if flip:
        column = torch.where((draws[4] < 0.5)[:, None], column.flip(1), column)
    row = top[:, None] + tall[:, None] * place
    grid = torch.stack(
        [
            (2 * column / width - 1)[:, None, :].expand(batch, size, size),
            (2 * row / height - 1)[:, :, None].expand(batch, size, size),
        ],
        dim=3,
    )
    return torch.nn.functional.grid_sample(
        images, grid.to(images.dtype), mode="bilinear", padding_mode="border", align_corners=False
    )


def erase(
    images: Images,
    generator: torch.Generator,
    *,
    probability: float,
    scale: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 10 / 3),
) -> Images:
    """Random erasing (Zhong et al. 2020): with this probability, a rectangle of `scale` of an image's area becomes
    noise, uniform on [0, 1). Every sample draws its own, on the generator's device.

    Raises `InputError` for a probability outside [0, 1].
    """
    if not 0 <= probability <= 1:
        raise InputError(f"probability: {probability} is outside [0, 1]")
    batch, _, height, width = images.shape
    draws = torch.rand(5, batch, generator=generator, device=images.device)
    tall, wide = _rectangles(draws[:2], height, width, scale, aspect)
    left, top = (draws[2] * (width - wide)).floor(), (draws[3] * (height - tall)).floor()
    row = torch.arange(height, device=images.device)
    column = torch.arange(width, device=images.device)
    rows = (row >= top[:, None]) & (row < (top + tall.round())[:, None]) & (draws[4] < probability)[:, None]
    columns = (column >= left[:, None]) & (column < (left + wide.round())[:, None])
    noise = torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    return torch.where(rows[:, None, :, None] & columns[:, None, None, :], noise, images)
