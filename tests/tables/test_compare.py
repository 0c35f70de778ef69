"""Runs of a comparison and what is said of them, with results that are given."""

import json

import pytest
import torch
from accelerate import Accelerator

from hybridgen.data.datasets import Dataset, Part
from hybridgen.data.sources import InMemory
from hybridgen.data.splits import Split
from hybridgen.tables.compare import CompareSettings, Comparison
from hybridgen.training.context import Context
from hybridgen.training.record import write_result

IMAGES = Part(InMemory(torch.zeros(60, 3, 16, 16, dtype=torch.uint8)), torch.zeros(60, dtype=torch.long))
DATASET = Dataset("toy", ("a",), 16, IMAGES, IMAGES, "f" * 64, True, (0.5,) * 3, (0.5,) * 3)
SPLIT = Split("toy", "f" * 64, 0, tuple(range(40)), tuple(range(40, 60)), ())
CONTEXT = Context(CompareSettings(), Accelerator(cpu=True), DATASET, SPLIT)
GIVEN = {
    ("FixMatch", 3): (0.50, 0.62, 10.0),
    ("FixMatch + SciMix", 3): (0.70, 0.81, 20.0),
    ("FixMatch", 4): (0.60, 0.66, 12.0),
    ("FixMatch + SciMix", 4): (0.80, 0.83, 24.0),
}


def comparison(folder, made=None, **changes) -> Comparison:
    settings = CompareSettings(out=folder, seed=3, seeds=2, **changes)
    made = [] if made is None else made
    variants = {name: (lambda seed, name=name: made.append((name, seed))) for name, _ in list(GIVEN)[:2]}
    return Comparison(settings, CONTEXT, variants)


def result(run) -> dict[str, float]:
    last, selected, seconds = GIVEN[run.variant, run.seed]
    return dict(test_accuracy_last=last, test_accuracy_selected=selected, seconds=seconds, steps=7)


def test_every_variant_from_every_seed_and_no_other(tmp_path):
    made = []
    compared = comparison(tmp_path / "c", made)
    assert made == [("FixMatch", 3), ("FixMatch + SciMix", 3)]  # refused before there is a folder, if they must be
    todo = list(compared.unfinished())
    assert [(run.variant, run.seed) for run in todo] == list(GIVEN)
    names = ["fixmatch-seed3", "scimix-seed3", "fixmatch-seed4", "scimix-seed4"]
    assert [run.folder for run in todo] == [tmp_path / "c" / name for name in names]


def test_means_and_deviations_by_hand(tmp_path, capsys):
    compared = comparison(tmp_path / "c")
    for run in compared.unfinished():
        compared.add(run, result(run))
    concluded = compared.conclude(kept=1)
    deviation = 0.1 / 2**0.5  # of two values 0.1 apart, with n - 1
    rows = concluded["classifiers"]
    assert rows["FixMatch"]["test_accuracy_last"] == pytest.approx({"mean": 0.55, "std": deviation})
    assert rows["FixMatch"]["test_accuracy_selected"] == pytest.approx({"mean": 0.64, "std": 0.04 / 2**0.5})
    assert rows["FixMatch + SciMix"]["seconds"] == pytest.approx({"mean": 22.0, "std": 4 / 2**0.5})
    # The method's own figures are those of its last variant
    assert concluded["test_accuracy_last"] == pytest.approx(0.75)
    assert concluded["test_accuracy_selected"] == pytest.approx(0.82)
    assert concluded["seconds"] == pytest.approx(66.0)
    told = {"seed": 3, "seeds": 2, "steps": 7, "split_hash": SPLIT.hash, "kept": 1, "transfer": None}
    assert told.items() <= concluded.items()
    assert json.loads((tmp_path / "c" / "result.json").read_text()) == concluded
    said = capsys.readouterr().out
    assert "toy, 40 labels, 7 steps, 2 seed(s)" in said
    assert ["55.0", "±", "7.1", "64.0", "±", "2.8", "11"] in [line.split()[1:] for line in said.splitlines()]


def test_finished_runs_are_read_and_not_repeated(tmp_path):
    first = comparison(tmp_path / "c")
    for run, _ in zip(first.unfinished(), range(3), strict=False):
        run.folder.mkdir()
        write_result(run.folder, CONTEXT.accelerator, **result(run))
    again = comparison(tmp_path / "c", resume=True)
    (left,) = again.unfinished()
    assert (left.variant, left.seed) == list(GIVEN)[-1]
    again.add(left, result(left))
    assert again.conclude()["classifiers"]["FixMatch"]["test_accuracy_last"]["mean"] == pytest.approx(0.55)
