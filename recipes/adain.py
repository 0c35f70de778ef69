"""Train AdaIN, a hybridizer by style transfer, to compare others with (thesis 2.2.2.1 and table 2.5).

accelerate launch recipes/adain.py --data svhn --labels 250 --download
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator

from hybridgen.configuration import check_positive, launch
from hybridgen.data.augment import weak
from hybridgen.data.datasets import Dataset, load_dataset
from hybridgen.data.splits import Split, make_split
from hybridgen.data.streams import Stream
from hybridgen.evaluation.classification import accuracy
from hybridgen.evaluation.grid import sample_grid
from hybridgen.experiments.settings import DataSettings
from hybridgen.generators.adain import AdaINTransfer, Perception
from hybridgen.hybridizer import Hybridizer, Origin
from hybridgen.networks.adain import AdaINArchitecture, AdaINAutoencoder, load_vgg
from hybridgen.training.ema import EMA
from hybridgen.training.engine import laid_out, make_accelerator
from hybridgen.training.fit import fit
from hybridgen.training.objective import Task, adam
from hybridgen.training.record import Run, claim, identity, write_result
from hybridgen.training.schedules import Clock, cosine


@dataclass(frozen=True)
class Config(DataSettings):
    """Train AdaIN: a classifier for its perceptual features, then the decoder that makes images of them."""

    download: bool = False
    """Download the data set, and for --perceptual vgg its weights, if they are missing."""
    out: Path = Path("runs/adain")
    """The run's folder; the classifier's is OUT/perception."""

    perceptual: Literal["labelled", "all", "vgg"] = "labelled"
    """Whose features: of a classifier trained on the split's labelled images, of one trained on all training labels
    (the split is then one that labels them all, so that no classifier of fewer labels takes the hybridizer by
    mistake), or of VGG-19 trained on ImageNet as in the paper."""
    depth: int = 10
    """Depth of the classifier, a wide residual network."""
    width: int = 2
    """Its width."""
    perception_steps: int = 600
    """Steps of the classifier's training; with VGG of a linear layer on its features."""
    perception_batch: int = 64
    """Labelled images in each, all processes together; fewer where there are fewer."""
    perception_rate: float = 4e-3
    """Learning rate of the classifier at the start."""

    epochs: float = 20
    """Passes of the decoder's training over the unlabelled images."""
    batch: int = 32
    """Images a step, all processes together: each the content of one output and the style of another."""
    rate: float = 2e-3
    """Learning rate of the decoder at the start; it decreases to zero as a cosine."""
    weight_decay: float = 0.0
    """Weight decay of both."""
    average_decay: float = 0.995
    """EMA decay of the saved networks."""
    weight_content: float = 1.0
    """Of the distance of the output's features from AdaIN's target."""
    weight_style: float = 10.0
    """λ, of the distance of the output's moments from those of the style."""
    channels_last: bool = True
    """Memory layout of the convolutions; faster on CPUs and with bf16 on GPUs."""

    record_every: int = 50
    """Steps between records."""
    evaluate_every: int = 500
    """Steps between pictures, and between the classifier's evaluations."""
    save_every: int = 500
    """Steps between checkpoints."""


PRESETS: dict[str, Mapping[str, Any]] = {
    "smoke": dict(perception_steps=30, epochs=0.3, evaluate_every=40),
    "paper": dict(perceptual="vgg", rate=1e-4, batch=8),
}


def make_stream(config: Config, accelerator: Accelerator, dataset: Dataset, split: Split, stage: str) -> Stream:
    """One weak view of labelled images for perception, of unlabelled ones for transfer; of the others the fewest."""
    view = (partial(weak, flip=dataset.flip, shift=dataset.image_size // 8),)
    few = accelerator.num_processes
    first = stage == "perception"
    labelled = max(few, min(config.perception_batch, len(split.labelled)) // few * few)
    return Stream(
        dataset.train,
        split,
        labelled=labelled if first else few,
        unlabelled=few if first else config.batch,
        labelled_views=view if first else (),
        unlabelled_views=() if first else view,
        seed=config.seed,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        device=accelerator.device,
        workers=config.workers,
    )


def main(config: Config) -> dict[str, Any]:
    check_positive(
        config, "epochs", "perception_steps", "perception_batch", "record_every", "evaluate_every", "save_every"
    )
    accelerator = make_accelerator(threads=config.threads)
    torch.manual_seed(config.seed)

    # Data
    dataset = load_dataset(
        config.data, image_size=config.image_size, data_root=config.data_root, download=config.download
    )
    if config.perceptual == "all":
        known, unknown = (
            which.nonzero().flatten().tolist() for which in (dataset.train.labels >= 0, dataset.train.labels < 0)
        )
        split = Split(dataset.name, dataset.fingerprint, config.split_seed, tuple(known), tuple(unknown), ())
    elif config.split is not None:
        split = Split.load(config.split)
    else:
        split = make_split(dataset, labels=config.labels, seed=config.split_seed, validation=config.validation)
    split.check(dataset)
    streams = {stage: make_stream(config, accelerator, dataset, split, stage) for stage in ("perception", "transfer")}

    # Networks
    architecture = AdaINArchitecture(
        image_size=dataset.image_size,
        classes=len(dataset.classes),
        mean=dataset.mean,
        std=dataset.std,
        perceptual="vgg" if config.perceptual == "vgg" else "wide-resnet",
        depth=config.depth,
        width=config.width,
    )
    autoencoder = AdaINAutoencoder(architecture).to(accelerator.device)
    autoencoder = laid_out(autoencoder, accelerator, channels_last=config.channels_last)
    classifier = autoencoder.classifier
    if config.perceptual == "vgg":
        load_vgg(classifier, download=config.download)
    average = EMA(autoencoder, config.average_decay)
    claim(config.out, config, accelerator, resume=config.resume)
    saving = dict(
        split_hash=split.hash, record_every=config.record_every, save_every=config.save_every, resume=config.resume
    )

    # Perceptual features
    perception = Perception(classifier.train())
    prepared, optimizer = accelerator.prepare(perception, adam(perception, decay=config.weight_decay))
    task = Task(prepared, {"supervised": 1.0}, optimizer, cosine(config.perception_rate, 1.0))
    clock = Clock(steps=config.perception_steps, steps_per_epoch=config.perception_steps)
    with Run(
        config.out / "perception",
        config,
        accelerator,
        clock,
        modules={"perception": perception},
        optimizers={"perception": optimizer},
        **saving,
    ) as run:
        stream = streams["perception"].from_step(clock.step)
        for scalars in fit({"perception": task}, stream, clock, accelerator, seed=config.seed):
            if clock.every(config.evaluate_every):
                classifier.eval()
                score = accuracy(lambda x: classifier(x)[1], dataset.train, split.validation, accelerator)
                run.log(**{"validation/accuracy": score})
                classifier.train()
            run.step(scalars)
    seconds = run.seconds

    # The decoder
    transfer = AdaINTransfer(autoencoder)
    prepared, optimizer = accelerator.prepare(transfer, adam(transfer, betas=(0.9, 0.99), decay=config.weight_decay))
    weights = {"content": config.weight_content, "style": config.weight_style}
    task = Task(prepared, weights, optimizer, cosine(config.rate, config.epochs))
    average.network.classifier.load_state_dict(classifier.state_dict())
    hybridizer = Hybridizer(
        average.network,
        Origin(dataset.name, dataset.fingerprint, split.hash, dataset.classes, identity(config), "adain"),
    )
    steps_per_epoch = streams["transfer"].steps_per_epoch
    clock = Clock(steps=round(config.epochs * steps_per_epoch), steps_per_epoch=steps_per_epoch)
    with Run(
        config.out,
        config,
        accelerator,
        clock,
        modules={"transfer": transfer, "average": average},
        optimizers={"transfer": optimizer},
        **saving,
    ) as run:
        stream = streams["transfer"].from_step(clock.step)
        for scalars in fit({"transfer": task}, stream, clock, accelerator, seed=config.seed):
            average.update(autoencoder)
            if clock.every(config.evaluate_every):
                run.picture("grid", sample_grid(hybridizer, dataset.test, config.seed))
            run.step(scalars)

        # The artefact
        test_accuracy = accuracy(hybridizer.classify, dataset.test, range(len(dataset.test)), accelerator)
        if accelerator.is_main_process:
            hybridizer.save_pretrained(config.out / "hybridizer")
        return write_result(
            config.out,
            accelerator,
            test_accuracy_last=test_accuracy,
            seed=config.seed,
            steps=clock.steps,
            seconds=seconds + run.seconds,
            split_hash=split.hash,
        )


if __name__ == "__main__":
    launch(main, Config, PRESETS)
