"""The words that every room of the house uses."""

from typing import NamedTuple

from jaxtyping import Float, Int64, UInt8
from torch import Tensor

Images = Float[Tensor, "batch 3 height width"]
"""RGB images in [0, 1]."""

RawImages = UInt8[Tensor, "batch 3 height width"]
"""RGB images in 0..255, as they lie in memory and travel to the device."""

Labels = Int64[Tensor, " batch"]
"""Class indices; -1 where the class is not known."""

Losses = dict[str, Float[Tensor, ""]]
"""Named, unweighted scalar losses, as an objective returns them."""


class Batch(NamedTuple):
    """What one training step sees. A *view* is one random augmentation of the same images."""

    labelled: tuple[Images, ...]
    """Views of the labelled images."""
    labels: Labels
    """Their classes."""
    unlabelled: tuple[Images, ...]
    """Views of the unlabelled images (FixMatch: weak, strong; Mean Teacher: weak, weak)."""


class InputError(ValueError):
    """Bad input. The message is one line: the field or file, what is wrong, what would be right.

    Commands and recipes print it to standard error and exit with code 2.
    """
