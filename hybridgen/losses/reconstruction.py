"""How far a reconstruction is from its image."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hybridgen.types import single

Distance = Literal["norm", "squared"]
"""Of one sample: ‖·‖₂ as the thesis writes it, or its square."""

Reduction = Literal["mean", "sum"]
"""Over the dimensions of one sample: the mean, as in HybridNet's code, or the sum, as ‖·‖₂² is written."""


def distance(
    first: Float[Tensor, "batch *shape"], second: Float[Tensor, "batch *shape"], kind: Distance = "norm"
) -> Float[Tensor, " batch"]:
    """Euclidean distance of each pair of samples, all dimensions but the batch taken together."""
    norm = torch.linalg.vector_norm((single(first) - single(second)).flatten(1), dim=1)
    return norm if kind == "norm" else norm.square()


def reconstruction(
    output: Float[Tensor, "batch 3 height width"],
    target: Float[Tensor, "batch 3 height width"],
    *,
    kind: Distance = "norm",
) -> Float[Tensor, ""]:
    """L_rec of thesis equation 2.8 on standardised images: per-sample distance, mean over the batch."""
    return distance(output, target, kind).mean()


def squared_error(
    output: Float[Tensor, "batch *shape"], target: Float[Tensor, "batch *shape"], *, reduction: Reduction = "mean"
) -> Float[Tensor, ""]:
    """SAMOSA's L_rec on standardised images and Ω_rec on features: ‖output - target‖₂², mean over the batch.

    Source: thesis 2.3.3. Its weights (0.25; 0.1 to 0.5) come from HybridNet, whose code takes the mean over a sample's
    dimensions too. Gradient reaches both sides; who must not learn is detached by the caller.
    """
    output, target = single(output), single(target)
    if reduction == "mean":
        return F.mse_loss(output, target)
    return F.mse_loss(output, target, reduction="sum") / len(output)
