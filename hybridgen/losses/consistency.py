"""Losses that tie predictions of the same image together."""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Reduction = Literal["mean", "sum"]
"""Over classes: Tarvainen and Valpola's code takes the mean; 'sum' is larger by the number of classes."""


def mean_squared(
    prediction: Float[Tensor, "batch classes"],
    target: Float[Tensor, "batch classes"],
    *,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""]:
    """Squared distance of two vectors of class probabilities, averaged over the batch; gradient to `prediction`."""
    squared = F.mse_loss(prediction, target.detach(), reduction="none")
    return (squared.mean(dim=-1) if reduction == "mean" else squared.sum(dim=-1)).mean()


def teacher_consistency(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    *,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""]:
    """Mean Teacher's consistency of class probabilities, from logits (thesis equation 2.1).

    Gradient reaches the student and never the teacher.
    """
    return mean_squared(student.softmax(dim=-1), teacher.softmax(dim=-1), reduction=reduction)


def logit_distance(first: Float[Tensor, "batch classes"], second: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Mean squared distance between the logits of two heads; gradient to both (thesis A.1.2.2)."""
    return F.mse_loss(first, second)
