"""The methods that hybrids are added to, the thesis's "backbones": their settings, views and objectives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hybridgen.data.augment import strong, weak
from hybridgen.data.datasets import Dataset
from hybridgen.data.streams import View
from hybridgen.experiments.settings import ClassifierSettings, how_to_use, make_classifier
from hybridgen.networks.wide_resnet import TwoHeadClassifier
from hybridgen.semi.fixmatch import FixMatch
from hybridgen.semi.hybrids import HybridSource
from hybridgen.semi.mean_teacher import MeanTeacher
from hybridgen.semi.mixmatch import MixMatch, Replacement
from hybridgen.semi.supervised import Supervised
from hybridgen.training.objective import adam, sgd
from hybridgen.training.schedules import Schedule, Weight, cosine, fixmatch_cosine, step_ramp
from hybridgen.types import Images, InputError

Views = tuple[tuple[View, ...], tuple[View, ...]]
"""Of the labelled and of the unlabelled images."""


Presets = dict[str, Mapping[str, Any]]

SMOKE: dict[str, Any] = dict(epochs=1, hybrids_from=0.2, hybrids_until=0.8, evaluate_every=20, oracle_steps=20)


class Method(NamedTuple):
    """How one classifier learns."""

    objective: nn.Module
    weights: dict[str, Weight]
    optimizer: torch.optim.Optimizer
    rate: Schedule
    after_step: Callable[[], dict[str, float]] = dict
    """What follows every step of the optimizer; gives what is to be recorded."""


@dataclass(frozen=True)
class Backbone:
    """A method by its name and what it makes of its settings; none of the functions has state."""

    name: str
    views: Callable[[Any, Dataset], Views]
    network: Callable[[Any, Dataset], nn.Module]
    method: Callable[..., Method]
    """From settings, network and hybridizer (or None)."""
    heads: Literal[1, 2] = 1
    """Of the network; the first one predicts."""
    strong: bool = False
    """Whether the last view of the unlabelled images is strongly augmented."""

    def classify(self, network: nn.Module, images: Images) -> Float[Tensor, "batch classes"]:
        """The logits by which the network is evaluated."""
        return network(images) if self.heads == 1 else network(images)[0]


def weakly(dataset: Dataset) -> View:
    """The weak augmentation: flip (never of digits) and shift by up to an eighth of the side (thesis A.1.2.1)."""
    return partial(weak, flip=dataset.flip, shift=dataset.image_size // 8)


def _weights(config: ClassifierSettings, hybridizer: HybridSource | None, **others: Weight) -> dict[str, Weight]:
    weights = {"supervised": config.weight_supervised} | others
    return weights if hybridizer is None else weights | {"hybrids": config.weight_hybrids}


def _hybrids(config: ClassifierSettings, hybridizer: HybridSource | None) -> dict[str, Any]:
    return {} if hybridizer is None else {"hybridizer": hybridizer, "how": how_to_use(config)}


# --- FixMatch ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FixMatchSettings(ClassifierSettings):
    """Abstract."""

    threshold: float = 0.9
    """Confidence that a pseudo-label needs."""
    cutout: int | None = None
    """Side of the square that strong augmentation cuts out; half the image's unless given."""
    weight_unsupervised: float = 1.0
    """λ_u, of the loss on pseudo-labels."""


def _fixmatch_views(config: FixMatchSettings, dataset: Dataset) -> Views:
    shift, cutout = dataset.image_size // 8, config.cutout or dataset.image_size // 2
    return (weakly(dataset),), (weakly(dataset), partial(strong, flip=dataset.flip, shift=shift, cutout=cutout))


def _fixmatch(config: FixMatchSettings, classifier: nn.Module, hybridizer: HybridSource | None) -> Method:
    objective = FixMatch(classifier, threshold=config.threshold, **_hybrids(config, hybridizer))
    return Method(
        objective,
        _weights(config, hybridizer, unsupervised=config.weight_unsupervised),
        sgd(objective, decay=config.weight_decay, decay_all=False),
        cosine(config.rate, config.rate_epochs) if config.rate_epochs else fixmatch_cosine(config.rate),
    )


_FIXMATCH_PAPER: dict[str, Any] = dict(
    validation=0, hybridizer="none", epochs=1000, rate_epochs=1050, labelled_batch=32, unlabelled_batch=224,
    threshold=0.95, ema_decay=0.999, depth=28, width=2, momentum=0.001, hybrids_from=100, hybrids_until=200,
    record_every=100, evaluate_every=2230, save_every=2230,
)  # fmt: skip
FIXMATCH_PRESETS: Presets = {
    "smoke": SMOKE,
    **{f"paper-cifar10-{n}": _FIXMATCH_PAPER | dict(data="cifar10", rate=0.015, labels=n) for n in (100, 250, 500)},
    **{f"paper-svhn-{n}": _FIXMATCH_PAPER | dict(data="svhn", rate=0.03, labels=n) for n in (60, 100)},
}
"""Thesis A.1.2.3."""

FIXMATCH = Backbone("FixMatch", _fixmatch_views, make_classifier, _fixmatch, strong=True)


# --- Mean Teacher -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeanTeacherSettings(ClassifierSettings):
    """Abstract."""

    rate: float = 0.2
    weight_supervised: float = 4.0
    """Cross-entropy on labelled images, summed over them and divided by the whole batch."""
    teacher_decay: float = 0.97
    """EMA decay of the teacher, after its linear start."""
    weight_consistency: float = 100.0
    """λ_cons, of the student's distance from the teacher; its mean is over batch and classes."""
    weight_logit_distance: float = 0.01
    """λ_logitdist: ties the two heads."""


def _mean_teacher_views(config: MeanTeacherSettings, dataset: Dataset) -> Views:
    return (weakly(dataset),) * 2, (weakly(dataset),) * 2


def _mean_teacher_network(config: MeanTeacherSettings, dataset: Dataset) -> TwoHeadClassifier:
    return TwoHeadClassifier(
        config.depth,
        config.width,
        len(dataset.classes),
        mean=dataset.mean,
        std=dataset.std,
        momentum=config.momentum,
        normalized_resampling=config.normalized_resampling,
    )


def _mean_teacher(config: MeanTeacherSettings, classifier: nn.Module, hybridizer: HybridSource | None) -> Method:
    objective = MeanTeacher(classifier, teacher_decay=config.teacher_decay, **_hybrids(config, hybridizer))

    def after_step() -> dict[str, float]:
        objective.teacher.update(classifier)
        return {}

    return Method(
        objective,
        _weights(
            config, hybridizer, consistency=config.weight_consistency, logit_distance=config.weight_logit_distance
        ),
        sgd(objective, decay=config.weight_decay),
        cosine(config.rate, config.rate_epochs or config.epochs),
        after_step,
    )


_MEAN_TEACHER_PAPER: dict[str, Any] = dict(
    validation=0, hybridizer="none", epochs=300, rate_epochs=350, labelled_batch=60, unlabelled_batch=196,
    ema_decay=0.999, depth=28, width=2, momentum=0.1, hybrids_from=50, hybrids_until=150, threshold=0.95,
    weight_supervised=1.0, weight_consistency=300.0, record_every=100, evaluate_every=2550, save_every=2550,
)  # fmt: skip
MEAN_TEACHER_PRESETS: Presets = {
    "smoke": SMOKE,
    **{f"paper-cifar10-{n}": _MEAN_TEACHER_PAPER | dict(data="cifar10", rate=0.1, labels=n) for n in (100, 250, 500)},
    **{f"paper-svhn-{n}": _MEAN_TEACHER_PAPER | dict(data="svhn", rate=0.2, labels=n) for n in (60, 100)},
}
"""Thesis A.1.2.3. The smoke preset takes seconds."""

MEAN_TEACHER = Backbone("Mean Teacher", _mean_teacher_views, _mean_teacher_network, _mean_teacher, heads=2)


# --- MixMatch ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MixMatchSettings(ClassifierSettings):
    """Abstract."""

    epochs: float = 8
    rate: float = 0.01
    weight_decay: float = 0.02
    labelled_batch: int = 32
    unlabelled_batch: int = 32
    guesses: int = 2
    """K: views of each unlabelled image, over which its guessed label is averaged."""
    temperature: float = 0.5
    """T, by which guesses are sharpened."""
    mixing: float = 0.75
    """α of the beta distribution that mixing ratios are drawn from."""
    weight_unsupervised: float = 75.0
    """λ_u, of the loss on guesses, after its ramp."""
    ramp_steps: int = 1300
    """Steps over which λ_u grows linearly."""


def _mixmatch_views(config: MixMatchSettings, dataset: Dataset) -> Views:
    if config.guesses < 1:
        raise InputError(f"guesses: K = {config.guesses} is below 1; a guess needs a view")
    return (weakly(dataset),), (weakly(dataset),) * config.guesses


def _mixmatch(
    config: MixMatchSettings,
    classifier: nn.Module,
    hybridizer: HybridSource | None,
    replacement: Replacement | None = None,
) -> Method:
    if config.labelled_batch != config.unlabelled_batch:
        raise InputError(
            f"unlabelled_batch: {config.unlabelled_batch} beside {config.labelled_batch} labelled images; MixMatch "
            "interleaves batches of the same size"
        )
    objective = MixMatch(
        classifier,
        temperature=config.temperature,
        alpha=config.mixing,
        replacement=replacement,
        **_hybrids(config, hybridizer),
    )
    return Method(
        objective,
        _weights(config, hybridizer, unsupervised=step_ramp(config.weight_unsupervised, config.ramp_steps)),
        adam(objective, betas=(0.9, 0.999), decay=config.weight_decay, decay_all=False),
        cosine(config.rate, config.rate_epochs) if config.rate_epochs else lambda clock: config.rate,
    )


MIXMATCH_PRESETS: Presets = {
    "smoke": SMOKE,
    **{
        f"paper-cifar10-{n}": dict(
            data="cifar10", labels=n, validation=0, hybridizer="none", epochs=900, rate=0.002, weight_decay=0.02,
            labelled_batch=min(n, 256), unlabelled_batch=min(n, 256), weight_unsupervised=37.5, ramp_steps=16_384,
            ema_decay=0.999, depth=28, width=2, momentum=0.1, hybrids_from=150, hybrids_until=450, threshold=0.95,
            record_every=100, evaluate_every=1950, save_every=1950,
        )
        for n in (250, 500, 1000)
    },
}  # fmt: skip
"""Thesis A.1.1. It has no SciMix with MixMatch: the window of hybrids is Mean Teacher's share of the epochs."""

MIXMATCH = Backbone("MixMatch", _mixmatch_views, make_classifier, _mixmatch)


# --- supervised -------------------------------------------------------------------------------------------------


def _supervised_views(config: ClassifierSettings, dataset: Dataset) -> Views:
    return (weakly(dataset),), (weakly(dataset),)


def _supervised(config: ClassifierSettings, classifier: nn.Module, hybridizer: HybridSource | None) -> Method:
    objective = Supervised(classifier, **_hybrids(config, hybridizer))
    return Method(
        objective,
        _weights(config, hybridizer),
        sgd(objective, decay=config.weight_decay),
        cosine(config.rate, config.rate_epochs or config.epochs),
    )


SUPERVISED_PRESETS: Presets = {
    "smoke": SMOKE,
    **{
        f"paper-cub-{size}": dict(
            data="folder:data/CUB_200", image_size=size, labels=3000, validation=0, hybridizer="none", epochs=300,
            rate=0.1, rate_epochs=350, labelled_batch=60, unlabelled_batch=196, ema_decay=0.999, depth=28, width=2,
            momentum=0.1, hybrids_from=50, hybrids_until=150, threshold=0.95, record_every=15, evaluate_every=150,
            save_every=150,
        )
        for size in (64, 96)
    },
}  # fmt: skip
"""Thesis 2.5.4: CUB-200 (2010), all of its 3,000 training images. It gives no hyper-parameters; these are Mean
Teacher's with SciMix (A.1.2.3)."""

SUPERVISED = Backbone("Supervised", _supervised_views, make_classifier, _supervised)
