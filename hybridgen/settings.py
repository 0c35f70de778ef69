"""Settings: frozen dataclasses whose fields carry their ranges, checked by every way in: constructors, files, flags."""

import io
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import wraps
from inspect import get_annotations
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, dataclass_transform, get_args

import docstring_parser
import tyro
from docstring_parser import Docstring, DocstringStyle
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from tyro.conf import arg

from hybridgen.errors import InputError

C = TypeVar("C")
T = TypeVar("T")


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("should be a number")
    return value


NUMBER = BeforeValidator(_no_truth)
"""Of the annotation of every number: true and false are none."""

Count = Annotated[int, Field(ge=1, lt=2**31), NUMBER]
"""1 or more."""
Whole = Annotated[int, Field(ge=0, lt=2**31), NUMBER]
"""0 or more."""
Few = Annotated[int, Field(ge=1, le=1024), NUMBER]
"""1 to 1024: of what is held or begun all at once, so that a slip of the keyboard does not fill memory."""
Seed = Annotated[int, Field(ge=0, lt=2**63), NUMBER]
MOST = 1e6
"""Of what is no count."""

Positive = Annotated[float, Field(gt=0, le=MOST), NUMBER]
"""Above 0."""
Weight = Annotated[float, Field(ge=0, le=MOST), NUMBER]
"""0 or more: of a loss, of decay."""
Epoch = Annotated[float, Field(ge=0, allow_inf_nan=True), NUMBER]
"""0 or more, or infinity, which is never."""
Share = Annotated[float, Field(ge=0, le=1), NUMBER]
"""In [0, 1]."""
Decay = Annotated[float, Field(ge=0, lt=1), NUMBER]
"""Of an exponential moving average, in [0, 1)."""

Flip = Literal["auto", "always", "never"]
"""Whether images are mirrored at random; auto leaves it to the data."""

Flat = Annotated[T, arg(prefix_name=False)]
"""A field whose flag does not bear the name of its group: --rate, beside --method.threshold."""


class Section(NamedTuple):
    """Of a field's annotation: it and those after it stand under this title in the help."""

    title: str


_unchecked: ContextVar[bool] = ContextVar("unchecked", default=False)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[C]) -> type[C]:
    """A frozen dataclass of named arguments that checks the types and ranges of its fields, and tells all faults in one
    InputError.

    A subclass gives a field of its base another default by an assignment alone, `epochs = 8`: type, range and docstring
    stay the base's. TypeError for an assignment to what is no field.
    """
    own = get_annotations(cls)
    inherited = {name: field.type for base in cls.__mro__[:0:-1] for name, field in _fields_of(base).items()}
    for name, value in vars(cls).items():
        if not (name.startswith("_") or name in own | inherited or callable(value) or hasattr(value, "__get__")):
            raise TypeError(f"{cls.__name__}.{name}: no field of this name to give another default")
    cls.__annotations__ = own | {n: kind for n, kind in inherited.items() if n in cls.__dict__ and n not in own}
    made: Any = dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))(cls)
    checked = made.__init__

    @wraps(checked)
    def __init__(self: Any, **given: Any) -> None:
        if _unchecked.get():
            for field in fields(self):
                object.__setattr__(self, field.name, given.get(field.name, field.default))
            return
        try:
            checked(self, **given)
        except ValidationError as error:
            raise InputError("; ".join(told(error))) from error

    made.__init__ = __init__
    return made


def _fields_of(base: type) -> dict[str, Any]:
    return getattr(base, "__dataclass_fields__", {})


@contextmanager
def unchecked() -> Iterator[None]:
    """Settings made in this block are not checked, so that all their faults can be told together by `checked`."""
    token = _unchecked.set(True)
    try:
        yield
    finally:
        _unchecked.reset(token)


def checked(kind: type[C], values: Mapping[str, Any], *, names: Mapping[str, str] | None = None, source: str = "") -> C:
    """The settings of these plain values, such as a file has. InputError that tells all faults: unknown fields, types,
    ranges. `names` are other words for fields, `source` stands before each."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise InputError(source + "; ".join(told(error, names or {}, known=tuple(flags(kind))))) from error


def told(error: ValidationError, names: Mapping[str, str] = {}, *, known: Sequence[str] = ()) -> list[str]:
    """A line for each fault: field, value, and what would be right; of an unknown field which `known` one is near."""
    lines, last = [], None
    for fault in error.errors(include_url=False):
        # Of a union each kind has a fault, under its own name behind the field's
        loc = tuple(takewhile(lambda part: not _KIND.search(str(part)), fault["loc"]))
        place = ".".join(map(str, loc))
        value = fault["input"]
        if fault["type"] == "unexpected_keyword_argument":
            nearest = ", ".join(get_close_matches(place, known, n=1))
            lines.append(f"unknown field {place!r}{', there is ' if nearest else ''}{nearest}")
            continue
        parts = [".".join(map(str, loc[:count])) for count in range(1, len(loc) + 1)]
        name = next((names[part] for part in reversed(parts) if part in names), place)
        if fault["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
            lines.append(f"{name}: is missing")
            continue
        said = fault["msg"].removeprefix("Input ").removeprefix("Value error, ")
        shown = "" if isinstance(value, Mapping) or is_dataclass(value) else f" {value!r}"
        if len(loc) < len(fault["loc"]) and last == (name, shown):
            lines[-1] += f", or {said}"
        else:
            lines.append(f"{name}:{shown} {said}")
        last = name, shown
    return lines


_KIND = re.compile(r"\[|^(constrained-)?(int|float|str|bool)$")
"""Pydantic's names of the kinds of a union."""


def plain(value: Any) -> Any:
    """Settings, or a value of theirs, in JSON's and YAML's types; groups are mappings."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of nested groups under their dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


OPEN = (None, "auto")
"""Values of fields that are left open, for the data to choose."""


def left_open(values: Mapping[str, Any]) -> list[str]:
    """Dotted names of such fields."""
    return [name for name, value in flat(values) if value in OPEN]


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the changes; groups are merged field by field."""
    together = dict(values)
    for name, change in changes.items():
        both = isinstance(change, Mapping) and isinstance(together.get(name), Mapping)
        together[name] = merged(together[name], change) if both else change
    return together


def changed(config: C, changes: Mapping[str, Any]) -> C:
    """The settings with these fields changed, groups field by field: what a preset does."""
    return checked(type(config), merged(plain(config), changes))


def flags(kind: type, prefix: str = "", path: str = "") -> dict[str, str]:
    """The flag of every field, by the field's place, `method.rate`: `--rate` or `--method.rate`."""
    found = {}
    for field in fields(kind):
        place = f"{path}{field.name}"
        bare = any(getattr(each, "prefix_name", None) is False for each in getattr(field.type, "__metadata__", ()))
        called = [name for each in getattr(field.type, "__metadata__", ()) if (name := getattr(each, "name", None))]
        flag = f"{'' if bare else prefix}{(called or [field.name])[0]}".replace("_", "-")
        if isinstance(field.type, type) and is_dataclass(field.type):
            found |= flags(field.type, f"{flag}.", f"{place}.")
        else:
            found[place] = f"--{flag}"
    return found


def prefixed(kind: type[C]) -> type[C]:
    """The same settings, whose every flag bears the name of its group: --generator.rate beside another group's
    --rate."""
    own: dict[str, Any] = {}
    for field in _fields_of(kind).values():
        metadata = getattr(field.type, "__metadata__", ())
        kept = tuple(each for each in metadata if getattr(each, "prefix_name", None) is not False)
        if len(kept) < len(metadata):
            bare = get_args(field.type)[0]
            own[field.name] = Annotated[(bare, *kept)] if kept else bare
    names = {"__module__": kind.__module__, "__doc__": kind.__doc__, "__annotations__": own}
    defaults = {name: field.default for name, field in _fields_of(kind).items() if name in own}
    return settings(type(kind.__name__, (kind,), names | defaults))


def from_arguments(kind: type[C], arguments: Sequence[str], *, prog: str | None = None, **how: Any) -> C:
    """The settings that these flags give; `how` is tyro's. InputError for what tyro does not understand, else for all
    that is out of range; `--help` prints and exits."""
    said = io.StringIO()
    with unchecked(), _unbroken_docstrings():
        if {"-h", "--help"} & set(arguments):
            try:
                with redirect_stdout(said := _Screen()):
                    tyro.cli(kind, args=["--help"], prog=prog, **how)
            finally:
                known = sys.stdout.encoding or "utf-8"
                print(_in_sections(said.getvalue(), kind).encode(known, "replace").decode(known), end="")
        try:
            with redirect_stderr(said), redirect_stdout(said):
                given = tyro.cli(kind, args=arguments, prog=prog, **how)
        except SystemExit as stop:
            more = "see --help" if prog is None else f"see {prog} --help"
            raise InputError(f"{_folded(said.getvalue())}{_similar(said.getvalue())}; {more}") from stop
    return checked(kind, plain(given), names=flags(kind))


@contextmanager
def _unbroken_docstrings() -> Iterator[None]:
    """The docstrings of fields come to tyro in whole paragraphs: it would keep the line breaks of indented ones."""
    read = docstring_parser.parse_from_object

    def unbroken(obj: Any, style: DocstringStyle = DocstringStyle.AUTO) -> Docstring:
        found = read(obj, style)
        for field in found.params:
            paragraphs = (field.description or "").split("\n\n")
            field.description = "\n\n".join(" ".join(each.split()) for each in paragraphs) or None
        return found

    docstring_parser.parse_from_object = unbroken
    try:
        yield
    finally:
        docstring_parser.parse_from_object = read


class _Screen(io.StringIO):
    """Keeps what is printed, with the colours and frames that it would have on the screen."""

    @property
    def encoding(self) -> str | None:  # pyrefly: ignore[bad-override]
        return getattr(sys.__stdout__, "encoding", None)

    def isatty(self) -> bool:
        return sys.__stdout__ is not None and sys.__stdout__.isatty()


def _in_sections(said: str, kind: type) -> str:
    """tyro's help with a frame for each `Section` of the fields that are in no group; without frames, a title."""
    flag_of = flags(kind)
    titles = {
        flag_of[field.name]: each.title
        for field in fields(kind)
        for each in getattr(field.type, "__metadata__", ())
        if isinstance(each, Section)
    }
    lines, width = [], 0
    for line in said.splitlines():
        bare = COLOUR.sub("", line)
        width = width or (len(bare) if bare.startswith("╭") else 0)
        flag = re.match(r"[│ ] (--[\w.-]+)", bare)
        if flag and (title := titles.pop(flag[1], None)):
            lines += (
                [f"╰{'─' * (width - 2)}╯", f"╭─ {title} {'─' * (width - 5 - len(title))}╮"] if width else ["", title]
            )
        lines.append(line)
    return "".join(f"{line}\n" for line in lines)


COLOUR = re.compile(r"\x1b\[[\d;]*m")
"""What switches a terminal's colours."""

RULE = re.compile(r"^[ -]*---[ -]*$", flags=re.MULTILINE)
"""Of tyro's frames."""


def _similar(framed: str) -> str:
    """The flags that tyro proposes: those that begin the lines of the sections between its message and its help, and
    are not those that the message is about."""
    message, *more = RULE.split(framed)[1:-1] or [framed]
    found = [flag for section in more for flag in re.findall(r"^ *(--[a-z][\w.-]*)", section, re.M)]
    found = [flag for flag in found if flag not in re.findall(r"--[\w.-]+", message)]
    return f"; perhaps you meant {', '.join(sorted(set(found))[:3])}" if found else ""


def _folded(framed: str) -> str:
    """The message in tyro's frame, as one line: between the rule under its title and the rule above its help."""
    sections = RULE.split(framed)
    message = sections[1] if len(sections) > 1 else framed
    said, *_ = " ".join(message.split()).split(" Got errors: ")  # by each type of a union, with all its ranges
    return said.removesuffix(".")
