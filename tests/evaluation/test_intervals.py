"""Risk over coverage and intervals, by hand and against plain numpy."""

import math

import numpy as np
import pytest
import torch

from hybridgen.evaluation.calibration import calibrated, calibration_error
from hybridgen.evaluation.classification import brier, nll, top_accuracy
from hybridgen.evaluation.ensembles import judged_by
from hybridgen.evaluation.intervals import RESAMPLES, figures_of_weights, with_intervals
from hybridgen.evaluation.selective import aurc, risk_coverage
from hybridgen.evaluation.transfer import wilson


def sure(confidences: list[float], right: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions of class 0 that are so sure, and labels."""
    confidence = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([confidence, 1 - confidence], dim=1).log(), 1 - torch.tensor(right)


def some(members: int = 3, count: int = 150, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Members that are right more often than not; some images are equally sure."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (count,), generator=generator)
    logits = 2 * torch.randn(members, count, classes, generator=generator)
    logits[:, torch.arange(count), labels] += 2
    logits[:, 30:40], labels[30:40] = logits[:, :10], labels[:10].roll(1)
    return logits, labels


# --- Risk over coverage ------------------------------------------------------------------------------------------


def test_risk_and_coverage_by_hand():
    """In any order of the images: sure of 0.9 (right), 0.8 (wrong), 0.7 (right), 0.6 (wrong)."""
    logits, labels = sure([0.7, 0.9, 0.6, 0.8], [1, 1, 0, 0])
    coverage, risk = risk_coverage(logits, labels)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert risk.tolist() == pytest.approx([0, 1 / 2, 1 / 3, 2 / 4])
    assert aurc(logits, labels) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)


def test_equally_sure_predictions_count_in_the_mean_of_their_orders():
    """Softmax gives 1 exactly to three, of which one is wrong: before, none; behind, a wrong one."""
    logits = torch.tensor([[800.0, 0], [900, 0], [0, 1], [1000, 0]], dtype=torch.float64)
    for labels in ([0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]):
        risk = risk_coverage(logits, torch.tensor(labels))[1]
        assert risk.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 2 / 4])
    everywhere = risk_coverage(torch.zeros(5, 2), torch.tensor([0, 1, 1, 0, 1]))[1]
    assert everywhere.tolist() == pytest.approx([0.6] * 5)


# --- Figures of draws --------------------------------------------------------------------------------------------


def all_figures(members: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    logits = members.mean(dim=0)
    return judged_by("logits")(members, labels) | {"aurc": aurc(logits, labels)}


OF_WEIGHTS = {
    "nll", "brier", "ece", "aurc", "nll_calibrated", "member_accuracy", "disagreement", "ratio_error",
    "error_correlation",
}  # fmt: skip


def test_images_once_each_give_the_figures_themselves():
    members, labels = some()
    found = figures_of_weights(members, members.mean(dim=0), labels)(torch.ones(2, len(labels), dtype=torch.float64))
    expected = all_figures(members, labels)
    assert found.keys() == OF_WEIGHTS
    for name, values in found.items():
        assert values.tolist() == pytest.approx([expected[name]] * 2, rel=1e-9), name


def test_weights_are_repetitions():
    """Of the images that are drawn some are there more than once, and so equally sure; others not at all."""
    members, labels = some()
    drawn = torch.randint(len(labels), (2, len(labels)), generator=torch.Generator().manual_seed(1))
    weights = torch.stack([row.bincount(minlength=len(labels)) for row in drawn])
    found = figures_of_weights(members, members.mean(dim=0), labels)(weights.double())
    known = -calibrated(members.mean(dim=0), labels).log_softmax(dim=1).gather(1, labels[:, None])[:, 0]
    for row, kept in enumerate(drawn):
        expected = all_figures(members[:, kept], labels[kept]) | {"nll_calibrated": known[kept].mean().item()}
        for name in OF_WEIGHTS:
            assert found[name][row].item() == pytest.approx(expected[name], rel=1e-9), name


def test_figures_that_draws_do_not_have():
    """Of members without common errors the ratio is infinite, without errors there is none, and no correlation."""
    labels = torch.tensor([0, 1, 1, 0])
    members = torch.nn.functional.one_hot(torch.tensor([[1, 1, 1, 0], [0, 0, 1, 0]]), 2).double()
    weights = torch.tensor([[1, 1, 1, 1], [0, 0, 2, 2]], dtype=torch.float64)
    found = figures_of_weights(members, members.mean(dim=0), labels)(weights)
    assert found["ratio_error"][0] == math.inf and found["ratio_error"][1].isnan()
    assert found["error_correlation"][0].item() == pytest.approx(np.corrcoef([1, 0, 0, 0], [0, 1, 0, 0])[0, 1])
    assert found["error_correlation"][1].isnan()
    figures = with_intervals(members, members.mean(dim=0), labels, seed=0)
    assert figures["ratio_error"].high == math.inf == figures["ratio_error"].value


# --- Intervals ---------------------------------------------------------------------------------------------------


def test_intervals_of_means_are_those_of_a_normal_distribution():
    members, labels = some(1, 4000)
    logits = members[0]
    found = with_intervals(members, logits, labels, seed=0)
    scores = -logits.double().log_softmax(dim=1).gather(1, labels[:, None])[:, 0]
    squares = (logits.double().softmax(dim=1) - torch.nn.functional.one_hot(labels, 4)).square().sum(dim=1)
    for name, each in (("nll", scores), ("brier", squares)):
        value, low, high = found[name]
        spread = 1.96 * each.std().item() / 4000**0.5
        assert value == pytest.approx(each.mean().item())
        assert (value - low) / spread == pytest.approx(1, abs=0.12), name
        assert (high - value) / spread == pytest.approx(1, abs=0.12), name
    everything = all_figures(members, labels)
    assert {name: own.value for name, own in found.items()} == pytest.approx(everything, rel=1e-9)
    assert (found["nll"].value, found["brier"].value) == pytest.approx((nll(logits, labels), brier(logits, labels)))


def test_shares_of_images_have_wilsons_interval():
    members, labels = some()
    found = with_intervals(members, members.mean(dim=0), labels, seed=0)
    assert found["accuracy"] == tuple(wilson(top_accuracy(members.mean(dim=0), labels), 150))
    assert found["member_accuracy_1"] == tuple(wilson(top_accuracy(members[1], labels), 150))
    value, low, high = found["top5"]
    assert value == high == 1 and low == wilson(1, 150).low < 1


@pytest.mark.parametrize("sharper", [1, 1.15])
def test_the_interval_of_a_biased_figure_holds_what_fresh_images_give(sharper):
    """Of labels that are drawn by the predictions themselves, or by what these are too sharp of: nineteen intervals in
    twenty hold the mean of fresh draws, and as many draws lie in them as in those of a mean, 83 % for two normal
    distributions of one width."""

    def fresh(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        logits = 2 * torch.randn(300, 10, generator=generator, dtype=torch.float64)
        return sharper * logits, torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]

    others = torch.tensor([calibration_error(*fresh(1000 + seed)) for seed in range(60)])
    held, right = 0, 0
    for seed in range(10):
        logits, labels = fresh(seed)
        value, low, high = with_intervals(logits[None], logits, labels, seed=0)["ece"]
        assert 0 <= low <= value <= high <= 1 and value == pytest.approx(calibration_error(logits, labels), rel=1e-9)
        held += ((low <= others) & (others <= high)).double().mean().item() / 10
        right += low <= others.mean().item() <= high
    assert held > 0.8 and right >= 9


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_biased_figure_of_few_images_stays_in_its_interval_and_that_in_its_range(count):
    members, labels = some(1)
    value, low, high = with_intervals(members[:, :count], members[0, :count], labels[:count], seed=0)["ece"]
    assert 0 <= low <= value <= high <= 1


def test_draws_are_the_seeds_and_many():
    members, labels = some()
    logits = members.mean(dim=0)
    first, again, other = (with_intervals(members, logits, labels, seed=seed) for seed in (0, 0, 1))
    assert first == again
    for name in OF_WEIGHTS:
        assert first[name].value == other[name].value and first[name][1:] != other[name][1:]
        assert first[name].low < first[name].value < first[name].high
    assert RESAMPLES == 1000
