"""The methods by which a batch is mixed, each a function that draws one `Mixing` for it.

All take images (or feature maps) [b c h w] of any size and draw from `generator`, on its device, which may be a CPU
while the images are elsewhere; without one, from torch's global generator on the images' device. Partners are a random
permutation of the batch. With `per_sample` each image has a ratio and a mask of its own; the default is what the
method's paper does (ResizeMix: one size, but a place of its own for each). The ratio that is drawn may differ from the
one that is realised, which counts.

All raise InputError for an `alpha` that is not above 0, an empty batch, integers, and what is not [b c h w].
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from hybridgen.mixing import masks
from hybridgen.mixing.masks import Generator
from hybridgen.mixing.mixing import Interpolation, Maps, Mixing
from hybridgen.types import InputError


def mixup(images: Maps, *, alpha: float = 1.0, per_sample: bool = False, generator: Generator = None) -> Mixing:
    """Mixup (Zhang et al. 2018), and of feature maps Manifold Mixup (Verma et al. 2019, with alpha 2): the same share
    λ ~ Beta(alpha, alpha) at every place."""
    ratio, partner = _draw(images, alpha, per_sample, generator)
    return _on(images, Mixing(ratio.view(-1, 1, 1, 1), partner))


def cutmix(
    images: Maps,
    *,
    alpha: float = 1.0,
    resize: bool = False,
    interpolation: Interpolation = "nearest",
    per_sample: bool = False,
    generator: Generator = None,
) -> Mixing:
    """CutMix (Yun et al. 2019): a box of the partner in its place, 1 - λ of the area, λ ~ Beta(alpha, alpha), cut off
    at the borders.

    With `resize` the whole partner is brought into the box (RecursiveMix, table 2: "resize strategy").
    """
    ratio, partner = _draw(images, alpha, per_sample, generator)
    boxes = masks.cutmix_boxes(ratio, *images.shape[2:], generator=generator)
    return _boxed(images, boxes, partner, resize, interpolation)


def resizemix(
    images: Maps,
    *,
    scope: tuple[float, float] = (0.1, 0.8),
    border: Literal["inside", "cut"] = "inside",
    interpolation: Interpolation = "nearest",
    per_sample: bool = False,
    generator: Generator = None,
) -> Mixing:
    """ResizeMix (Qin et al. 2020): the whole partner, its sides scaled by τ ~ U(scope), around a pixel that is uniform
    over the image and each image's own; τ is the batch's.

    A box that reaches over the `border` is shifted inside, as the authors do: at 32 pixels a mean share of the base of
    0.77. Or it is cut off there, and the partner resized into what remains, as in openmixup: 0.84. InputError for
    another border, and for a scope that is not 0 < low <= high <= 1.
    """
    if not 0 < scope[0] <= scope[1] <= 1:
        raise InputError(f"scope: {scope} is not 0 < low <= high <= 1")
    if border not in ("inside", "cut"):
        raise InputError(f"border: {border!r} is neither 'inside' nor 'cut'")
    (uniform,), partner = _uniform(images, per_sample, generator, draws=1)
    scale = scope[0] + (scope[1] - scope[0]) * uniform.expand(len(images))
    size = images.shape[2:]
    row, column = (torch.randint(length, partner.shape, generator=generator, device=partner.device) for length in size)
    if border == "cut":
        return _boxed(images, masks.box_around(1 - scale.square(), row, column, *size), partner, True, interpolation)
    sides = [(scale * length).long().clamp(min=1) for length in size]
    starts = [
        (centre - side // 2).clamp(min=0).minimum(length - side)
        for centre, side, length in zip((row, column), sides, size, strict=True)
    ]
    return _boxed(images, torch.stack([*starts, *sides], dim=1), partner, True, interpolation)


def saliencymix(images: Maps, *, alpha: float = 1.0, per_sample: bool = False, generator: Generator = None) -> Mixing:
    """SaliencyMix (Uddin et al. 2021): CutMix's box around the most salient pixel of the partner; one for the batch is
    that of the first image's partner. The saliency is fine-grained (Montabone and Soto 2010)."""
    ratio, partner = _draw(images, alpha, per_sample, generator)
    seen = partner if per_sample else partner[:1]
    peak = masks.saliency(images.index_select(0, seen.to(images.device))).flatten(1).argmax(dim=1)
    height, width = images.shape[2:]
    boxes = masks.box_around(ratio.to(images.device), peak // width, peak % width, height, width)
    return _boxed(images, boxes, partner, False, "nearest")


def fmix(
    images: Maps, *, alpha: float = 1.0, decay: float = 3.0, per_sample: bool = False, generator: Generator = None
) -> Mixing:
    """FMix (Harris et al. 2020): masks of low frequencies, λ ~ Beta(alpha, alpha) of the area."""
    ratio, partner = _draw(images, alpha, per_sample, generator)
    return _on(images, Mixing(masks.fourier(ratio, *images.shape[2:], decay=decay, generator=generator), partner))


def cowmix(
    images: Maps,
    *,
    alpha: float | None = None,
    shares: tuple[float, float] = (0.2, 0.8),
    sigmas: tuple[float, float] = (4.0, 16.0),
    per_sample: bool = True,
    generator: Generator = None,
) -> Mixing:
    """CowMix (French et al. 2020): masks like a cow's coat, λ ~ U(shares) of the area; with alpha, λ ~ Beta(alpha,
    alpha). `sigmas` are in pixels of images of 32 pixels. InputError for shares that are not 0 <= low <= high <= 1 and
    sigmas that are not 0 < low <= high."""
    if not 0 <= shares[0] <= shares[1] <= 1:
        raise InputError(f"shares: {shares} is not 0 <= low <= high <= 1")
    if not 0 < sigmas[0] <= sigmas[1]:
        raise InputError(f"sigmas: {sigmas} is not 0 < low <= high")
    if alpha is None:
        (uniform,), partner = _uniform(images, per_sample, generator, draws=1)
        ratio = shares[0] + (shares[1] - shares[0]) * uniform
    else:
        ratio, partner = _draw(images, alpha, per_sample, generator)
    return _on(images, Mixing(masks.cow(ratio, *images.shape[2:], sigmas=sigmas, generator=generator), partner))


def horizontal_concat(
    images: Maps, *, alpha: float = 1.0, per_sample: bool = True, generator: Generator = None
) -> Mixing:
    """Horizontal concatenation (Summers and Dinneen 2019; thesis A.5.1): the image to the left of a vertical line, its
    partner to the right, each from its own place."""
    ratio, partner = _draw(images, alpha, per_sample, generator)
    return _on(images, Mixing(masks.halves(ratio, *images.shape[2:], vertical=False), partner))


def vertical_concat(
    images: Maps, *, alpha: float = 1.0, per_sample: bool = True, generator: Generator = None
) -> Mixing:
    """Vertical concatenation: the image above a horizontal line, its partner below."""
    ratio, partner = _draw(images, alpha, per_sample, generator)
    return _on(images, Mixing(masks.halves(ratio, *images.shape[2:], vertical=True), partner))


def patchup(
    maps: Maps,
    *,
    kind: Literal["hard", "soft"] = "hard",
    gamma: float | None = None,
    side: int = 7,
    alpha: float = 2.0,
    channelwise: bool = True,
    per_sample: bool = False,
    generator: Generator = None,
) -> Mixing:
    """PatchUp (Faramarzi et al. 2020), made for feature maps: in squares of `side` the partner (hard), or λ of the
    image and the rest of the partner (soft), λ ~ Beta(alpha, alpha).

    `gamma` is "the probability of altering a feature", in the paper's commands ½ (hard) and ¾ (soft): centres of
    squares have the rate γ h w / (side² (h - side + 1)(w - side + 1)), so that squares that overlap cover somewhat
    less, and of a map hardly larger than they are, nearly all. `channelwise` draws a mask for every channel; the thesis
    found one for all of them better (A.5.1). `side` is brought to the largest odd number that the map holds. The
    paper's loss, whose two terms are linear in the target, is twice the cross-entropy with the target of the realised
    ratio. InputError for a gamma outside [0, 1] and a side that is even or below 1.
    """
    gamma = {"hard": 0.5, "soft": 0.75}[kind] if gamma is None else gamma
    if not 0 <= gamma <= 1:
        raise InputError(f"gamma: {gamma} is outside [0, 1]")
    if side < 1 or side % 2 == 0:
        raise InputError(f"side: {side} is not an odd number above 0")
    _check(maps)
    height, width = maps.shape[2:]
    side = masks.block_side(side, height, width)
    rate = masks.centre_rate(gamma, height, width, side)
    ratio, partner = _draw(maps, alpha, per_sample, generator)
    rates = torch.full_like(ratio, min(rate, 1.0))
    channels = maps.shape[1] if channelwise else 1
    mask = masks.blocks(rates, height, width, side=side, channels=channels, generator=generator)
    if kind == "soft":
        mask = mask + (1 - mask) * ratio.view(-1, 1, 1, 1)
    return _on(maps, Mixing(mask, partner))


Method = Callable[..., Mixing]

METHODS: dict[str, Method] = {
    "mixup": mixup,
    "manifold-mixup": partial(mixup, alpha=2.0),
    "cutmix": cutmix,
    "resizemix": resizemix,
    "saliencymix": saliencymix,
    "fmix": fmix,
    "cowmix": cowmix,
    "horizontal-concat": horizontal_concat,
    "vertical-concat": vertical_concat,
    "patchup-hard": partial(patchup, kind="hard"),
    "patchup-soft": partial(patchup, kind="soft"),
}
"""By the names that command lines and other training loops give them."""


def _check(images: Tensor) -> None:
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(
            f"images: {images.dtype} of shape {tuple(images.shape)}; floating point of shape [batch, channels, height, "
            "width] is needed"
        )
    if not images.numel():
        raise InputError(f"images: an empty batch, of shape {tuple(images.shape)}")


def _draw(images: Tensor, alpha: float, per_sample: bool, generator: Generator) -> tuple[Tensor, Tensor]:
    """Ratios, one or one for each image, and partners."""
    _check(images)
    if not 0 < alpha < math.inf:
        raise InputError(f"alpha: {alpha} is not a number above 0")
    device = images.device if generator is None else generator.device
    ratio = masks.beta(len(images) if per_sample else 1, alpha, generator, device=device)
    return ratio, torch.randperm(len(images), generator=generator, device=device)


def _uniform(images: Tensor, per_sample: bool, generator: Generator, draws: int) -> tuple[Tensor, Tensor]:
    """`draws` numbers of [0, 1), for the batch or each image, and partners."""
    _check(images)
    device = images.device if generator is None else generator.device
    count = len(images) if per_sample else 1
    uniform = torch.rand(draws, count, generator=generator, device=device)
    return uniform, torch.randperm(len(images), generator=generator, device=device)


def _boxed(images: Tensor, boxes: Tensor, partner: Tensor, resize: bool, interpolation: Interpolation) -> Mixing:
    mask = masks.inside(boxes, *images.shape[2:])
    return _on(images, Mixing(mask, partner, None, boxes if resize else None, interpolation))


def _on(images: Tensor, mixing: Mixing) -> Mixing:
    """The mixing on the images' device."""
    return mixing.to(images.device)
