"""What the pictures of studies show where. None is rendered."""

import math

import pytest
import torch
from matplotlib.figure import Figure

from hybridgen.evaluation.figures import Cell, draw_bars, draw_cell, draw_confusion, draw_curves, draw_series
from hybridgen.evaluation.transfer import Rate


@pytest.fixture
def axis():
    return Figure().subplots()


def errors(container) -> list[list[float]]:
    """Place, lower and upper end of every error bar."""
    (bars,) = container.lines[2]
    return [[low[0], low[1], high[1]] for low, high in bars.get_segments()]


RATES = {
    "s_c": [Rate(0.5, 0.4, 0.7), None, Rate(0.9, 0.75, 0.95)],
    "s_r": [Rate(0.1, 0.05, 0.3), Rate(0.2, 0.1, 0.25), Rate(0.3, 0.25, 0.5)],
}


def test_curves_over_steps_have_their_intervals(axis):
    draw_series(axis, ["a", "b", "c"], RATES, "rates", steps=[10, 20, 40], chance=0.25)
    first, second = axis.containers
    assert first.lines[0].get_xydata().tolist() == [[10, 0.5], [40, 0.9]]
    assert errors(first) == [pytest.approx([10, 0.4, 0.7]), pytest.approx([40, 0.75, 0.95])]
    assert errors(second)[1] == pytest.approx([20, 0.1, 0.25])
    assert [each.get_label() for each in axis.containers] == ["s_c", "s_r"]
    (chance,) = (line for line in axis.get_lines() if line.get_label() == "chance, 25%")
    assert list(chance.get_ydata()) == [0.25, 0.25] and axis.get_xlabel() == "training step"
    assert axis.get_yscale() == "linear" and axis.get_title() == "rates"


def test_bars_stand_above_their_names_side_by_side(axis):
    draw_series(axis, ["a", "b", "c"], RATES, "rates")
    (of_c, of_r) = (each for each in axis.containers if hasattr(each, "patches"))
    middles = lambda bars: [bar.get_x() + bar.get_width() / 2 for bar in bars]
    assert middles(of_c) == pytest.approx([-0.2, 1.8]) and middles(of_r) == pytest.approx([0.2, 1.2, 2.2])
    assert [bar.get_height() for bar in of_c] == [0.5, 0.9]
    assert errors(of_c.errorbar) == [pytest.approx([-0.2, 0.4, 0.7]), pytest.approx([1.8, 0.75, 0.95])]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["a", "b", "c"]
    assert [text.get_text() for text in axis.texts] == ["50%", "90%", "10%", "20%", "30%"]


def test_ratios_are_on_a_log_axis_without_those_that_it_has_no_place_for(axis):
    draw_series(axis, ["a", "b", "c"], {"ratio": [2.0, math.inf, 0.5]}, "ratios", steps=[1, 2, 3])
    (ratios,) = axis.containers
    assert ratios.lines[0].get_xydata().tolist() == [[1, 2.0], [3, 0.5]] and axis.get_yscale() == "log"


def test_curves_over_thresholds_are_on_a_log_axis(axis):
    draw_curves(axis, [1e-3, 1e-2, 1e-1], {"CutMix": [2.0, 2.0, 1.5], "RecursiveMix": [4.0, 3.0, 1.0]}, "many", "bound")
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "linear")
    assert (axis.get_xlabel(), axis.get_title()) == ("bound", "many")
    curves = {line.get_label(): line.get_xydata().tolist() for line in axis.get_lines()}
    assert curves["RecursiveMix"] == [[1e-3, 4.0], [1e-2, 3.0], [1e-1, 1.0]] and list(curves) == [
        "CutMix",
        "RecursiveMix",
    ]


def test_confusions_have_semantic_parents_as_rows(axis):
    draw_confusion(axis, torch.tensor([[0.75, 0.25], [0.0, 1.0]], dtype=torch.float64), ["cat", "dog"], "SciMix")
    assert {text.get_position(): text.get_text() for text in axis.texts} == {(0, 0): "75", (1, 0): "25", (1, 1): "100"}
    assert axis.get_ylabel() == "class of the semantic parent" and axis.get_title() == "SciMix: classes of hybrids, %"


def test_a_cells_box_and_heat_lie_where_its_image_has_them(axis):
    image = torch.zeros(3, 6, 10)
    heat = torch.tensor([[-1.0, 0.0], [0.0, 3.0]])
    draw_cell(axis, Cell(image, "below", heat, (1, 2, 3, 4)))
    (box,) = axis.patches
    assert (*box.get_xy(), box.get_width(), box.get_height()) == (1.5, 0.5, 4, 3)
    shown, laid = axis.images
    assert shown.get_array().shape == (6, 10, 3) and laid.get_array().shape == (6, 10)
    assert laid.get_array().min() == 0 and laid.get_array()[-1, -1] == 3 and axis.get_xlabel() == "below"


def test_the_first_of_lying_bars_is_on_top(axis):
    draw_bars(axis, {"none": 1.0, "mixup": 2.0}, "memory", ["1×", "2×"])
    assert [bar.get_width() for bar in axis.patches] == [1.0, 2.0] and axis.yaxis_inverted()
    assert [text.get_text() for text in axis.texts] == ["1×", "2×"]
