"""One's own images as the arrays of one npz file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hybridgen.data.datasets import Dataset, Request, check_classes, from_arrays, nchw
from hybridgen.data.sources import one_line
from hybridgen.types import InputError

NPZ_REQUIRED = ("x_train", "y_train", "x_test", "y_test")
NPZ_OPTIONAL = ("classes", "x_unlabeled", "masks_train", "masks_test", "masks_unlabeled")


def npz(request: Request) -> Dataset:
    """Arrays of one npz file: x uint8 [n,h,w] or [n,h,w,3], y integer [n], masks bool or uint8 [n,h,w]."""
    arrays = _read_npz(request.path)
    for key in NPZ_REQUIRED:
        if key not in arrays:
            raise InputError(f"{request.path}: key {key} is missing; needed are {', '.join(NPZ_REQUIRED)}")
    for key in arrays:
        if key not in NPZ_REQUIRED + NPZ_OPTIONAL:
            raise InputError(f"{request.path}: unknown key {key}; known are {', '.join(NPZ_REQUIRED + NPZ_OPTIONAL)}")
    pixels = {key: _npz_pixels(request.path, key, arrays[key]) for key in arrays if key.startswith("x_")}
    sizes = {key: array.shape[-1] for key, array in pixels.items()}
    if len(set(sizes.values())) > 1:
        raise InputError(f"{request.path}: image sizes differ ({_listed(sizes)})")
    labels = {
        part: _npz_labels(request.path, f"y_{part}", arrays[f"y_{part}"], len(pixels[f"x_{part}"]))
        for part in ("train", "test")
    }
    classes = _npz_classes(request.path, arrays.get("classes"), labels["train"])
    check_classes(f"{request.path}", classes)
    for part, values in labels.items():
        outside = sorted(set(values[(values < 0) | (values >= len(classes))].tolist()))
        if outside:
            raise InputError(
                f"{request.path}: y_{part} has label {outside[0]}, outside 0..{len(classes) - 1}"
                f" ({len(classes)} classes)"
            )
    _test_classes_in_train(request.path, classes, labels["train"], labels["test"])
    masks = {
        key.removeprefix("masks_"): _npz_masks(request.path, key, array, pixels)
        for key, array in arrays.items()
        if key.startswith("masks_")
    }

    if "x_unlabeled" in pixels:
        unlabeled = pixels["x_unlabeled"]
        pixels["x_train"] = torch.cat([pixels["x_train"], unlabeled])
        labels["train"] = np.concatenate([labels["train"], np.full(len(unlabeled), -1)])
        if "train" in masks and "unlabeled" not in masks:
            raise InputError(f"{request.path}: masks_train is there but masks_unlabeled is missing")
        if "train" in masks:
            masks["train"] = torch.cat([masks["train"], masks["unlabeled"]])
    return from_arrays(
        request,
        classes,
        (pixels["x_train"], labels["train"]),
        (pixels["x_test"], labels["test"]),
        flip=True,
        masks=(masks.get("train"), masks.get("test")),
    )


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except Exception as error:  # a damaged archive raises what zipfile, zlib or numpy happen to raise
        raise InputError(f"{path}: not a readable npz file ({one_line(error)})") from error


def _npz_pixels(path: Path, key: str, array: np.ndarray) -> Tensor:
    if array.dtype != np.uint8:
        raise InputError(f"{path}: {key} has dtype {array.dtype}; needed is uint8")
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] != 3):
        raise InputError(f"{path}: {key} has shape {list(array.shape)}; needed is [n, h, w] or [n, h, w, 3]")
    if array.shape[1] != array.shape[2] or array.shape[1] == 0:
        raise InputError(f"{path}: {key} has images of {array.shape[1]}x{array.shape[2]}; needed are squares")
    if len(array) == 0:
        raise InputError(f"{path}: {key} holds no images")
    return nchw(array)


def _npz_labels(path: Path, key: str, array: np.ndarray, count: int) -> np.ndarray:
    if not np.issubdtype(array.dtype, np.integer) or array.ndim != 1:
        raise InputError(
            f"{path}: {key} has dtype {array.dtype} and shape {list(array.shape)}; needed are integers [n]"
        )
    if len(array) != count:
        raise InputError(f"{path}: {key} has {len(array)} labels for {count} images")
    return array.astype(np.int64)


def _npz_classes(path: Path, array: np.ndarray | None, labels: np.ndarray) -> tuple[str, ...]:
    if array is None:
        return tuple(str(label) for label in range(max(labels.max(), 0) + 1))
    if array.ndim != 1 or len(array) == 0 or array.dtype.kind not in "USiu":
        raise InputError(f"{path}: classes must be a list of names")
    names = [name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in array.tolist()]
    if len(set(names)) < len(names):
        raise InputError(f"{path}: classes names one class twice")
    return tuple(names)


def _npz_masks(path: Path, key: str, array: np.ndarray, pixels: dict[str, Tensor]) -> Tensor:
    images = pixels.get(key.replace("masks", "x"))
    if images is None:
        raise InputError(f"{path}: {key} is there but {key.replace('masks', 'x')} is missing")
    needed = [len(images), *images.shape[2:]]
    if array.dtype not in (np.bool_, np.uint8) or list(array.shape) != needed:
        raise InputError(
            f"{path}: {key} has dtype {array.dtype} and shape {list(array.shape)}; needed is bool or uint8 {needed}"
        )
    return torch.from_numpy(array != 0)


def _listed(values: dict) -> str:
    return ", ".join(f"{key}: {value}" for key, value in values.items())


def _test_classes_in_train(path: Path, classes: Sequence[str], train: np.ndarray, test: np.ndarray) -> None:
    strangers = sorted(set(test.tolist()) - set(train.tolist()))
    if strangers:
        raise InputError(f"{path}: class {classes[strangers[0]]!r} is in test but not in train")
