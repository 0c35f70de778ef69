"""SAMOSA as an add-on to a backbone (thesis 2.3.4, algorithms A.1 and A.2), against the backbone alone."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from jaxtyping import UInt8
from torch import Tensor, nn

from hybridgen.configuration import check_positive
from hybridgen.data.datasets import Dataset
from hybridgen.data.splits import Split
from hybridgen.data.streams import Stream, derive_seed
from hybridgen.experiments.backbones import Backbone, Method
from hybridgen.experiments.comparison import Result, conclude, over_seeds, slug, train, train_classifier
from hybridgen.experiments.settings import (
    ClassifierSettings,
    check_counts,
    check_window,
    load_data,
    make_stream,
    oracle_settings,
)
from hybridgen.generators.samosa import Samosa, SamosaReconstruction, Watched, samosa_hybrids
from hybridgen.hybridizer import Hybridizer, Origin
from hybridgen.networks.autoencoder import SamosaArchitecture, SamosaAutoencoder
from hybridgen.semi.mixmatch import Replacement
from hybridgen.training.ema import EMA
from hybridgen.training.engine import laid_out, make_accelerator
from hybridgen.training.objective import Task, sgd
from hybridgen.training.record import claim, identity
from hybridgen.training.schedules import Clock, cosine, cycled
from hybridgen.types import Batch, Images


@dataclass(frozen=True)
class SamosaSettings:
    """Abstract: what the backbone's settings lack for the auto-encoder."""

    reconstruction_rate: float = 0.6
    """Learning rate of E_r and D at the start."""
    reconstruction_rate_epochs: float | None = None
    """Epochs in which it would decrease fully, along a cosine; those of a cycle unless given."""
    reconstruction_decay: float = 5e-4
    """Weight decay of E_r and D."""
    reduction: Literal["mean", "sum"] = "mean"
    """Of both squared distances over an image's or a map's elements."""
    weight_reconstruction: float = 0.25
    """λ_rec of L_rec (2.7)."""
    weight_regularizer: float = 0.5
    """λ_SAMOSA of Ω_rec (2.7)."""
    cycles: int = 2
    """Trainings one after the other, `epochs` each; rates start anew."""
    hybrids_per_image: int = 10
    """Hybrids of each labelled image, made after each cycle as further labelled images of the next."""
    snapshot_every: int | None = None
    """Steps between copies of the hybridizer in the run's snapshots/step-N, for `hybridgen study transfer`; none unless
    given."""
    hybrids_from: float = 1.5
    """First epoch of a cycle with hybrids."""
    hybrids_until: float = 12
    """First epoch of a cycle without them again."""


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


def compare_samosa(config: ClassifierSettings, backbone: Backbone, *, replacing: float | None = None) -> Result:
    """Train the backbone alone and with SAMOSA, over all seeds; print and keep both accuracies, the transfer rates of
    the first seed's hybridizer, and a picture.

    `config` is a `SamosaSettings` too. Labelled images of the second and later cycles are drawn from hybrids of the
    cycle before as well (algorithm A.1); with `replacing`, a probability, hybrids take the place of MixMatch's MixUp
    in the window of every cycle (algorithm A.2). The backbone alone has as many cycles. InputError for anything that
    cannot be made, before a folder is.
    """
    check_counts(config, "oracle_steps")
    check_positive(config, "reconstruction_rate_epochs", "cycles", "hybrids_per_image", "snapshot_every")
    check_window(config)
    accelerator = make_accelerator(threads=config.threads)
    dataset, split = load_data(config)
    make_stream(config, accelerator, dataset, split, backbone.views(config, dataset), config.seed)
    autoencoder = make_autoencoder(config, dataset)
    make_method(config, backbone, autoencoder, replacing)
    judge = oracle_settings(config, dataset)
    claim(config.out, config, accelerator, resume=config.resume)

    alone = partial(train_classifier, config, backbone, accelerator, dataset, split, None, cycles=config.cycles)
    together = partial(train_samosa, config, backbone, accelerator, dataset, split, replacing)
    name = f"{backbone.name} + SAMOSA"
    results = over_seeds(config, {backbone.name: (slug(backbone.name), alone), name: ("samosa", together)})
    hybridizer = Hybridizer.from_pretrained(config.out / f"samosa-seed{config.seed}" / "hybridizer")
    return conclude(config, accelerator, dataset, split, results, hybridizer.to(accelerator.device), judge)


def make_autoencoder(config: ClassifierSettings, dataset: Dataset) -> SamosaAutoencoder:
    """New networks; InputError for an image size that the decoder cannot make."""
    return SamosaAutoencoder(
        SamosaArchitecture(
            image_size=dataset.image_size,
            classes=len(dataset.classes),
            mean=dataset.mean,
            std=dataset.std,
            depth=config.depth,
            width=config.width,
            momentum=config.momentum,
            normalized_resampling=config.normalized_resampling,
        )
    )


def make_method(
    config: ClassifierSettings, backbone: Backbone, autoencoder: SamosaAutoencoder, replacing: float | None
) -> tuple[Watched, Method]:
    """The backbone's method on E_c and C, and the classifier by which it sees them."""
    watched = Watched(autoencoder.classifier, heads=backbone.heads)
    if replacing is None:
        return watched, backbone.method(config, watched, None)

    def hybridize(semantic: Images, nonsemantic: Images) -> Images:
        return samosa_hybrids(autoencoder, semantic, nonsemantic)[0]

    replacement = Replacement(hybridize, probability=replacing, start=config.hybrids_from, stop=config.hybrids_until)
    return watched, backbone.method(config, watched, None, replacement=replacement)


def train_samosa(
    config: ClassifierSettings,
    backbone: Backbone,
    accelerator: Accelerator,
    dataset: Dataset,
    split: Split,
    replacing: float | None,
    seed: int,
    folder: Path,
) -> Result:
    """One classifier with its auto-encoder, in a folder of its own, where it leaves its hybridizer too."""
    claim(folder, config, accelerator, resume=config.resume and folder.exists())
    torch.manual_seed(seed)

    # Networks and objectives
    layout = dict(channels_last=config.channels_last, synchronized=config.sync_batchnorm)
    autoencoder = laid_out(make_autoencoder(config, dataset), accelerator, **layout)
    if config.compiled:  # the parts that the objectives call
        for part in (autoencoder.classifier, autoencoder.nonsemantic_encoder, autoencoder.decoder):
            part.compile()
    watched, method = make_method(config, backbone, autoencoder, replacing)
    classifying = Samosa(
        method.objective, watched, autoencoder.decoder, clean_only=backbone.strong, reduction=config.reduction
    )
    reconstructing = SamosaReconstruction(
        autoencoder.nonsemantic_encoder, autoencoder.decoder, autoencoder.normalize, reduction=config.reduction
    )
    prepared = accelerator.prepare(
        classifying, method.optimizer, reconstructing, sgd(reconstructing, decay=config.reconstruction_decay)
    )
    second_rate = cosine(config.reconstruction_rate, config.reconstruction_rate_epochs or config.epochs)
    tasks = {
        "classifier": Task(
            prepared[0],
            method.weights | {"regularizer": config.weight_regularizer},
            prepared[1],
            cycled(method.rate, config.cycles),
            clip=config.clip,
        ),
        "reconstruction": Task(
            prepared[2],
            {"reconstruction": config.weight_reconstruction},
            prepared[3],
            cycled(second_rate, config.cycles),
            clip=config.clip,
        ),
    }
    average = EMA(autoencoder, config.ema_decay, linear_start=False, buffers="copy").eval()
    origin = Origin(dataset.name, dataset.fingerprint, split.hash, dataset.classes, identity(config), method="samosa")
    hybridizer = Hybridizer(average.network, origin)

    # Batches: after the first cycle, labelled images are drawn from hybrids too, in their window
    views = backbone.views(config, dataset)
    plain = make_stream(config, accelerator, dataset, split, views, seed)
    cycle_steps = round(config.epochs * plain.steps_per_epoch)
    clock = Clock(config.cycles * cycle_steps, plain.steps_per_epoch)
    hybrids = HybridSet(dataset, split, config.hybrids_per_image).to(accelerator.device)

    def batches(step: int) -> Iterator[Batch]:
        while True:
            drawn, until = stretch(config, step, plain.steps_per_epoch, cycle_steps)
            stream = with_hybrids() if drawn and replacing is None else plain
            yield from islice(stream.from_step(step), until - step)
            step = until

    def with_hybrids() -> Stream:
        part = dataset.train.extended(hybrids.images, dataset.train.labels[hybrids.semantic])
        pool = (*split.labelled, *range(len(dataset.train), len(part)))
        return make_stream(config, accelerator, replace(dataset, train=part), split, views, seed, labelled_pool=pool)

    def after_step() -> dict[str, float]:
        noted = method.after_step()
        if config.snapshot_every and clock.every(config.snapshot_every) and accelerator.is_main_process:
            hybridizer.save_pretrained(folder / "snapshots" / f"step-{clock.step}")
        if clock.step % cycle_steps or clock.done or replacing is not None:
            return noted
        cycle_seed = derive_seed(seed, "hybrids", clock.step // cycle_steps)
        return noted | {"hybrids_kept": hybrids.make(average.network, dataset, split, cycle_seed)}

    def finish() -> None:
        if accelerator.is_main_process:
            hybridizer.save_pretrained(folder / "hybridizer")

    return train(
        config,
        accelerator,
        dataset,
        split,
        seed,
        folder,
        tasks=tasks,
        batches=batches,
        clock=clock,
        network=autoencoder,
        average=average,
        classify=lambda network, images: network.classifier(images).predictions,
        modules={
            "classifier": classifying,
            "reconstruction": reconstructing,
            "hybrids": hybrids,
        },
        after_step=after_step,
        finish=finish,
    )


def stretch(config: SamosaSettings, step: int, steps_per_epoch: int, cycle_steps: int) -> tuple[bool, int]:
    """Whether labelled images are drawn from hybrids too at `step`, and the step at which that may change."""
    cycle, within = divmod(step, cycle_steps)
    begin = cycle * cycle_steps
    first, last = (
        math.ceil(min(cycle_steps, epoch * steps_per_epoch)) for epoch in (config.hybrids_from, config.hybrids_until)
    )
    if cycle == 0 or within >= last:
        return False, begin + cycle_steps
    return (True, begin + last) if within >= first else (False, begin + first)
