"""Shapes of masks: where an image stays and where its partner shows. All for whole batches, nothing waits for the
device.

Masks are [n 1 height width] with one row for each of `ratio`, the share of the base that is aimed at; what is realised
is the mask's mean. Draws come from `generator`, or from torch's global one, on the ratio's device. All that take a
ratio raise InputError if it is outside [0, 1] (looked at on CPUs only).
"""

import math
from collections import Counter

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hybridgen.mixing.mixing import check_shares

Ratio = Float[Tensor, " n"]
Mask = Float[Tensor, "n 1 height width"]
Generator = torch.Generator | None


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

    λ = g / (g + g′) with g, g′ ~ Gamma(alpha) = Gamma(alpha + 1) · U^(1/alpha), in logarithms: the numbers themselves
    underflow for a small alpha, and torch's own Beta then gives ½.
    """
    shape = torch.full((2, count), alpha + 1, device=device, dtype=dtype)
    gamma = torch._standard_gamma(shape, generator=generator)
    uniform = torch.rand(shape.shape, generator=generator, device=device, dtype=dtype)
    first, second = gamma.log() + uniform.log() / alpha
    return first - second


def inside(boxes: Int64[Tensor, "n 4"], height: int, width: int) -> Mask:
    """0 inside the box (top, left, height, width), 1 outside."""
    edges = boxes.unsqueeze(2).unbind(1)
    rows, columns = (
        ((place >= start) & (place < start + length)).float()
        for start, length, place in zip(
            edges[:2], edges[2:], (torch.arange(side, device=boxes.device) for side in (height, width)), strict=True
        )
    )
    return torch.addcmul(rows.new_ones(()), rows[:, None, :, None], columns[:, None, None, :], value=-1)


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

    The filter's deviation is log-uniform in `sigmas`, in pixels of images of 32 pixels, and grows with their side.
    The filter wraps around the borders. Noise is drawn by frequencies, without those that the filter stops.
    """
    low, high = (math.log(sigma * max(height, width) / 32) for sigma in sigmas)
    uniform = torch.rand(len(ratio), 1, generator=generator, device=ratio.device)
    sigma = (low + (high - low) * uniform).exp()
    (rows, passed), (columns, passed_too) = (_waves(side, sigma, math.exp(low)) for side in (height, width))
    noise = torch.randn(len(ratio), len(rows), len(columns), generator=generator, device=ratio.device)
    with _full_precision(ratio.device):
        smooth = rows.mT @ (noise * passed.unsqueeze(2) * passed_too.unsqueeze(1)) @ columns
    return highest(smooth.unsqueeze(1), ratio)


def _waves(length: int, sigma: Float[Tensor, "n 1"], lowest: float) -> tuple[Tensor, Tensor]:
    """Orthonormal cosines and sines [waves length], and what a Gaussian filter leaves of each, [n waves].

    Only those of which the `lowest` deviation leaves more than 1e-7.
    """
    highest_frequency = math.sqrt(math.log(1e7) / 2) / math.pi * length / lowest
    waves = torch.arange(min(length, 2 * math.ceil(highest_frequency) + 1), device=sigma.device)
    turns = (waves + 1) // 2 / length
    place = torch.arange(length, device=sigma.device)
    angle = 2 * math.pi * (turns.unsqueeze(1) * place) - math.pi / 2 * (waves % 2 == 0).unsqueeze(1)
    basis = torch.where((turns == 0).unsqueeze(1), 1.0, angle.cos())
    basis = basis / basis.square().sum(dim=1, keepdim=True).sqrt()
    return basis, (-2 * (math.pi * sigma * turns).square()).exp()


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
    covered = _around(height, side // 2, rate.device) @ centres @ _around(width, side // 2, rate.device)
    return (covered < 0.5).float()


def saliency(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch height width"]:
    """Fine-grained saliency (Montabone and Soto 2010): how far a pixel's brightness is from the mean of the square
    around it, brighter and darker alike, over six sizes of squares."""
    grey = images.detach().float().mean(dim=1)
    height, width = grey.shape[1:]
    total = torch.zeros_like(grey)
    reaches = Counter(min(reach, max(height, width)) for reach in (12, 24, 28, 48, 56, 112))
    with _full_precision(images.device):
        for reach, times in reaches.items():
            if reach >= max(height, width):
                mean = grey.mean(dim=(1, 2), keepdim=True)
            else:
                means = {side: _around(side, reach, images.device) for side in {height, width}}
                means = {side: around / around.sum(dim=1, keepdim=True) for side, around in means.items()}
                mean = means[height] @ grey @ means[width].mT
            total.add_((mean - grey).abs_(), alpha=times)
    return total


def _full_precision(device: torch.device) -> torch.autocast:
    """Matrix products in float32, whatever the surroundings."""
    return torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)


def _around(length: int, reach: int, device: torch.device) -> Float[Tensor, "length length"]:
    """1 where two places are at most `reach` apart: a matrix product with it sums over what is around."""
    place = torch.arange(length, device=device)
    return ((place[:, None] - place).abs() <= reach).float()
