"""The sets that torchvision downloads and reads, and MNIST-M, which is made of one of them and photographs."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hybridgen.data.datasets import Dataset, Request, composited, described, from_arrays, nchw
from hybridgen.data.readers.folder import files_digest, images_below
from hybridgen.data.sources import one_line, opened
from hybridgen.types import InputError

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def _read(request: Request, kind: str, **options):
    """One torchvision data set; what is missing or damaged is an InputError that says what to do."""
    import torchvision.datasets

    try:
        return getattr(torchvision.datasets, kind)(request.data_root, download=request.download, **options)
    except (RuntimeError, OSError, EOFError, ValueError, TypeError, KeyError, AssertionError) as error:
        if request.download:
            raise InputError(f"download of {kind} to {request.data_root} failed ({one_line(error)})") from error
        raise InputError(
            f"{request.name}: {kind} is not (or not whole) in {request.data_root};"
            " pass --download, or --data-root with the folder that has it"
        ) from error


def cifar(request: Request) -> Dataset:
    kind = request.name.upper()
    train, test = (_read(request, kind, train=is_train) for is_train in (True, False))
    statistics = (CIFAR10_MEAN, CIFAR10_STD) if kind == "CIFAR10" else None
    return from_arrays(
        request,
        tuple(train.classes),
        (nchw(train.data), train.targets),
        (nchw(test.data), test.targets),
        flip=True,
        statistics=statistics,
    )


def svhn(request: Request) -> Dataset:
    train, test = (_read(request, "SVHN", split=split) for split in ("train", "test"))
    pairs = [(torch.from_numpy(np.ascontiguousarray(part.data)), part.labels) for part in (train, test)]
    return from_arrays(request, tuple("0123456789"), *pairs, flip=False)


def stl10(request: Request) -> Dataset:
    train, test = (_read(request, "STL10", split=split) for split in ("train+unlabeled", "test"))
    pairs = [(torch.from_numpy(np.ascontiguousarray(part.data)), part.labels) for part in (train, test)]
    return from_arrays(request, tuple(train.classes), *pairs, flip=True)


def mnist(request: Request) -> Dataset:
    parts = (_read(request, "MNIST", train=is_train) for is_train in (True, False))
    pairs = [(nchw(np.pad(part.data.numpy(), ((0, 0), (2, 2), (2, 2)))), part.targets) for part in parts]
    return from_arrays(request, tuple("0123456789"), *pairs, flip=False)


def mnist_m(request: Request) -> Dataset:
    """MNIST, with a margin of 2 pixels, on 32×32 crops of any photographs: |crop − digit| in each channel.

    Photographs are taken from PATH/train and PATH/test, or, where not both are there, a fifth of those below PATH for
    the test: the two parts share none.
    """
    photographs = {part: images_below(request.path / part) for part in ("train", "test")}
    if not (photographs["train"] and photographs["test"]):
        found = images_below(request.path)
        if not request.path.is_dir() or len(found) < 2:
            raise InputError(f"{request.path}: mnist-m needs a folder of at least 2 photographs")
        photographs = {"train": [p for i, p in enumerate(found) if i % 5], "test": found[::5]}

    digest = hashlib.sha256(b"mnist-m 1")
    random = np.random.RandomState(0)
    parts = {}
    for part, paths in photographs.items():
        digits = _read(request, "MNIST", train=part == "train")
        objects = np.pad(digits.data.numpy(), ((0, 0), (2, 2), (2, 2)))
        labels = digits.targets.numpy().astype(np.int64)
        of_photograph = random.randint(len(paths), size=len(labels))
        corners = random.random_sample((len(labels), 2))
        backgrounds = np.empty((*objects.shape, 3), dtype=np.uint8)
        for index in np.unique(of_photograph):
            photograph = _photograph(paths[index], at_least=objects.shape[-1])
            space = np.asarray(photograph.shape[:2]) - objects.shape[-1]
            for member in np.flatnonzero(of_photograph == index):
                y, x = (corners[member] * (space + 1)).astype(int)
                backgrounds[member] = photograph[y : y + objects.shape[-1], x : x + objects.shape[-1]]
        digest.update(labels.tobytes() + objects.tobytes())
        digest.update(files_digest(request.path, paths).encode())
        parts[part] = composited(objects, backgrounds, labels, request.image_size)
    return described(request, tuple("0123456789"), parts["train"], parts["test"], digest.hexdigest(), flip=False)


def _photograph(path: Path, at_least: int) -> np.ndarray:
    """A photograph [h, w, 3], enlarged where its shorter side has fewer than `at_least` pixels."""
    rgb = opened(path)
    if min(rgb.size) < at_least:
        factor = at_least / min(rgb.size)
        rgb = rgb.resize([max(at_least, round(side * factor)) for side in rgb.size], Image.Resampling.BICUBIC)
    return np.asarray(rgb)
