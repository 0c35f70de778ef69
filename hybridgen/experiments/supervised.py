"""Supervised training on all labels: settings, methods, and one table of all of them from the same seeds and steps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from hybridgen.data import augment
from hybridgen.data.datasets import Dataset
from hybridgen.data.splits import Split
from hybridgen.data.streams import Stream, View
from hybridgen.experiments.comparison import Result, conclude, over_seeds, slug, train
from hybridgen.experiments.settings import TrainingSettings, check_counts, load_data
from hybridgen.networks.classifiers import Classifier, make_network, save_classifier
from hybridgen.training.ema import EMA
from hybridgen.training.engine import laid_out, make_accelerator
from hybridgen.training.objective import Task, adam, sgd
from hybridgen.training.record import claim
from hybridgen.training.schedules import Clock, Schedule, Weight, cosine, stepped, warmed
from hybridgen.types import Images, InputError


@dataclass(frozen=True)
class SupervisedSettings(TrainingSettings):
    """Abstract: what every recipe has that trains on labels alone. The defaults suit digits-m."""

    labels: int | None = None
    """Labelled images; all that are not set aside for validation unless given."""
    network: str | None = None
    """cifar-resnet18, cifar-densenet121, pyramidnet200-240, wrn-28-10, ..., or one of timm's with a map last; a
    cifar-resnet18 with an eighth of its filters unless given."""
    width: float | None = None
    """Multiplies the filters of a network that comes in any width; 1 unless given."""
    epochs: float = 20
    batch: int = 64
    """Images a step, all processes together."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Nesterov SGD with momentum 0.9, or AdamW with betas 0.9 and 0.999."""
    rate: float = 0.1
    """Learning rate, after its warm-up."""
    warmup: float = 1
    """Epochs in which the rate grows linearly."""
    decay_at: tuple[float, ...] = ()
    """Epochs at which the rate falls to a tenth; without, it falls to zero along a cosine."""
    label_smoothing: float = 0.0
    """Share of the targets that is spread over all classes."""
    ema_decay: float = 0.0
    """Decay of averaged weights, which are then evaluated; 0 evaluates the network itself."""
    crop: int | None = None
    """Side of random crops of 8 to 100 % of the image, and of the central one that is evaluated (ImageNet); without,
    images are shifted by up to an eighth of their side."""
    padding: augment.Padding = "reflection"
    """What a shift uncovers."""
    erasing: float = 0.0
    """Probability of random erasing."""
    evaluate_every: int = 200


CIFAR: dict[str, Any] = dict(
    validation=0, width=1, epochs=200, batch=128, rate=0.1, warmup=5, weight_decay=5e-4, padding="zeros",
    record_every=100, evaluate_every=390, save_every=390,
)  # fmt: skip
"""RecursiveMix, section 4.1, 200 epochs; two GPUs with 64 images each. Presets of both recipes are made of it."""


def chosen_network(network: str | None, width: float | None) -> tuple[str, float]:
    """Name and width, for settings that may leave out either."""
    return network or "cifar-resnet18", width if width is not None else 1 if network else 0.125


class Training(NamedTuple):
    """What a method makes of a classifier."""

    objective: nn.Module
    weights: dict[str, Weight]
    local: dict[str, nn.Module] = {}  # noqa: RUF012 - never written to
    """Modules whose state is each process's own."""


def _one(view: View) -> tuple[View, ...]:
    return (view,)


class Method(NamedTuple):
    """How a new classifier is trained."""

    train: Callable[[Classifier, Dataset], Training]
    views: Callable[[View], tuple[View, ...]] = _one
    """Of the labelled images, from the augmentation that all methods have in common."""


def make_classifier(config: SupervisedSettings, dataset: Dataset) -> Classifier:
    """A new network of this name; InputError for one that cannot be made or has no spatial last map."""
    name, width = chosen_network(config.network, config.width)
    network = make_network(name, len(dataset.classes), width=width)
    return Classifier(network, mean=dataset.mean, std=dataset.std)


def augmentation(config: SupervisedSettings, dataset: Dataset) -> View:
    """Random crops or shifts, flips (never of digits) and, if asked for, erasing."""
    if config.crop is not None:
        if not 1 <= config.crop <= dataset.image_size:
            raise InputError(f"crop: {config.crop} pixels of images of {dataset.image_size}; see --image-size")
        view: View = partial(augment.resized_crop, size=config.crop, flip=dataset.flip)
    else:
        view = partial(augment.weak, flip=dataset.flip, shift=dataset.image_size // 8, padding=config.padding)
    if not config.erasing:
        return view
    return lambda images, generator: augment.erase(view(images, generator), generator, probability=config.erasing)


def make_stream(
    config: SupervisedSettings,
    accelerator: Accelerator,
    dataset: Dataset,
    split: Split,
    views: tuple[View, ...],
    seed: int,
) -> Stream:
    """This process's batches of labelled images alone."""
    return Stream(
        dataset.train,
        split,
        labelled=config.batch,
        unlabelled=None,
        labelled_views=views,
        seed=seed,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        device=accelerator.device,
        workers=config.workers,
    )


def rate_of(config: SupervisedSettings) -> Schedule:
    """The learning rate over time."""
    falling = stepped(config.rate, config.decay_at) if config.decay_at else cosine(config.rate, config.epochs)
    return warmed(falling, config.warmup)


def central(images: Images, crop: int | None) -> Float[Tensor, "batch 3 rows columns"]:
    """The central square of this side; the images themselves without."""
    if crop is None:
        return images
    top, left = ((length - crop) // 2 for length in images.shape[2:])
    return images[..., top : top + crop, left : left + crop]


def train_supervised(
    config: SupervisedSettings,
    method: Method,
    views: tuple[View, ...],
    accelerator: Accelerator,
    dataset: Dataset,
    split: Split,
    seed: int,
    folder: Path,
) -> Result:
    """One classifier, in a folder of its own, which at the end holds the network that is deployed."""
    claim(folder, config, accelerator, resume=config.resume and folder.exists())
    torch.manual_seed(seed)
    stream = make_stream(config, accelerator, dataset, split, views, seed)
    classifier = laid_out(
        make_classifier(config, dataset),
        accelerator,
        channels_last=config.channels_last,
        compiled=config.compiled,
        synchronized=config.sync_batchnorm,
    )
    training = method.train(classifier, dataset)
    if config.optimizer == "sgd":
        optimizer = sgd(training.objective, decay=config.weight_decay)
    else:
        optimizer = adam(training.objective, betas=(0.9, 0.999), decay=config.weight_decay, decay_all=False)
    prepared, optimizer = accelerator.prepare(training.objective, optimizer)
    average = EMA(classifier, config.ema_decay, linear_start=False).eval() if config.ema_decay else None
    deployed = classifier if average is None else average.network
    return train(
        config,
        accelerator,
        dataset,
        split,
        seed,
        folder,
        tasks={"classifier": Task(prepared, training.weights, optimizer, rate_of(config), clip=config.clip)},
        batches=stream.from_step,
        clock=Clock(round(config.epochs * stream.steps_per_epoch), stream.steps_per_epoch),
        network=classifier,
        average=average,
        classify=lambda network, images: network(central(images, config.crop)),
        modules={"objective": training.objective},
        local=training.local,
        finish=lambda: save_network(folder, deployed, config, dataset, accelerator),
    )


def save_network(
    folder: Path, classifier: Classifier, config: SupervisedSettings, dataset: Dataset, accelerator: Accelerator
) -> None:
    """Write the deployed network to `network.safetensors`, which `load_classifier` reads."""
    if accelerator.is_main_process:
        name, width = chosen_network(config.network, config.width)
        save_classifier(
            classifier,
            folder / "network.safetensors",
            name=name,
            width=width,
            classes=dataset.classes,
            image_size=config.crop or dataset.image_size,
        )


def compare_methods(config: SupervisedSettings, methods: Mapping[str, Method]) -> Result:
    """Train by every method, of a name in the table, from all seeds, with the views that it makes of the common
    augmentation; print and keep all accuracies.

    Seeds that are finished are not trained again when the comparison is resumed. InputError for anything that cannot
    be made, before a folder is.
    """
    check_counts(config, "rate")
    if config.warmup < 0:
        raise InputError(f"warmup: {config.warmup} is below 0")
    for name, share in (("erasing", config.erasing), ("label_smoothing", config.label_smoothing)):
        if not 0 <= share <= 1:
            raise InputError(f"{name}: {share} is outside [0, 1]")
    accelerator = make_accelerator(threads=config.threads)
    dataset, split = load_data(config)

    # A folder, once everything that the configuration asks for has shown that it can be made
    view = augmentation(config, dataset)
    classifier = make_classifier(config, dataset)
    for method in methods.values():
        method.train(classifier, dataset)
        make_stream(config, accelerator, dataset, split, method.views(view), config.seed)
    claim(config.out, config, accelerator, resume=config.resume)

    variants = {
        name: (slug(name), partial(train_supervised, config, method, method.views(view), accelerator, dataset, split))
        for name, method in methods.items()
    }
    results = over_seeds(config, variants)
    return conclude(config, accelerator, dataset, split, results, None, None)
