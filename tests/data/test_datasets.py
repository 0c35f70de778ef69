import inspect
from importlib import import_module

import numpy as np
import pytest
import torch

from hybridgen.data.datasets import DATASETS, Part, load_dataset, named, of_files
from hybridgen.data.sources import InMemory
from hybridgen.types import InputError


def test_part_refuses_labels_of_another_length():
    images = InMemory(torch.zeros(3, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(InputError, match="2 for 3 images"):
        Part(images, torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("size", [16, 32])
def test_channel_statistics_are_those_of_the_training_pixels(size):
    digits = load_dataset("digits-m", image_size=size)
    values = digits.train.images.pixels.double() / 255
    torch.testing.assert_close(torch.tensor(digits.mean).double(), values.mean((0, 2, 3)), atol=1e-6, rtol=0)
    deviation = values.std((0, 2, 3), correction=0)
    torch.testing.assert_close(torch.tensor(digits.std).double(), deviation, atol=1e-6, rtol=0)


def test_images_of_one_colour_have_a_deviation_to_be_divided_by(tmp_path):
    """A level's."""
    pixels, labels = np.full((4, 8, 8), 51, np.uint8), np.arange(4) % 2
    np.savez(tmp_path / "flat.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    flat = load_dataset(str(tmp_path / "flat.npz"))
    assert flat.mean == (0.2,) * 3 and flat.std == (0.003922,) * 3


def test_unknown_names_and_impossible_sizes(fails):
    fails("digits-m", "image_size = 0", image_size=0)
    fails("imagenet", "imagenet", *DATASETS)
    fails("folder:", "folder:PATH")
    fails("folder", "folder:PATH")
    fails("cifar10:here", "cifar10:here")


@pytest.mark.parametrize("name", DATASETS)
def test_every_set_has_a_reader(name):
    module, function = DATASETS[name].split(".")
    read = getattr(import_module(f"hybridgen.data.readers.{module}"), function)
    assert list(inspect.signature(read).parameters) == ["request"]


@pytest.mark.parametrize(
    ("given", "whole", "files"),
    [("cifar10", "cifar10", False), ("a/b.npz", "npz:a/b.npz", False), ("a/B.NPZ", "npz:a/B.NPZ", False),
     ("a.csv", "csv:a.csv", True), ("pets", "folder:pets", True), ("nowhere", "nowhere", False), ("", "", False),
     ("folder:pets", "folder:pets", True), ("a/b.parquet", "parquet:a/b.parquet", True), ("hf:a/b", "hf:a/b", True),
     ("mnist-m:pets", "mnist-m:pets", False)],
)  # fmt: skip
def test_names_of_what_lies_on_disk(tmp_path, monkeypatch, given, whole, files):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets").mkdir()
    assert (named(given), of_files(given)) == (whole, files)


def test_a_part_with_more_images_keeps_its_own_before_them():
    """In memory; what is not held there stays where it is."""
    pixels, labels = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(-1, 3, 4, 4), torch.arange(5)
    part = Part(InMemory(pixels[:3]), labels[:3], torch.ones(3, 4, 4, dtype=torch.bool)).extended(
        pixels[3:], labels[3:]
    )
    assert torch.equal(part.images.pixels, pixels) and torch.equal(part.labels, labels) and part.masks is None
