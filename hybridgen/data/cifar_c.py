"""The files of CIFAR-10-C and CIFAR-100-C (Hendrycks and Dietterich 2019): corrupted test images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from hybridgen.data.datasets import Part, nchw
from hybridgen.data.sources import InMemory, one_line
from hybridgen.types import InputError

NAMES = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog"),
    *("brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
"""The fifteen of which means are taken; the four further ones of the archives are for validation."""

LABELS = "labels.npy"

SEVERITIES = 5


class CifarC:
    """A folder of `<name>.npy`, each uint8 `[5·n, side, side, 3]`: the n test images of `clean` (10,000 of CIFAR) at
    the severities 1 to 5 one after the other; and `labels.npy`, their classes.

    Files are read as they are asked for. InputError, naming the file, for one that is missing, cannot be read, has
    another shape or type, and for labels that are not those of `clean`, five times.
    """

    def __init__(self, folder: Path, clean: Part, names: Sequence[str] = NAMES) -> None:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; CIFAR-10-C's or CIFAR-100-C's is needed")
        if missing := [name for name in (LABELS, *(f"{name}.npy" for name in names)) if not (folder / name).is_file()]:
            raise InputError(
                f"{folder}: {', '.join(missing)} missing; {LABELS} and a file for each corruption are needed"
            )
        self.names, self.clean = tuple(names), clean
        labels = _opened(folder / LABELS)
        count, side = len(clean), clean.images.image_size
        if labels.shape != (SEVERITIES * count,) or not np.issubdtype(labels.dtype, np.integer):
            raise InputError(
                f"{folder / LABELS}: {labels.dtype} of shape {list(labels.shape)}; needed are integers "
                f"[{SEVERITIES * count}], the classes of {count} test images at {SEVERITIES} severities"
            )
        if not np.array_equal(labels.astype(np.int64), np.tile(clean.labels.numpy(), SEVERITIES)):
            raise InputError(
                f"{folder / LABELS}: not the classes of these test images, {SEVERITIES} times: of other data"
            )
        self._files = {name: _opened(folder / f"{name}.npy") for name in names}
        for name, pixels in self._files.items():
            needed = (SEVERITIES * count, side, side, 3)
            if pixels.shape != needed or pixels.dtype != np.uint8:
                raise InputError(
                    f"{folder / name}.npy: {pixels.dtype} of shape {list(pixels.shape)}; needed is uint8 "
                    f"{list(needed)}, {count} test images at {SEVERITIES} severities"
                )

    def part(self, name: str, severity: int) -> Part:
        """The test images, corrupted; severity is 1 to 5."""
        count = len(self.clean)
        block = self._files[name][(severity - 1) * count : severity * count]
        return Part(InMemory(nchw(np.array(block))), torch.as_tensor(self.clean.labels))


def _opened(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # whatever a damaged file makes numpy raise
        raise InputError(f"{path}: not a readable npy file ({one_line(error)})") from error
