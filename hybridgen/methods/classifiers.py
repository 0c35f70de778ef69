"""What the semi-supervised classifiers have in common: settings of their training, a plan that averages them, and the
file that they leave, from which others start."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from hybridgen.data.sources import holds_photographs
from hybridgen.networks.classifiers import (
    FILE,
    Classifier,
    about_classifier,
    digest_of,
    load_classifier,
    save_classifier,
)
from hybridgen.settings import NUMBER, Count, Decay, Flat, Positive, Weight, settings
from hybridgen.training.context import Context
from hybridgen.training.ema import EMA
from hybridgen.training.objective import Task
from hybridgen.training.plan import Batches, Plan, by_accuracy
from hybridgen.training.scores import Classify
from hybridgen.types import Images, InputError


@settings
class ClassifierSettings:
    """Abstract: how a classifier of labelled and unlabelled images trains."""

    network: Flat[str | None] = None
    """fast or fast-WIDTH-WIDTH-..., leaky-wrn-DEPTH-WIDTH (of FixMatch and the thesis), wrn-28-10, cifar-resnet18, ...,
    or one of timm's, with its pretrained weights if a tag names them (resnet18.a1_in1k); unless given fast, and
    leaky-wrn-10-1 for images of 16 pixels or fewer."""
    momentum: Annotated[float, Field(gt=0, le=1), NUMBER] | None = 0.05
    """Batch-norm's share of the newest batch in its running statistics; None: the network's own."""
    epochs: Flat[Positive | None] = None
    """Passes over the unlabelled images; unless given 14, of fewer than 20 steps several in the place of each."""
    rate: Flat[Positive]
    """Learning rate at the start."""
    rate_epochs: Flat[Positive | None] = None
    """Epochs in which a cosine rate would decrease fully (thesis); without, the method's own schedule."""
    weight_decay: Flat[Weight] = 5e-4
    """Weight decay."""
    clip: Flat[Positive | None] = None
    """Largest norm of the gradient."""
    labelled_batch: Flat[Count | None] = None
    """Labelled images a step, all processes together; unless given 32, or all where there are fewer."""
    unlabelled_batch: Flat[Count | None] = None
    """Unlabelled images a step, all processes together; unless given 96, or all where there are fewer."""
    ema_decay: Flat[Decay] = 0.99
    """Decay of the averaged weights that are evaluated."""
    weight_supervised: Weight = 1.0
    """Cross-entropy on labelled images."""


USUAL = (32, 96)
"""Labelled and unlabelled images a step, where there are as many."""

EPOCHS = 14
"""How many, unless given."""


def predicted(network: nn.Module, images: Images) -> Float[Tensor, "batch classes"]:
    """The logits of a network of one head."""
    return network(images)


def unrecorded(network: nn.Module, images: Images) -> Float[Tensor, "batch classes"]:
    """The network's logits; batch-norm's running statistics stay as they are. Gradient reaches the parameters."""
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    return functional_call(network, buffers, (images,))


def classifier_plan(
    settings: ClassifierSettings,
    context: Context,
    stream: Batches,
    classifier: nn.Module,
    task: Task,
    *,
    classify: Classify = predicted,
    average: EMA | None = None,
    usual: float = EPOCHS,
    **more: Any,
) -> Plan:
    """The plan of one classifier that one task trains, and whose average is evaluated by its accuracy: `average` if one
    is given, else a new one, which carries batch-norm statistics along. Leaves the selected average in the run's
    folder. `usual` are its epochs unless the settings have their own, `more` other parts of the plan."""

    def finish(folder: Path, chosen: nn.Module) -> None:
        assert isinstance(chosen, Classifier)
        if context.accelerator.is_main_process:
            save_classifier(
                chosen,
                folder / FILE,
                name=context.network(settings.network),
                classes=context.dataset.classes,
                image_size=context.dataset.image_size,
                whole=holds_photographs(context.dataset.test.images),
                split_hash=context.split.hash,
            )

    return Plan(
        context,
        stream,
        context.clock(settings.epochs, stream.steps_per_epoch, usual),
        {"classifier": replace(task, clip=settings.clip)},
        network=classifier,
        average=average or EMA(classifier, settings.ema_decay, linear_start=False, buffers="copy").eval(),
        classify=classify,
        score=by_accuracy(context, classify),
        finish=finish,
        **more,
    )


def finished_classifier(run: Path, network: str, context: Context) -> Classifier:
    """The classifier that a finished run left, on the CPU, for whoever starts from it on the same split.

    InputError, naming what differs and what would be right, for a folder without one, and for one of other classes,
    another image size, another network than `network`, or another split: its labels would leak.
    """
    dataset, split, path = context.dataset, context.split, run / FILE
    if not path.is_file():
        inside = ", ".join(sorted(str(each.parent) for each in run.glob(f"*/{FILE}")))
        there = f"; give one of {inside}" if inside else ""
        raise InputError(
            f"classifier: no finished run of fixmatch.py, mean_teacher.py or mixmatch.py in {run}, with a {FILE}{there}"
        )
    about = about_classifier(path)
    if about.classes != dataset.classes:
        theirs, ours = (f"{len(names)} ({', '.join(names)[:60]})" for names in (about.classes, dataset.classes))
        raise InputError(f"classifier: {run} has {theirs} classes, {dataset.name} {ours}; give a run on these data")
    if about.image_size != dataset.image_size:
        raise InputError(
            f"classifier: {run} is for images of {about.image_size}×{about.image_size}, these have "
            f"{dataset.image_size}×{dataset.image_size}; --image-size {about.image_size} makes them alike"
        )
    if (about.network, about.width) != (network, 1):
        theirs = about.network if about.width == 1 else f"{about.network} of width {about.width:g}"
        raise InputError(f"classifier: {run} has a {theirs}, the encoders are {network}; one --network for both")
    if about.split_hash != split.hash:
        raise InputError(
            f"classifier: {run} was trained on split {about.split_hash or 'unknown'}, this is {split.hash}: its labels "
            "would leak; give a run on this split, or that one's --labels, --validation and --split-seed, or --split"
        )
    classifier = load_classifier(path)[0]
    context.read["classifier"] = digest_of(classifier.state_dict())
    return classifier
