"""The recipe of MIMO and MixMo, as its users run it."""

import importlib.util
import json
import math
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hybridgen.evaluation.ensembles import judged_by
from hybridgen.methods.mixmo import TITLES
from hybridgen.networks.classifiers import load_classifier

spec = importlib.util.spec_from_file_location("recipes_as_processes", Path(__file__).with_name("test_recipes.py"))
processes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(processes)
recipes, toy = processes.recipes, processes.toy  # fixtures

FOLDERS = ("plain-network-seed0", "mimo-seed0", "linear-mixmo-seed0", "cut-mixmo-seed0")
FIGURES = {
    "accuracy", "member_accuracy", "top5", "nll", "nll_calibrated", "ece", "brier", "disagreement", "ratio_error",
    "error_correlation", "member_accuracy_0", "member_accuracy_1",
}  # fmt: skip

OF_SEVERAL = {"disagreement", "ratio_error", "error_correlation", "member_accuracy_1"}


def tiny(data: str, out: Path | str, *more: str | Path) -> tuple[str | Path, ...]:
    """18 steps of a small network, of the plain one 8."""
    return (
        "--preset", "smoke", "--data", data, "--validation", "8", "--batch", "16", "--epochs", "2", "--threads", "1",
        "--network", "wrn-10-1", "--method.repetitions", "2", "--record-every", "3",
        "--evaluate-every", "6", "--save-every", "4", "--out", out, *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(recipes, toy) -> Path:
    recipes.succeed("mixmo.py", *tiny(toy, "mixmo"))
    return recipes.folder / "mixmo"


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_all_methods_leave_their_figures_and_stand_in_one_table(recipes, run):
    said = result(run)
    assert list(said["classifiers"]) == list(TITLES.values())
    for folder, title in zip(FOLDERS, TITLES.values(), strict=True):
        found, plain = result(run / folder), title == "Plain network"
        expected = FIGURES - (
            {"disagreement", "ratio_error", "error_correlation", "member_accuracy_1"} if plain else set()
        )
        names = {name.removeprefix("test_").removesuffix("_last") for name in found if name.endswith("_last")}
        assert names == expected and found["steps"] == (8 if plain else 18)
        for figure in ("accuracy", "member_accuracy", "nll_calibrated", "ece"):
            assert said["classifiers"][title][f"test_{figure}_last"]["mean"] == found[f"test_{figure}_last"]
        rows = [json.loads(line) for line in (run / folder / "metrics.jsonl").read_text().splitlines()]
        shares = {name for row in rows for name in row if name.startswith("classifier/share_")}
        assert shares == {f"classifier/share_{i}" for i in range(1 if plain else 2)}
        assert any(row.get("validation/nll", 0) > 0 for row in rows)


def test_the_table_tells_ensemble_members_likelihood_calibration_diversity_and_time(recipes, toy):
    recipes.succeed("mixmo.py", *tiny(toy, "table", "--methods", "plain", "cut-mixmo", "--epochs", "0.5"))
    lines = recipes.stdout().splitlines()
    header, *rows = lines[next(i for i, line in enumerate(lines) if line.startswith("test accuracy")) :][:3]
    assert header.split("%", 1)[1].split()[:10] == [
        "last", "selected", "members", "NLL_c", "ECE,", "%", "disagree,", "%", "ratio-error", "seconds",
    ]  # fmt: skip
    found = result(recipes.folder / "table" / "cut-mixmo-seed0")
    told = re.sub(r"\[.*?\]", "", rows[1]).removeprefix("Cut-MixMo").split()  # intervals are in brackets
    assert told[0] == f"{100 * found['test_accuracy_last']:.1f}"
    assert told[2] == f"{100 * found['test_member_accuracy_last']:.1f}"
    assert told[3] == f"{found['test_nll_calibrated_last']:.3f}" and told[4] == f"{100 * found['test_ece_last']:.1f}"
    assert told[5] == f"{100 * found['test_disagreement_last']:.1f}"
    assert told[6] == f"{found['test_ratio_error_last']:.3f}"
    assert rows[0].split()[-3:-1] == ["–", "–"]


def test_only_cut_mixmo_has_patches(run):
    def patches(folder: str) -> dict[int, float]:
        rows = [json.loads(line) for line in (run / folder / "metrics.jsonl").read_text().splitlines()]
        return {row["step"]: row["classifier/patches"] for row in rows if "classifier/patches" in row}

    assert sum(patches("cut-mixmo-seed0").values()) > 0
    assert not any(patches(folder)[step] for folder in FOLDERS[:3] for step in patches(folder))


def test_what_is_deployed_computes_the_ensemble_that_was_measured(run, toy):
    """One plain network, read back by one call."""
    data = np.load(toy.removeprefix("npz:"))
    images = torch.tensor(data["x_test"]).permute(0, 3, 1, 2).float() / 255
    for folder in FOLDERS:
        classifier, classes, side = load_classifier(run / folder / "network.safetensors")
        with torch.no_grad():
            logits = classifier(images)
        found = judged_by("logits")(logits[None], torch.tensor(data["y_test"]).long())
        assert (classes, side) == (("0", "1"), 16)
        for figure in ("accuracy", "nll", "ece", "brier", "nll_calibrated"):
            assert found[figure] == pytest.approx(result(run / folder)[f"test_{figure}_last"], rel=1e-3, abs=1e-4)


def test_ensembles_of_probabilities_leave_no_plain_network(recipes, toy):
    given = ("--methods", "cut-mixmo", "--method.ensemble", "probabilities", "--epochs", "0.5")
    recipes.succeed("mixmo.py", *tiny(toy, "probabilities", *given))
    folder = recipes.folder / "probabilities" / "cut-mixmo-seed0"
    assert not (folder / "network.safetensors").exists() and result(folder)["test_nll_last"] > 0


def test_stopped_and_resumed_equals_never_stopped(recipes, toy, run):
    out = recipes.folder / "stopped"
    arguments = tiny(toy, out)
    for folder, step in ((out / "mimo-seed0", 4), (out / "cut-mixmo-seed0", 8)):
        resume = ("--resume",) if out.exists() else ()
        recipes.start("mixmo.py", *arguments, *resume)
        there = lambda folder=folder, step=step: (folder / "checkpoints" / f"step-{step:08d}.pt").exists()
        assert recipes.stop(signal.SIGTERM, there) == 128 + signal.SIGTERM, recipes.stderr()
    recipes.succeed("mixmo.py", *arguments, "--resume")
    for name in FOLDERS:
        ours, theirs = (load_file(folder / name / "network.safetensors") for folder in (out, run))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        metrics = [(folder / name / "metrics.jsonl").read_text() for folder in (out, run)]
        assert metrics[0] == metrics[1]
        mine, other = (result(folder / name) for folder in (out, run))
        for key in other.keys() - {"seconds"}:
            assert mine[key] == other[key] or (math.isnan(mine[key]) and math.isnan(other[key])), key


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--methods", "mixup"), "'mixup' for argument '--methods'. Expected one of ('plain', 'mimo', 'linear-mixmo'"),
        (("--methods", "mimo", "mimo"), "--methods: ['mimo', 'mimo'] should be one or more, each once"),
        (("--method.cutmix", "1.5"), "--method.cutmix: 1.5 should be less than or equal to 1"),
        (("--method.root", "0"), "--method.root: 0.0 should be greater than 0"),
        (("--method.alpha", "-1"), "--method.alpha: -1.0 should be greater than 0"),
        (("--method.patch-probability", "1.5"), "--method.patch-probability: 1.5 should be less than or equal to 1"),
        (("--method.inputs", "16", "--batch", "8"), "method.inputs: 16, but a batch has 8 images for each process"),
        (("--methods", "mimo", "--method.alpha", "3"), "method.alpha: 3.0, but every method that is trained"),
        (("--method.repetitions", "3"), "repetitions = 3: does not divide the 16 labelled images"),
        (("--network", "vit_tiny_patch16_224"), "network: the first layer of VisionTransformer is no convolution"),
        (("--crop", "2"), "mask: cutmix on encodings of 2×2"),
        (("--method.mask", "square"), "--method.mask"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(recipes, toy, arguments, words):
    assert words in recipes.refuse("mixmo.py", *tiny(toy, "bad", *arguments))
    assert not (recipes.folder / "bad").exists()
