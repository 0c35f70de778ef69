"""Which batches SAMOSA's cycles draw, and the hybrids that they draw from."""

import math
from dataclasses import dataclass

import pytest
import torch

from hybridgen.data.datasets import load_dataset
from hybridgen.data.splits import make_split
from hybridgen.experiments.samosa import HybridSet, SamosaSettings, stretch
from hybridgen.generators.samosa import samosa_hybrids
from hybridgen.networks.autoencoder import SamosaArchitecture, SamosaAutoencoder


@dataclass(frozen=True)
class Window(SamosaSettings):
    hybrids_from: float = 1.25
    hybrids_until: float = 2.5


@pytest.mark.parametrize("window", [(1.25, 2.5), (0, 1), (0.7, math.inf), (3.9, 5)])
def test_stretches_cover_every_step_as_the_epochs_of_its_cycle_say(window):
    """Three cycles of four epochs of ten steps: hybrids in the window of the second and third."""
    config = Window(hybrids_from=window[0], hybrids_until=window[1])
    step = 0
    while step < 120:
        drawn, until = stretch(config, step, 10, 40)
        assert step < until <= 120
        for each in range(step, until):
            epoch = each % 40 / 10
            assert drawn == (each >= 40 and window[0] <= epoch < window[1]), each
            assert stretch(config, each, 10, 40) == (drawn, until)  # from wherever a run is resumed
        step = until


@pytest.fixture(scope="module")
def digits():
    dataset = load_dataset("digits-m", image_size=16)
    return dataset, make_split(dataset, labels=20, seed=0, validation=0)


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    return SamosaAutoencoder(SamosaArchitecture(image_size=16, depth=10, width=1, stem=4))


def test_a_hybrid_set_has_copies_of_every_labelled_image_or_their_hybrids(digits, autoencoder):
    dataset, split = digits
    hybrids = HybridSet(dataset, split, 3)
    assert hybrids.images.shape == (60, 3, 16, 16) and hybrids.images.dtype == torch.uint8
    share = hybrids.make(autoencoder, dataset, split, seed=1)

    # The same by hand, all at once
    semantic = torch.tensor(split.labelled).repeat(3)
    pool = torch.tensor(sorted(split.labelled + split.unlabelled))
    others = pool[torch.randint(len(pool), (60,), generator=torch.Generator().manual_seed(1))]
    parents = (dataset.train.images.gather(indices) / 255 for indices in (semantic, others))
    images, kept = samosa_hybrids(autoencoder, *parents, dataset.train.labels[semantic])
    assert share == kept.sum().item() / 60
    assert (hybrids.images - (images * 255).round()).abs().max() <= 1
    assert torch.equal(hybrids.images[~kept], dataset.train.images.gather(semantic[~kept]))
    assert 0 < kept.sum() < 60 and not torch.equal(hybrids.images[kept], dataset.train.images.gather(semantic[kept]))


def test_hybrid_sets_follow_from_the_seed_and_are_part_of_the_state(digits, autoencoder):
    dataset, split = digits
    first, second, third = (HybridSet(dataset, split, 2) for _ in range(3))
    first.make(autoencoder, dataset, split, seed=1)
    second.make(autoencoder, dataset, split, seed=2)
    assert not torch.equal(first.images, second.images)
    second.make(autoencoder, dataset, split, seed=1)
    assert torch.equal(first.images, second.images)
    third.load_state_dict(first.state_dict())
    assert torch.equal(first.images, third.images)
