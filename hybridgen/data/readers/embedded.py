"""digits-m: scikit-learn's digits on crops of its two photographs, which every installation has."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from hybridgen.data.datasets import Dataset, Request, composited, described
from hybridgen.data.sources import opened
from hybridgen.types import InputError

PHOTOGRAPHS = ("china.jpg", "flower.jpg")


def digits_m(request: Request) -> Dataset:
    """scikit-learn's digits on crops of its two photographs, composited as in MNIST-M.

    1,297 of the digits are for training, each on four crops; 500 for the test, each on one.
    """
    size = request.image_size or 16
    if size not in (16, 32):
        raise InputError(f"image_size = {size}: digits-m comes in 16 and 32")
    images, labels = read_digits()
    drawn = _drawn(images, size)
    photographs = [Image.fromarray(pixels) for pixels in read_photographs()]

    # RandomState and not Generator, since numpy promises that its stream never changes.
    random = np.random.RandomState(0)
    by_class = [random.permutation(np.flatnonzero(labels == digit)) for digit in range(10)]
    members = {
        "train": random.permutation(np.tile(np.concatenate([of_digit[50:] for of_digit in by_class]), 4)),
        "test": random.permutation(np.concatenate([of_digit[:50] for of_digit in by_class])),
    }

    # (photograph, first column, end column): bands that share no pixel, each with bright and dark places.
    bands = {
        "train": np.array([(0, 0, 256), (0, 384, 640), (1, 0, 384), (1, 512, 640)]),
        "test": np.array([(0, 256, 384), (1, 384, 512)]),
    }
    digest = hashlib.sha256(b"digits-m 1")
    parts = {}
    for part, indices in members.items():
        widths = np.diff(bands[part][:, 1:]).ravel()
        boxes = []
        for band in random.choice(len(widths), size=len(indices), p=widths / widths.sum()):
            photograph, left, right = bands[part][band]
            side = random.randint(16, 33)
            x = random.randint(left, right - side + 1)
            y = random.randint(photographs[photograph].height - side + 1)
            boxes.append((photograph, x, y, side))
        for array in (labels[indices], images[indices], np.asarray(boxes, dtype=np.int64)):
            digest.update(array.tobytes())
        backgrounds = np.stack([_crop(photographs[i], x, y, side, size) for i, x, y, side in boxes])
        parts[part] = composited(drawn[indices], backgrounds, labels[indices])
    for name in PHOTOGRAPHS:
        digest.update(_shipped("images", name).read_bytes())
    return described(request, tuple("0123456789"), parts["train"], parts["test"], digest.hexdigest(), flip=False)


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """The 1,797 digits, uint8 [n, 8, 8] of values 0..16, and their classes, int64 [n]."""
    table = np.loadtxt(_shipped("data", "digits.csv.gz"), delimiter=",", dtype=np.int64)
    return table[:, :-1].reshape(-1, 8, 8).astype(np.uint8), table[:, -1]


def read_photographs() -> list[np.ndarray]:
    """The pixels of `PHOTOGRAPHS`, uint8 [427, 640, 3] each."""
    return [np.asarray(opened(_shipped("images", name))) for name in PHOTOGRAPHS]


def _shipped(*names: str) -> Path:
    """A file that comes with scikit-learn, which itself is not imported: that would take a second."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise InputError("digits-m: scikit-learn, which has the digits and the photographs, is not installed")
    file = Path(package.origin).parent.joinpath("datasets", *names)
    if not file.is_file():
        raise InputError(f"{file}: no such file; digits-m needs it, of a whole installation of scikit-learn")
    return file


def _drawn(digits: np.ndarray, size: int) -> np.ndarray:
    """8×8 digits of values 0..16, each smoothly enlarged to fill size×size but for a margin; uint8 [n, size, size]."""
    margin = size // 16
    inner = (size - 2 * margin, size - 2 * margin)
    grey = (digits.astype(np.int64) * 255 // 16).astype(np.uint8)
    enlarged = [np.asarray(Image.fromarray(image).resize(inner, Image.Resampling.BICUBIC)) for image in grey]
    return np.pad(np.stack(enlarged), ((0, 0), (margin, margin), (margin, margin)))


def _crop(photograph: Image.Image, x: int, y: int, side: int, size: int) -> np.ndarray:
    region = photograph.crop((x, y, x + side, y + side))
    return np.asarray(region.resize((size, size), Image.Resampling.BILINEAR))
