"""What the methods that mix images have in common: training on labels, its settings, augmentation, rate and plan."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import sqrt
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from hybridgen.data import augment
from hybridgen.data.autoaugment import autoaugment
from hybridgen.data.sources import holds_photographs
from hybridgen.data.streams import View
from hybridgen.networks.classifiers import FILE, Classifier, save_classifier
from hybridgen.networks.registry import default_network
from hybridgen.settings import NUMBER, Count, Decay, Epoch, Few, Flat, Positive, Share, Weight, Whole, settings
from hybridgen.training.context import Context
from hybridgen.training.ema import EMA
from hybridgen.training.objective import Task, adam, sgd
from hybridgen.training.plan import Plan, Score, by_accuracy
from hybridgen.training.schedules import Clock, Schedule, cosine, stepped, warmed
from hybridgen.training.schedules import Weight as LossWeight
from hybridgen.training.scores import Classify
from hybridgen.types import Images, InputError


@settings
class TrainingSettings:
    """How a classifier trains on labels. The defaults suit digits-m."""

    network: Flat[str | None] = None
    """fast or fast-WIDTH-WIDTH-..., cifar-resnet18, cifar-densenet121, pyramidnet200-240, wrn-28-10, ..., or one of
    timm's, with its pretrained weights if a tag names them. None: fast, a cifar-resnet18 with an eighth of its
    filters for images of 16 pixels or fewer, and one of --width if that is given."""
    width: Flat[Annotated[float, Field(gt=0, le=8), NUMBER] | None] = None
    """Multiplies the filters of a network that comes in any width; 1 unless given."""
    epochs: Flat[Positive] = 20
    """Passes over the labelled images."""
    batch: Flat[Count] = 64
    """Images a step, all processes together."""
    views: Flat[Few] = 1
    """Of each image a step, augmented apart: so many times as many samples (batch augmentation, Hoffer et al. 2020)."""
    optimizer: Flat[Literal["sgd", "adamw"]] = "sgd"
    """SGD with momentum 0.9, or AdamW with betas 0.9 and 0.999."""
    nesterov: Flat[bool] = True
    """Whether SGD's momentum is Nesterov's."""
    rate: Flat[Positive] = 0.1
    """Learning rate, after its warm-up."""
    rate_batch: Flat[Count | None] = None
    """B, images a step that --rate is for: at another --batch b it is √(b/B) of it (MixViT); without, --rate is for any
    batch."""
    warmup: Flat[Epoch] = 1
    """Epochs in which the rate grows linearly."""
    decay_at: Flat[tuple[Epoch, ...]] = ()
    """Epochs at which the rate falls to a tenth; without, it falls to zero along a cosine."""
    weight_decay: Flat[Weight] = 5e-4
    """Weight decay."""
    stochastic_depth: Flat[Annotated[float, Field(ge=0, lt=1), NUMBER]] = 0.0
    """Probability, of each image in each residual branch of a transformer's feature blocks, that it is left out."""
    clip: Flat[Positive | None] = None
    """Largest norm of the gradient."""
    label_smoothing: Flat[Share] = 0.0
    """Share of the targets that is spread over all classes."""
    ema_decay: Flat[Decay] = 0.0
    """Decay of averaged weights, which are then evaluated; 0 evaluates the network itself."""
    crop: Flat[Count | None] = None
    """Side of random crops of 8 to 100 % of the image, and of the central one that is evaluated (ImageNet); without,
    images are shifted."""
    shift: Flat[Whole | None] = None
    """By up to so many pixels, 0 not at all; an eighth of the side unless given."""
    padding: Flat[augment.Padding] = "reflection"
    """What a shift uncovers."""
    color_jitter: Flat[bool] = False
    """Jitter of brightness, contrast and saturation by 0.4, and AlexNet's lighting (ImageNet)."""
    autoaugment: Flat[Literal["none", "cifar10", "imagenet"]] = "none"
    """AutoAugment, by the policy that was searched on these images, after crops and flips."""
    erasing: Flat[Share] = 0.0
    """Probability of random erasing."""


CIFAR: dict[str, Any] = dict(
    precision="fp32", validation=0, record_every=100, evaluate_every=390, save_every=390,
    training=dict(
        width=1.0, epochs=200, batch=128, rate=0.1, warmup=5, weight_decay=5e-4, nesterov=False, padding="zeros"
    ),
)  # fmt: skip
"""RecursiveMix, section 4.1, 200 epochs; two GPUs with 64 images each. Presets of both recipes are made of it."""


N = TypeVar("N", bound=nn.Module)


class Made(NamedTuple):
    """What a method makes of a classifier."""

    objective: nn.Module
    weights: Mapping[str, LossWeight]
    local: dict[str, nn.Module] = {}  # noqa: RUF012 - never written to
    """Parts of the objective whose state is each process's own."""


def chosen_network(network: str | None, width: float | None, image_size: int) -> tuple[str, float]:
    """Name and width, for settings that may leave out either."""
    if network is None and width is None:
        name = default_network(image_size, small="cifar-resnet18")
        return name, 0.125 if name == "cifar-resnet18" else 1
    return "cifar-resnet18" if network is None else network, 1 if width is None else width


def classifier_of(settings: TrainingSettings, context: Context) -> Classifier:
    """A new one of this network; InputError for one that cannot be made."""
    name, width = chosen_network(settings.network, settings.width, context.dataset.image_size)
    context.note("training", network=name, width=width)
    return context.classifier(name, width=width, image_size=settings.crop)


def augmentation(settings: TrainingSettings, context: Context) -> View:
    """Random crops or shifts, flips (`Context.flip`) and, if asked for, AutoAugment, jitter of colours and erasing, in
    this order. Of whole photographs images are random parts already."""
    dataset = context.dataset
    if settings.shift and (settings.crop is not None or holds_photographs(dataset.train.images)):
        raise InputError(f"shift: {settings.shift}, but neither crops nor parts of --whole photographs are shifted")
    if holds_photographs(dataset.train.images):
        if settings.crop is not None:
            raise InputError("crop: of --whole photographs, images are crops of --image-size already; give one of both")
        view: View = partial(augment.weak, flip=context.flip, shift=0)
    elif settings.crop is not None:
        if not settings.crop <= dataset.image_size:
            raise InputError(f"crop: {settings.crop} pixels of images of {dataset.image_size}; see --image-size")
        view = partial(augment.resized_crop, size=settings.crop, flip=context.flip)
    else:
        view = context.weak(padding=settings.padding, shift=settings.shift)
    more: list[View] = []
    if settings.autoaugment != "none":
        more.append(partial(autoaugment, policy=settings.autoaugment))
    if settings.color_jitter:
        more += [partial(augment.color_jitter, clip=False), partial(augment.lighting, clip=False)]
    if settings.erasing:
        more.append(partial(augment.erase, probability=settings.erasing))

    def augmented(images: Images, generator: torch.Generator) -> Float[Tensor, "batch 3 rows columns"]:
        for each in (view, *more):
            images = each(images, generator)
        return images

    return augmented


def rate_of(settings: TrainingSettings, repetitions: int = 1) -> Schedule:
    """The learning rate over time; a part of it where every image comes so many times."""
    rate = settings.rate / repetitions
    if settings.rate_batch is not None:
        rate *= sqrt(settings.batch / settings.rate_batch)  # thesis A.1.5
    falling = stepped(rate, settings.decay_at) if settings.decay_at else cosine(rate, settings.epochs)
    return warmed(falling, settings.warmup)


def central(images: Images, crop: int | None) -> Float[Tensor, "batch 3 rows columns"]:
    """The central square of this side; the images themselves without."""
    if crop is None:
        return images
    top, left = ((length - crop) // 2 for length in images.shape[2:])
    return images[..., top : top + crop, left : left + crop]


def itself(network: nn.Module) -> Classifier:
    """Of a classifier, what is deployed."""
    assert isinstance(network, Classifier)
    return network


def labelled_plan(
    settings: TrainingSettings,
    context: Context,
    seed: int,
    make: Callable[[N], Made],
    *,
    views: Callable[[View], Sequence[View]] = lambda view: (view,),
    repetitions: int = 1,
    others: bool = False,
    network: Callable[[TrainingSettings, Context], N] = classifier_of,
    score: Callable[[Context, Classify], Score] = by_accuracy,
    deployed: Callable[[N], Classifier | None] = itself,
) -> Plan:
    """Training by what a method makes of a new classifier, with the views that it makes of the common augmentation, on
    the labels of this split from this seed, and as often as the settings say in every step. Leaves the network that is
    deployed in the run's folder.

    With `repetitions` b each batch has a b-th as many images, each b times; there are b times as many steps, at a b-th
    of the rate (Havasi et al. 2021; thesis 3.3.4.1). With `others` each batch has as many more of the same labelled
    images, in the same views, drawn apart from them, as its unlabelled ones. `network` makes another than
    `classifier_of`, which `score` judges, and of which `deployed` makes the classifier to be left; None leaves none.
    """
    view = augmentation(settings, context)
    labelled_views = tuple(views(view))
    stream = context.stream(
        seed,
        labelled=settings.views * settings.batch,
        labelled_views=labelled_views,
        unlabelled=settings.views * settings.batch if others else None,
        unlabelled_views=labelled_views if others else (),
        unlabelled_pool=context.split.labelled if others else None,
        repetitions=settings.views * repetitions,
        asked=f"batch = {settings.batch}",
    )
    torch.manual_seed(seed)
    classifier = network(settings, context)
    if settings.stochastic_depth:
        from hybridgen.networks.vision_transformers import set_stochastic_depth  # with timm, which takes its time

        set_stochastic_depth(classifier, settings.stochastic_depth)
    objective, weights, local = make(classifier)
    if settings.optimizer == "sgd":
        optimizer = sgd(objective, decay=settings.weight_decay, nesterov=settings.nesterov)
    else:
        optimizer = adam(objective, betas=(0.9, 0.999), decay=settings.weight_decay, decay_all=False)
    average = EMA(classifier, settings.ema_decay, linear_start=False).eval() if settings.ema_decay else None
    classify = lambda network, images: network(central(images, settings.crop))
    return Plan(
        context,
        stream,
        Clock.lasting(settings.epochs, stream.steps_per_epoch),
        {"classifier": Task(objective, weights, optimizer, rate_of(settings, repetitions), clip=settings.clip)},
        network=classifier,
        average=average,
        classify=classify,
        score=score(context, classify),
        local=local,
        finish=lambda folder, chosen: save_network(folder, deployed(cast(N, chosen)), settings, context),
    )


def save_network(folder: Path, classifier: Classifier | None, settings: TrainingSettings, context: Context) -> None:
    """Write the deployed network, if there is one, to the run's folder, as the file that `load_classifier` reads."""
    if classifier is not None and context.accelerator.is_main_process:
        name, width = chosen_network(settings.network, settings.width, context.dataset.image_size)
        save_classifier(
            classifier,
            folder / FILE,
            name=name,
            width=width,
            classes=context.dataset.classes,
            image_size=settings.crop or context.dataset.image_size,
            crop_of=None if settings.crop is None else context.dataset.image_size,
            whole=holds_photographs(context.dataset.test.images),
            split_hash=context.split.hash,
        )
