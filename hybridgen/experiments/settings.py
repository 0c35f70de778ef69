"""The settings that recipes share, and what they load and build by them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator

from hybridgen.assets import bundled
from hybridgen.configuration import check_positive
from hybridgen.data.datasets import Dataset, load_dataset
from hybridgen.data.splits import Split, make_split
from hybridgen.data.streams import Stream, View
from hybridgen.evaluation import oracle
from hybridgen.hybridizer import Hybridizer
from hybridgen.networks.wide_resnet import WideResNetClassifier
from hybridgen.semi.hybrids import HybridSource, HybridUse, Mixer
from hybridgen.types import InputError


@dataclass(frozen=True)
class DataSettings:
    """Abstract: what every recipe has that trains on a split of a data set."""

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
    """Images of known class set aside, beside --labels, for validation."""
    out: Path = Path("runs")
    """The run's folder."""
    resume: bool = False
    """Continue the run in --out."""
    seed: int = 0
    """Seed of everything but the split."""
    threads: int | None = None
    """CPU threads a process; all cores divided among the processes unless given."""
    workers: int = 2
    """Processes that decode images of folders too large for memory."""


@dataclass(frozen=True)
class TrainingSettings(DataSettings):
    """Abstract: what every recipe of a classifier has, trained on all labels or on few."""

    seed: int = 0
    """Seed of everything but the split; the first of --seeds."""
    seeds: int = 1
    """Number of seeds."""
    epochs: float = 14
    """Passes over the images: the unlabelled ones, where there are any."""
    rate: float = 0.06
    """Learning rate at the start."""
    weight_decay: float = 5e-4
    """Weight decay."""
    clip: float | None = None
    """Largest norm of the gradient."""
    ema_decay: float = 0.99
    """Decay of the averaged weights that are evaluated."""
    channels_last: bool = True
    """Memory layout of the convolutions; faster on CPUs and with bf16 on GPUs."""
    compiled: bool = False
    """Compile the networks with torch.compile."""
    sync_batchnorm: bool = False
    """Batch-norm statistics over all processes."""
    record_every: int = 50
    """Steps between records."""
    evaluate_every: int = 100
    """Steps between evaluations."""
    save_every: int = 200
    """Steps between checkpoints."""


@dataclass(frozen=True)
class ClassifierSettings(TrainingSettings):
    """Abstract: what every recipe of a semi-supervised classifier has. The defaults suit digits-m."""

    rate_epochs: float | None = None
    """Epochs in which a cosine rate would decrease fully (thesis); without, the method's own schedule."""
    labelled_batch: int = 32
    """Labelled images a step, all processes together."""
    unlabelled_batch: int = 96
    """Unlabelled images a step, all processes together."""
    depth: int = 10
    """Depth of the wide residual network."""
    width: int = 1
    """Its width."""
    momentum: float = 0.05
    """Batch-norm's share of the newest batch in its running statistics."""
    normalized_resampling: bool = False
    """Batch-norm after the convolutions that change the number of channels on a shortcut (thesis A.1.1, MixMatch)."""
    weight_supervised: float = 1.0
    """Cross-entropy on labelled images."""
    oracle_steps: int | None = None
    """Training steps of the oracle that measures semantic transfer; by the size of the data set unless given."""
    oracle_depth: int | None = None
    """Depth of its wide residual network; by the size of the data set unless given."""
    oracle_width: int | None = None
    """Width of that; by the size of the data set unless given."""


@dataclass(frozen=True)
class HybridSettings:
    """Abstract: what a recipe has that trains on the hybrids of a frozen hybridizer (thesis 2.4.2)."""

    hybridizer: str = "bundled"
    """Folder or hub id of a hybridizer; bundled for the repository's own, none to train without hybrids. With mixup or
    cutmix (table 2.6) the classifier learns in their place from images of the batch mixed with others, whose share of
    the target, drawn for each, stands for --alpha; no classifier says which to leave out."""
    baseline: bool = True
    """Train the classifier without hybrids too."""
    from_hybridizer: bool = False
    """Start the classifier with hybrids from the one that guided the hybridizer's training (table 2.3)."""
    allow_other_split: bool = False
    """Accept a hybridizer trained on another split of the same data, whose labels then leak."""
    use: Literal["contradict", "consistency", "pseudo-label", "labelled"] = "contradict"
    """How hybrids teach (table A.15)."""
    alpha: float = 0.9
    """α of equation 2.13: the semantic parent's share of a hybrid's target."""
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
    threshold: float = 0.9
    """Confidence that a pseudo-label needs."""
    weight_hybrids: float = 1.0
    """Of the loss on hybrids."""


def load_data(config: DataSettings) -> tuple[Dataset, Split]:
    """The data set and its split: of the file, or drawn."""
    dataset = load_dataset(
        config.data, image_size=config.image_size, data_root=config.data_root, download=config.download
    )
    if config.split is not None:
        split = Split.load(config.split)
    else:
        labels = config.labels
        if labels is None:
            labels = int((dataset.train.labels >= 0).sum()) - config.validation
        split = make_split(dataset, labels=labels, seed=config.split_seed, validation=config.validation)
    split.check(dataset)
    return dataset, split


def load_hybridizer(
    config: HybridSettings, accelerator: Accelerator, dataset: Dataset, split: Split
) -> HybridSource | None:
    """The hybridizer on the device, None without; InputError for one of another image size or split, and for MixUp and
    CutMix in another use than that of both parents' targets."""
    if config.hybridizer == "none":
        return None
    if config.hybridizer in ("mixup", "cutmix"):
        if config.use != "contradict":
            raise InputError(
                f"use: {config.use!r}, but --hybridizer {config.hybridizer} needs 'contradict': what it "
                "mixes has the targets of both parents, by their shares"
            )
        return Mixer(config.hybridizer)
    source = bundled() if config.hybridizer == "bundled" else config.hybridizer
    hybridizer = Hybridizer.from_pretrained(source).to(accelerator.device)
    if config.hybridizer == "bundled" and hybridizer.origin.dataset != dataset.name:
        raise InputError(
            f"hybridizer: the bundled one was trained on {hybridizer.origin.dataset}, not on {dataset.name}; "
            "give one of these images (--hybridizer), or none"
        )
    hybridizer.check_split(dataset, split, allow_other_split=config.allow_other_split)
    return hybridizer


def make_stream(
    config: ClassifierSettings,
    accelerator: Accelerator,
    dataset: Dataset,
    split: Split,
    views: tuple[tuple[View, ...], tuple[View, ...]],
    seed: int,
    *,
    labelled_pool: Sequence[int] | None = None,
) -> Stream:
    """This process's batches, with these views of the labelled and of the unlabelled images."""
    return Stream(
        dataset.train,
        split,
        labelled=config.labelled_batch,
        unlabelled=config.unlabelled_batch,
        labelled_views=views[0],
        unlabelled_views=views[1],
        seed=seed,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        device=accelerator.device,
        workers=config.workers,
        labelled_pool=labelled_pool,
    )


def make_classifier(config: ClassifierSettings, dataset: Dataset) -> WideResNetClassifier:
    """A new wide residual network."""
    return WideResNetClassifier(
        config.depth,
        config.width,
        len(dataset.classes),
        mean=dataset.mean,
        std=dataset.std,
        momentum=config.momentum,
        normalized_resampling=config.normalized_resampling,
    )


def how_to_use(config: HybridSettings) -> HybridUse:
    """How hybrids teach."""
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


def oracle_settings(config: ClassifierSettings, dataset: Dataset) -> oracle.Settings:
    """Of the oracle that judges hybrids; InputError for one that cannot be made, and for too few images to judge."""
    if len(dataset.test) < 3:
        raise InputError(f"{dataset.name}: {len(dataset.test)} test images; transfer rates need three or more")
    settings = oracle.settings_for(
        dataset, steps=config.oracle_steps, depth=config.oracle_depth, width=config.oracle_width
    )
    make_classifier(replace(config, depth=settings.depth, width=settings.width), dataset)
    return settings


def check_window(config: Any) -> None:
    """InputError for a window of hybrids that is empty or lies outside the epochs."""
    start, stop, epochs = config.hybrids_from, config.hybrids_until, config.epochs
    if start < 0 or start >= min(stop, epochs):
        raise InputError(
            f"hybrids_from, hybrids_until: the window [{start:g}, {stop:g}) has no part of the {epochs:g} epochs"
        )


def check_counts(config: TrainingSettings, *more: str) -> None:
    """InputError for epochs, seeds, intervals and `more` that are not above zero, and for a decay outside [0, 1)."""
    check_positive(config, "epochs", "seeds", "record_every", "evaluate_every", "save_every", *more)
    if not 0 <= config.ema_decay < 1:
        raise InputError(f"ema_decay: {config.ema_decay} is outside [0, 1)")
