"""What classifiers predict of images whose classes are known, and files of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hybridgen.data.sources import one_line
from hybridgen.evaluation.classification import Classes, check_classes
from hybridgen.evaluation.diversity import Members
from hybridgen.files import written_aside
from hybridgen.networks.members import Ensemble, ensembled
from hybridgen.types import InputError

TOLERANCE = 1e-3
"""By which probabilities of a file may miss a sum of 1."""

TEXTS = ("ensemble", "fingerprint", "part", "split_hash")
KEYS = ("logits", "probabilities", "labels", "classes", "indices", *TEXTS)


@dataclass(frozen=True)
class Predictions:
    """Of one classifier, or of several that answer together; what is None is not known.

    InputError, naming it, for another number of labels or indices than of images, for classes that the predictions do
    not have, and for logits that are no numbers.
    """

    name: str
    members: Members
    """Logits; of one member where there is one network."""
    labels: Classes
    ensemble: Ensemble = "logits"
    """What of the members is averaged."""
    classes: tuple[str, ...] | None = None
    indices: Int64[Tensor, " placed"] | None = None
    """Places of the images in their part."""
    fingerprint: str | None = None
    """Of the data set."""
    part: str | None = None
    """Of the data set: test, validation or train."""
    split_hash: str | None = None
    """Of the split that was trained on."""

    def __post_init__(self) -> None:
        if not self.members.numel():
            raise InputError(f"{self.name}: predictions of no image")
        if self.members.isnan().any() or (self.members == torch.inf).any():
            raise InputError(f"{self.name}: nan or infinite; logits are numbers, and at least -inf for what cannot be")
        if (torch.cat([self.members, self.logits[None]]) == -torch.inf).all(dim=2).any():
            raise InputError(
                f"{self.name}: an image all of whose classes have the logit -inf, of a member or of the mean of all; "
                "one at least is possible (the mean of probabilities has one)"
            )
        try:
            check_classes(self.members[0], self.labels)
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from error
        count, classes = self.members.shape[1:]
        if self.classes is not None and len(self.classes) != classes:
            raise InputError(f"{self.name}: predictions of {classes} classes, but {len(self.classes)} names of classes")
        if self.indices is not None and len(self.indices) != count:
            raise InputError(f"{self.name}: predictions of {count} images, but {len(self.indices)} indices")

    @property
    def titles(self) -> tuple[str, ...]:
        """Names of the classes; their numbers where names are not known."""
        return self.classes or tuple(map(str, range(self.members.shape[2])))

    @property
    def logits(self) -> Float[Tensor, "images classes"]:
        """Of the members together."""
        return ensembled(self.members, self.ensemble)


def together(each: Sequence[Predictions], ensemble: Ensemble) -> Predictions:
    """The deep ensemble (Lakshminarayanan et al. 2017) of several classifiers of the same images, each a member that
    answers as it does alone. InputError for what `check_alike` refuses."""
    check_alike(each)
    known = {
        name: next((value for one in each if (value := getattr(one, name)) is not None), None)
        for name in ("classes", "indices", "fingerprint", "part", "split_hash")
    }
    members = torch.stack([one.logits for one in each])
    return Predictions(f"ensemble of {len(each)}", members, each[0].labels, ensemble, **known)


def check_alike(each: Sequence[Predictions]) -> None:
    """InputError, naming both and what differs, for predictions that are not of the same images in the same order, of
    the same classes and by networks of one split; where both know them."""
    for place, one in enumerate(each):
        for other in each[:place]:
            _check_pair(other, one)


def _check_pair(first: Predictions, other: Predictions) -> None:
    def refuse(what: str) -> None:
        raise InputError(f"{other.name}: {what} than {first.name}; members of an ensemble have the same")

    (count, classes), (others, other_classes) = (one.members.shape[1:] for one in (first, other))
    both = lambda name: None not in (getattr(first, name), getattr(other, name))
    if others != count:
        refuse(f"{others} images, {count} in the other: another number")
    if other_classes != classes:
        refuse(f"{other_classes} classes, {classes} in the other: another number")
    if both("classes") and first.classes != other.classes:
        refuse("other names of classes, or another order of them,")
    if both("fingerprint") and first.fingerprint != other.fingerprint:
        refuse("of another data set")
    if both("part") and first.part != other.part:
        refuse(f"of another part ({other.part}, {first.part} in the other)")
    if not (first.indices is None or other.indices is None or torch.equal(first.indices, other.indices)):
        refuse("other images, or another order of them,")
    if not torch.equal(first.labels, other.labels):
        refuse("other labels: other images, or another order of them,")
    if both("split_hash") and first.split_hash != other.split_hash:
        refuse(f"trained on another split ({other.split_hash}, {first.split_hash} in the other)")


# --- Files ------------------------------------------------------------------------------------------------------


def write_predictions(path: Path, predictions: Predictions) -> None:
    """An npz file that `read_predictions` reads, whole or not at all: `logits` of `[images, classes]`, or `[members,
    images, classes]` of several, `labels`, and what else is known."""
    members = predictions.members
    arrays: dict[str, Any] = {
        "logits": (members if len(members) > 1 else members[0]).numpy(),
        "labels": predictions.labels.numpy(),
    }
    if len(members) > 1:
        arrays["ensemble"] = predictions.ensemble
    if predictions.classes is not None:
        arrays["classes"] = np.array(predictions.classes)
    if predictions.indices is not None:
        arrays["indices"] = predictions.indices.numpy()
    for key in TEXTS[1:]:
        if (value := getattr(predictions, key)) is not None:
            arrays[key] = value
    with written_aside(path) as aside, aside.open("wb") as file:
        np.savez(file, **arrays)


def read_predictions(path: Path, *, name: str, ensemble: Ensemble = "logits") -> Predictions:
    """An npz file with `logits` or `probabilities`, floating point of `[images, classes]` or `[members, images,
    classes]`, and `labels`, integers `[images]`.

    It may have `classes`, their names; `indices`, the images' places in their part; `fingerprint` of the data, `part`
    (test, validation, train) and `split_hash`, texts; and `ensemble`, what of several members is averaged, without
    which it is the one that is given. InputError, naming the file and the key, for everything else, and for
    probabilities that are negative or whose sum is not 1.
    """
    arrays = _arrays(path)
    kinds = [key for key in ("logits", "probabilities") if key in arrays]
    if len(kinds) != 1:
        raise InputError(f"{path}: {' and '.join(kinds) or 'no logits'}; logits or probabilities are needed")
    if "labels" not in arrays:
        raise InputError(f"{path}: labels are missing")
    if unknown := arrays.keys() - set(KEYS):
        raise InputError(f"{path}: unknown key {min(unknown)}; known are {', '.join(KEYS)}")
    values = arrays[kinds[0]]
    if not np.issubdtype(values.dtype, np.floating) or values.ndim not in (2, 3):
        raise InputError(
            f"{path}: {kinds[0]} are {values.dtype} of shape {list(values.shape)}; needed are floating point numbers "
            "[images, classes] or [members, images, classes]"
        )
    members = torch.from_numpy(values.astype(np.float64 if values.dtype.itemsize > 4 else np.float32))
    members = members if members.ndim == 3 else members[None]
    if kinds[0] == "probabilities":
        members = _logarithms(path, members)
    of = _text(path, arrays, "ensemble") or ensemble
    if of not in ("logits", "probabilities"):
        raise InputError(f"{path}: ensemble is {of!r}, none of {', '.join(get_args(Ensemble))}")
    try:
        read = Predictions(
            str(path),
            members,
            _integers(path, arrays, "labels"),
            of,
            _names(path, arrays),
            _integers(path, arrays, "indices") if "indices" in arrays else None,
            **{key: _text(path, arrays, key) for key in TEXTS[1:]},
        )
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error
    return replace(read, name=name)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except Exception as error:  # a damaged archive raises what zipfile, zlib or numpy happen to raise
        raise InputError(f"{path}: not a readable npz file ({one_line(error)})") from error


def _logarithms(path: Path, probabilities: Members) -> Members:
    if probabilities.isnan().any() or (probabilities < 0).any():
        raise InputError(f"{path}: probabilities are nan or negative; they lie in [0, 1]")
    sums = probabilities.double().sum(dim=2)
    if ((sums - 1).abs() > TOLERANCE).any():
        worst = sums.flatten()[(sums - 1).abs().argmax()].item()
        raise InputError(f"{path}: probabilities of an image sum to {worst:.6g}; they sum to 1, or are logits")
    return probabilities.log()


def _integers(path: Path, arrays: dict[str, np.ndarray], key: str) -> Int64[Tensor, " images"]:
    array = arrays[key]
    if not np.issubdtype(array.dtype, np.integer) or array.ndim != 1:
        raise InputError(f"{path}: {key} are {array.dtype} of shape {list(array.shape)}; needed are integers [images]")
    return torch.from_numpy(array.astype(np.int64))


def _names(path: Path, arrays: dict[str, np.ndarray]) -> tuple[str, ...] | None:
    if "classes" not in arrays:
        return None
    array = arrays["classes"]
    if array.ndim != 1 or array.dtype.kind not in "USiu":
        raise InputError(f"{path}: classes are {array.dtype} of shape {list(array.shape)}; needed is a list of names")
    return tuple(each.decode(errors="replace") if isinstance(each, bytes) else str(each) for each in array.tolist())


def _text(path: Path, arrays: dict[str, np.ndarray], key: str) -> str | None:
    if key not in arrays:
        return None
    if arrays[key].ndim or arrays[key].dtype.kind != "U":
        raise InputError(f"{path}: {key} is {arrays[key].dtype} of shape {list(arrays[key].shape)}; needed is a text")
    return str(arrays[key])
