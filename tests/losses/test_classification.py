"""Cross-entropies on labels and pseudo-labels against plain numpy."""

import math

import numpy as np
import pytest
import torch

from hybridgen.losses.classification import confident, cross_entropy, pseudo_label


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
