"""RecursiveMix (Yang et al. 2022): training on images mixed with those of the step before, and their predictions."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import roi_align

from hybridgen.losses.classification import smoothed, soft_cross_entropy
from hybridgen.losses.consistency import Divergence, historical_consistency
from hybridgen.mixing.mixing import Interpolation, Maps, Targets, as_targets
from hybridgen.mixing.recursive import Box, draw_box, recursive
from hybridgen.training.objective import Outcome
from hybridgen.training.schedules import Clock
from hybridgen.types import Batch, InputError


class History(nn.Module):
    """What the last step saw: its mixed images, their targets and the logits for them. None at first.

    Part of checkpoints, and of each process its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.images: Tensor | None = None
        self.targets: Tensor | None = None
        self.logits: Tensor | None = None

    def keep(self, images: Maps, targets: Targets, logits: Float[Tensor, "batch classes"]) -> None:
        """For the next step, without gradient."""
        self.images, self.targets, self.logits = images.detach(), targets.detach(), logits.detach().float()

    def forget(self) -> None:
        """As before the first step."""
        self.images = self.targets = self.logits = None

    def get_extra_state(self) -> dict[str, Tensor]:
        kept = {"images": self.images, "targets": self.targets, "logits": self.logits}
        return {name: value for name, value in kept.items() if value is not None}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.forget()
        for name, value in state.items():
            setattr(self, name, value)


class RecursiveMix(nn.Module):
    """Losses `supervised`, on images of which a box shows those of the last step, and `consistency` between what is
    predicted for this box and what was predicted then (equations 1 to 5).

    `consistency` is weighted by the box's share of the area, λ, as in equation 5; its other weight, ω, is the recipe's.
    The region's prediction is that of a linear layer of its own on the last feature map inside the box (1×1 RoIAlign),
    or with `shared_head` that of the classifier's own (table 4a). Without `consistent` there is neither. The rate
    `history_share` is λ.

    Without `history` the batch is mixed with itself in another order, and `consistency` is impossible (table 2: "RS"
    alone). `smoothing` is label smoothing's. `reset_each_epoch` starts every epoch without a history, as the authors'
    code does; the paper does not.

    The classifier is as `hybridgen.networks.classifiers.Classifier`: `features`, `classify`, `channels`.

    The first step has no history: its images stay as they are, and its consistency is zero. Batches and images may
    change their size from one step to the next. Historical logits that are not finite, as a skipped step of mixed
    precision may leave them, teach nothing.

    Gradient reaches the classifier through both losses, and never what is kept. Raises InputError for an alpha outside
    (0, 1], and where consistency is asked for without history.
    """

    def __init__(
        self,
        classifier: nn.Module,
        classes: int,
        *,
        alpha: float = 0.5,
        interpolation: Interpolation = "nearest",
        resize: bool = True,
        history: bool = True,
        consistent: bool = True,
        shared_head: bool = False,
        divergence: Divergence = "kl",
        reset_each_epoch: bool = False,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if consistent and not history:
            raise InputError("consistency: there is nothing to be consistent with without history")
        draw_box(1, 1, alpha=alpha, generator=torch.Generator())  # InputError for alpha
        self.classifier, self.classes, self.alpha = classifier, classes, alpha
        self.interpolation, self.resize, self.recursive = interpolation, resize, history
        self.consistent, self.divergence, self.reset_each_epoch = consistent, divergence, reset_each_epoch
        self.smoothing = smoothing
        self.history = History()
        self.region_head = nn.Linear(classifier.channels, classes) if consistent and not shared_head else None

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        (images,) = batch.labelled
        targets = smoothed(as_targets(batch.labels, self.classes), self.smoothing)
        past = self.history
        if self.reset_each_epoch and clock.step % clock.steps_per_epoch == 0:
            past.forget()

        # Mixing: drawn in every step, so that no history moves a draw
        box = draw_box(*images.shape[2:], alpha=self.alpha)
        before, their_targets = past.images, past.targets
        if not self.recursive:
            order = torch.randperm(len(images), device=images.device)
            before, their_targets = images[order], targets[order]
        if before is not None:
            if not self.resize and before.shape[2:] != images.shape[2:]:
                before = F.interpolate(before, images.shape[2:])  # what is cut out needs the same places
            mixing = recursive(images, box, len(before), resize=self.resize, interpolation=self.interpolation)
            images = mixing.mix(images, before.to(images))
            targets = mixing.mix_targets(targets, their_targets.to(targets))

        # Predictions and losses
        features = self.classifier.features(images)
        logits = self.classifier.classify(features)
        losses = {"supervised": soft_cross_entropy(logits, targets)}
        if self.consistent:
            region = self._predict_region(features, box)
            if past.logits is None:
                losses["consistency"] = 0 * region.sum()  # data-parallel training waits for every parameter's gradient
            else:
                then = past.logits.to(region.device)[mixing.partner]
                losses["consistency"] = box.share * historical_consistency(region, then, divergence=self.divergence)
        rate = {"history_share": images.new_tensor(box.share if before is not None else 0.0)}

        # What the next step finds
        if self.recursive:
            past.keep(images, targets, logits)
        return Outcome(losses, rate)

    def _predict_region(
        self, features: Float[Tensor, "batch channels rows columns"], box: Box
    ) -> Float[Tensor, "batch classes"]:
        """Logits from what the last feature map shows inside the box (equation 4)."""
        region = align(features, box)
        if self.region_head is None:
            return self.classifier.classify(region)
        return self.region_head(region.flatten(1))


def align(features: Float[Tensor, "batch channels rows columns"], box: Box) -> Float[Tensor, "batch channels 1 1"]:
    """1×1 RoIAlign of the box, in single precision or better: the mean of the map inside it, sampled between its
    places."""
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    down, right = (places / length for places, length in zip(features.shape[2:], box.size, strict=True))
    corners = (box.left * right, box.top * down, (box.left + box.width) * right, (box.top + box.height) * down)
    boxes = torch.tensor(corners, dtype=features.dtype).to(features.device, non_blocking=True)
    index = torch.arange(len(features), device=features.device, dtype=features.dtype).unsqueeze(1)
    return roi_align(features, torch.cat([index, boxes.expand(len(features), 4)], dim=1), output_size=1, aligned=True)
