"""Folders of CIFAR-10-C, small ones."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hybridgen.data.cifar_c import NAMES, CifarC
from hybridgen.data.datasets import Part
from hybridgen.data.sources import InMemory
from hybridgen.types import InputError

LABELS = [2, 0, 1]
CLEAN = Part(InMemory(torch.zeros(3, 3, 8, 8, dtype=torch.uint8)), torch.tensor(LABELS))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Of file k the image i at severity s is of the value 16 k + 3 (s - 1) + i, its first row and blue apart."""
    for number, name in enumerate(NAMES):
        pixels = (16 * number + np.arange(15)).astype(np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2)
        pixels = pixels.repeat(3, 3)
        pixels[:, 0, :, 2] = 255
        np.save(tmp_path / f"{name}.npy", pixels)
    np.save(tmp_path / "labels.npy", np.tile(np.array(LABELS, dtype=np.uint8), 5))
    return tmp_path


def test_severities_are_blocks(folder):
    files = CifarC(folder, CLEAN)
    assert files.names == NAMES and len(NAMES) == 15
    for name, severity in (("gaussian_noise", 1), ("gaussian_noise", 5), ("jpeg_compression", 3)):
        part = files.part(name, severity)
        pixels = part.images.gather(torch.arange(3))
        assert pixels.shape == (3, 3, 8, 8) and part.labels.tolist() == LABELS
        expected = 16 * NAMES.index(name) + 3 * (severity - 1)
        assert pixels[:, 0, 4, 4].tolist() == [expected, expected + 1, expected + 2]
        assert (pixels[:, 2, 0] == 255).all() and (pixels[:, 2, 1] < 255).all()


def test_faults_are_named(folder, tmp_path):
    def refused(words: str, clean: Part = CLEAN, at: Path = folder) -> None:
        with pytest.raises(InputError) as caught:
            CifarC(at, clean)
        assert words in str(caught.value) and "\n" not in str(caught.value)

    CifarC(folder, CLEAN)
    refused("no such folder", at=tmp_path / "none")
    refused("labels.npy: not the classes of these test images", Part(CLEAN.images, torch.tensor([2, 1, 1])))
    four = Part(InMemory(torch.zeros(4, 3, 8, 8, dtype=torch.uint8)), torch.tensor([0, 1, 2, 2]))
    refused("labels.npy: uint8 of shape [15]; needed are integers [20]", four)
    large = Part(InMemory(torch.zeros(3, 3, 16, 16, dtype=torch.uint8)), CLEAN.labels)
    refused("gaussian_noise.npy: uint8 of shape [15, 8, 8, 3]; needed is uint8 [15, 16, 16, 3]", large)

    fog = np.load(folder / "fog.npy")
    np.save(folder / "fog.npy", fog[:12])
    refused("fog.npy: uint8 of shape [12, 8, 8, 3]; needed is uint8 [15, 8, 8, 3], 3 test images at 5 severities")
    np.save(folder / "fog.npy", fog / 255)
    refused("fog.npy: float64 of shape [15, 8, 8, 3]")
    (folder / "fog.npy").write_bytes(b"\x93NUMPY")
    refused("fog.npy: not a readable npy file")
    (folder / "fog.npy").unlink()
    (folder / "snow.npy").unlink()
    refused("snow.npy, fog.npy missing")
    np.save(folder / "labels.npy", np.tile(np.array(LABELS, dtype=np.float32), 5))
    refused("snow.npy, fog.npy missing")
    np.save(folder / "fog.npy", fog)
    np.save(folder / "snow.npy", fog)
    refused("labels.npy: float32 of shape [15]")
