"""SAMOSA: a classifier, the auto-encoder that learns beside it and regularizes it, and their hybrids (thesis 2.3;
algorithms A.1 to A.3)."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from hybridgen.data.datasets import Dataset
from hybridgen.data.splits import Split
from hybridgen.data.streams import Stream, derive_seed
from hybridgen.hybridizer import Hybridizer, Origin
from hybridgen.losses.reconstruction import Reduction, squared_error
from hybridgen.methods.classifiers import ClassifierSettings
from hybridgen.networks.autoencoder import SamosaArchitecture, SamosaAutoencoder, SamosaClassifier, SamosaFeatures
from hybridgen.networks.decoder import SamosaDecoder
from hybridgen.networks.frozen import frozen
from hybridgen.networks.wide_resnet import Normalize
from hybridgen.settings import Count, Epoch, Few, Positive, Weight, settings
from hybridgen.training.context import Context
from hybridgen.training.ema import EMA
from hybridgen.training.engine import agree
from hybridgen.training.objective import Outcome, Task, sgd
from hybridgen.training.plan import Plan, by_accuracy, in_cycles
from hybridgen.training.schedules import Clock, cosine, cycle_of, cycled, within
from hybridgen.types import Batch, Images, InputError, Labels


@settings
class Settings:
    """How the auto-encoder trains, and when its hybrids are used. The defaults suit digits-m."""

    rate: Positive = 0.6
    """Learning rate of E_r and D at the start."""
    rate_epochs: Positive | None = None
    """Epochs in which it would decrease fully, along a cosine; those of a cycle unless given."""
    weight_decay: Weight = 5e-4
    """Weight decay of E_r and D."""
    clip: Positive | None = 1.0
    """Largest norm of the gradient of E_r and D."""
    reduction: Reduction = "mean"
    """Of both squared distances over an image's or a map's elements."""
    weight_reconstruction: Weight = 0.25
    """λ_rec of L_rec (2.7)."""
    weight_regularizer: Weight = 0.5
    """λ_SAMOSA of Ω_rec (2.7)."""
    cycles: Few = 2
    """Trainings one after the other, each of the classifier's epochs; rates start anew."""
    hybrids_per_image: Few = 10
    """Hybrids of each labelled image, made after each cycle as further labelled images of the next."""
    start: Epoch = 1.5
    """First epoch of a cycle with hybrids."""
    stop: Epoch = 12
    """First epoch of a cycle without them again."""
    snapshot_every: Count | None = None
    """Steps between copies of the hybridizer in the run's snapshots/step-N, for `hybridgen study transfer`; none unless
    given."""

    def window(self, clock: Clock) -> bool:
        """Whether hybrids are used at this time of the run."""
        return within(cycle_of(clock, self.cycles), self.start, self.stop)


class Seen(NamedTuple):
    """Images that a watched classifier saw, and what it made of them."""

    images: Images
    semantic: Float[Tensor, "batch channels rows columns"]
    """z_c."""
    before: Float[Tensor, "batch channels rows columns"]
    """The output of E_c's last convolution but one."""


class _Memory(list[Seen]):
    """Not copied with its owner: what a step saw belongs to that step's graph."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Memory":
        return _Memory()


class Watched(nn.Module):
    """SAMOSA's classifier as the base method X knows one: images to the logits of one head or of both.

    Keeps what the forwards that carry gradient saw until it is `taken`. The memory is no part of the state, copies
    (a teacher) start with an empty one, and `torch.func.functional_call` fills it too. With one head the second does
    not learn.
    """

    def __init__(self, classifier: SamosaClassifier, *, heads: Literal[1, 2]) -> None:
        super().__init__()
        self.classifier, self.heads = classifier, heads
        self._memory = _Memory()
        if heads == 1:
            classifier.heads.consistency.requires_grad_(False)

    def forward(
        self, images: Images
    ) -> Float[Tensor, "batch classes"] | tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
        """Predictions; or predictions and consistency."""
        features: SamosaFeatures = self.classifier(images)
        if features.before.requires_grad:
            self._memory.append(Seen(images, features.semantic, features.before))
        return features.predictions if self.heads == 1 else (features.predictions, features.consistency)

    def taken(self) -> Seen:
        """What was seen since the last time, in order. InputError if that is nothing."""
        if not self._memory:
            raise InputError("watched: the classifier saw no images with gradient; is it the base objective's?")
        seen = Seen(*(torch.cat(parts) for parts in zip(*self._memory, strict=True)))
        self.forget()
        return seen

    def forget(self) -> None:
        """Empty the memory."""
        self._memory.clear()


class Samosa(nn.Module):
    """L_0,X and Ω_rec (equations 2.6 and 2.7), for E_c and C.

    `base` is the objective of method X on the `watched` classifier. Losses: X's, and `regularizer`, which ties E_c's
    last convolution but one to D^(0)(z_c). Its gradient reaches the layers up to that convolution, not E_c's last one,
    nor C; D^(0) is frozen and z_c detached. Hands on the images that X's forwards with gradient saw, and their z_c,
    for `SamosaReconstruction`.

    With `clean_only` both losses take only the first of these: the labelled and one view of the unlabelled images of
    the batch, which FixMatch shows before the strong views (strong augmentations "interfere with the generative
    process", 2.3.5). InputError for a base objective that does not contain `watched`, hands something on, or showed
    it too little.
    """

    def __init__(
        self,
        base: nn.Module,
        watched: Watched,
        decoder: SamosaDecoder,
        *,
        clean_only: bool,
        reduction: Reduction,
    ) -> None:
        super().__init__()
        if not any(module is watched for module in base.modules()):
            raise InputError("watched: is no part of the base objective, and would see nothing")
        self.base = base
        self._watched = (watched,)  # in a tuple: a part of `base` already
        self.first = frozen(decoder.first)
        self.clean_only, self.reduction = clean_only, reduction

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        (watched,) = self._watched
        watched.forget()
        outcome = self.base(batch, clock)
        if outcome.handed:
            raise InputError("base: hands on tensors, but the reconstruction's objective comes next")
        seen = watched.taken()
        if self.clean_only:
            clean = len(batch.labels) + len(batch.unlabelled[0])
            if len(seen.images) < clean:
                raise InputError(
                    f"base: showed the classifier {len(seen.images)} images, fewer than {clean} clean ones"
                )
            seen = Seen(*(part[:clean] for part in seen))
        semantic = seen.semantic.detach()
        regularizer = squared_error(seen.before, self.first(semantic), reduction=self.reduction)
        losses = outcome.losses | {"regularizer": regularizer}
        return outcome._replace(losses=losses, handed=(seen.images.detach(), semantic))


class SamosaReconstruction(nn.Module):
    """L_rec (equation 2.7), for E_r and D: how far D(z_c, E_r(x)) is from the standardised image x.

    Loss: `reconstruction`. Gradient reaches E_r and D and never E_c: trained for reconstruction, it would let D ignore
    z_r (thesis 2.3.3).
    """

    def __init__(
        self,
        nonsemantic_encoder: nn.Module,
        decoder: SamosaDecoder,
        normalize: Normalize,
        *,
        reduction: Reduction,
    ) -> None:
        super().__init__()
        self.nonsemantic_encoder, self.decoder, self.normalize = nonsemantic_encoder, decoder, normalize
        self.reduction = reduction

    def forward(
        self, batch: Batch, clock: Clock, images: Images, semantic: Float[Tensor, "batch channels rows columns"]
    ) -> Outcome:
        output = self.decoder(semantic.detach(), self.nonsemantic_encoder(images))
        return Outcome({"reconstruction": squared_error(output, self.normalize(images), reduction=self.reduction)})


@torch.no_grad()
def samosa_hybrids(
    autoencoder: SamosaAutoencoder, semantic: Images, nonsemantic: Images, labels: Labels | None = None
) -> tuple[Images, Bool[Tensor, " batch"]]:
    """Algorithm A.3: hybrids of pairs of images in [0, 1], and which of them were kept; never with gradient.

    A hybrid is kept if C(E_c(x_h)) gives it the label of its semantic parent, who else takes its place (thesis 2.3.4;
    the algorithm's own test is the wrong way round). Without `labels` it is the class that C gives this parent.
    Networks run in evaluation mode, and are left in the mode they were in.
    """
    with _evaluation(autoencoder):
        parents: SamosaFeatures = autoencoder.classifier(semantic)
        hybrids = autoencoder.decode(parents.semantic, autoencoder.nonsemantic_encoder(nonsemantic))
        expected = parents.predictions.argmax(dim=1) if labels is None else labels
        kept = autoencoder.classifier(hybrids).predictions.argmax(dim=1) == expected
    return torch.where(kept[:, None, None, None], hybrids, semantic), kept


@contextmanager
def _evaluation(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards every module's own mode again."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class HybridSet(nn.Module):
    """Hybrids of the labelled images, as labelled images of their own: a part of checkpoints."""

    images: UInt8[Tensor, "hybrids 3 size size"]

    def __init__(self, dataset: Dataset, split: Split, copies: int) -> None:
        super().__init__()
        side = dataset.image_size
        self.semantic = torch.tensor(split.labelled).repeat(copies)
        self.register_buffer("images", torch.zeros(len(self.semantic), 3, side, side, dtype=torch.uint8))

    @torch.no_grad()
    def make(self, autoencoder: SamosaAutoencoder, dataset: Dataset, split: Split, seed: int) -> float:
        """Hybridize every labelled image `copies` times with random training images; the share that was kept.

        One whose predicted class is another gives way to its semantic parent (2.3.4). All follows from the seed.
        """
        pool = torch.tensor(sorted(split.labelled + split.unlabelled))
        chosen = torch.randint(len(pool), (len(self.semantic),), generator=torch.Generator().manual_seed(seed))
        device, kept = self.images.device, 0
        for rows in torch.arange(len(self.semantic)).split(512):
            semantic, nonsemantic = (
                dataset.train.images.gather(indices).to(device) / 255
                for indices in (self.semantic[rows], pool[chosen[rows]])
            )
            labels = dataset.train.labels[self.semantic[rows]].to(device)
            hybrids, is_kept = samosa_hybrids(autoencoder, semantic, nonsemantic, labels)
            self.images[rows] = (hybrids * 255).round().to(torch.uint8)
            kept += int(is_kept.sum())
        return kept / len(self.semantic)


# --- the plan -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Networks:
    """SAMOSA's, and its classifier as the base method sees it."""

    autoencoder: SamosaAutoencoder
    watched: Watched
    epochs: float | None
    """Of a cycle, if they are given."""

    def hybridize(self, semantic: Images, nonsemantic: Images) -> Images:
        """Hybrids that kept their class, and else their semantic parents."""
        return samosa_hybrids(self.autoencoder, semantic, nonsemantic)[0]


def networks(classifier: ClassifierSettings, context: Context, seed: int, *, heads: Literal[1, 2]) -> Networks:
    """New ones, whose E_c and C are the classifier's network. InputError for another family, and for an image size that
    the decoder cannot make."""
    dataset = context.dataset
    architecture = SamosaArchitecture(
        image_size=dataset.image_size,
        classes=len(dataset.classes),
        mean=dataset.mean,
        std=dataset.std,
        network=context.network(classifier.network),
        momentum=0.1 if classifier.momentum is None else classifier.momentum,
    )
    torch.manual_seed(seed)
    autoencoder = context.laid_out(SamosaAutoencoder(architecture), compiled=False)
    if context.settings.compiled:  # the parts that the objectives call
        for part in (autoencoder.classifier, autoencoder.nonsemantic_encoder, autoencoder.decoder):
            part.compile()
    return Networks(autoencoder, Watched(autoencoder.classifier, heads=heads), classifier.epochs)


def alone(base: Plan, settings: Settings) -> Plan:
    """The base method in as many cycles, to compare with. InputError for a window that has no part of a cycle."""
    epochs = base.clock.steps / base.clock.steps_per_epoch
    if settings.start >= min(settings.stop, epochs):
        raise InputError(
            f"samosa.start, samosa.stop: the window [{settings.start:g}, {settings.stop:g}) has no part of the "
            f"{epochs:g} epochs"
        )
    return in_cycles(base, settings.cycles)


def with_samosa(
    base: Plan,
    made: Networks,
    settings: Settings,
    seed: int,
    *,
    clean_only: bool = False,
    drawn: bool = True,
) -> Plan:
    """The plan of a base method on the watched classifier, with the auto-encoder beside it, in cycles (algorithm A.1).

    Labelled images of the second and later cycles are drawn from hybrids of the cycle before as well, in the window,
    if `drawn`: MixMatch uses them in another way (A.2). FixMatch's reconstructions are of clean images alone. Leaves
    the hybridizer, the average of the networks, in the run's folder.
    """
    context, autoencoder = base.context, made.autoencoder
    plan = alone(base, settings)
    cycle_steps, clock = base.clock.steps, plan.clock

    # Tasks
    classifying = Samosa(
        base.tasks["classifier"].objective,
        made.watched,
        autoencoder.decoder,
        clean_only=clean_only,
        reduction=settings.reduction,
    )
    reconstructing = SamosaReconstruction(
        autoencoder.nonsemantic_encoder, autoencoder.decoder, autoencoder.normalize, reduction=settings.reduction
    )
    first = plan.tasks["classifier"]
    tasks = {
        "classifier": replace(
            first,
            objective=classifying,
            weights={**first.weights, "regularizer": settings.weight_regularizer},
        ),
        "reconstruction": Task(
            reconstructing,
            {"reconstruction": settings.weight_reconstruction},
            sgd(reconstructing, decay=settings.weight_decay),
            cycled(cosine(settings.rate, settings.rate_epochs or made.epochs), settings.cycles),
            clip=settings.clip,
        ),
    }
    assert base.average is not None
    average = EMA(autoencoder, base.average.decay, linear_start=False, buffers="copy").eval()
    hybridizer = Hybridizer(average.network, Origin.of(context, "samosa"))
    hybrids = HybridSet(context.dataset, context.split, settings.hybrids_per_image).to(context.accelerator.device)

    def after_step(folder: Path) -> Mapping[str, float]:
        noted = base.after_step(folder)
        if settings.snapshot_every and clock.every(settings.snapshot_every):
            hybridizer.save_by_first(folder / "snapshots" / f"step-{clock.step}", context.accelerator)
        if clock.step % cycle_steps or clock.done or not drawn:
            return noted
        agree(average, context.accelerator)
        cycle_seed = derive_seed(seed, "hybrids", clock.step // cycle_steps)
        kept = hybrids.make(average.network, context.dataset, context.split, cycle_seed)
        return {**noted, "hybrids_kept": kept}

    stream = base.stream
    if drawn:
        assert isinstance(base.stream, Stream)
        stream = Cycles(base.stream, hybrids, settings, context, cycle_steps, clock.steps_per_epoch)
    classify = lambda network, images: network.classifier(images).predictions
    return replace(
        plan,
        stream=stream,
        tasks=tasks,
        network=autoencoder,
        average=average,
        classify=classify,
        score=by_accuracy(context, classify),
        modules={"hybrids": hybrids},
        after_step=after_step,
        finish=lambda folder, _: hybridizer.save_by_first(folder / "hybridizer", context.accelerator),
    )


@dataclass(frozen=True)
class Cycles:
    """Batches of all cycles: after the first one labelled images are drawn from hybrids too, in the window."""

    plain: Stream
    hybrids: HybridSet
    settings: Settings
    context: Context
    cycle_steps: int
    steps_per_epoch: int

    @property
    def images_per_step(self) -> int:
        return self.plain.images_per_step

    def from_step(self, step: int) -> Iterator[Batch]:
        """Batches of the steps `step`, `step` + 1, … without end."""
        while True:
            drawn, until = stretch(self.settings, step, self.steps_per_epoch, self.cycle_steps)
            stream = self._with_hybrids() if drawn else self.plain
            yield from islice(stream.from_step(step), until - step)
            step = until

    def _with_hybrids(self) -> Stream:
        train, split = self.context.dataset.train, self.context.split
        part = train.extended(self.hybrids.images, train.labels[self.hybrids.semantic])
        pool = (*split.labelled, *range(len(train), len(part)))
        return self.plain.drawing(part, labelled_pool=pool)


def stretch(settings: Settings, step: int, steps_per_epoch: int, cycle_steps: int) -> tuple[bool, int]:
    """Whether labelled images are drawn from hybrids too at `step`, and the step at which that may change."""
    cycle, place = divmod(step, cycle_steps)
    begin = cycle * cycle_steps
    first, last = (math.ceil(min(cycle_steps, epoch * steps_per_epoch)) for epoch in (settings.start, settings.stop))
    if cycle == 0 or place >= last:
        return False, begin + cycle_steps
    return (True, begin + last) if place >= first else (False, begin + first)


SMOKE: dict[str, Any] = dict(
    precision="fp32",
    evaluate_every=20,
    oracle=dict(steps=20),
    method=dict(epochs=0.5),
    samosa=dict(start=0.1, stop=0.4),
)


PAPER: dict[str, Any] = dict(
    rate=0.2, weight_decay=5e-4, clip=1.0, weight_reconstruction=0.25, weight_regularizer=0.5, reduction="mean"
)
"""Thesis A.1.1, what its settings have in common."""
