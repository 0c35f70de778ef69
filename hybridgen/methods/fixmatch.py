"""FixMatch (Sohn et al. 2020; thesis 2.2.1.2)."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from hybridgen.data.randaugment import strong
from hybridgen.losses.classification import confident, cross_entropy, pseudo_label
from hybridgen.methods.classifiers import ClassifierSettings, classifier_plan
from hybridgen.settings import Count, Share, Weight, merged, settings
from hybridgen.training.context import Context
from hybridgen.training.objective import Outcome, Task, Taught, sgd
from hybridgen.training.plan import Plan
from hybridgen.training.schedules import Clock, cosine, fixmatch_cosine
from hybridgen.types import Batch


@settings
class Settings(ClassifierSettings):
    """How FixMatch trains. The defaults suit digits-m."""

    rate = 0.06
    threshold: Share = 0.9
    """τ: confidence that a pseudo-label needs."""
    cutout: Count | None = None
    """Side of the square that strong augmentation cuts out; half the image's unless given."""
    weight_unsupervised: Weight = 1.0
    """λ_u, of the loss on pseudo-labels."""


class FixMatch(nn.Module):
    """Losses `supervised` and `unsupervised`.

    Labelled, weak and strong images go through the classifier in one forward, whose batch-norm statistics are those of
    all of them together. Pseudo-labels come from the weak views of that same forward, without gradient. Batches carry
    one view of the labelled images and two, weak and strong, of the unlabelled. It taught with the labelled and the
    weak images, and what was predicted for them.
    """

    def __init__(self, classifier: nn.Module, *, threshold: float) -> None:
        super().__init__()
        self.classifier, self.threshold = classifier, threshold

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        (labelled,), (weak, strong) = batch.labelled, batch.unlabelled
        logits = self.classifier(torch.cat([labelled, weak, strong]))
        of_labelled, of_weak, of_strong = logits.split([len(labelled), len(weak), len(strong)])
        losses = {
            "supervised": cross_entropy(of_labelled, batch.labels),
            "unsupervised": pseudo_label(of_weak, of_strong, threshold=self.threshold),
        }
        _, mask = confident(of_weak, self.threshold)
        seen = len(labelled) + len(weak)
        return Outcome(
            losses,
            {"confident": mask.float().mean()},
            taught=lambda: Taught(torch.cat([labelled, weak]), logits[:seen].detach().softmax(dim=1), batch.labels),
        )


def plan(settings: Settings, context: Context, seed: int, *, classifier: nn.Module | None = None) -> Plan:
    """FixMatch on this split from this seed; of a classifier that is there already, if one is given."""
    size, flip = context.dataset.image_size, context.dataset.flip
    strongly = partial(strong, flip=flip, shift=size // 8, cutout=settings.cutout or size // 2)
    stream = context.stream(
        seed,
        labelled=settings.labelled_batch,
        labelled_views=(context.weak(),),
        unlabelled=settings.unlabelled_batch,
        unlabelled_views=(context.weak(), strongly),
    )
    torch.manual_seed(seed)
    classifier = classifier or context.classifier(settings.network, momentum=settings.momentum)
    objective = FixMatch(classifier, threshold=settings.threshold)
    task = Task(
        objective,
        {"supervised": settings.weight_supervised, "unsupervised": settings.weight_unsupervised},
        sgd(objective, decay=settings.weight_decay, decay_all=False),
        cosine(settings.rate, settings.rate_epochs) if settings.rate_epochs else fixmatch_cosine(settings.rate),
    )
    return classifier_plan(settings, context, stream, classifier, task)


PAPER: dict[str, Any] = dict(
    validation=0, record_every=100, evaluate_every=2230, save_every=2230,
    method=dict(
        epochs=1000, rate_epochs=1050, labelled_batch=32, unlabelled_batch=224, threshold=0.95, ema_decay=0.999,
        network="leaky-wrn-28-2", momentum=0.001, weight_decay=5e-4, weight_unsupervised=1.0,
    ),
)  # fmt: skip
PRESETS: dict[str, Mapping[str, Any]] = {
    f"paper-{data}-{labels}": merged(PAPER, dict(data=data, labels=labels, method=dict(rate=rate)))
    for data, rate, several in (("cifar10", 0.015, (100, 250, 500)), ("svhn", 0.03, (60, 100)))
    for labels in several
}
"""Thesis A.1.2.3."""
WINDOW = (100, 200)
"""Epochs in which SciMix's hybrids teach (A.1.2.3)."""
