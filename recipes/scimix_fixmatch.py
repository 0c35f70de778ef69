"""Stage 2: train FixMatch with and without SciMix hybrids, from the same seed, split and steps (thesis 2.4.2, A.1.2.3).

accelerate launch recipes/scimix_fixmatch.py
accelerate launch recipes/scimix_fixmatch.py --preset paper-cifar10-100 --hybridizer runs/scimix/hybridizer
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import torch
from accelerate import Accelerator

from hybridgen.assets import bundled
from hybridgen.configuration import check_positive, launch
from hybridgen.data.augment import strong, weak
from hybridgen.data.datasets import Dataset, load_dataset
from hybridgen.data.splits import Split, make_split
from hybridgen.data.streams import Stream
from hybridgen.evaluation.classification import accuracy
from hybridgen.evaluation.grid import choose_parents, hybrid_grid
from hybridgen.evaluation.oracle import load_or_train_oracle, settings_for
from hybridgen.evaluation.transfer import transfer_rates
from hybridgen.files import save_picture
from hybridgen.hybridizer import Hybridizer
from hybridgen.networks.wide_resnet import WideResNetClassifier
from hybridgen.semi.fixmatch import FixMatch
from hybridgen.semi.hybrids import HybridUse
from hybridgen.training.ema import EMA
from hybridgen.training.engine import laid_out, make_accelerator
from hybridgen.training.fit import fit
from hybridgen.training.objective import Task, sgd
from hybridgen.training.record import Run, claim, read_result, write_result
from hybridgen.training.schedules import Clock, cosine, fixmatch_cosine
from hybridgen.training.selection import Selected


@dataclass(frozen=True)
class Config:
    """Train FixMatch with and without the hybrids of a frozen hybridizer, and compare."""

    data: str = "digits-m"
    """Data set: digits-m, cifar10, svhn, ..., folder:PATH or npz:PATH."""
    image_size: int | None = None
    """Side to which images are brought; needed for folders of unequal images."""
    data_root: str = "data"
    """Where data sets lie or are downloaded to."""
    download: bool = False
    """Download the data set if it is missing."""
    labels: int = 100
    """Labelled images."""
    split: Path | None = None
    """A split file made by `hybridgen split`; without one, the split of --labels, --split-seed and --validation."""
    split_seed: int = 0
    """Seed of the split."""
    validation: int = 100
    """Labelled images set aside for choosing an epoch."""
    hybridizer: str = "bundled"
    """Folder or hub id of a hybridizer; bundled for the repository's own, none for plain FixMatch."""
    allow_other_split: bool = False
    """Accept a hybridizer trained on another split of the same data, whose labels then leak."""
    out: Path = Path("runs/scimix_fixmatch")
    """The run's folder."""
    resume: bool = False
    """Continue the run in --out."""
    seed: int = 0
    """Seed of everything but the split; the first of --seeds."""
    seeds: int = 1
    """Number of seeds."""
    threads: int | None = None
    """CPU threads a process; all cores divided among the processes unless given."""
    workers: int = 2
    """Processes that decode images of folders too large for memory."""

    epochs: float = 14
    """Passes over the unlabelled images."""
    rate: float = 0.06
    """Learning rate at the start."""
    rate_epochs: float | None = None
    """Epochs in which the cosine rate would decrease fully (thesis); without, FixMatch's own 7π/16 cosine."""
    weight_decay: float = 5e-4
    """Weight decay, on kernels only."""
    labelled_batch: int = 32
    """Labelled images a step, all processes together."""
    unlabelled_batch: int = 96
    """Unlabelled images a step, all processes together."""
    clip: float | None = None
    """Largest norm of the gradient."""
    threshold: float = 0.9
    """Confidence that a pseudo-label needs."""
    ema_decay: float = 0.99
    """Decay of the averaged weights that are evaluated."""
    depth: int = 10
    """Depth of the wide residual network."""
    width: int = 1
    """Its width."""
    momentum: float = 0.05
    """Batch-norm's share of the newest batch in its running statistics."""
    channels_last: bool = True
    """Memory layout of the convolutions; faster on CPUs and with bf16 on GPUs."""
    compiled: bool = False
    """Compile the networks with torch.compile."""
    sync_batchnorm: bool = False
    """Batch-norm statistics over all processes (GPUs only)."""
    cutout: int | None = None
    """Side of the square that strong augmentation cuts out; half the image's unless given."""

    use: Literal["contradict", "consistency", "pseudo-label", "labelled"] = "contradict"
    """How hybrids teach (table A.15)."""
    alpha: float = 0.9
    """α of equation 2.13."""
    copies: int = 3
    """Hybrids of each image a step."""
    hybrids_from: float = 1.5
    """First epoch with hybrids."""
    hybrids_until: float = 12
    """First epoch without them again."""
    hybrids_reduction: Literal["mean", "sum"] = "sum"
    """Of the squared error on hybrids over classes."""
    keep_consistent: bool = True
    """Leave out hybrids whose class the hybridizer's own classifier sees changed."""
    weight_supervised: float = 1.0
    """Cross-entropy on labelled images."""
    weight_unsupervised: float = 1.0
    """λ_u."""
    weight_hybrids: float = 1.0
    """λ_contradict."""

    oracle_steps: int | None = None
    """Training steps of the oracle that measures semantic transfer; by the size of the data set unless given."""
    oracle_depth: int | None = None
    """Depth of its wide residual network; by the size of the data set unless given."""
    oracle_width: int | None = None
    """Width of that; by the size of the data set unless given."""
    record_every: int = 50
    """Steps between records."""
    evaluate_every: int = 100
    """Steps between evaluations."""
    save_every: int = 200
    """Steps between checkpoints."""


PAPER: dict[str, Any] = dict(
    validation=0, hybridizer="none", epochs=1000, rate_epochs=1050, labelled_batch=32, unlabelled_batch=224,
    threshold=0.95, ema_decay=0.999, depth=28, width=2, momentum=0.001, hybrids_from=100, hybrids_until=200,
    record_every=100, evaluate_every=2230, save_every=2230,
)  # fmt: skip
CIFAR10: dict[str, Any] = PAPER | dict(data="cifar10", rate=0.015)
SVHN: dict[str, Any] = PAPER | dict(data="svhn", rate=0.03)

PRESETS: dict[str, Mapping[str, Any]] = {
    "smoke": dict(epochs=1, hybrids_from=0.2, hybrids_until=0.8, evaluate_every=20, oracle_steps=20),
    "paper-cifar10-100": CIFAR10 | dict(labels=100),
    "paper-cifar10-250": CIFAR10 | dict(labels=250),
    "paper-cifar10-500": CIFAR10 | dict(labels=500),
    "paper-svhn-60": SVHN | dict(labels=60),
    "paper-svhn-100": SVHN | dict(labels=100),
}


def make_stream(config: Config, accelerator: Accelerator, dataset: Dataset, split: Split, seed: int) -> Stream:
    weakly = partial(weak, flip=dataset.flip, shift=dataset.image_size // 8)
    strongly = partial(
        strong, flip=dataset.flip, shift=dataset.image_size // 8, cutout=config.cutout or dataset.image_size // 2
    )
    return Stream(
        dataset.train,
        split,
        labelled=config.labelled_batch,
        unlabelled=config.unlabelled_batch,
        labelled_views=(weakly,),
        unlabelled_views=(weakly, strongly),
        seed=seed,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        device=accelerator.device,
        workers=config.workers,
    )


def make_classifier(config: Config, dataset: Dataset) -> WideResNetClassifier:
    return WideResNetClassifier(
        config.depth,
        config.width,
        len(dataset.classes),
        mean=dataset.mean,
        std=dataset.std,
        momentum=config.momentum,
    )


def how_to_use(config: Config) -> HybridUse:
    return HybridUse(
        use=config.use,
        alpha=config.alpha,
        copies=config.copies,
        start=config.hybrids_from,
        stop=config.hybrids_until,
        reduction=config.hybrids_reduction,
        threshold=config.threshold,
        keep_consistent=config.keep_consistent,
    )


def train(
    config: Config,
    accelerator: Accelerator,
    dataset: Dataset,
    split: Split,
    hybridizer: Hybridizer | None,
    seed: int,
    folder: Path,
) -> dict[str, Any]:
    """One classifier."""
    torch.manual_seed(seed)

    # Data, classifier and objective
    stream = make_stream(config, accelerator, dataset, split, seed)
    classifier = laid_out(
        make_classifier(config, dataset),
        accelerator,
        channels_last=config.channels_last,
        compiled=config.compiled,
        synchronized=config.sync_batchnorm,
    )
    how = how_to_use(config)
    objective = FixMatch(classifier, threshold=config.threshold, hybridizer=hybridizer, how=how)
    weights = {"supervised": config.weight_supervised, "unsupervised": config.weight_unsupervised}
    if hybridizer is not None:
        weights["hybrids"] = config.weight_hybrids
    prepared, optimizer = accelerator.prepare(objective, sgd(objective, decay=config.weight_decay, decay_all=False))
    rate = cosine(config.rate, config.rate_epochs) if config.rate_epochs else fixmatch_cosine(config.rate)
    tasks = {"classifier": Task(prepared, weights, optimizer, rate, clip=config.clip)}
    average = EMA(classifier, config.ema_decay, linear_start=False, buffers="copy").eval()
    selected = Selected(average.network)

    # Training
    clock = Clock(steps=round(config.epochs * stream.steps_per_epoch), steps_per_epoch=stream.steps_per_epoch)
    with Run(
        folder,
        config,
        accelerator,
        clock,
        modules={"objective": objective, "average": average, "selected": selected},
        optimizers={"classifier": optimizer},
        split_hash=split.hash,
        record_every=config.record_every,
        save_every=config.save_every,
        resume=config.resume,
    ) as run:
        for scalars in fit(tasks, stream.from_step(clock.step), clock, accelerator, seed=seed):
            average.update(classifier)
            if clock.every(config.evaluate_every):
                score = accuracy(average, dataset.train, split.validation, accelerator)
                selected.offer(average.network, score, clock.step)
                run.log(**{"validation/accuracy": score})
            run.step(scalars)

        # Result
        everything = range(len(dataset.test))
        return write_result(
            folder,
            accelerator,
            test_accuracy_last=accuracy(average, dataset.test, everything, accelerator),
            test_accuracy_selected=accuracy(selected.network.eval(), dataset.test, everything, accelerator),
            selected_step=int(selected.step),
            seed=seed,
            steps=clock.steps,
            seconds=run.seconds,
            split_hash=split.hash,
        )


def main(config: Config) -> dict[str, Any]:
    check_positive(config, "epochs", "seeds", "oracle_steps", "record_every", "evaluate_every", "save_every")
    accelerator = make_accelerator(threads=config.threads)

    # Data and hybridizer
    dataset = load_dataset(
        config.data, image_size=config.image_size, data_root=config.data_root, download=config.download
    )
    if config.split is not None:
        split = Split.load(config.split)
    else:
        split = make_split(dataset, labels=config.labels, seed=config.split_seed, validation=config.validation)
    split.check(dataset)
    hybridizer = None
    if config.hybridizer != "none":
        source = bundled() if config.hybridizer == "bundled" else config.hybridizer
        hybridizer = Hybridizer.from_pretrained(source).to(accelerator.device)
        hybridizer.check_split(dataset, split, allow_other_split=config.allow_other_split)

    # A run's folder, once everything that the configuration asks for has shown that it can be made
    make_stream(config, accelerator, dataset, split, config.seed)
    laid_out(make_classifier(config, dataset), accelerator, synchronized=config.sync_batchnorm)
    how_to_use(config)
    judge = settings_for(dataset, steps=config.oracle_steps, depth=config.oracle_depth, width=config.oracle_width)
    make_classifier(replace(config, depth=judge.depth, width=judge.width), dataset)
    claim(config.out, config, accelerator, resume=config.resume)

    # Classifiers without and with hybrids
    results: dict[str, list[dict[str, Any]]] = {"FixMatch": []}
    if hybridizer is not None:
        results["FixMatch + SciMix"] = []
    for seed in range(config.seed, config.seed + config.seeds):
        for name, done in results.items():
            folder = config.out / f"{'fixmatch' if name == 'FixMatch' else 'scimix'}-seed{seed}"
            result = read_result(folder) if config.resume else None
            if result is None:
                used = None if name == "FixMatch" else hybridizer
                result = train(config, accelerator, dataset, split, used, seed, folder)
            done.append(result)
    summary: dict[str, Any] = {
        name: {
            key: summarize([result[key] for result in done])
            for key in ("test_accuracy_last", "test_accuracy_selected", "seconds")
        }
        for name, done in results.items()
    }

    # What the hybrids inherit
    rates = None
    if hybridizer is not None:
        oracle, _ = load_or_train_oracle(dataset, accelerator, settings=judge)
        rates = transfer_rates(hybridizer, dataset, oracle, accelerator).to_dict()
        side = min(8, len(dataset.test) // 2)
        parents = [
            dataset.test.images.gather(chosen) / 255 for chosen in choose_parents(dataset.test, side, side, config.seed)
        ]
        if accelerator.is_main_process:
            grid = hybrid_grid(hybridizer, *(images.to(accelerator.device) for images in parents))
            save_picture(config.out / "grid.png", grid)

    # Side by side
    accelerator.print(
        f"\n{dataset.name}, {len(split.labelled)} labels, {config.epochs:g} epochs, {config.seeds} seed(s)"
    )
    accelerator.print(f"{'test accuracy, %':18}{'last':>16}{'selected':>16}{'seconds':>10}")
    for name, row in summary.items():
        last, chosen = (shown(row[key]) for key in ("test_accuracy_last", "test_accuracy_selected"))
        accelerator.print(f"{name:18}{last:>16}{chosen:>16}{row['seconds']['mean']:>10.0f}")
    if rates is not None:
        accelerator.print(
            f"hybrids: semantic transfer {rates['semantic_transfer']:.3f}, non-semantic preservation "
            f"{rates['nonsemantic_preservation']:.3f} (oracle's own accuracy {rates['oracle_accuracy']:.3f}); "
            f"{config.out / 'grid.png'}"
        )
    best = list(summary.values())[-1]
    return write_result(
        config.out,
        accelerator,
        test_accuracy_last=best["test_accuracy_last"]["mean"],
        test_accuracy_selected=best["test_accuracy_selected"]["mean"],
        seed=config.seed,
        seeds=config.seeds,
        steps=results["FixMatch"][0]["steps"],
        seconds=sum(row["seconds"]["mean"] for row in summary.values()) * config.seeds,
        split_hash=split.hash,
        allow_other_split=config.allow_other_split,
        classifiers=summary,
        transfer=rates,
    )


def summarize(values: list[float]) -> dict[str, float]:
    """Mean and, of several values, sample standard deviation."""
    return {"mean": mean(values)} | ({"std": stdev(values)} if len(values) > 1 else {})


def shown(value: dict[str, float]) -> str:
    """Percent, with the deviation where there is one."""
    return f"{100 * value['mean']:.1f}" + (f" ± {100 * value['std']:.1f}" if "std" in value else "")


if __name__ == "__main__":
    launch(main, Config, PRESETS)
