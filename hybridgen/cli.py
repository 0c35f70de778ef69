"""The command `hybridgen`: recipes, hybrids, transfer rates, scores, classifiers for deployment, reports, studies,
splits.

What a command needs is imported when it runs, so that help and version come at once.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, get_args

from hybridgen import __version__
from hybridgen.errors import InputError, exit_codes
from hybridgen.settings import from_arguments

COMMANDS = {
    "hybridize": "Hybridize",
    "explore": "Explore",
    "evaluate": "Evaluate",
    "predict": "Predict",
    "score": "ScoreRuns",
    "export": "Export",
    "push": "Push",
    "report": "Report",
    "study": "Study",
    "split": "SplitImages",
    "bench": "Bench",
}
"""The class of each, in the module of its name in `commands`."""

TRAIN = "train"
"""Whose options are those of a recipe."""


class Command(Protocol):
    """The fields are a command's options, `run` is what it does."""

    def run(self) -> None: ...


def command(name: str) -> type[Command]:
    """The class of one of COMMANDS; the others are not imported."""
    return getattr(import_module(f"hybridgen.commands.{name}"), COMMANDS[name])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; bad input is one line on standard error and exit code 2."""
    with exit_codes():
        name, *rest = list(sys.argv[1:] if arguments is None else arguments) or [""]
        if name in ("-h", "--help"):
            print(_overview())
        elif name == "--version":
            print(f"hybridgen {__version__}")
        elif name == TRAIN:
            from hybridgen.commands.train import train

            train(rest)
        elif name in COMMANDS:
            _run(name, rest)
        else:
            said = f"unknown command {name!r}" if name else "a command is missing"
            raise InputError(f"{said}; there are {', '.join([TRAIN, *COMMANDS])}; see hybridgen --help")


def _run(name: str, arguments: list[str]) -> None:
    """A command whose class, of some, its arguments choose."""
    kind = command(name)
    if name == "evaluate":
        from hybridgen.commands.evaluate import evaluated

        kind = evaluated(arguments)
    if name == "study":
        from hybridgen.commands.mixing import MIXING_STUDIES
        from hybridgen.commands.study import StudyName

        studies = get_args(StudyName)
        helped = {"-h", "--help"} & set(arguments)
        first = arguments[0] if arguments else "-"
        if first in MIXING_STUDIES:
            name, kind, arguments = f"study {first}", MIXING_STUDIES[first], arguments[1:]
        elif not helped and not first.startswith("-") and first not in studies:
            raise InputError(f"unknown study {first!r}; there are {', '.join([*studies, *MIXING_STUDIES])}")
    from_arguments(kind, arguments, prog=f"hybridgen {name}").run()


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
    for name in COMMANDS:
        lines.append(f"  {name:<11}{(command(name).__doc__ or '').splitlines()[0]}")
    return "\n".join(
        [*lines, "", "hybridgen COMMAND --help lists a command's options; hybridgen --version the version."]
    )


if __name__ == "__main__":
    main()
