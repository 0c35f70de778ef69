"""RecursiveMix (Yang et al. 2022): training on images mixed with those of the step before, and their predictions."""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from hybridgen.losses.classification import smoothed, soft_cross_entropy
from hybridgen.losses.consistency import Divergence, historical_consistency
from hybridgen.methods.labelled import CIFAR, Made, TrainingSettings, labelled_plan
from hybridgen.mixing.mixing import Interpolation, Maps, Targets, as_targets
from hybridgen.mixing.recursive import Box, draw_box, recursive
from hybridgen.networks.classifiers import Classifier
from hybridgen.settings import NUMBER, Weight, merged, settings
from hybridgen.training.context import Context
from hybridgen.training.objective import Outcome
from hybridgen.training.plan import Plan
from hybridgen.training.schedules import Clock
from hybridgen.types import Batch, InputError, single


@settings
class Settings:
    """How images are mixed with those of the step before."""

    alpha: Annotated[float, Field(gt=0, le=1), NUMBER] = 0.5
    """α: historical images take up to this share of the area, uniformly."""
    resize: bool = True
    """Bring the whole historical image into its box; else it is cut to it (table 2, "RS")."""
    history: bool = True
    """Mix with the last step's images; else with others of the batch (table 2, "HIS")."""
    weight_consistency: Weight = 0.1
    """ω, of the consistency with the last step's predictions; 0 leaves it out, and its head (table 2, "CL")."""
    shared_head: bool = False
    """Predict regions with the classifier's own last layer (table 4a)."""
    interpolation: Interpolation = "nearest"
    """How historical images are resized (table 4b)."""
    divergence: Divergence = "kl"
    """The consistency's; they differ by a constant without gradient."""
    reset_each_epoch: bool = False
    """Start every epoch without a history, as the authors' code does."""


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

    The first step has no history: its images stay as they are, and its consistency is zero. Batches and images may
    change their size from one step to the next. Historical logits that are not finite, as a skipped step of mixed
    precision may leave them, teach nothing.

    Gradient reaches the classifier through both losses, and never what is kept. Raises InputError for an alpha outside
    (0, 1], and where consistency is asked for without history.
    """

    def __init__(
        self,
        classifier: Classifier,
        classes: int,
        *,
        alpha: float,
        interpolation: Interpolation,
        resize: bool,
        history: bool,
        consistent: bool,
        shared_head: bool,
        divergence: Divergence,
        reset_each_epoch: bool,
        smoothing: float,
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
        then = None
        if before is not None and their_targets is not None:
            if not self.resize and before.shape[2:] != images.shape[2:]:
                before = F.interpolate(before, images.shape[2:])  # what is cut out needs the same places
            mixing = recursive(images, box, len(before), resize=self.resize, interpolation=self.interpolation)
            images = mixing.mix(images, before.to(images))
            targets = mixing.mix_targets(targets, their_targets.to(targets))
            then = None if past.logits is None else past.logits.to(images.device)[mixing.partner]

        # Predictions and losses
        features = self.classifier.features(images)
        logits = self._classify(features)
        losses = {"supervised": soft_cross_entropy(logits, targets)}
        if self.consistent:
            region = self._predict_region(features, box)
            if then is None:
                losses["consistency"] = 0 * region.sum()  # data-parallel training waits for every parameter's gradient
            else:
                losses["consistency"] = box.share * historical_consistency(region, then, divergence=self.divergence)
        rate = {"history_share": images.new_full((), box.share if before is not None else 0.0)}

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
            return self._classify(region)
        return self.region_head(region.flatten(1))

    def _classify(self, features: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch classes"]:
        logits = self.classifier.classify(features)
        assert isinstance(logits, Tensor)  # of one head
        return logits


def align(features: Float[Tensor, "batch channels rows columns"], box: Box) -> Float[Tensor, "batch channels 1 1"]:
    """1×1 RoIAlign of the box, in single precision or better: the mean of the map inside it, sampled between its
    places."""
    features = single(features)
    down, right = (places / length for places, length in zip(features.shape[2:], box.size, strict=True))
    corners = (box.left * right, box.top * down, (box.left + box.width) * right, (box.top + box.height) * down)
    boxes = torch.tensor(corners, dtype=features.dtype).to(features.device, non_blocking=True)
    index = torch.arange(len(features), device=features.device, dtype=features.dtype).unsqueeze(1)
    from torchvision.ops import roi_align  # which takes its time

    return roi_align(features, torch.cat([index, boxes.expand(len(features), 4)], dim=1), output_size=1, aligned=True)


def plan(settings: Settings, training: TrainingSettings, context: Context, seed: int) -> Plan:
    """RecursiveMix on this split from this seed."""

    def make(classifier: Classifier) -> Made:
        objective = RecursiveMix(
            classifier,
            len(context.dataset.classes),
            alpha=settings.alpha,
            interpolation=settings.interpolation,
            resize=settings.resize,
            history=settings.history,
            consistent=settings.weight_consistency > 0,
            shared_head=settings.shared_head,
            divergence=settings.divergence,
            reset_each_epoch=settings.reset_each_epoch,
            smoothing=training.label_smoothing,
        )
        weights = {"supervised": 1.0}
        if objective.consistent:
            weights["consistency"] = settings.weight_consistency
        return Made(objective, weights, {"history": objective.history})

    return labelled_plan(training, context, seed, make)


CUTMIX = merged(
    CIFAR,
    dict(
        training=dict(
            epochs=300, batch=64, rate=0.25, warmup=0, decay_at=(150, 225), weight_decay=1e-4, nesterov=True,
            network="pyramidnet200-240",
        )
    ),
)  # fmt: skip
"""300 epochs: the hyper-parameters of CutMix's code."""

IMAGENET: dict[str, Any] = dict(
    data="folder:data/imagenet", image_size=224, whole=True, precision="fp32", validation=0, workers=8,
    record_every=100, evaluate_every=2502, save_every=2502, method=dict(weight_consistency=0.5),
    training=dict(width=1.0, epochs=300, batch=512, warmup=5, nesterov=False),
)  # fmt: skip
"""Section 4.2; eight GPUs with 64 images each."""

PAPER: dict[str, Any] = dict(alpha=0.5, weight_consistency=0.1, interpolation="nearest", shared_head=False, resize=True)
"""Sections 3 and 4.1."""

NETWORKS = ("resnet18", "resnet34", "densenet121", "densenet161")

SMOKE: dict[str, Any] = dict(precision="fp32", evaluate_every=20, training=dict(epochs=0.5))

PRESETS: Mapping[str, Mapping[str, Any]] = {"smoke": SMOKE} | {
    name: merged(dict(method=PAPER), preset)
    for name, preset in {
        **{
            f"paper-{data}-{network}": merged(CIFAR, dict(data=data, training=dict(network=f"cifar-{network}")))
            for data in ("cifar10", "cifar100")
            for network in NETWORKS
        },
        "paper-cifar100-pyramidnet164": merged(
            CIFAR, dict(data="cifar100", training=dict(network="pyramidnet164-270"))
        ),
        "paper-cifar10-pyramidnet200": merged(CUTMIX, dict(data="cifar10")),
        "paper-cifar100-pyramidnet200": merged(CUTMIX, dict(data="cifar100")),
        "paper-imagenet-resnet50": merged(
            IMAGENET, dict(training=dict(network="resnet50", rate=0.2, weight_decay=1e-4, color_jitter=True))
        ),
        "paper-imagenet-pvtv2": merged(
            IMAGENET,
            dict(
                training=dict(
                    network="pvt_v2_b1_li", optimizer="adamw", rate=5e-4, weight_decay=0.05, label_smoothing=0.1,
                    erasing=0.25,
                )
            ),
        ),
    }.items()
}  # fmt: skip
