"""The picture of an ablation's table, by figures that are given."""

from hybridgen.evaluation import figures
from hybridgen.evaluation.transfer import Rate
from hybridgen.tables.jobs import draw


def test_a_picture_has_every_row_with_its_deviations(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "draw_series", lambda axis, *given, **more: drawn.append(given))
    rows = {
        "one": {"test_accuracy_last": {"mean": 0.5, "std": 0.125}, "semantic_transfer": None, "never": None},
        "two": {"test_accuracy_last": {"mean": 0.75}, "semantic_transfer": {"mean": 0.25}, "never": None},
    }
    measures = dict.fromkeys(("test_accuracy_last", "test_accuracy_selected", "semantic_transfer", "never"), "")
    draw(tmp_path / "table.png", "Table", {"two": "second", "one": "first"}, rows, measures)
    ((names, series, title),) = drawn
    assert (names, title) == (["first", "second"], "Table")
    assert series == {
        "test accuracy": [Rate(0.5, 0.375, 0.625), Rate(0.75, 0.75, 0.75)],
        "semantic transfer": [None, Rate(0.25, 0.25, 0.25)],
    }
