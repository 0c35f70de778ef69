"""The perceptual losses of AdaIN (Huang and Belongie 2017, equations 12 and 13)."""

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hybridgen.types import single


def content(
    output: Float[Tensor, "batch channels rows columns"], target: Float[Tensor, "batch channels rows columns"]
) -> Float[Tensor, ""]:
    """L_c: mean squared difference of the output's features from AdaIN's target. Gradient to `output` only.

    The paper writes a norm; the mean of squares is what its authors' code takes.
    """
    return F.mse_loss(single(output), single(target.detach()))


def style(
    output: Sequence[Float[Tensor, "batch _moments"]], wanted: Sequence[Float[Tensor, "batch _moments"]]
) -> Float[Tensor, ""]:
    """L_s: over layers, the sum of the squared differences of means and of deviations. Gradient to `output` only.

    `_moments` are the means of a layer's channels, then their deviations; the mean is taken over batch and channels
    (as with `content`).
    """
    layers = (2 * F.mse_loss(single(o), single(w.detach())) for o, w in zip(output, wanted, strict=True))
    return reduce(torch.add, layers)
