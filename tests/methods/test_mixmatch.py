"""MixMatch against a plain float64 reference that repeats its draws; guesses, batch-norm, hybrids."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from objectives import HybridUse, MixMatch
from torch import nn
from torch.distributions import Gamma

from hybridgen.hybridizer import Hybridizer, Origin
from hybridgen.methods.hybrids import hybrid_loss
from hybridgen.methods.mixmatch import Replacement, interleaving
from hybridgen.mixing.masks import beta
from hybridgen.networks.autoencoder import Architecture, SemanticAutoencoder
from hybridgen.training.schedules import Clock, within
from hybridgen.types import Batch, InputError

SIZE, CLASSES, SEED = 5, 4, 3
CLOCK = Clock(steps=100, steps_per_epoch=10, step=25)
VIEWS = pytest.mark.parametrize("views", [1, 2, 3])


def draw_batch(views=2, size=SIZE, others=None):
    g = torch.Generator().manual_seed(0)
    draw = lambda count: torch.rand(count, 3, 16, 16, dtype=torch.float64, generator=g)
    labels = torch.randint(0, CLASSES, (size,), generator=g)
    return Batch((draw(size),), labels, tuple(draw(others or size) for _ in range(views)))


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 49, CLASSES)
    ).double()


@pytest.fixture(scope="module")
def hybridizer():
    torch.manual_seed(1)
    architecture = Architecture(
        image_size=16, classes=CLASSES, network="leaky-wrn-10-1", nonsemantic_channels=2, generator_channels=(4, 4)
    )
    return Hybridizer(
        SemanticAutoencoder(architecture).double().eval(), Origin("none", "f" * 64, "0" * 16, ("a", "b", "c", "d"))
    )


def replacing(hybridize, probability, start, stop):
    """Hybrids in the epochs [start, stop)."""
    return Replacement(hybridize, probability, lambda clock: within(clock, start, stop))


def run(objective, batch, seed=SEED, clock=CLOCK):
    torch.manual_seed(seed)
    return objective(batch, clock)


def logits_of(classifier, images):
    """With the statistics of these images, written out; nothing is recorded."""
    convolution, norm, _, _, linear = classifier
    x = convolution(images)
    centred = x - x.mean((0, 2, 3), keepdim=True)
    x = centred / (centred.square().mean((0, 2, 3), keepdim=True) + norm.eps).sqrt()
    x = x * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
    return linear(x.relu().flatten(1))


def by_hand(classifier, batch, temperature=0.5, alpha=0.75, hybridize=None):
    """Algorithm 1 of the paper, image by image, with the authors' interleaving."""
    twin, views = copy.deepcopy(classifier), len(batch.unlabelled)

    # Guesses
    guesses = []
    predicted = [logits_of(twin, view).softmax(1).detach().tolist() for view in batch.unlabelled]
    for i in range(SIZE):
        mean = [sum(p[i][c] for p in predicted) / views for c in range(CLASSES)]
        powers = [m ** (1 / temperature) for m in mean]
        guesses.append([power / sum(powers) for power in powers])
    known = [[float(c == label) for c in range(CLASSES)] for label in batch.labels]
    images = [image for group in (batch.labelled[0], *batch.unlabelled) for image in group]
    targets = torch.tensor(known + guesses * views, dtype=torch.float64)

    # Mixing
    torch.manual_seed(SEED)
    count = SIZE * (1 + views)
    partner = torch.randperm(count)
    gamma = Gamma(torch.full((2, count), alpha + 1).double(), 1.0).sample()
    gamma = gamma * torch.rand(2, count, dtype=torch.float64) ** (1 / alpha)  # now of shape alpha
    share = [max(g, h) / (g + h) for g, h in gamma.T.tolist()]
    if hybridize is None:
        mixed = [s * images[i] + (1 - s) * images[j] for i, (j, s) in enumerate(zip(partner, share, strict=True))]
        goals = [s * targets[i] + (1 - s) * targets[j] for i, (j, s) in enumerate(zip(partner, share, strict=True))]
    else:
        mixed, goals = [hybridize(images[i][None], images[partner[i]][None])[0] for i in range(count)], list(targets)

    # Predictions: the first group exchanges its part i with part i of group i; parts are as equal as can be
    bounds = np.cumsum(
        [0] + [SIZE // (views + 1) + (part >= views + 1 - SIZE % (views + 1)) for part in range(views + 1)]
    )
    places = [[(group, row) for row in range(SIZE)] for group in range(views + 1)]
    for group in range(1, views + 1):
        for row in range(bounds[group], bounds[group + 1]):
            places[0][row], places[group][row] = places[group][row], places[0][row]
    logits = {}
    for batch_of_places in places:
        shown = torch.stack([mixed[group * SIZE + row] for group, row in batch_of_places])
        logits |= dict(zip(batch_of_places, logits_of(twin, shown), strict=True))
    first = twin[0](torch.stack([mixed[group * SIZE + row] for group, row in places[0]])).transpose(0, 1).flatten(1)

    # Losses
    supervised = -sum(goals[i] @ logits[0, i].log_softmax(0) for i in range(SIZE)) / SIZE
    unsupervised = sum(
        (goals[group * SIZE + i] - logits[group, i].softmax(0)).square().sum()
        for group in range(1, views + 1)
        for i in range(SIZE)
    ) / (SIZE * views * CLASSES)
    return SimpleNamespace(
        twin=twin, targets=targets, first=first, partner=partner, supervised=supervised, unsupervised=unsupervised
    )


def gradients(loss, network):
    return torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)


def assert_equal(losses, classifier, expected):
    for name in ("supervised", "unsupervised"):
        want = getattr(expected, name)
        torch.testing.assert_close(losses[name], want, rtol=1e-12, atol=0)
        for mine, theirs in zip(gradients(losses[name], classifier), gradients(want, expected.twin), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-13)


# --- losses ---------------------------------------------------------------------------------------------


@VIEWS
@pytest.mark.parametrize(("temperature", "alpha"), [(0.5, 0.75), (0.8, 2.0)])
def test_losses_and_their_gradients_equal_the_reference(classifier, views, temperature, alpha):
    batch = draw_batch(views)
    expected = by_hand(classifier, batch, temperature, alpha)
    losses, rates, handed, _, guessed = run(MixMatch(classifier, temperature=temperature, alpha=alpha), batch)
    assert losses.keys() == {"supervised", "unsupervised"} and rates == {} and handed == ()
    assert guessed.labels.tolist() == expected.targets[SIZE : 2 * SIZE].argmax(1).tolist() and guessed.weights is None
    assert_equal(losses, classifier, expected)


def test_defaults_are_the_papers(classifier):
    objective = MixMatch(classifier)
    assert (objective.temperature, objective.alpha) == (0.5, 0.75)


@VIEWS
def test_the_first_interleaved_batch_alone_moves_batch_norm(classifier, views):
    batch = draw_batch(views)
    first = by_hand(classifier, batch).first
    run(MixMatch(classifier), batch)
    norm = classifier[1]
    assert norm.num_batches_tracked == 1
    torch.testing.assert_close(norm.running_mean, 0.1 * first.mean(1))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * first.var(1))


def watch(classifier):
    """What goes through the classifier: images, and whether gradient is recorded."""
    seen = []
    classifier.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[0], torch.is_grad_enabled())))
    return seen


@VIEWS
def test_guesses_are_made_view_by_view_without_gradient(classifier, views):
    batch, seen = draw_batch(views), watch(classifier)
    run(MixMatch(classifier), batch)
    assert [recorded for _, recorded in seen] == [False] * views + [True] * (views + 1)
    assert all(torch.equal(view, images) for view, (images, _) in zip(batch.unlabelled, seen, strict=False))
    assert {len(images) for images, _ in seen} == {SIZE}


def test_labelled_and_unlabelled_images_are_mixed_with_each_other(classifier):
    """Black labelled and white unlabelled images: greys on both sides of the middle, in each batch."""
    size = 40
    batch = Batch(
        (torch.zeros(size, 3, 16, 16).double(),),
        torch.zeros(size, dtype=torch.int64),
        (torch.ones(size, 3, 16, 16).double(),) * 2,
    )
    seen = watch(classifier)
    run(MixMatch(classifier), batch)
    for images, _ in seen[2:]:
        grey = images[:, 0, 0, 0]
        assert ((grey > 0) & (grey < 0.5)).any() and ((grey > 0.5) & (grey < 1)).any()


def test_for_small_alpha_nothing_is_mixed(classifier):
    """The limit alpha → 0: every share is 1, and an image keeps its own target."""
    batch = draw_batch()
    expected = by_hand(classifier, batch, hybridize=lambda semantic, nonsemantic: semantic)
    losses = run(MixMatch(classifier, alpha=1e-6), batch).losses
    assert losses["supervised"].item() == pytest.approx(expected.supervised.item(), rel=1e-12)
    assert losses["unsupervised"].item() == pytest.approx(expected.unsupervised.item(), rel=1e-12)


def test_gradient_is_whole_in_mixed_precision(classifier):
    """The guess casts the same parameters without gradient before; a cached cast must not cut them off."""
    batch, objective = draw_batch(), MixMatch(classifier.float())
    batch = Batch((batch.labelled[0].float(),), batch.labels, tuple(view.float() for view in batch.unlabelled))
    want = gradients(run(objective, batch).losses["supervised"], classifier)
    with torch.autocast("cpu", torch.bfloat16):
        got = gradients(run(objective, batch).losses["supervised"], classifier)
    for index in (0, 4):  # both kernels
        assert (got[index] - want[index]).norm() < 0.1 * want[index].norm()


def test_same_seed_same_draws(classifier):
    objective, batch = MixMatch(classifier), draw_batch()
    first, second, other = (run(objective, batch, seed).losses["supervised"] for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)


# --- its parts ------------------------------------------------------------------------------------------


def test_interleaving_gives_the_first_group_a_part_of_each():
    """Five rows in parts of 1, 2 and 2: the longer ones come last, as in the authors' code."""
    assert interleaving(3, 5).view(3, 5).tolist() == [[0, 6, 7, 13, 14], [5, 1, 2, 8, 9], [10, 11, 12, 3, 4]]


@pytest.mark.parametrize("groups", [2, 3, 4])
@pytest.mark.parametrize("size", [1, 2, 5, 8, 64])
def test_interleaving_twice_is_none(groups, size):
    order = interleaving(groups, size)
    assert torch.equal(order[order], torch.arange(groups * size))
    counts = (order[:size] // size).bincount(minlength=groups)
    assert counts.max() - counts.min() <= 1


# --- hybrids in the place of MixUp ----------------------------------------------------------------------


def blend(semantic, nonsemantic):
    return 0.9 * semantic + 0.1 * nonsemantic.mean((2, 3), keepdim=True)


def forbidden(semantic, nonsemantic):
    raise AssertionError("hybridized")


@VIEWS
def test_a_replaced_batch_equals_the_reference(classifier, views):
    """Hybrids of the same pairs, with the unmixed targets of their semantic parents."""
    batch = draw_batch(views)
    expected, grads = by_hand(classifier, batch, hybridize=blend), []

    def hybridize(semantic, nonsemantic):
        assert torch.equal(semantic, torch.cat([*batch.labelled, *batch.unlabelled]))
        assert torch.equal(nonsemantic, semantic[expected.partner])
        grads.append(torch.is_grad_enabled())
        return blend(semantic, nonsemantic)

    objective = MixMatch(classifier, replacement=replacing(hybridize, 1.0, 2.0, 3.0))
    losses, rates, *_ = run(objective, batch)
    assert grads == [False] and rates == {"replaced": 1}
    assert_equal(losses, classifier, expected)


@pytest.mark.parametrize(("probability", "start", "stop"), [(0.0, 0.0, 9.0), (1.0, 2.6, 9.0), (1.0, 0.0, 2.5)])
def test_a_batch_that_is_not_replaced_is_mixed_as_ever(classifier, probability, start, stop):
    batch = draw_batch()
    expected = by_hand(classifier, batch)
    replacement = replacing(forbidden, probability, start, stop)
    losses, rates, *_ = run(MixMatch(classifier, replacement=replacement), batch)
    assert rates == {"replaced": 0}
    assert_equal(losses, classifier, expected)


def test_batches_are_replaced_with_their_probability_and_the_window_moves_no_draw(classifier):
    batch = draw_batch()
    inside, outside = (
        MixMatch(classifier, replacement=replacing(blend, 0.2, start, start + 1)) for start in (2.0, 5.0)
    )
    replaced = []
    for seed in range(60):
        replaced.append(run(inside, batch, seed).rates["replaced"].item())
        state = torch.get_rng_state()
        assert run(outside, batch, seed).rates["replaced"] == 0
        assert torch.equal(torch.get_rng_state(), state)
    assert 0.1 < sum(replaced) / 60 < 0.3  # a fifth


# --- beside hybrids -------------------------------------------------------------------------------------


def test_hybrids_in_their_window_equal_the_reference(classifier, hybridizer):
    """Of the labelled images and the first view; targets are labels and guesses."""
    batch, how = draw_batch(2), HybridUse(alpha=0.8, copies=2, start=2.0, stop=4.0, keep_consistent=False)
    expected = by_hand(classifier, batch)
    losses, rates, *_ = run(MixMatch(classifier, hybridizer=hybridizer, how=how), batch)

    torch.manual_seed(SEED)
    torch.randperm(3 * SIZE), beta(3 * SIZE, 0.75, dtype=torch.float64)
    partner = torch.cat([torch.randperm(2 * SIZE) for _ in range(2)])
    parents = torch.cat([batch.labelled[0], batch.unlabelled[0]])
    images = hybridizer.hybridize(semantic=parents.repeat(2, 1, 1, 1), nonsemantic=parents[partner])
    targets, kept = expected.targets[: 2 * SIZE], torch.ones(4 * SIZE, dtype=torch.bool)
    hybrids = hybrid_loss(logits_of(expected.twin, images), targets, batch.labels, partner, kept, how)

    assert losses.keys() == {"supervised", "unsupervised", "hybrids"} and rates == {"hybrids_kept": 1}
    assert_equal(losses, classifier, expected)
    torch.testing.assert_close(losses["hybrids"], hybrids, rtol=1e-10, atol=0)
    for mine, theirs in zip(gradients(losses["hybrids"], classifier), gradients(hybrids, expected.twin), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-13)
    assert classifier[1].num_batches_tracked == 2  # the first batch and the hybrids


def test_outside_the_window_hybrids_cost_nothing(classifier, hybridizer):
    batch, replacement = draw_batch(), replacing(forbidden, 0.2, 3.0, 4.0)
    plain, state = run(MixMatch(classifier, replacement=replacement), batch).losses, torch.get_rng_state()
    objective = MixMatch(classifier, hybridizer=hybridizer, how=HybridUse(start=3.0), replacement=replacement)
    losses, rates, *_ = run(objective, batch)
    assert losses == plain | {"hybrids": 0} and rates == {"replaced": 0, "hybrids_kept": 0}
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_but_the_classifier_learns(classifier, hybridizer):
    replacement = replacing(lambda a, b: hybridizer.hybridize(semantic=a, nonsemantic=b), 0.2, 0.0, 1.0)
    objective = MixMatch(classifier, hybridizer=hybridizer, replacement=replacement)
    assert objective.state_dict().keys() == {f"base.classifier.{name}" for name in classifier.state_dict()}
    torch.stack(list(run(objective, draw_batch()).losses.values())).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in classifier[4].parameters())
    assert all(parameter.grad is None for parameter in hybridizer.parameters())


# --- bad input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["temperature", "alpha"])
@pytest.mark.parametrize("value", [0.0, -0.5, float("nan")])
def test_temperature_and_alpha_are_above_zero(classifier, field, value):
    with pytest.raises(InputError, match=f"{field}: {value} is not above 0"):
        MixMatch(classifier, **{field: value})


def test_at_least_one_unlabelled_view(classifier):
    with pytest.raises(InputError, match="unlabelled: no view of the images; one or more"):
        MixMatch(classifier)(draw_batch(views=0), CLOCK)


def test_as_many_unlabelled_as_labelled_images(classifier):
    with pytest.raises(InputError, match="unlabelled_batch: 7 images beside 5 labelled ones"):
        MixMatch(classifier)(draw_batch(others=7), CLOCK)


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_a_probability_lies_between_zero_and_one(probability):
    with pytest.raises(InputError, match=rf"probability: {probability} is outside \[0, 1\]"):
        replacing(blend, probability, 0.0, 1.0)
