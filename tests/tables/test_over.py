"""Figures of finished runs over a setting, against means and deviations by hand."""

import json
import statistics
from pathlib import Path

import pytest
import yaml

from hybridgen.cli import main
from hybridgen.tables.over import finished, over
from hybridgen.types import InputError


def leave(folder: Path, seed: int, accuracy: float, *, alpha: float, ratio: float = 2.0, **config) -> Path:
    """A finished run's folder."""
    folder.mkdir(parents=True)
    settings = {"data": "digits-m", "seed": seed, "threads": seed + 1, "method": {"alpha": alpha, "root": 3.0}} | config
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    figures = {"test_accuracy_last": accuracy, "test_accuracy_selected": accuracy / 2, "test_ratio_error_last": ratio}
    (folder / "result.json").write_text(json.dumps(figures | {"seed": seed}))
    return folder


@pytest.fixture
def runs(tmp_path):
    """Two methods at α = 10 and 2, the first from two seeds; the second comparison is resumed elsewhere."""
    for alpha in (10.0, 2.0):
        for seed in (0, 1):
            folder = tmp_path / f"alpha{alpha:g}" / f"cut-mixmo-seed{seed}"
            leave(folder, seed, 0.5 + 0.1 * seed + 0.01 * alpha, alpha=alpha)
        leave(tmp_path / f"alpha{alpha:g}" / "mimo-seed0", 0, 0.25, alpha=alpha, ratio=float("inf"))
        (tmp_path / f"alpha{alpha:g}" / "config.yaml").write_text("{}")
        (tmp_path / f"alpha{alpha:g}" / "result.json").write_text('{"seed": 0}')
    return [tmp_path / "alpha10", tmp_path / "alpha2"]


def test_means_and_deviations_by_method_and_value(runs):
    found = over("method.alpha", runs, ["accuracy", "ratio-error"])
    assert found.values["values"] == [2.0, 10.0] and found.values["setting"] == "method.alpha"
    cut, mimo = (found.values["figures"]["accuracy"][name] for name in ("cut-mixmo", "mimo"))
    for each, (first, second) in zip(cut, [(0.52, 0.62), (0.6, 0.7)], strict=True):
        assert each["mean"] == pytest.approx((first + second) / 2) and each["seeds"] == 2
        assert each["std"] == pytest.approx(statistics.stdev([first, second]))
    assert mimo == [{"mean": 0.25, "seeds": 1}] * 2
    assert found.values["figures"]["ratio_error"]["mimo"][0]["mean"] is None
    assert found.values["differ_in"] == [] and len(found.values["runs"]) == 6
    assert found.table.splitlines()[0].split() == ["method.alpha", "2", "10"]
    rows = [line.split("  ") for line in found.table.splitlines()[1:5]]
    assert rows[0][0] == "cut-mixmo, accuracy, %" and rows[0][-1].strip() == "65.0 ± 7.1"
    assert rows[2][0] == "cut-mixmo, ratio_error" and rows[2][-1].strip() == "2.000 ± 0.000"
    assert found.values.items() >= {"study": "runs", "epoch": "last"}.items()
    assert "Of the test images, last epoch; 6 runs, means ± deviations over seeds." in found.table
    first, second = found.figure.axes
    assert [axis.get_title() for axis in (first, second)] == ["accuracy", "ratio error"]
    assert first.get_xlabel() == "method.alpha" and first.get_xticks().tolist() == [2, 10]
    assert [text.get_text() for text in first.get_legend().get_texts()] == ["cut-mixmo", "mimo"]
    curve, _ = first.containers
    assert curve.lines[0].get_xydata().tolist() == [[2, pytest.approx(0.57)], [10, pytest.approx(0.65)]]
    deviation = 0.1 / 2**0.5
    (bars,) = curve.lines[2]
    for bar, at, mean in zip(bars.get_segments(), (2, 10), (0.57, 0.65), strict=True):
        assert bar.tolist() == [[at, pytest.approx(mean - deviation)], [at, pytest.approx(mean + deviation)]]
    assert [axis.yaxis.get_major_formatter()(0.25, 0) == "25 %" for axis in (first, second)] == [True, False]


def test_the_epoch_that_was_selected(runs):
    found = over("method.alpha", runs, epoch="selected")
    assert found.values["figures"]["accuracy"]["mimo"][1]["mean"] == 0.125
    assert found.values["epoch"] == "selected" and "Of the test images, selected epoch; 6 runs" in found.table
    with pytest.raises(InputError, match=r"there are accuracy$"):
        over("method.alpha", runs, ["ratio-error"], epoch="selected")


def test_a_value_in_a_folders_name_is_not_the_methods(tmp_path):
    """As of figure 4.4 of the thesis, whose rows are a method with a number of views."""
    for views in (1, 3):
        leave(tmp_path / f"convit-views-{views}-seed0", 0, views / 10, alpha=2.0, training={"views": views})
    assert list(over("training.views", [tmp_path]).values["figures"]["accuracy"]) == ["convit"]
    assert len(over("method.alpha", [tmp_path]).values["figures"]["accuracy"]) == 2


def test_a_figure_that_a_plain_network_has_not(runs, tmp_path):
    plain = leave(tmp_path / "more" / "plain-seed0", 0, 0.1, alpha=2.0)
    (plain / "result.json").write_text(json.dumps({"test_accuracy_last": 0.1, "seed": 0}))
    found = over("method.alpha", [*runs, plain], ["accuracy", "ratio-error"]).values["figures"]
    assert found["accuracy"]["plain"][1] is None and found["accuracy"]["plain"][0]["mean"] == 0.1
    assert list(found["ratio_error"]) == ["cut-mixmo", "mimo"]


def test_what_else_differs_is_told(runs, tmp_path):
    more = [
        leave(tmp_path / "more" / name, 0, 0.1, alpha=float("inf"), data="cifar10", methods=[name], seeds=2)
        for name in ("mimo-seed0", "new-seed0")
    ]
    found = over("method.alpha", [*runs, *more])
    assert found.values["differ_in"] == ["data"] and "The runs differ in data as well." in found.table
    assert found.values["values"] == [2.0, 10.0, "inf"]  # places, where an axis of numbers has none
    axis = found.figure.axes[0]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["2", "10", "inf"]
    places = {curve.get_label(): curve.lines[0].get_xdata().tolist() for curve in axis.containers}
    assert places == {"cut-mixmo": [0, 1], "mimo": [0, 1, 2], "new": [2]}


def test_settings_of_words_stand_in_the_order_of_the_alphabet(tmp_path):
    runs = [leave(tmp_path / f"m-{word}", 0, 0.5, alpha=1.0, network=word) for word in ("wrn-28-2", "fast")]
    assert over("network", runs).values["values"] == ["fast", "wrn-28-2"]
    runs = [leave(tmp_path / f"m-{width}", 0, 0.5, alpha=1.0, width=width) for width in (None, 2, 0.5)]
    assert over("width", runs).values["values"] == [0.5, 2.0, "None"]
    runs = [leave(tmp_path / f"m-{truth}", 0, 0.5, alpha=1.0, msda=truth) for truth in (True, False)]
    found = over("msda", runs)
    assert found.values["values"] == ["False", "True"] and found.table.splitlines()[0].split()[1:] == ["False", "True"]


def test_what_was_chosen_is_the_value_of_a_setting_that_was_left_open(tmp_path):
    """Of 100 labels one run was told, the other chose them; and what was given stands, whatever setup.json says."""
    runs = []
    for name, labels, chosen, epochs in (("a", "auto", 100, None), ("b", 100, 7, None), ("c", None, 60, 5.0)):
        place, seed = tmp_path / name / "m-seed0", len(runs)
        runs.append(leave(place, seed, 0.3 + seed / 10, alpha=1.0, labels=labels, method={"epochs": epochs}))
        setup = {"chosen": {"labels": chosen, "method.epochs": 4 if name == "a" else 5}}
        (place / "setup.json").write_text(json.dumps(setup))
    found = over("labels", runs).values
    assert found["values"] == [60.0, 100.0]
    few, more = found["figures"]["accuracy"]["m"]
    assert few == {"mean": pytest.approx(0.5), "seeds": 1}
    assert more["mean"] == pytest.approx(0.35) and more["seeds"] == 2
    assert found["differ_in"] == ["method.epochs"]
    assert over("method.epochs", runs).values["values"] == [4.0, 5.0]


def test_what_is_told_in_percent(tmp_path):
    """Shares are; likelihoods, squared distances and ratios are not."""
    names = ("nll", "nll_calibrated", "brier", "ratio_error", "error_correlation", "ece", "disagreement", "top5")
    figures, runs = {f"test_{name}_last": 0.1234 for name in names}, []
    for seed in range(3):
        runs.append(leave(tmp_path / f"m-seed{seed}", seed, 0.5, alpha=1.0))
        (runs[-1] / "result.json").write_text(json.dumps(figures | {"seed": seed}))
    found = over("method.alpha", runs, names)
    rows = [line.split() for line in found.table.splitlines()[1:9]]
    assert [row[-3:] for row in rows] == [["0.123", "±", "0.000"]] * 5 + [["12.3", "±", "0.0"]] * 3
    assert [row[-4] for row in rows] == [*names[:5], "%", "%", "%"]
    assert found.values["figures"]["nll"]["m"][0]["seeds"] == 3
    with pytest.raises(InputError, match=f"there are {', '.join(sorted(names))}$"):
        over("method.alpha", runs, ["accuracy"])


def test_many_values_have_no_tick_each(tmp_path):
    runs = [leave(tmp_path / f"m{number}-seed0", 0, 0.5, alpha=number / 2) for number in range(1, 10)]
    for count in (8, 9):
        axis = over("method.alpha", runs[:count]).figure.axes[0]
        assert (axis.get_xticks().tolist() == [number / 2 for number in range(1, count + 1)]) is (count == 8)


def test_a_comparison_stands_for_its_runs(runs):
    assert [path.name for path in finished(runs[:1])] == ["cut-mixmo-seed0", "cut-mixmo-seed1", "mimo-seed0"]
    with pytest.raises(InputError, match="mimo-seed0 is there twice"):
        finished([runs[0], runs[0] / "mimo-seed0"])


@pytest.mark.parametrize(
    ("setting", "figures", "named"),
    [
        ("method.alpa", ["accuracy"], "--over method.alpa: .*config.yaml has no 'alpa' there; it has alpha, root"),
        ("method", ["accuracy"], "--over method: is a group of settings; one of alpha, root is needed"),
        ("data.alpha", ["accuracy"], "has no 'alpha' there; it has none"),
        ("method.alpha", ["acuracy"], "--figures acuracy: no run has it; there are accuracy, ratio_error$"),
        ("method.alpha", [], "--figures: none"),
        ("method.alpha", ["accuracy", "accuracy"], "--figures: accuracy accuracy; one or more are needed, each once"),
        ("method.root", ["accuracy"], "method.root = 3.0 and seed 0 are those of"),
    ],
)
def test_bad_input(runs, setting, figures, named):
    with pytest.raises(InputError, match=named):
        over(setting, runs, figures)


def test_folders_without_a_run(tmp_path, runs):
    with pytest.raises(InputError, match=r"no finished run in it \(result.json is missing\)"):
        over("method.alpha", [*runs, tmp_path / "nowhere"])
    with pytest.raises(InputError, match="--runs: none"):
        over("method.alpha", [])


def test_the_command(runs, tmp_path, capsys):
    out = tmp_path / "out"
    line = ["study", "runs", "--runs", *map(str, runs), "--over", "method.alpha", "--epoch", "selected"]
    for run in runs:  # which has another figure of that epoch
        for path in run.glob("*/result.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"test_ece_selected": 0.25}))
    main([*line, "--figures", "ece", "accuracy", "--out", str(out)])
    assert {path.name for path in out.iterdir()} == {"runs.json", "runs.txt", "runs.png"}
    found = over("method.alpha", runs, ["ece", "accuracy"], epoch="selected")
    assert json.loads((out / "runs.json").read_text()) == found.values
    assert capsys.readouterr().out.startswith("method.alpha")
