"""What ties a hybrid to its parents in semantic and in non-semantic space (thesis 2.4.1, equations 2.10 to 2.12).

Gradient reaches the hybrid's side and never the parent's. The hybrid's projections are to come from a frozen
criterion (`networks.frozen`), so that only the hybridization learns.
"""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hybridgen.losses.reconstruction import Distance, distance
from hybridgen.types import single

SemanticDistance = Literal["norm", "squared", "cross-entropy"]
"""Between logits: ‖·‖₂ (the thesis) or its square; or cross-entropy between class probabilities."""


def semantic_attraction(
    hybrid: Float[Tensor, "batch classes"],
    parent: Float[Tensor, "batch classes"],
    *,
    kind: SemanticDistance = "norm",
) -> Float[Tensor, ""]:
    """L+_hyb,class (2.11): the hybrid's class logits come close to those of its semantic parent. Batch mean."""
    parent = parent.detach()
    if kind == "cross-entropy":
        return F.cross_entropy(single(hybrid), single(parent).softmax(dim=-1))
    return distance(hybrid, parent, kind).mean()


def semantic_repulsion(
    hybrid: Float[Tensor, "batch classes"],
    parent: Float[Tensor, "batch classes"],
    *,
    kind: SemanticDistance = "norm",
) -> Float[Tensor, ""]:
    """L-_hyb,class: the hybrid's class logits move away from those of its non-semantic parent. Batch mean.

    For 'cross-entropy' it is -log(1 - p·q), with p and q the class probabilities: minus the log-probability that the
    two disagree. Cross-entropy itself, negated, would have no lower bound.
    """
    parent = parent.detach()
    if kind == "cross-entropy":
        agreement = (single(hybrid).softmax(dim=-1) * single(parent).softmax(dim=-1)).sum(dim=-1)
        return -(1 - agreement).clamp_min(1e-6).log().mean()
    return -distance(hybrid, parent, kind).mean()


def nonsemantic_attraction(
    hybrid: Float[Tensor, "batch *shape"], parent: Float[Tensor, "batch *shape"], *, kind: Distance = "norm"
) -> Float[Tensor, ""]:
    """L+_hyb,cont (2.12): the hybrid's z_r comes close to that of its non-semantic parent. Batch mean."""
    return distance(hybrid, parent.detach(), kind).mean()


def nonsemantic_repulsion(
    hybrid: Float[Tensor, "batch *shape"], parent: Float[Tensor, "batch *shape"], *, kind: Distance = "norm"
) -> Float[Tensor, ""]:
    """L-_hyb,cont: the hybrid's z_r moves away from that of its semantic parent. Batch mean."""
    return -distance(hybrid, parent.detach(), kind).mean()
