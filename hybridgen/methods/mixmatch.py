"""MixMatch (Berthelot et al. 2019), or with hybrids in the place of MixUp (SAMOSA)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from hybridgen.losses.classification import sharpen, soft_cross_entropy
from hybridgen.losses.consistency import mean_squared
from hybridgen.methods.classifiers import ClassifierSettings, classifier_plan, unrecorded
from hybridgen.mixing import masks
from hybridgen.mixing.mixing import Mixing
from hybridgen.settings import NUMBER, Count, Few, Flat, Positive, Weight, Whole, merged, settings
from hybridgen.training.context import Context
from hybridgen.training.objective import Guessed, Outcome, Task, Taught, adam
from hybridgen.training.plan import Plan
from hybridgen.training.schedules import Clock, cosine, step_ramp
from hybridgen.types import Batch, Images, InputError, single


@settings
class Settings(ClassifierSettings):
    """How MixMatch trains. The defaults suit digits-m."""

    epochs: Flat[Positive | None] = None
    """Passes over the unlabelled images; unless given 8, of fewer than 20 steps several in the place of each."""
    rate = 0.01
    weight_decay = 0.02
    labelled_batch: Flat[Count | None] = None
    """Labelled images a step, all processes together; unless given as many as unlabelled ones."""
    unlabelled_batch: Flat[Count | None] = None
    """Unlabelled images a step, all processes together; unless given as many as labelled ones, which are 32, or all
    where there are fewer."""
    guesses: Few = 2
    """K: views of each unlabelled image, over which its guessed label is averaged."""
    temperature: Positive = 0.5
    """T, by which guesses are sharpened."""
    alpha: Annotated[float, Field(ge=1e-3, le=1e3), NUMBER] = 0.75
    """α of the beta distribution that mixing ratios are drawn from."""
    weight_unsupervised: Weight = 75.0
    """λ_u, of the loss on guesses, after its ramp."""
    ramp_steps: Whole = 1300
    """Steps over which λ_u grows linearly."""


EPOCHS = 8
"""How many, unless given."""


@dataclass(frozen=True)
class Replacement:
    """Hybrids that now and then take the place of a whole batch's MixUp (SAMOSA; thesis, algorithm A.2)."""

    hybridize: Callable[[Images, Images], Images]
    """Hybrids of semantic and non-semantic parents, one for each pair; called without gradient."""
    probability: float
    """Of a step in the window."""
    window: Callable[[Clock], bool]
    """When hybrids may be used."""

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise InputError(f"probability: {self.probability} is outside [0, 1]")


class MixMatch(nn.Module):
    """Losses `supervised` and `unsupervised`.

    The guess for an unlabelled image is the classifier's mean probability over its views, sharpened, without gradient.
    Labelled images and all views of the unlabelled are mixed with random others of them all, images and targets alike,
    in a share λ' = max(λ, 1 - λ) with λ ~ Beta(alpha, alpha) of each image's own. Mixed batches are interleaved, so
    that each one the classifier sees holds labelled and unlabelled images; only the first of them moves batch-norm's
    running statistics. It taught with labels and guesses for the labelled images and the first views of the others.

    With a `replacement`, a step in its window mixes by hybrids instead, whose targets are those of their semantic
    parents; the rate `replaced` is 1 in such a step and 0 in others.

    Batches carry one view of the labelled images and one or more of as many unlabelled. `classifier(images)` gives
    logits. Raises InputError for a temperature or alpha that is not above 0; in forward, for no unlabelled view and
    for unequal numbers of labelled and unlabelled images.
    """

    def __init__(
        self, classifier: nn.Module, *, temperature: float, alpha: float, replacement: Replacement | None
    ) -> None:
        super().__init__()
        for field, value in (("temperature", temperature), ("alpha", alpha)):
            if not value > 0:
                raise InputError(f"{field}: {value} is not above 0")
        self.classifier, self.temperature, self.alpha = classifier, temperature, alpha
        self.replacement = replacement

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        (labelled,), views = batch.labelled, batch.unlabelled
        if not views:
            raise InputError("unlabelled: no view of the images; one or more are needed to guess their labels")
        size = len(labelled)
        if len(views[0]) != size:
            raise InputError(
                f"unlabelled_batch: {len(views[0])} images beside {size} labelled ones; MixMatch interleaves batches "
                "of the same size"
            )

        # Targets
        guess = self._guess(views)
        known = F.one_hot(batch.labels, guess.shape[1]).to(guess.dtype)
        images, targets = torch.cat([labelled, *views]), torch.cat([known, *[guess] * len(views)])

        # Mixing
        mixed, mixed_targets, rates = self._mix(images, targets, clock)

        # Predictions
        order = interleaving(1 + len(views), size).to(images.device, non_blocking=True)
        first, *others = mixed[order].split(size)
        logits = [self.classifier(first), *(unrecorded(self.classifier, other) for other in others)]
        logits = torch.cat(logits)[order]

        losses = {
            "supervised": soft_cross_entropy(logits[:size], mixed_targets[:size]),
            "unsupervised": mean_squared(single(logits[size:]).softmax(dim=1), mixed_targets[size:]),
        }
        taught = lambda: Taught(images[: 2 * size], targets[: 2 * size], batch.labels)
        return Outcome(losses, rates, taught=taught, guessed=Guessed(guess.argmax(dim=1)))

    @torch.no_grad()
    def _guess(self, views: tuple[Images, ...]) -> Float[Tensor, "batch classes"]:
        probabilities = [single(unrecorded(self.classifier, view)).softmax(dim=1) for view in views]
        return sharpen(torch.stack(probabilities).mean(dim=0), self.temperature)

    @torch.no_grad()
    def _mix(
        self, images: Images, targets: Float[Tensor, "batch classes"], clock: Clock
    ) -> tuple[Images, Float[Tensor, "batch classes"], dict[str, Tensor]]:
        """Mixed images, their targets, and the rate. All is drawn in every step, so that no window moves a draw."""
        partner = torch.randperm(len(images), device=images.device)
        odds = masks.beta_log_odds(len(images), self.alpha, device=images.device, dtype=images.dtype)
        rates = {}
        if self.replacement is not None:
            replaced = torch.rand(()).item() < self.replacement.probability  # drawn on a CPU: nothing waits
            replaced = replaced and self.replacement.window(clock)
            rates = {"replaced": images.new_full((), float(replaced))}
            if replaced:
                return self.replacement.hybridize(images, images[partner]), targets, rates
        mixing = Mixing(odds.abs().sigmoid().view(-1, 1, 1, 1), partner)  # λ' = max(λ, 1 - λ)
        return mixing.mix(images), mixing.mix_targets(targets), rates


def interleaving(groups: int, size: int) -> Int64[Tensor, " rows"]:
    """The order of rows that puts a part of every group into the first one; applied twice, it is undone.

    Rows are those of `groups` concatenated groups of `size` each. A group has as many parts as there are groups, the
    last ones longer by a row where need be; the first group and group i exchange their i-th parts.
    """
    rows, lengths = torch.arange(size), [(size + part) // groups for part in range(groups)]
    part = torch.arange(groups).repeat_interleave(torch.tensor(lengths))
    group = torch.arange(groups).unsqueeze(1).repeat(1, size)
    group[0] = part
    group[part, rows] = 0
    return (group * size + rows).flatten()


def plan(
    settings: Settings,
    context: Context,
    seed: int,
    *,
    classifier: nn.Module | None = None,
    replacement: Replacement | None = None,
) -> Plan:
    """MixMatch on this split from this seed; of a classifier that is there already, if one is given, and with hybrids
    in the place of some MixUp. InputError for batches of unequal size."""
    first, second = settings.labelled_batch, settings.unlabelled_batch
    if first is None and second is None:
        first, _ = context.batch_sizes(None, None, (32, 32))
    labelled, unlabelled = (second if first is None else first), (first if second is None else second)
    if labelled != unlabelled:
        raise InputError(
            f"unlabelled_batch: {unlabelled} beside {labelled} labelled images; MixMatch interleaves batches of the "
            "same size"
        )
    stream = context.stream(
        seed,
        labelled=labelled,
        labelled_views=(context.weak(),),
        unlabelled=unlabelled,
        unlabelled_views=(context.weak(),) * settings.guesses,
    )
    torch.manual_seed(seed)
    classifier = classifier or context.classifier(settings.network, momentum=settings.momentum)
    objective = MixMatch(classifier, temperature=settings.temperature, alpha=settings.alpha, replacement=replacement)
    task = Task(
        objective,
        {
            "supervised": settings.weight_supervised,
            "unsupervised": step_ramp(settings.weight_unsupervised, settings.ramp_steps),
        },
        adam(objective, betas=(0.9, 0.999), decay=settings.weight_decay, decay_all=False),
        cosine(settings.rate, settings.rate_epochs) if settings.rate_epochs else lambda clock: settings.rate,
    )
    return classifier_plan(settings, context, stream, classifier, task, usual=EPOCHS)


PAPER: dict[str, Any] = dict(
    data="cifar10", precision="fp32", validation=0, record_every=100, evaluate_every=1950, save_every=1950,
    method=dict(
        epochs=900, rate=0.002, weight_decay=0.02, weight_unsupervised=37.5, ramp_steps=16_384, ema_decay=0.999,
        network="leaky-wrn-28-2-normalized", momentum=0.1, clip=1.0, guesses=2, temperature=0.5, alpha=0.75,
    ),
)  # fmt: skip
PRESETS: dict[str, Mapping[str, Any]] = {
    f"paper-cifar10-{n}": merged(
        PAPER, dict(labels=n, method=dict(labelled_batch=min(n, 256), unlabelled_batch=min(n, 256)))
    )
    for n in (250, 500, 1000)
}
"""Thesis A.1.1."""
WINDOW = (150, 450)
"""Epochs in which SciMix's hybrids teach: the thesis has none with MixMatch, this is Mean Teacher's share of them."""
SMALL_WINDOW = (1.0, 7.0)
"""The same of the eight epochs of images up to 16 pixels."""
