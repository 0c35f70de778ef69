"""AdaIN, style transfer to compare hybridizers with: perceptual features, then the decoder that makes images of them
(Huang and Belongie 2017; thesis 2.2.2.1 and table 2.5)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from hybridgen.data.splits import Split
from hybridgen.data.streams import Stream
from hybridgen.hybridizer import Hybridizer, Origin
from hybridgen.losses import style
from hybridgen.losses.classification import cross_entropy
from hybridgen.networks.adain import (
    AdaINArchitecture,
    AdaINAutoencoder,
    VGGPerception,
    WideResNetPerception,
    adain,
    load_vgg,
    moments,
)
from hybridgen.networks.registry import leaky_wrn
from hybridgen.settings import Count, Decay, Flat, Positive, Weight, settings
from hybridgen.training.context import Context
from hybridgen.training.ema import EMA
from hybridgen.training.objective import Outcome, Task, adam
from hybridgen.training.plan import Plan, by_accuracy
from hybridgen.training.schedules import Clock, cosine
from hybridgen.types import Batch, InputError


@settings
class Settings:
    """How a classifier trains for its perceptual features, and then the decoder. The defaults suit digits-m."""

    perceptual: Flat[Literal["labelled", "all", "vgg"]] = "labelled"
    """Whose features: of a classifier trained on the split's labelled images, of one trained on all training labels
    (the split is then one that labels them all, so that no classifier of fewer labels takes the hybridizer by
    mistake), or of VGG-19 trained on ImageNet as in the paper."""
    network: Flat[str] = "leaky-wrn-10-2"
    """Of the classifier: leaky-wrn-DEPTH-WIDTH."""
    perception_steps: Flat[Count] = 600
    """Steps of the classifier's training; with VGG of a linear layer on its features."""
    perception_batch: Flat[Count] = 64
    """Labelled images in each, all processes together; fewer where there are fewer."""
    perception_rate: Positive = 4e-3
    """Learning rate of the classifier at the start."""
    epochs: Flat[Positive] = 20
    """Passes of the decoder's training over the unlabelled images."""
    batch: Flat[Count] = 32
    """Images a step, all processes together: each the content of one output and the style of another."""
    rate: Flat[Positive] = 2e-3
    """Learning rate of the decoder at the start; it decreases to zero as a cosine."""
    weight_decay: Flat[Weight] = 0.0
    """Weight decay of both."""
    ema_decay: Flat[Decay] = 0.995
    """Decay of the averaged networks that are saved."""
    weight_content: Weight = 1.0
    """Of the distance of the output's features from AdaIN's target."""
    weight_style: Weight = 10.0
    """λ, of the distance of the output's moments from those of the style."""


class Perception(nn.Module):
    """Features of a classifier: loss `supervised`, on the first view of the labelled images."""

    def __init__(self, classifier: WideResNetPerception | VGGPerception) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        _, logits = self.classifier(batch.labelled[0])
        return Outcome({"supervised": cross_entropy(logits, batch.labels)})


class AdaINTransfer(nn.Module):
    """Losses `content` and `style`, on the first view of the unlabelled images.

    Every image is the content of one hybrid and the style of another. Gradient reaches the decoder alone; the features
    are of the classifier as it is, which learns no more.
    """

    def __init__(self, autoencoder: AdaINAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        autoencoder.classifier.requires_grad_(False).eval()

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        images, features = batch.unlabelled[0], self.autoencoder.classifier.features
        partner = torch.randperm(len(images), device=images.device)
        with torch.no_grad():
            known = features(images)
            target = adain(known[-1], known[-1][partner])
        seen = features(self.autoencoder.decoder(target))
        return Outcome(
            {
                "content": style.content(seen[-1], target),
                "style": style.style([moments(maps) for maps in seen], [moments(maps)[partner] for maps in known]),
            }
        )


def network(settings: Settings, context: Context, seed: int) -> AdaINAutoencoder:
    """A new one, VGG with its weights. InputError for weights that are missing and not to be downloaded, and for a
    network of another family."""
    dataset = context.dataset
    sizes = leaky_wrn(settings.network)
    if sizes is None:
        raise InputError(
            f"network: {settings.network!r}; perceptual features are of leaky-wrn-DEPTH-WIDTH, such as leaky-wrn-28-2"
        )
    architecture = AdaINArchitecture(
        image_size=dataset.image_size,
        classes=len(dataset.classes),
        mean=dataset.mean,
        std=dataset.std,
        perceptual="vgg" if settings.perceptual == "vgg" else "wide-resnet",
        depth=sizes.depth,
        width=sizes.width,
    )
    torch.manual_seed(seed)
    autoencoder = context.laid_out(AdaINAutoencoder(architecture))
    if isinstance(autoencoder.classifier, VGGPerception):
        load_vgg(autoencoder.classifier, download=context.settings.download)
    return autoencoder


def with_all_labels(context: Context) -> Context:
    """The context of a split that labels every training image of known class."""
    labels, split = context.dataset.train.labels, context.split
    known, unknown = (which.nonzero().flatten().tolist() for which in (labels >= 0, labels < 0))
    every = Split(split.dataset, split.fingerprint, split.seed, tuple(known), tuple(unknown), ())
    return replace(context, split=every)


def perception_plan(settings: Settings, context: Context, autoencoder: AdaINAutoencoder, seed: int) -> Plan:
    """The first training: the classifier whose features are perceptual."""
    few = context.accelerator.num_processes
    batch = max(few, min(settings.perception_batch, len(context.split.labelled)) // few * few)
    stream = context.stream(seed, labelled=batch, labelled_views=(context.weak(),))
    perception = Perception(autoencoder.classifier.train())
    task = Task(
        perception,
        {"supervised": 1.0},
        adam(perception, decay=settings.weight_decay),
        cosine(settings.perception_rate, 1.0),
    )
    return Plan(
        context,
        stream,
        Clock(settings.perception_steps, steps_per_epoch=settings.perception_steps),
        {"perception": task},
        network=autoencoder.classifier,
        score=by_accuracy(context, lambda classifier, images: classifier(images)[1]),
        select=None,
    )


def transfer_stream(settings: Settings, context: Context, seed: int) -> Stream:
    """The images of the decoder's training. InputError for a batch that cannot be drawn."""
    asked = f"batch = {settings.batch}"
    return context.stream(seed, unlabelled=settings.batch, unlabelled_views=(context.weak(),), asked=asked)


def plan(settings: Settings, context: Context, autoencoder: AdaINAutoencoder, seed: int) -> tuple[Plan, Hybridizer]:
    """The second: the decoder, to which the classifier no longer changes; and the hybridizer that it leaves in the
    run's folder."""
    stream = transfer_stream(settings, context, seed)
    transfer = AdaINTransfer(autoencoder)
    task = Task(
        transfer,
        {"content": settings.weight_content, "style": settings.weight_style},
        adam(transfer, betas=(0.9, 0.99), decay=settings.weight_decay),
        cosine(settings.rate, settings.epochs),
    )
    average = EMA(autoencoder, settings.ema_decay).eval()
    hybridizer = Hybridizer(average.network, Origin.of(context, "adain"))
    classify = lambda network, images: network.classifier(images)[1]
    made = Plan(
        context,
        stream,
        Clock.lasting(settings.epochs, stream.steps_per_epoch),
        {"transfer": task},
        network=autoencoder,
        average=average,
        score=by_accuracy(context, classify),
        select=None,
        finish=lambda folder, _: hybridizer.save_by_first(folder / "hybridizer", context.accelerator),
    )
    return made, hybridizer


PRESETS: dict[str, Mapping[str, Any]] = {
    "smoke": dict(
        precision="fp32", evaluate_every=40, oracle=dict(steps=20), method=dict(perception_steps=30, epochs=0.3)
    ),
    "paper": dict(precision="fp32", method=dict(perceptual="vgg", rate=1e-4, batch=8)),
}
"""The paper's: its perceptual features, rate and batch."""
