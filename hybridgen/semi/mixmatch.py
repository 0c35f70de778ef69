"""MixMatch (Berthelot et al. 2019), with or without hybrids, or with hybrids in the place of MixUp."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.func import functional_call

from hybridgen.losses.classification import sharpen, soft_cross_entropy
from hybridgen.losses.consistency import mean_squared
from hybridgen.mixing import masks
from hybridgen.mixing.mixing import Mixing
from hybridgen.semi.hybrids import HybridSource, HybridUse, with_hybrids
from hybridgen.training.objective import Outcome
from hybridgen.training.schedules import Clock, within
from hybridgen.types import Batch, Images, InputError


@dataclass(frozen=True)
class Replacement:
    """Hybrids that now and then take the place of a whole batch's MixUp (SAMOSA; thesis, algorithm A.2)."""

    hybridize: Callable[[Images, Images], Images]
    """Hybrids of semantic and non-semantic parents, one for each pair; called without gradient."""
    _: KW_ONLY
    probability: float = 0.2
    """Of a step in the window."""
    start: float
    """First epoch with hybrids."""
    stop: float
    """First epoch without them again."""

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise InputError(f"probability: {self.probability} is outside [0, 1]")
        if self.start >= self.stop:
            raise InputError(f"replacement: no epoch lies in [{self.start}, {self.stop})")


class MixMatch(nn.Module):
    """Losses `supervised` and `unsupervised`, and with a hybridizer `hybrids`.

    The guess for an unlabelled image is the classifier's mean probability over its views, sharpened, without gradient.
    Labelled images and all views of the unlabelled are mixed with random others of them all, images and targets alike,
    in a share λ' = max(λ, 1 - λ) with λ ~ Beta(alpha, alpha) of each image's own. Mixed batches are interleaved, so
    that each one the classifier sees holds labelled and unlabelled images; only the first of them moves batch-norm's
    running statistics, and so do hybrids, whose targets are labels and guesses.

    With a `replacement`, a step in its window mixes by hybrids instead, whose targets are those of their semantic
    parents; the rate `replaced` is 1 in such a step and 0 in others.

    Batches carry one view of the labelled images and one or more of as many unlabelled. `classifier(images)` gives
    logits. Raises InputError for a temperature or alpha that is not above 0; in forward, for no unlabelled view and
    for unequal numbers of labelled and unlabelled images.
    """

    def __init__(
        self,
        classifier: nn.Module,
        *,
        temperature: float = 0.5,
        alpha: float = 0.75,
        hybridizer: HybridSource | None = None,
        how: HybridUse | None = None,
        replacement: Replacement | None = None,
    ) -> None:
        super().__init__()
        for field, value in (("temperature", temperature), ("alpha", alpha)):
            if not value > 0:
                raise InputError(f"{field}: {value} is not above 0")
        self.classifier, self.temperature, self.alpha = classifier, temperature, alpha
        self._hybridizer = (hybridizer,)  # in a tuple: not a part of what is trained, averaged and saved
        self.how = how or HybridUse()
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
        order = interleaving(1 + len(views), size).to(images.device)
        first, *others = mixed[order].split(size)
        logits = [self.classifier(first), *(_unrecorded(self.classifier, other) for other in others)]
        logits = torch.cat(logits)[order]

        losses = {
            "supervised": soft_cross_entropy(logits[:size], mixed_targets[:size]),
            "unsupervised": mean_squared(logits[size:].softmax(dim=1), mixed_targets[size:]),
        }
        return with_hybrids(
            Outcome(losses, rates),
            self.classifier,
            *self._hybridizer,
            images[: 2 * size],
            targets[: 2 * size],
            batch.labels,
            self.how,
            clock,
        )

    @torch.no_grad()
    def _guess(self, views: tuple[Images, ...]) -> Float[Tensor, "batch classes"]:
        probabilities = [_unrecorded(self.classifier, view).softmax(dim=1) for view in views]
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
            replaced = torch.rand(()).item() < self.replacement.probability
            replaced = replaced and within(clock, self.replacement.start, self.replacement.stop)
            rates = {"replaced": images.new_tensor(float(replaced))}
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


def _unrecorded(classifier: nn.Module, images: Images) -> Float[Tensor, "batch classes"]:
    """The classifier's logits; batch-norm's running statistics stay as they are. Gradient reaches the parameters."""
    buffers = {name: buffer.clone() for name, buffer in classifier.named_buffers()}
    return functional_call(classifier, buffers, (images,))
