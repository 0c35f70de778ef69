"""The command `hybridgen`: recipes, hybrids, transfer rates, scores, classifiers for deployment, reports, studies,
splits.

What a command needs is imported when it runs, so that help and version come at once.
"""

import sys
from collections.abc import Sequence
from typing import get_args

from hybridgen import __version__
from hybridgen.commands.bench import Bench
from hybridgen.commands.evaluate import Evaluate, evaluated
from hybridgen.commands.explore import Explore
from hybridgen.commands.export import Export
from hybridgen.commands.hybridize import Hybridize
from hybridgen.commands.mixing import MIXING_STUDIES, MixingStudy
from hybridgen.commands.predict import Predict
from hybridgen.commands.push import Push
from hybridgen.commands.report import Report
from hybridgen.commands.score import ScoreRuns
from hybridgen.commands.split import SplitImages
from hybridgen.commands.study import Study, StudyName
from hybridgen.commands.train import train
from hybridgen.errors import InputError, exit_codes
from hybridgen.settings import from_arguments

Command = (
    SplitImages
    | Hybridize
    | Explore
    | Evaluate
    | Export
    | Predict
    | Push
    | Report
    | ScoreRuns
    | Study
    | MixingStudy
    | Bench
)
"""The fields are a command's options, `run` is what it does."""

COMMANDS: dict[str, type[Command]] = {
    "hybridize": Hybridize,
    "explore": Explore,
    "evaluate": Evaluate,
    "predict": Predict,
    "score": ScoreRuns,
    "export": Export,
    "push": Push,
    "report": Report,
    "study": Study,
    "split": SplitImages,
    "bench": Bench,
}


TRAIN = "train"
"""Whose options are those of a recipe."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; bad input is one line on standard error and exit code 2."""
    with exit_codes():
        name, *rest = list(sys.argv[1:] if arguments is None else arguments) or [""]
        if name in ("-h", "--help"):
            print(_overview())
            return
        if name == "--version":
            print(f"hybridgen {__version__}")
            return
        if name == TRAIN:
            return train(rest)
        kind = COMMANDS.get(name)
        if name == "study" and rest and rest[0] in MIXING_STUDIES:
            name, kind, rest = f"study {rest[0]}", MIXING_STUDIES[rest[0]], rest[1:]
        if kind is Evaluate:
            kind = evaluated(rest)
        if kind is None:
            said = f"unknown command {name!r}" if name else "a command is missing"
            raise InputError(f"{said}; there are {', '.join([TRAIN, *COMMANDS])}; see hybridgen --help")
        studies = get_args(StudyName)
        helped = {"-h", "--help"} & set(rest)
        if kind is Study and rest and not helped and not rest[0].startswith("-") and rest[0] not in studies:
            raise InputError(f"unknown study {rest[0]!r}; there are {', '.join([*studies, *MIXING_STUDIES])}")
        from_arguments(kind, rest, prog=f"hybridgen {name}").run()


def _overview() -> str:
    lines = [
        "usage: hybridgen COMMAND [OPTIONS]",
        "",
        "Semi-supervised generative augmentation of images.",
        "",
    ]
    lines.append(
        f"  {TRAIN:<11}Train by a recipe: hybridizers, classifiers with and without hybrids, methods of mixing."
    )
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<11}{(command.__doc__ or '').splitlines()[0]}")
    return "\n".join(
        [*lines, "", "hybridgen COMMAND --help lists a command's options; hybridgen --version the version."]
    )


if __name__ == "__main__":
    main()
