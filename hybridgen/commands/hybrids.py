"""Commands on hybrids: pictures and folders of them, transfer rates, studies of what they inherit."""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

if TYPE_CHECKING:
    import accelerate

    import hybridgen.data.datasets
    import hybridgen.hybridizer
    import hybridgen.networks.wide_resnet


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


StudyName = Literal["transfer", "background", "probe", "methods"]


@dataclass(frozen=True, kw_only=True)
class Study(Judged):
    """Study what hybrids inherit: NAME.json, NAME.txt (printed too) and NAME.png, in a folder.

    transfer: class and context by the oracle, by the hybridizer itself and in pixels, over the course of training where
    several are given. background: outside the object, where masks are known. probe: what a linear classifier reads
    from the codes. methods: hybridizers beside MixUp, FDA and unrelated images.

    Of mixing, each with options of its own (see hybridgen study cam --help): cam, sequence, targets, cost, mixing.
    """

    name: tyro.conf.Positional[StudyName]
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
