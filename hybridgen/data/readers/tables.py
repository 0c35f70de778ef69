"""One's own images as rows of a table: a CSV file, a Parquet file, or what Hugging Face's `datasets` load."""

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from hybridgen.data.datasets import Dataset, Request
from hybridgen.data.readers.folder import drawn_test, files_digest, name_below, of_groups
from hybridgen.data.sources import Cell, Embedded, ImageColumn, ImageFile, one_line
from hybridgen.types import InputError

COLUMNS = {
    "path": ("path", "file", "file_name", "filename", "image"),
    "label": ("label", "class"),
    "part": ("part", "split"),
}
"""Of a CSV or Parquet file, by any of these names."""

TESTS = ("test", "validation", "valid", "val", "dev")
"""Splits of `datasets`, of which the first one with labels is the test."""

UNSUPERVISED = ("unlabeled", "unlabelled", "unsupervised")
"""Splits of images without labels."""

OPTIONS = ("config", "image", "label")
"""What may follow the name of a set of `datasets`: its configuration, and the columns where there are several."""


def csv_file(request: Request) -> Dataset:
    """The images of a CSV file, by its columns path, label and, if there is one, part (see `COLUMNS`): paths are
    relative to the file's folder, an image without a label is unlabelled, and part is train or test. Without that
    column a test part is drawn (`drawn_test`)."""
    file = request.path
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            table = csv.DictReader(lines)
            names, given = table.fieldnames or (), list(table)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({one_line(error)})") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not a CSV file ({one_line(error)})") from error
    columns = _named_columns(f"{file}", names, needed=("path", "label"))
    values = {kind: [row.get(name) or "" for row in given] for kind, name in columns.items() if name}
    return _of_file(request, values["path"], values["label"], values.get("part"), first=2)


def parquet(request: Request) -> Dataset:
    """The images of a Parquet file with the columns of `csv_file`, or with the images themselves in one of them: as the
    hub has them, structs of an image file's bytes and its path, or in the column of paths the bytes alone. Labels are
    text, or integers with the names of their classes, if there are such, in the file's metadata; -1 is no label. Rows
    are counted from 0."""
    file, reader = request.path, _package("pyarrow.parquet", request)
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        with reader.ParquetFile(file) as opened:
            schema = opened.schema_arrow
            image, label, classes = _typed_columns(schema, f"{file}", {})
            columns = _named_columns(f"{file}", schema.names, needed=("label",) if image else ("path", "label"))
            columns |= {"path": image or columns["path"], "label": label}
            table = opened.read(columns=[name for name in columns.values() if name])
            values = {kind: table[name].to_pylist() for kind, name in columns.items() if name}
    except InputError:
        raise
    except Exception as error:  # of pyarrow, and of what reads the metadata
        raise InputError(f"{file}: not a readable Parquet file ({one_line(error)})") from error
    if any(isinstance(cell, bytes) for cell in values["path"]):
        image, values["path"] = columns["path"], [{"bytes": cell} for cell in values["path"]]
    if image:
        cells = [cell and cell | {"path": cell.get("path") and file.parent / cell["path"]} for cell in values["path"]]
        sizes = [len(cell["bytes"]) if cell and cell["bytes"] is not None else None for cell in cells]
        values["path"] = _embedded(ImageColumn(f"{file}", "", cells, sizes))
    return _of_file(request, values["path"], values["label"], values.get("part"), classes)


def hugging_face(request: Request) -> Dataset:
    """What Hugging Face's `datasets` load by hf:NAME, or hf:NAME,config=...,image=...,label=...: a set of the hub
    (owner/name), from their cache unless it may be downloaded; a folder of their `save_to_disk`; or a folder that their
    `load_dataset` reads.

    The split train is needed; the test is the split test or, without labels in it, validation, or it is drawn
    (`drawn_test`); a split unlabeled or unsupervised has images without labels. Images are the column of type Image,
    labels that of type ClassLabel or else a column label of text or integers; None and -1 are no labels. Classes are
    those that have labelled images. Rows are counted from 0.
    """
    name, picked = _name_and_options(request)
    tables = {part: table for part, table in _loaded(request, name, picked).items() if len(table)}
    if "train" not in tables:
        raise InputError(f"{request.name}: no split 'train' with images; there are {', '.join(tables) or 'none'}")
    columns = {
        part: _typed_columns(table.features.arrow_schema, f"{request.name}: {part}", picked)
        for part, table in tables.items()
    }
    labels: dict[str, list[str]] = {}
    classes: list[str] = []
    for part in ("train", *(part for part in TESTS if part in tables)):
        column = columns[part].label
        if column is None:
            found = ", ".join(tables[part].column_names)
            raise InputError(
                f"{request.name}: {part}: no column of labels (ClassLabel, or called label); it has {found}"
            )
        labels[part], more = _texts(_arrow(tables[part], column).to_pylist(), columns[part].classes,
                                    f"{request.name}: {part}")  # fmt: skip
        classes += [name for name in more if name not in classes]
    test = next((part for part in labels if part != "train" and any(labels[part])), None)
    if test is None and len(labels) > 1:
        raise InputError(f"{request.name}: {list(labels)[1]}: no row has a label; those of a test are needed")

    used = ["train", *([test] if test else []), *(part for part in UNSUPERVISED if part in tables)]
    rows = []
    for part in used:
        column = columns[part].image
        if column is None:
            found = ", ".join(tables[part].column_names)
            raise InputError(f"{request.name}: {part}: no column of images (type Image); it has {found}")
        role = "" if test is None else "test" if part == test else "train"
        images = _embedded(_image_column(request, part, tables[part], column))
        for image, label in zip(images, labels.get(part, [""] * len(images)), strict=True):
            if part == test and not label:
                raise InputError(f"{image}: an image of the test has no label")
            rows.append(_Row(image, label, role))
    told = [f"of {request.name} the test is split {test}" if test else
            f"{request.name} has no split test: one in five images of every class is kept for it"]  # fmt: skip
    if unused := [part for part in tables if part not in used]:
        told.append(f"of {request.name} is not used: {', '.join(unused)}")
    return _of_rows(request, rows, classes, told[1:] if test == "test" else told)


# --- rows


class _Row(NamedTuple):
    image: ImageFile
    label: str
    """The class's name; empty where it is not known."""
    part: str
    """train or test; empty in all rows if a test part is to be drawn."""


def _of_file(
    request: Request,
    images: Sequence[str | Embedded | None],
    labels: Sequence[Any],
    parts: Sequence[str | None] | None,
    classes: Sequence[str] | None = None,
    *,
    first: int = 0,
) -> Dataset:
    """A set of the columns of one file; its first row has the number `first`."""
    file = request.path
    texts, names = _texts(labels, classes, f"{file}", first)
    rows: dict[ImageFile, _Row] = {}
    folder = cache(Path.resolve)
    for number, (image, label) in enumerate(zip(images, texts, strict=True)):
        row, part = f"{file}: row {number + first}", str((parts and parts[number]) or "").strip()
        if isinstance(image, Embedded):
            place = image
        else:
            if not isinstance(image, str | None):
                raise InputError(f"{row}: {image!r} for a path; text, or an image file's bytes, are needed")
            told = (image or "").strip()
            image = _below(file.parent, told)
            if not told or not image.is_file():
                raise InputError(f"{row}: {told or 'no path'}: no such file")
            place = image.resolve() if image.is_symlink() else folder(image.parent) / image.name
            if place in rows:
                raise InputError(f"{row}: {told} comes twice")
        if parts is not None and part not in ("train", "test"):
            raise InputError(f"{row}: part {part!r}; train or test is needed")
        if part == "test" and not label:
            raise InputError(f"{row}: an image of the test has no label")
        rows[place] = _Row(image, label, part)
    if parts is not None and not any(row.part == "test" for row in rows.values()):
        raise InputError(f"{file}: no row has part 'test'; some are needed, or no column of that name")
    return _of_rows(request, list(rows.values()), names)


def _below(root: Path, told: str) -> Path:
    """Where an image of a table is: from the root, however that is spelled, also where the table tells its whole path
    and that leads there."""
    path = Path(told)
    if path.is_absolute():
        for above, below in ((root.absolute(), path), (root.resolve(), path), (root.resolve(), path.resolve())):
            if below.is_relative_to(above):
                return root / below.relative_to(above)
    return root / path


def _of_rows(request: Request, rows: Sequence[_Row], classes: Sequence[str], told: Sequence[str] = ()) -> Dataset:
    if not any(row.label for row in rows):
        raise InputError(f"{request.name}: no row has a label")
    root = request.path.parent
    unlabeled = [row.image for row in rows if not row.label]
    groups: dict[str, dict[str, list[ImageFile]]] = {"train": {}, "test": {}}
    places = {name: place for place, name in enumerate(classes)}
    where = lambda image: image.row if isinstance(image, Embedded) else name_below(root, image)
    for row in sorted((row for row in rows if row.label), key=lambda row: (places[row.label], where(row.image))):
        groups[row.part or "train"].setdefault(row.label, []).append(row.image)
    train, test = groups["train"], groups["test"]
    if not any(row.part for row in rows):
        train, test = drawn_test(train, root, request.name)

    def digest() -> str:
        content = [files_digest(root, [row.image for row in rows]), [[row.label, row.part] for row in rows]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    return of_groups(request, root, train, test, unlabeled, digest, told)


def _texts(values: Sequence[Any], names: Sequence[str] | None, where: str, first: int = 0) -> tuple[list[str], list]:
    """Labels as the names of their classes, empty where not known; and all classes in their order: that of the names,
    else of the numbers or of the alphabet."""
    values = [value.strip() if isinstance(value, str) else value for value in values]
    for row, value in enumerate(values, start=first):
        fits = isinstance(value, str | int) if names is None else isinstance(value, int) and -1 <= value < len(names)
        if value is not None and not fits:
            needed = "text or an integer" if names is None else f"-1 to {len(names) - 1}"
            raise InputError(f"{where}: row {row}: label {value!r}; {needed} is needed")
    unknown = (None, "", -1)
    if names is not None:
        return ["" if value in unknown else names[value] for value in values], list(names)
    known = sorted({value for value in values if value not in unknown})
    return ["" if value in unknown else str(value) for value in values], [str(value) for value in known]


# --- columns


class _Columns(NamedTuple):
    """Those with images inside and with labels, None where there is none; classes are the names of integer labels."""

    image: str | None
    label: str | None
    classes: list[str] | None


def _named_columns(where: str, names: Sequence[str], needed: Sequence[str]) -> dict[str, str | None]:
    """The columns of `COLUMNS`, found by their names; None where there is none."""
    lower = {name.strip().lower(): name for name in names if name}
    found = {column: next((lower[name] for name in known if name in lower), None) for column, known in COLUMNS.items()}
    for column in needed:
        if found[column] is None:
            raise InputError(f"{where}: no column {' or '.join(COLUMNS[column])}; it has {', '.join(lower) or 'none'}")
    return found


def _typed_columns(schema: Any, where: str, picked: Mapping[str, str]) -> _Columns:
    """The columns of a pyarrow schema, with what `datasets` say in its metadata. InputError for several of a kind of
    which none is picked, and for one picked that is not there."""
    said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = {
        name: feature if isinstance(feature, dict) else {"_type": "List"}
        for name, feature in (said.get("info", {}).get("features") or {}).items()
    }
    images = [
        field.name for field in schema
        if (features[field.name].get("_type") == "Image" if field.name in features else _holds_bytes(field.type))
    ]  # fmt: skip
    labels = [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"]
    labels = labels or [name for name in (_named_columns(where, schema.names, ())["label"],) if name]
    found = {"image": images, "label": labels}
    for kind, names in found.items():
        if kind in picked:
            choice = images if kind == "image" else schema.names
            if picked[kind] not in choice:
                raise InputError(
                    f"{where}: no column {picked[kind]!r} of {kind}s; there are {', '.join(choice) or 'none'}"
                )
            found[kind] = [picked[kind]]
        elif len(names) > 1:
            remedy = f"pass hf:NAME,{kind}=COLUMN" if where.startswith("hf:") else "one is needed"
            raise InputError(f"{where}: {len(names)} columns of {kind}s ({', '.join(names)}); {remedy}")
    image, label = (next(iter(names), None) for names in found.values())
    return _Columns(image, label, features.get(label, {}).get("names"))


def _holds_bytes(kind: Any) -> bool:
    """Whether values of a pyarrow type are structs of bytes."""
    import pyarrow

    return pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def _embedded(column: ImageColumn) -> list[Embedded]:
    return [Embedded(column, row) for row in range(len(column))]


# --- what `datasets` load


def _package(name: str, request: Request) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise InputError(f"{request.name} needs {package}: pip install 'hybridgen[datasets]'") from error


def _name_and_options(request: Request) -> tuple[str, dict[str, str]]:
    """What `datasets` load, and what is picked of it by OPTIONS."""
    whole = request.name.partition(":")[2]
    if Path(whole).expanduser().is_dir():
        return whole, {}
    name, *given = whole.split(",")
    picked = {option: value for option, _, value in (each.partition("=") for each in given)}
    for option, value in picked.items():
        if option not in OPTIONS or not value:
            raise InputError(f"{request.name}: {option!r} after the name; it may be {', '.join(OPTIONS)}, as in "
                             "hf:NAME,label=COLUMN")  # fmt: skip
    return name, picked


def _loaded(request: Request, name: str, picked: Mapping[str, str]) -> dict[str, Any]:
    """Its splits, as tables of `datasets`."""
    datasets = _package("datasets", request)
    folder = Path(name).expanduser()
    saved = any((folder / file).is_file() for file in ("dataset_dict.json", "state.json"))
    if not folder.is_dir() and not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", name):
        raise InputError(f"{request.name}: {name} is neither a folder nor a name of the hub (owner/name)")
    if saved and "config" in picked:
        raise InputError(f"{request.name}: config: what save_to_disk wrote has no configurations")
    try:
        with _online(datasets, request.download):
            if saved:
                loaded = datasets.load_from_disk(folder)
            else:
                loaded = datasets.load_dataset(str(folder) if folder.is_dir() else name, picked.get("config"))
    except Exception as error:  # `datasets` raise those of the net, of pyarrow, of files and of their own
        if folder.is_dir() or request.download:
            raise InputError(f"{request.name}: datasets cannot load it ({one_line(error)})") from error
        raise InputError(
            f"{request.name}: neither a folder nor in the cache of datasets; pass --download ({one_line(error)})"
        ) from error
    splits = loaded if isinstance(loaded, dict) else {"train": loaded}
    return {str(part): table.with_format(None) for part, table in splits.items()}


@contextmanager
def _online(datasets: ModuleType, allowed: bool) -> Iterator[None]:
    """With the hub in reach of `datasets`, or not, whatever they would do."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or not allowed
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _arrow(table: Any, column: str) -> Any:
    """A column as it is stored."""
    return table.select_columns([column]).with_format("arrow")[:][column]


def _image_column(request: Request, part: str, table: Any, column: str) -> ImageColumn:
    compute = import_module("pyarrow.compute")
    cells = _Cells(table, column)
    sizes = compute.binary_length(compute.struct_field(cells.stored, "bytes")).to_pylist()
    return ImageColumn(request.name, part, cells, sizes)


class _Cells:
    """One column of a table of `datasets`, on disk; processes that decode it are sent no more than where it lies."""

    def __init__(self, table: Any, column: str) -> None:
        self.table, self.column = table, column

    @cached_property
    def stored(self) -> Any:
        return _arrow(self.table, self.column)

    def __getstate__(self) -> dict[str, Any]:
        return {"table": self.table, "column": self.column}

    def __getitem__(self, row: int) -> Cell | None:
        return self.stored[row].as_py()
