"""AugMix (Hendrycks et al. 2020): training on mixtures of an image's own augmentations."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from hybridgen.data.augmix import augmix
from hybridgen.data.streams import View
from hybridgen.losses.classification import smoothed, soft_cross_entropy
from hybridgen.losses.consistency import jensen_shannon
from hybridgen.methods.labelled import Made, TrainingSettings, labelled_plan
from hybridgen.training.context import Context
from hybridgen.training.objective import Outcome
from hybridgen.training.plan import Plan
from hybridgen.training.schedules import Clock
from hybridgen.types import Batch, InputError, full_precision

WEIGHT = 12.0
"""Of the divergence: the paper's λ, over the mean of three."""


class AugMix(nn.Module):
    """AugMix's training (Hendrycks et al. 2020): loss `supervised`, and if `consistent` `jensen_shannon` between the
    predictions for images and for two mixtures of each.

    Batches carry one view of labelled images: mixtures already, or if `consistent` the images of which mixtures are
    made here, so that all three show the same crop. All go through the classifier in one forward.
    """

    def __init__(self, classifier: nn.Module, *, consistent: bool, smoothing: float) -> None:
        super().__init__()
        if not 0 <= smoothing <= 1:
            raise InputError(f"smoothing: {smoothing} is outside [0, 1]")
        self.classifier, self.consistent, self.smoothing = classifier, consistent, smoothing

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        (images,) = batch.labelled
        if self.consistent:
            with full_precision(images.device):
                images = torch.cat([images, augmix(torch.cat([images, images]), None)])
        logits = self.classifier(images).split(len(batch.labels))
        known = F.one_hot(batch.labels, logits[0].shape[1]).to(logits[0].dtype)
        losses = {"supervised": soft_cross_entropy(logits[0], smoothed(known, self.smoothing))}
        if self.consistent:
            losses["jensen_shannon"] = jensen_shannon(*logits)
        return Outcome(losses)


def plan(settings: TrainingSettings, context: Context, seed: int, *, consistent: bool) -> Plan:
    """AugMix on this split from this seed, and if `consistent` with the divergence between the predictions for an image
    and two mixtures of it."""

    def views(view: View) -> Sequence[View]:
        mixture: View = lambda images, generator: augmix(view(images, generator), generator)
        return (view if consistent else mixture,)

    def make(classifier: nn.Module) -> Made:
        weights = {"supervised": 1.0} | ({"jensen_shannon": WEIGHT} if consistent else {})
        return Made(AugMix(classifier, consistent=consistent, smoothing=settings.label_smoothing), weights)

    return labelled_plan(settings, context, seed, make, views=views)
