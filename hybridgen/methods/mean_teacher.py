"""Mean Teacher (Tarvainen and Valpola 2017; thesis 2.2.1.1) with two heads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hybridgen.losses.consistency import Reduction, mean_teacher
from hybridgen.methods.classifiers import USUAL, ClassifierSettings, classifier_plan
from hybridgen.settings import Decay, Weight, merged, settings
from hybridgen.training.context import Context
from hybridgen.training.ema import EMA
from hybridgen.training.objective import Guessed, Outcome, Task, Taught, sgd
from hybridgen.training.plan import Plan
from hybridgen.training.schedules import Clock, cosine
from hybridgen.types import Batch, Images, single


@settings
class Settings(ClassifierSettings):
    """How Mean Teacher trains. The defaults suit digits-m; cross-entropy on labelled images is summed over them and
    divided by the whole batch."""

    rate = 0.2
    weight_supervised = 4.0
    teacher_decay: Decay = 0.97
    """EMA decay of the teacher, after its linear start."""
    weight_consistency: Weight = 100.0
    """λ_cons, of the student's distance from the teacher."""
    reduction: Reduction = "mean"
    """Of that distance over classes; λ_cons of the paper's code is of the mean."""
    weight_logit_distance: Weight = 0.01
    """λ_logitdist: ties the two heads."""


class MeanTeacher(nn.Module):
    """Losses `supervised`, `consistency` and `logit_distance`.

    `classifier(images)` gives the logits of two heads, predictions and consistency. The student sees the first weak
    views of the labelled and unlabelled images in one forward, the teacher the second ones. Batches carry two views of
    the labelled and of the unlabelled images. It taught with the first views, and what the student predicted for them.

    The teacher runs in training mode with batch-norm statistics of its own and never receives gradient. After each
    step of the optimizer it is to `follow` the student. Raises InputError for a decay outside [0, 1).
    """

    def __init__(self, classifier: nn.Module, *, teacher_decay: float, reduction: Reduction) -> None:
        super().__init__()
        self.classifier, self.reduction = classifier, reduction
        self.teacher = EMA(classifier, teacher_decay, buffers="own")

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        (labelled, labelled_again), (unlabelled, unlabelled_again) = batch.labelled, batch.unlabelled
        images = torch.cat([labelled, unlabelled])
        predictions, consistency = self.classifier(images)
        with torch.no_grad():
            taught, _ = self.teacher(torch.cat([labelled_again, unlabelled_again]))
        return Outcome(
            mean_teacher(predictions, consistency, taught, batch.labels, reduction=self.reduction),
            taught=lambda: Taught(images, single(predictions.detach()).softmax(dim=1), batch.labels),
            guessed=Guessed(taught[len(labelled) :].argmax(dim=1)),
        )

    def follow(self) -> None:
        """The teacher moves towards the student."""
        self.teacher.update(self.classifier)


def first_head(network: nn.Module, images: Images) -> Float[Tensor, "batch classes"]:
    """The logits by which Mean Teacher predicts."""
    return network(images)[0]


def plan(settings: Settings, context: Context, seed: int, *, classifier: nn.Module | None = None) -> Plan:
    """Mean Teacher on this split from this seed; of a classifier of two heads that is there already, if one is
    given."""
    labelled, unlabelled = context.batch_sizes(settings.labelled_batch, settings.unlabelled_batch, USUAL)
    stream = context.stream(
        seed,
        labelled=labelled,
        labelled_views=(context.weak(),) * 2,
        unlabelled=unlabelled,
        unlabelled_views=(context.weak(),) * 2,
    )
    torch.manual_seed(seed)
    classifier = classifier or context.classifier(settings.network, heads=2, momentum=settings.momentum)
    objective = MeanTeacher(classifier, teacher_decay=settings.teacher_decay, reduction=settings.reduction)

    def after_step(folder: Path) -> dict[str, float]:
        objective.follow()
        return {}

    task = Task(
        objective,
        {
            "supervised": settings.weight_supervised,
            "consistency": settings.weight_consistency,
            "logit_distance": settings.weight_logit_distance,
        },
        sgd(objective, decay=settings.weight_decay),
        cosine(settings.rate, settings.rate_epochs or settings.epochs),
    )
    return classifier_plan(settings, context, stream, classifier, task, classify=first_head, after_step=after_step)


PAPER: dict[str, Any] = dict(
    precision="fp32", validation=0, record_every=100, evaluate_every=2550, save_every=2550,
    method=dict(
        epochs=300, rate_epochs=350, labelled_batch=60, unlabelled_batch=196, ema_decay=0.999, teacher_decay=0.97,
        network="leaky-wrn-28-2", momentum=0.1, weight_decay=5e-4, weight_supervised=1.0, weight_consistency=300.0,
        weight_logit_distance=0.01,
    ),
)  # fmt: skip
PRESETS: dict[str, Mapping[str, Any]] = {
    f"paper-{data}-{labels}": merged(PAPER, dict(data=data, labels=labels, method=dict(rate=rate)))
    for data, rate, several in (("cifar10", 0.1, (100, 250, 500)), ("svhn", 0.2, (60, 100)))
    for labels in several
}
"""Thesis A.1.2.3."""
WINDOW = (50, 150)
"""Epochs in which SciMix's hybrids teach (A.1.2.3)."""
