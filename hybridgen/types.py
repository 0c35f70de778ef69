"""The words that every room of the house uses."""

from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from hybridgen.errors import InputError as InputError

Images = Float[Tensor, "batch 3 height width"]
"""RGB images in [0, 1]."""

RawImages = UInt8[Tensor, "batch 3 height width"]
"""RGB images in 0..255, as they lie in memory and travel to the device."""

Labels = Int64[Tensor, " batch"]
"""Class indices; -1 where the class is not known."""

Network = TypeVar("Network", bound=nn.Module)
"""Of a function that gives back the kind of network that it takes."""

Losses = dict[str, Float[Tensor, ""]]
"""Named, unweighted scalar losses, as an objective returns them."""


def exact(values: Tensor) -> Tensor:
    """In float64; in float32 on MPS, which has no other."""
    return values.to(torch.float32 if values.device.type == "mps" else torch.float64)


def single(values: Tensor) -> Tensor:
    """In float32, or in float64 as they are: reduced precision ends here, before a softmax, a norm or a loss."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def full_precision(device: torch.device) -> torch.autocast:
    """Context in which nothing is computed in reduced precision, whatever the surroundings."""
    return torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)


class Batch(NamedTuple):
    """What one training step sees. A *view* is one random augmentation of the same images."""

    labelled: tuple[Images, ...]
    """Views of the labelled images."""
    labels: Labels
    """Their classes."""
    unlabelled: tuple[Images, ...]
    """Views of the unlabelled images (FixMatch: weak, strong; Mean Teacher: weak, weak; MixMo with CutMix on its
    inputs: one of a second batch of labelled ones)."""
    indices: Int64[Tensor, " unlabelled"] | None = None
    """Places of the unlabelled images in the training part (FlexMatch keeps a record of each, MixMo knows their
    classes), where someone knows."""
