"""What the folder of a run or of a comparison holds, as far as it came."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybridgen import configuration
from hybridgen.evaluation.classification import confusion_counts
from hybridgen.evaluation.predictions import read_predictions
from hybridgen.tables.pictures import Pictures, pictures_of, read_png
from hybridgen.training.record import read_metrics, read_result
from hybridgen.training.scores import PREDICTIONS
from hybridgen.training.setup import SETUP
from hybridgen.types import InputError

TRANSFER = "transfer.json"
"""What the hybrids of the folder's picture inherit, with the confusion of their classes."""

RATE, JUDGED = "semantic_transfer", ("semantic_transfer", "nonsemantic_preservation", "oracle_accuracy")
"""Of hybrids."""

FRAMES = 16
"""Pictures of hybrids of a run, at most."""


@dataclass(frozen=True)
class OneRun:
    """What one training run left."""

    folder: Path
    variant: str
    seed: int | None
    result: Mapping[str, Any] | None
    """None of one that is not finished."""
    rows: Sequence[Mapping[str, float]]
    """Of its metrics."""
    setup: Mapping[str, Any]
    classes: tuple[str, ...]
    confusion: list[list[int]] | None
    """Counts of the test images of known class: rows by their class, columns by what is predicted of them."""
    pictures: Pictures

    @property
    def state(self) -> str:
        if self.result is not None:
            return "finished"
        at, of = max((row["step"] for row in self.rows), default=0), self.setup.get("steps")
        return f"unfinished, recorded up to step {at}" + (f" of {of}" if of else "")

    @property
    def images(self) -> int | None:
        """In the test; None where that is not known."""
        predicted = None if self.confusion is None else sum(map(sum, self.confusion))
        return self.setup.get("data", {}).get("test", predicted)


@dataclass(frozen=True)
class Group:
    """What one folder holds: a run, or a comparison of several."""

    folder: Path
    name: str
    config: Mapping[str, Any]
    setup: Mapping[str, Any]
    """Of setup.json; empty where there is none."""
    result: Mapping[str, Any] | None
    """None where it is not finished."""
    transfer: Mapping[str, Any] | None
    trainings: list[OneRun]
    pictures: Pictures
    """Of a comparison."""
    notes: list[str] = field(default_factory=list)
    """What is unfinished or damaged, and left out."""

    @property
    def variants(self) -> Mapping[str, Mapping[str, Any]]:
        """Of a finished comparison: figures of each."""
        return (self.result or {}).get("classifiers", {})

    @property
    def transfers(self) -> Mapping[str, Mapping[str, Any]]:
        """What hybrids inherit, of each variant of `earlier` and of the last; with a confusion where that is known."""
        result = self.result or {}
        last = self.transfer if f"{RATE}_std" not in (result.get("transfer") or {}) else result["transfer"]
        found = dict(result.get("earlier") or {}) | {"": last or result.get("transfer")}
        return {name: rates for name, rates in found.items() if rates}

    @property
    def images(self) -> int | None:
        return self.setup.get("data", {}).get("test", (self.result or {}).get("test_images"))

    @property
    def split_hash(self) -> str | None:
        results = [each for each in (self.result, *(run.result for run in self.trainings)) if each]
        return next((each.get("split_hash") for each in results), None)


def read_group(folder: Path, name: str) -> Group:
    """What there is of a folder. InputError, naming it, where it is none of a run, and for a configuration or a result
    that cannot be read."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; that of a run or of a comparison is needed")
    if not (folder / "config.yaml").is_file():
        raise InputError(f"{folder}: not the folder of a run (config.yaml is missing)")
    notes: list[str] = []
    config, result = configuration.load(folder / "config.yaml"), _result(folder)
    order = [title for of in ("classifiers", "beside") for title in (result or {}).get(of) or ()]
    titles = {slug(title): title for title in order}
    trainings = [
        _training(path.parent, folder, titles, notes)
        for path in sorted(folder.rglob("config.yaml"))
        if (path.parent / "metrics.jsonl").exists() or (path.parent / "checkpoints").is_dir()
    ]
    trainings.sort(key=lambda run: (order.index(run.variant) if run.variant in order else len(order), run.seed or 0))
    if not trainings:
        notes.append("no training has begun")
    elif result is None:
        notes.append("unfinished: result.json is not there yet; --resume continues")
    transfer = _read(folder / TRANSFER, notes) or None
    if transfer and not (_is_rates(transfer) and _is_confusion(transfer)):
        notes.append(f"left out: {folder / TRANSFER}: not what hybrids inherit, with a confusion of their classes")
        transfer = None
    pictures: Pictures = []
    if not any(run.folder == folder for run in trainings):
        pictures = _noted(lambda: read_png(folder), [], notes)
    setup = read_setup(folder, notes)
    return Group(folder, name, config, setup, result, transfer, trainings, pictures, notes)


def _result(folder: Path) -> dict[str, Any] | None:
    """InputError, naming the file, for one of a comparison without the figures that comparisons have."""
    result = read_result(folder)
    if result is not None:
        compared, beside, earlier = (result.get(of) or {} for of in ("classifiers", "beside", "earlier"))
        try:
            whole = all(
                isinstance(row[figure]["mean"], int | float)
                for row in compared.values()
                for figure in ("test_accuracy_last", "test_accuracy_selected", "seconds")
            ) and all(map(_is_rates, filter(None, (*earlier.values(), result.get("transfer")))))
        except (AttributeError, KeyError, TypeError):
            whole = False
        if not whole or not isinstance(beside, dict):
            raise InputError(f"{folder / 'result.json'}: not the result of a comparison; --resume writes it again")
    return result


def _is_rates(found: Mapping[str, Any]) -> bool:
    return all(isinstance(found.get(name), int | float) for name in JUDGED)


def _is_confusion(found: Mapping[str, Any]) -> bool:
    classes, rows = found.get("classes"), found.get("confusion")
    both = isinstance(rows, list) and isinstance(classes, list) and len(rows) == len(classes)
    return both and all(isinstance(row, list) and len(row) == len(classes) for row in rows)


def _training(place: Path, top: Path, titles: Mapping[str, str], notes: list[str]) -> OneRun:
    own = place.relative_to(top).as_posix() if place != top else top.resolve().name
    seeded = re.search(r"-seed(\d+)\Z", own)
    stem = own[: seeded.start()] if seeded else own
    result = read_result(place)
    seed = int(seeded[1]) if seeded else (result or {}).get("seed")
    classes, confusion = _noted(lambda: _confusion(place), ((), None), notes)
    pictures = _noted(lambda: pictures_of(place, most=FRAMES), [], notes)
    rows, setup = read_metrics(place), read_setup(place, notes)
    return OneRun(place, titles.get(stem, stem), seed, result, rows, setup, classes, confusion, pictures)


def _confusion(place: Path) -> tuple[tuple[str, ...], list[list[int]] | None]:
    path = place / PREDICTIONS
    if not path.is_file():
        return (), None
    read = read_predictions(path, name=str(path))
    return read.titles, confusion_counts(read.logits, read.labels).tolist()


def slug(title: str) -> str:
    """How the folders of a variant's runs begin: `fixmatch`, and of "FixMatch + SciMix" `scimix`."""
    return re.sub(r"\W+", "-", title.rpartition(" + ")[2].lower())


def _noted(read: Any, otherwise: Any, notes: list[str]) -> Any:
    """What is read; where it is damaged, a note and the other."""
    try:
        return read()
    except InputError as error:
        notes.append(f"left out: {error}")
        return otherwise


KINDS = {
    "data": dict,
    "split": dict,
    "environment": dict,
    "recipe": str,
    "flags": dict,
    "changed": list,
    "chosen": dict,
    "steps": int,
}
"""What each part of setup.json is."""

INNER = {
    "data": {"name": str, "fingerprint": str, "classes": list, "train": int, "test": int},
    "split": {"labelled": int, "unlabelled": int, "validation": int},
}
"""What is inside its parts; all of the environment and of flags is text."""


def read_setup(folder: Path, notes: list[str]) -> dict[str, Any]:
    """Those parts of setup.json that are what they should be; a note of what inside them is not."""
    read = _read(folder / SETUP, notes)
    found = {name: read[name] for name, kind in KINDS.items() if isinstance(read.get(name), kind)}
    for of, inner in found.items():
        if of in ("environment", "flags", *INNER):
            kinds = INNER.get(of) or dict.fromkeys(inner, str)
            wrong = [name for name in inner if not isinstance(inner[name], kinds.get(name, object))]
            found[of] = {name: value for name, value in inner.items() if name not in wrong}
            notes += [f"left out: {folder / SETUP}: {of}.{name} is {inner[name]!r}" for name in wrong]
    if "changed" in found:
        found["changed"] = [name for name in found["changed"] if isinstance(name, str)]
    return found


def _read(path: Path, notes: list[str]) -> dict[str, Any]:
    """A JSON object; empty where there is no file, with a note where it cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        found = error
    if isinstance(found, dict):
        return found
    notes.append(f"left out: {path}: no readable JSON object")
    return {}
