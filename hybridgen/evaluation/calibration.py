"""Whether predictions are as sure as they are right: expected calibration error, temperature, calibrated likelihood."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from hybridgen.evaluation.classification import Classes, Predicted, check_classes, log_probabilities, nll
from hybridgen.types import InputError

BINS = 15
"""Of confidence (thesis A.1.3.2)."""

TEMPERATURES = (1e-3, 1e3)
"""Between these the best one is looked for."""


class Confidence(NamedTuple):
    """How sure predictions are, and whether they are right."""

    bins: Int64[Tensor, " images"]
    """Of `count`, each's place: bins of the same width, ((k - 1)/count, k/count]. A confidence of 1 is in the last."""
    confidence: Float64[Tensor, " images"]
    """The largest probability."""
    right: Bool[Tensor, " images"]


def binned(logits: Predicted, labels: Classes, *, bins: int = BINS) -> Confidence:
    """Each image's bin. InputError for fewer bins than one."""
    check_classes(logits, labels)
    if bins < 1:
        raise InputError(f"bins: {bins} is below 1")
    confidence, predicted = log_probabilities(logits).exp().max(dim=1)
    edges = torch.arange(1, bins, dtype=torch.float64, device=logits.device) / bins
    return Confidence(torch.bucketize(confidence, edges), confidence, predicted == labels)  # of an edge, the bin below


def calibration_error(logits: Predicted, labels: Classes, *, bins: int = BINS) -> float:
    """Expected calibration error (Naeini et al. 2015; Guo et al. 2017), in [0, 1]: over the bins of confidence, the
    mean difference between confidence and accuracy, by their numbers of images. InputError for fewer bins than one."""
    place, confidence, right = binned(logits, labels, bins=bins)
    of_bins = torch.zeros(bins, dtype=torch.float64, device=logits.device)
    return of_bins.index_add(0, place, confidence - right.double()).abs().sum().item() / len(labels)


def best_temperature(logits: Predicted, labels: Classes) -> float:
    """The temperature T by which softmax(logits / T) has the highest likelihood (Guo et al. 2017), within
    `TEMPERATURES`.

    In 1/T the likelihood is concave: its slope's zero is found by halving.
    """
    check_classes(logits, labels)
    return _best_temperatures(log_probabilities(logits), labels, 1).item()


def _best_temperatures(logarithms: Predicted, labels: Classes, parts: int) -> Float64[Tensor, " parts"]:
    """Of so many parts of the images, which take turns, all at once."""
    part = torch.arange(len(labels), device=labels.device) % parts
    known = logarithms.gather(1, labels.unsqueeze(1)).squeeze(1)
    low, high = logarithms.new_tensor(TEMPERATURES).log().unsqueeze(1).expand(2, parts)
    for _ in range(50):
        middle = (low + high) / 2
        inverse = middle.neg().exp()[part].unsqueeze(1)
        surplus = torch.linalg.vecdot(logarithms, (logarithms * inverse).softmax(dim=1)) - known
        too_sure = surplus.new_zeros(parts).index_add(0, part, surplus) > 0
        low, high = torch.where(too_sure, middle, low), torch.where(too_sure, high, middle)
    return ((low + high) / 2).exp()


def calibrated(logits: Predicted, labels: Classes) -> Float64[Tensor, "images classes"]:
    """Logits of both halves of the images, each at the temperature that is best for the other one (Ashukha et al. 2020;
    thesis 3.3.4). Every other image is of the first half. InputError for one image."""
    check_classes(logits, labels)
    if len(labels) < 2:
        raise InputError(f"predictions: of {len(labels)} images; two halves are needed to calibrate")
    logarithms = log_probabilities(logits)
    first, second = _best_temperatures(logarithms, labels, 2)
    logarithms[::2] /= second
    logarithms[1::2] /= first
    return logarithms


def calibrated_nll(logits: Predicted, labels: Classes) -> float:
    """NLL_c, the likelihood of `calibrated` logits. InputError for one image."""
    return nll(calibrated(logits, labels), labels)
