"""What the pictures of studies show where. None is rendered."""

import math

import pytest
import torch
from matplotlib.figure import Figure

from hybridgen.evaluation.figures import (
    Cell,
    draw_bars,
    draw_cell,
    draw_confusion,
    draw_curves,
    draw_series,
    image_columns,
    image_table,
)
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
    assert axis.get_ylim() == (0, 1.08) and axis.yaxis.get_major_formatter()(0.25, 0) == "25%"
    assert {text.get_text() for text in axis.get_legend().get_texts()} == {"s_c", "s_r", "chance, 25%"}


def test_bars_stand_above_their_names_side_by_side(axis):
    draw_series(axis, ["a", "b", "c"], RATES, "rates")
    (of_c, of_r) = (each for each in axis.containers if hasattr(each, "patches"))
    middles = lambda bars: [bar.get_x() + bar.get_width() / 2 for bar in bars]
    assert middles(of_c) == pytest.approx([-0.2, 1.8]) and middles(of_r) == pytest.approx([0.2, 1.2, 2.2])
    assert [bar.get_height() for bar in of_c] == [0.5, 0.9]
    assert errors(of_c.errorbar) == [pytest.approx([-0.2, 0.4, 0.7]), pytest.approx([1.8, 0.75, 0.95])]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["a", "b", "c"]
    assert [text.get_text() for text in axis.texts] == ["50%", "90%", "10%", "20%", "30%"]
    assert axis.get_xlim() == (-0.6, 2.6) and axis.get_ylim() == (0, 1.08)


def test_ratios_are_on_a_log_axis_without_those_that_it_has_no_place_for(axis):
    draw_series(axis, ["a", "b", "c"], {"ratio": [2.0, math.inf, 0.5]}, "ratios", steps=[1, 2, 3])
    (ratios,) = axis.containers
    assert ratios.lines[0].get_xydata().tolist() == [[1, 2.0], [3, 0.5]] and axis.get_yscale() == "log"


def test_bars_of_ratios_have_no_intervals_and_a_line_where_both_are_equal(axis):
    draw_series(axis, ["a", "b"], {"ratio": [2.5, 0.25]}, "ratios")
    (bars,) = axis.containers
    assert [bar.get_height() for bar in bars] == [2.5, 0.25] and bars.errorbar is None
    assert [text.get_text() for text in axis.texts] == ["2.5", "0.25"]
    (equal,) = axis.get_lines()
    assert list(equal.get_ydata()) == [1, 1] and axis.yaxis.get_major_formatter()(0.5, 0) == "0.5"


def test_curves_over_thresholds_are_on_a_log_axis(axis):
    draw_curves(axis, [1e-3, 1e-2, 1e-1], {"CutMix": [2.0, 2.0, 1.5], "RecursiveMix": [4.0, 3.0, 1.0]}, "many", "bound")
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "linear")
    assert (axis.get_xlabel(), axis.get_title()) == ("bound", "many")
    curves = {line.get_label(): line.get_xydata().tolist() for line in axis.get_lines()}
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["CutMix", "RecursiveMix"]
    assert curves["RecursiveMix"] == [[1e-3, 4.0], [1e-2, 3.0], [1e-1, 1.0]] and list(curves) == [
        "CutMix",
        "RecursiveMix",
    ]


def test_more_curves_than_colours_are_told_by_their_style(axis):
    draw_curves(axis, [1.0, 2.0], {f"{i}": [1.0, 2.0] for i in range(31)}, "", "")
    assert [line.get_linestyle() for line in axis.get_lines()] == ["-"] * 10 + ["--"] * 10 + [":"] * 10 + ["-"]


EDGES = dict(rows="class", columns="prediction")


def test_confusions_have_what_there_is_as_rows(axis):
    shares = torch.tensor([[0.75, 0.25], [0.004, 0.996]], dtype=torch.float64)
    draw_confusion(axis, shares, ["cat", "dog"], "SciMix, %", **EDGES)
    assert {text.get_position(): text.get_text() for text in axis.texts} == {(0, 0): "75", (1, 0): "25", (1, 1): "100"}
    assert (axis.get_ylabel(), axis.get_xlabel(), axis.get_title()) == ("class", "prediction", "SciMix, %")
    (drawn,) = axis.images
    assert drawn.get_array().tolist() == [[0.75, 0.25], [0.004, 0.996]] and drawn.get_clim() == (0, 1)
    for ticks in (axis.get_xticklabels(), axis.get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == ["cat", "dog"]
    assert [text.get_color() for text in axis.texts] == ["white", "black", "white"]  # on dark and on light blue
    assert axis.figure.axes[1].yaxis.get_major_formatter()(0.5, 0) == "50%"


@pytest.mark.parametrize(("classes", "figures", "named"), [(20, True, True), (21, False, True), (101, False, False)])
def test_confusions_of_many_classes_are_colours_with_names_up_to_a_hundred(axis, classes, figures, named):
    names = [*(f"{c}" for c in range(classes - 1)), "a name of seventeen"]
    draw_confusion(axis, torch.eye(classes, dtype=torch.float64), names, "SciMix", **EDGES)
    assert len(axis.texts) == classes * figures
    for ticks in (axis.get_xticklabels(), axis.get_yticklabels()):
        assert ([tick.get_text() for tick in ticks] == [*names[:-1], "a name of seven…"]) is named


def test_columns_of_images_and_of_maps_of_one_scale():
    """Maps are drawn without the places where they are not known."""
    images, maps = torch.rand(2, 3, 4, 6), torch.tensor([[[0.0, 3.0]], [[1.0, math.nan]]])
    figure = image_columns({"images": 3 * images - 1, "maps": maps, "more": maps / 2})
    (*axes, bar) = figure.axes
    assert [axis.get_title() for axis in axes] == ["images", "maps", "more", "", "", ""]
    for row in (0, 1):
        image, first, second = (axis.images[0] for axis in axes[3 * row : 3 * row + 3])
        torch.testing.assert_close(torch.tensor(image.get_array()), (3 * images[row] - 1).clamp(0, 1).permute(1, 2, 0))
        assert first.get_clim() == second.get_clim() == (0, 3)
        assert second.get_array().filled(-1).tolist() == (maps[row] / 2).nan_to_num(-1).tolist()
    assert bar.get_ylabel() == "sum over colours" and len(image_columns({"images": images}).axes) == 2


def test_tables_of_images_have_titles_captions_and_gaps():
    black, white = (torch.full((3, 4, 4), value) for value in (0.0, 1.0))
    rows = {"first": [Cell(black, "a\nb"), None], "second": [Cell(white), Cell(black, "c")], "third": [Cell(white)]}
    axes = image_table(rows, ["one", "two"]).axes
    assert [axis.get_title() for axis in axes] == ["one", "two", "", "", "", ""]
    assert [axis.get_ylabel() for axis in axes] == ["first", "", "second", "", "third", ""]
    assert [axis.get_xlabel() for axis in axes] == ["a\nb", "", "", "c", "", ""]
    shown = [axis.images[0].get_array().mean() if axis.images else None for axis in axes]
    assert shown == [0, None, 1, 0, 1, None] and [axis.axison for axis in axes] == [each is not None for each in shown]
    wide, tall = image_table(rows, side=2).get_size_inches() - image_table(rows, side=1).get_size_inches()
    assert (wide, tall) == pytest.approx((2, 3))


def test_a_cells_box_and_heat_lie_where_its_image_has_them(axis):
    image = torch.zeros(3, 6, 10)
    heat = torch.tensor([[-1.0, 0.0], [0.0, 3.0]])
    draw_cell(axis, Cell(image, "below", heat, (1, 2, 3, 4)))
    (box,) = axis.patches
    assert (*box.get_xy(), box.get_width(), box.get_height()) == (1.5, 0.5, 4, 3)
    shown, laid = axis.images
    assert shown.get_array().shape == (6, 10, 3) and laid.get_array().shape == (6, 10)
    assert laid.get_array().min() == 0 and laid.get_array()[-1, -1] == 3 and axis.get_xlabel() == "below"
    assert laid.get_clim() == (0, 3) and laid.get_alpha() == 0.5
    draw_cell(axis, Cell(image, heat=1 + torch.eye(2)))  # whose colours begin at 0 too
    assert axis.images[-1].get_clim() == (0, 2)


def test_the_first_of_lying_bars_is_on_top(axis):
    draw_bars(axis, {"none": 1.0, "mixup": 2.0}, "memory", ["1×", "2×"])
    assert [bar.get_width() for bar in axis.patches] == [1.0, 2.0] and axis.yaxis_inverted()
    assert [text.get_text() for text in axis.texts] == ["1×", "2×"]
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["none", "mixup"] and axis.get_title() == "memory"
    again = Figure().subplots()
    for _ in range(2):  # several on axes that share their names
        draw_bars(again, {"none": 1.0}, "", ["1×"])
    assert again.yaxis_inverted()
