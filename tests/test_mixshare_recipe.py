"""The recipe of MixShare, as its users run it."""

import importlib.util
import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hybridgen.evaluation.ensembles import judged_by
from hybridgen.networks.classifiers import load_classifier

spec = importlib.util.spec_from_file_location("recipes_as_processes", Path(__file__).with_name("test_recipes.py"))
processes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(processes)
recipes, toy, refuse = processes.recipes, processes.toy, processes.refuse  # fixtures

FOLDERS = ("plain-network-seed0", "cut-mixmo-seed0", "mixshare-partial-seed0", "mixshare-fade-out-seed0")


def tiny(data: str, out: Path | str, *more: str | Path) -> tuple[str | Path, ...]:
    """Four steps an epoch of a small network, two of them while unmixing fades."""
    return (
        "--preset", "smoke", "--data", data, "--validation", "8", "--batch", "16", "--epochs", "2", "--threads", "1",
        "--network", "wrn-10-1", "--method.cutmix", "0.5", "--record-every", "1", "--evaluate-every", "6",
        "--save-every", "3", "--out", out, *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(recipes, toy) -> Path:
    recipes.succeed("mixshare.py", *tiny(toy, "mixshare"))
    return recipes.folder / "mixshare"


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_all_methods_stand_in_one_table_and_what_is_deployed_computes_what_was_measured(run, toy):
    said = result(run)
    assert list(said["classifiers"]) == ["Plain network", "Cut-MixMo", "MixShare, partial", "MixShare, fade-out"]
    data = np.load(toy.removeprefix("npz:"))
    images = torch.tensor(data["x_test"]).permute(0, 3, 1, 2).float() / 255
    for folder, row in zip(FOLDERS, said["classifiers"].values(), strict=True):
        found = result(run / folder)
        for figure in ("accuracy", "member_accuracy", "nll_calibrated", "ece"):
            assert row[f"test_{figure}_last"]["mean"] == found[f"test_{figure}_last"]
        classifier, classes, side = load_classifier(run / folder / "network.safetensors")
        with torch.no_grad():
            measured = judged_by("logits")(classifier(images)[None], torch.tensor(data["y_test"]).long())
        assert (classes, side) == (("0", "1"), 16) and found["steps"] == 8
        for figure in ("accuracy", "nll", "ece"):
            assert measured[figure] == pytest.approx(found[f"test_{figure}_last"], rel=1e-3, abs=1e-4)


def test_unmixing_fades_from_step_to_step_or_stays(run):
    def recorded(folder: str, name: str) -> list[float]:
        rows = [json.loads(line) for line in (run / folder / "metrics.jsonl").read_text().splitlines()]
        return [row[f"classifier/{name}"] for row in rows if f"classifier/{name}" in row]

    faded, partial = (recorded(folder, "unmixing") for folder in FOLDERS[:1:-1])
    assert faded == [1.0, 0.5, *[0.0] * 6] and partial == [1.0] * 8
    assert all(share == 1.0 for folder in FOLDERS[2:] for share in recorded(folder, "patches"))


def test_stopped_and_resumed_equals_never_stopped(recipes, toy, run):
    out = recipes.folder / "stopped"
    recipes.start("mixshare.py", *tiny(toy, out))
    there = lambda: (out / FOLDERS[3] / "checkpoints" / "step-00000003.pt").exists()
    assert recipes.stop(signal.SIGTERM, there) == 128 + signal.SIGTERM, recipes.stderr()
    recipes.succeed("mixshare.py", *tiny(toy, out), "--resume")
    for name in FOLDERS[2:]:
        ours, theirs = (load_file(folder / name / "network.safetensors") for folder in (out, run))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        mine, other = (result(folder / name) for folder in (out, run))
        for key in other.keys() - {"seconds"}:
            assert mine[key] == other[key] or (math.isnan(mine[key]) and math.isnan(other[key])), key


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--methods", "plain", "plain"), "--methods: ['plain', 'plain'] should be one or more, each once"),
        (("--methods",), "--methods: [] should be one or more, each once"),
        (("--method.part", "1.5", "--method.fade", "0"), "--method.part: 1.5 should be less than or equal to 1"),
        (("--method.part", "1.5", "--method.fade", "0"), "--method.fade: 0.0 should be greater than 0"),
        (("--method.kernels", "parallel"), "--method.kernels"),
        (("--method.classifiers", "one"), "classifiers: one answers for all inputs at once"),
        (("--crop", "4"), "network: its last map has 1×1 places; on fewer than 2 a side masks vanish"),
        (("--method.inputs", "16", "--batch", "8"), "method.inputs: 16, but a batch has 8 images for each process"),
        (("--method.unmixing", "whole"), "method.unmixing: whole, but every method that is trained has its own"),
        (("--method.fade", "3", "--methods", "plain"), "method.fade: 3.0, but every method"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(refuse, recipes, toy, arguments, words):
    assert words in refuse("mixshare.py", *tiny(toy, "bad", *arguments))
    assert not (recipes.folder / "bad").exists()


def test_so_it_is_of_a_process_of_its_own(recipes, toy):
    words = "'mimo' for argument '--methods'. Expected one of ('plain', 'cut-mixmo', 'unmixing'"
    assert words in recipes.refuse("mixshare.py", *tiny(toy, "bad", "--methods", "mimo"))
