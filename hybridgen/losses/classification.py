"""Cross-entropies on true labels, on pseudo-labels and on guesses."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def cross_entropy(
    logits: Float[Tensor, "labelled classes"], labels: Int64[Tensor, " labelled"], *, over: int | None = None
) -> Float[Tensor, ""]:
    """Cross-entropy of labelled images, summed and divided by `over`: their number unless given.

    Mean Teacher divides by the whole mini-batch, labelled and unlabelled together (Tarvainen and Valpola 2017).
    """
    return F.cross_entropy(logits, labels, reduction="sum") / (over or len(labels))


def confident(
    logits: Float[Tensor, "batch classes"], threshold: float
) -> tuple[Int64[Tensor, " batch"], Bool[Tensor, " batch"]]:
    """Most probable class, and whether its probability reaches `threshold` (>=). No gradient."""
    probability, label = logits.detach().softmax(dim=-1).max(dim=-1)
    return label, probability >= threshold


def pseudo_label(
    weak: Float[Tensor, "batch classes"], strong: Float[Tensor, "batch classes"], *, threshold: float = 0.95
) -> Float[Tensor, ""]:
    """FixMatch's unsupervised loss (Sohn et al. 2020, equation 4; thesis equation 2.3).

    Cross-entropy of the strong view's logits with the weak view's hard label, zero where the weak view is less
    confident than `threshold`, averaged over *all* images. Gradient reaches `strong` only.
    """
    label, mask = confident(weak, threshold)
    losses = F.cross_entropy(strong, label, reduction="none")
    return torch.where(mask, losses, 0.0).mean()


def soft_cross_entropy(
    logits: Float[Tensor, "batch classes"], target: Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """Cross-entropy with class probabilities, batch mean; gradient to `logits` only."""
    return F.cross_entropy(logits, target.detach())


def sharpen(probabilities: Float[Tensor, "batch classes"], temperature: float) -> Float[Tensor, "batch classes"]:
    """p^(1/T) / Σ p^(1/T) (Berthelot et al. 2019, equation 7): T below 1 lowers the entropy. No gradient."""
    return (probabilities.detach().log() / temperature).softmax(dim=-1)


def smoothed(targets: Float[Tensor, "batch classes"], share: float) -> Float[Tensor, "batch classes"]:
    """Label smoothing (Szegedy et al. 2016): this share of the targets spread evenly over all classes."""
    return torch.lerp(targets, torch.full_like(targets, 1 / targets.shape[1]), share) if share else targets
