"""What networks of several answers have in common: their members, and the ensemble that these are; and how transformers
of several inputs tell these apart."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hybridgen.types import single

MemberLogits = Float[Tensor, "members batch classes"]
"""Of each of the subnetworks."""

Ensemble = Literal["logits", "probabilities"]
"""What of the members is averaged: logits, as MixMo's code does, or probabilities."""


Source = Literal["embedding", "encoding", "none"]
"""What tells the classifier blocks which input a token is of: a vector of each input's (equation 4.6), a linear layer
(4.5), or nothing."""

Place = Literal["late", "early"]
"""Where it is added: after the feature blocks, or before them, as tokens come from their patches."""

Encoders = Literal["one", "each", "equal"]
"""Patch embeddings: one for all inputs, as in MixViT; one for each, as in MIMO and MixMo; such that begin alike (table
A.18)."""

Inference = Literal["separate", "sum", "alternating", "single", "together"]
"""Of one image: as every input's, one after the other, stacked on the batch; as the sum of all inputs' tokens in one
pass; with tokens that are of inputs drawn at random, once for all images; as the first input's alone, which only its
last layer answers; or all inputs' tokens at once, one after the other (table 4.6)."""


def ensembled(members: MemberLogits, of: Ensemble) -> Float[Tensor, "batch classes"]:
    """Logits of the ensemble: the mean of its members' logits, or the logarithm of the mean of their probabilities."""
    if of == "logits":
        return members.mean(dim=0)
    logarithms = single(members).log_softmax(dim=2)
    return logarithms.logsumexp(dim=0) - torch.tensor(len(members), dtype=logarithms.dtype).log()
