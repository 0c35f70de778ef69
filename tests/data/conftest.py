"""What the tests of data make images with, and how they see that bad ones are refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hybridgen.data.datasets import load_dataset
from hybridgen.types import InputError


def _picture(seed: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _write(path: Path, array: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


@pytest.fixture
def picture() -> Callable[..., np.ndarray]:
    """Noise of a seed, [height, width, 3]."""
    return _picture


@pytest.fixture
def random_pixels() -> Callable[..., np.ndarray]:
    """[count, height, width, 3]: a third each of noise, of smooth images, of images of few levels; one flat image."""

    def make(count: int, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        noise = rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
        low, high = rng.integers(0, 128, (count, 1, 1, 3)), rng.integers(128, 256, (count, 1, 1, 3))
        slope = np.linspace(0, 1, height)[:, None, None] * np.linspace(1, 0.2, width)[None, :, None]
        smooth = (low + (high - low) * slope).astype(np.uint8)
        few = noise // 64 * 50 + 20
        pixels = np.where(np.arange(count)[:, None, None, None] % 3 == 0, noise, smooth)
        pixels = np.where(np.arange(count)[:, None, None, None] % 3 == 1, few, pixels).astype(np.uint8)
        pixels[-1] = 77
        return pixels

    return make


@pytest.fixture
def random_images(random_pixels) -> Callable[..., torch.Tensor]:
    """The same in squares, as images in [0, 1]."""

    def make(count: int, size: int = 32, seed: int = 0) -> torch.Tensor:
        return torch.from_numpy(random_pixels(count, size, size, seed)).permute(0, 3, 1, 2).contiguous().float() / 255

    return make


@pytest.fixture
def write() -> Callable[..., Path]:
    """Saves pixels to a path, which is given back."""
    return _write


@pytest.fixture
def image_folder() -> Callable[..., Path]:
    """Makes a folder of two classes: three images of each to train on, two for the test."""

    def make(root: Path, size: int = 8) -> Path:
        for part, copies in (("train", 3), ("test", 2)):
            for label, name in enumerate(("cat", "dog")):
                for i in range(copies):
                    _write(root / part / name / f"{i}.png", _picture(10 * label + i + 100 * copies, size, size))
        return root

    return make


@pytest.fixture
def mnist_files() -> Callable[[Path], tuple[np.ndarray, np.ndarray]]:
    """Writes 30 and 10 images as torchvision's MNIST lies on disk; gives back all 40 and their labels."""

    def make(root: Path) -> tuple[np.ndarray, np.ndarray]:
        images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
        labels = np.arange(40, dtype=np.uint8) % 10
        raw = root / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for stem, chosen in (("train", slice(0, 30)), ("t10k", slice(30, 40))):
            header = np.array([0x803, len(images[chosen]), 28, 28], dtype=">u4").tobytes()
            (raw / f"{stem}-images-idx3-ubyte").write_bytes(header + images[chosen].tobytes())
            header = np.array([0x801, len(labels[chosen])], dtype=">u4").tobytes()
            (raw / f"{stem}-labels-idx1-ubyte").write_bytes(header + labels[chosen].tobytes())
        return images, labels

    return make


@pytest.fixture
def fails() -> Callable[..., None]:
    """Sees that loading a set is refused in one line that holds all of `words`."""

    def check(name: str, *words: str, **options) -> None:
        with pytest.raises(InputError) as caught:
            load_dataset(name, **options)
        message = str(caught.value)
        assert "\n" not in message
        for word in words:
            assert word in message, message

    return check
