"""How far a reconstruction is from its image."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Distance = Literal["norm", "squared"]
"""Of one sample: ‖·‖₂ as the thesis writes it, or its square."""


def distance(
    first: Float[Tensor, "batch *shape"], second: Float[Tensor, "batch *shape"], kind: Distance = "norm"
) -> Float[Tensor, " batch"]:
    """Euclidean distance of each pair of samples, all dimensions but the batch taken together."""
    norm = torch.linalg.vector_norm((first - second).flatten(1), dim=1)
    return norm if kind == "norm" else norm.square()


def reconstruction(
    output: Float[Tensor, "batch 3 height width"],
    target: Float[Tensor, "batch 3 height width"],
    *,
    kind: Distance = "norm",
) -> Float[Tensor, ""]:
    """L_rec of thesis equation 2.8 on standardised images: per-sample distance, mean over the batch."""
    return distance(output, target, kind).mean()
