"""What the semi-supervised classifiers have in common: settings of their training, and a plan that averages them."""

from dataclasses import replace
from typing import Annotated, Any

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from hybridgen.settings import NUMBER, Count, Decay, Flat, Positive, Weight, settings
from hybridgen.training.context import Context
from hybridgen.training.ema import EMA
from hybridgen.training.objective import Task
from hybridgen.training.plan import Batches, Plan, by_accuracy
from hybridgen.training.schedules import Clock
from hybridgen.training.scores import Classify
from hybridgen.types import Images


@settings
class ClassifierSettings:
    """Abstract: how a classifier of labelled and unlabelled images trains."""

    network: Flat[str] = "leaky-wrn-10-1"
    """leaky-wrn-DEPTH-WIDTH (of FixMatch and the thesis), wrn-28-10, cifar-resnet18, preact-resnet18,
    pyramidnet200-240, ..., or one of timm's, with its pretrained weights if a tag names them (resnet18.a1_in1k)."""
    momentum: Annotated[float, Field(gt=0, le=1), NUMBER] | None = 0.05
    """Batch-norm's share of the newest batch in its running statistics; none: the network's own."""
    epochs: Flat[Positive] = 14
    """Passes over the unlabelled images."""
    rate: Flat[Positive]
    """Learning rate at the start."""
    rate_epochs: Flat[Positive | None] = None
    """Epochs in which a cosine rate would decrease fully (thesis); without, the method's own schedule."""
    weight_decay: Flat[Weight] = 5e-4
    """Weight decay."""
    clip: Flat[Positive | None] = None
    """Largest norm of the gradient."""
    labelled_batch: Flat[Count] = 32
    """Labelled images a step, all processes together."""
    unlabelled_batch: Flat[Count] = 96
    """Unlabelled images a step, all processes together."""
    ema_decay: Flat[Decay] = 0.99
    """Decay of the averaged weights that are evaluated."""
    weight_supervised: Weight = 1.0
    """Cross-entropy on labelled images."""


def predicted(network: nn.Module, images: Images) -> Float[Tensor, "batch classes"]:
    """The logits of a network of one head."""
    return network(images)


def classifier_plan(
    settings: ClassifierSettings,
    context: Context,
    stream: Batches,
    classifier: nn.Module,
    task: Task,
    *,
    classify: Classify = predicted,
    **more: Any,
) -> Plan:
    """The plan of one classifier that one task trains, and whose average is evaluated by its accuracy. `more` are other
    parts of the plan."""
    return Plan(
        context,
        stream,
        Clock.lasting(settings.epochs, stream.steps_per_epoch),
        {"classifier": replace(task, clip=settings.clip)},
        network=classifier,
        average=EMA(classifier, settings.ema_decay, linear_start=False, buffers="copy").eval(),
        classify=classify,
        score=by_accuracy(context, classify),
        **more,
    )
