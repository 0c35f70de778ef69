"""The command `hybridgen`: pictures and folders of hybrids, transfer rates, studies, splits, timings.

What a command needs is imported when it runs, so that help and version come at once.
"""

import io
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from hybridgen import __version__

if TYPE_CHECKING:
    import accelerate

    import hybridgen.data.datasets
    import hybridgen.evaluation.mixing_studies
    import hybridgen.evaluation.studies
    import hybridgen.hybridizer
    import hybridgen.networks.wide_resnet


@dataclass(frozen=True, kw_only=True)
class SplitImages:
    """Draw which training images are labelled, unlabelled and for validation, and keep that in a file."""

    labels: int
    """Labelled images; as many of every class as divides."""
    out: Path
    """JSON file to write. An existing one is never overwritten."""
    seed: int = 0
    """Seed of the draw."""
    validation: int = 0
    """Labelled images set aside for validation."""
    data: str = "digits-m"
    """Data set: digits-m, cifar10, svhn, ..., folder:PATH or npz:PATH."""
    image_size: int | None = None
    """Side to which images are brought; needed for folders of unequal images."""
    data_root: str = "data"
    """Where data sets lie or are downloaded to."""
    download: bool = False
    """Download the data set if it is missing."""

    def run(self) -> None:
        from hybridgen.data.datasets import load_dataset
        from hybridgen.data.splits import make_split

        dataset = load_dataset(self.data, image_size=self.image_size, data_root=self.data_root, download=self.download)
        split = make_split(dataset, labels=self.labels, seed=self.seed, validation=self.validation)
        split.save(self.out)
        counts = {role: len(getattr(split, role)) for role in ("labelled", "unlabelled", "validation")}
        print(f"{self.out}: {', '.join(f'{count} {role}' for role, count in counts.items())}; hash {split.hash}")


@dataclass(frozen=True, kw_only=True)
class Hybridize:
    """Make hybrids: a grid with the parents along its edges, or (with --count) a folder of images and a CSV.

    A folder is written in parallel under `accelerate launch -m hybridgen.cli hybridize ...`; the same command
    continues one that was interrupted.
    """

    out: Path
    """The grid's .png file; with --count, the folder."""
    hybridizer: str | None = None
    """Folder or hub id of a hybridizer; the one that comes with the repository unless given."""
    data: str | None = None
    """Data set to hybridize: digits-m (unless given), cifar10, svhn, ..., folder:PATH or npz:PATH."""
    semantic: tuple[Path, ...] = ()
    """Image files, instead of --data, whose class the hybrids take."""
    nonsemantic: tuple[Path, ...] = ()
    """Image files that give everything else."""
    rows: int | None = None
    """Semantic parents of the grid, drawn from the data set; 10 unless given, or half the images of a smaller set."""
    columns: int | None = None
    """Non-semantic parents of the grid; as many unless given."""
    count: int | None = None
    """How many hybrids to write into the folder."""
    part: Literal["train", "test"] | None = None
    """Whose images to take: test for a grid, train for a folder unless given."""
    seed: int = 0
    """From which the parents are drawn."""
    data_root: str = "data"
    """Where data sets lie or are downloaded to."""
    download: bool = False
    """Download the data set if it is missing."""
    threads: int | None = None
    """CPU threads a process; all cores divided among the processes unless given."""

    def run(self) -> None:
        self._check()
        from hybridgen.training.engine import make_accelerator

        accelerator = make_accelerator(threads=self.threads)
        hybridizer = _hybridizer(self.hybridizer, accelerator)
        if self.count is not None:
            self._folder(hybridizer, accelerator)
        elif accelerator.is_main_process:
            self._grid(hybridizer, accelerator)

    def _check(self) -> None:
        from hybridgen.types import InputError

        if bool(self.semantic) != bool(self.nonsemantic):
            given, missing = sorted(("semantic", "nonsemantic"), key=lambda role: not getattr(self, role))
            raise InputError(f"--{given}: needs --{missing}; a hybrid has two parents")
        if self.semantic and (self.data is not None or self.part is not None):
            raise InputError("--semantic and --nonsemantic stand instead of --data and --part; give one or the other")
        for field in ("rows", "columns", "count", "threads"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise InputError(f"--{field} {value}: must be at least 1")
        sized = self.rows is not None or self.columns is not None
        if self.count is not None and sized:
            raise InputError("--rows and --columns are of a grid, --count of a folder; give one or the other")
        if self.semantic and sized:
            raise InputError("--rows and --columns choose from a data set; of files, all that are given are shown")
        if self.count is None and self.out.suffix.lower() != ".png":
            raise InputError(f"--out {self.out}: a grid is a .png file; a folder of hybrids needs --count")
        if self.count is not None and self.out.suffix.lower() == ".png":
            raise InputError(f"--out {self.out}: with --count a folder is written, and this names a .png file")

    def _dataset(self, hybridizer: "hybridgen.hybridizer.Hybridizer") -> "hybridgen.data.datasets.Dataset":
        return _dataset(self.data or "digits-m", hybridizer, self.data_root, self.download)

    def _grid(self, hybridizer: "hybridgen.hybridizer.Hybridizer", accelerator: "accelerate.Accelerator") -> None:
        import torch

        from hybridgen.data.datasets import Files
        from hybridgen.evaluation.grid import choose_parents, hybrid_grid
        from hybridgen.files import save_picture

        if self.semantic:
            size = hybridizer.image_size
            parents = [Files(paths, size) for paths in (self.semantic, self.nonsemantic)]
            parents = [files.gather(torch.arange(len(files))) for files in parents]
        else:
            dataset = self._dataset(hybridizer)
            part = dataset.train if self.part == "train" else dataset.test
            side = min(10, len(part) // 2)
            chosen = choose_parents(part, self.rows or side, self.columns or side, self.seed)
            parents = [part.images.gather(indices) for indices in chosen]
        grid = hybrid_grid(hybridizer, *(images.to(accelerator.device).float() / 255 for images in parents))
        save_picture(self.out, grid)
        print(f"{self.out}: {len(parents[0])} semantic parents (left) by {len(parents[1])} non-semantic (top)")

    def _folder(self, hybridizer: "hybridgen.hybridizer.Hybridizer", accelerator: "accelerate.Accelerator") -> None:
        from hybridgen.export import Parents, write_hybrids

        if self.semantic:
            parents = Parents.of_files(self.semantic, self.nonsemantic, hybridizer)
        else:
            dataset, name = self._dataset(hybridizer), self.part or "train"
            part = dataset.test if name == "test" else dataset.train
            parents = Parents(part, part, dataset.classes, f"{dataset.fingerprint} {name}")
        done = write_hybrids(hybridizer, parents, self.out, accelerator, count=self.count, seed=self.seed)
        if accelerator.is_main_process:
            print(f"{self.out}: {done}")


@dataclass(frozen=True, kw_only=True)
class Judged(ABC):
    """What commands that judge hybrids by an oracle have in common."""

    data: str = "digits-m"
    """Data set: digits-m, cifar10, svhn, ..., folder:PATH or npz:PATH."""
    repeats: int = 4
    """Non-semantic parents for every test image."""
    seed: int = 0
    """From which they are drawn."""
    oracle: Path | None = None
    """Folder of an oracle; unless given, one is trained on all training labels and kept in the user's cache."""
    oracle_steps: int | None = None
    """Training steps of the oracle; by the size of the data set unless given."""
    oracle_depth: int | None = None
    """Depth of the oracle's wide residual network; by the size of the data set unless given."""
    oracle_width: int | None = None
    """Its width."""
    image_size: int | None = None
    """Must be the hybridizer's, which it is unless given."""
    data_root: str = "data"
    """Where data sets lie or are downloaded to."""
    download: bool = False
    """Download the data set if it is missing."""
    threads: int | None = None
    """CPU threads a process; all cores divided among the processes unless given."""

    @abstractmethod
    def run(self) -> None: ...

    def _oracle_training(self) -> dict[str, int]:
        """How to train an oracle, as far as it is given. InputError if a trained one is given too."""
        from hybridgen.types import InputError

        given = {name: getattr(self, f"oracle_{name}") for name in ("steps", "depth", "width")}
        training = {name: value for name, value in given.items() if value is not None}
        if self.oracle is not None and training:
            raise InputError(f"--oracle-{next(iter(training))} is for training an oracle, --oracle gives a trained one")
        return training

    def _dataset(self, hybridizer: "hybridgen.hybridizer.Hybridizer") -> "hybridgen.data.datasets.Dataset":
        from hybridgen.types import InputError

        if self.image_size not in (None, hybridizer.image_size):
            raise InputError(f"--image-size {self.image_size}: this hybridizer takes {hybridizer.image_size}")
        return _dataset(self.data, hybridizer, self.data_root, self.download)

    def _oracle(
        self, dataset: "hybridgen.data.datasets.Dataset", accelerator: "accelerate.Accelerator"
    ) -> "hybridgen.networks.wide_resnet.WideResNetClassifier":
        from hybridgen.evaluation.oracle import load_or_train_oracle, load_oracle, settings_for

        if self.oracle is not None:
            return load_oracle(self.oracle, dataset).to(accelerator.device)
        settings = settings_for(dataset, **self._oracle_training())
        return load_or_train_oracle(dataset, accelerator, settings=settings)[0]


@dataclass(frozen=True, kw_only=True)
class Evaluate(Judged):
    """Measure what hybrids take from their parents: the class of one, the context of the other.

    The class is judged by an oracle. Over pairs of test images, beside MixUp, FDA and unrelated images; with 95 %
    intervals.
    """

    hybridizer: str | None = None
    """Folder or hub id of a hybridizer; the one that comes with the repository unless given."""
    json: bool = False
    """Print JSON instead of a table."""
    fda_beta: float = 0.1
    """Part of the spectrum that FDA takes from the non-semantic parent."""

    def run(self) -> None:
        from hybridgen.evaluation.transfer import note, transfer_rates
        from hybridgen.training.engine import make_accelerator

        self._oracle_training()
        accelerator = make_accelerator(threads=self.threads)
        hybridizer = _hybridizer(self.hybridizer, accelerator)
        dataset = self._dataset(hybridizer)
        oracle = self._oracle(dataset, accelerator)
        rates = transfer_rates(
            hybridizer,
            dataset,
            oracle,
            accelerator,
            repeats=self.repeats,
            seed=self.seed,
            fda_beta=self.fda_beta,
        )
        if not accelerator.is_main_process:
            return
        if self.json:
            print(json.dumps({"data": self.data} | rates.to_dict(), indent=2))
            return
        print(f"{rates.table()}\n\n{note(self.data, rates.oracle_accuracy, rates.semantic_parents, rates.repeats)}")


@dataclass(frozen=True, kw_only=True)
class Study(Judged):
    """Study what hybrids inherit: NAME.json, NAME.txt (printed too) and NAME.png, in a folder.

    transfer: class and context by the oracle, by the hybridizer itself and in pixels, over the course of training where
    several are given. background: outside the object, where masks are known. probe: what a linear classifier reads
    from the codes. methods: hybridizers beside MixUp, FDA and unrelated images.

    Of mixing, each with options of its own (see hybridgen study cam --help): cam, sequence, targets, cost, mixing.
    """

    name: tyro.conf.Positional[Literal["transfer", "background", "probe", "methods"]]
    """The study."""
    out: Path
    """Folder of the three files, none of which is overwritten."""
    hybridizer: tuple[str, ...] = ()
    """Folders or hub ids of hybridizers, or a folder of snapshots (step-N); the one that comes with the repository
    unless given."""
    probe_images: int | None = None
    """Of probe: training images of the linear classifier, at most; 5,000 unless given."""
    fda_beta: float | None = None
    """Of methods: part of the spectrum that FDA takes from the non-semantic parent; 0.1 unless given."""

    def run(self) -> None:
        from hybridgen.assets import bundled
        from hybridgen.evaluation.studies import Conditions, check, files_of, load_hybridizers, study, write
        from hybridgen.training.engine import make_accelerator
        from hybridgen.types import InputError

        given = {}
        for field, name in (("probe_images", "probe"), ("fda_beta", "methods")):
            if getattr(self, field) is not None:
                given[field] = getattr(self, field)
                if self.name != name:
                    raise InputError(f"--{field.replace('_', '-')}: is of the study {name}, this is {self.name}")
        self._oracle_training()
        paths = files_of(self.name, self.out)
        accelerator = make_accelerator(threads=self.threads)
        hybridizers, steps = load_hybridizers(self.hybridizer or [bundled()])
        for hybridizer in hybridizers.values():
            hybridizer.to(accelerator.device)
        dataset = self._dataset(hybridizer)
        check(self.name, hybridizers, dataset)
        oracle = self._oracle(dataset, accelerator)
        finding = study(
            self.name,
            Conditions(hybridizers, steps, dataset, oracle, accelerator, repeats=self.repeats, seed=self.seed, **given),
        )
        if accelerator.is_main_process:
            write(finding, paths)
            print(f"{finding.table}{paths[-1]}")


@dataclass(frozen=True, kw_only=True)
class MixingStudy(ABC):
    """What the studies of mixing have in common."""

    out: Path
    """Folder of the three files, none of which is overwritten."""
    seed: int = 0
    """From which all is drawn."""
    threads: int | None = None
    """CPU threads; all cores unless given."""

    @abstractmethod
    def _find(self, accelerator: "accelerate.Accelerator") -> "hybridgen.evaluation.studies.Finding": ...

    def run(self) -> None:
        from hybridgen.evaluation.studies import files_of, write
        from hybridgen.training.engine import make_accelerator
        from hybridgen.types import InputError

        for field in ("count", "most", "steps", "places", "batch", "runs", "columns", "rounds", "threads"):
            value = getattr(self, field, None)
            if value is not None and value < 1:
                raise InputError(f"--{field} {value}: must be at least 1")
        (name,) = (name for name, kind in MIXING_STUDIES.items() if type(self) is kind)
        paths = files_of(name, self.out)
        accelerator = make_accelerator(threads=self.threads)
        if not accelerator.is_main_process:
            return
        finding = self._find(accelerator)
        write(finding, paths)
        print(f"{finding.table}{paths[-1]}")


@dataclass(frozen=True, kw_only=True)
class OfImages(MixingStudy, ABC):
    """What studies of the images of a data set have in common."""

    data: str = "digits-m"
    """Data set: digits-m, cifar10, svhn, ..., folder:PATH or npz:PATH."""
    image_size: int | None = None
    """Side to which images are brought; needed for folders of unequal images."""
    data_root: str = "data"
    """Where data sets lie or are downloaded to."""
    download: bool = False
    """Download the data set if it is missing."""

    def _dataset(self, image_size: int | None = None) -> "hybridgen.data.datasets.Dataset":
        from hybridgen.data.datasets import load_dataset

        size = self.image_size or image_size
        return load_dataset(self.data, image_size=size, data_root=self.data_root, download=self.download)


@dataclass(frozen=True, kw_only=True)
class StudyMaps(OfImages):
    """Class activation maps of images by several networks, side by side: cam.json, cam.txt (printed too), cam.png.

    Of test images as they are, of files, or of test images that --mixed mixes. Where it is known what shows where, also
    the part of each map that lies inside its class's region.
    """

    networks: tuple[Path, ...]
    """Files network.safetensors of supervised training, of the same classes and image size."""
    index: tuple[int, ...] = ()
    """Which test images; --count drawn ones unless given."""
    files: tuple[Path, ...] = ()
    """Image files instead."""
    count: int | None = None
    """How many test images are drawn, or mixed; 64 unless given. The picture shows the first 6."""
    classes: tuple[str, ...] = ()
    """Of which classes; of those in each image unless given, which for --files they must be."""
    most: int = 3
    """Classes of an image, at most, by their share, where they are not given."""
    mixed: str | None = None
    """Mix the images by mixup, cutmix, ..., or recursivemix."""
    steps: int | None = None
    """Of recursivemix: how often it mixes; 4 unless given."""

    def _find(self, accelerator: "accelerate.Accelerator") -> "hybridgen.evaluation.studies.Finding":
        import torch

        from hybridgen.evaluation.cam import cam, load_networks, present_classes
        from hybridgen.evaluation.mixing_studies import RECURSIVE, check_mixers
        from hybridgen.types import InputError

        if self.files and (self.index or self.count or self.mixed):
            raise InputError("--files: stand instead of --index, --count and --mixed; give one or the other")
        if self.index and (self.count or self.mixed):
            raise InputError("--index: stands instead of --count and --mixed; give one or the other")
        if self.files and not self.classes:
            raise InputError("--files: their classes are not known; give --classes")
        if self.mixed is not None:
            check_mixers([self.mixed], flag="--mixed")
        if self.steps is not None and self.mixed != RECURSIVE:
            raise InputError("--steps: is of --mixed recursivemix")
        networks, classes, image_size = load_networks(self.networks)
        if unknown := [name for name in self.classes if name not in classes]:
            raise InputError(f"--classes: {unknown[0]!r} is unknown; the networks know {', '.join(classes)}")
        inputs, names = self._inputs(classes, image_size)
        if self.classes:
            chosen = torch.tensor([[classes.index(name) for name in self.classes]]).expand(len(names), -1)
        else:
            chosen = present_classes(inputs, self.most)
        finding = cam(networks, inputs, chosen, classes, names)
        circumstances = {"study": "cam", "mixed": self.mixed, "seed": self.seed}
        return replace(finding, values=circumstances | {"data": None if self.files else self.data} | finding.values)

    def _inputs(
        self, classes: tuple[str, ...], image_size: int
    ) -> "tuple[hybridgen.evaluation.mixing_studies.Inputs, list[str]]":
        """The images, and their names."""
        from itertools import islice

        import torch

        from hybridgen.data.datasets import Files
        from hybridgen.evaluation.mixing_studies import RECURSIVE, Inputs, drawn_batches, inputs_of, mixed_inputs
        from hybridgen.types import InputError

        if self.files:
            images = Files(self.files, self.image_size or image_size).gather(torch.arange(len(self.files)))
            return Inputs(images / 255, torch.zeros(len(images), len(classes)), None), [p.name for p in self.files]
        dataset = self._dataset(image_size)
        if dataset.classes != classes:
            known, here = ", ".join(classes), ", ".join(dataset.classes)
            raise InputError(f"--data: the networks know the classes {known}; {dataset.name} has {here}")
        if self.index:
            if outside := [index for index in self.index if not 0 <= index < len(dataset.test)]:
                raise InputError(f"--index {outside[0]}: there are {len(dataset.test)} test images")
            named = [f"image {index}" for index in self.index]
            return inputs_of(dataset.test, torch.tensor(self.index), len(classes)), named
        generator = torch.Generator().manual_seed(self.seed)
        batches = drawn_batches(dataset.test, len(classes), self.count or 64, generator)
        steps = self.steps or 4 if self.mixed == RECURSIVE else 1
        *_, inputs = islice(mixed_inputs(self.mixed or "none", batches, generator), steps)
        return inputs, [f"{self.mixed or 'image'} {number}" for number in range(1, 1 + len(inputs.images))]


@dataclass(frozen=True, kw_only=True)
class StudySequence(OfImages):
    """The inputs that RecursiveMix makes, step after step: sequence.json, sequence.txt (printed too), sequence.png."""

    steps: int = 8
    """How many."""
    places: int = 4
    """Of the batch, each a row of the picture."""
    alpha: float = 0.5
    """α: boxes take up to this share of the area."""

    def _find(self, accelerator: "accelerate.Accelerator") -> "hybridgen.evaluation.studies.Finding":
        from hybridgen.evaluation.mixing_studies import sequence

        return sequence(self._dataset(), steps=self.steps, places=self.places, alpha=self.alpha, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class StudyTargets(OfImages):
    """How many classes the targets have above one threshold or another: targets.json, targets.txt (printed too),
    targets.png."""

    methods: tuple[str, ...] = ("none", "mixup", "cutmix", "resizemix", "recursivemix")
    """Which ones: none, mixup, cutmix, ..., recursivemix."""
    steps: int = 100
    """Of each run."""
    batch: int = 64
    """Images a step."""
    runs: int = 3
    """How many."""

    def _find(self, accelerator: "accelerate.Accelerator") -> "hybridgen.evaluation.studies.Finding":
        from hybridgen.evaluation.mixing_studies import targets
        from hybridgen.experiments.mixing import TITLES

        return targets(
            self._dataset(),
            self.methods,
            steps=self.steps,
            batch=self.batch,
            runs=self.runs,
            seed=self.seed,
            titles=TITLES,
        )


@dataclass(frozen=True, kw_only=True)
class StudyMixing(OfImages):
    """The same images mixed by each method: mixing.json, mixing.txt (printed too), mixing.png."""

    methods: tuple[str, ...] = ()
    """Which ones: mixup, cutmix, ..., recursivemix; all unless given."""
    columns: int = 8
    """Images, each with a partner."""

    def _find(self, accelerator: "accelerate.Accelerator") -> "hybridgen.evaluation.studies.Finding":
        from hybridgen.evaluation.mixing_studies import MIXERS, mixing
        from hybridgen.experiments.mixing import TITLES

        return mixing(self._dataset(), self.methods or MIXERS[1:], columns=self.columns, seed=self.seed, titles=TITLES)


@dataclass(frozen=True, kw_only=True)
class StudyCost(MixingStudy):
    """Memory, FLOPs, parameters and time of training by each method: cost.json, cost.txt (printed too), cost.png.

    On random images, beside no mixing, by turns in one process.
    """

    network: str | None = None
    """cifar-resnet18, pyramidnet200-240, resnet50, ...; a cifar-resnet18 of an eighth of its width unless given."""
    width: float | None = None
    """Multiplies its filters; 1 unless given."""
    methods: tuple[str, ...] = ("mixup", "cutmix", "recursivemix")
    """Which ones: mixup, cutmix, manifold-mixup, ..., augmix, recursivemix."""
    classes: int = 10
    """Of the network."""
    image_size: int = 32
    """Side of the images."""
    batch: int = 64
    """Images a step."""
    rounds: int = 5
    """How often the methods take turns."""
    steps: int = 3
    """Of each method in a round."""

    def _find(self, accelerator: "accelerate.Accelerator") -> "hybridgen.evaluation.studies.Finding":
        from hybridgen.experiments.cost import cost
        from hybridgen.experiments.supervised import SupervisedSettings, chosen_network
        from hybridgen.types import InputError

        if accelerator.num_processes > 1:
            raise InputError("study cost: measures one process; start it without accelerate launch")
        network, width = chosen_network(self.network, self.width)
        config = SupervisedSettings(network=network, width=width, batch=self.batch, seed=self.seed)
        return cost(
            config,
            self.methods,
            accelerator,
            classes=self.classes,
            image_size=self.image_size,
            rounds=self.rounds,
            steps=self.steps,
        )


MIXING_STUDIES: dict[str, type[MixingStudy]] = {
    "cam": StudyMaps,
    "sequence": StudySequence,
    "targets": StudyTargets,
    "cost": StudyCost,
    "mixing": StudyMixing,
}
"""Studies with options of their own, by what follows `study`."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Time the parts, each against its floor: images a second and peak memory."""

    json: bool = False
    """Print JSON instead of a table."""
    only: tuple[str, ...] = ()
    """Cases to run; all unless given."""
    rounds: int | None = None
    """How often each case and its floor are timed; as many as the case needs unless given."""
    threads: int | None = None
    """CPU threads; all cores unless given."""
    quick: bool = False
    """Small networks and batches, to see that it runs; the figures are not the reported ones."""

    def run(self) -> None:
        from hybridgen import bench

        bench.run(json=self.json, only=self.only, rounds=self.rounds, threads=self.threads, quick=self.quick)


Command = SplitImages | Hybridize | Evaluate | Study | MixingStudy | Bench
"""The fields are a command's options, `run` is what it does."""

COMMANDS: dict[str, type[Command]] = {
    "hybridize": Hybridize,
    "evaluate": Evaluate,
    "study": Study,
    "split": SplitImages,
    "bench": Bench,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; bad input is one line on standard error and exit code 2."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or [""]
    if name in ("-h", "--help"):
        print(_overview())
        return
    if name == "--version":
        print(f"hybridgen {__version__}")
        return
    kind = COMMANDS.get(name)
    if name == "study" and rest and rest[0] in MIXING_STUDIES:
        name, kind, rest = f"study {rest[0]}", MIXING_STUDIES[rest[0]], rest[1:]
    if kind is not None and {"-h", "--help"} & set(rest):
        _tyro(kind, name, ["--help"])

    from hybridgen.configuration import exit_codes
    from hybridgen.types import InputError

    with exit_codes():
        if kind is None:
            said = f"unknown command {name!r}" if name else "a command is missing"
            raise InputError(f"{said}; there are {', '.join(COMMANDS)}; see hybridgen --help")
        _parsed(kind, name, rest).run()


def _overview() -> str:
    lines = [
        "usage: hybridgen COMMAND [OPTIONS]",
        "",
        "Semi-supervised generative augmentation of images.",
        "",
    ]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<11}{(command.__doc__ or '').splitlines()[0]}")
    return "\n".join(
        [*lines, "", "hybridgen COMMAND --help lists a command's options; hybridgen --version the version."]
    )


def _parsed(kind: type[Command], name: str, arguments: Sequence[str]) -> Command:
    """tyro, with its framed errors folded into one line."""
    from hybridgen.configuration import _folded
    from hybridgen.types import InputError

    said = io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(said):
            return _tyro(kind, name, arguments)
    except SystemExit as stop:
        raise InputError(_folded(said.getvalue()).replace("see --help", f"see hybridgen {name} --help")) from stop


def _tyro(kind: type[Command], name: str, arguments: Sequence[str]) -> Command:
    return tyro.cli(kind, prog=f"hybridgen {name}", args=arguments)


def _hybridizer(source: str | None, accelerator: "accelerate.Accelerator") -> "hybridgen.hybridizer.Hybridizer":
    from hybridgen.assets import bundled
    from hybridgen.hybridizer import Hybridizer

    return Hybridizer.from_pretrained(bundled() if source is None else source).to(accelerator.device)


def _dataset(
    name: str, hybridizer: "hybridgen.hybridizer.Hybridizer", data_root: str, download: bool
) -> "hybridgen.data.datasets.Dataset":
    """At the hybridizer's image size."""
    from hybridgen.data.datasets import load_dataset

    return load_dataset(name, image_size=hybridizer.image_size, data_root=data_root, download=download)


if __name__ == "__main__":
    main()
