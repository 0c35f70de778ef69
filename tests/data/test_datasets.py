import inspect
from importlib import import_module

import pytest
import torch

from hybridgen.data.datasets import DATASETS, Part, load_dataset
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
