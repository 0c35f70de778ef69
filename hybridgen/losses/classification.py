"""Cross-entropies on true labels, on pseudo-labels and on guesses."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from hybridgen.types import single


def cross_entropy(
    logits: Float[Tensor, "labelled classes"], labels: Int64[Tensor, " labelled"], *, over: int | None = None
) -> Float[Tensor, ""]:
    """Cross-entropy of labelled images, summed and divided by `over`: their number unless given.

    Mean Teacher divides by the whole mini-batch, labelled and unlabelled together (Tarvainen and Valpola 2017).
    """
    return F.cross_entropy(single(logits), labels, reduction="sum") / (over or len(labels))


def confident(
    logits: Float[Tensor, "batch classes"], threshold: float
) -> tuple[Int64[Tensor, " batch"], Bool[Tensor, " batch"]]:
    """Most probable class, and whether its probability reaches `threshold` (>=). No gradient."""
    probability, label = single(logits.detach()).softmax(dim=-1).max(dim=-1)
    return label, probability >= threshold


def weighted_cross_entropy(
    logits: Float[Tensor, "batch classes"],
    labels: Int64[Tensor, " batch"],
    weights: Float[Tensor, " batch"] | Bool[Tensor, " batch"],
) -> Float[Tensor, ""]:
    """Cross-entropy of each image times its weight (a mask's is 0 or 1), averaged over *all* images. Gradient to
    `logits`, and none of images without a weight, whatever they would lose."""
    losses = F.cross_entropy(single(logits), labels, reduction="none")
    return torch.where(weights > 0, weights * losses, 0.0).mean()


def pseudo_label(
    weak: Float[Tensor, "batch classes"], strong: Float[Tensor, "batch classes"], *, threshold: float = 0.95
) -> Float[Tensor, ""]:
    """FixMatch's unsupervised loss (Sohn et al. 2020, equation 4; thesis equation 2.3).

    Cross-entropy of the strong view's logits with the weak view's hard label, zero where the weak view is less
    confident than `threshold`, averaged over *all* images. Gradient reaches `strong` only.
    """
    return weighted_cross_entropy(strong, *confident(weak, threshold))


def soft_cross_entropy(
    logits: Float[Tensor, "batch classes"], target: Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """Cross-entropy with class probabilities, batch mean; gradient to `logits` only."""
    return F.cross_entropy(single(logits), single(target.detach()))


def sharpen(probabilities: Float[Tensor, "batch classes"], temperature: float) -> Float[Tensor, "batch classes"]:
    """p^(1/T) / Σ p^(1/T) (Berthelot et al. 2019, equation 7): T below 1 lowers the entropy. No gradient."""
    return (single(probabilities.detach()).log() / temperature).softmax(dim=-1)


def smoothed(targets: Float[Tensor, "batch classes"], share: float) -> Float[Tensor, "batch classes"]:
    """Label smoothing (Szegedy et al. 2016): this share of the targets spread evenly over all classes."""
    return torch.lerp(targets, torch.full_like(targets, 1 / targets.shape[1]), share) if share else targets
