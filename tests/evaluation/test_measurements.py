"""Measurements on cases worked by hand, and against scikit-learn, scipy and torchmetrics."""

import math
from math import inf, log, nan

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from sklearn.metrics import brier_score_loss, log_loss, matthews_corrcoef, top_k_accuracy_score
from torchmetrics.functional import classification as torchmetrics

from hybridgen.evaluation.calibration import TEMPERATURES, best_temperature, calibrated_nll, calibration_error
from hybridgen.evaluation.classification import FLOOR, brier, confusion_counts, log_probabilities, nll, top_accuracy
from hybridgen.evaluation.diversity import disagreement, error_correlation, ratio_error
from hybridgen.evaluation.ensembles import judged_by
from hybridgen.evaluation.scoring import ByClass
from hybridgen.types import InputError


def of(*probabilities: list[float]) -> torch.Tensor:
    """Logits that have these probabilities."""
    return torch.tensor(probabilities, dtype=torch.float64).log()


def some(count: int = 200, classes: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions that are right more often than not, and too sure."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    logits = 3 * torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += 4
    return logits, labels


SURE = of([0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.05, 0.05, 0.9])
LABELS = torch.tensor([0, 1, 2])


# --- classification ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "classes"), [(30, 2), (500, 10), (150, 100)])
def test_figures_are_torchmetrics(count, classes):
    """Of 150 images some of the 100 classes have none; no confidence lies on the edge of a bin."""
    logits, labels = some(count, classes)
    counts, theirs = confusion_counts(logits, labels), (logits.double(), labels, classes)
    for best in (1, min(5, classes)):
        accuracy = torchmetrics.multiclass_accuracy(*theirs, average="micro", top_k=best)
        assert top_accuracy(logits, labels, best) == pytest.approx(accuracy.item())
    by_class = torchmetrics.multiclass_accuracy(*theirs, average=None)
    assert [one.value if one else 0 for one in ByClass(counts).accuracies] == pytest.approx(by_class.tolist())
    assert torch.equal(counts, torchmetrics.multiclass_confusion_matrix(*theirs))
    error = torchmetrics.multiclass_calibration_error(*theirs, n_bins=15, norm="l1")
    assert calibration_error(logits, labels) == pytest.approx(error.item(), rel=1e-5)
    assert nll(logits, labels) == pytest.approx(F.cross_entropy(logits.double(), labels).item(), rel=1e-12)


def test_likelihood_and_briers_score_by_hand():
    assert nll(SURE, LABELS) == pytest.approx(-(log(0.7) + log(0.4) + log(0.9)) / 3)
    scores = (0.09 + 0.04 + 0.01, 0.25 + 0.36 + 0.01, 0.0025 + 0.0025 + 0.01)
    assert brier(SURE, LABELS) == pytest.approx(sum(scores) / 3)
    assert nll(torch.zeros(5, 4), torch.tensor([0, 1, 2, 3, 0])) == pytest.approx(log(4))
    assert brier(of([0.0, 1.0]), torch.tensor([0])) == 2 and brier(of([1.0, 0.0]), torch.tensor([0])) == 0


def test_likelihood_and_briers_score_are_scikit_learns():
    logits, labels = some()
    probabilities = logits.double().softmax(1).numpy()
    assert nll(logits, labels) == pytest.approx(log_loss(labels, probabilities, labels=range(7)), rel=1e-9)
    classes = sum(brier_score_loss(labels == c, probabilities[:, c]) for c in range(7))
    assert brier(logits, labels) == pytest.approx(classes, rel=1e-9)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_top_accuracy_is_scikit_learns(count):
    logits, labels = some()
    expected = top_k_accuracy_score(labels, logits.numpy(), k=count, labels=range(7))
    assert top_accuracy(logits, labels, count) == pytest.approx(expected) and 0.5 < expected < 1


def test_top_accuracy_by_hand():
    logits = torch.tensor([[3.0, 2, 1, 0], [0, 1, 2, 3], [0, 3, 2, 1], [1, 1, 1, 1]])
    labels = torch.tensor([1, 3, 0, 3])
    assert [top_accuracy(logits, labels, k) for k in (1, 2, 4, 5)] == [0.25, 0.5, 1.0, 1.0]


def test_a_probability_of_nothing_costs_much_and_is_a_number():
    logits = torch.tensor([[0.0, -inf], [1e6, 0.0]])
    assert nll(logits, torch.tensor([1, 1])) == pytest.approx(-FLOOR) and pytest.approx(-708.4, abs=0.1) == FLOOR
    assert log_probabilities(logits).isfinite().all()
    assert math.isfinite(calibrated_nll(logits, torch.tensor([1, 1])))
    assert math.isfinite(best_temperature(logits, torch.tensor([1, 1])))


# --- calibration -------------------------------------------------------------------------------------------------


def test_calibration_error_by_hand():
    """Two bins of fifteen: at 0.5 right once of twice, at 0.9 three times of four."""
    logits = of([0.5, 0.3, 0.2], [0.5, 0.3, 0.2], *[[0.05, 0.9, 0.05]] * 4)
    labels = torch.tensor([0, 1, 1, 1, 1, 2])
    assert calibration_error(logits, labels) == pytest.approx((2 * 0.0 + 4 * 0.15) / 6)
    assert calibration_error(logits, torch.tensor([1, 1, 1, 1, 1, 1])) == pytest.approx((2 * 0.5 + 4 * 0.1) / 6)


def test_errors_within_a_bin_make_up_for_one_another_and_not_between_bins():
    logits, labels = of([0.62, 0.38], [0.65, 0.35]), torch.tensor([0, 1])
    assert calibration_error(logits, labels) == pytest.approx(abs(0.62 + 0.65 - 1) / 2)  # (9/15, 10/15]
    logits = of([0.62, 0.38], [0.68, 0.32])
    assert calibration_error(logits, labels) == pytest.approx((0.38 + 0.68) / 2)
    assert calibration_error(logits, labels, bins=1) == pytest.approx(abs(0.62 + 0.68 - 1) / 2)


def test_edges_belong_to_the_bin_below():
    logits, labels = of([0.6, 0.4], [0.61, 0.39]), torch.tensor([0, 1])
    assert calibration_error(logits, labels, bins=5) == pytest.approx((0.4 + 0.61) / 2)


def test_saturated_confidence_lies_in_the_last_bin():
    """Softmax gives 1 exactly: three are right, one is wrong; and one of 0.97, which is with them."""
    logits = torch.tensor([[100.0, 0.0]] * 4 + [[log(0.97 / 0.03), 0.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1, 0])
    assert (log_probabilities(logits).exp().max(1).values == 1).sum() == 4
    assert calibration_error(logits, labels) == pytest.approx((4 + 0.97 - 4) / 5)
    assert calibration_error(1e4 * logits, torch.zeros(5, dtype=torch.int64)) == 0


def test_calibration_error_in_plain_words():
    logits, labels = some(500)
    probabilities = logits.double().softmax(1).numpy()
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels.numpy()
    total = 0.0
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration_error(logits, labels) == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("scale", [0.01, 0.3, 1.0, 5.0])
def test_the_best_temperature_is_scipys(scale):
    logits, labels = some()
    logits = scale * logits
    found = best_temperature(logits, labels)
    likelihood = lambda log_t: nll(logits / math.exp(log_t), labels)
    expected = minimize_scalar(likelihood, bounds=(-7, 7), method="bounded", options=dict(xatol=1e-8))
    assert math.log(found) == pytest.approx(expected.x, abs=1e-4)
    assert found / scale == pytest.approx(best_temperature(logits / scale, labels), rel=1e-6)


def test_the_best_temperature_by_hand():
    """Odds of 9 to 1, right twice of three times: T = log 9 / log 2."""
    logits, labels = of([0.9, 0.1]).expand(3, 2), torch.tensor([0, 0, 1])
    assert best_temperature(logits, labels) == pytest.approx(log(9) / log(2), rel=1e-9)
    assert best_temperature(logits, torch.tensor([0, 0, 0])) == pytest.approx(TEMPERATURES[0])  # all right
    assert best_temperature(logits, torch.tensor([1, 1, 1])) == pytest.approx(TEMPERATURES[1])  # all wrong


def test_each_half_is_calibrated_by_the_other_one():
    """Odds of 9 to 1 in both halves, of which each gets the other's."""
    logits = of([0.9, 0.1]).expand(6, 2)
    labels = torch.tensor([0, 0, 0, 0, 1, 0])  # of the first half two of three, of the second all
    cold = nll(logits[:3] / TEMPERATURES[0], torch.tensor([0, 0, 1]))
    warm = nll(of([2 / 3, 1 / 3]).expand(3, 2), torch.tensor([0, 0, 0]))
    assert calibrated_nll(logits, labels) == pytest.approx((cold + warm) / 2, rel=1e-6)
    logits, labels = of([0.9, 0.1]).expand(7, 2), torch.tensor([0, 0, 0, 0, 0, 1, 1])  # 3 of 4, and 2 of 3
    other = -(3 * log(2 / 3) + log(1 / 3)) / 4, -(2 * log(3 / 4) + log(1 / 4)) / 3
    assert calibrated_nll(logits, labels) == pytest.approx((4 * other[0] + 3 * other[1]) / 7, rel=1e-6)


def test_calibration_does_not_change_with_the_scale_of_logits():
    logits, labels = some()
    assert calibrated_nll(7 * logits, labels) == pytest.approx(calibrated_nll(logits, labels), rel=1e-6)
    assert calibrated_nll(7 * logits, labels) < nll(7 * logits, labels)


# --- diversity ---------------------------------------------------------------------------------------------------


def predicting(*classes: list[int], count: int = 3) -> torch.Tensor:
    """Logits of members that predict these classes."""
    return torch.nn.functional.one_hot(torch.tensor(classes), count).double()


def test_diversity_by_hand():
    """Of six images the first has the third and fourth wrong, the second the fourth to sixth."""
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    members = predicting([0, 1, 0, 1, 1, 2], [0, 1, 2, 2, 0, 1])
    assert disagreement(members) == pytest.approx(4 / 6)
    assert ratio_error(members, labels) == 3 / 1
    errors = np.array([[0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1]])
    assert error_correlation(members, labels) == pytest.approx(np.corrcoef(errors)[0, 1])
    assert error_correlation(members, labels) == pytest.approx(matthews_corrcoef(*errors))


def test_members_that_are_the_same_do_not_differ():
    labels = torch.tensor([0, 1, 1])
    members = predicting([0, 1, 2], [0, 1, 2])
    assert disagreement(members) == 0 and ratio_error(members, labels) == 0
    assert error_correlation(members, labels) == pytest.approx(1)


def test_the_ratio_of_errors_without_common_ones():
    """Infinite where errors are never common; no number where there is none."""
    labels = torch.tensor([0, 1, 2])
    assert ratio_error(predicting([0, 1, 0], [1, 1, 2]), labels) == inf
    assert ratio_error(predicting([0, 1, 0], [0, 1, 2]), labels) == inf
    assert math.isnan(ratio_error(predicting([0, 1, 2], [0, 1, 2]), labels))
    assert math.isnan(error_correlation(predicting([0, 1, 0], [0, 1, 2]), labels))


def test_more_members_are_the_mean_of_their_pairs():
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    members = predicting([0, 1, 0, 1, 1, 2], [0, 1, 2, 2, 0, 1], [1, 1, 2, 2, 1, 2])
    pairs = [(0, 1), (0, 2), (1, 2)]
    for measure in (
        lambda m: disagreement(m),
        lambda m: ratio_error(m, labels),
        lambda m: error_correlation(m, labels),
    ):
        assert measure(members) == pytest.approx(sum(measure(members[list(pair)]) for pair in pairs) / 3)


# --- ensembles --------------------------------------------------------------------------------------------------


def test_an_ensemble_and_its_members():
    """Two images: the first member is right on the first, the second on both; together, by logits, on the second."""
    members = torch.tensor([[[4.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 3.0]], [[0.0, 2.0], [0.0, 1.0]]])
    labels = torch.tensor([1, 1])
    found = judged_by("logits")(members, labels)
    assert found["accuracy"] == 0.5 and found["member_accuracy"] == pytest.approx((0 + 1 + 1) / 3)
    mean = members.mean(dim=0)
    assert found["nll"] == pytest.approx(nll(mean, labels)) and found["ece"] == calibration_error(mean, labels)
    assert found["nll_calibrated"] == calibrated_nll(mean, labels) and found["brier"] == brier(mean, labels)
    assert found["top5"] == 1 and found["disagreement"] == disagreement(members)
    assert math.isnan(found["ratio_error"]) and math.isnan(found["error_correlation"])


def test_an_ensemble_of_probabilities():
    logits, labels = some()
    members = torch.stack([logits, some(seed=1)[0], some(seed=2)[0]])
    mean = members.double().softmax(2).mean(0)
    found = judged_by("probabilities")(members, labels)
    known = mean.gather(1, labels[:, None])
    assert found["nll"] == pytest.approx(-known.log().mean().item(), rel=1e-5)
    assert found["accuracy"] == (mean.argmax(1) == labels).double().mean()
    assert found["nll"] != judged_by("logits")(members, labels)["nll"]


def test_one_member_is_its_own_ensemble_and_has_no_diversity():
    logits, labels = some()
    found = judged_by("logits")(logits[None], labels)
    assert found["accuracy"] == found["member_accuracy"] == top_accuracy(logits, labels)
    assert found["nll"] == nll(logits, labels)
    assert not {"disagreement", "ratio_error", "error_correlation"} & found.keys()
    assert "nll_calibrated" not in judged_by("logits")(logits[None, :1], labels[:1])


# --- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [nll, brier, top_accuracy, calibration_error, best_temperature, calibrated_nll])
def test_predictions_and_labels_that_do_not_belong_together_are_refused(measure):
    with pytest.raises(InputError, match=r"^predictions: of 3 images, but there are 2 labels"):
        measure(SURE, LABELS[:2])
    with pytest.raises(InputError, match=r"^predictions: of 3 classes, but labels are in 0\.\.3"):
        measure(SURE, torch.tensor([0, 3, 1]))
    with pytest.raises(InputError, match=r"^predictions: of 3 classes, but labels are in -1\.\.1"):
        measure(SURE, torch.tensor([0, -1, 1]))


@pytest.mark.parametrize("measure", [nll, brier, calibration_error, best_temperature])
@pytest.mark.parametrize("value", [nan, inf])
def test_logits_that_are_no_numbers_are_refused(measure, value):
    with pytest.raises(InputError, match=r"^predictions: nan or infinite"):
        measure(torch.tensor([[value, 0.0]]), torch.tensor([0]))


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(InputError, match=r"^predictions: of 1 images; two halves"):
        calibrated_nll(SURE[:1], LABELS[:1])
    with pytest.raises(InputError, match=r"^predictions: of no image"):
        nll(SURE[:0], LABELS[:0])
    with pytest.raises(InputError, match=r"^bins: 0"):
        calibration_error(SURE, LABELS, bins=0)
    for measure in (disagreement, lambda m: ratio_error(m, LABELS), lambda m: error_correlation(m, LABELS)):
        with pytest.raises(InputError, match=r"^members: 1; two"):
            measure(SURE[None])
    for measure in (ratio_error, error_correlation):
        with pytest.raises(InputError, match=r"^predictions: of 3 images, but there are 2"):
            measure(torch.stack([SURE, SURE]), LABELS[:2])
