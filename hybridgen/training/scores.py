"""How well a classifier does on images that it was not trained on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hybridgen.data.datasets import Part
from hybridgen.data.streams import batches
from hybridgen.files import written_aside
from hybridgen.training.bars import counted
from hybridgen.training.context import Context
from hybridgen.types import Images, InputError

Classify = Callable[[nn.Module, Images], Float[Tensor, "batch classes"]]
"""From network and images to logits."""


PREDICTIONS = "predictions.npz"
"""Of the test images, in a run's folder."""

Measure = Callable[[Float[Tensor, "members images classes"], Int64[Tensor, " images"]], dict[str, float]]
"""From the logits of an ensemble's members, of all images in their order, and the images' classes to named figures."""


class Scored(NamedTuple):
    """What is found of a network on images of known class."""

    figures: dict[str, float]
    logits: Float[Tensor, "images classes"] | None = None
    """By which it predicts each of them, of which the figures are; None where none was classified."""


def known(part: Part, indices: Sequence[int]) -> list[int]:
    """Those of these images whose class is known."""
    chosen = torch.as_tensor(indices, dtype=torch.int64)
    return chosen[part.labels[chosen].cpu() >= 0].tolist()


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
    chunks = counted(range(-(-len(mine) // batch_size)), "predicting", accelerator, delay=1)
    seen = zip(chunks, batches(part, mine, batch_size, accelerator.device), strict=True)
    logits, labels = zip(*((classify(images).movedim(-2, 0), labels) for _, (images, labels) in seen), strict=True)
    gathered = (accelerator.gather(torch.cat(each).contiguous()) for each in (logits, labels))
    # Of all processes one after the other: back into the order of the images
    logits, labels = (
        each.unflatten(0, (accelerator.num_processes, -1)).transpose(0, 1).flatten(0, 1)[: len(indices)].cpu()
        for each in gathered
    )
    return logits.movedim(0, -2), labels


def share_right(logits: Float[Tensor, "images classes"], labels: Int64[Tensor, " images"]) -> float:
    """Share of images whose largest logit is their class's, in [0, 1]."""
    return int((logits.argmax(dim=1) == labels).sum()) / len(labels)


def accuracy(
    classify: Callable[[Images], Float[Tensor, "batch classes"]],
    part: Part,
    indices: Sequence[int],
    accelerator: Accelerator,
    *,
    batch_size: int = 512,
) -> float:
    """`share_right` of those of these images whose class is known; nan for none. Processes share the work."""
    indices = known(part, indices)
    if not indices:
        return float("nan")
    return share_right(*logits_of(classify, part, indices, accelerator, batch_size=batch_size))


def save_predictions(path: Path, logits: Float[Tensor, "images classes"], context: Context) -> None:
    """Write the logits of all test images of known class, as `evaluation.predictions.read_predictions` reads them."""
    dataset, test = context.dataset, context.dataset.test
    if context.accelerator.is_main_process:
        with written_aside(path) as aside, aside.open("wb") as file:
            np.savez(
                file,
                logits=logits.float().numpy(),
                labels=test.labels[test.known].cpu().numpy(),
                classes=np.array(dataset.classes),
                indices=test.known.numpy(),
                fingerprint=dataset.fingerprint,
                part="test",
                split_hash=context.split.hash,
            )
