"""How far figures of classifiers would lie from one draw of test images to another: 95 % intervals.

Shares of images have Wilson's interval, as everywhere in this package (`transfer.wilson`); other figures that of the
bootstrap over images (Efron 1979), its percentiles, of `BIASED` ones less the bias of its draws.
"""

from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float64
from torch import Tensor

from hybridgen.data.streams import derive_seed
from hybridgen.evaluation.calibration import BINS, binned, calibrated
from hybridgen.evaluation.classification import Classes, Predicted, log_probabilities
from hybridgen.evaluation.diversity import Members
from hybridgen.evaluation.ensembles import shares
from hybridgen.evaluation.selective import ranked
from hybridgen.evaluation.transfer import wilson

RESAMPLES = 1000
"""Draws of as many images as there are, with replacement."""

AT_ONCE = 2**17
"""Images that are drawn at once: a megabyte of weights, which stays in a processor's cache."""

BIASED = ("ece",)
"""Figures in [0, 1] that draws have higher than the images themselves, as absolute differences grow with noise: by up
to twice the draws' deviation. Theirs is a bias-corrected bootstrap: from all draws the estimate of the bias is taken,
their mean less the figure (Efron and Tibshirani 1993, chapter 10). That of the others is small beside the deviation."""

Weights = Float64[Tensor, "draws images"]
"""How often each image is in each draw."""

Figures = Float64[Tensor, " draws"]

Measure = Callable[[Weights], dict[str, Figures]]
"""Figures by their names."""


class Estimate(NamedTuple):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


class OfSums(NamedTuple):
    """A figure that is known from the sums of something over the images."""

    summed: Float64[Tensor, "images sums"]
    figure: Callable[[Float64[Tensor, "draws sums"]], Figures]


def with_intervals(members: Members, logits: Predicted, labels: Classes, *, seed: int) -> dict[str, Estimate]:
    """The figures of an ensemble of these logits with their intervals: those of `evaluation.ensembles`, and `aurc`.

    The draws are from `seed` alone: those of other classifiers on the same images are the same. A figure that no draw
    has (the ratio of errors where there are none) has the interval nan to nan. `nll_calibrated` keeps the temperatures
    that all images gave. Draws of `BIASED` figures are shifted so that their mean is the figure, and kept in [0, 1].
    """
    found = {name: Estimate(*wilson(value, len(labels))) for name, value in shares(members, logits, labels).items()}
    measure = figures_of_weights(members, logits, labels)
    values, drawn = measure(torch.ones(1, len(labels), dtype=torch.float64)), _of_draws(measure, len(labels), seed=seed)
    bounds = torch.tensor([0.025, 0.975], dtype=torch.float64)
    for name, value in values.items():
        draws = drawn[name]
        if name in BIASED:
            draws = (draws - (draws - value).mean()).clamp(0, 1)
        low, high = draws.nanquantile(bounds, interpolation="nearest").tolist()
        found[name] = Estimate(value.item(), low, high)
    return found


def _of_draws(measure: Measure, images: int, *, seed: int) -> dict[str, Figures]:
    """The figures of `RESAMPLES` draws of the images."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "bootstrap"))
    parts = []
    for chunk in torch.arange(RESAMPLES).split(max(1, AT_ONCE // images)):
        drawn = torch.randint(images, (len(chunk), images), generator=generator)
        drawn += images * torch.arange(len(chunk))[:, None]
        parts.append(measure(drawn.flatten().bincount(minlength=drawn.numel()).view(drawn.shape).double()))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def figures_of_weights(members: Members, logits: Predicted, labels: Classes) -> Measure:
    """What gives the figures of images that are there so many times: where each is there once, the figures themselves.

    Temperatures are those that all images give.
    """
    of_sums = _of_sums(members, logits, labels)
    summed = torch.cat([each.summed for each in of_sums.values()], dim=1)
    widths = [each.summed.shape[1] for each in of_sums.values()]
    area = _aurc(logits, labels)

    def measure(weights: Weights) -> dict[str, Figures]:
        sums = (weights @ summed).split(widths, dim=1)
        found = {name: each.figure(own) for (name, each), own in zip(of_sums.items(), sums, strict=True)}
        return found | {"aurc": area(weights)}

    return measure


def _of_sums(members: Members, logits: Predicted, labels: Classes) -> dict[str, OfSums]:
    count, chosen = len(labels), labels[:, None]
    logarithms = log_probabilities(logits)
    predicted = members.argmax(dim=2)
    wrong = (predicted != labels).double()

    def mean(of: Tensor) -> OfSums:
        return OfSums(of[:, None], lambda sums: sums[:, 0] / count)

    rests = logarithms.exp()
    rests[torch.arange(count), labels] -= 1
    place, confidence, right = binned(logits, labels)
    surplus = torch.zeros(count, BINS, dtype=torch.float64)
    surplus[torch.arange(count), place] = confidence - right.double()
    figures = {
        "nll": mean(-logarithms.gather(1, chosen).squeeze(1)),
        "brier": mean(rests.square().sum(dim=1)),
        "ece": OfSums(surplus, lambda sums: sums.abs().sum(dim=1) / count),
        "member_accuracy": mean(1 - wrong.mean(dim=0)),
    }
    if count > 1:
        figures["nll_calibrated"] = mean(-log_probabilities(calibrated(logits, labels)).gather(1, chosen).squeeze(1))
    if len(members) > 1:
        first, second = torch.tensor(list(combinations(range(len(members)), 2))).unbind(1)
        pairs, both = len(first), wrong[first] * wrong[second]

        def correlation(sums: Tensor) -> Figures:
            shares = sums[:, pairs:] / count
            covariance = sums[:, :pairs] / count - shares[:, first] * shares[:, second]
            variances = (shares * (1 - shares)).clamp(min=0)
            return (covariance / (variances[:, first] * variances[:, second]).sqrt()).mean(dim=1)

        figures["disagreement"] = mean((predicted[first] != predicted[second]).double().mean(dim=0))
        figures["ratio_error"] = OfSums(
            torch.cat([(wrong[first] != wrong[second]).double(), both]).T,
            lambda sums: (sums[:, :pairs] / sums[:, pairs:]).mean(dim=1),
        )
        figures["error_correlation"] = OfSums(torch.cat([both, wrong]).T, correlation)
    return figures


def _aurc(logits: Predicted, labels: Classes) -> Callable[[Weights], Figures]:
    """The mean risk, rank by rank: with K images and E errors in the ranks before one of c and e, the risks that it
    adds are (E + (k - K)·e/c)/k for k = K + 1, …, K + c. Their sum is (E - K·e/c)·(H(K + c) - H(K)) + e, with harmonic
    numbers H."""
    rank, wrong, count = ranked(logits, labels)
    order = rank.argsort()
    wrong, last = wrong[order], rank.bincount(minlength=count).cumsum(0) - 1
    harmonic = torch.cat([torch.zeros(1), 1 / torch.arange(1, 1 + len(labels), dtype=torch.float64)]).cumsum(0)

    def upto(weights: Weights) -> Float64[Tensor, "draws ranks_and_none"]:
        sums = weights.cumsum(dim=1)
        return F.pad(sums if count == len(labels) else sums.index_select(1, last), (1, 0))

    def figure(weights: Weights) -> Figures:
        weights = weights.index_select(1, order)
        images, errors = upto(weights), upto(weights * wrong)
        own = errors.diff(dim=1)
        share = wrong if count == len(labels) else own / images.diff(dim=1).clamp(min=1)
        inside = harmonic.index_select(0, images.long().flatten()).view_as(images).diff(dim=1)
        return ((errors[:, :-1] - images[:, :-1] * share) * inside + own).sum(dim=1) / len(labels)

    return figure
