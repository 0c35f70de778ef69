"""Selective classification: what is wrong among the predictions of which a classifier is surest."""

from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from hybridgen.evaluation.classification import Classes, Predicted, check_classes, log_probabilities


class Ranked(NamedTuple):
    """Images by their confidence, the surest first; those that are equally sure are one rank."""

    rank: Int64[Tensor, " images"]
    wrong: Float64[Tensor, " images"]
    """1 where the prediction is wrong."""
    count: int
    """Of ranks."""


def ranked(logits: Predicted, labels: Classes) -> Ranked:
    """By the largest probability."""
    check_classes(logits, labels)
    confidence, predicted = log_probabilities(logits).max(dim=1)
    distinct, rank = (-confidence).unique(return_inverse=True)
    return Ranked(rank, (predicted != labels).double(), len(distinct))


def risk_coverage(logits: Predicted, labels: Classes) -> tuple[Float64[Tensor, " images"], Float64[Tensor, " images"]]:
    """Coverages 1/n, 2/n, ..., 1, and the share of errors among so many of the surest predictions (El-Yaniv and Wiener
    2010). Of those that are equally sure, the mean over their orders."""
    rank, wrong, count = ranked(logits, labels)
    images, errors = (
        torch.zeros(count, dtype=torch.float64).index_add(0, rank, of) for of in (torch.ones_like(wrong), wrong)
    )
    number = torch.arange(1, 1 + len(labels), dtype=torch.float64)
    return number / len(labels), (errors / images)[rank.sort().values].cumsum(0) / number


def aurc(logits: Predicted, labels: Classes) -> float:
    """Area under the risk-coverage curve (Geifman et al. 2019), the mean of its risks, in [0, 1]."""
    return risk_coverage(logits, labels)[1].mean().item()
