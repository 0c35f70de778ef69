"""Non-saturating adversarial losses on a discriminator's logits (thesis equation 2.8; Goodfellow et al. 2014)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hybridgen.types import single


def fool(logits: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """The generator's loss: -log D(x) of its own images."""
    return F.softplus(-single(logits)).mean()


def detect_real(logits: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """The discriminator's loss on real images: -log D(x)."""
    return F.softplus(-single(logits)).mean()


def detect_fake(logits: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """The discriminator's loss on generated images: -log(1 - D(x))."""
    return F.softplus(single(logits)).mean()


def gradient_penalty(
    logits: Float[Tensor, " batch"], images: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, ""]:
    """R1: half the squared norm of the logits' gradient at real images, batch mean (Mescheder et al. 2018).

    `images` require gradient and `logits` were computed from them, in float32 or better: squares of small numbers are
    of no use in reduced precision. Differentiable in the discriminator.
    """
    (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return 0.5 * slope.square().flatten(1).sum(dim=1).mean()
