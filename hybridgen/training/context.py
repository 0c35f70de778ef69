"""What every run has: its data and split, its devices, how often it records; and what plans make of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from hybridgen.data.augment import weak
from hybridgen.data.datasets import Dataset, load_dataset
from hybridgen.data.splits import Split, make_split
from hybridgen.data.streams import Stream, View
from hybridgen.networks.classifiers import Classifier
from hybridgen.networks.fast import Whitening, patch_covariance
from hybridgen.networks.registry import SMALL, default_network, make_network, set_batch_norm_momentum
from hybridgen.settings import NUMBER, C, Count, Few, Flip, Section, Seed, Whole, changed, settings
from hybridgen.training.engine import Precision, laid_out, make_accelerator
from hybridgen.training.schedules import Clock
from hybridgen.training.trackers import check_trackers
from hybridgen.types import InputError, Network

WHITENED = 2**20
"""Pixels of the training images whose patches the stems of fast networks whiten: 1,024 images of 32×32."""
FEWEST = 64
"""Images that these are at least; all where there are fewer."""

LABELS, LABELS_PER_CLASS, VALIDATION = 100, 4, 100
"""Images of a split of which nothing is given."""

SHORTEST = 20
"""Steps of an epoch, at least, where epochs are not given."""
FEW_STEPS = 200
"""Of a training; fewer are told."""


@settings
class RunSettings:
    """Abstract: what every recipe has that trains on a split of a data set."""

    data: Annotated[str, Section("images and labels")] = "digits-m"
    """Data set: digits-m, cifar10, ..., the path of a folder, CSV, Parquet or npz file, or hf:NAME (Hugging Face)."""
    labels: Count | Literal["auto"] | None = "auto"
    """Labelled images; None: all that are not set aside for validation; auto: 100, or four times the classes if that is
    more, but not more than there are."""
    validation: Whole | Literal["auto"] = "auto"
    """Images of known class set aside, beside --labels, for validation; auto: 100, but not more than --labels leaves,
    nor, where that is no number, more than a fifth of all."""
    split: Path | None = None
    """A split file made by `hybridgen split`; without one, the split of --labels, --split-seed and --validation."""
    split_seed: Seed = 0
    """Seed of the split."""
    image_size: Annotated[int, Field(ge=1, le=4096), NUMBER] | None = None
    """Side to which images are brought. Unless given their own, and of files of unequal sizes 16, 32 or 64: the largest
    that is not above the middle one of their shorter sides."""
    whole: bool = False
    """Train on random parts, 8 to 100 %, of a folder's whole photographs, and judge by their middle (ImageNet);
    without, each is brought to its central square first."""
    flip: Flip = "auto"
    """Mirror images at random, where methods do; auto: all but the built-in digits. Letters, signs and whatever else
    has a reading direction are never to be."""
    data_root: str = "data"
    """Where data sets lie or are downloaded to."""
    download: bool = False
    """Download the data set, and adain.py's VGG-19, if they are missing; pretrained weights that a --network names
    always are."""
    out: Annotated[Path, Section("the run")] = Path("runs")
    """The run's folder."""
    resume: bool = False
    """Continue the run in --out."""
    seed: Seed = 0
    """Seed of everything but the split; the first one of several."""
    precision: Annotated[Precision, Section("the machine")] = "auto"
    """Of convolutions and matrix products while training. auto: bf16 where the processor computes in it, else fp32, or
    what accelerate launch asks for. A run is continued in the precision that it took."""
    threads: Few | None = None
    """CPU threads a process; all cores divided among the processes unless given."""
    workers: Annotated[int, Field(ge=0, le=256), NUMBER] = 2
    """Processes that decode images of folders too large for memory."""
    channels_last: bool = True
    """Memory layout of the convolutions; faster on CPUs and with bf16 on GPUs."""
    compiled: bool = False
    """Compile the networks with torch.compile."""
    sync_batchnorm: bool = False
    """Batch-norm statistics over all processes."""
    record_every: Annotated[Count, Section("what is kept, and when")] = 50
    """Steps between records."""
    evaluate_every: Count = 100
    """Steps between evaluations."""
    save_every: Count = 200
    """Steps between checkpoints; there is one every ten minutes besides."""
    log_with: tuple[str, ...] = ("tensorboard",)
    """Trackers that curves and pictures go to, beside the run's own files: tensorboard, wandb, comet_ml, aim, mlflow,
    clearml, dvclive, or another that accelerate knows."""


@dataclass(frozen=True)
class Context:
    """On what and with what a run trains."""

    settings: RunSettings
    accelerator: Accelerator
    dataset: Dataset
    split: Split
    expected: dict[Path, int] = field(default_factory=dict)
    """Steps of every training of the command, by the folders of their runs, where they are known beforehand."""
    group: str = "method"
    """Of the command's settings, from which a plan is made: another one than `method` bears its name in its flags."""
    chosen: dict[str, Any] = field(default_factory=dict)
    """What these data chose where the settings leave it open, by the places of fields: `method.epochs`."""
    read: dict[str, str] = field(default_factory=dict)
    """Digests of the weights that were read from files, by the fields that name these."""
    _told: dict[str, bool] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: RunSettings) -> "Context":
        """The data set and its split, of the file or drawn, on this process's device. InputError for what is wrong with
        them."""
        check_trackers(settings.log_with)
        accelerator = make_accelerator(precision=settings.precision, threads=settings.threads)
        dataset = load_dataset(
            settings.data,
            image_size=settings.image_size,
            data_root=settings.data_root,
            download=settings.download,
            whole=settings.whole,
        ).mirrored(settings.flip)
        context = cls(settings, accelerator, dataset, split_of(settings, dataset))
        for line in dataset.told:
            context.tell(line)
        split, size = context.split, dataset.image_size
        context.chosen.update(labels=len(split.labelled), validation=len(split.validation), image_size=size)
        if settings.image_size is None and dataset.train.files is not None:
            context.tell(f"images are brought to {size}×{size}; --image-size")
        if settings.split is None and "auto" in (settings.labels, settings.validation):
            context.tell(
                f"{len(split.labelled)} images are labelled, {len(split.validation)} are set aside for validation, "
                f"{len(split.unlabelled)} unlabelled; --labels, --validation"
            )
        return context

    @property
    def flip(self) -> bool:
        """Whether images are mirrored: as the settings say, else the data set."""
        return self.dataset.mirrored(self.settings.flip).flip

    def tell(self, line: str) -> None:
        """What was chosen by these data, for `say`."""
        self._told.setdefault(line, False)

    def _tell_of(self, flag: str, line: str) -> None:
        """What was chosen for a field, and its flag."""
        named = self.group != "method"
        self.tell(f"{self.group}: {line}; --{self.group}.{flag}" if named else f"{line}; --{flag}")

    def note(self, group: str | None = None, **values: Any) -> None:
        """Values of fields of the group, or of another one, for `chosen`."""
        self.chosen.update({f"{group or self.group}.{name}": value for name, value in values.items()})

    def by_size(self, settings: C, chosen: Mapping[bool, Mapping[str, Any]]) -> C:
        """The settings, with what the size of the images chooses where they leave it open: `chosen[True]` up to 16
        pixels, `chosen[False]` above."""
        return self.filled(settings, chosen[self.dataset.image_size <= SMALL])

    def filled(self, settings: C, usual: Mapping[str, Any]) -> C:
        """The settings, with these values where they leave them open."""
        taken = {name: value if (own := getattr(settings, name)) is None else own for name, value in usual.items()}
        self.note(**taken)
        return changed(settings, taken)

    def say(self) -> None:
        """Print what was told and is not said yet: when training begins, and not before an error."""
        for line, said in self._told.items():
            if not said:
                self.accelerator.print(line)
                self._told[line] = True

    def batch_sizes(self, labelled: int | None, unlabelled: int | None, usual: tuple[int, int]) -> tuple[int, int]:
        """Labelled and unlabelled images a step: those that are given, else the usual numbers, or as many as there are
        and the processes can share."""
        own = len(self.split.labelled)

        def size(name: str, given: int | None, common: int, images: int) -> int:
            if given is not None or common <= images:
                return common if given is None else given
            fitting = max(1, images - images % self.accelerator.num_processes)
            self._tell_of(f"{name}-batch", f"{fitting} {name} images a step, for there are {images}")
            return fitting

        first = size("labelled", labelled, usual[0], own)
        second = size("unlabelled", unlabelled, usual[1], own + len(self.split.unlabelled))
        self.note(labelled_batch=first, unlabelled_batch=second)
        return first, second

    def clock(self, epochs: float | None, steps_per_epoch: int, usual: float, *, longest: int | None = None) -> Clock:
        """Of so many epochs. Unless given of the usual number, each of which is as many passes as SHORTEST steps take
        where one has fewer, and no more than the `longest` steps of a pass: so few images are seen longer and many are
        not seen for days, and what is given in epochs (windows, the rate's fall) keeps its place in the whole."""
        if epochs is not None:
            clock = Clock.lasting(epochs, steps_per_epoch)
            if clock.steps < FEW_STEPS:
                self._tell_of("epochs", f"{epochs:g} epochs are {clock.steps} steps, in which little is learnt")
            return clock
        self.note(epochs=usual)
        passes = -(-SHORTEST // steps_per_epoch)
        steps = passes * steps_per_epoch
        steps = steps if longest is None else min(steps, longest)
        clock = Clock.lasting(usual, steps)
        whole = f"{usual:g} epochs are {clock.steps} steps"
        if passes > 1:
            a_pass = "one step" if steps_per_epoch == 1 else f"{steps_per_epoch} steps"
            self._tell_of("epochs", f"an epoch is {passes} passes over the images, of {a_pass} each: {whole}")
        elif steps < steps_per_epoch:
            of_a_pass = f"{steps} of the {steps_per_epoch} steps of a pass over the images"
            self._tell_of("epochs", f"an epoch is {of_a_pass}: {whole}")
        return clock

    def weak(self, *, shift: int | None = None, **options: str) -> View:
        """The weak augmentation: `flip` and shift by up to an eighth of the side (thesis A.1.2.1), or
        by so many pixels."""
        shift = self.dataset.image_size // 8 if shift is None else shift
        return partial(weak, flip=self.flip, shift=shift, **options)

    def stream(
        self,
        seed: int,
        *,
        labelled: int | None = None,
        labelled_views: Sequence[View] = (),
        unlabelled: int | None = None,
        unlabelled_views: Sequence[View] = (),
        unlabelled_pool: Sequence[int] | None = None,
        repetitions: int = 1,
        asked: str | None = None,
    ) -> Stream:
        """This process's batches, with these views of the labelled and of the unlabelled images, each so many times;
        unlabelled ones are the split's unless a pool is given. `asked` is the batch size in the user's words."""
        return Stream(
            self.dataset.train,
            self.split,
            labelled=labelled,
            unlabelled=unlabelled,
            labelled_views=labelled_views,
            unlabelled_views=unlabelled_views,
            unlabelled_pool=unlabelled_pool,
            seed=seed,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            device=self.accelerator.device,
            workers=self.settings.workers,
            repetitions=repetitions,
            asked=asked,
        )

    def classifier(
        self,
        network: str | None,
        *,
        width: float = 1,
        image_size: int | None = None,
        heads: Literal[1, 2] = 1,
        momentum: float | None = None,
    ) -> Classifier:
        """A new classifier of these images, by the network's name, that for their size unless given; it sees them
        whole, or crops of `image_size`. Batch-norm's momentum is the network's own unless given."""
        side = image_size or self.dataset.image_size
        made = make_network(self.network(network), len(self.dataset.classes), width=width, image_size=side)
        if momentum is not None:
            set_batch_norm_momentum(made, momentum)
        return self.laid_out(Classifier(made, mean=self.dataset.mean, std=self.dataset.std, heads=heads))

    def network(self, name: str | None, small: str = "leaky-wrn-10-1") -> str:
        """A network's name: the one that is given, or `default_network` for these images."""
        name = default_network(self.dataset.image_size, small) if name is None else name
        self.note(network=name)
        return name

    @cached_property
    def patches(self) -> Float[Tensor, "patch patch"]:
        """Covariance of the 2×2 patches of standardised training images, evenly chosen among all: equal in all
        processes and for all seeds."""
        images = self.dataset.train.images
        count = min(len(images), max(FEWEST, WHITENED // images.image_size**2))
        covariance = patch_covariance(images.gather(torch.arange(count, device="cpu") * len(images) // count))
        deviation = 255 * torch.tensor(self.dataset.std, dtype=torch.float64, device="cpu")
        scale = deviation.repeat_interleave(len(covariance) // len(deviation))
        return covariance / scale.outer(scale)

    def laid_out(self, network: Network, *, compiled: bool | None = None) -> Network:
        """A new network as these images and the settings want it: whitening, memory layout, synchronised batch-norm,
        compiled."""
        for part in network.modules():
            if isinstance(part, Whitening):
                part.whiten(self.patches)
        return laid_out(
            network,
            self.accelerator,
            channels_last=self.settings.channels_last,
            compiled=self.settings.compiled if compiled is None else compiled,
            synchronized=self.settings.sync_batchnorm,
        )


def split_of(settings: RunSettings, dataset: Dataset) -> Split:
    """The split of the file, or drawn."""
    if settings.split is not None:
        split = Split.load(settings.split)
    else:
        known, classes = int((dataset.train.labels >= 0).sum()), len(dataset.classes)
        labels, validation = settings.labels, settings.validation
        if validation == "auto":
            validation = min(VALIDATION, max(0, known - labels) if isinstance(labels, int) else known // 5)
        if not isinstance(labels, int):
            if known <= validation:
                raise InputError(f"validation = {validation}: {dataset.name} has {known} images of known class")
            most = known - validation
            labels = most if labels is None else min(most, max(LABELS, LABELS_PER_CLASS * classes))
        split = make_split(dataset, labels=labels, seed=settings.split_seed, validation=validation)
    split.check(dataset)
    return split
