"""Pseudo-labels of unlabelled images: which distribution over classes they are to have, and how much each one counts
(FixMatch and what came after it).

Running figures are of the images of all processes, and parts of checkpoints.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hybridgen.losses.pseudo_labels import (
    adaptive_thresholds,
    aligned,
    fairness,
    flexible_thresholds,
    truncated_gaussian,
)
from hybridgen.training.processes import (
    mean_over_processes,
    number_of_processes,
    over_processes,
    sum_over_processes,
)
from hybridgen.types import InputError

Probabilities = Float[Tensor, "batch classes"]
LabelledProbabilities = Float[Tensor, "labelled classes"]
Places = Int64[Tensor, " batch"]


# --- running figures ----------------------------------------------------------------------------------------


class MovingMean(nn.Module):
    """An exponential moving average of a figure of each batch, `initial` at first."""

    value: Tensor

    def __init__(self, initial: Float[Tensor, "..."], decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("value", initial)

    def forward(self, figure: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The average, this batch's included."""
        return self.value.lerp_(mean_over_processes(figure), 1 - self.decay).clone()


class WindowMean(nn.Module):
    """The mean of a figure over the last batches, `initial` in the place of those that were before the first."""

    recent: Tensor

    def __init__(self, initial: Float[Tensor, "..."], batches: int) -> None:
        super().__init__()
        self.register_buffer("recent", initial.repeat(batches, *(1,) * initial.ndim))

    def forward(self, figure: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The mean, this batch's included."""
        self.recent.copy_(torch.cat([self.recent[1:], mean_over_processes(figure).unsqueeze(0)]))
        return self.recent.mean(dim=0)


def uniform(classes: int) -> Float[Tensor, " classes"]:
    """Every class as probable as another."""
    return torch.full((classes,), 1 / classes)


# --- distribution alignment -----------------------------------------------------------------------------------


class DistributionAlignment(nn.Module):
    """Scales class probabilities so that on average they have another distribution (`aligned`): `towards` the one that
    is given, or where it is a `MovingMean` the one that labelled images are predicted to have.

    `average` is the running mean of what is predicted for the unlabelled images. This batch is a part of both.
    """

    towards: Tensor | MovingMean

    def __init__(self, towards: Float[Tensor, " classes"] | MovingMean, average: MovingMean | WindowMean) -> None:
        super().__init__()
        if isinstance(towards, Tensor):
            self.register_buffer("towards", towards)
        else:
            self.towards = towards
        self.average = average

    def forward(self, probabilities: Probabilities, labelled: LabelledProbabilities) -> Probabilities:
        towards = self.towards if isinstance(self.towards, Tensor) else self.towards(labelled.mean(dim=0))
        return aligned(probabilities, towards, self.average(probabilities.mean(dim=0)))


Alignment = Literal["none", "labels", "predictions", "uniform"]
"""To which distribution over classes pseudo-labels are aligned."""


def distribution_alignment(
    towards: Alignment, labels: Float[Tensor, " classes"], *, window: int, decay: float
) -> DistributionAlignment | None:
    """As its paper has it; None for none. `labels` is the distribution of the labelled images.

    - labels (ReMixMatch, section 3.1): that of the labels, and a mean over the last `window` batches
    - predictions (AdaMatch, Berthelot et al. 2022): that of what is predicted for labelled images, of which it is a
      moving average with `decay`, and a mean over the last `window` batches
    - uniform (SoftMatch, Chen et al. 2023): all classes alike, and a moving average with `decay`
    """
    same = uniform(len(labels))
    match towards:
        case "none":
            return None
        case "labels":
            return DistributionAlignment(labels, WindowMean(same, window))
        case "predictions":
            return DistributionAlignment(MovingMean(same.clone(), decay), WindowMean(same, window))
        case "uniform":
            return DistributionAlignment(same, MovingMean(same.clone(), decay))


# --- how much images count -----------------------------------------------------------------------------------


class Weighted(NamedTuple):
    """How much each image of a batch counts."""

    weights: Float[Tensor, " batch"]
    """In [0, 1]."""
    threshold: Float[Tensor, ""]
    """Confidence from which on images count in full; where each class has its own, their mean."""


class FixedThreshold(nn.Module):
    """FixMatch's: images count whose confidence reaches the threshold (Sohn et al. 2020)."""

    def __init__(self, *, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, probabilities: Probabilities, labelled: LabelledProbabilities, places: Places | None) -> Weighted:
        confidence = probabilities.amax(dim=1)
        return Weighted((confidence >= self.threshold).to(confidence), confidence.new_full((), self.threshold))


class RelativeThreshold(nn.Module):
    """AdaMatch's: the threshold is relative to the mean confidence in the labelled images of the batch (Berthelot et
    al. 2022, section 3)."""

    def __init__(self, *, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, probabilities: Probabilities, labelled: LabelledProbabilities, places: Places | None) -> Weighted:
        confidence = probabilities.amax(dim=1)
        threshold = self.threshold * mean_over_processes(labelled.amax(dim=1).mean())
        return Weighted((confidence >= threshold).to(confidence), threshold)


class CurriculumThresholds(nn.Module):
    """FlexMatch's: each class has a threshold of its own, lower the fewer images have learnt it (Zhang et al. 2021,
    section 3; `flexible_thresholds`).

    Keeps a record of every image of the training part, `images` in number, of which `unlabelled` are ever drawn: the
    last pseudo-label of it whose confidence reached `threshold`, -1 before there was one. A batch's thresholds follow
    from the record before it. InputError for batches that do not say which images they hold.
    """

    record: Tensor

    def __init__(self, classes: int, *, threshold: float, images: int, unlabelled: int) -> None:
        super().__init__()
        self.classes, self.threshold, self.unlabelled = classes, threshold, unlabelled
        self.register_buffer("record", torch.full((images,), -1))

    def forward(self, probabilities: Probabilities, labelled: LabelledProbabilities, places: Places | None) -> Weighted:
        if places is None:
            raise InputError("weighting: 'flexmatch' needs batches that say which images they hold")
        counts = probabilities.new_zeros(self.classes + 1)
        counts.index_add_(0, self.record + 1, probabilities.new_ones(()).expand(len(self.record)))
        learnt = counts[1:]
        thresholds = flexible_thresholds(learnt, self.unlabelled - learnt.sum(), self.threshold)
        confidence, label = probabilities.max(dim=1)

        # What the next batch finds
        places, found = over_processes(places), over_processes(torch.where(confidence >= self.threshold, label, -1))
        self.record[places] = torch.where(found >= 0, found, self.record[places])
        return Weighted((confidence >= thresholds[label]).to(confidence), thresholds.mean())


class SelfAdaptiveThresholds(nn.Module):
    """FreeMatch's: the mean confidence over time, scaled for each class by how much it is predicted (Wang et al. 2023,
    section 4; `adaptive_thresholds`). A batch is a part of its thresholds."""

    def __init__(self, classes: int, *, decay: float) -> None:
        super().__init__()
        self.confidence = MovingMean(torch.tensor(1 / classes), decay)
        self.expectation = MovingMean(uniform(classes), decay)
        self.histogram = MovingMean(uniform(classes), decay)

    def forward(self, probabilities: Probabilities, labelled: LabelledProbabilities, places: Places | None) -> Weighted:
        confidence, label = probabilities.max(dim=1)
        expectation = self.expectation(probabilities.mean(dim=0))
        self.histogram(F.one_hot(label, probabilities.shape[1]).to(probabilities).mean(dim=0))
        thresholds = adaptive_thresholds(self.confidence(confidence.mean()), expectation)
        return Weighted((confidence >= thresholds[label]).to(confidence), thresholds.mean())

    def fairness(self, strong: Float[Tensor, "batch classes"], weights: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
        """The loss `fairness` of the strong views' logits, over the images of all processes that count."""
        probabilities = strong.softmax(dim=1)
        shown = F.one_hot(strong.argmax(dim=1), strong.shape[1]).to(strong)
        predicted, counts = (
            sum_over_processes((weights.unsqueeze(1) * each).sum(dim=0)) for each in (probabilities, shown)
        )
        return fairness(predicted, counts, self.expectation.value, self.histogram.value)


class TruncatedGaussian(nn.Module):
    """SoftMatch's: all images count, the more the nearer their confidence is to its mean over time, and those above it
    in full (Chen et al. 2023, section 3; `truncated_gaussian`). A batch is a part of this mean and variance."""

    def __init__(self, classes: int, *, decay: float, sigmas: float) -> None:
        super().__init__()
        self.sigmas = sigmas
        self.mean, self.variance = MovingMean(torch.tensor(1 / classes), decay), MovingMean(torch.tensor(1.0), decay)

    def forward(self, probabilities: Probabilities, labelled: LabelledProbabilities, places: Places | None) -> Weighted:
        confidence = probabilities.amax(dim=1)
        count = len(confidence) * number_of_processes()
        here = mean_over_processes(confidence.mean())
        variance = self.variance((confidence - here).square().mean() * count / max(1, count - 1))
        mean = self.mean(here)
        return Weighted(truncated_gaussian(confidence, mean, variance, sigmas=self.sigmas), mean)


Weighting = FixedThreshold | RelativeThreshold | CurriculumThresholds | SelfAdaptiveThresholds | TruncatedGaussian
"""How much images count."""


# --- both ---------------------------------------------------------------------------------------------------


class PseudoLabels(NamedTuple):
    """What weak views teach."""

    targets: Probabilities
    """Class probabilities, of which the largest is the label's."""
    labels: Int64[Tensor, " batch"]
    weighted: Weighted


class PseudoLabelling(nn.Module):
    """From class probabilities of weak views to pseudo-labels, never with gradient.

    How much images count follows from the aligned probabilities. Labels do too if `label_aligned`, as in ReMixMatch and
    AdaMatch; SoftMatch's are those of the probabilities themselves.
    """

    def __init__(self, weighting: Weighting, alignment: DistributionAlignment | None, *, label_aligned: bool) -> None:
        super().__init__()
        self.weighting, self.alignment, self.label_aligned = weighting, alignment, label_aligned

    @torch.no_grad()
    def forward(
        self, probabilities: Probabilities, labelled: LabelledProbabilities, places: Places | None
    ) -> PseudoLabels:
        probabilities, labelled = probabilities.detach(), labelled.detach()
        weighed = probabilities if self.alignment is None else self.alignment(probabilities, labelled)
        targets = weighed if self.label_aligned else probabilities
        return PseudoLabels(targets, targets.max(dim=1).indices, self.weighting(weighed, labelled, places))
