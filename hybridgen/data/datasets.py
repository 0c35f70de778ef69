"""What a data set is, and the table of those that there are.

Every set ends as a `Dataset` of two `Part`s whose pixels are uint8 RGB of one square size. Each is read by a function
of `hybridgen.data.readers`, which is imported when its set is asked for.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from PIL import Image
from torch import Tensor

from hybridgen.data.sources import Files, ImageSource, InMemory, Joined, Photographs, chw, resized_square
from hybridgen.settings import Flip
from hybridgen.types import InputError

STATISTICS_SAMPLE = 2000
"""Images from which the channel statistics of a set that is decoded on demand are computed."""


Channels = tuple[float, float, float]
"""A figure of each channel."""


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
    files: tuple[str, ...] | None = None
    """Where the images lie below the data set's folder or in its table, if they are files."""

    def __post_init__(self) -> None:
        for name, of in (("labels", self.labels), ("files", self.labels if self.files is None else self.files)):
            if len(self.images) != len(of):
                raise InputError(f"{name}: {len(of)} for {len(self.images)} images")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def known(self) -> Int64[Tensor, " known"]:
        """Places of the images whose class is known, in their order, on the CPU."""
        return (self.labels >= 0).nonzero().flatten().cpu()

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
    mean: Channels
    std: Channels
    """Channel statistics of the training images in [0, 1]."""
    told: tuple[str, ...] = ()
    """What the reader chose that is not plain from the name, to be said when training begins."""
    asked_flip: Flip = "auto"
    """What was asked for that is not what the reader says of `flip`."""

    def mirrored(self, flip: Flip) -> "Dataset":
        """With `flip` as it is asked for; auto leaves it."""
        if flip == "auto" or (flip == "always") == self.flip:
            return self
        return replace(self, flip=not self.flip, asked_flip=flip)


@dataclass(frozen=True)
class Request:
    """What `load_dataset` was asked for; `path` is what follows the colon of the name."""

    name: str
    path: Path
    image_size: int | None
    data_root: Path
    download: bool
    memory_limit: int
    whole: bool


DATASETS: dict[str, str] = {
    "digits-m": "embedded.digits_m",
    "cifar10": "torchvision.cifar",
    "cifar100": "torchvision.cifar",
    "svhn": "torchvision.svhn",
    "stl10": "torchvision.stl10",
    "mnist": "torchvision.mnist",
    "mnist-m:PATH": "torchvision.mnist_m",
    "folder:PATH": "folder.folder",
    "classes:PATH": "folder.of_classes",
    "imagenet-100:PATH": "folder.imagenet_100",
    "csv:PATH": "tables.csv_file",
    "parquet:PATH": "tables.parquet",
    "hf:NAME": "tables.hugging_face",
    "npz:PATH": "npz.npz",
}
"""Each set's name, and who reads it: a file of `hybridgen.data.readers` and its function of a `Request`. By name, since
the readers are built from what stands here, and a run imports only its own.
"""


def named(data: str) -> str:
    """The whole name of a data set, for a bare path too: a folder, a .csv, .parquet or .npz file or, of some classes, a
    .txt file."""
    suffix = Path(data).suffix.lower()
    if data in DATASETS or ":" in data:
        return data
    if suffix in (".csv", ".parquet", ".npz"):
        return f"{suffix[1:]}:{data}"
    if suffix == ".txt":
        return f"classes:{data}"
    return f"folder:{data}" if data and Path(data).expanduser().is_dir() else data


def of_files(data: str) -> bool:
    """Whether a data set of this name consists of image files, of any sizes."""
    return named(data).partition(":")[0] in ("folder", "classes", "imagenet-100", "csv", "parquet", "hf")


def load_dataset(
    name: str,
    *,
    image_size: int | None = None,
    data_root: str | Path = "data",
    download: bool = False,
    memory_limit: int = 2 << 30,
    whole: bool = False,
) -> Dataset:
    """Load a data set by its name in `DATASETS`; `folder:PATH`, `classes:PATH`, `imagenet-100:PATH`, `csv:PATH`,
    `parquet:PATH`, `npz:PATH` and `mnist-m:PATH` take a path, `hf:NAME` what Hugging Face's `datasets` load (see
    `hybridgen.data.readers.tables`). The path of a folder, a text, a CSV, a Parquet or an npz file will do alone.

    Args:
        image_size: side in pixels; None for the set's own.
        data_root: where torchvision's sets lie or are downloaded to; those of the hub are in Hugging Face's own cache.
        download: whether torchvision and `datasets` may fetch what is missing.
        memory_limit: bytes of decoded pixels up to which a folder is held in memory. It is not for torchvision's sets
            and npz files, which are read whole whatever is kept of them: STL-10, the largest, needs 6 GB meanwhile and
            keeps 3 (0.3 at image_size 32).
        whole: of image files, also those in a table, for photographs of any proportions: networks are trained on
            random parts of them, in their full resolution, and judged by their middle (`Photographs`), where otherwise
            each is brought to its central square first. They are decoded on demand, whatever the memory_limit.

    Raises InputError for an unknown name, missing data and every fault of the data, in one line.
    """
    name = named(name)
    kind, colon, path = name.partition(":")
    reader = {key.partition(":")[:2]: reader for key, reader in DATASETS.items()}.get((kind, colon))
    if reader is None or (colon and not path):
        raise InputError(f"unknown data set {name!r}; known are {', '.join(DATASETS)}")
    if image_size is not None and image_size <= 0:
        raise InputError(f"image_size = {image_size}: must be positive")
    if whole and not of_files(name):
        raise InputError(
            f"whole = True: {name} has images of one size; only folder:PATH, classes:PATH, imagenet-100:PATH, "
            "csv:PATH, parquet:PATH and hf:NAME have whole photographs"
        )
    module, function = reader.split(".")
    read = getattr(import_module(f"hybridgen.data.readers.{module}"), function)
    return read(Request(name, Path(path).expanduser(), image_size, Path(data_root), download, memory_limit, whole))


# --- what the readers share


def check_classes(data: str, classes: Sequence[str]) -> None:
    """InputError, naming the data, unless there are several that differ by more than upper and lower case."""
    if len(classes) < 2:
        raise InputError(f"{data}: {len(classes)} class ({', '.join(classes)}); two or more are needed")
    alike: dict[str, str] = {}
    for name in classes:
        if (other := alike.setdefault(name.casefold(), name)) != name:
            raise InputError(f"{data}: classes {other!r} and {name!r} differ by upper and lower case only")


def composited(objects: np.ndarray, backgrounds: np.ndarray, labels: np.ndarray, image_size: int | None = None) -> Part:
    """|background − object| in each channel, as in MNIST-M; objects [n,h,w], backgrounds [n,h,w,3]."""
    pixels = np.maximum(backgrounds, objects[..., None]) - np.minimum(backgrounds, objects[..., None])
    masks = torch.from_numpy(objects >= 128)
    return in_memory(nchw(pixels), torch.from_numpy(labels), image_size, masks=masks, backgrounds=nchw(backgrounds))


def nchw(array: np.ndarray) -> Tensor:
    """uint8 [n,h,w] or [n,h,w,3] as a contiguous tensor [n,3,h,w]; grey is repeated."""
    if array.ndim == 3:
        return torch.from_numpy(np.ascontiguousarray(array))[:, None].repeat(1, 3, 1, 1)
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def _resized(pixels: Tensor, image_size: int | None) -> Tensor:
    """uint8 [n,3,h,w] at another size by Pillow, so that every way of reading gives the same pixels."""
    if image_size is None or pixels.shape[-1] == image_size:
        return pixels
    resized = torch.empty(len(pixels), 3, image_size, image_size, dtype=torch.uint8)
    for row, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        resized[row] = chw(np.array(resized_square(Image.fromarray(np.ascontiguousarray(image)), image_size)))
    return resized


def _resized_masks(masks: Tensor | None, image_size: int | None) -> Tensor | None:
    if masks is None or image_size is None or masks.shape[-1] == image_size:
        return masks
    at = (torch.arange(image_size) * 2 + 1) * masks.shape[-1] // (2 * image_size)
    return masks[:, at][:, :, at]


def in_memory(
    pixels: Tensor,
    labels: Tensor,
    image_size: int | None,
    *,
    masks: Tensor | None = None,
    backgrounds: Tensor | None = None,
) -> Part:
    """A part of these pixels, uint8 [n,3,h,h], at another size with its masks and backgrounds; None leaves them so."""
    return Part(
        InMemory(_resized(pixels, image_size)),
        labels,
        _resized_masks(masks, image_size),
        None if backgrounds is None else _resized(backgrounds, image_size),
    )


def from_arrays(
    request: Request,
    classes: tuple[str, ...],
    train: tuple[Tensor, Sequence[int] | np.ndarray | Tensor],
    test: tuple[Tensor, Sequence[int] | np.ndarray | Tensor],
    *,
    flip: bool,
    statistics: tuple[Channels, Channels] | None = None,
    masks: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Dataset:
    """A set of pixels, uint8 [n,3,h,h], and labels [n] of both parts, brought to the size that is asked for; the
    fingerprint is that of the arrays as they come.
    """
    digest = hashlib.sha256(json.dumps(classes).encode())
    parts = []
    for (pixels, targets), mask in zip((train, test), masks, strict=True):
        labels = torch.as_tensor(np.asarray(targets).astype(np.int64))
        digest.update(json.dumps(list(pixels.shape)).encode())
        digest.update(labels.numpy().astype("<i8").tobytes())
        digest.update(pixels.numpy().data)
        parts.append(in_memory(pixels, labels, request.image_size, masks=mask))
    first, second = parts
    return described(request, classes, first, second, digest.hexdigest(), flip=flip, statistics=statistics)


def described(
    request: Request,
    classes: tuple[str, ...],
    train: Part,
    test: Part,
    fingerprint: str,
    *,
    flip: bool,
    statistics: tuple[Channels, Channels] | None = None,
    told: Sequence[str] = (),
) -> Dataset:
    """A set of two parts with their channel statistics, computed unless they are given as (mean, std)."""
    mean, std = statistics or _channel_statistics(train.images)
    size = train.images.image_size
    return Dataset(request.name, classes, size, train, test, fingerprint, flip, mean, std, tuple(told))


def _channel_statistics(images: ImageSource) -> tuple[Channels, Channels]:
    """Mean and standard deviation of each channel in [0, 1], summed in integers and hence exact."""
    indices = torch.arange(len(images))
    if isinstance(images, Files | Photographs) and len(images) > STATISTICS_SAMPLE:
        indices = torch.arange(STATISTICS_SAMPLE) * len(images) // STATISTICS_SAMPLE
    values = torch.arange(256)
    counts = torch.zeros(3, 256, dtype=torch.int64)
    for chunk in indices.split(256):
        channels = images.gather(chunk).transpose(0, 1).flatten(1)
        counts += torch.stack([torch.bincount(channel, minlength=256) for channel in channels])
    count = int(counts[0].sum())
    sums, squares = (counts * values).sum(1).tolist(), (counts * values**2).sum(1).tolist()
    mean = [round(total / count / 255, 6) for total in sums]
    deviation = [
        math.sqrt(count * square - total**2) / count / 255 for total, square in zip(sums, squares, strict=True)
    ]
    # Images of one colour would otherwise be divided by zero.
    return _of_channels(mean), _of_channels([round(max(value, 1 / 255), 6) for value in deviation])


def _of_channels(values: Sequence[float]) -> Channels:
    red, green, blue = values
    return red, green, blue
