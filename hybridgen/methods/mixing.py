"""The hand-made methods of mixing as their papers train with them: images or feature maps of a batch mixed with others
of it, by any method of `hybridgen.mixing`; in one table with AugMix and RecursiveMix."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from hybridgen.losses.classification import smoothed, soft_cross_entropy
from hybridgen.methods import augmix, recursivemix
from hybridgen.methods.labelled import CIFAR, Made, TrainingSettings, labelled_plan
from hybridgen.mixing import methods as draws
from hybridgen.mixing.mixing import Maps, Mixing, as_targets
from hybridgen.networks.classifiers import Classifier
from hybridgen.settings import merged
from hybridgen.training.context import Context
from hybridgen.training.objective import Outcome
from hybridgen.training.plan import Plan
from hybridgen.training.schedules import Clock
from hybridgen.types import Batch, InputError

Draw = Callable[[Maps], Mixing]
"""A method of `hybridgen.mixing.methods` with its options."""

Alphas = Literal["own", "automix"]
"""How the methods mix: as each one's own paper, or as AutoMix's authors compare them on CIFAR (AutoMix, A.1 and their
code)."""

TITLES = {
    "none": "No mixing",
    "mixup": "Mixup",
    "cutmix": "CutMix",
    "cutmix-resized": "CutMix, resized",
    "manifold-mixup": "Manifold Mixup",
    "resizemix": "ResizeMix",
    "saliencymix": "SaliencyMix",
    "fmix": "FMix",
    "cowmix": "CowMix",
    "horizontal-concat": "Horizontal concat",
    "vertical-concat": "Vertical concat",
    "patchup-hard": "PatchUp, hard",
    "patchup-soft": "PatchUp, soft",
    "augmix": "AugMix",
    "augmix-jsd": "AugMix with JSD",
    "recursivemix": "RecursiveMix",
    "recursivemix-no-consistency": "RecursiveMix, no CL",
}
"""Of all methods, by the names that command lines give them."""


class Mixed(nn.Module):
    """Loss `supervised`: cross-entropy of mixed images with both parents' labels, by the realised ratio; the rate
    `ratio` is its batch mean.

    `draw` mixes with `probability`, and images stay as they are else; without it they always do. With `stages` the
    place is drawn for every step: the images, or what goes into one of these sub-modules of the classifier (Manifold
    Mixup, Verma et al. 2019; PatchUp, Faramarzi et al. 2020). PatchUp mixes images by another method, `draw_images`.
    `smoothing` is label smoothing's (Szegedy et al. 2016). On mixed maps the loss has as many equal `terms`: PatchUp's
    two, one by each of its ways to write the same target.

    Batches carry one view of labelled images. Raises InputError for a probability or smoothing outside [0, 1].
    """

    def __init__(
        self,
        classifier: nn.Module,
        classes: int,
        *,
        draw: Draw | None,
        probability: float,
        stages: Sequence[nn.Module],
        draw_images: Draw | None,
        smoothing: float,
        terms: int,
    ) -> None:
        super().__init__()
        for field, share in (("probability", probability), ("smoothing", smoothing)):
            if not 0 <= share <= 1:
                raise InputError(f"{field}: {share} is outside [0, 1]")
        self.classifier, self.classes, self.draw, self.probability = classifier, classes, draw, probability
        self.draw_images, self.smoothing, self.terms = draw_images or draw, smoothing, terms
        self._stages = tuple(stages)  # in a tuple: parts of the classifier already

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        (images,) = batch.labelled
        targets = smoothed(as_targets(batch.labels, self.classes), self.smoothing)
        ratio, terms = images.new_ones(()), 1

        # Drawn in every step and on a CPU, so that nothing waits for the device
        chance, place = torch.rand(()).item(), int(torch.randint(1 + len(self._stages), ()))
        if self.draw is None or self.draw_images is None or chance >= self.probability:
            logits = self.classifier(images)
        elif place == 0:
            mixing = self.draw_images(images)
            logits = self.classifier(mixing.mix(images))
            targets, ratio = mixing.mix_targets(targets), mixing.ratio.mean()
        else:
            with mixed_before(self._stages[place - 1], self.draw) as drawn:
                logits = self.classifier(images)
            (mixing,) = drawn
            targets, ratio, terms = mixing.mix_targets(targets), mixing.ratio.mean(), self.terms
        return Outcome({"supervised": terms * soft_cross_entropy(logits, targets)}, {"ratio": ratio})


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


class How(NamedTuple):
    """How a method mixes."""

    draw: Draw | None = None
    """Without, images stay as they are."""
    probability: float = 1.0
    """Of a step that mixes."""
    maps: bool = False
    """Whether what the first and the second stage of the network have made is mixed too."""
    draw_images: Draw | None = None
    """How images are mixed where maps are mixed in another way."""
    terms: int = 1
    """Of the loss on mixed maps."""


def how(name: str, alphas: Alphas) -> How:
    """A method that draws a mixing, as its paper has it or as AutoMix's authors. InputError for an unknown name."""
    automix = alphas == "automix"
    small, half = (0.2, 1.0) if automix else (1.0, 0.5)
    match name:
        case "none":
            return How()
        case "mixup":
            return How(draws.mixup)
        case "cutmix":
            return How(partial(draws.cutmix, alpha=small), half)
        case "cutmix-resized":
            return How(partial(draws.cutmix, alpha=small, resize=True), half)
        case "manifold-mixup":
            return How(partial(draws.mixup, alpha=2.0), maps=True)
        case "resizemix":
            return How(partial(draws.resizemix, border="cut" if automix else "inside"))
        case "saliencymix":
            return How(partial(draws.saliencymix, alpha=small), half)
        case "fmix":
            return How(partial(draws.fmix, alpha=small))
        case "cowmix":
            return How(draws.cowmix)
        case "horizontal-concat":
            return How(draws.horizontal_concat)
        case "vertical-concat":
            return How(draws.vertical_concat)
        case "patchup-hard":
            return How(draws.METHODS[name], 0.7, maps=True, draw_images=draws.cutmix, terms=2)
        case "patchup-soft":
            return How(draws.METHODS[name], 1.0, maps=True, draw_images=draws.cutmix, terms=2)
    raise InputError(f"methods: {name!r} is unknown; there are {', '.join(TITLES)}")


def mixed(settings: TrainingSettings, classes: int, means: How) -> Callable[[Classifier], Made]:
    """Training on what is mixed so; InputError, once it is made, for a network of fewer than three stages where maps
    are mixed."""

    def make(classifier: Classifier) -> Made:
        stages: Sequence[nn.Module] = ()
        if means.maps:
            stages = classifier.stages[1:3]
            if len(stages) < 2:
                raise InputError(
                    f"network: it has {len(classifier.stages)} stages; what the first and the second have made is to "
                    "be mixed, which goes into a third"
                )
        objective = Mixed(
            classifier,
            classes,
            draw=means.draw,
            probability=means.probability,
            stages=stages,
            draw_images=means.draw_images,
            smoothing=settings.label_smoothing,
            terms=means.terms,
        )
        return Made(objective, {"supervised": 1.0})

    return make


def plan(name: str, settings: TrainingSettings, context: Context, seed: int, *, alphas: Alphas = "own") -> Plan:
    """Training by a method of `TITLES` on this split from this seed. InputError for an unknown one."""
    if name in ("augmix", "augmix-jsd"):
        return augmix.plan(settings, context, seed, consistent=name == "augmix-jsd")
    if name in ("recursivemix", "recursivemix-no-consistency"):
        of = recursivemix.Settings() if name == "recursivemix" else recursivemix.Settings(weight_consistency=0.0)
        return recursivemix.plan(of, settings, context, seed)
    return labelled_plan(settings, context, seed, mixed(settings, len(context.dataset.classes), how(name, alphas)))


AUTOMIX: dict[str, Any] = merged(
    CIFAR,
    dict(
        alphas="automix", evaluate_every=500, save_every=500,
        training=dict(batch=100, warmup=0, weight_decay=1e-4, nesterov=False, padding="reflection"),
    ),
)  # fmt: skip
"""AutoMix, A.1 to A.2, table 14 at 200 epochs; its text gives neither batch nor rate: those of its code."""

PRESETS: dict[str, Mapping[str, Any]] = {
    "smoke": dict(precision="fp32", evaluate_every=20, training=dict(epochs=0.5)),
    **{f"paper-{data}": merged(CIFAR, dict(data=data)) for data in ("cifar10", "cifar100")},
    **{f"automix-{data}": merged(AUTOMIX, dict(data=data)) for data in ("cifar10", "cifar100")},
    **{
        name: {field: value for field, value in preset.items() if field != "method"}
        | (dict(methods=("none", "mixup", "cutmix")) if name.startswith("paper-imagenet-") else {})
        for name, preset in recursivemix.PRESETS.items()
        if name != "smoke"
    },
}
"""Those of RecursiveMix's recipe too, for its baselines; on ImageNet those of its table 5, for the ω of RecursiveMix is
another there."""
