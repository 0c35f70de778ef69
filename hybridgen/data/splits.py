"""Which training images have their label shown, which not, and which validate: made once, kept."""

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hybridgen.data.datasets import Dataset
from hybridgen.files import writing
from hybridgen.types import InputError

ROLES = ("labelled", "unlabelled", "validation")


@dataclass(frozen=True)
class Split:
    """Indices into a data set's training part, ascending and disjoint; InputError where not."""

    dataset: str
    """Name the data set was loaded by."""
    fingerprint: str
    """Of the data set."""
    seed: int
    """From which the indices were drawn."""
    labelled: tuple[int, ...]
    unlabelled: tuple[int, ...]
    validation: tuple[int, ...]

    def __post_init__(self) -> None:
        for role in ROLES:
            indices = getattr(self, role)
            if indices and indices[0] < 0:
                raise InputError(f"split: {role} has the negative index {indices[0]}")
            for before, after in pairwise(indices):
                if before >= after:
                    raise InputError(f"split: {role} is not ascending or repeats ({before}, {after})")
        for role, other in (ROLES[:2], ROLES[1:], ROLES[::2]):
            shared = set(getattr(self, role)) & set(getattr(self, other))
            if shared:
                raise InputError(f"split: {role} and {other} overlap (index {min(shared)})")

    @cached_property
    def hash(self) -> str:
        """16 hexadecimal digits of the content.

        The data set's name is left out: the same folder has different paths on different machines, and the
        fingerprint tells which data they are.
        """
        content = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "dataset"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Write the split as JSON, whole or not at all. InputError if it exists or cannot be written."""
        path = Path(path)
        if path.exists():
            raise InputError(f"{path}: exists already; a split is never overwritten")
        aside = None
        with writing(path):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.NamedTemporaryFile(
                    "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
                ) as file:
                    aside = Path(file.name)
                    file.write(self._json())
                    file.flush()
                    os.fsync(file.fileno())
                os.chmod(aside, 0o644)
                _rename_without_overwriting(aside, path)
            finally:
                if aside is not None:
                    aside.unlink(missing_ok=True)

    def _json(self) -> str:
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in asdict(self).items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def load(cls, path: str | Path) -> "Split":
        """Read a split. InputError names the file and the field for every fault."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not a split file (damaged JSON: {error})") from error
        if not isinstance(content, dict):
            raise InputError(f"{path}: not a split file (needed is a JSON object)")
        known = [field.name for field in fields(cls)]
        for key in known:
            if key not in content:
                raise InputError(f"{path}: field {key} is missing")
        for key, value in content.items():
            if key not in known:
                raise InputError(f"{path}: unknown field {key}; known are {', '.join(known)}")
            if not _has_type(key, value):
                needed = "text" if key in ("dataset", "fingerprint") else "an integer"
                raise InputError(f"{path}: {key} must be {'a list of integers' if key in ROLES else needed}")
        values: dict[str, Any] = content | {role: tuple(content[role]) for role in ROLES}
        try:
            return cls(**values)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def check(self, dataset: Dataset) -> None:
        """InputError, naming both, unless this split fits the data set and labels all of its classes."""
        if self.fingerprint != dataset.fingerprint:
            raise InputError(
                f"split of {self.dataset} (fingerprint {self.fingerprint[:12]}) does not belong to"
                f" {dataset.name} (fingerprint {dataset.fingerprint[:12]})"
            )
        between = f"split of {self.dataset}, data set {dataset.name}"
        for role in ROLES:
            last = max(getattr(self, role), default=-1)
            if last >= len(dataset.train):
                raise InputError(f"{between}: {role} index {last} of {len(dataset.train)} training images")
        labels = dataset.train.labels.tolist()
        for role in ("labelled", "validation"):
            for index in getattr(self, role):
                if labels[index] < 0:
                    raise InputError(f"{between}: {role} index {index} is an image of unknown class")
        shown = {labels[index] for index in self.labelled}
        for label, name in enumerate(dataset.classes):
            if label not in shown:
                raise InputError(f"{between}: class {name!r} has no labelled image")


def _has_type(key: str, value: object) -> bool:
    if key in ROLES:
        return isinstance(value, list) and all(type(index) is int for index in value)
    return type(value) is (int if key == "seed" else str)


def _rename_without_overwriting(source: Path, target: Path) -> None:
    """Give `source` its final name, unless another process was faster."""
    try:
        os.link(source, target)
    except FileExistsError as error:
        raise InputError(f"{target}: exists already; a split is never overwritten") from error
    except OSError:  # some file systems have no hard links
        os.rename(source, target)


def make_split(dataset: Dataset, *, labels: int, seed: int = 0, validation: int = 0) -> Split:
    """Draw a split: as many labelled images of every class, validation images in the classes' proportions.

    A remainder of `labels` over the classes goes to randomly chosen classes; a class with fewer images than
    asked gives all it has, and the others make up for it. The labelled images depend on the data set's
    labels, `labels` and `seed`, not on `validation`; all training images that remain are unlabelled.

    Raises InputError if a class would have no labelled image, or more are asked for than there are.
    """
    if labels <= 0:
        raise InputError(f"labels = {labels}: at least one labelled image is needed")
    if validation < 0:
        raise InputError(f"validation = {validation}: must not be negative")
    if seed < 0:
        raise InputError(f"seed = {seed}: must not be negative")
    targets = dataset.train.labels.numpy()
    # Each class in an order of its own, from which the labelled and then the validation images are taken.
    orders = [
        np.random.default_rng([seed, label]).permutation(np.flatnonzero(targets == label))
        for label in range(len(dataset.classes))
    ]
    sizes = [len(order) for order in orders]
    for name, size in zip(dataset.classes, sizes, strict=True):
        if size == 0:
            raise InputError(f"{dataset.name}: class {name!r} has no training image that could be labelled")
    if labels > sum(sizes):
        raise InputError(f"labels = {labels}: {dataset.name} has {sum(sizes)} training images of known class")
    if labels < len(sizes):
        raise InputError(
            f"labels = {labels}: fewer than the {len(sizes)} classes of {dataset.name}, so that a class would"
            " have no labelled image"
        )
    rng = np.random.default_rng([seed, len(sizes)])
    shown = _even_quotas(labels, sizes, rng.permutation(len(sizes)).tolist())
    left = [size - quota for size, quota in zip(sizes, shown, strict=True)]
    if validation > sum(left):
        raise InputError(
            f"validation = {validation}: {sum(left)} training images of known class are left beside"
            f" {labels} labelled ones"
        )
    held = _proportional_quotas(validation, left)

    labelled = [order[:count] for order, count in zip(orders, shown, strict=True)]
    validating = [order[count : count + more] for order, count, more in zip(orders, shown, held, strict=True)]
    taken = np.concatenate(labelled + validating)
    return Split(
        dataset=dataset.name,
        fingerprint=dataset.fingerprint,
        seed=seed,
        labelled=_ascending(np.concatenate(labelled)),
        unlabelled=_ascending(np.setdiff1d(np.arange(len(targets)), taken)),
        validation=_ascending(np.concatenate(validating)),
    )


def _ascending(indices: np.ndarray) -> tuple[int, ...]:
    return tuple(sorted(indices.tolist()))


def _even_quotas(total: int, sizes: Sequence[int], order: Sequence[int]) -> list[int]:
    """Shares of `total` as equal as `sizes` allow; a remainder goes one by one to those first in `order`."""
    quotas = [0] * len(sizes)
    left = total
    while left:
        open_classes = [label for label in order if quotas[label] < sizes[label]]
        share = max(left // len(open_classes), 1)
        for label in open_classes[:left]:
            more = min(share, sizes[label] - quotas[label])
            quotas[label] += more
            left -= more
    return quotas


def _proportional_quotas(total: int, sizes: Sequence[int]) -> list[int]:
    """Shares of `total` in proportion to `sizes`; the largest remainders are rounded up."""
    whole = max(sum(sizes), 1)
    quotas = [total * size // whole for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda label: -(total * sizes[label] % whole))
    for label in by_remainder[: total - sum(quotas)]:
        quotas[label] += 1
    return quotas
