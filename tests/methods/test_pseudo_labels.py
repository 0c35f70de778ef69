"""Pseudo-labels over several batches against plain references in float64 that keep their figures in lists."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hybridgen.methods.pseudo_labels import (
    CurriculumThresholds,
    DistributionAlignment,
    FixedThreshold,
    MovingMean,
    PseudoLabelling,
    RelativeThreshold,
    SelfAdaptiveThresholds,
    TruncatedGaussian,
    WindowMean,
    distribution_alignment,
    uniform,
)
from hybridgen.types import InputError

CLASSES, BATCH, LABELLED, IMAGES, DRAWN, STEPS = 4, 9, 5, 31, 27, 6
LABELS = torch.tensor([0.4, 0.1, 0.2, 0.3])
DECAY, WINDOW = 0.7, 3


def steps():
    """Batches whose probabilities are ever surer, and not alike for all classes."""
    g = torch.Generator().manual_seed(0)
    draw = lambda rows, sharp: (
        sharp * torch.randn(rows, CLASSES, dtype=torch.float64, generator=g) + torch.arange(CLASSES) / 3
    ).softmax(1)
    return [
        SimpleNamespace(
            probabilities=draw(BATCH, 1 + step),
            labelled=draw(LABELLED, 2),
            places=2 + torch.randperm(DRAWN, generator=g)[:BATCH],  # those after them are never drawn
            strong=torch.randn(BATCH, CLASSES, dtype=torch.float64, generator=g),
        )
        for step in range(STEPS)
    ]


def compare(found, expected):
    np.testing.assert_allclose(found.detach().numpy(), np.array(expected), rtol=1e-10)


def alone(weighting) -> PseudoLabelling:
    return PseudoLabelling(weighting, None, label_aligned=True).double()


# --- running figures --------------------------------------------------------------------------------------------


def test_a_window_holds_the_last_batches_and_at_first_what_it_began_with():
    mean = WindowMean(torch.tensor([0.5, 0.5]), 3).double()
    rows = [[0.5, 0.5]] * 3
    for row in ([0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4], [1.0, 0.0]):
        rows = [*rows[1:], row]
        compare(mean(torch.tensor(row, dtype=torch.float64)), np.mean(rows, axis=0))


def test_a_moving_mean_keeps_its_decay_of_what_was_before():
    mean, value = MovingMean(torch.tensor(0.25), 0.9).double(), 0.25
    for figure in (1.0, 0.0, 0.3):
        value = 0.9 * value + 0.1 * figure
        found = mean(torch.tensor(figure, dtype=torch.float64))
        assert found.item() == pytest.approx(value, rel=1e-12)
    mean(torch.tensor(0.0, dtype=torch.float64))
    assert found.item() == pytest.approx(value, rel=1e-12)  # what was told does not change afterwards


# --- distribution alignment -------------------------------------------------------------------------------------


def aligned_by_hand(towards):
    """Of every step, by lists of all batches' means."""
    same = np.full(CLASSES, 1 / CLASSES)
    window, moving, predicted = [same] * WINDOW, same, same
    results = []
    for step in steps():
        here = step.probabilities.numpy().mean(axis=0)
        window, moving = [*window[1:], here], DECAY * moving + (1 - DECAY) * here
        predicted = DECAY * predicted + (1 - DECAY) * step.labelled.numpy().mean(axis=0)
        prior = {"labels": LABELS.double().numpy(), "predictions": predicted, "uniform": same}[towards]
        average = moving if towards == "uniform" else np.mean(window, axis=0)
        scaled = step.probabilities.numpy() * (prior + 1e-6) / (average + 1e-6)
        results.append(scaled / scaled.sum(axis=1, keepdims=True))
    return results


@pytest.mark.parametrize("towards", ["labels", "predictions", "uniform"])
def test_alignment_over_time(towards):
    alignment = distribution_alignment(towards, LABELS.double(), window=WINDOW, decay=DECAY).double()
    for step, expected in zip(steps(), aligned_by_hand(towards), strict=True):
        compare(alignment(step.probabilities, step.labelled), expected)


def test_alignment_makes_predictions_have_the_distribution_on_average():
    """A network that ever predicts one class is brought to predict as many of each."""
    alignment = distribution_alignment("uniform", LABELS, window=WINDOW, decay=0.5)
    biased = (
        torch.randn(200, CLASSES, generator=torch.Generator().manual_seed(0)) + torch.tensor([2.0, 0, 0, 0])
    ).softmax(1)
    for _ in range(30):
        found = alignment(biased, biased[:2])
    assert (biased.argmax(1) == 0).float().mean() > 0.8
    assert (found.argmax(1) == 0).float().mean() < 0.5


def test_there_is_no_alignment_if_none_is_asked_for():
    assert distribution_alignment("none", LABELS, window=WINDOW, decay=DECAY) is None


# --- thresholds and weights -------------------------------------------------------------------------------------


def test_a_fixed_threshold_is_reached_by_what_equals_it():
    probabilities = torch.tensor([[0.75, 0.25], [0.25, 0.75], [0.7, 0.3]])
    found = FixedThreshold(threshold=0.75)(probabilities, probabilities, None)
    assert found.weights.tolist() == [1, 1, 0] and found.threshold == 0.75


def test_adamatchs_threshold_is_relative_to_labelled_confidence():
    labelling = alone(RelativeThreshold(threshold=0.9))
    counts = set()
    for step in steps():
        threshold = 0.9 * step.labelled.numpy().max(axis=1).mean()
        found = labelling(step.probabilities, step.labelled, step.places).weighted
        compare(found.threshold, threshold)
        compare(found.weights, step.probabilities.numpy().max(axis=1) >= threshold)
        counts |= set(found.weights.tolist())
    assert counts == {0, 1}


def test_flexmatchs_thresholds_follow_the_record_of_every_image():
    tau = 0.8
    labelling = alone(CurriculumThresholds(CLASSES, threshold=tau, images=IMAGES, unlabelled=DRAWN))
    record, warm, counted = {}, [], []
    for step in steps() * 3:
        sigma = [sum(label == c for label in record.values()) for c in range(CLASSES)]
        most = max(max(sigma), DRAWN - sum(sigma))
        warm.append(DRAWN - sum(sigma) > max(sigma))
        thresholds = [tau * (s / most) / (2 - s / most) for s in sigma]
        expected = []
        for place, row in zip(step.places.tolist(), step.probabilities.tolist(), strict=True):
            label = int(np.argmax(row))
            expected.append(row[label] >= thresholds[label])
            if row[label] >= tau:
                record[place] = label
        found = labelling(step.probabilities, step.labelled, step.places).weighted
        compare(found.weights, expected)
        compare(found.threshold, np.mean(thresholds))
        counted += expected
    assert warm[0] and not warm[-1] and len(set(counted)) == 2
    kept = {place: label for place, label in enumerate(labelling.weighting.record.tolist()) if label >= 0}
    assert kept == record


def test_flexmatch_needs_to_know_its_images():
    labelling = alone(CurriculumThresholds(CLASSES, threshold=0.8, images=IMAGES, unlabelled=DRAWN))
    with pytest.raises(InputError, match=r"^weighting: 'flexmatch' needs batches that say which images they hold"):
        labelling(steps()[0].probabilities, steps()[0].labelled, None)


def test_freematchs_thresholds_and_fairness_follow_all_batches():
    labelling = alone(SelfAdaptiveThresholds(CLASSES, decay=DECAY))
    tau, expectation, histogram = 1 / CLASSES, np.full(CLASSES, 1 / CLASSES), np.full(CLASSES, 1 / CLASSES)
    counted = []
    for step in steps():
        p = step.probabilities.numpy()
        tau = DECAY * tau + (1 - DECAY) * p.max(axis=1).mean()
        expectation = DECAY * expectation + (1 - DECAY) * p.mean(axis=0)
        histogram = DECAY * histogram + (1 - DECAY) * np.bincount(p.argmax(axis=1), minlength=CLASSES) / BATCH
        thresholds = expectation / expectation.max() * tau
        mask = p.max(axis=1) >= thresholds[p.argmax(axis=1)]
        found = labelling(step.probabilities, step.labelled, step.places).weighted
        compare(found.weights, mask)
        compare(found.threshold, thresholds.mean())

        q = step.strong.softmax(1).numpy()
        shown = np.bincount(q[mask].argmax(axis=1), minlength=CLASSES)
        there = shown > 0
        target, share = expectation / histogram, np.zeros(CLASSES)
        share[there] = q[mask].mean(axis=0)[there] / (shown / mask.sum())[there]
        expected = (target / target.sum() * np.log(np.where(there, share / share.sum(), 1))).sum()
        compare(labelling.weighting.fairness(step.strong, found.weights), expected)
        counted += mask.tolist()
    assert len(set(counted)) == 2


def test_fairness_is_of_counted_images_and_has_gradient_to_them_alone():
    weighting, step = SelfAdaptiveThresholds(CLASSES, decay=DECAY).double(), steps()[0]
    strong = step.strong.clone().requires_grad_()
    weights = torch.tensor([1.0, 0, 1, 1, 0, 0, 1, 0, 1], dtype=torch.float64)
    weighting.fairness(strong, weights).backward()
    assert torch.equal(strong.grad.abs().sum(dim=1) > 0, weights > 0)
    compare(weighting.fairness(strong, weights), weighting.fairness(strong[weights > 0], torch.ones(5).double()).item())


@pytest.mark.parametrize("sigmas", [1.0, 2.0])
def test_softmatchs_weights_follow_mean_and_variance_of_all_batches(sigmas):
    labelling, mean, variance = alone(TruncatedGaussian(CLASSES, decay=DECAY, sigmas=sigmas)), 1 / CLASSES, 1.0
    for step in reversed(steps()):  # ever less sure
        confidence = step.probabilities.numpy().max(axis=1)
        mean = DECAY * mean + (1 - DECAY) * confidence.mean()
        variance = DECAY * variance + (1 - DECAY) * confidence.var(ddof=1)
        below = np.minimum(confidence - mean, 0)
        found = labelling(step.probabilities, step.labelled, step.places).weighted
        compare(found.weights, np.exp(-(below**2) / (2 * variance / sigmas**2)))
        compare(found.threshold, mean)
    assert 0 < found.weights.min() < 1 and found.weights.max() == 1


# --- together -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label_aligned", [True, False])
def test_weights_are_of_aligned_probabilities_and_labels_too_unless_they_are_softmatchs(label_aligned):
    alignment = distribution_alignment("uniform", LABELS, window=WINDOW, decay=DECAY)
    labelling = PseudoLabelling(FixedThreshold(threshold=0.6), alignment, label_aligned=label_aligned).double()
    differ = 0
    for step, expected in zip(steps(), aligned_by_hand("uniform"), strict=True):
        found = labelling(step.probabilities, step.labelled, step.places)
        compare(found.weighted.weights, expected.max(axis=1) >= 0.6)
        targets = expected if label_aligned else step.probabilities.numpy()
        compare(found.targets, targets)
        assert found.labels.tolist() == targets.argmax(axis=1).tolist()
        differ += (expected.argmax(axis=1) != step.probabilities.numpy().argmax(axis=1)).sum()
    assert differ > 0


WEIGHTINGS = {
    "fixmatch": lambda: FixedThreshold(threshold=0.8),
    "adamatch": lambda: RelativeThreshold(threshold=0.8),
    "flexmatch": lambda: CurriculumThresholds(CLASSES, threshold=0.8, images=IMAGES, unlabelled=DRAWN),
    "freematch": lambda: SelfAdaptiveThresholds(CLASSES, decay=DECAY),
    "softmatch": lambda: TruncatedGaussian(CLASSES, decay=DECAY, sigmas=1.0),
}


def labelling_of(name: str, towards: str) -> PseudoLabelling:
    alignment = distribution_alignment(towards, LABELS, window=WINDOW, decay=DECAY)
    return PseudoLabelling(WEIGHTINGS[name](), alignment, label_aligned=name != "softmatch").double()


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("towards", ["none", "labels", "predictions", "uniform"])
def test_what_is_saved_goes_on_as_if_nothing_had_happened_and_never_with_gradient(name, towards):
    first, resumed = labelling_of(name, towards), labelling_of(name, towards)
    seen = steps()
    for step in seen[:3]:
        first(step.probabilities, step.labelled, step.places)
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in seen[3:]:
        given = (step.probabilities.clone().requires_grad_(), step.labelled.clone().requires_grad_(), step.places)
        found = [labelling(*given) for labelling in (first, resumed)]
        for ours, theirs in zip(*([each.targets, each.labels, *each.weighted] for each in found), strict=True):
            assert torch.equal(ours, theirs) and not ours.requires_grad


def test_fixmatchs_labelling_has_no_state():
    assert not PseudoLabelling(FixedThreshold(threshold=0.9), None, label_aligned=True).state_dict()


def test_two_running_figures_do_not_share_their_memory():
    alignment = DistributionAlignment(uniform(CLASSES), MovingMean(uniform(CLASSES), DECAY))
    for made in (alignment, distribution_alignment("uniform", LABELS, window=WINDOW, decay=DECAY)):
        made(torch.eye(CLASSES)[:1], torch.eye(CLASSES)[:1])
        torch.testing.assert_close(made.towards, torch.full((CLASSES,), 1 / CLASSES))
    made = distribution_alignment("predictions", LABELS, window=WINDOW, decay=DECAY)
    made(torch.eye(CLASSES)[:1], torch.eye(CLASSES)[1:2])
    assert made.towards.value[1] > made.towards.value[0] and made.average.recent[-1].tolist() == [1, 0, 0, 0]
