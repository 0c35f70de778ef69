"""What networks of several answers have in common: their members, and the ensemble that these are."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hybridgen.types import single

MemberLogits = Float[Tensor, "members batch classes"]
"""Of each of the subnetworks."""

Ensemble = Literal["logits", "probabilities"]
"""What of the members is averaged: logits, as MixMo's code does, or probabilities."""


def ensembled(members: MemberLogits, of: Ensemble) -> Float[Tensor, "batch classes"]:
    """Logits of the ensemble: the mean of its members' logits, or the logarithm of the mean of their probabilities."""
    if of == "logits":
        return members.mean(dim=0)
    logarithms = single(members).log_softmax(dim=2)
    return logarithms.logsumexp(dim=0) - torch.tensor(len(members), dtype=logarithms.dtype).log()
