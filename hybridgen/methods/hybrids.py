"""Hybrids for any classifier: the loss on them (thesis 2.4.2, equation 2.13; its alternatives, A.4.3), or on what MixUp
and CutMix mix in their place (table 2.6), added to a plan; or hybrids among the labelled images of a plan (3.3.7)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor, nn

from hybridgen.hybridizer import Hybridizer
from hybridgen.losses.consistency import Reduction
from hybridgen.methods.classifiers import ClassifierSettings
from hybridgen.mixing import masks
from hybridgen.mixing.mixing import Mixing
from hybridgen.networks.classifiers import Classifier, digest_of
from hybridgen.networks.registry import SMALL
from hybridgen.settings import NUMBER, Epoch, Few, Flat, Share, Weight, merged, settings
from hybridgen.training.context import Context
from hybridgen.training.objective import Outcome
from hybridgen.training.plan import Plan
from hybridgen.training.schedules import Clock, within
from hybridgen.types import Batch, Images, InputError, single

TITLES = {"scimix": "SciMix", "samosa": "SAMOSA", "adain": "AdaIN", "mixup": "MixUp", "cutmix": "CutMix"}
"""Of the methods that hybrids come from."""

Use = Literal["contradict", "consistency", "pseudo-label", "labelled"]
"""How hybrids teach (table A.15)."""


WINDOW = 1.5, 12.0
"""Epochs with hybrids, of 14 and images up to 16 pixels."""


@settings
class Teaching:
    """How and when hybrids teach a classifier (thesis 2.4.2)."""

    use: Use = "contradict"
    """How hybrids teach (table A.15)."""
    alpha: Annotated[float, Field(gt=0.5, le=1), NUMBER] | None = None
    """α of equation 2.13: the semantic parent's share of the target. The thesis gives no value beyond α > 0.5; unless
    given 0.9, and 0.6 of images above 16 pixels, where fewer hybrids have their semantic parent's class."""
    copies: Few | None = None
    """Hybrids of each image a step; unless given 3, and 1 of images above 16 pixels, where most of a step goes to
    them."""
    start: Epoch | None = None
    """First epoch with hybrids; unless given 1.5 (MixMatch: 1), and of images above 16 pixels after a third of all (the
    thesis: a tenth with FixMatch, a sixth with Mean Teacher): before, a classifier learns more from images."""
    stop: Epoch | None = None
    """First epoch without them again; unless given 12 (MixMatch: 7), and of images above 16 pixels after six sevenths
    of all."""
    reduction: Reduction = "sum"
    """Of the squared error on hybrids over classes: l_MSE of 2.13 is torch's, a mean."""
    keep_consistent: bool = True
    """Leave out hybrids to which the hybridizer's own classifier gives another class than the label of their semantic
    parent, or where that is not known the class that it gives to the parent."""
    threshold: Share = 0.9
    """Confidence that a pseudo-label needs."""
    weight: Weight = 1.0
    """Of the loss on hybrids."""

    def active(self, clock: Clock) -> bool:
        """Whether hybrids are used at this time, once all is `chosen`."""
        assert self.start is not None and self.stop is not None
        return within(clock, self.start, self.stop)

    def chosen(self, image_size: int, epochs: float, window: tuple[float, float] = WINDOW) -> Self:
        """With a value wherever none is given, for images of this side and so many epochs; up to 16 pixels with this
        window."""
        usual: dict[str, Any] = dict(alpha=0.9, copies=3, start=window[0], stop=window[1])
        if image_size > SMALL:
            usual = dict(alpha=0.6, copies=1, start=epochs / 3, stop=epochs * 6 / 7)
        return replace(self, **{name: value for name, value in usual.items() if getattr(self, name) is None})


@settings
class Settings(Teaching):
    """On whose hybrids a classifier trains, how and when."""

    hybridizer: Flat[str | None] = None
    """Folder or hub id of a hybridizer; bundled for the repository's own, none to train without hybrids; trained, in
    scimix_fixmatch.py, for one that is trained first. Unless given, recipes named scimix_... take bundled, and
    scimix_fixmatch.py trained where that one is of other images or of another split; the others, and all presets
    paper-..., none. With mixup or cutmix (table 2.6) the classifier learns in their place
    from images of the batch mixed with others, whose share of the target, drawn for each, stands for --hybrids.alpha;
    no classifier says which to leave out."""
    baseline: Flat[bool] = True
    """Train the classifier without hybrids too."""
    from_hybridizer: Flat[bool] = False
    """Start the classifier with hybrids from the one that guided the hybridizer's training (table 2.3)."""
    allow_other_split: Flat[bool] = False
    """Accept a hybridizer trained on another split of the same data, whose labels then leak."""


@dataclass(frozen=True)
class Mixer:
    """MixUp (Zhang et al. 2018) or CutMix (Yun et al. 2019) where a hybridizer might stand (table 2.6).

    Each image has a ratio of its own, λ ~ Beta(1, 1), that is uniform on [0, 1).
    """

    kind: Literal["mixup", "cutmix"]

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
def draw_hybrids(
    hybridizer: HybridSource,
    images: Images,
    labels: Int64[Tensor, " labelled"],
    *,
    copies: int,
    keep_consistent: bool,
) -> Hybrids:
    """Hybridize each image `copies` times, with the non-semantic content of random others of the batch; or mix it with
    them, which leaves nothing out.

    The first images have `labels`: their hybrids are consistent if they have this class, those of the others if they
    have the class that the hybridizer sees in their semantic parent (2.4.2). Parents are encoded once. Draws come from
    torch's global generator.
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
        expected = torch.cat([labels, logits[len(labels) :].argmax(dim=1)])
        kept = hybridizer.classify(hybrids).argmax(dim=1) == expected.repeat(copies)
    else:
        kept = torch.ones(len(hybrids), dtype=torch.bool, device=images.device)
    return Hybrids(hybrids, partner, kept)


def hybrid_loss(
    logits: Float[Tensor, "hybrids classes"],
    targets: Float[Tensor, "batch classes"],
    labels: Int64[Tensor, " labelled"],
    partner: Int64[Tensor, " hybrids"],
    kept: Bool[Tensor, " hybrids"],
    how: Teaching,
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
    logits, targets = single(logits), targets.detach()
    copies = len(logits) // len(targets)
    semantic = targets.repeat(copies, 1)
    if how.use in ("contradict", "consistency"):
        alpha = 1.0 if how.use == "consistency" else how.alpha if share is None else share.unsqueeze(1)
        assert alpha is not None
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


class WithHybrids(nn.Module):
    """The losses of a classifier's objective, `base`, and `hybrids`, on hybrids of what it taught with; the rate
    `hybrids_kept`.

    `classify` gives the logits that learn from hybrids, which have a forward of their own. Outside their window nothing
    is computed or drawn and both scalars are zero. Gradient as in `hybrid_loss`. InputError for a base that does not
    say what it taught with.
    """

    def __init__(
        self,
        base: nn.Module,
        classify: Callable[[Images], Float[Tensor, "hybrids classes"]],
        hybridizer: HybridSource,
        settings: Teaching,
    ) -> None:
        super().__init__()
        self.base, self.settings = base, settings
        # In a tuple: no part of what is trained, averaged and saved
        self._others = (classify, hybridizer)

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        outcome, (classify, hybridizer), how = self.base(batch, clock), self._others, self.settings
        if outcome.taught is None:
            raise InputError(f"hybrids: {type(self.base).__name__} does not say what it taught with")
        loss = kept = batch.labelled[0].new_zeros(())
        if how.active(clock):
            assert how.copies is not None
            images, targets, labels = outcome.taught()
            hybrids = draw_hybrids(hybridizer, images, labels, copies=how.copies, keep_consistent=how.keep_consistent)
            logits = classify(hybrids.images)
            loss = hybrid_loss(logits, targets, labels, hybrids.partner, hybrids.kept, how, hybrids.share)
            kept = hybrids.kept.float().mean()
        return outcome._replace(losses=outcome.losses | {"hybrids": loss}, rates=outcome.rates | {"hybrids_kept": kept})


def with_hybrids(
    plan: Plan, hybridizer: HybridSource, settings: Teaching, *, window: tuple[float, float] = WINDOW
) -> Plan:
    """The plan of any classifier, with the loss on hybrids added to those of its task; up to 16 pixels in this window
    unless the settings have one. InputError for a window that has no part of its epochs."""
    epochs, size = plan.clock.steps / plan.clock.steps_per_epoch, plan.context.dataset.image_size
    how = settings.chosen(size, epochs, window)
    assert how.start is not None and how.stop is not None
    if how.start >= min(how.stop, epochs):
        raise InputError(
            f"hybrids.start, hybrids.stop: the window [{how.start:g}, {how.stop:g}) has no part of the "
            f"{epochs:g} epochs"
        )
    plan.context.note("hybrids", alpha=how.alpha, copies=how.copies, start=how.start, stop=how.stop)
    if size > SMALL and how != settings:
        plan.context.tell(
            f"hybrids from epoch {how.start:.3g} to {how.stop:.3g}, {how.copies} of each image, α {how.alpha:g}, for "
            f"images above {SMALL} pixels; --hybrids.start, --hybrids.stop, --hybrids.copies, --hybrids.alpha"
        )
    task, classify = plan.tasks["classifier"], plan.classify
    assert classify is not None
    objective = WithHybrids(task.objective, lambda images: classify(plan.network, images), hybridizer, how)
    weights = {**task.weights, "hybrids": how.weight}
    return replace(plan, tasks={**plan.tasks, "classifier": replace(task, objective=objective, weights=weights)})


@settings
class InClass:
    """Hybrids in the place of labelled images, for methods that mix images (thesis 3.3.7)."""

    hybridizer: Flat[str] = "none"
    """Folder or hub id of a hybridizer, whose hybrids stand for images; bundled for the repository's own, none for
    images alone."""
    allow_other_split: Flat[bool] = False
    """Accept a hybridizer trained on another split of the same data, whose labels then leak."""
    share: Share = 0.5
    """Part of the images of a batch for which hybrids stand."""
    keep_consistent: bool = True
    """Let an image stand for itself where the hybridizer's own classifier gives its hybrid another class."""


class HybridInputs(nn.Module):
    """The losses of an objective, `base`, where hybrids stand for a part of the labelled images: each has the label of
    the image that it stands for, its semantic parent, and the non-semantic content of a random other of the batch.

    The rate `hybrids` is the part of the images for which one stands. Draws come from torch's global generator, before
    those of the base. No gradient reaches the hybridizer. InputError for batches of several views of labelled images.
    """

    def __init__(self, base: nn.Module, hybridizer: Hybridizer, *, share: float, keep_consistent: bool) -> None:
        super().__init__()
        self.base, self.share, self.keep_consistent = base, share, keep_consistent
        self._hybridizer = (hybridizer,)  # in a tuple: no part of what is trained and saved

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        if len(batch.labelled) != 1:
            raise InputError(f"hybridizer: of {len(batch.labelled)} views of labelled images; hybrids stand for one")
        (images,), (hybridizer,) = batch.labelled, self._hybridizer
        stood = torch.randperm(len(images), device=images.device)[: round(self.share * len(images))]
        others = torch.randperm(len(images), device=images.device)[: len(stood)]
        with torch.no_grad():
            hybrids = hybridizer.hybridize(semantic=images[stood], nonsemantic=images[others]).to(images.dtype)
            kept = torch.ones_like(stood, dtype=torch.bool)
            if self.keep_consistent:
                kept = hybridizer.classify(hybrids).argmax(dim=1) == batch.labels[stood]
            shown = images.index_copy(0, stood, torch.where(kept.view(-1, 1, 1, 1), hybrids, images[stood]))
        outcome = self.base(batch._replace(labelled=(shown,)), clock)
        return outcome._replace(rates=outcome.rates | {"hybrids": kept.sum() / len(images)})


def with_hybrid_inputs(plan: Plan, settings: InClass, context: Context, *, crop: int | None) -> Plan:
    """The plan of any classifier that trains on labels, with hybrids among its images; the plan itself without a
    hybridizer. InputError for MixUp and CutMix, which make none, for a hybridizer that does not fit, and where the
    plan's images are cropped."""
    if settings.hybridizer == "none":
        return plan
    if crop is not None:
        raise InputError(f"crop: {crop} pixels of images, but hybrids are of whole ones; leave out --hybridizer or it")
    if settings.hybridizer in ("mixup", "cutmix"):
        raise InputError(f"hybridizer: {settings.hybridizer} makes no hybrids of one class; give a hybridizer, or none")
    hybridizer = _read(settings.hybridizer, context, allow_other_split=settings.allow_other_split)
    task = plan.tasks["classifier"]
    objective = HybridInputs(task.objective, hybridizer, share=settings.share, keep_consistent=settings.keep_consistent)
    return replace(plan, tasks={**plan.tasks, "classifier": replace(task, objective=objective)})


def _read(source: str, context: Context, *, allow_other_split: bool) -> Hybridizer:
    """The hybridizer of this name, on the device. InputError for one that does not fit data and split."""
    dataset = context.dataset
    hybridizer = Hybridizer.from_pretrained(source)
    if source == "bundled" and hybridizer.origin.dataset != dataset.name:
        raise InputError(
            f"hybridizer: the bundled one was trained on {hybridizer.origin.dataset}, not on {dataset.name}; "
            "give one of these images (--hybridizer), which scimix.py trains, or none"
        )
    hybridizer.check_split(dataset, context.split, allow_other_split=allow_other_split)
    context.read["hybridizer"] = digest_of(hybridizer.state_dict())
    return hybridizer.to(context.accelerator.device)


def is_trained(settings: Settings, context: Context, *, rounds: int) -> bool:
    """Whether a hybridizer is to be trained first, which is told where nobody asked for it. InputError for settings
    that only another one has, and for several rounds of it."""
    trained = settings.hybridizer == "trained"
    if settings.hybridizer is None:
        origin = Hybridizer.from_pretrained("bundled").origin
        of_these = (origin.fingerprint, origin.split_hash) == (context.dataset.fingerprint, context.split.hash)
        trained = not (of_these or settings.allow_other_split)
        if trained:
            what = "images" if origin.fingerprint != context.dataset.fingerprint else "labels of these images"
            context.tell(f"a hybridizer is trained first, for the bundled one knows other {what}; --hybridizer")
            context.note("hybrids", hybridizer="trained")
    if trained and (settings.from_hybridizer or not settings.baseline):
        raise InputError(
            "hybridizer: one that is trained first is guided by the classifier without hybrids; leave out "
            "--no-baseline and --from-hybridizer, or give a --hybridizer"
        )
    if rounds > 1 and not trained:
        raise InputError(f"rounds: {rounds}, but no hybridizer is trained; --hybridizer trained trains one a round")
    return trained


def load_hybridizer(settings: Settings, context: Context, *, method: str | None = None) -> HybridSource | None:
    """What hybrids come from, on the device; None without.

    InputError for a hybridizer of another method than `method`, if one is given, of another image size or split; for
    MixUp and CutMix in another use than that of both parents' targets; and where without hybrids nothing is left to do.
    """
    source = "bundled" if settings.hybridizer is None else settings.hybridizer
    context.note("hybrids", hybridizer=source)
    if source == "trained":
        raise InputError("hybridizer: 'trained' is for scimix_fixmatch.py; give one, or train one by scimix.py")
    if source == "none":
        if settings.from_hybridizer or not settings.baseline:
            raise InputError("hybridizer: none, but --no-baseline and --from-hybridizer need one")
        return None
    if source in ("mixup", "cutmix"):
        if method is not None:
            raise InputError(f"hybridizer: {source} is none; one made by {method} is needed")
        if settings.use != "contradict":
            raise InputError(
                f"hybrids.use: {settings.use!r}, but --hybridizer {source} needs 'contradict': what it "
                "mixes has the targets of both parents, by their shares"
            )
        if settings.from_hybridizer:
            raise InputError(f"from_hybridizer: {source} has no classifier to start from")
        return Mixer(source)
    hybridizer = _read(source, context, allow_other_split=settings.allow_other_split)
    if method is not None:
        hybridizer.check_method(method)
    return hybridizer


def title_of(hybridizer: HybridSource) -> str:
    """How the method that hybrids come from is written."""
    return TITLES[hybridizer.kind if isinstance(hybridizer, Mixer) else hybridizer.origin.method]


def start_of(
    settings: Settings,
    hybridizer: HybridSource,
    classifier: ClassifierSettings,
    context: Context,
    *,
    heads: Literal[1, 2] = 1,
) -> Classifier | None:
    """The classifier that a training with hybrids starts from, if the settings say so; None for a new one."""
    if not settings.from_hybridizer:
        return None
    assert isinstance(hybridizer, Hybridizer)  # `load_hybridizer` refuses others
    made = context.classifier(classifier.network, heads=heads, momentum=classifier.momentum)
    return start_from(made, hybridizer)


def start_from(classifier: Classifier, hybridizer: Hybridizer) -> Classifier:
    """The classifier with the weights of the one that guided the hybridizer's training, of both its heads or, where it
    has one, of the first. InputError where they do not fit."""
    weights = {
        name.replace("heads.predictions.", "network.head.")
        .replace("heads.consistency.", "consistency.")
        .replace("encoder.trunk.normalize.", "normalize.")
        .replace("encoder.", "network.encoder."): tensor
        for name, tensor in hybridizer.autoencoder.classifier.state_dict().items()
    }
    if classifier.heads == 1:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("consistency.")}
    try:
        classifier.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            "from_hybridizer: the hybridizer's classifier is another network than this one; take its --network"
        ) from error
    return classifier


PAPER: dict[str, Any] = dict(
    use="contradict", alpha=0.9, copies=3, reduction="mean", threshold=0.95, keep_consistent=True, weight=1.0
)
"""Thesis 2.4.2 and A.1.2.3, α but for its bound; what windows have the methods' files."""


USERS: Mapping[str, Any] = dict(hybridizer="none")
"""Whose hybrids the papers' presets take: none, but the user's own if they are given."""


def presets(
    of_method: Mapping[str, Mapping[str, Any]], window: tuple[float, float], *, source: Mapping[str, Any] = USERS
) -> dict[str, Mapping[str, Any]]:
    """The presets of a method's recipe, with hybrids in this window of epochs; `smoke` takes seconds."""
    smoke: Mapping[str, Any] = dict(
        precision="fp32", evaluate_every=20, oracle=dict(steps=20), method=dict(epochs=1),
        hybrids=dict(start=0.2, stop=0.8),
    )  # fmt: skip
    start, stop = window
    hybrids = dict(hybrids={**PAPER, **source, "start": start, "stop": stop})
    return {"smoke": smoke} | {name: merged(preset, hybrids) for name, preset in of_method.items()}
