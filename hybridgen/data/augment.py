"""Weak augmentation, crops, erasing and changes of colour, on whole batches with every sample's own parameters.

Strong policies have files of their own: `randaugment`, `augmix`. Nothing waits for the device: no shape depends on a
drawn value, and no value is read back.
"""

import math
from functools import reduce
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hybridgen.types import Images, InputError

Padding = Literal["reflection", "zeros"]
"""What a shift uncovers: the image's reflection, or black."""


def uniform_integers(count: int, low: int, high: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """`count` integers from `low` to `high`, both included, as a column on the device of `like`."""
    return torch.randint(low, high + 1, (count, 1), generator=generator, device=like.device)


def flipped_and_shifted(
    images: Tensor, generator: torch.Generator, *, flip: bool, shift: int, padding: Padding
) -> Tensor:
    """`weak` for pixels of any type, levels too."""
    batch, channels, height, width = images.shape
    limit = min(height, width) - 1
    if not 0 <= shift <= limit:
        raise InputError(f"shift: {shift} pixels for images of {height}x{width}; give 0 to {limit}")
    flipped = uniform_integers(batch, 0, int(flip), images, generator)
    down = uniform_integers(batch, -shift, shift, images, generator)
    right = uniform_integers(batch, -shift, shift, images, generator)
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
    return flipped_and_shifted(images, generator, flip=flip, shift=shift, padding=padding)


# --- Differentiable -----------------------------------------------------------------------------------------


def diff_augment(images: Images, generator: torch.Generator | None = None) -> Images:
    """DiffAugment (Zhao et al. 2020): colour, translation and cutout, through which gradient reaches the pixels.

    Brightness plus U(-1/2, 1/2); saturation times U(0, 2); contrast times U(1/2, 3/2); a shift by up to an eighth of
    the sides, black behind it; and black in a square of half the sides, whose middle is anywhere. Values leave [0, 1].
    Every sample draws its own, from torch's global generator unless one is given, on the images' device.
    """
    batch, channels, height, width = images.shape
    draws = torch.rand(7, batch, 1, generator=generator, device=images.device)
    brightness, saturation, contrast = draws[:3, :, :, None, None].to(images.dtype)
    images = images + (brightness - 0.5)
    images = torch.lerp(images.mean(dim=1, keepdim=True), images, 2 * saturation)
    images = torch.lerp(images.mean(dim=(1, 2, 3), keepdim=True), images, contrast + 0.5)

    # Where every row and column comes from, and which of them are black
    sources, shown, cut = [], [], []
    for side, (by, middle) in zip((height, width), draws[3:].split(2), strict=True):
        here, reach, hole = torch.arange(side, device=images.device), int(side / 8 + 0.5), int(side / 2 + 0.5)
        source = here + (by * (2 * reach + 1)).long() - reach
        sources.append(source.clamp(0, side - 1))
        shown.append((source >= 0) & (source < side))
        first = (middle * (side + 1 - hole % 2)).long() - hole // 2
        cut.append((here >= first) & (here < first + hole))
    (rows, columns), grid = sources, lambda pair: pair[0][:, :, None] & pair[1][:, None, :]
    source = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
    moved = images.flatten(2).gather(2, source[:, None].expand(-1, channels, -1)).view(images.shape)
    return moved * (grid(shown) & ~grid(cut))[:, None]


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
    tall, wide = (side.round() for side in _rectangles(draws[:2], height, width, scale, aspect))
    left, top = (
        (draw * (room + 1)).floor().minimum(room)
        for draw, room in zip(draws[2:4], (width - wide, height - tall), strict=True)
    )
    row = torch.arange(height, device=images.device)
    column = torch.arange(width, device=images.device)
    rows = (row >= top[:, None]) & (row < (top + tall)[:, None]) & (draws[4] < probability)[:, None]
    columns = (column >= left[:, None]) & (column < (left + wide)[:, None])
    noise = torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    return torch.where(rows[:, None, :, None] & columns[:, None, None, :], noise, images)


# --- Colour -------------------------------------------------------------------------------------------------


LUMINANCE = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in what the eye sees as brightness (ITU-R BT.601)."""

COLOUR_DEVIATIONS = (0.2175, 0.0188, 0.0045)
"""Square roots of the variances of ImageNet's colours in [0, 1] along their principal axes."""

COLOUR_AXES = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
"""These axes: a row for each of red, green and blue, a column for each axis."""


def color_jitter(
    images: Images,
    generator: torch.Generator,
    *,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    clip: bool = True,
) -> Images:
    """Brightness, contrast and saturation, each changed by a factor that is uniform on 1 - x to 1 + x, in random order.

    An image is blended with black, with the mean of its own luminance, and with its luminance. Every sample draws its
    own factors and order, on the generator's device, which is that of the images. The defaults are those of
    RecursiveMix's ImageNet recipe (`--aug_plus`, from CutMix's code), which lets values leave [0, 1]; with `clip` they
    are cut off after each change, as torchvision's ColorJitter does.

    Raises `InputError` for a range outside [0, 1].
    """
    ranges = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    for field, value in ranges.items():
        if not 0 <= value <= 1:
            raise InputError(f"{field}: {value} is outside [0, 1]")
    batch = len(images)
    draws = torch.rand(6, batch, generator=generator, device=images.device)
    factors = torch.stack([1 + value * (2 * own - 1) for value, own in zip(ranges.values(), draws[:3], strict=True)])
    for kind in draws[3:].argsort(dim=0):
        factor = factors.gather(0, kind[None])[0].to(images.dtype).view(-1, 1, 1, 1)
        kind = kind.view(-1, 1, 1, 1)
        grey = reduce(torch.add, (share * images[:, channel, None] for channel, share in enumerate(LUMINANCE)))
        degenerate = torch.where(kind == 1, grey.mean((2, 3), keepdim=True), grey)
        degenerate = torch.where(kind == 0, torch.zeros_like(grey), degenerate)
        images = degenerate + factor * (images - degenerate)
        if clip:
            images = images.clamp(0, 1)
    return images


def lighting(images: Images, generator: torch.Generator, *, std: float = 0.1, clip: bool = True) -> Images:
    """The colour of every image shifted along the principal axes of ImageNet's colours (Krizhevsky et al. 2012).

    Along each axis by its deviation times a number of N(0, `std`²), the image's own, drawn on the generator's device,
    which is that of the images. The paper and its code let values leave [0, 1]; with `clip` they are cut off.

    Raises `InputError` for a negative std.
    """
    if not 0 <= std < math.inf:
        raise InputError(f"std: {std} is not a number of 0 or more")
    alpha = std * torch.randn(3, len(images), generator=generator, device=images.device)
    along = [deviation * own for deviation, own in zip(COLOUR_DEVIATIONS, alpha, strict=True)]
    shares = ((share * own for share, own in zip(row, along, strict=True)) for row in COLOUR_AXES)
    shift = torch.stack([reduce(torch.add, each) for each in shares], dim=1)
    shifted = images + shift.to(images.dtype)[:, :, None, None]
    return shifted.clamp_(0, 1) if clip else shifted
