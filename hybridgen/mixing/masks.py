"""Shapes of masks: where an image stays and where its partner shows. All for whole batches, nothing waits for the
device.

Masks are [n 1 height width] with one row for each of `ratio`, the share of the base that is aimed at; what is realised
is the mask's mean. Draws come from `generator`, or from torch's global one, on the ratio's device. All that take a
ratio raise InputError if it is outside [0, 1] (looked at on CPUs only).
"""

import math
from collections import Counter
from typing import TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hybridgen.mixing.mixing import check_shares
from hybridgen.types import full_precision

Ratio = Float[Tensor, " n"]
Mask = Float[Tensor, "n 1 height width"]
Generator = torch.Generator | None

C = TypeVar("C", float, Tensor)


def beta(
    count: int,
    alpha: float,
    generator: Generator = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Ratio:
    """`count` draws from Beta(alpha, alpha)."""
    return beta_log_odds(count, alpha, generator, device=device, dtype=dtype).sigmoid()


def beta_log_odds(
    count: int,
    alpha: float,
    generator: Generator = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, " n"]:
    """log λ/(1 - λ) of `count` draws λ ~ Beta(alpha, alpha).

    λ = g / (g + g′), of `log_gammas`."""
    first, second = log_gammas(2, count, alpha, generator, device=device, dtype=dtype)
    return first - second


def log_gammas(
    parts: int,
    count: int,
    alpha: float,
    generator: Generator = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "parts n"]:
    """Logarithms of draws from Gamma(alpha), whose softmax over the parts is one of the symmetric Dirichlet
    distribution.

    Gamma(alpha) = Gamma(alpha + 1) · U^(1/alpha), in logarithms: the numbers themselves underflow for a small alpha,
    and torch's own Beta then gives ½.
    """
    shape = torch.full((parts, count), alpha + 1, device=device, dtype=dtype)
    gamma = torch._standard_gamma(shape, generator=generator)
    uniform = torch.rand(shape.shape, generator=generator, device=device, dtype=dtype)
    return gamma.log() + uniform.log() / alpha


def inside(boxes: Int64[Tensor, "n 4"], height: int, width: int) -> Mask:
    """0 inside the box (top, left, height, width), 1 outside."""
    edges = boxes.unsqueeze(2).unbind(1)
    rows, columns = (
        ((place < start) | (place >= start + length)).float()
        for start, length, place in zip(
            edges[:2], edges[2:], (torch.arange(side, device=boxes.device) for side in (height, width)), strict=True
        )
    )
    return torch.maximum(rows[:, None, :, None], columns[:, None, None, :])


def box_around(
    ratio: Ratio, row: Int64[Tensor, " n"], column: Int64[Tensor, " n"], height: int, width: int
) -> Int64[Tensor, "n 4"]:
    """A box of 1 - ratio of the area, of the image's proportions, around a pixel; what lies outside is cut off.

    Half its sides are rounded down to whole pixels (Yun et al. 2019), so that the ratio realised is never smaller.
    """
    check_shares("ratio", ratio)
    side = (1 - ratio).sqrt()
    starts, lengths = [], []
    for centre, length in ((row, height), (column, width)):
        half = (side * length).long() // 2
        start = (centre - half).clamp(min=0)
        starts.append(start)
        lengths.append((centre + half).clamp(max=length) - start)
    return torch.stack([*starts, *lengths], dim=1)


def cutmix_boxes(ratio: Ratio, height: int, width: int, generator: Generator = None) -> Int64[Tensor, "n 4"]:
    """CutMix's boxes: `box_around` a pixel that is uniform over the image (Yun et al. 2019)."""
    row, column = (
        torch.randint(length, ratio.shape, generator=generator, device=ratio.device) for length in (height, width)
    )
    return box_around(ratio, row, column, height, width)


def halves(ratio: Ratio, height: int, width: int, *, vertical: bool) -> Mask:
    """The base to the left of a vertical line, or above a horizontal one if `vertical` (Summers and Dinneen 2019)."""
    check_shares("ratio", ratio)
    length = height if vertical else width
    place = (torch.arange(length, device=ratio.device) < (ratio * length).round().unsqueeze(1)).float()
    mask = place[:, None, :, None] if vertical else place[:, None, None, :]
    return mask.expand(-1, 1, height, width)


def fourier(ratio: Ratio, height: int, width: int, *, decay: float = 3.0, generator: Generator = None) -> Mask:
    """FMix: the highest places of noise whose spectrum falls with the frequency to the power of `decay`
    (Harris et al. 2020)."""
    down = torch.fft.fftfreq(height, device=ratio.device)[:, None]
    right = torch.fft.rfftfreq(width, device=ratio.device)[None, :]
    amplitude = torch.hypot(down, right).clamp(min=1 / max(height, width)) ** -decay
    noise = torch.randn(len(ratio), *amplitude.shape, 2, generator=generator, device=ratio.device)
    spectrum = torch.view_as_complex(noise * amplitude.unsqueeze(2))
    return highest(torch.fft.irfft2(spectrum, s=(height, width)).unsqueeze(1), ratio)


def cow(
    ratio: Ratio,
    height: int,
    width: int,
    *,
    sigmas: tuple[float, float] = (4.0, 16.0),
    generator: Generator = None,
) -> Mask:
    """CowMask: white noise under a Gaussian filter, above the threshold that leaves `ratio` (French et al. 2020).

    The filter's deviation is log-uniform in `sigmas`, in pixels of an image whose longer side has 32, and grows with
    that side; it is the same along both. At the borders the noise is reflected, the outermost pixel with it, as
    `scipy.ndimage.gaussian_filter` does. Noise is drawn by frequencies, without those that the filter stops.
    """
    low, high = (math.log(sigma * max(height, width) / 32) for sigma in sigmas)
    uniform = torch.rand(len(ratio), 1, generator=generator, device=ratio.device)
    sigma = (low + (high - low) * uniform).exp()
    (rows, passed), (columns, passed_too) = (_waves(side, sigma, math.exp(low)) for side in (height, width))
    noise = torch.randn(len(ratio), len(rows), len(columns), generator=generator, device=ratio.device)
    with full_precision(ratio.device):
        smooth = rows.mT @ (noise * passed.unsqueeze(2) * passed_too.unsqueeze(1)) @ columns
    return highest(smooth.unsqueeze(1), ratio)


def _waves(length: int, sigma: Float[Tensor, "n 1"], lowest: float) -> tuple[Tensor, Tensor]:
    """Orthonormal cosines [waves length], all that are even about both borders, and what a Gaussian filter leaves of
    each, [n waves]: by its spectrum, which is a sampled filter's from a deviation of a pixel and a half on.

    Only those of which the `lowest` deviation leaves more than 1e-7.
    """
    highest_wave = length * math.sqrt(2 * math.log(1e7)) / (math.pi * lowest)
    half_turns = torch.arange(min(length, math.ceil(highest_wave) + 1), device=sigma.device) / length
    place = torch.arange(length, device=sigma.device) + 0.5
    basis = (math.pi * half_turns.unsqueeze(1) * place).cos()
    basis = basis / basis.square().sum(dim=1, keepdim=True).sqrt()
    return basis, (-(math.pi * sigma * half_turns).square() / 2).exp()


def highest(values: Float[Tensor, "n 1 height width"], ratio: Ratio) -> Mask:
    """1 at the highest `ratio` of each image's places, to about a thousandth of them.

    The thresholds are found by bisection, for all images at once, which is ten times as fast as sorting.
    """
    check_shares("ratio", ratio)
    flat = values.flatten(1)
    wanted = (ratio * flat.shape[1]).round().unsqueeze(1)
    low, high = flat.amin(dim=1, keepdim=True), flat.amax(dim=1, keepdim=True)  # aminmax takes ten times as long
    threshold, span, above = (low + high) / 2, high - low, torch.empty_like(flat)
    reach = torch.where(span > 0, span * (1 / 2 + 1 / 1024), 1.0)  # beyond the highest and the lowest
    for halving in range(1, 14):
        surplus = torch.gt(flat, threshold, out=above).sum(dim=1, keepdim=True).sub_(wanted)
        threshold.addcmul_(surplus.sign_(), reach, value=0.5**halving)
    return torch.gt(flat, threshold, out=above).view_as(values)


def blocks(
    rate: Ratio, height: int, width: int, *, side: int, channels: int = 1, generator: Generator = None
) -> Float[Tensor, "n channels height width"]:
    """0 in squares of `side`, an odd number, around places that are drawn with this rate, 1 elsewhere: DropBlock's
    masks (Ghiasi et al. 2018)."""
    check_shares("rate", rate)
    shape = (len(rate), channels, height, width)
    centres = (torch.rand(shape, generator=generator, device=rate.device) < rate.view(-1, 1, 1, 1)).float()
    rows, columns = (_around(length, side // 2, side // 2, rate.device) for length in (height, width))
    covered = rows @ centres @ columns
    return (covered < 0.5).float()


def centre_rate(share: C, height: int, width: int, side: int) -> C:
    """At which rate DropBlock (Ghiasi et al. 2018) and PatchUp (Faramarzi et al. 2020) centre `blocks` for this share
    of the area. They cover less where they overlap, and more where the map is small: the formula counts the centres
    whose squares lie inside, and centres are drawn at all places."""
    return share * height * width / (side**2 * (height - side + 1) * (width - side + 1))


def rate_beside(ratio: Ratio, height: int, width: int, side: int) -> Ratio:
    """At which rate `blocks` are centred beside which, on average, this share of the area is left."""
    reached = [
        [min(place + side // 2, length - 1) - max(place - side // 2, 0) + 1 for place in range(length)]
        for length in (height, width)
    ]
    places = Counter(row * column for row in reached[0] for column in reached[1])  # by how many centres reach them
    centres, share = torch.tensor([[*places], [*places.values()]], dtype=ratio.dtype).to(
        ratio.device, non_blocking=True
    )
    share = (share / (height * width)).log()
    # The mean of (1 - rate)^centres is the ratio: Newton's method in logarithms, where the curve is nearly a line
    wanted, kept = ratio.clamp(min=1e-9).log(), torch.zeros_like(ratio)
    for _ in range(8):
        left = share + centres * kept.unsqueeze(1)
        kept = kept + (wanted - left.logsumexp(1)) / (left.softmax(1) * centres).sum(1)
    return -kept.clamp(max=0).expm1()


def block_side(side: int, height: int, width: int) -> int:
    """The largest odd number up to `side` that a map holds."""
    return min(side, *(length - 1 + length % 2 for length in (height, width)))


def saliency(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch height width"]:
    """Fine-grained saliency (Montabone and Soto 2010), as OpenCV's `StaticSaliencyFineGrained` computes it: in [0, 1],
    in steps of 1/255.

    How much a pixel is brighter than the mean of the square around it, over six sizes of squares, and how much it is
    darker, each sum as a part of the image's largest. All in 8 bits: luminance of RGB (the mean of other numbers of
    channels), smoothed twice by 3×3 pixels. Images that leave [0, 1] are brought into it first, each by itself. Both
    the brightest and the darkest place come to 1; where there is nothing to see, all are 0.
    """
    height, width = images.shape[2:]
    if height * width == 1:
        return images.new_zeros(len(images), 1, 1, dtype=torch.float32)
    flat = images.detach().float().flatten(2)
    low, high = flat.amin(dim=(1, 2), keepdim=True).clamp_(max=0), flat.amax(dim=(1, 2), keepdim=True).clamp_(min=1)
    scale = 255 / (high - low)
    levels = (flat * scale).sub_(low * scale).round_()
    # 0.299, 0.587 and 0.114 of 15 bits
    shares = (9798 / 2**15, 19235 / 2**15, 3735 / 2**15)
    channels = images.shape[1]
    weights = torch.tensor([shares] if channels == 3 else [[1 / channels] * channels], dtype=levels.dtype)
    weights = weights.to(images.device, non_blocking=True)
    with full_precision(images.device):
        grey = (weights @ levels).add_(0.5).floor_().unflatten(2, (height, width)).squeeze(1)
        smoothing = {side: _smoothing(side, images.device) for side in {height, width}}
        for _ in range(2):
            grey = (smoothing[height] @ grey @ smoothing[width].mT).add_(0.5).floor_()
        signed, total = torch.zeros_like(grey), torch.zeros_like(grey)
        for reach, times in Counter(min(reach, max(height, width)) for reach in (12, 24, 28, 48, 56, 112)).items():
            # Squares are even, with one pixel more below and to the right, and cut off at the borders
            around = {side: _around(side, reach - 1, reach, images.device) for side in {height, width}}
            rows, columns = around[height], around[width]
            others = rows.sum(dim=1, keepdim=True) * columns.sum(dim=1) - 1
            whole = reach >= max(height, width)
            mean = (grey.sum(dim=(1, 2), keepdim=True) if whole else rows @ grey @ columns.mT) - grey
            contrast = torch.sub(grey, mean.div_(others), out=mean).trunc_()
            signed.add_(contrast, alpha=times)
            total.add_(contrast.abs_(), alpha=times)
    brighter, darker = (
        (255 * part).div_(part.amax(dim=(1, 2), keepdim=True).clamp_(min=1)).floor_()
        for part in (total + signed, total - signed)
    )
    return brighter.add_(darker).clamp_(max=255).div_(255)


def _smoothing(length: int, device: torch.device) -> Float[Tensor, "length length"]:
    """A matrix that takes a quarter of both neighbours and a half of what is there; past the border, the neighbour
    inside counts twice."""
    place = torch.arange(length, device=device)
    last = max(length - 1, 1)
    inside = [(last - (last - each.abs()).abs()).clamp(max=length - 1) for each in (place - 1, place, place + 1)]
    weights = [each.unsqueeze(1) == place for each in inside]
    return (weights[0] + 2.0 * weights[1] + weights[2]) / 4


def _around(length: int, before: int, after: int, device: torch.device) -> Float[Tensor, "length length"]:
    """1 for places that lie at most so many before and after the row's: a matrix product with it sums over what is
    around."""
    place = torch.arange(length, device=device)
    ahead = place - place[:, None]
    return ((ahead >= -before) & (ahead <= after)).float()
