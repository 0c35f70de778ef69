"""Image sets: the embedded one, torchvision's, and one's own as a folder or an npz file.

Every set ends as a `Dataset` of two `Part`s whose pixels are uint8 RGB of one square size, either in memory
(`InMemory`) or decoded on demand (`Files`).
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from hybridgen.types import InputError

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm"),
    *(".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
"""What counts as an image in a folder; other files (notes, checksums) are passed over."""

CONTENT_HASH_LIMIT = 256 << 20
"""Folders up to this many bytes are fingerprinted by their contents, larger ones by names and sizes alone."""

STATISTICS_SAMPLE = 2000
"""Images from which the channel statistics of a set that is decoded on demand are computed."""


# --- where pixels come from -----------------------------------------------------------------------------


@runtime_checkable
class ImageSource(Protocol):
    """Square RGB images of one size, addressed by index."""

    @property
    def image_size(self) -> int: ...

    def __len__(self) -> int: ...

    def gather(self, indices: Int64[Tensor, " b"]) -> UInt8[Tensor, "b 3 h w"]: ...


@final
class InMemory:
    """Images held as one uint8 tensor, on any device."""

    def __init__(self, pixels: UInt8[Tensor, "n 3 size size"]) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def image_size(self) -> int:
        return self.pixels.shape[-1]

    def to(self, device: torch.device | str) -> "InMemory":
        return InMemory(self.pixels.to(device))

    def gather(self, indices: Int64[Tensor, " b"]) -> UInt8[Tensor, "b 3 h w"]:
        """The images at `indices`, on the device of the pixels."""
        return self.pixels[indices.to(self.pixels.device)]


@final
class Files:
    """Image files decoded on demand; nothing is kept."""

    def __init__(self, paths: Sequence[str | Path], image_size: int) -> None:
        self.paths = tuple(str(path) for path in paths)
        self.image_size = image_size

    def __len__(self) -> int:
        return len(self.paths)

    def gather(self, indices: Int64[Tensor, " b"]) -> UInt8[Tensor, "b 3 h w"]:
        """The images at `indices`, on the CPU. InputError names a file that cannot be read."""
        pixels = torch.empty(len(indices), 3, self.image_size, self.image_size, dtype=torch.uint8)
        for row, index in enumerate(indices.tolist()):
            pixels[row] = decode(self.paths[index], self.image_size)
        return pixels


@final
class Joined:
    """The images of one source, and after them images in memory."""

    def __init__(self, first: ImageSource, second: InMemory) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    @property
    def image_size(self) -> int:
        return self.first.image_size

    def gather(self, indices: Int64[Tensor, " b"]) -> UInt8[Tensor, "b 3 h w"]:
        """The images at `indices`, on the CPU."""
        of_first = indices < len(self.first)
        pixels = torch.empty(len(indices), 3, self.image_size, self.image_size, dtype=torch.uint8)
        pixels[of_first] = self.first.gather(indices[of_first]).cpu()
        pixels[~of_first] = self.second.gather(indices[~of_first] - len(self.first)).cpu()
        return pixels


def decode(path: str | Path, image_size: int) -> UInt8[Tensor, "3 size size"]:
    """Read one image file of any mode and size: RGB, its central square, resized with antialiasing.

    16-bit grey is scaled (not clipped) to 8, transparency is laid on white, EXIF orientation is applied.
    InputError names a file that is missing, damaged or truncated, or whose range of values is not known.
    """
    try:
        with Image.open(path) as image:
            # JPEG decoders halve large photographs for next to nothing; twice the size is left to resample.
            image.draft(image.mode, (2 * image_size, 2 * image_size))
            square = _resized_square(_as_rgb(ImageOps.exif_transpose(image)), image_size)
    except Exception as error:  # Pillow's readers raise nearly every type on damaged files
        raise InputError(f"{path}: not a readable image ({_one_line(error)})") from error
    return _chw(np.array(square))


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save as 8 or 16 bits a channel")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit pixels have no known range; save as 8 or 16 bits a channel")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _resized_square(image: Image.Image, size: int) -> Image.Image:
    """The central square, resized; an image that has the size already keeps its pixels."""
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def _chw(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def _one_line(error: BaseException) -> str:
    said = getattr(error, "strerror", None) or str(error)  # strerror leaves out the path, which we name ourselves
    return " ".join(said.split()) or type(error).__name__


# --- what a data set is ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """The training or the test part of a data set."""

    images: ImageSource
    labels: Int64[Tensor, " n"]
    """Class indices; -1 where the class is not known."""
    masks: Bool[Tensor, "n h w"] | None = None
    """True on the object's pixels, where that is known."""
    backgrounds: UInt8[Tensor, "n 3 h w"] | None = None
    """The context without the object, where that is known."""

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise InputError(f"labels: {len(self.labels)} for {len(self.images)} images")

    def __len__(self) -> int:
        return len(self.labels)

    def extended(self, pixels: UInt8[Tensor, "m 3 size size"], labels: Int64[Tensor, " m"]) -> "Part":
        """These images with others after them, in memory if these are; their masks are not known."""
        more = InMemory(pixels.cpu())
        if isinstance(self.images, InMemory):
            images: ImageSource = InMemory(torch.cat([self.images.pixels, more.pixels]))
        else:
            images = Joined(self.images, more)
        return Part(images, torch.cat([self.labels, labels.cpu()]))


@dataclass(frozen=True)
class Dataset:
    """A training part (with images of unknown class, label -1, at its end) and a test part."""

    name: str
    """The name it was loaded by."""
    classes: tuple[str, ...]
    image_size: int
    train: Part
    test: Part
    fingerprint: str
    """SHA-256 of the data at their source: equal on every machine and for every image_size."""
    flip: bool
    """Whether an image keeps its class in the mirror."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Channel statistics of the training images in [0, 1]."""


@dataclass(frozen=True)
class _Request:
    """What `load_dataset` was asked for; `path` is what follows the colon of the name."""

    name: str
    path: Path
    image_size: int | None
    data_root: Path
    download: bool
    memory_limit: int


def load_dataset(
    name: str,
    *,
    image_size: int | None = None,
    data_root: str | Path = "data",
    download: bool = False,
    memory_limit: int = 2 << 30,
) -> Dataset:
    """Load a data set by its name in `DATASETS`; `folder:PATH`, `npz:PATH` and `mnist-m:PATH` take a path.

    Args:
        image_size: side in pixels; None for the set's own.
        data_root: where torchvision's sets lie or are downloaded to.
        download: whether torchvision may fetch what is missing.
        memory_limit: bytes of decoded pixels up to which a folder is held in memory. It is not for torchvision's sets
            and npz files, which are read whole whatever is kept of them: STL-10, the largest, needs 6 GB meanwhile and
            keeps 3 (0.3 at image_size 32).

    Raises InputError for an unknown name, missing data and every fault of the data, in one line.
    """
    kind, colon, path = name.partition(":")
    load = DATASETS.get(f"{kind}:PATH" if colon else kind)
    if load is None or (colon and not path):
        raise InputError(f"unknown data set {name!r}; known are {', '.join(DATASETS)}")
    if image_size is not None and image_size <= 0:
        raise InputError(f"image_size = {image_size}: must be positive")
    return load(_Request(name, Path(path).expanduser(), image_size, Path(data_root), download, memory_limit))


# --- digits on photographs ------------------------------------------------------------------------------


def _digits_m(request: _Request) -> Dataset:
    """scikit-learn's digits on crops of its two photographs, composited as in MNIST-M.

    1,297 of the digits are for training, each on four crops; 500 for the test, each on one.
    """
    from sklearn.datasets import load_digits, load_sample_images

    size = request.image_size or 16
    if size not in (16, 32):
        raise InputError(f"image_size = {size}: digits-m comes in 16 and 32")
    digits = load_digits()
    photographs = load_sample_images()
    labels = digits.target.astype(np.int64)

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
            y = random.randint(photographs.images[photograph].shape[0] - side + 1)
            boxes.append((photograph, x, y, side))
        grey = digits.images[indices].astype(np.uint8)
        for array in (labels[indices], grey, np.asarray(boxes, dtype=np.int64)):
            digest.update(array.tobytes())
        objects = np.stack([_drawn_digit(image, size) for image in grey])
        backgrounds = np.stack([_crop(photographs.images[i], x, y, side, size) for i, x, y, side in boxes])
        parts[part] = _composited(objects, backgrounds, labels[indices])
    for file in sorted(photographs.filenames):
        digest.update(Path(file).read_bytes())
    return _dataset(request, tuple("0123456789"), parts["train"], parts["test"], digest.hexdigest(), flip=False)


def _drawn_digit(grey: np.ndarray, size: int) -> np.ndarray:
    """An 8×8 digit of values 0..16, smoothly enlarged to fill size×size but for a margin; uint8."""
    margin = size // 16
    image = Image.fromarray((grey.astype(np.int64) * 255 // 16).astype(np.uint8))
    image = image.resize((size - 2 * margin, size - 2 * margin), Image.Resampling.BICUBIC)
    return np.pad(np.asarray(image), margin)


def _crop(photograph: np.ndarray, x: int, y: int, side: int, size: int) -> np.ndarray:
    region = Image.fromarray(np.ascontiguousarray(photograph[y : y + side, x : x + side]))
    return np.asarray(region.resize((size, size), Image.Resampling.BILINEAR))


def _composited(objects: np.ndarray, backgrounds: np.ndarray, labels: np.ndarray) -> Part:
    """|background − object| in each channel, as in MNIST-M; objects [n,h,w], backgrounds [n,h,w,3]."""
    pixels = np.maximum(backgrounds, objects[..., None]) - np.minimum(backgrounds, objects[..., None])
    return Part(
        images=InMemory(_nchw(pixels)),
        labels=torch.from_numpy(labels),
        masks=torch.from_numpy(objects >= 128),
        backgrounds=_nchw(backgrounds),
    )


def _mnist_m(request: _Request) -> Dataset:
    """MNIST, with a margin of 2 pixels, on 32×32 crops of any photographs: |crop − digit| in each channel.

    Photographs are taken from PATH/train and PATH/test, or, where not both are there, a fifth of those below PATH for
    the test: the two parts share none.
    """
    photographs = {part: _images_below(request.path / part) for part in ("train", "test")}
    if not (photographs["train"] and photographs["test"]):
        found = _images_below(request.path)
        if not request.path.is_dir() or len(found) < 2:
            raise InputError(f"{request.path}: mnist-m needs a folder of at least 2 photographs")
        photographs = {"train": [p for i, p in enumerate(found) if i % 5], "test": found[::5]}

    digest = hashlib.sha256(b"mnist-m 1")
    random = np.random.RandomState(0)
    parts = {}
    for part, paths in photographs.items():
        mnist = _torchvision(request, "MNIST", train=part == "train")
        objects = np.pad(mnist.data.numpy(), ((0, 0), (2, 2), (2, 2)))
        labels = mnist.targets.numpy().astype(np.int64)
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
        digest.update(_files_digest(request.path, paths).encode())
        parts[part] = _resized_part(_composited(objects, backgrounds, labels), request.image_size)
    return _dataset(request, tuple("0123456789"), parts["train"], parts["test"], digest.hexdigest(), flip=False)


def _photograph(path: Path, at_least: int) -> np.ndarray:
    """A photograph [h, w, 3], enlarged where its shorter side has fewer than `at_least` pixels."""
    try:
        with Image.open(path) as image:
            rgb = _as_rgb(ImageOps.exif_transpose(image))
    except Exception as error:
        raise InputError(f"{path}: not a readable image ({_one_line(error)})") from error
    if min(rgb.size) < at_least:
        factor = at_least / min(rgb.size)
        rgb = rgb.resize([max(at_least, round(side * factor)) for side in rgb.size], Image.Resampling.BICUBIC)
    return np.asarray(rgb)


# --- torchvision's sets ---------------------------------------------------------------------------------


def _torchvision(request: _Request, kind: str, **options):
    """One torchvision data set; what is missing or damaged is an InputError that says what to do."""
    import torchvision.datasets

    try:
        return getattr(torchvision.datasets, kind)(request.data_root, download=request.download, **options)
    except (RuntimeError, OSError, EOFError, ValueError, AssertionError) as error:
        if request.download:
            raise InputError(f"download of {kind} to {request.data_root} failed ({_one_line(error)})") from error
        raise InputError(
            f"{request.name}: {kind} is not (or not whole) in {request.data_root};"
            " pass --download, or --data-root with the folder that has it"
        ) from error


def _cifar(request: _Request) -> Dataset:
    kind = request.name.upper()
    train, test = (_torchvision(request, kind, train=is_train) for is_train in (True, False))
    statistics = (CIFAR10_MEAN, CIFAR10_STD) if kind == "CIFAR10" else None
    return _from_arrays(
        request,
        tuple(train.classes),
        (_nchw(train.data), train.targets),
        (_nchw(test.data), test.targets),
        flip=True,
        statistics=statistics,
    )


def _svhn(request: _Request) -> Dataset:
    train, test = (_torchvision(request, "SVHN", split=split) for split in ("train", "test"))
    pairs = [(torch.from_numpy(np.ascontiguousarray(part.data)), part.labels) for part in (train, test)]
    return _from_arrays(request, tuple("0123456789"), *pairs, flip=False)


def _stl10(request: _Request) -> Dataset:
    train, test = (_torchvision(request, "STL10", split=split) for split in ("train+unlabeled", "test"))
    pairs = [(torch.from_numpy(np.ascontiguousarray(part.data)), part.labels) for part in (train, test)]
    return _from_arrays(request, tuple(train.classes), *pairs, flip=True)


def _mnist(request: _Request) -> Dataset:
    parts = (_torchvision(request, "MNIST", train=is_train) for is_train in (True, False))
    pairs = [(_nchw(np.pad(part.data.numpy(), ((0, 0), (2, 2), (2, 2)))), part.targets) for part in parts]
    return _from_arrays(request, tuple("0123456789"), *pairs, flip=False)


# --- one's own images: npz ------------------------------------------------------------------------------

NPZ_REQUIRED = ("x_train", "y_train", "x_test", "y_test")
NPZ_OPTIONAL = ("classes", "x_unlabeled", "masks_train", "masks_test", "masks_unlabeled")


def _npz(request: _Request) -> Dataset:
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
    return _from_arrays(
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
        raise InputError(f"{path}: not a readable npz file ({_one_line(error)})") from error


def _npz_pixels(path: Path, key: str, array: np.ndarray) -> Tensor:
    if array.dtype != np.uint8:
        raise InputError(f"{path}: {key} has dtype {array.dtype}; needed is uint8")
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] != 3):
        raise InputError(f"{path}: {key} has shape {list(array.shape)}; needed is [n, h, w] or [n, h, w, 3]")
    if array.shape[1] != array.shape[2] or array.shape[1] == 0:
        raise InputError(f"{path}: {key} has images of {array.shape[1]}x{array.shape[2]}; needed are squares")
    if len(array) == 0:
        raise InputError(f"{path}: {key} holds no images")
    return _nchw(array)


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


# --- one's own images: a folder -------------------------------------------------------------------------


def _folder(request: _Request) -> Dataset:
    """PATH/train/<class>/…, PATH/test/<class>/…, and PATH/unlabeled/… of images without classes."""
    root = request.path
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    train, test = (_images_by_class(root / part) for part in ("train", "test"))
    classes = tuple(train)
    strangers = [name for name in test if name not in train]
    if strangers:
        raise InputError(f"{root / 'test' / strangers[0]}: class {strangers[0]!r} is in test but not in train")
    unlabeled = _images_below(root / "unlabeled")

    paths = {
        "train": [path for group in train.values() for path in group] + unlabeled,
        "test": [path for group in test.values() for path in group],
    }
    labels = {
        "train": [classes.index(name) for name, group in train.items() for _ in group] + [-1] * len(unlabeled),
        "test": [classes.index(name) for name in test for _ in test[name]],
    }
    size = request.image_size or _common_size(root, paths["train"] + paths["test"])
    fits = 3 * size**2 * sum(map(len, paths.values())) <= request.memory_limit
    parts = {}
    for part in ("train", "test"):
        files = Files(paths[part], size)
        parts[part] = Part(_decoded(files) if fits else files, torch.tensor(labels[part], dtype=torch.int64))
    digest = _files_digest(root, paths["train"] + paths["test"])
    return _dataset(request, classes, parts["train"], parts["test"], digest, flip=True)


def _images_by_class(folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; needed is {folder.name}/<class>/<images>")
    groups = {}
    for entry in _entries(folder):
        path = folder / entry.name
        if entry.is_dir():
            groups[_class_name(path)] = _images_below(path)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            raise InputError(f"{path}: lies outside a class folder; needed is {folder.name}/<class>/<images>")
    if not any(groups.values()):
        raise InputError(f"{folder}: no images in <class> folders below it")
    for name, group in groups.items():
        if not group and folder.name == "train":
            raise InputError(f"{folder / name}: class {name!r} has no images")
    return {name: group for name, group in groups.items() if group}


def _class_name(folder: Path) -> str:
    try:
        folder.name.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{os.fsencode(folder)!r}: the class's name is not UTF-8; rename the folder") from error
    return folder.name


def _images_below(folder: Path) -> list[Path]:
    """Image files at any depth, hidden ones left out, in an order that is the same on every machine.

    Links are followed. InputError for a link that leads nowhere or to a folder in which it lies.
    """
    found: list[Path] = []
    if not os.path.lexists(folder):
        return found

    def collect(where: Path, above: Sequence[Path]) -> None:
        for entry in _entries(where):
            path = where / entry.name
            if entry.is_dir():
                if entry.is_symlink() and any(path.samefile(outer) for outer in above):
                    raise InputError(f"{path}: a link to a folder in which it lies")
                collect(path, [*above, path])
            elif entry.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
                found.append(path)

    collect(folder, [folder, *folder.resolve().parents])
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _entries(folder: Path) -> list[os.DirEntry]:
    """What lies in a folder, by name, but for what is hidden. InputError where it cannot be read."""
    try:
        with os.scandir(folder) as listing:
            entries = sorted((e for e in listing if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({_one_line(error)})") from error
    for entry in entries:
        if entry.is_symlink() and not os.path.exists(entry.path):
            raise InputError(f"{folder / entry.name}: a link that leads nowhere")
    return entries


def _common_size(root: Path, paths: Sequence[Path]) -> int:
    first = None
    for path in paths:
        try:
            with Image.open(path) as image:
                size = image.size
        except Exception as error:
            raise InputError(f"{path}: not a readable image ({_one_line(error)})") from error
        first = first or size
        if size != first or size[0] != size[1]:
            raise InputError(
                f"{root}: images are not all squares of one size ({path} has {size[0]}x{size[1]}); pass --image-size"
            )
    assert first is not None
    return first[0]


def _decoded(files: Files) -> InMemory:
    pixels = torch.empty(len(files), 3, files.image_size, files.image_size, dtype=torch.uint8)

    def fill(index: int) -> None:
        pixels[index] = decode(files.paths[index], files.image_size)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            for _ in pool.map(fill, range(len(files))):
                pass
        except InputError:
            pool.shutdown(cancel_futures=True)
            raise
    return InMemory(pixels)


def _files_digest(root: Path, paths: Sequence[Path]) -> str:
    """SHA-256 of relative names and sizes in bytes, and of the contents unless they are very large."""
    try:
        sizes = [path.stat().st_size for path in paths]
        with_contents = sum(sizes) <= CONTENT_HASH_LIMIT
        digest = hashlib.sha256(b"contents" if with_contents else b"sizes")
        for path, size in sorted(zip(paths, sizes, strict=True), key=lambda item: item[0].as_posix()):
            digest.update(json.dumps([path.relative_to(root).as_posix(), size]).encode())
            if with_contents:
                digest.update(path.read_bytes())
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({_one_line(error)})") from error
    return digest.hexdigest()


# --- what the loaders share -----------------------------------------------------------------------------


def _nchw(array: np.ndarray) -> Tensor:
    """uint8 [n,h,w] or [n,h,w,3] as a contiguous tensor [n,3,h,w]; grey is repeated."""
    if array.ndim == 3:
        return torch.from_numpy(np.ascontiguousarray(array))[:, None].repeat(1, 3, 1, 1)
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def _listed(values: dict) -> str:
    return ", ".join(f"{key}: {value}" for key, value in values.items())


def _test_classes_in_train(path: Path, classes: Sequence[str], train: np.ndarray, test: np.ndarray) -> None:
    strangers = sorted(set(test.tolist()) - set(train.tolist()))
    if strangers:
        raise InputError(f"{path}: class {classes[strangers[0]]!r} is in test but not in train")


def _resized(pixels: Tensor, image_size: int | None) -> Tensor:
    """uint8 [n,3,h,w] at another size by Pillow, so that every way of reading gives the same pixels."""
    if image_size is None or pixels.shape[-1] == image_size:
        return pixels
    resized = torch.empty(len(pixels), 3, image_size, image_size, dtype=torch.uint8)
    for row, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        resized[row] = _chw(np.array(_resized_square(Image.fromarray(np.ascontiguousarray(image)), image_size)))
    return resized


def _resized_masks(masks: Tensor | None, image_size: int | None) -> Tensor | None:
    if masks is None or image_size is None or masks.shape[-1] == image_size:
        return masks
    at = (torch.arange(image_size) * 2 + 1) * masks.shape[-1] // (2 * image_size)
    return masks[:, at][:, :, at]


def _resized_part(part: Part, image_size: int | None) -> Part:
    return Part(
        InMemory(_resized(part.images.pixels, image_size)),
        part.labels,
        _resized_masks(part.masks, image_size),
        None if part.backgrounds is None else _resized(part.backgrounds, image_size),
    )


def _from_arrays(
    request: _Request,
    classes: tuple[str, ...],
    train: tuple[Tensor, Sequence[int] | np.ndarray | Tensor],
    test: tuple[Tensor, Sequence[int] | np.ndarray | Tensor],
    *,
    flip: bool,
    statistics: tuple | None = None,
    masks: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Dataset:
    digest = hashlib.sha256(json.dumps(classes).encode())
    parts = []
    for (pixels, targets), mask in zip((train, test), masks, strict=True):
        labels = torch.as_tensor(np.asarray(targets).astype(np.int64))
        digest.update(json.dumps(list(pixels.shape)).encode())
        digest.update(labels.numpy().astype("<i8").tobytes())
        digest.update(pixels.numpy())
        parts.append(_resized_part(Part(InMemory(pixels), labels, mask), request.image_size))
    return _dataset(request, classes, *parts, digest.hexdigest(), flip=flip, statistics=statistics)


def _dataset(
    request: _Request,
    classes: tuple[str, ...],
    train: Part,
    test: Part,
    fingerprint: str,
    *,
    flip: bool,
    statistics: tuple | None = None,
) -> Dataset:
    mean, std = statistics or _channel_statistics(train.images)
    return Dataset(request.name, classes, train.images.image_size, train, test, fingerprint, flip, mean, std)


def _channel_statistics(images: ImageSource) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in [0, 1], summed in integers and hence exact."""
    indices = torch.arange(len(images))
    if isinstance(images, Files) and len(images) > STATISTICS_SAMPLE:
        indices = torch.arange(STATISTICS_SAMPLE) * len(images) // STATISTICS_SAMPLE
    values = torch.arange(256)
    counts = torch.zeros(3, 256, dtype=torch.int64)
    for chunk in indices.split(256):
        channels = images.gather(chunk).transpose(0, 1).flatten(1)
        counts += torch.stack([torch.bincount(channel, minlength=256) for channel in channels])
    count = int(counts[0].sum())
    sums, squares = (counts * values).sum(1).tolist(), (counts * values**2).sum(1).tolist()
    mean = tuple(round(total / count / 255, 6) for total in sums)
    deviation = [
        math.sqrt(count * square - total**2) / count / 255 for total, square in zip(sums, squares, strict=True)
    ]
    # Images of one colour would otherwise be divided by zero.
    return mean, tuple(round(max(value, 1 / 255), 6) for value in deviation)


DATASETS: dict[str, Callable[[_Request], Dataset]] = {
    "digits-m": _digits_m,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "svhn": _svhn,
    "stl10": _stl10,
    "mnist": _mnist,
    "mnist-m:PATH": _mnist_m,
    "folder:PATH": _folder,
    "npz:PATH": _npz,
}
