"""Alignment, thresholds, weights and fairness against plain numpy and figures worked out by hand."""

import math

import numpy as np
import pytest
import torch

from hybridgen.losses.pseudo_labels import (
    adaptive_thresholds,
    aligned,
    effective_classes,
    fairness,
    flexible_thresholds,
    truncated_gaussian,
)


def draw(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def wide(*values):
    return torch.tensor(values, dtype=torch.float64)


# --- distribution alignment -----------------------------------------------------------------------------------


def test_alignment_scales_by_the_ratio_of_both_distributions_and_normalises_every_image():
    probabilities, towards, average = draw(6, 4).softmax(1), wide(0.4, 0.3, 0.2, 0.1), wide(0.1, 0.1, 0.5, 0.3)
    expected = np.zeros((6, 4))
    for row, image in enumerate(probabilities.numpy()):
        scaled = [
            p * (t + 1e-6) / (a + 1e-6) for p, t, a in zip(image, towards.tolist(), average.tolist(), strict=True)
        ]
        expected[row] = np.array(scaled) / sum(scaled)
    found = aligned(probabilities, towards, average)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    assert (found[:, 0] > probabilities[:, 0]).all() and (found[:, 2] < probabilities[:, 2]).all()


def test_what_is_distributed_as_it_should_be_stays_and_what_is_never_predicted_does_no_harm():
    probabilities, same = draw(5, 3).softmax(1), wide(0.2, 0.5, 0.3)
    torch.testing.assert_close(aligned(probabilities, same, same), probabilities)
    absent = aligned(wide(1.0, 0.0, 0.0).repeat(2, 1), same, wide(1.0, 0.0, 0.0))
    torch.testing.assert_close(absent, wide(1.0, 0.0, 0.0).repeat(2, 1))


def test_alignment_has_no_gradient():
    assert not aligned(draw(2, 3).softmax(1).requires_grad_(), draw(3), draw(3)).requires_grad


# --- thresholds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("learnt", "unused", "parts"),
    [
        ((10, 5, 0), 4, (1, 1 / 3, 0)),  # β = 1, 1/2, 0
        ((10, 5, 0), 10, (1, 1 / 3, 0)),
        ((10, 5, 0), 20, (1 / 3, 1 / 7, 0)),  # warm-up: β = 1/2, 1/4, 0
        ((0, 0, 0), 15, (0, 0, 0)),
        ((3, 3, 3), 0, (1, 1, 1)),
    ],
)
def test_a_class_that_few_images_have_learnt_has_a_low_threshold(learnt, unused, parts):
    found = flexible_thresholds(wide(*learnt), wide(unused)[0], 0.9)
    torch.testing.assert_close(found, 0.9 * wide(*parts))


def test_thresholds_follow_the_probability_of_classes_up_to_the_mean_confidence():
    found = adaptive_thresholds(wide(0.8)[0], wide(0.2, 0.5, 0.3))
    torch.testing.assert_close(found, wide(0.32, 0.8, 0.48))


# --- fairness -------------------------------------------------------------------------------------------------


def fairness_by_hand(predicted, counts, expectation, histogram):
    """Over the classes that are shown."""
    target = [e / h for e, h in zip(expectation, histogram, strict=True)]
    share = [p / n if n else 0.0 for p, n in zip(predicted, counts, strict=True)]
    terms = [t / sum(target) * math.log(s / sum(share)) for t, s, n in zip(target, share, counts, strict=True) if n]
    return sum(terms)


PREDICTED, EXPECTATION, HISTOGRAM = (0.9, 1.4, 0.2, 2.5), (0.3, 0.2, 0.1, 0.4), (0.35, 0.15, 0.05, 0.45)


@pytest.mark.parametrize("counts", [(1, 1, 1, 2), (1, 0, 0, 4), (0, 5, 0, 0)])
def test_fairness_is_the_negative_cross_entropy_of_normalised_ratios(counts):
    predicted = wide(*PREDICTED).requires_grad_()
    loss = fairness(predicted, wide(*counts), wide(*EXPECTATION), wide(*HISTOGRAM))
    assert loss.item() == pytest.approx(
        fairness_by_hand(PREDICTED, counts, EXPECTATION, HISTOGRAM), rel=1e-12, abs=1e-15
    )
    loss.backward()
    for row in range(4):
        more, less = (
            fairness_by_hand([p + sign * (i == row) for i, p in enumerate(PREDICTED)], counts, EXPECTATION, HISTOGRAM)
            for sign in (1e-6, -1e-6)
        )
        assert predicted.grad[row].item() == pytest.approx((more - less) / 2e-6, abs=1e-8)


def test_fairness_does_not_depend_on_how_many_images_there_are():
    counts = wide(1, 1, 1, 2)
    once = fairness(wide(*PREDICTED), counts, wide(*EXPECTATION), wide(*HISTOGRAM))
    torch.testing.assert_close(fairness(wide(*PREDICTED) / 5, counts / 5, wide(*EXPECTATION), wide(*HISTOGRAM)), once)


def test_fairness_teaches_as_the_authors_form_which_keeps_absent_classes():
    """It adds the logarithm of 10⁻¹² for them, which has no gradient."""
    predicted, counts = wide(*PREDICTED).requires_grad_(), wide(2, 0, 1, 2)
    target, share = wide(*EXPECTATION) / wide(*HISTOGRAM), predicted * torch.where(counts > 0, 1 / counts, 0)
    theirs = (target / target.sum() * (share / share.sum() + 1e-12).log()).sum()
    ours = fairness(predicted, counts, wide(*EXPECTATION), wide(*HISTOGRAM))
    torch.testing.assert_close(*(torch.autograd.grad(loss, predicted)[0] for loss in (ours, theirs)))
    missing = (target / target.sum())[1] * math.log(1e-12)
    torch.testing.assert_close(ours + missing, theirs)


def test_without_counted_images_fairness_is_zero_and_teaches_nothing():
    predicted = torch.zeros(4, requires_grad=True)
    loss = fairness(predicted, torch.zeros(4), torch.tensor(EXPECTATION), torch.tensor(HISTOGRAM))
    loss.backward()
    assert loss.item() == 0 and torch.equal(predicted.grad, torch.zeros(4))


def test_a_class_that_was_not_predicted_for_long_does_no_harm():
    """Its part of the histogram has become too small for an inverse."""
    histogram = torch.tensor([1.0, 3e-44, 0.0, 0.5])
    loss = fairness(torch.tensor(PREDICTED), torch.tensor([1.0, 1.0, 1.0, 2.0]), torch.tensor(EXPECTATION), histogram)
    ratios = [(0.3, 0.9), (0.0, 1.4), (0.0, 0.2), (0.8, 1.25)]  # of both pairs
    targets, shares = (sum(column) for column in zip(*ratios, strict=True))
    expected = sum(t / targets * math.log(s / shares) for t, s in ratios)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


# --- weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigmas", [1.0, 2.0])
def test_weights_are_a_gaussian_below_the_mean_confidence_and_one_above(sigmas):
    found = truncated_gaussian(wide(0.4, 0.6, 0.7, 0.95), wide(0.7)[0], wide(0.04)[0], sigmas=sigmas)
    deviation = 0.2 / sigmas
    expected = [math.exp(-(0.3**2) / (2 * deviation**2)), math.exp(-(0.1**2) / (2 * deviation**2)), 1, 1]
    torch.testing.assert_close(found, wide(*expected))


def test_effective_classes():
    labels = torch.tensor([0, 1, 1, 3, 3])
    of = lambda *weights: effective_classes(labels, wide(*weights), 5).item()
    assert of(0, 0, 0, 0, 0) == 0
    assert of(0, 0, 0, 0.2, 0.9) == pytest.approx(1)
    assert of(1, 0.5, 0.5, 1, 0) == pytest.approx(3)
    p = np.array([0.2, 0.4, 0.4])
    assert of(1, 1, 1, 1, 1) == pytest.approx(math.exp(-(p * np.log(p)).sum()))
