"""Consistency of predictions against plain numpy."""

import numpy as np
import pytest
import torch
from scipy.special import kl_div

from hybridgen.losses.consistency import (
    historical_consistency,
    jensen_shannon,
    logit_distance,
    mean_squared,
    mean_teacher,
    teacher_consistency,
)


@pytest.fixture
def logits():
    g = torch.Generator().manual_seed(0)
    return tuple(torch.randn(5, 4, dtype=torch.float64, generator=g).requires_grad_() for _ in range(2))


def probabilities(logits):
    exponentials = np.exp(logits.detach().numpy())
    return exponentials / exponentials.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("reduction", "count"), [("mean", 5 * 4), ("sum", 5)])
def test_squared_error_of_probabilities_over_batch_and_classes(logits, reduction, count):
    """The mean is Tarvainen and Valpola's: the sum over all, divided by classes times batch."""
    student, teacher = logits
    expected = ((probabilities(student) - probabilities(teacher)) ** 2).sum() / count
    assert teacher_consistency(student, teacher, reduction=reduction).item() == pytest.approx(expected, rel=1e-12)
    assert mean_squared(student, teacher, reduction=reduction).item() == pytest.approx(
        ((student - teacher).detach().numpy() ** 2).sum() / count, rel=1e-12
    )


def test_default_is_the_mean_over_classes(logits):
    assert torch.equal(teacher_consistency(*logits), teacher_consistency(*logits, reduction="mean"))
    assert torch.equal(mean_squared(*logits), mean_squared(*logits, reduction="mean"))


def test_consistency_teaches_the_student_and_never_the_teacher(logits):
    student, teacher = logits
    teacher_consistency(student, teacher).backward()
    p, q = probabilities(student), probabilities(teacher)
    slope = 2 * (p - q) / p.size
    expected = p * (slope - (slope * p).sum(axis=1, keepdims=True))  # through the softmax
    np.testing.assert_allclose(student.grad.numpy(), expected, rtol=1e-10, atol=1e-15)
    assert teacher.grad is None


def test_squared_error_teaches_the_prediction_and_never_the_target(logits):
    prediction, target = logits
    mean_squared(prediction, target, reduction="sum").backward()
    np.testing.assert_allclose(prediction.grad.numpy(), 2 * (prediction - target).detach().numpy() / 5, rtol=1e-12)
    assert target.grad is None


def test_logit_distance_teaches_both_heads(logits):
    """Σ (z1 - z2)² / (C·B), on the logits themselves."""
    first, second = logits
    loss = logit_distance(first, second)
    loss.backward()
    difference = (first - second).detach().numpy()
    assert loss.item() == pytest.approx((difference**2).mean(), rel=1e-12)
    np.testing.assert_allclose(first.grad.numpy(), 2 * difference / difference.size, rtol=1e-12)
    np.testing.assert_allclose(second.grad.numpy(), -2 * difference / difference.size, rtol=1e-12)


@pytest.mark.parametrize(("reduction", "count"), [("mean", 5 * 4), ("sum", 5)])
def test_mean_teachers_three_losses(logits, reduction, count):
    """Cross-entropy of the first images over the whole mini-batch; head 2 to the teacher's head 1; head 1 to head 2."""
    predictions, consistency = logits
    teacher = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    labels = torch.tensor([3, 0])
    losses = mean_teacher(predictions, consistency, teacher, labels, reduction=reduction)
    p, q, target = (probabilities(values) for values in (predictions, consistency, teacher))
    expected = {
        "supervised": -np.log(p[[0, 1], labels]).sum() / 5,
        "consistency": ((q - target) ** 2).sum() / count,
        "logit_distance": ((predictions - consistency).detach().numpy() ** 2).sum() / (5 * 4),
    }
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-12)

    def reaches(name):
        found = torch.autograd.grad(losses[name], (predictions, consistency, teacher), allow_unused=True)
        return [gradient is not None and bool(gradient.any()) for gradient in found]

    assert {name: reaches(name) for name in losses if name != "logit_distance"} == {
        "supervised": [True, False, False],
        "consistency": [False, True, False],
    }
    assert reaches("logit_distance") == [True, True, False]


@pytest.mark.parametrize(("divergence", "reference"), [("kl", kl_div), ("cross-entropy", lambda p, q: -p * np.log(q))])
def test_consistency_with_the_past_is_a_mean_over_the_batch_to_which_what_was_not_finite_adds_nothing(
    logits, divergence, reference
):
    """KL(then ‖ prediction) or their cross-entropy, by scipy and numpy; gradient to the prediction alone."""
    prediction, then = logits
    each = reference(probabilities(then), probabilities(prediction)).sum(axis=1)
    whole = historical_consistency(prediction, then, divergence=divergence)
    assert whole.item() == pytest.approx(each.mean(), rel=1e-12)
    broken = then.detach().clone()
    broken[1, 2], broken[3, 0] = torch.nan, torch.inf
    loss = historical_consistency(prediction, broken, divergence=divergence)
    assert loss.item() == pytest.approx(each[[0, 2, 4]].sum() / 5, rel=1e-12)
    (whole + loss).backward()
    assert prediction.grad.isfinite().all() and not prediction.grad.eq(0).all(dim=1).any() and then.grad is None


def test_jensen_shannon_is_the_mean_divergence_from_the_mixture():
    """AugMix's code, in numpy: probabilities of three predictions, their mean clamped, a third of three KLs."""
    g = torch.Generator().manual_seed(0)
    views = [4 * torch.randn(5, 4, dtype=torch.float64, generator=g) for _ in range(3)]
    p = [probabilities(view) for view in views]
    mixture = np.log(np.clip(sum(p) / 3, 1e-7, 1))
    expected = sum((each * (np.log(each) - mixture)).sum() / 5 for each in p) / 3
    assert jensen_shannon(*views).item() == pytest.approx(expected, rel=1e-12)
    assert 0 < expected < np.log(3)
    for order in ((1, 0, 2), (2, 1, 0)):
        assert jensen_shannon(*(views[i] for i in order)).item() == pytest.approx(expected, rel=1e-12)
    assert jensen_shannon(views[0], views[0], views[0] + 3).item() == pytest.approx(0, abs=1e-12)


def test_jensen_shannon_teaches_all_three():
    g = torch.Generator().manual_seed(0)
    views = [torch.randn(3, 4, dtype=torch.float64, generator=g).requires_grad_() for _ in range(3)]
    assert torch.autograd.gradcheck(jensen_shannon, views)
    jensen_shannon(*views).backward()
    assert all(view.grad.abs().max() > 1e-3 for view in views)


def test_jensen_shannon_of_certain_predictions_is_finite():
    """Where the mixture is clamped, and a probability is 0 in float32."""
    views = [(300 * torch.eye(4)[[i, 0]]).requires_grad_() for i in range(3)]
    loss = jensen_shannon(*views)
    assert loss.item() == pytest.approx(np.log(3) / 2, rel=1e-4)
    loss.backward()
    assert all(view.grad.isfinite().all() for view in views)
