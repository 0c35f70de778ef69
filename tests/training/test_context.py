"""The split that a run's settings ask for."""

import pytest
import torch

from hybridgen.data.datasets import Dataset, Part
from hybridgen.data.sources import InMemory
from hybridgen.training.context import RunSettings, split_of
from hybridgen.types import InputError

KNOWN, UNKNOWN = 12, 4


@pytest.fixture
def dataset() -> Dataset:
    """Twelve images of three classes, and four of none that is known."""
    labels = torch.tensor([0, 1, 2, -1] * 4)
    images = torch.randint(0, 256, (KNOWN + UNKNOWN, 3, 8, 8), dtype=torch.uint8)
    part = Part(InMemory(images), labels)
    return Dataset("tiny", ("a", "b", "c"), 8, part, part, "fingerprint", True, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("validation", [0, 3, 9])
def test_without_a_number_all_known_labels_are_given_but_those_of_validation(dataset, validation):
    split = split_of(RunSettings(labels=None, validation=validation), dataset)
    assert (len(split.labelled), len(split.validation)) == (KNOWN - validation, validation)
    assert not set(split.labelled) & set(split.validation)
    assert (dataset.train.labels[list(split.labelled + split.validation)] >= 0).all()


@pytest.mark.parametrize("validation", [KNOWN, KNOWN + 1])
def test_validation_leaves_a_label(dataset, validation):
    with pytest.raises(InputError, match=f"validation = {validation}: tiny has {KNOWN} images of known class"):
        split_of(RunSettings(labels=None, validation=validation), dataset)
