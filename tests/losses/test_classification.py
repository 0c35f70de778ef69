"""Cross-entropies on labels and pseudo-labels against plain numpy."""

import math

import numpy as np
import pytest
import torch

from hybridgen.losses.classification import (
    confident,
    cross_entropy,
    pseudo_label,
    sharpen,
    soft_cross_entropy,
    weighted_cross_entropy,
)


def log_probabilities(logits):
    values = logits.detach().numpy()
    return values - np.log(np.exp(values).sum(axis=1, keepdims=True))


def draw(batch, classes, seed=0):
    return torch.randn(batch, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("over", [None, 12])
def test_cross_entropy_is_a_sum_over_labelled_images_divided_by_their_number_or_another(over):
    logits, labels = draw(5, 3).requires_grad_(), torch.tensor([0, 2, 1, 1, 0])
    loss = cross_entropy(logits, labels, over=over)
    loss.backward()
    log_p, rows = log_probabilities(logits), np.arange(5)
    assert loss.item() == pytest.approx(-log_p[rows, labels].sum() / (over or 5), rel=1e-12)
    slope = np.exp(log_p)
    slope[rows, labels] -= 1
    np.testing.assert_allclose(logits.grad.numpy(), slope / (over or 5), rtol=1e-10)


def test_confidence_reaches_the_threshold_inclusively():
    logits = torch.tensor([[0.0, 0.0, -1e4], [0.0, 0.001, -1e4], [0.0, -1e4, math.log(3)]], dtype=torch.float64)
    label, mask = confident(logits, 0.5)
    assert mask.tolist() == [True, True, True]  # the first has exactly 0.5
    assert label.tolist()[1:] == [1, 2]
    assert confident(logits, 0.6)[1].tolist() == [False, False, True]
    assert confident(logits, 0.76)[1].tolist() == [False, False, False]
    assert confident(logits, 0.0)[1].all()


@pytest.fixture
def views():
    """Weak and strong logits; some of the weak ones reach 0.6."""
    weak, strong = 2 * draw(9, 4, seed=1), draw(9, 4, seed=2)
    assert 0 < confident(weak, 0.6)[1].sum() < 9
    return weak.requires_grad_(), strong.requires_grad_()


def test_pseudo_labels_are_hard_and_averaged_over_all_images(views):
    weak, strong = views
    p, log_q = np.exp(log_probabilities(weak)), log_probabilities(strong)
    total = sum(-log_q[i, p[i].argmax()] for i in range(9) if p[i].max() >= 0.6)
    assert pseudo_label(weak, strong, threshold=0.6).item() == pytest.approx(total / 9, rel=1e-12)


def test_pseudo_labels_teach_the_strong_view_of_confident_images_alone(views):
    weak, strong = views
    pseudo_label(weak, strong, threshold=0.6).backward()
    label, mask = confident(weak, 0.6)
    slope = np.exp(log_probabilities(strong))
    slope[np.arange(9), label] -= 1
    np.testing.assert_allclose(strong.grad.numpy(), slope * mask.numpy()[:, None] / 9, rtol=1e-10)
    assert weak.grad is None


def test_default_threshold_is_fixmatchs():
    """0.95: half-way between two images of confidence 0.94 and 0.96."""
    weak = torch.tensor([[math.log(p / (1 - p)), 0.0] for p in (0.94, 0.96)], dtype=torch.float64)
    loss = pseudo_label(weak, torch.zeros(2, 2, dtype=torch.float64))
    assert loss.item() == pytest.approx(math.log(2) / 2)


def test_without_confident_images_the_loss_is_zero_and_teaches_nothing(views):
    weak, strong = views
    loss = pseudo_label(weak, strong, threshold=1.0)
    loss.backward()
    assert loss.item() == 0
    assert not strong.grad.any()


def test_soft_cross_entropy_teaches_the_logits_and_never_the_target():
    logits, target = draw(5, 3).requires_grad_(), draw(5, 3, seed=1).softmax(1).requires_grad_()
    loss = soft_cross_entropy(logits, target)
    loss.backward()
    log_p, q = log_probabilities(logits), target.detach().numpy()
    assert loss.item() == pytest.approx(-(q * log_p).sum() / 5, rel=1e-12)
    np.testing.assert_allclose(logits.grad.numpy(), (np.exp(log_p) - q) / 5, rtol=1e-10, atol=1e-15)
    assert target.grad is None


def test_soft_cross_entropy_with_certain_targets_is_cross_entropy():
    logits, labels = draw(5, 3), torch.tensor([0, 2, 1, 1, 0])
    certain = torch.nn.functional.one_hot(labels, 3).double()
    assert soft_cross_entropy(logits, certain).item() == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 3.0])
def test_sharpening_is_a_power_made_to_sum_to_one(temperature):
    probabilities = draw(6, 4).softmax(1)
    powers = probabilities.numpy() ** (1 / temperature)
    sharpened = sharpen(probabilities, temperature)
    np.testing.assert_allclose(sharpened.numpy(), powers / powers.sum(axis=1, keepdims=True), rtol=1e-12)
    entropy = lambda p: -(p * p.log()).sum(1)
    assert torch.equal(entropy(sharpened) < entropy(probabilities) - 1e-9, torch.full((6,), temperature < 1))


def test_limits_of_sharpening():
    """The most probable class for T → 0, where the powers themselves underflow; all classes alike for T → ∞."""
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.4, 0.4, 0.2], [0.0, 1.0, 0.0]])
    hard = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(sharpen(probabilities, 1e-3), hard)
    torch.testing.assert_close(sharpen(probabilities, 1e6)[:3], torch.full((3, 3), 1 / 3))
    assert torch.equal(sharpen(probabilities, 1e6)[3], hard[3])  # what is impossible stays so


def test_sharpening_has_no_gradient():
    assert not sharpen(draw(2, 3).softmax(1).requires_grad_(), 0.5).requires_grad


def test_weights_multiply_what_each_image_loses_of_an_average_over_all(views):
    _, strong = views
    labels, weights = torch.arange(9) % 4, torch.arange(9, dtype=torch.float64) / 10
    loss = weighted_cross_entropy(strong, labels, weights)
    loss.backward()
    log_q = log_probabilities(strong)
    terms = [-float(weights[i]) * log_q[i, labels[i]] for i in range(9)]
    assert loss.item() == pytest.approx(sum(terms) / 9, rel=1e-12)
    slope = np.exp(log_q)
    slope[np.arange(9), labels] -= 1
    np.testing.assert_allclose(strong.grad.numpy(), slope * weights.numpy()[:, None] / 9, rtol=1e-10, atol=1e-15)


def test_what_has_no_weight_teaches_nothing_even_where_all_would_be_lost():
    logits = torch.tensor([[0.0, -math.inf], [1.0, 0.0]], requires_grad=True)
    loss = weighted_cross_entropy(logits, torch.tensor([1, 0]), torch.tensor([0.0, 1.0]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1)) / 2)
    assert not logits.grad[0].any() and logits.grad[1].all()
