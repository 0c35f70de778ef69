"""Where pixels come from: images in memory, image files and whole photographs decoded on demand, and both joined.

Pixels are uint8 RGB, of one square size.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Protocol, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from hybridgen.types import InputError

IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm"),
    *(".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
"""What counts as an image in a folder; other files (notes, checksums) are passed over."""


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
        return self.pixels[to_device(indices, self.pixels.device)]


Cell = Mapping[str, bytes | str | Path | None]
"""The `bytes` of an image file, or its `path`."""


@runtime_checkable
class Cells(Protocol):
    """A column of a table, in memory or not."""

    def __getitem__(self, row: int, /) -> Cell | None: ...


@final
@dataclass(frozen=True, eq=False)
class ImageColumn:
    """The images of a table, each as the `bytes` of an image file or, where there are none, as its `path`."""

    table: str
    """The table's name, for errors."""
    part: str
    """Which part of it this is, if it has several."""
    cells: Cells
    sizes: Sequence[int | None]
    """Numbers of bytes; None where there are none."""

    def __len__(self) -> int:
        return len(self.sizes)


@final
@dataclass(frozen=True, eq=False, slots=True)
class Embedded:
    """An image file that lies in a table."""

    column: ImageColumn
    row: int

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.column.table, self.column.part, f"row {self.row}")))

    @property
    def name(self) -> str:
        """Part and row, without the table's own name."""
        return f"{self.column.part}/{self.row}" if self.column.part else str(self.row)

    def content(self) -> bytes | Path:
        """The file's bytes, or where it lies. InputError where there is neither."""
        cell = self.column.cells[self.row] or {}
        if isinstance(content := cell.get("bytes"), bytes):
            return content
        if isinstance(path := cell.get("path"), str | Path) and path:
            return Path(path)
        raise InputError(f"{self}: no image")

    def size(self) -> int:
        """Bytes of the file."""
        if (size := self.column.sizes[self.row]) is not None:
            return size
        content = self.content()
        return len(content) if isinstance(content, bytes) else content.stat().st_size

    def read_bytes(self) -> bytes:
        content = self.content()
        return content if isinstance(content, bytes) else content.read_bytes()


ImageFile = Path | Embedded


def _kept(paths: Sequence[str | ImageFile]) -> tuple[str | Embedded, ...]:
    return tuple(path if isinstance(path, Embedded) else str(path) for path in paths)


@final
class Files:
    """Image files decoded on demand; nothing is kept."""

    def __init__(self, paths: Sequence[str | ImageFile], image_size: int) -> None:
        self.paths = _kept(paths)
        self.image_size = image_size

    def __len__(self) -> int:
        return len(self.paths)

    def gather(self, indices: Int64[Tensor, " b"]) -> UInt8[Tensor, "b 3 h w"]:
        """The images at `indices`, on the CPU. InputError names a file that cannot be read."""
        pixels = _room(len(indices), self.image_size)
        for index, rows in _rows_of(indices).items():
            pixels[rows] = decode(self.paths[index], self.image_size)
        return pixels


@final
class Photographs:
    """Image files of any size and proportions, decoded whole on demand; nothing is kept.

    Networks are trained on random parts of them (`crops`) and judged by their middle (`gather`), as is usual for
    ImageNet: a part has an area of `scale` of the photograph's and proportions of `aspect` (width by height), in its
    own pixels (Szegedy et al. 2015, as torchvision's RandomResizedCrop), and is resized with antialiasing, bilinearly.

    Raises InputError for an image_size below 1 and for ranges that are not 0 < low <= high, scale's at most 1.
    """

    def __init__(
        self,
        paths: Sequence[str | ImageFile],
        image_size: int,
        *,
        scale: tuple[float, float] = (0.08, 1.0),
        aspect: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        if image_size < 1:
            raise InputError(f"image_size = {image_size}: must be positive")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise InputError(f"scale: {scale} is not 0 < low <= high <= 1")
        if not 0 < aspect[0] <= aspect[1]:
            raise InputError(f"aspect: {aspect} is not 0 < low <= high")
        self.paths = _kept(paths)
        self.image_size = image_size
        self.scale, self.aspect = scale, aspect

    def __len__(self) -> int:
        return len(self.paths)

    def gather(self, indices: Int64[Tensor, " b"]) -> UInt8[Tensor, "b 3 h w"]:
        """The middle of the photographs at `indices`, on the CPU: their short side is brought to 256/224 of the size.

        InputError names a file that cannot be read.
        """
        pixels = _room(len(indices), self.image_size)
        for index, rows in _rows_of(indices).items():
            # As in `decode`: twice the resolution that is needed is left to resample.
            photograph = opened(self.paths[index], 2 * _short_side(self.image_size))
            pixels[rows] = chw(np.array(_middle(photograph, self.image_size)))
        return pixels

    def crops(self, indices: Int64[Tensor, " b"], generator: torch.Generator) -> UInt8[Tensor, "b 3 h w"]:
        """A random part of every photograph at `indices`, on the CPU; one of its own for each time that it is there.

        The generator, on the CPU, alone decides what is drawn, whatever the sizes of the photographs. InputError names
        a file that cannot be read.
        """
        draws = torch.rand(len(indices), CROP_ATTEMPTS, 4, generator=generator, dtype=torch.float64).tolist()
        pixels = _room(len(indices), self.image_size)
        for index, rows in _rows_of(indices).items():
            photograph = opened(self.paths[index])
            for row in rows:
                # Cut out before it is resized, or else the filter would look beyond the edge.
                part = photograph.crop(random_box(*photograph.size, draws[row], self.scale, self.aspect))
                pixels[row] = chw(np.array(part.resize((self.image_size,) * 2, Image.Resampling.BILINEAR)))
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
        return self._of_both(indices, self.first.gather)

    def crops(self, indices: Int64[Tensor, " b"], generator: torch.Generator) -> UInt8[Tensor, "b 3 h w"]:
        """The same, but for random parts of what in the first are photographs (`Photographs.crops`)."""
        return self._of_both(indices, lambda own: crops_where_whole(self.first, own, generator))

    def _of_both(self, indices: Tensor, of_first: Callable[[Tensor], Tensor]) -> Tensor:
        first = indices < len(self.first)
        pixels = _room(len(indices), self.image_size)
        pixels[first] = of_first(indices[first]).cpu()
        pixels[~first] = self.second.gather(indices[~first] - len(self.first)).cpu()
        return pixels


def holds_photographs(images: ImageSource) -> bool:
    """Whether these, or some of them, are whole photographs, of which a network is trained on random parts."""
    return isinstance(images, Photographs) or (isinstance(images, Joined) and holds_photographs(images.first))


def crops_where_whole(
    images: ImageSource, indices: Int64[Tensor, " b"], generator: torch.Generator
) -> UInt8[Tensor, "b 3 h w"]:
    """Random parts of whole photographs, other images as they are."""
    return images.crops(indices, generator) if isinstance(images, Photographs | Joined) else images.gather(indices)


def _room(count: int, size: int) -> Tensor:
    return torch.empty(count, 3, size, size, dtype=torch.uint8)


def _rows_of(indices: Tensor) -> dict[int, list[int]]:
    """Where each index stands, so that a file is decoded once, however often it is asked for."""
    rows: dict[int, list[int]] = {}
    for row, index in enumerate(indices.tolist()):
        rows.setdefault(index, []).append(row)
    return rows


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """`values` on the device, without waiting until they are there: on their way to a GPU they lie in pinned memory."""
    if device.type == "cuda" and values.device.type == "cpu" and not values.is_pinned():
        values = values.pin_memory()
    # On MPS a copy that is not waited for may read memory that was freed meanwhile.
    return values.to(device, non_blocking=device.type not in ("cpu", "mps"))


def decode(path: str | ImageFile, image_size: int) -> UInt8[Tensor, "3 size size"]:
    """Read one image file of any mode and size: RGB, its central square, resized with antialiasing.

    16-bit grey is scaled (not clipped) to 8, transparency is laid on white, EXIF orientation is applied.
    InputError names a file that is missing, damaged or truncated, or whose range of values is not known.
    """
    # JPEG decoders halve large photographs for next to nothing; twice the size is left to resample.
    return chw(np.array(resized_square(opened(path, 2 * image_size), image_size)))


def opened(path: str | ImageFile, enough: int | None = None) -> Image.Image:
    """The whole image in RGB and upright, as `decode` describes it, with its errors; a JPEG's sides perhaps divided by
    2, 4 or 8, if both keep `enough` pixels.
    """
    with _opening(path) as image:
        return upright(image, enough)


def size_of(path: str | ImageFile) -> tuple[int, int]:
    """Width and height of one image file, as it is stored. InputError as in `decode`."""
    with _opening(path) as image:
        return image.size


@contextmanager
def _opening(path: str | ImageFile) -> Iterator[Image.Image]:
    content = path.content() if isinstance(path, Embedded) else path
    try:
        with Image.open(BytesIO(content) if isinstance(content, bytes) else content) as image:
            yield image
    except Exception as error:  # Pillow's readers raise nearly every type on damaged files
        # What cannot be identified in memory is named by its address, which says nothing
        reason = "cannot identify image file" if isinstance(error, UnidentifiedImageError) else one_line(error)
        raise InputError(f"{path}: not a readable image ({reason})") from error


def upright(image: Image.Image, enough: int | None = None) -> Image.Image:
    """What `opened` gives of an image file that is open; Pillow's readers raise nearly every type on damaged ones."""
    if enough is not None:
        image.draft(image.mode, (enough, enough))
    return _as_rgb(ImageOps.exif_transpose(image))


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


def resized_square(image: Image.Image, size: int) -> Image.Image:
    """The central square, resized; an image that has the size already keeps its pixels."""
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


CROP_ATTEMPTS = 10
"""Boxes that are drawn before the middle is taken instead."""


def random_box(
    width: int,
    height: int,
    draws: Sequence[Sequence[float]],
    scale: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random part of a photograph, in whole pixels inside it.

    Uniform in the area, the logarithm of width / height, and the place. `draws` are some fours of numbers in [0, 1), of
    which the first counts whose part fits; if none does, it is the largest part in the middle of proportions within
    `aspect`.
    """
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for of_area, of_aspect, of_left, of_top in draws:
        area = width * height * (scale[0] + (scale[1] - scale[0]) * of_area)
        proportion = math.exp(low + (high - low) * of_aspect)
        wide, tall = round(math.sqrt(area * proportion)), round(math.sqrt(area / proportion))
        if 0 < wide <= width and 0 < tall <= height:
            left, top = int(of_left * (width - wide + 1)), int(of_top * (height - tall + 1))
            return left, top, left + wide, top + tall
    wide, tall = min(width, max(1, round(height * aspect[1]))), min(height, max(1, round(width / aspect[0])))
    left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall


def _short_side(size: int) -> int:
    return round(size * 256 / 224)


def _middle(photograph: Image.Image, size: int) -> Image.Image:
    """The central square of `size` of the photograph resized to `_short_side`; only what it shows is resized."""
    short = _short_side(size)
    wide, tall = (int(short * side / min(photograph.size)) for side in photograph.size)
    left, top = round((wide - size) / 2), round((tall - size) / 2)
    x, y = photograph.width / wide, photograph.height / tall
    box = (left * x, top * y, (left + size) * x, (top + size) * y)
    return photograph.resize((size, size), Image.Resampling.BILINEAR, box=box)


def chw(array: np.ndarray) -> Tensor:
    """[h, w, 3] as a contiguous tensor [3, h, w]."""
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def one_line(error: BaseException) -> str:
    """What an error says, for the end of an InputError's line."""
    said = getattr(error, "strerror", None) or str(error)  # strerror leaves out the path, which we name ourselves
    return " ".join(said.split()) or type(error).__name__
