"""FixMatch (Sohn et al. 2020; thesis 2.2.1.2), and as options what came after it: other thresholds and weights
(FlexMatch, FreeMatch, SoftMatch, AdaMatch), distribution alignment (ReMixMatch), targets of an average."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from hybridgen.data.randaugment import strong
from hybridgen.losses.classification import cross_entropy, weighted_cross_entropy
from hybridgen.losses.pseudo_labels import effective_classes
from hybridgen.methods.classifiers import EPOCHS, USUAL, ClassifierSettings, classifier_plan, unrecorded
from hybridgen.methods.pseudo_labels import (
    Alignment,
    CurriculumThresholds,
    FixedThreshold,
    PseudoLabelling,
    RelativeThreshold,
    SelfAdaptiveThresholds,
    TruncatedGaussian,
    Weighting,
    distribution_alignment,
)
from hybridgen.networks.registry import SMALL
from hybridgen.settings import NUMBER, Count, Decay, Epoch, Few, Flat, Positive, Share, Weight, merged, settings
from hybridgen.training.context import Context
from hybridgen.training.ema import EMA
from hybridgen.training.objective import Guessed, Outcome, Task, Taught, sgd
from hybridgen.training.plan import Plan
from hybridgen.training.schedules import Clock, cosine, fixmatch_cosine, window
from hybridgen.types import Batch, InputError, single

Targets = Literal["joint", "apart", "average"]
"""How weak views are predicted, for the targets of strong ones."""

WeightedBy = Literal["fixmatch", "flexmatch", "freematch", "softmatch", "adamatch"]
"""Whose thresholds or weights decide how much unlabelled images count."""


@settings
class Settings(ClassifierSettings):
    """How FixMatch trains. The defaults suit digits-m, and for images above 16 pixels CIFAR-10 with 250 labels."""

    rate: Flat[Positive | None] = None  # pyrefly: ignore[bad-override]
    """Learning rate at the start; unless given 0.03 for images above 16 pixels, and 0.06 up to there."""
    ema_decay: Flat[Decay | None] = None  # pyrefly: ignore[bad-override]
    """Decay of the averaged weights that are evaluated; unless given 0.99, and for images above 16 pixels 0.999, of
    fewer than 6,000 steps so much less that it reaches back over a sixth of them."""
    threshold: Share = 0.9
    """τ: confidence that a pseudo-label needs; of FlexMatch the largest one, of AdaMatch relative to that in labelled
    images. FreeMatch and SoftMatch need none."""
    strong_labelled: bool = False
    """Learn labelled images from strong views too, as AdaMatch does: half of the loss on them is of these."""
    cutout: Count | None = None
    """Side of the square that strong augmentation cuts out; half the image's unless given."""
    weight_unsupervised: Weight = 1.0
    """λ_u, of the loss on pseudo-labels."""
    unsupervised_from: Epoch = 0.0
    """First epoch of the losses on unlabelled images."""
    unsupervised_ramp: Epoch = 0.0
    """Epochs over which their weights grow linearly from there."""
    targets: Targets = "joint"
    """How weak views are predicted: in one forward with all other images (FixMatch); apart from these and without
    gradient, for a third less work, but batch-norm then sees weak views and others in batches of their own; or by the
    average that is evaluated, which sees labelled and weak views with batch-norm statistics of its own."""
    weighting: WeightedBy | None = None
    """How much images count: by a fixed threshold (FixMatch), one for each class by what it has learnt (FlexMatch),
    self-adaptive ones (FreeMatch, with its fairness loss), a truncated Gaussian (SoftMatch), or a threshold relative to
    the labelled images (AdaMatch). Unless given adamatch for images above 16 pixels, and fixmatch up to there."""
    alignment: Alignment | Literal["own"] = "own"
    """Distribution over classes that predictions for weak views are scaled to have: none, that of the labels
    (ReMixMatch), of the predictions for labelled images (AdaMatch), or uniform (SoftMatch, whose labels stay as they
    were); own: as the weighting's paper has it."""
    alignment_window: Few = 128
    """Batches over which predictions for unlabelled images are averaged for that (ReMixMatch, AdaMatch); uniform
    alignment takes a moving average instead."""
    statistics_decay: Decay = 0.999
    """Of moving averages of predictions (λ of FreeMatch, m of SoftMatch)."""
    weight_fairness: Weight = 0.01
    """w_f, of FreeMatch's fairness (the authors' code for CIFAR-10; 0.001 in their later one)."""
    gaussian_sigmas: Annotated[float, Field(gt=0, le=100), NUMBER] = 1.0
    """Divides the deviation of SoftMatch's Gaussian: 1 in the paper's equation, 2 in the authors' code."""
    interpolate_logits: bool = False
    """AdaMatch's random interpolation of the labelled images' logits with those of a forward of these images alone."""


class FixMatch(nn.Module):
    """Losses `supervised` and `unsupervised`; with FreeMatch's thresholds `fairness` too.

    Batches carry a weak view of the labelled images, with AdaMatch a strong one too, and both of the unlabelled; the
    loss on labels is a mean over all views. Pseudo-labels come from the weak views, without gradient, and count as much
    as `labelling` says. Who predicts the weak views, and what batch-norm then sees, is a matter of `targets`:

    - joint, the paper's: labelled, weak and strong images go through the classifier in one forward, whose batch-norm
      statistics are those of all of them together.
    - apart: labelled and strong images go through it in one forward, and after them the weak ones in another, without
      gradient. Each has statistics of its own, and moves the running ones. Image units of work, one forward and two
      backward, are 1.4 times fewer (with 7 unlabelled images for one labelled: 31 instead of 45).
    - average: labelled and strong images go through the classifier, labelled and weak ones through `average`, in
      training mode: what it normalises with are the statistics of these very images, and what it gathers of them are
      the running ones that it is evaluated with. Those of the classifier, copied, would be of strong views and of
      weights behind which the average lags; its predictions, and so its own teaching, collapse with them.

    With `interpolated` the labelled images' logits are mixed with those of a forward of these images alone, which
    leaves running statistics as they are: each number at random by a share of its own (AdaMatch).

    It taught with the labelled and the weak images, and with the class probabilities of who predicts weak views; of
    weak ones they are the targets, aligned where labels are. Softmax and thresholds are computed in float32 or above.

    Rates: `confident`, the mean weight of pseudo-labels, which for thresholds is the share of images that count;
    `threshold`, from which on they count in full; `pseudo_classes`, among how many classes the weights are spread.
    InputError for an average without targets of the average, and for these without one.
    """

    def __init__(
        self,
        classifier: nn.Module,
        labelling: PseudoLabelling,
        *,
        targets: Targets,
        average: EMA | None,
        interpolated: bool,
    ) -> None:
        super().__init__()
        if (targets == "average") != (average is not None):
            raise InputError(f"targets: {targets!r}, {'with' if average else 'without'} an average")
        self.classifier, self.labelling, self.average = classifier, labelling, average
        self.targets, self.interpolated = targets, interpolated

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        views, (weak, strong) = batch.labelled, batch.unlabelled

        # Predictions
        of_labelled, of_strong, known, of_weak = self._predict(views, weak, strong)

        # Targets
        known = known.softmax(dim=1)
        targets, labels, (weights, threshold) = self.labelling(of_weak.softmax(dim=1), known, batch.indices)

        losses = {
            "supervised": cross_entropy(of_labelled, batch.labels.repeat(len(views))),
            "unsupervised": weighted_cross_entropy(of_strong, labels, weights),
        }
        if isinstance(self.labelling.weighting, SelfAdaptiveThresholds):
            losses["fairness"] = self.labelling.weighting.fairness(of_strong, weights)
        rates = {
            "confident": weights.mean(),
            "threshold": threshold,
            "pseudo_classes": effective_classes(labels, weights, targets.shape[1]),
        }
        taught = lambda: Taught(torch.cat([views[0], weak]), torch.cat([known, targets]), batch.labels)
        return Outcome(losses, rates, taught=taught, guessed=Guessed(labels, weights))

    def _predict(
        self,
        views: Sequence[Float[Tensor, "labelled 3 height width"]],
        weak: Float[Tensor, "unlabelled 3 height width"],
        strong: Float[Tensor, "unlabelled 3 height width"],
    ) -> tuple[
        Float[Tensor, "views_labelled classes"],
        Float[Tensor, "unlabelled classes"],
        Float[Tensor, "labelled classes"],
        Float[Tensor, "unlabelled classes"],
    ]:
        """The classifier's logits of all views of labelled images, and of strong ones; and those of the first views of
        labelled images, and of weak ones, of who makes targets, without gradient."""
        labelled, of_first = torch.cat(tuple(views)), len(views[0])
        joint = self.targets == "joint"
        shown = (labelled, weak, strong) if joint else (labelled, strong)
        logits = single(self.classifier(torch.cat(shown))).split([len(images) for images in shown])
        of_labelled, of_strong = logits[0], logits[-1]
        if self.interpolated:
            alone = single(unrecorded(self.classifier, labelled))
            of_labelled = torch.lerp(of_labelled, alone, torch.rand_like(alone))
        known = of_labelled[:of_first].detach()
        with torch.no_grad():
            if self.average is not None:
                known, of_weak = single(self.average(torch.cat([views[0], weak]))).tensor_split([of_first])
            else:
                of_weak = logits[1] if joint else single(self.classifier(weak))
        return of_labelled, of_strong, known, of_weak.detach()


CHOSEN: dict[bool, dict[str, Any]] = {
    True: dict(rate=0.06, weighting="fixmatch"),
    False: dict(rate=0.03, weighting="adamatch"),
}
"""What is chosen for small images and for others, where nothing is given."""


def usual_decay(image_size: int, steps: int) -> float:
    """Of the average that is evaluated, where none is given. Of few steps it forgets faster, or it would be what the
    weights were at first."""
    return 0.99 if image_size <= SMALL else max(0.0, min(0.999, 1 - 6 / steps))


OWN: dict[WeightedBy | None, Alignment] = {"softmatch": "uniform", "adamatch": "predictions"}
"""Distribution alignment of the papers; the others have none."""


def weighting_of(settings: Settings, context: Context) -> Weighting:
    """How much unlabelled images count."""
    classes, threshold, decay = len(context.dataset.classes), settings.threshold, settings.statistics_decay
    match settings.weighting:
        case "fixmatch":
            return FixedThreshold(threshold=threshold)
        case "flexmatch":
            drawn = len(context.split.labelled) + len(context.split.unlabelled)
            return CurriculumThresholds(
                classes, threshold=threshold, images=len(context.dataset.train), unlabelled=drawn
            )
        case "freematch":
            return SelfAdaptiveThresholds(classes, decay=decay)
        case "softmatch":
            return TruncatedGaussian(classes, decay=decay, sigmas=settings.gaussian_sigmas)
        case "adamatch":
            return RelativeThreshold(threshold=threshold)
    raise InputError(f"weighting: {settings.weighting!r} is unknown")


def labelling_of(settings: Settings, context: Context) -> PseudoLabelling:
    """What makes pseudo-labels on this split; of settings that leave the weighting open no more."""
    labels = context.dataset.train.labels[list(context.split.labelled)]
    shares = labels.bincount(minlength=len(context.dataset.classes)) / len(labels)
    towards = OWN.get(settings.weighting, "none") if settings.alignment == "own" else settings.alignment
    alignment = distribution_alignment(
        towards, shares, window=settings.alignment_window, decay=settings.statistics_decay
    )
    return PseudoLabelling(weighting_of(settings, context), alignment, label_aligned=settings.weighting != "softmatch")


def plan(settings: Settings, context: Context, seed: int, *, classifier: nn.Module | None = None) -> Plan:
    """FixMatch on this split from this seed; of a classifier that is there already, if one is given.

    An average that makes targets starts linearly (Tarvainen and Valpola 2017), so that the first weights, which know
    nothing, are soon left behind.
    """
    settings = context.by_size(settings, CHOSEN)
    size, flip = context.dataset.image_size, context.flip
    strongly = partial(strong, flip=flip, shift=size // 8, cutout=settings.cutout or size // 2)
    labelled, unlabelled = context.batch_sizes(settings.labelled_batch, settings.unlabelled_batch, USUAL)
    stream = context.stream(
        seed,
        labelled=labelled,
        labelled_views=(context.weak(), strongly) if settings.strong_labelled else (context.weak(),),
        unlabelled=unlabelled,
        unlabelled_views=(context.weak(), strongly),
    )
    if settings.ema_decay is None:
        steps = context.clock(settings.epochs, stream.steps_per_epoch, EPOCHS).steps
        settings = replace(settings, ema_decay=usual_decay(size, steps))
    assert settings.rate is not None and settings.ema_decay is not None
    context.note(ema_decay=settings.ema_decay)
    torch.manual_seed(seed)
    classifier = classifier or context.classifier(settings.network, momentum=settings.momentum)
    average = EMA(classifier, settings.ema_decay, buffers="own") if settings.targets == "average" else None
    objective = FixMatch(
        classifier,
        labelling_of(settings, context),
        targets=settings.targets,
        average=average,
        interpolated=settings.interpolate_logits,
    )
    unsupervised = partial(window, start=settings.unsupervised_from, ramp=settings.unsupervised_ramp)
    weights = {
        "supervised": settings.weight_supervised,
        "unsupervised": unsupervised(settings.weight_unsupervised),
        **({"fairness": unsupervised(settings.weight_fairness)} if settings.weighting == "freematch" else {}),
    }
    task = Task(
        objective,
        weights,
        sgd(objective, decay=settings.weight_decay, decay_all=False),
        cosine(settings.rate, settings.rate_epochs) if settings.rate_epochs else fixmatch_cosine(settings.rate),
    )
    return classifier_plan(settings, context, stream, classifier, task, average=average)


PAPER: dict[str, Any] = dict(
    precision="fp32", validation=0, record_every=100, evaluate_every=2230, save_every=2230,
    method=dict(
        epochs=1000, rate_epochs=1050, labelled_batch=32, unlabelled_batch=224, threshold=0.95, ema_decay=0.999,
        network="leaky-wrn-28-2", momentum=0.001, weight_decay=5e-4, weight_unsupervised=1.0, unsupervised_from=0,
        unsupervised_ramp=0, strong_labelled=False, targets="joint", weighting="fixmatch", alignment="none",
        interpolate_logits=False,
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
