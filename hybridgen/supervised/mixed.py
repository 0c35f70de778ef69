"""Training on mixed images or feature maps, by any method of `hybridgen.mixing`; and on AugMix's views."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hybridgen.losses.classification import cross_entropy, smoothed, soft_cross_entropy
from hybridgen.losses.consistency import jensen_shannon
from hybridgen.mixing.mixing import Maps, Mixing, as_targets
from hybridgen.training.objective import Outcome
from hybridgen.training.schedules import Clock
from hybridgen.types import Batch, InputError

Draw = Callable[[Maps], Mixing]
"""A method of `hybridgen.mixing.methods` with its options."""


class Mixed(nn.Module):
    """Loss `supervised`: cross-entropy of mixed images with both parents' labels, by the realised ratio; the rate
    `ratio` is its batch mean.

    `draw` mixes with `probability`, and images stay as they are else; without it they always do. With `stages` the
    place is drawn for every step: the images, or what goes into one of these sub-modules of the classifier (Manifold
    Mixup, Verma et al. 2019; PatchUp, Faramarzi et al. 2020). PatchUp mixes images by another method, `draw_images`.
    `smoothing` is label smoothing's (Szegedy et al. 2016).

    Batches carry one view of labelled images. Raises InputError for a probability or smoothing outside [0, 1].
    """

    def __init__(
        self,
        classifier: nn.Module,
        classes: int,
        *,
        draw: Draw | None = None,
        probability: float = 1.0,
        stages: Sequence[nn.Module] = (),
        draw_images: Draw | None = None,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        for field, share in (("probability", probability), ("smoothing", smoothing)):
            if not 0 <= share <= 1:
                raise InputError(f"{field}: {share} is outside [0, 1]")
        self.classifier, self.classes, self.draw, self.probability = classifier, classes, draw, probability
        self.draw_images, self.smoothing = draw_images or draw, smoothing
        self._stages = tuple(stages)  # in a tuple: parts of the classifier already

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        (images,) = batch.labelled
        targets = smoothed(as_targets(batch.labels, self.classes), self.smoothing)
        ratio = images.new_ones(())

        # Drawn in every step and on a CPU, so that nothing waits for the device
        chance, place = torch.rand(()).item(), int(torch.randint(1 + len(self._stages), ()))
        if self.draw is None or chance >= self.probability:
            logits = self.classifier(images)
        elif place == 0:
            mixing = self.draw_images(images)
            logits = self.classifier(mixing.mix(images))
            targets, ratio = mixing.mix_targets(targets), mixing.ratio.mean()
        else:
            with mixed_before(self._stages[place - 1], self.draw) as drawn:
                logits = self.classifier(images)
            (mixing,) = drawn
            targets, ratio = mixing.mix_targets(targets), mixing.ratio.mean()
        return Outcome({"supervised": soft_cross_entropy(logits, targets)}, {"ratio": ratio})


@contextmanager
def mixed_before(stage: nn.Module, draw: Draw) -> Iterator[list[Mixing]]:
    """Feature maps on their way into `stage` are mixed; gives the list to which their mixings are appended."""
    drawn: list[Mixing] = []

    def mix(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        drawn.append(draw(inputs[0]))
        return drawn[-1].mix(inputs[0]), *inputs[1:]

    handle = stage.register_forward_pre_hook(mix)
    try:
        yield drawn
    finally:
        handle.remove()


class AugMix(nn.Module):
    """AugMix's training (Hendrycks et al. 2020): loss `supervised` on the first view alone, and with three views
    `jensen_shannon` between their predictions.

    Batches carry one view of labelled images, augmented by `hybridgen.data.augment.augmix`; or three, of which the
    first is clean. All views go through the classifier in one forward.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        logits = self.classifier(torch.cat(batch.labelled)).chunk(len(batch.labelled))
        losses = {"supervised": cross_entropy(logits[0], batch.labels)}
        if len(logits) == 3:
            losses["jensen_shannon"] = jensen_shannon(*logits)
        return Outcome(losses)
