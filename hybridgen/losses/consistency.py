"""Losses that tie predictions of the same image together."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from hybridgen.losses.classification import cross_entropy
from hybridgen.types import Losses, single

Divergence = Literal["kl", "cross-entropy"]
"""Of a prediction from an earlier one: they differ by the earlier one's entropy, which has no gradient."""

Reduction = Literal["mean", "sum"]
"""Over classes: Tarvainen and Valpola's code takes the mean; 'sum' is larger by the number of classes."""


def mean_squared(
    prediction: Float[Tensor, "batch classes"],
    target: Float[Tensor, "batch classes"],
    *,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""]:
    """Squared distance of two vectors of class probabilities, averaged over the batch; gradient to `prediction`."""
    squared = F.mse_loss(single(prediction), single(target.detach()), reduction="none")
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
    return mean_squared(single(student).softmax(dim=-1), single(teacher).softmax(dim=-1), reduction=reduction)


def historical_consistency(
    prediction: Float[Tensor, "batch classes"],
    then: Float[Tensor, "batch classes"],
    *,
    divergence: Divergence = "kl",
) -> Float[Tensor, ""]:
    """KL(then ‖ prediction) of class probabilities, from logits, or their cross-entropy; batch mean (RecursiveMix,
    equation 5). Rows in which `then` is not finite count as zero. Gradient to `prediction` only."""
    prediction = single(prediction)
    then = then.detach().to(prediction.dtype)
    whole = then.isfinite().all(dim=1)
    log_then = torch.where(whole.unsqueeze(1), then, 0.0).log_softmax(dim=1)
    surprise = -prediction.log_softmax(dim=1)
    if divergence == "kl":
        surprise = surprise + log_then
    return torch.where(whole, (log_then.exp() * surprise).sum(dim=1), 0.0).mean()


def logit_distance(first: Float[Tensor, "batch classes"], second: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Mean squared distance between the logits of two heads; gradient to both (thesis A.1.2.2)."""
    return F.mse_loss(single(first), single(second))


def mean_teacher(
    predictions: Float[Tensor, "batch classes"],
    consistency: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    labels: Int64[Tensor, " labelled"],
    *,
    reduction: Reduction = "mean",
) -> Losses:
    """Mean Teacher's three losses from the logits of a mini-batch, whose first images have `labels`.

    - supervised: cross-entropy of the student's predictions, divided by the whole mini-batch
    - consistency: between the student's consistency head and the teacher's predictions
    - logit_distance: between the student's two heads

    Source: Tarvainen and Valpola's code; thesis 2.2.1.1 and A.1.2.2. Gradient reaches the student and never the
    teacher.
    """
    return {
        "supervised": cross_entropy(predictions[: len(labels)], labels, over=len(predictions)),
        "consistency": teacher_consistency(consistency, teacher, reduction=reduction),
        "logit_distance": logit_distance(predictions, consistency),
    }


def jensen_shannon(
    clean: Float[Tensor, "batch classes"],
    first: Float[Tensor, "batch classes"],
    second: Float[Tensor, "batch classes"],
) -> Float[Tensor, ""]:
    """Jensen-Shannon divergence of three predictions for the same images, from logits: the mean of their KL
    divergences from their mixture, batch mean (AugMix, Hendrycks et al. 2020, equation 3). Gradient to all three.

    The mixture's probabilities are clamped to [1e-7, 1], as in the paper's code.
    """
    logs = single(torch.stack([clean, first, second])).log_softmax(dim=-1)
    mixture = logs.exp().mean(dim=0).clamp(1e-7, 1).log()
    return (logs.exp() * (logs - mixture)).sum(dim=-1).mean()
