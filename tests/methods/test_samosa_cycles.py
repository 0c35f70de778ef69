"""Which batches SAMOSA's cycles draw, and the hybrids that they draw from."""

import math
from dataclasses import replace

import pytest
import torch

from hybridgen.data.datasets import load_dataset
from hybridgen.data.splits import make_split
from hybridgen.methods import samosa
from hybridgen.methods.samosa import Cycles, HybridSet, Settings, samosa_hybrids, stretch
from hybridgen.networks.autoencoder import SamosaArchitecture, SamosaAutoencoder


@pytest.mark.parametrize("window", [(1.25, 2.5), (0.0, 1.0), (0.7, math.inf), (3.9, 5.0)])
def test_stretches_cover_every_step_as_the_epochs_of_its_cycle_say(window):
    """Three cycles of four epochs of ten steps: hybrids in the window of the second and third."""
    start, stop = window
    settings = Settings(start=start, stop=stop)
    step = 0
    while step < 120:
        drawn, until = stretch(settings, step, 10, 40)
        assert step < until <= 120
        for each in range(step, until):
            epoch = each % 40 / 10
            assert drawn == (each >= 40 and start <= epoch < stop), each
            assert stretch(settings, each, 10, 40) == (drawn, until)  # from wherever a run is resumed
        step = until


def test_batches_of_a_window_are_drawn_from_hybrids_too_and_others_are_the_streams(context):
    """Labelled images outside the window are the split's; inside, hybrids with the labels of their parents."""
    stream = context.stream(0, labelled=4, labelled_views=(lambda x, g: x,), unlabelled=10, unlabelled_views=())
    hybrids = HybridSet(context.dataset, context.split, 9)
    hybrids.images.fill_(255)  # white, as no image is
    hybrids.images[:, 0, 0, 0] = hybrids.semantic.to(torch.uint8)  # but for a pixel, which names the parent
    cycles = Cycles(stream, hybrids, Settings(start=1.0, stop=3.0), context, 20, stream.steps_per_epoch)
    labels = context.dataset.train.labels
    known = context.dataset.train.images.gather(torch.tensor(context.split.labelled)) / 255  # and no others
    white = []
    for step, batch in zip(range(40), cycles.from_step(0), strict=False):
        of_hybrids = (batch.labelled[0][:, 1:] == 1).flatten(1).all(dim=1)
        parents = (255 * batch.labelled[0][of_hybrids, 0, 0, 0]).round().long()
        assert torch.equal(batch.labels[of_hybrids], labels[parents])
        white.append(int(of_hybrids.sum()))
        assert all((image == known).flatten(1).all(dim=1).any() for image in batch.labelled[0][~of_hybrids])
        drawn, _ = stretch(cycles.settings, step, stream.steps_per_epoch, 20)
        if not drawn:
            assert torch.equal(batch.labelled[0], next(stream.from_step(step)).labelled[0])
            assert torch.equal(batch.labels, labels[stream.indices(step)[0]])
    inside = [20 + 5 <= step < 20 + 15 for step in range(40)]
    assert sum(white) == sum(count for count, there in zip(white, inside, strict=True) if there) > 20
    again = [b.labelled[0] for _, b in zip(range(7), cycles.from_step(23), strict=False)]
    whole = [b.labelled[0] for _, b in zip(range(40), cycles.from_step(0), strict=False)][23:30]
    assert all(torch.equal(*pair) for pair in zip(again, whole, strict=True))


@pytest.fixture(scope="module")
def digits():
    dataset = load_dataset("digits-m", image_size=16)
    return dataset, make_split(dataset, labels=20, seed=0, validation=0)


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    return SamosaAutoencoder(SamosaArchitecture(image_size=16, network="leaky-wrn-10-1"))


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
    expected = (images * 255).round()
    assert (hybrids.images - expected).abs().max() <= 1 and (hybrids.images == expected).float().mean() > 0.99
    assert torch.equal(hybrids.images[~kept], dataset.train.images.gather(semantic[~kept]))
    assert 0 < kept.sum() < 60 and not torch.equal(hybrids.images[kept], dataset.train.images.gather(semantic[kept]))


def test_the_other_parent_is_any_labelled_or_unlabelled_image(digits, autoencoder, monkeypatch):
    """Hybrids that are their non-semantic parents themselves show who these are."""
    dataset, split = digits
    seen = []
    shown = lambda network, mine, others, labels: (others, seen.append((mine, labels)) or labels == labels)
    monkeypatch.setattr(samosa, "samosa_hybrids", shown)
    split = replace(split, unlabelled=split.unlabelled[:20])
    hybrids = HybridSet(dataset, split, 30)  # 600: more than are made at once
    assert hybrids.make(autoencoder, dataset, split, seed=1) == 1
    known = dataset.train.images.gather(torch.tensor(split.labelled))
    images = torch.cat([known, dataset.train.images.gather(torch.tensor(split.unlabelled))])
    same = (hybrids.images[:, None] == images).flatten(2).all(dim=2)
    assert same.any(dim=1).all() and same.sum(dim=0).min() > 0  # of 600 draws from 40
    pool = torch.tensor(sorted(split.labelled + split.unlabelled))
    chosen = pool[torch.randint(len(pool), (600,), generator=torch.Generator().manual_seed(1))]
    assert torch.equal(hybrids.images, dataset.train.images.gather(chosen))
    mine, labels = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert torch.equal(labels, dataset.train.labels[list(split.labelled)].repeat(30)) and len(seen) > 1
    assert torch.equal((255 * mine).round(), known.repeat(30, 1, 1, 1))


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
