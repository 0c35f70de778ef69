"""Training on labels alone against a plain float64 reference, with and without hybrids."""

import copy

import pytest
import torch
from objectives import HybridUse, Supervised
from torch import nn

from hybridgen.hybridizer import Hybridizer, Origin
from hybridgen.networks.autoencoder import Architecture, SemanticAutoencoder
from hybridgen.training.schedules import Clock
from hybridgen.types import Batch

LABELLED, UNLABELLED, CLASSES = 4, 5, 4
COUNT = LABELLED + UNLABELLED
CLOCK = Clock(steps=100, steps_per_epoch=10, step=25)


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    labelled, unlabelled = torch.rand(COUNT, 3, 16, 16, dtype=torch.float64, generator=g).split([LABELLED, UNLABELLED])
    return Batch((labelled,), torch.tensor([3, 1, 0, 1]), (unlabelled,))


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    convolution, linear = nn.Conv2d(3, 6, 3, stride=2), nn.Linear(6 * 49, CLASSES)
    return nn.Sequential(convolution, nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), linear).double()


@pytest.fixture(scope="module")
def hybridizer():
    torch.manual_seed(1)
    architecture = Architecture(
        image_size=16, classes=CLASSES, network="leaky-wrn-10-1", nonsemantic_channels=2, generator_channels=(4, 4)
    )
    autoencoder = SemanticAutoencoder(architecture).double().eval()
    with torch.no_grad():  # each class is as probable as another, so that images differ in theirs
        codes = autoencoder(torch.rand(50, 3, 16, 16, dtype=torch.float64))
        autoencoder.classifier.heads.predictions.bias -= codes.predictions.mean(0)
    return Hybridizer(autoencoder, Origin("none", "f" * 64, "0" * 16, ("a", "b", "c", "d")))


def cross_entropy(logits, labels):
    return -torch.stack([row.log_softmax(0)[label] for row, label in zip(logits, labels, strict=True)]).mean()


def assert_same(loss, expected, network, twin):
    """And so are their gradients to the networks' parameters."""
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    got, want = (
        torch.autograd.grad(each, list(of.parameters()), retain_graph=True)
        for each, of in ((loss, network), (expected, twin))
    )
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_without_hybrids_labelled_images_alone_are_seen(classifier, batch):
    twin = copy.deepcopy(classifier)
    losses, rates, handed, *_ = Supervised(classifier)(batch, CLOCK)
    assert losses.keys() == {"supervised"} and rates == {} and handed == ()
    assert_same(losses["supervised"], cross_entropy(twin(batch.labelled[0]), batch.labels), classifier, twin)
    torch.testing.assert_close(classifier[1].running_mean, twin[1].running_mean)
    torch.testing.assert_close(classifier[1].running_var, twin[1].running_var)


def test_unlabelled_images_change_nothing_without_hybrids(classifier, batch):
    twin = Supervised(copy.deepcopy(classifier))
    other = batch._replace(unlabelled=(batch.unlabelled[0][:1] * 0,))
    assert torch.equal(
        Supervised(classifier)(batch, CLOCK).losses["supervised"], twin(other, CLOCK).losses["supervised"]
    )


@pytest.mark.parametrize("step", [0, 19, 40, 99])
def test_outside_the_window_training_is_that_without_hybrids(classifier, batch, hybridizer, step, monkeypatch):
    def called(*_, **__):
        raise AssertionError("the hybridizer was called")

    for method in ("encode_and_classify", "encode_semantic", "encode_nonsemantic", "hybridize", "decode", "forward"):
        monkeypatch.setattr(hybridizer, method, called)
    plain = Supervised(copy.deepcopy(classifier))
    clock, state = Clock(steps=100, steps_per_epoch=10, step=step), torch.get_rng_state()
    losses, rates, *_ = Supervised(classifier, hybridizer=hybridizer, how=HybridUse(start=2, stop=4))(batch, clock)
    assert losses.keys() == {"supervised", "hybrids"}
    assert losses["hybrids"] == 0 and rates["hybrids_kept"] == 0
    assert torch.equal(torch.get_rng_state(), state)
    total = torch.stack(list(losses.values())).sum()
    assert_same(total, plain(batch, clock).losses["supervised"], classifier, plain.classifier)
    assert torch.equal(classifier[1].running_mean, plain.classifier[1].running_mean)


@pytest.mark.parametrize("use", ["contradict", "labelled"])
@pytest.mark.parametrize("keep_consistent", [True, False])
def test_in_the_window_losses_equal_the_reference(classifier, batch, hybridizer, use, keep_consistent):
    """Targets of labelled images are of the forward that bears the cross-entropy, those of unlabelled ones of another;
    hybrids, of all images, have one of their own."""
    twin, parents = copy.deepcopy(classifier), torch.cat([*batch.labelled, *batch.unlabelled])
    logits = twin(batch.labelled[0])
    targets = torch.cat([logits, twin(batch.unlabelled[0])]).detach().softmax(1)
    torch.manual_seed(4)
    partner = torch.cat([torch.randperm(COUNT) for _ in range(2)])
    images = hybridizer.hybridize(semantic=parents.repeat(2, 1, 1, 1), nonsemantic=parents[partner])
    kept = torch.ones(2 * COUNT, dtype=torch.bool)
    if keep_consistent:
        expected = hybridizer.classify(parents).argmax(1)
        expected[:LABELLED] = batch.labels
        kept = hybridizer.classify(images).argmax(1) == expected.repeat(2)
        assert 0 < kept.sum() < len(kept)
    of_hybrids, terms = twin(images), []
    for row in range(2 * COUNT):
        parent = row % COUNT
        if use == "contradict":
            target = 0.8 * targets[parent] + 0.2 * targets[partner[row]]
            term, number = (of_hybrids[row].softmax(0) - target).square().sum(), 2 * COUNT
        elif parent < LABELLED:
            term, number = -of_hybrids[row].log_softmax(0)[batch.labels[parent]], 2 * LABELLED
        else:
            continue
        terms.append(kept[row] * term / number)

    torch.manual_seed(4)
    how = HybridUse(use=use, alpha=0.8, copies=2, start=2, stop=4, keep_consistent=keep_consistent)
    losses, rates, *_ = Supervised(classifier, hybridizer=hybridizer, how=how)(batch, CLOCK)
    assert_same(losses["supervised"], cross_entropy(logits, batch.labels), classifier, twin)
    assert_same(losses["hybrids"], torch.stack(terms).sum(), classifier, twin)
    assert rates["hybrids_kept"].item() == pytest.approx(kept.double().mean().item())
    assert classifier[1].num_batches_tracked == 3
    torch.testing.assert_close(classifier[1].running_var, twin[1].running_var)


def test_gradient_reaches_the_classifier_and_through_labelled_images_only(classifier, batch, hybridizer):
    """In evaluation mode, where images do not meet in batch-norm."""
    before = copy.deepcopy(hybridizer.state_dict())
    (labelled,), (unlabelled,) = (tuple(view.requires_grad_() for view in views) for views in batch[::2])
    objective = Supervised(classifier, hybridizer=hybridizer, how=HybridUse(keep_consistent=False)).eval()
    losses = objective(batch, CLOCK).losses
    losses["hybrids"].backward()
    assert classifier[-1].weight.grad.any() and classifier[0].weight.grad.any()
    assert labelled.grad is None and unlabelled.grad is None  # neither by targets nor by what hybrids are made of
    losses["supervised"].backward()
    assert labelled.grad.flatten(1).any(dim=1).all() and unlabelled.grad is None
    assert all(parameter.grad is None for parameter in hybridizer.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in hybridizer.state_dict().items())


def test_the_hybridizer_is_no_part_of_what_learns(classifier, hybridizer):
    objective = Supervised(classifier, hybridizer=hybridizer)
    assert objective.state_dict().keys() == {f"base.classifier.{name}" for name in classifier.state_dict()}
    assert hybridizer not in list(objective.modules())
