"""How well a classifier does on images that it was not trained on."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hybridgen.data.datasets import Part
from hybridgen.data.streams import batches
from hybridgen.files import written_aside
from hybridgen.training.context import Context
from hybridgen.types import Images, InputError

Classify = Callable[[nn.Module, Images], Float[Tensor, "batch classes"]]
"""From network and images to logits."""


PREDICTIONS = "predictions.npz"
"""Of the test images, in a run's folder."""

Measure = Callable[[Float[Tensor, "members images classes"], Int64[Tensor, " images"]], dict[str, float]]
"""From the logits of an ensemble's members, of all images in their order, and the images' classes to named figures."""


@torch.no_grad()
def logits_of(
    classify: Callable[[Images], Float[Tensor, "*members batch classes"]],
    part: Part,
    indices: Sequence[int],
    accelerator: Accelerator,
    *,
    batch_size: int = 512,
) -> tuple[Float[Tensor, "*members images classes"], Int64[Tensor, " images"]]:
    """Logits and classes of all these images, in their order, on the CPU of every process. Processes share the work.
    InputError for no image."""
    indices = list(indices)
    if not indices:
        raise InputError("indices: of no image; there are no logits of none")
    mine = indices[accelerator.process_index :: accelerator.num_processes]
    # The last image once more, where others have one more than this process
    mine += indices[-1:] * (-(-len(indices) // accelerator.num_processes) - len(mine))
    logits, labels = zip(
        *((classify(images).movedim(-2, 0), labels) for images, labels in batches(part, mine, batch_size,
                                                                                  accelerator.device)),
        strict=True,
    )  # fmt: skip
    gathered = (accelerator.gather(torch.cat(each).contiguous()) for each in (logits, labels))
    # Of all processes one after the other: back into the order of the images
    logits, labels = (
        each.unflatten(0, (accelerator.num_processes, -1)).transpose(0, 1).flatten(0, 1)[: len(indices)].cpu()
        for each in gathered
    )
    return logits.movedim(0, -2), labels


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


def save_predictions(
    path: Path, classify: Callable[[Images], Float[Tensor, "batch classes"]], context: Context
) -> None:
    """Write the logits of all test images of known class, as `evaluation.predictions.read_predictions` reads them; no
    file where there is none."""
    dataset = context.dataset
    known = (dataset.test.labels >= 0).nonzero().flatten().cpu()
    if not len(known):
        return
    logits, labels = logits_of(classify, dataset.test, known.tolist(), context.accelerator)
    if context.accelerator.is_main_process:
        with written_aside(path) as aside, aside.open("wb") as file:
            np.savez(
                file,
                logits=logits.float().numpy(),
                labels=labels.numpy(),
                classes=np.array(dataset.classes),
                indices=known.numpy(),
                fingerprint=dataset.fingerprint,
                part="test",
                split_hash=context.split.hash,
            )
