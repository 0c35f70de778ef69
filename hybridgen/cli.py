"""The command `hybridgen`: pictures and folders of hybrids, transfer rates, studies, splits, timings.

What a command needs is imported when it runs, so that help and version come at once.
"""

import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import tyro

from hybridgen import __version__
from hybridgen.commands.hybrids import Evaluate, Hybridize, Study, StudyName
from hybridgen.commands.mixing import MIXING_STUDIES, MixingStudy


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
        studies = get_args(StudyName)
        if kind is Study and rest and not rest[0].startswith("-") and rest[0] not in studies:
            raise InputError(f"unknown study {rest[0]!r}; there are {', '.join([*studies, *MIXING_STUDIES])}")
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


if __name__ == "__main__":
    main()
