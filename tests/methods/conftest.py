"""A small set of images with a split, on which plans are made."""

import pytest
import torch
from accelerate import Accelerator

from hybridgen.data.datasets import Dataset, Part
from hybridgen.data.sources import InMemory
from hybridgen.data.splits import Split
from hybridgen.training.context import Context, RunSettings

CLASSES = ("a", "b", "c")


def make_context(size: int = 16, **settings) -> Context:
    """60 training images, 12 of them labelled and 9 for validation, and 15 test images; noise."""
    generator = torch.Generator().manual_seed(0)
    parts = [
        Part(
            InMemory(torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)),
            torch.arange(count) % len(CLASSES),
        )
        for count in (60, 15)
    ]
    dataset = Dataset("noise", CLASSES, size, *parts, "f" * 64, True, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    split = Split("noise", "f" * 64, 0, tuple(range(12)), tuple(range(12, 51)), tuple(range(51, 60)))
    return Context(RunSettings(data="noise", **settings), Accelerator(cpu=True), dataset, split)


@pytest.fixture
def context() -> Context:
    return make_context()


@pytest.fixture
def large() -> Context:
    return make_context(32)
