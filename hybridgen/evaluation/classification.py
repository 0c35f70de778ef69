"""How well logits predict classes: accuracy, likelihood, Brier's score. In float64, whatever the logits are in."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from hybridgen.types import InputError

Predicted = Float[Tensor, "images classes"]
"""Logits."""

Classes = Int64[Tensor, " labelled"]
"""Of as many images."""

FLOOR = math.log(torch.finfo(torch.float64).tiny)
"""Logarithm of the smallest probability that is told from none, about -708."""


def log_probabilities(logits: Predicted) -> Float[Tensor, "images classes"]:
    """Logarithms of the softmax; a probability of nothing counts as the smallest that there is, so that no likelihood
    is infinite. InputError for no image, and for logits that are no numbers or infinite."""
    if not len(logits):
        raise InputError("predictions: of no image; one at least is needed")
    if logits.isnan().any() or (logits == torch.inf).any():
        raise InputError("predictions: nan or infinite; logits are numbers, and at least -inf for what is impossible")
    return logits.double().log_softmax(dim=1).clamp(min=FLOOR)


def check_classes(logits: Predicted, labels: Classes) -> None:
    """InputError for another number of labels than predictions, and for classes that these do not have."""
    if len(logits) != len(labels):
        raise InputError(f"predictions: of {len(logits)} images, but there are {len(labels)} labels")
    if len(labels) and not 0 <= labels.min() <= labels.max() < logits.shape[1]:
        raise InputError(f"predictions: of {logits.shape[1]} classes, but labels are in {labels.min()}..{labels.max()}")


def top_accuracy(logits: Predicted, labels: Classes, count: int = 1) -> float:
    """Share of images whose class is among the `count` of the largest logits, in [0, 1]; of equal logits the first."""
    check_classes(logits, labels)
    if count == 1:
        return (logits.argmax(dim=1) == labels).double().mean().item()
    best = logits.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return (best == labels.unsqueeze(1)).any(dim=1).double().mean().item()


def confusion_counts(logits: Predicted, labels: Classes) -> Int64[Tensor, "classes classes"]:
    """Of images: rows are their classes, columns what is predicted of them, of equal logits the first."""
    check_classes(logits, labels)
    count = logits.shape[1]
    return (labels * count + logits.argmax(dim=1)).bincount(minlength=count**2).view(count, count)


def nll(logits: Predicted, labels: Classes) -> float:
    """Negative log-likelihood: the mean of -log p of the class, 0 or more."""
    check_classes(logits, labels)
    return -log_probabilities(logits).gather(1, labels.unsqueeze(1)).mean().item()


def brier(logits: Predicted, labels: Classes) -> float:
    """Brier's score (1950), over all classes: the mean of Σ (p - y)², in [0, 2]."""
    check_classes(logits, labels)
    probabilities = log_probabilities(logits).exp()
    wanted = F.one_hot(labels, logits.shape[1])
    return (probabilities - wanted).square().sum(dim=1).mean().item()
