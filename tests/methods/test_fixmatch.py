"""FixMatch against a plain reference, with and without hybrids."""

import copy
from types import SimpleNamespace

import pytest
import torch
from objectives import FixMatch, HybridUse
from torch import nn

from hybridgen.hybridizer import Hybridizer, Origin
from hybridgen.losses.classification import confident
from hybridgen.methods.hybrids import draw_hybrids, hybrid_loss
from hybridgen.networks.autoencoder import Architecture, SemanticAutoencoder
from hybridgen.training.schedules import Clock
from hybridgen.types import Batch

LABELLED, UNLABELLED, CLASSES, THRESHOLD = 4, 9, 4, 0.6
NO_LABELS = torch.zeros(0, dtype=torch.int64)
CLOCK = Clock(steps=100, steps_per_epoch=10, step=25)


def random_images(count, seed):
    return torch.rand(count, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def batch():
    return Batch(
        labelled=(random_images(LABELLED, 0),),
        labels=torch.tensor([3, 1, 0, 1]),
        unlabelled=(random_images(UNLABELLED, 1), random_images(UNLABELLED, 2)),
    )


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 49, CLASSES),
    ).double()
    network[-1].weight.data *= 4  # confident about some images, not about all
    return network


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


def by_hand(classifier, batch):
    """Both losses and all logits, from a copy of the classifier."""
    twin = copy.deepcopy(classifier)
    logits = twin(torch.cat([*batch.labelled, *batch.unlabelled]))
    of_labelled, of_weak, of_strong = logits.split([LABELLED, UNLABELLED, UNLABELLED])
    supervised = -of_labelled.log_softmax(1)[range(LABELLED), batch.labels].sum() / LABELLED
    confidence, label = of_weak.detach().softmax(1).max(1)
    terms = [
        -of_strong[i].log_softmax(0)[label[i]] if confidence[i] >= THRESHOLD else of_strong.new_zeros(())
        for i in range(UNLABELLED)
    ]
    count = int((confidence >= THRESHOLD).sum())
    assert 0 < count < UNLABELLED
    unsupervised = torch.stack(terms).sum() / UNLABELLED
    return SimpleNamespace(
        twin=twin, logits=logits, supervised=supervised, unsupervised=unsupervised, confident=count / UNLABELLED,
        guessed=(label, (confidence >= THRESHOLD).double()),
    )  # fmt: skip


def in_evaluation(classifier, batch):
    """With statistics of this batch, so that it is as confident as in training mode."""
    classifier[1].momentum = 1.0
    classifier(torch.cat([*batch.labelled, *batch.unlabelled]))
    return classifier.eval()


def gradients(loss, network):
    return torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)


# --- without hybrids ------------------------------------------------------------------------------------


def test_losses_and_their_gradients_equal_the_reference(classifier, batch):
    expected = by_hand(classifier, batch)
    losses, rates, handed, _, guessed = FixMatch(classifier, threshold=THRESHOLD)(batch, CLOCK)
    assert losses.keys() == {"supervised", "unsupervised"}
    for name in losses:
        torch.testing.assert_close(losses[name], getattr(expected, name), rtol=1e-12, atol=0)
        for got, want in zip(
            gradients(losses[name], classifier), gradients(getattr(expected, name), expected.twin), strict=True
        ):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    assert rates["confident"].item() == pytest.approx(expected.confident)
    assert not rates["confident"].requires_grad and handed == ()
    torch.testing.assert_close(tuple(guessed), expected.guessed)


def test_batch_norm_sees_all_images_at_once(classifier, batch):
    """One concatenated forward: running statistics move once, towards those of all three groups together."""
    FixMatch(classifier)(batch, CLOCK)
    everything = classifier[0](torch.cat([*batch.labelled, *batch.unlabelled])).transpose(0, 1).flatten(1)
    norm = classifier[1]
    assert norm.num_batches_tracked == 1
    torch.testing.assert_close(norm.running_mean, 0.1 * everything.mean(1))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * everything.var(1))


def test_threshold_is_inclusive(classifier, batch):
    """At exactly the largest confidence one image counts, just above it none."""
    classifier.eval()
    largest = classifier(batch.unlabelled[0]).detach().softmax(1).max().item()
    at = FixMatch(classifier, threshold=largest)(batch, CLOCK)
    above = FixMatch(classifier, threshold=largest + 1e-12)(batch, CLOCK)
    assert at.rates["confident"].item() == pytest.approx(1 / UNLABELLED) and at.losses["unsupervised"] > 0
    assert above.rates["confident"] == 0 and above.losses["unsupervised"] == 0


def test_default_threshold(classifier):
    assert FixMatch(classifier).labelling.weighting.threshold == 0.95


def test_no_gradient_through_pseudo_labels(classifier, batch):
    """In evaluation mode images do not meet in batch-norm: the strong views alone bear the unsupervised loss."""
    weak, strong = (view.requires_grad_() for view in batch.unlabelled)
    batch.labelled[0].requires_grad_()
    objective = FixMatch(in_evaluation(classifier, batch), threshold=THRESHOLD).eval()
    objective(batch, CLOCK).losses["unsupervised"].backward()
    sure = confident(classifier(weak), THRESHOLD)[1]
    assert 0 < sure.sum() < UNLABELLED
    assert not weak.grad.any() and not batch.labelled[0].grad.any()
    assert torch.equal(strong.grad.flatten(1).any(dim=1), sure)


def test_pseudo_labels_come_from_the_weak_view(classifier, batch):
    """Exchanging the views changes the loss to the one with the roles exchanged."""
    exchanged = batch._replace(unlabelled=batch.unlabelled[::-1])
    objective = FixMatch(in_evaluation(classifier, batch), threshold=THRESHOLD).eval()
    losses = [objective(b, CLOCK).losses["unsupervised"].item() for b in (batch, exchanged)]
    expected = [by_hand(classifier, b).unsupervised.item() for b in (batch, exchanged)]
    assert losses == pytest.approx(expected, rel=1e-12)
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


# --- with hybrids ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 19, 40, 99])
def test_outside_the_window_hybrids_cost_nothing_and_the_hybridizer_rests(
    classifier, batch, hybridizer, step, monkeypatch
):
    def called(*_, **__):
        raise AssertionError("the hybridizer was called")

    for method in ("encode_and_classify", "encode_semantic", "encode_nonsemantic", "hybridize", "decode", "forward"):
        monkeypatch.setattr(hybridizer, method, called)
    how = HybridUse(start=2.0, stop=4.0)
    objective = FixMatch(classifier, threshold=THRESHOLD, hybridizer=hybridizer, how=how)
    state = torch.get_rng_state()
    losses, rates, *_ = objective(batch, Clock(steps=100, steps_per_epoch=10, step=step))
    assert losses.keys() == {"supervised", "unsupervised", "hybrids"}
    assert losses["hybrids"] == 0 and rates["hybrids_kept"] == 0
    assert torch.equal(torch.get_rng_state(), state)
    torch.stack(list(losses.values())).sum().backward()  # a weighted sum with the zero among them still works


def test_hybrids_leave_the_other_losses_as_they_are(classifier, batch, hybridizer):
    expected = by_hand(classifier, batch)
    losses = FixMatch(classifier, threshold=THRESHOLD, hybridizer=hybridizer)(batch, CLOCK).losses
    for name in ("supervised", "unsupervised"):
        torch.testing.assert_close(losses[name], getattr(expected, name), rtol=1e-12, atol=0)


@pytest.mark.parametrize("use", ["contradict", "consistency", "pseudo-label", "labelled"])
@pytest.mark.parametrize("keep_consistent", [True, False])
def test_hybrids_in_their_window_equal_the_reference(classifier, batch, hybridizer, use, keep_consistent):
    """Three hybrids of each labelled and weak image, targets from the same forward as the other losses."""
    how = HybridUse(use=use, alpha=0.8, start=2.0, stop=4.0, threshold=0.4, keep_consistent=keep_consistent)
    expected = by_hand(classifier, batch)
    parents = torch.cat([batch.labelled[0], batch.unlabelled[0]])
    targets = expected.logits[: len(parents)].detach().softmax(1)

    torch.manual_seed(4)
    partner = torch.cat([torch.randperm(len(parents)) for _ in range(3)])
    images = hybridizer.hybridize(semantic=parents.repeat(3, 1, 1, 1), nonsemantic=parents[partner])
    kept = torch.ones(len(images), dtype=torch.bool)
    if keep_consistent:
        expected_class = hybridizer.classify(parents).argmax(1)
        expected_class[:LABELLED] = batch.labels
        kept = hybridizer.classify(images).argmax(1) == expected_class.repeat(3)
        assert 0 < kept.sum() < len(kept)
    hybrids = hybrid_loss(expected.twin(images), targets, batch.labels, partner, kept, how)

    torch.manual_seed(4)
    objective = FixMatch(classifier, threshold=THRESHOLD, hybridizer=hybridizer, how=how)
    losses, rates, *_ = objective(batch, CLOCK)
    assert losses["hybrids"].item() == pytest.approx(hybrids.item(), rel=1e-10) and hybrids > 0
    assert rates["hybrids_kept"].item() == pytest.approx(kept.double().mean().item())
    assert not rates["hybrids_kept"].requires_grad
    for got, want in zip(gradients(losses["hybrids"], classifier), gradients(hybrids, expected.twin), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-12)
    assert classifier[1].num_batches_tracked == 2  # hybrids have a forward of their own
    torch.testing.assert_close(classifier[1].running_mean, expected.twin[1].running_mean)


def test_no_gradient_through_the_targets_of_hybrids(classifier, batch, hybridizer):
    for images in (*batch.labelled, *batch.unlabelled):
        images.requires_grad_()
    objective = FixMatch(classifier, hybridizer=hybridizer, how=HybridUse(keep_consistent=False)).eval()
    objective(batch, CLOCK).losses["hybrids"].backward()
    assert classifier[-1].weight.grad.any()
    assert all(images.grad is None for images in (*batch.labelled, *batch.unlabelled))


def test_number_of_copies(classifier, batch, hybridizer):
    seen = []
    classifier.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    objective = FixMatch(classifier, hybridizer=hybridizer, how=HybridUse(copies=5))
    objective(batch, CLOCK)
    assert seen == [LABELLED + 2 * UNLABELLED, 5 * (LABELLED + UNLABELLED)]


def test_hybridizer_is_no_part_of_what_learns_and_never_changes(classifier, batch, hybridizer):
    before = copy.deepcopy(hybridizer.state_dict())
    objective = FixMatch(classifier, hybridizer=hybridizer)
    names = {f"base.classifier.{name}" for name in classifier.state_dict()}
    assert objective.state_dict().keys() == names
    assert {name for name, _ in objective.named_parameters()} < names
    assert hybridizer not in list(objective.modules())

    objective.train()
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        torch.stack(list(objective(batch, CLOCK).losses.values())).sum().backward()
        optimizer.step()
    assert not any(module.training for module in hybridizer.modules())
    assert all(parameter.grad is None for parameter in hybridizer.parameters())
    for name, tensor in hybridizer.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_same_seed_same_hybrids(classifier, batch, hybridizer):
    images = batch.unlabelled[0]
    first, second, other = (
        torch.manual_seed(seed) and draw_hybrids(hybridizer, images, NO_LABELS, copies=2, keep_consistent=True)
        for seed in (1, 1, 2)
    )
    assert torch.equal(first.images, second.images)
    assert not torch.equal(first.partner, other.partner)
