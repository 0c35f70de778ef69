"""The loss that a classifier minimises on hybrids (thesis 2.4.2, equation 2.13; its alternatives, A.4.3), or on what
MixUp and CutMix mix in their place (table 2.6)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from hybridgen.hybridizer import Hybridizer
from hybridgen.losses.consistency import Reduction
from hybridgen.mixing import masks
from hybridgen.mixing.mixing import Mixing
from hybridgen.training.objective import Outcome
from hybridgen.training.schedules import Clock, within
from hybridgen.types import Images, InputError

Use = Literal["contradict", "consistency", "pseudo-label", "labelled"]
"""How hybrids teach (table A.15)."""


@dataclass(frozen=True)
class HybridUse:
    """How and when a classifier learns from hybrids."""

    use: Use = "contradict"
    alpha: float = 0.9
    """α of equation 2.13: the semantic parent's share of the target. The thesis gives no value beyond α > 0.5."""
    copies: int = 3
    """Hybrids of each image a step."""
    start: float = 0.0
    """First epoch with hybrids."""
    stop: float = float("inf")
    """First epoch without them again."""
    reduction: Reduction = "sum"
    """Of the squared error over classes."""
    threshold: float = 0.95
    """Confidence that a pseudo-label needs."""
    keep_consistent: bool = True
    """Leave out hybrids to which the hybridizer's own classifier gives another class than to their semantic parent."""

    def __post_init__(self) -> None:
        if not 0.5 < self.alpha <= 1:
            raise InputError(
                f"alpha: {self.alpha} is outside (0.5, 1]: a hybrid has mostly its semantic parent's class"
            )
        if self.copies < 1:
            raise InputError(f"copies: {self.copies} is below 1")
        if self.start >= self.stop:
            raise InputError(f"hybrids: no epoch lies in [{self.start}, {self.stop})")

    def active(self, clock: Clock) -> bool:
        """Whether hybrids are used at this time."""
        return within(clock, self.start, self.stop)


@dataclass(frozen=True)
class Mixer:
    """MixUp (Zhang et al. 2018) or CutMix (Yun et al. 2019) where a hybridizer might stand (table 2.6).

    Each image has a ratio of its own, λ ~ Beta(1, 1), that is uniform on [0, 1).
    """

    kind: Literal["mixup", "cutmix"]

    def check_method(self, method: str) -> None:
        """As a hybridizer's: no method of hybrids is this one."""
        raise InputError(f"hybridizer: {self.kind} is none; one made by {method} is needed")

    def draw(self, images: Images, partner: Int64[Tensor, " mixed"]) -> Mixing:
        """How images are mixed with these partners among them. Draws come from torch's global generator."""
        ratio = torch.rand(len(partner), dtype=images.dtype, device=images.device)
        if self.kind == "mixup":
            return Mixing(ratio.view(-1, 1, 1, 1), partner)
        height, width = images.shape[2:]
        mask = masks.inside(masks.cutmix_boxes(ratio, height, width), height, width)
        return Mixing(mask.to(images.dtype), partner)


HybridSource = Hybridizer | Mixer
"""What a classifier's hybrids come from."""


class Hybrids(NamedTuple):
    """Several hybrids of each image of a batch: copy k of image i is row k · batch + i."""

    images: Float[Tensor, "hybrids 3 height width"]
    partner: Int64[Tensor, " hybrids"]
    """Place of each hybrid's non-semantic parent in the batch; its semantic parent's is its row modulo the batch."""
    kept: Bool[Tensor, " hybrids"]
    share: Float[Tensor, " hybrids"] | None = None
    """Each one's share of its semantic parent, of those that are mixed; a hybridizer's have α."""


@torch.no_grad()
def draw_hybrids(hybridizer: HybridSource, images: Images, *, copies: int, keep_consistent: bool) -> Hybrids:
    """Hybridize each image `copies` times, with the non-semantic content of random others of the batch; or mix it with
    them, which leaves nothing out.

    Parents are encoded once. Draws come from torch's global generator.
    """
    partner = torch.cat([torch.randperm(len(images), device=images.device) for _ in range(copies)])
    if isinstance(hybridizer, Mixer):
        mixing = hybridizer.draw(images, partner)
        mixed = mixing.mix(images.repeat(copies, 1, 1, 1), images)
        return Hybrids(mixed, partner, torch.ones_like(partner, dtype=torch.bool), mixing.ratio)
    semantic, logits = hybridizer.encode_and_classify(images)
    nonsemantic = hybridizer.encode_nonsemantic(images)
    hybrids = hybridizer.decode(semantic.repeat(copies, *(1,) * (semantic.ndim - 1)), nonsemantic[partner])
    if keep_consistent:
        kept = hybridizer.classify(hybrids).argmax(dim=1) == logits.argmax(dim=1).repeat(copies)
    else:
        kept = torch.ones(len(hybrids), dtype=torch.bool, device=images.device)
    return Hybrids(hybrids, partner, kept)


def hybrid_loss(
    logits: Float[Tensor, "hybrids classes"],
    targets: Float[Tensor, "batch classes"],
    labels: Int64[Tensor, " labelled"],
    partner: Int64[Tensor, " hybrids"],
    kept: Bool[Tensor, " hybrids"],
    how: HybridUse,
    share: Float[Tensor, " hybrids"] | None = None,
) -> Float[Tensor, ""]:
    """What is lost on hybrids, averaged over all of them; those not kept count as zero.

    `logits` are the classifier's on the hybrids, in the order of `Hybrids`; `targets` the class probabilities of the
    batch's images, the first of which have `labels`. Gradient reaches `logits` only.

    - contradict (2.13): squared error to α · target(x_c) + (1 - α) · target(x_r), `share` in α's place if given
    - consistency: squared error to target(x_c)
    - pseudo-label: cross-entropy with the class of target(x_c), where that is confident
    - labelled: cross-entropy with the label of x_c, where it has one
    """
    targets = targets.detach()
    copies = len(logits) // len(targets)
    semantic = targets.repeat(copies, 1)
    if how.use in ("contradict", "consistency"):
        alpha: float | Tensor = how.alpha if how.use == "contradict" else 1.0
        if share is not None and how.use == "contradict":
            alpha = share.unsqueeze(1)
        mixed = alpha * semantic + (1 - alpha) * targets[partner]
        squared = (logits.softmax(dim=1) - mixed).square()
        losses = squared.sum(dim=1) if how.reduction == "sum" else squared.mean(dim=1)
        return torch.where(kept, losses, 0.0).mean()
    if how.use == "pseudo-label":
        confidence, hard = semantic.max(dim=1)
        kept = kept & (confidence >= how.threshold)
        return torch.where(kept, F.cross_entropy(logits, hard, reduction="none"), 0.0).mean()
    labelled = torch.arange(len(targets), device=logits.device) < len(labels)
    padded = F.pad(labels, (0, len(targets) - len(labels))).repeat(copies)
    kept = kept & labelled.repeat(copies)
    losses = torch.where(kept, F.cross_entropy(logits, padded, reduction="none"), 0.0)
    return losses.sum() / (copies * len(labels))


def with_hybrids(
    outcome: Outcome,
    classify: Callable[[Images], Float[Tensor, "hybrids classes"]],
    hybridizer: HybridSource | None,
    images: Images,
    targets: Float[Tensor, "batch classes"],
    labels: Int64[Tensor, " labelled"],
    how: HybridUse,
    clock: Clock,
) -> Outcome:
    """The outcome, and with a hybridizer also the loss `hybrids` and the rate `hybrids_kept`.

    Hybrids are made of `images`, whose class probabilities are `targets` and the first of which have `labels`.
    Outside their window nothing is computed or drawn and both scalars are zero. Gradient as in `hybrid_loss`.
    """
    if hybridizer is None:
        return outcome
    loss = kept = targets.new_zeros(())
    if how.active(clock):
        hybrids = draw_hybrids(hybridizer, images, copies=how.copies, keep_consistent=how.keep_consistent)
        logits = classify(hybrids.images)
        loss = hybrid_loss(logits, targets, labels, hybrids.partner, hybrids.kept, how, hybrids.share)
        kept = hybrids.kept.float().mean()
    return outcome._replace(losses=outcome.losses | {"hybrids": loss}, rates=outcome.rates | {"hybrids_kept": kept})
