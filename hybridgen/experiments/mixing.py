"""The methods of mixing as their papers train with them, by name."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from hybridgen.data.augment import augmix as augmix_view
from hybridgen.data.datasets import Dataset
from hybridgen.data.streams import View
from hybridgen.experiments.supervised import Method, SupervisedSettings, Training
from hybridgen.losses.consistency import Divergence
from hybridgen.mixing import methods as mixing
from hybridgen.mixing.mixing import Interpolation
from hybridgen.networks.classifiers import Classifier
from hybridgen.supervised.mixed import AugMix, Draw, Mixed
from hybridgen.supervised.recursivemix import RecursiveMix
from hybridgen.training.schedules import Weight
from hybridgen.types import InputError

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

Alphas = Literal["own", "automix"]
"""Parameters of the beta distributions: of each method's own paper, or those with which AutoMix's authors compare the
methods on CIFAR (AutoMix, A.1)."""


@dataclass(frozen=True)
class RecursiveMixSettings:
    """Abstract."""

    alpha: float = 0.5
    """α: historical images take up to this share of the area, uniformly."""
    resize: bool = True
    """Bring the whole historical image into its box; else it is cut to it (table 2, "RS")."""
    history: bool = True
    """Mix with the last step's images; else with others of the batch (table 2, "HIS")."""
    weight_consistency: float = 0.1
    """ω, of the consistency with the last step's predictions; 0 leaves it out, and its head (table 2, "CL")."""
    shared_head: bool = False
    """Predict regions with the classifier's own last layer (table 4a)."""
    interpolation: Interpolation = "nearest"
    """How historical images are resized (table 4b)."""
    divergence: Divergence = "kl"
    """The consistency's; they differ by a constant without gradient."""
    reset_each_epoch: bool = False
    """Start every epoch without a history, as the authors' code does."""


def recursivemix(config: SupervisedSettings, how: RecursiveMixSettings) -> Method:
    """Images mixed with those of the step before. InputError for a negative weight, and once it is made for what
    RecursiveMix refuses."""
    if how.weight_consistency < 0:
        raise InputError(f"weight_consistency: {how.weight_consistency} is below 0")

    def train(classifier: Classifier, dataset: Dataset) -> Training:
        objective = RecursiveMix(
            classifier,
            len(dataset.classes),
            alpha=how.alpha,
            interpolation=how.interpolation,
            resize=how.resize,
            history=how.history,
            consistent=how.weight_consistency > 0,
            shared_head=how.shared_head,
            divergence=how.divergence,
            reset_each_epoch=how.reset_each_epoch,
            smoothing=config.label_smoothing,
        )
        weights: dict[str, Weight] = {"supervised": 1.0}
        if objective.consistent:
            weights["consistency"] = how.weight_consistency
        return Training(objective, weights, {"history": objective.history})

    return Method(train)


def mixed(
    config: SupervisedSettings,
    draw: Draw | None = None,
    *,
    probability: float = 1.0,
    stages: int = 0,
    draw_images: Draw | None = None,
) -> Method:
    """Images of a batch mixed with one another, or what goes into one of the first `stages` of the network; without
    `draw`, no mixing. InputError, once it is made, for a network of fewer stages."""

    def train(classifier: Classifier, dataset: Dataset) -> Training:
        if len(classifier.stages) < stages:
            raise InputError(f"network: it has {len(classifier.stages)} stages; {stages} are to be mixed")
        objective = Mixed(
            classifier,
            len(dataset.classes),
            draw=draw,
            probability=probability,
            stages=classifier.stages[:stages],
            draw_images=draw_images,
            smoothing=config.label_smoothing,
        )
        return Training(objective, {"supervised": 1.0})

    return Method(train)


def augmix(*, consistent: bool) -> Method:
    """AugMix, and if `consistent` the divergence between the predictions for an image and two mixtures of it."""

    def views(view: View) -> tuple[View, ...]:
        mixture: View = lambda images, generator: augmix_view(view(images, generator), generator)
        return (view, mixture, mixture) if consistent else (mixture,)

    def train(classifier: Classifier, dataset: Dataset) -> Training:
        weights: dict[str, Weight] = {"supervised": 1.0}
        return Training(AugMix(classifier), weights | ({"jensen_shannon": 12.0} if consistent else {}))

    return Method(train, views)


def method_of(config: SupervisedSettings, name: str, *, alphas: Alphas = "own") -> Method:
    """A method as its paper has it: how often it mixes, where, and with which α. InputError for an unknown name."""
    small = 1.0 if alphas == "own" else 0.2
    recursive = RecursiveMixSettings()
    match name:
        case "none":
            return mixed(config)
        case "mixup":
            return mixed(config, mixing.mixup)
        case "cutmix":
            return mixed(config, partial(mixing.cutmix, alpha=small), probability=0.5)
        case "cutmix-resized":
            return mixed(config, partial(mixing.cutmix, alpha=small, resize=True), probability=0.5)
        case "manifold-mixup":
            return mixed(config, partial(mixing.mixup, alpha=2.0), stages=2)
        case "resizemix":
            return mixed(config, mixing.resizemix)
        case "saliencymix":
            return mixed(config, partial(mixing.saliencymix, alpha=small), probability=0.5)
        case "fmix":
            return mixed(config, partial(mixing.fmix, alpha=small))
        case "cowmix":
            return mixed(config, mixing.cowmix)
        case "horizontal-concat":
            return mixed(config, mixing.horizontal_concat)
        case "vertical-concat":
            return mixed(config, mixing.vertical_concat)
        case "patchup-hard" | "patchup-soft":
            draw, often = mixing.METHODS[name], 0.7 if name == "patchup-hard" else 1.0
            return mixed(config, draw, probability=often, stages=2, draw_images=mixing.cutmix)
        case "augmix" | "augmix-jsd":
            return augmix(consistent=name == "augmix-jsd")
        case "recursivemix":
            return recursivemix(config, recursive)
        case "recursivemix-no-consistency":
            return recursivemix(config, replace(recursive, weight_consistency=0.0))
    raise InputError(f"methods: {name!r} is unknown; there are {', '.join(TITLES)}")
