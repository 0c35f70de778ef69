"""How well a classifier does on images that it was not trained on."""

from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from hybridgen.data.datasets import Part
from hybridgen.data.streams import batches
from hybridgen.types import Images

Classify = Callable[[nn.Module, Images], Float[Tensor, "batch classes"]]
"""From network and images to logits."""


@torch.no_grad()
def accuracy(
    classify: Callable[[Images], Float[Tensor, "batch classes"]],
    part: Part,
    indices: Sequence[int],
    accelerator: Accelerator,
    *,
    batch_size: int = 512,
) -> float:
    """Share of images whose largest logit is their class's, in [0, 1]. Processes share the work; nan for no image."""
    mine = list(indices)[accelerator.process_index :: accelerator.num_processes]
    counts = torch.zeros(2, dtype=torch.int64, device=accelerator.device)
    for images, labels in batches(part, mine, batch_size, accelerator.device):
        counts[0] += (classify(images).argmax(dim=1) == labels).sum()
        counts[1] += len(labels)
    right, total = accelerator.reduce(counts, reduction="sum").tolist()
    return right / total if total else float("nan")
