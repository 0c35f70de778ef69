"""What one training run consists of."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import nan
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from hybridgen.data.datasets import Part
from hybridgen.training.context import Context
from hybridgen.training.ema import EMA
from hybridgen.training.objective import Task
from hybridgen.training.schedules import Clock, cycled
from hybridgen.training.scores import Classify, Scored, known, logits_of, share_right
from hybridgen.types import Batch


@runtime_checkable
class Batches(Protocol):
    """Where a plan's batches come from: a `Stream`, or what chooses among several."""

    def from_step(self, step: int) -> Iterator[Batch]:
        """Batches of the steps `step`, `step` + 1, … without end."""
        ...

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def images_per_step(self) -> int:
        """Of all processes together, an image counted once whatever its views."""
        ...


Score = Callable[[nn.Module, Part, Sequence[int]], Scored]
"""From a network in evaluation mode and images of a part, by their indices, to named figures, and the logits that these
are of. Images of unknown class count in none."""


@dataclass
class Plan:
    """What one training run consists of; `train` carries it out.

    What is evaluated, selected and deployed is the average of the network, or without one the network itself.
    """

    context: Context
    stream: Batches
    clock: Clock
    tasks: dict[str, Task]
    """By name, in the order of a step; each with the objective that is to be trained as it was made."""
    network: nn.Module
    """What the tasks train."""
    score: Score
    """Of a validation and of a test part."""
    average: EMA | None = None
    classify: Classify | None = None
    """Of a classifier: from network and images to the logits by which it predicts. Those of the test images, of the
    score, are kept."""
    select: str | None = "accuracy"
    """The score by which the best network on the validation images is kept; None keeps none."""
    after_step: Callable[[Path], Mapping[str, float]] = lambda folder: {}
    """What follows the update of the average in every step, given the run's folder; gives what is to be recorded."""
    pictures: Callable[[], Mapping[str, Float[Tensor, "3 height width"]]] = dict
    """What is drawn at every evaluation."""
    modules: dict[str, nn.Module] = field(default_factory=dict)
    """What checkpoints hold beside objectives, average and selected network."""
    local: dict[str, nn.Module] = field(default_factory=dict)
    """Parts of these whose state is each process's own."""
    finish: Callable[[Path, nn.Module], None] = lambda folder, chosen: None
    """Writes the artefact into the run's folder, before the result; given the network that was selected, else the last
    that was evaluated."""

    @property
    def judged(self) -> nn.Module:
        """The network that is evaluated."""
        return self.network if self.average is None else self.average.network


def by_accuracy(context: Context, classify: Classify) -> Score:
    """The score of classifiers: `accuracy`, in [0, 1]; nan where there is no image."""

    def score(network: nn.Module, part: Part, indices: Sequence[int]) -> Scored:
        if not (indices := known(part, indices)):
            return Scored({"accuracy": nan})
        logits, labels = logits_of(lambda images: classify(network, images), part, indices, context.accelerator)
        return Scored({"accuracy": share_right(logits, labels)}, logits)

    return score


def in_cycles(plan: Plan, cycles: int) -> Plan:
    """The plan so many times one after the other, with rates that start anew (thesis A.1.1). Weights go on."""
    tasks = {name: replace(task, rate=cycled(task.rate, cycles)) for name, task in plan.tasks.items()}
    return replace(plan, tasks=tasks, clock=replace(plan.clock, steps=cycles * plan.clock.steps))
