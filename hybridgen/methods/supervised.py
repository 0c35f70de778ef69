"""Training on labelled images alone (thesis 2.5.4, where L_S is a cross-entropy)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hybridgen.losses.classification import cross_entropy
from hybridgen.methods.classifiers import USUAL, ClassifierSettings, classifier_plan
from hybridgen.settings import settings
from hybridgen.training.context import Context
from hybridgen.training.objective import Outcome, Task, Taught, sgd
from hybridgen.training.plan import Plan
from hybridgen.training.schedules import Clock, cosine
from hybridgen.types import Batch, single


@settings
class Settings(ClassifierSettings):
    """How a classifier trains on labels alone. The defaults suit digits-m."""

    rate = 0.06


class Supervised(nn.Module):
    """Loss `supervised`, on the labelled images alone.

    Batches carry one view of the labelled and of the unlabelled images, which of a fully labelled set are its images
    again. It taught with the labelled ones; whoever asks gets the unlabelled ones too, with what the classifier
    predicts for them in a forward of their own, without gradient.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        (labelled,), (unlabelled,) = batch.labelled, batch.unlabelled
        logits = self.classifier(labelled)

        def taught() -> Taught:
            with torch.no_grad():
                others = self.classifier(unlabelled)
            targets = single(torch.cat([logits.detach(), others])).softmax(dim=1)
            return Taught(torch.cat([labelled, unlabelled]), targets, batch.labels)

        return Outcome({"supervised": cross_entropy(logits, batch.labels)}, taught=taught)


def plan(settings: Settings, context: Context, seed: int, *, classifier: nn.Module | None = None) -> Plan:
    """Training on the labels of this split from this seed; of a classifier that is there already, if one is given."""
    labelled, unlabelled = context.batch_sizes(settings.labelled_batch, settings.unlabelled_batch, USUAL)
    stream = context.stream(
        seed,
        labelled=labelled,
        labelled_views=(context.weak(),),
        unlabelled=unlabelled,
        unlabelled_views=(context.weak(),),
    )
    torch.manual_seed(seed)
    classifier = classifier or context.classifier(settings.network, momentum=settings.momentum)
    objective = Supervised(classifier)
    task = Task(
        objective,
        {"supervised": settings.weight_supervised},
        sgd(objective, decay=settings.weight_decay),
        cosine(settings.rate, settings.rate_epochs or settings.epochs),
    )
    return classifier_plan(settings, context, stream, classifier, task)


PRESETS: dict[str, Mapping[str, Any]] = {
    f"paper-cub-{size}": dict(
        data="folder:data/CUB_200", image_size=size, labels=3000, precision="fp32", validation=0, record_every=15,
        evaluate_every=150, save_every=150,
        method=dict(
            epochs=300, rate=0.1, rate_epochs=350, labelled_batch=60, unlabelled_batch=196, ema_decay=0.999,
            network="leaky-wrn-28-2", momentum=0.1, weight_decay=5e-4,
        ),
    )
    for size in (64, 96)
}  # fmt: skip
"""Thesis 2.5.4: CUB-200 (2010), all of its 3,000 training images. It gives no hyper-parameters; these are Mean
Teacher's with SciMix (A.1.2.3)."""
WINDOW = (50, 150)
"""Epochs in which SciMix's hybrids teach: Mean Teacher's."""
