"""From command line, file and presets to one frozen configuration; and errors to exit codes."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import yaml

from hybridgen.errors import InputError, exit_codes
from hybridgen.files import write_text
from hybridgen.settings import changed, checked, from_arguments, left_open, merged, plain

C = TypeVar("C")


def parse(kind: type[C], presets: Mapping[str, Mapping[str, Any]], arguments: Sequence[str] | None = None) -> C:
    """The configuration of a recipe: its defaults, then `--preset NAME`, `--config FILE`, and the other arguments.

    Raises InputError for an unknown preset or field and for values, telling all that are wrong; `--help` prints and
    exits.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    preset, arguments = _taken("--preset", arguments)
    file, arguments = _taken("--config", arguments)
    default = kind()
    if preset is not None:
        if preset not in presets:
            raise InputError(f"--preset: unknown preset {preset!r}; there are {', '.join(presets)}")
        default = changed(default, presets[preset])
    if file is not None:
        default = checked(kind, merged(plain(default), load(Path(file))), source=f"{file}: ")
    if not arguments:
        return default
    names = ", ".join(presets)
    description = (
        f"{(kind.__doc__ or '').strip()}\n\n"
        f"--preset NAME takes the values of one of: {names}.\n"
        "--config FILE takes those of a run's config.yaml. Options given beside them win."
    )
    return from_arguments(kind, arguments, default=default, description=description)


def save(config: Any, path: Path, chosen: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Write the resolved configuration as YAML; `--config` runs it again. Behind what it leaves open, `null` or `auto`,
    stands as a comment what was `chosen`, by the field's place: `method.epochs`."""
    values, lines, place = plain(config), [], []
    named = {name: chosen[name] for name in left_open(values) if chosen.get(name) is not None}
    for line in yaml.safe_dump(values, sort_keys=False).splitlines():
        if field := re.match(r"( *)(\w+):", line):
            place = [*place[: len(field[1]) // 2], field[2]]
            if (name := ".".join(place)) in named:
                line += f"  # {spelled(named[name])}"
        lines.append(f"{line}\n")
    write_text(path, "".join(lines))


def spelled(chosen: Any) -> str:
    """A value that was chosen where settings leave it open, as it is told."""
    return f"{chosen:.6g}" if isinstance(chosen, float) else str(chosen)


def load(path: Path) -> dict[str, Any]:
    """The fields of a configuration file. InputError, naming the file, where it cannot be read or is none."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError) as error:  # of other letters than UTF-8's, and of dates that are none
        raise InputError(f"{path}: not YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: a configuration is a mapping of fields to values")
    return content


def launch(main: Callable[[C], Any], kind: type[C], presets: Mapping[str, Mapping[str, Any]]) -> None:
    """Parse, run, and turn bad input into one line on standard error and exit code 2."""
    with exit_codes():
        main(parse(kind, presets))


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
