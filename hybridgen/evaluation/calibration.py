"""Whether predictions are as sure as they are right: expected calibration error, temperature, calibrated likelihood."""

import torch

from hybridgen.evaluation.classification import Classes, Predicted, check_classes, log_probabilities, nll
from hybridgen.types import InputError

BINS = 15
"""Of confidence (thesis A.1.3.2)."""

TEMPERATURES = (1e-3, 1e3)
"""Between these the best one is looked for."""


def calibration_error(logits: Predicted, labels: Classes, *, bins: int = BINS) -> float:
    """Expected calibration error (Naeini et al. 2015; Guo et al. 2017), in [0, 1]: over bins of confidence of the same
    width, ((k - 1)/bins, k/bins], the mean difference between confidence and accuracy, by their numbers of images.

    A confidence of 1 lies in the last one. InputError for fewer bins than one.
    """
    check_classes(logits, labels)
    if bins < 1:
        raise InputError(f"bins: {bins} is below 1")
    confidence, predicted = log_probabilities(logits).exp().max(dim=1)
    edges = torch.arange(1, bins, dtype=torch.float64, device=logits.device) / bins
    place = torch.bucketize(confidence, edges)  # of an edge, the bin below
    surplus = confidence - (predicted == labels).double()
    of_bins = torch.zeros(bins, dtype=torch.float64, device=logits.device).index_add(0, place, surplus)
    return of_bins.abs().sum().item() / len(labels)


def best_temperature(logits: Predicted, labels: Classes) -> float:
    """The temperature T by which softmax(logits / T) has the highest likelihood (Guo et al. 2017), within
    `TEMPERATURES`.

    In 1/T the likelihood is concave: its slope's zero is found by halving.
    """
    check_classes(logits, labels)
    logarithms = log_probabilities(logits)
    known = logarithms.gather(1, labels.unsqueeze(1)).mean()
    low, high = (torch.tensor(bound, dtype=torch.float64).log() for bound in TEMPERATURES)
    for _ in range(60):
        middle = (low + high) / 2
        expected = (logarithms * (logarithms / middle.exp()).softmax(dim=1)).sum(dim=1).mean()
        if expected > known:  # surer than right
            low = middle
        else:
            high = middle
    return ((low + high) / 2).exp().item()


def calibrated_nll(logits: Predicted, labels: Classes) -> float:
    """NLL_c (Ashukha et al. 2020; thesis 3.3.4): of both halves of the images, each at the temperature that is best for
    the other one, the mean. Every other image is of the first half. InputError for one image."""
    check_classes(logits, labels)
    if len(labels) < 2:
        raise InputError(f"predictions: of {len(labels)} images; two halves are needed to calibrate")
    total = 0.0
    for half, other in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        logarithms = log_probabilities(logits[half])
        temperature = best_temperature(logits[other], labels[other])
        total += nll(logarithms / temperature, labels[half]) * len(labels[half])
    return total / len(labels)
