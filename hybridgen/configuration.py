"""From command line, file and presets to one frozen configuration; and errors to exit codes."""

import io
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from hybridgen.files import write_text
from hybridgen.types import InputError

C = TypeVar("C")


def parse(kind: type[C], presets: Mapping[str, Mapping[str, Any]], arguments: Sequence[str] | None = None) -> C:
    """The configuration of a recipe: its defaults, then `--preset NAME`, `--config FILE`, and the other arguments.

    Raises InputError for an unknown preset, field or value; `--help` prints and exits.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    preset, arguments = _taken("--preset", arguments)
    file, arguments = _taken("--config", arguments)
    default = kind()
    if preset is not None:
        if preset not in presets:
            raise InputError(f"--preset: unknown preset {preset!r}; there are {', '.join(presets)}")
        default = replace(default, **presets[preset])
    if file is not None:
        default = _from_arguments(kind, default, _file_arguments(kind, Path(file)), f"{file}: ")
    names = ", ".join(presets)
    description = (
        f"{(kind.__doc__ or '').strip()}\n\n"
        f"--preset NAME takes the values of one of: {names}.\n"
        "--config FILE takes those of a run's config.yaml. Options given beside them win."
    )
    return _from_arguments(kind, default, arguments, "", description)


def save(config: Any, path: Path) -> None:
    """Write the resolved configuration as YAML; `--config` runs it again."""
    write_text(path, yaml.safe_dump(to_plain(config), sort_keys=False))


def load(path: Path) -> dict[str, Any]:
    """The fields of a configuration file. InputError, naming the file, where it cannot be read or is none."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: a configuration is a mapping of fields to values")
    return content


def to_plain(config: Any) -> dict[str, Any]:
    """The configuration in JSON's and YAML's types."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return {name: plain(value) for name, value in asdict(config).items()} if is_dataclass(config) else plain(config)


def check_positive(config: Any, *names: str) -> None:
    """InputError, naming the field, for the first of these fields that has a value and not one above 0."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise InputError(f"{name}: {value} is not above 0")


def launch(main: Callable[[C], Any], kind: type[C], presets: Mapping[str, Mapping[str, Any]]) -> None:
    """Parse, run, and turn bad input into one line on standard error and exit code 2."""
    with exit_codes():
        main(parse(kind, presets))


PATIENCE = 10.0
"""Seconds for which the other processes leave the word to the machine's first."""


class exit_codes:
    """Context in which an InputError ends the process with one line and exit code 2, a diverged loss with code 1.

    Ctrl-C needs no line (code 130).
    What all processes of a machine meet is told by the first of them, whose end makes the launcher end the others. One
    that is still there after that met it alone, and names itself.
    """

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> bool:
        if isinstance(error, KeyboardInterrupt):
            sys.exit(130)
        if not isinstance(error, InputError | FloatingPointError):
            return False
        alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
        first = alone or int(os.environ.get("LOCAL_RANK", 0)) == 0
        if not first:
            time.sleep(PATIENCE)
        process = "" if first else f" (process {os.environ.get('RANK', '?')})"
        print(f"error: {error}{process}", file=sys.stderr, flush=True)
        sys.exit(2 if isinstance(error, InputError) else 1)


def _taken(flag: str, arguments: list[str]) -> tuple[str | None, list[str]]:
    """The value of `--flag VALUE` or `--flag=VALUE`, and the other arguments."""
    value, rest, iterator = None, [], iter(arguments)
    for argument in iterator:
        if argument == flag:
            value = next(iterator, None)
            if value is None:
                raise InputError(f"{flag}: a value is missing")
        elif argument.startswith(f"{flag}="):
            value = argument.removeprefix(f"{flag}=")
        else:
            rest.append(argument)
    return value, rest


def _file_arguments(kind: type, path: Path) -> list[str]:
    """A YAML file as command-line arguments, so that one parser checks both."""
    content = load(path)
    known = [field.name for field in fields(kind)]
    arguments = []
    for name, value in content.items():
        if name not in known:
            raise InputError(f"{path}: unknown field {name!r}; there are {', '.join(known)}")
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            arguments += [flag, *map(str, value)]
        else:
            arguments.append(f"{flag}={value}")
    return arguments


def _from_arguments(kind: type[C], default: C, arguments: list[str], source: str, description: str | None = None) -> C:
    """tyro, with its framed errors folded into one line."""
    if any(argument in ("-h", "--help") for argument in arguments):
        return tyro.cli(kind, default=default, args=arguments, description=description)
    said = io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(said):
            return tyro.cli(kind, default=default, args=arguments)
    except SystemExit as stop:
        raise InputError(source + _folded(said.getvalue())) from stop


def _folded(framed: str) -> str:
    """The message in tyro's frame, as one line: between the rule under its title and the rule above its help."""
    sections = re.split(r"^[ -]*---[ -]*$", framed, flags=re.MULTILINE)
    message = sections[1] if len(sections) > 1 else framed
    return " ".join(message.split()).removesuffix(".") + "; see --help"
