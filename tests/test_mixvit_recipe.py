"""The recipe of MixViT, as its users run it."""

import importlib.util
import json
import math
import shutil
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe_modules import recipe
from safetensors.torch import load_file

from hybridgen.cli import main
from hybridgen.commands.mixing import StudyInference
from hybridgen.configuration import launch
from hybridgen.evaluation.ensembles import judged_by
from hybridgen.methods import mixvit
from hybridgen.networks import members
from hybridgen.networks.classifiers import load_classifier

spec = importlib.util.spec_from_file_location("recipes_as_processes", Path(__file__).with_name("test_recipes.py"))
processes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(processes)
recipes, toy, refuse = processes.recipes, processes.toy, processes.refuse  # fixtures

FOLDERS = ("one-input-seed0", "mixvit-embedding-seed0", "mixvit-encoding-seed0")


def tiny(data: str, out: Path | str, *more: str | Path) -> tuple[str | Path, ...]:
    """Four steps an epoch of a small network."""
    return (
        "--preset", "smoke", "--data", data, "--validation", "8", "--batch", "16", "--epochs", "2", "--threads", "1",
        "--network", "convit-12-3-1-patch4", "--stochastic-depth", "0.1", "--method.msda", "--record-every", "1",
        "--evaluate-every", "6", "--save-every", "3", "--out", out, *more,
    )  # fmt: skip


def start(monkeypatch, *arguments: str | Path) -> None:
    of = recipe("mixvit")
    monkeypatch.setattr(sys, "argv", ["mixvit.py", *map(str, arguments)])
    launch(of.main, of.Config, of.PRESETS)


@pytest.fixture(scope="module")
def run(recipes, toy) -> Path:
    recipes.succeed("mixvit.py", *tiny(toy, "mixvit"))
    return recipes.folder / "mixvit"


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_all_methods_stand_in_one_table_and_what_is_deployed_computes_what_was_measured(run, toy):
    said = result(run)
    assert list(said["classifiers"]) == ["One input", "MixViT-embedding", "MixViT-encoding"]
    data = np.load(toy.removeprefix("npz:"))
    images = torch.tensor(data["x_test"]).permute(0, 3, 1, 2).float() / 255
    costs = []
    for folder, row in zip(FOLDERS, said["classifiers"].values(), strict=True):
        found = result(run / folder)
        for figure in ("accuracy", "member_accuracy", "nll_calibrated", "ece", "mflops"):
            assert row[f"test_{figure}_last"]["mean"] == found[f"test_{figure}_last"]
        classifier, classes, side = load_classifier(run / folder / "network.safetensors")
        with torch.no_grad():
            measured = judged_by("logits")(classifier.members(images), torch.tensor(data["y_test"]).long())
        assert (classes, side) == (("0", "1"), 16) and found["steps"] == 8
        for figure in ("accuracy", "member_accuracy", "nll", "ece"):
            assert measured[figure] == pytest.approx(found[f"test_{figure}_last"], rel=1e-3, abs=1e-4)
        costs.append(found["test_mflops_last"])
    assert costs[0] < costs[1] < costs[2] < 2 * costs[0]


def test_study_inference_is_of_the_network_that_the_run_left(run, tmp_path, capsys):
    """What the run recorded is what its own inference answers and costs."""
    folder, threads = run / FOLDERS[2], str(torch.get_num_threads())
    common = ("study", "inference", "--batch", "2", "--rounds", "1", "--threads", threads, "--out")
    main([*common, str(tmp_path / "a"), "--of", str(folder)])
    found, recorded = json.loads((tmp_path / "a" / "inference.json").read_text()), result(folder)
    own = found["inferences"][found["inference_of_the_run"]]
    assert (found["inference_of_the_run"], found["images"], found["batch"]) == ("separate", 24, 2)
    assert own["accuracy"] == recorded["test_accuracy_last"]
    assert own["member_accuracies"] == [recorded[f"test_member_accuracy_{i}_last"] for i in (0, 1)]
    assert own["flops"] == 1e6 * recorded["test_mflops_last"]
    assert {path.name for path in (tmp_path / "a").iterdir()} == {f"inference.{end}" for end in ("json", "txt", "png")}

    new = ("--network", "convit-12-3-1-patch4", "--source", "encoding", "--classes", "2", "--image-size", "16")
    main([*common, str(tmp_path / "b"), *new])
    values = json.loads((tmp_path / "b" / "inference.json").read_text())["inferences"]
    assert {how: of["flops"] for how, of in values.items()} == {
        how: of["flops"] for how, of in found["inferences"].items()
    }
    capsys.readouterr()
    for arguments, words in (
        ((), "--of, --network: give one of them"),
        (("--of", str(folder), "--inputs", "3"), "--inputs: is of --network; the network of --of has its own"),
        (("--of", str(run / FOLDERS[0])), "network: of one input, which has one inference"),
        (("--network", "wrn-10-1"), "network: WideResNetClassifier is no vision transformer"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*common, str(tmp_path / "c"), *arguments])
        assert stopped.value.code == 2 and words in capsys.readouterr().err and not (tmp_path / "c").exists()


@pytest.mark.parametrize("name", FOLDERS)
def test_a_checkpoint_of_an_unfinished_run_is_scored_by_its_configuration(run, tmp_path, capsys, name):
    """As the run recorded it, though it has left no network yet."""
    folder = shutil.copytree(run / name, tmp_path / name)
    for path in (folder / "result.json", folder / "network.safetensors"):
        path.unlink()
    last = max((folder / "checkpoints").glob("step-*.pt"))
    main(["score", str(last), "--json", "--threads", str(torch.get_num_threads())])
    (own,) = json.loads(capsys.readouterr().out)["classifiers"].values()
    recorded = result(run / name)
    for figure in ("accuracy", "nll", "ece", *(("member_accuracy", "disagreement") if name != FOLDERS[0] else ())):
        assert own[figure] == pytest.approx(recorded[f"test_{figure}_last"], rel=1e-5, abs=1e-7), figure

    if name == FOLDERS[1]:  # as runs had it whose configuration was that of the comparison
        state = torch.load(last, weights_only=True)
        state["identity"]["methods"] = ["single", "mixvit-embedding"]
        torch.save(state, last)
        with pytest.raises(SystemExit):
            main(["score", str(last)])
        assert "its configuration is that of several methods" in capsys.readouterr().err


def test_a_new_network_is_told_apart_as_settings_say():
    """The command line has the words of `members`, which it does not wait for."""
    kinds = {field.name: field.type for field in fields(StudyInference)}
    assert kinds["source"] == members.Source | None and kinds["place"] == members.Place | None


def test_stopped_and_resumed_equals_never_stopped(monkeypatch, toy, run, tmp_path, capsys):
    class Stopped(Exception):
        pass

    def stopping(clock):
        seen.append(clock.step)
        if seen.count(5) == 2:
            raise Stopped
        return whole(clock)

    whole, out, seen = mixvit.whole_probability, tmp_path / "stopped", []
    arguments = tiny(toy, out, "--methods", "single", "mixvit-encoding")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(mixvit, "whole_probability", stopping)
        start(patch, *arguments)
    assert (out / FOLDERS[2] / "checkpoints" / "step-00000003.pt").exists()
    finished = {path: path.stat().st_mtime_ns for path in (out / FOLDERS[0]).rglob("*")}
    start(monkeypatch, *arguments, "--resume")
    assert "MFLOPs" in capsys.readouterr().out
    assert finished == {path: path.stat().st_mtime_ns for path in (out / FOLDERS[0]).rglob("*")}
    ours, theirs = (load_file(folder / FOLDERS[2] / "network.safetensors") for folder in (out, run))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    mine, other = (result(folder / FOLDERS[2]) for folder in (out, run))
    for key in other.keys() - {"seconds"}:
        assert mine[key] == other[key] or (math.isnan(mine[key]) and math.isnan(other[key])), key


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--methods", "single", "single"), "--methods: ['single', 'single'] should be one or more, each once"),
        (("--method.alpha", "0"), "--method.alpha: 0.0 should be greater than 0"),
        (("--stochastic-depth", "1"), "--stochastic-depth: 1.0 should be less than 1"),
        (("--network", "wrn-10-1"), "network: WideResNetClassifier is no vision transformer"),
        (("--network", "convit-12-5-1"), "network: a dimension of 12 is not divided by 5 heads"),
        (("--network", "convit-12-3-1-patch5"), "network: patches of 5 pixels do not divide images of 16"),
        (("--method.inputs", "16", "--batch", "8"), "method.inputs: 16, but a batch has 8 images for each process"),
        (("--method.mixing", "all"), "method.mixing: all, but every method that is trained has its own; leave it out"),
        (("--method.inference", "sum", "--table", "4.4"), "method.inference: sum, but every method"),
        (("--method.encoders", "each"), "method.encoders: each, but every method"),
        (("--method.place", "early"), "method.place: early, but every method"),
        (("--method.inputs", "3", "--methods", "single"), "method.inputs: 3, but every method"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(refuse, recipes, toy, arguments, words):
    assert words in refuse("mixvit.py", *tiny(toy, "bad", *arguments))
    assert not (recipes.folder / "bad").exists()


def test_a_file_of_another_size_or_backbone_is_one_error(run, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    from hybridgen.types import InputError

    path = run / FOLDERS[1] / "network.safetensors"
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    for changes in ({"image_size": "32"}, {"network": "convit-12-3-2-patch4"}, {"network": "wrn-10-1"},
                    {"inputs": '{"inputs": 3}'}):  # fmt: skip
        save_file(load_file(path), tmp_path / "other.safetensors", metadata=about | changes)
        with pytest.raises(InputError, match=r"other.safetensors: does not fit its own metadata"):
            load_classifier(tmp_path / "other.safetensors")
