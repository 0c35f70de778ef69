"""The recipes as their users run them: what they leave, how they stop, go on, and say no."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from recipe_modules import recipe
from safetensors.torch import load_file

from hybridgen.configuration import launch
from hybridgen.data.datasets import load_dataset
from hybridgen.data.splits import make_split
from hybridgen.hybridizer import Hybridizer
from hybridgen.training.record import UNIDENTIFIED

RECIPES = Path(__file__).parent.parent / "recipes"
PATIENCE = 600
"""Seconds after which a process is given up."""


# --- processes -----------------------------------------------------------------------------------------------


class Recipes:
    """Starts recipes one after the other, each as a process of its own, or as several (see recipe_server.py)."""

    def __init__(self, server: Connection, folder: Path) -> None:
        self.server, self.folder, self.pids = server, folder, []

    def _answer(self) -> list[int] | int:
        if not self.server.poll(PATIENCE):
            self.send(signal.SIGKILL)
            pytest.fail(f"nothing for {PATIENCE} s; stderr:\n{self.stderr()}")
        return self.server.recv()

    def start(
        self, recipe: str | Path, *arguments: str | Path, memory: int | None = None, curves: bool = False,
        processes: int = 1,
    ) -> None:  # fmt: skip
        """With so many bytes to spare, where they are given; with an empty file in the place of curves unless asked
        for: once for each kind."""
        argv = [str(RECIPES / recipe), *map(str, arguments)]
        self.server.send(
            {"argv": argv, "folder": self.folder, "memory": memory, "curves": curves, "processes": processes}
        )
        self.pids = self._answer()

    def code(self) -> int:
        """The exit code, after waiting for it; a signal's number is negative."""
        code, self.pids = self._answer(), []
        return code

    def run(self, recipe: str | Path, *arguments: str | Path, **more: int | bool) -> int:
        self.start(recipe, *arguments, **more)
        return self.code()

    def send(self, number: signal.Signals) -> None:
        for pid in self.pids:
            os.kill(pid, number)

    def stop(self, number: signal.Signals, when: Callable[[], bool]) -> int:
        """Send the process a signal as soon as `when` holds, and wait for its end."""
        began = time.monotonic()
        while not when():
            assert time.monotonic() - began < PATIENCE
            if self.server.poll(0.01):
                pytest.fail(f"ended before it was stopped, with {self.code()}:\n{self.stderr()}")
        self.send(number)
        return self.code()

    def stdout(self) -> str:
        return (self.folder / "stdout").read_text()

    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    def succeed(self, recipe: str | Path, *arguments: str | Path, **more: int | bool) -> None:
        assert self.run(recipe, *arguments, **more) == 0, self.stderr()

    def refuse(self, recipe: str, *arguments: str | Path) -> str:
        """The one line with which bad input is refused."""
        assert self.run(recipe, *arguments) == 2, self.stderr()
        lines = self.stderr().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), self.stderr()
        assert self.stdout() == ""
        return lines[0]


@pytest.fixture(scope="module")
def recipes(recipe_server, tmp_path_factory):
    started = Recipes(recipe_server, tmp_path_factory.mktemp("recipes"))
    yield started
    if started.pids:  # left over by a test that failed
        started.send(signal.SIGKILL)
        started.code()


@pytest.fixture
def refuse(recipes, monkeypatch, capfd) -> Callable[..., str]:
    """`Recipes.refuse` in this process."""
    monkeypatch.chdir(recipes.folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(recipes.folder / "cache"))

    def refused(name: str, *arguments: str | Path) -> str:
        of = recipe(Path(name).stem)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            launch(of.main, of.Config, of.PRESETS)
        said = capfd.readouterr()
        lines = said.err.splitlines()
        assert end.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: ") and said.out == "", said
        return lines[0]

    return refused


# --- small things to train on and from -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy(recipes) -> str:
    """Two classes, a bright and a dark square, on noise."""
    random = np.random.default_rng(0)

    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % 2
        images = random.integers(64, 192, (count, 16, 16, 3), dtype=np.uint8)
        images[:, 5:11, 5:11] = (labels * 255)[:, None, None, None]
        return images, labels

    (x_train, y_train), (x_test, y_test) = part(80), part(24)
    np.savez(recipes.folder / "toy.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return f"npz:{recipes.folder / 'toy.npz'}"


def tiny(data: str, out: Path | str, *more: str | Path) -> tuple[str | Path, ...]:
    """24 steps of stage 1."""
    return (
        "--preset", "smoke", "--data", data, "--labels", "8", "--validation", "8", "--labelled-batch", "4",
        "--unlabelled-batch", "9", "--epochs", "3", "--threads", "1", "--method.generator-channels", "8", "8",
        "--record-every", "3", "--evaluate-every", "6", "--save-every", "5", "--oracle", "none", "--out", out, *more,
    )  # fmt: skip


def tiny_stage_2(data: str, hybridizer: Path | str, out: Path | str, *more: str | Path) -> tuple[str | Path, ...]:
    """16 steps of stage 2, half of them with hybrids."""
    return (
        "--preset", "smoke", "--data", data, "--labels", "8", "--validation", "8", "--labelled-batch", "4",
        "--unlabelled-batch", "9", "--epochs", "2", "--hybrids.start", "0.5", "--hybrids.stop", "1.5", "--threads", "1",
        "--record-every", "3", "--evaluate-every", "6", "--save-every", "5", "--oracle.steps", "10",
        "--hybridizer", hybridizer, "--out", out, *more,
    )  # fmt: skip


def tiny_samosa(data: str, out: Path | str, *more: str | Path) -> tuple[str | Path, ...]:
    """16 steps of each classifier, in two cycles where there are cycles."""
    return (
        "--preset", "smoke", "--data", data, "--labels", "8", "--validation", "8", "--labelled-batch", "4",
        "--unlabelled-batch", "9", "--epochs", "1", "--samosa.start", "0.2", "--samosa.stop", "0.8", "--threads",
        "1", "--record-every", "3", "--evaluate-every", "6", "--save-every", "5", "--oracle.steps", "10",
        "--out", out, *more,
    )  # fmt: skip


MIXMATCH_BATCHES = ("--labelled-batch", "4", "--unlabelled-batch", "4", "--epochs", "1.3")
"""Of equal size: 18 steps an epoch."""


@pytest.fixture(scope="module")
def stage_1(recipes, toy) -> Path:
    """The folder of a run of stage 1 that never stopped."""
    recipes.succeed("scimix.py", *tiny(toy, "stage_1"))
    return recipes.folder / "stage_1"


@pytest.fixture(scope="module")
def stage_2(recipes, toy, stage_1) -> Path:
    """And of stage 2."""
    recipes.succeed("scimix_fixmatch.py", *tiny_stage_2(toy, stage_1 / "hybridizer", "stage_2"), curves=True)
    return recipes.folder / "stage_2"


def metrics(folder: Path) -> list[dict[str, float]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def result(folder: Path, *without: str) -> dict:
    values = json.loads((folder / "result.json").read_text())
    return {key: value for key, value in values.items() if key not in without}


def reached(folder: Path, step: int) -> Callable[[], bool]:
    """Whether the step's checkpoint is there."""
    return lambda: (folder / "checkpoints" / f"step-{step:08d}.pt").exists()


def recorded(folder: Path, step: int) -> Callable[[], bool]:
    def there() -> bool:
        with contextlib.suppress(ValueError):  # a line that is being written
            return any(row["step"] >= step for row in metrics(folder))
        return False

    return there


def assert_same_state(first: Path, second: Path) -> None:
    """The last checkpoints hold the same numbers, bit for bit."""
    paths = [max((folder / "checkpoints").glob("step-*.pt")) for folder in (first, second)]
    assert paths[0].name == paths[1].name
    states = [torch.load(path, weights_only=True) for path in paths]
    assert flat(states[0]["modules"]) == flat(states[1]["modules"])
    assert flat(states[0]["optimizers"]) == flat(states[1]["optimizers"])


def flat(value: object) -> object:
    """Tensors as bytes, so that == compares bits."""
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), value.contiguous().numpy().tobytes())
    if isinstance(value, dict):
        return {key: flat(each) for key, each in value.items()}
    return [flat(each) for each in value] if isinstance(value, list | tuple) else value


def assert_same_artefact(first: Path, second: Path) -> None:
    weights = [load_file(folder / "hybridizer" / "model.safetensors") for folder in (first, second)]
    assert flat(weights[0]) == flat(weights[1])


# --- stage 1 -------------------------------------------------------------------------------------------------


def test_the_smoke_preset_leaves_everything_that_a_run_leaves(recipes):
    recipes.succeed(
        "scimix.py",
        "--preset",
        "smoke",
        "--epochs",
        "0.05",
        "--out",
        "smoke",
        "--threads",
        "1",
        "--oracle",
        "none",
        curves=True,
    )
    folder = recipes.folder / "smoke"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["data"], config["method"]["epochs"], config["out"]) == ("digits-m", 0.05, "smoke")
    lines = (folder / "config.yaml").read_text().splitlines()
    assert {"labels: auto  # 100", "validation: auto  # 100", "  network: null  # leaky-wrn-10-1"} <= set(lines)
    values = result(folder)
    assert {"test_accuracy_last", "seed", "steps", "seconds", "split_hash"} <= values.keys()
    assert 0 <= values["test_accuracy_last"] <= 1 and values["seconds"] > 0 and values["seed"] == 0
    assert list((folder / "tensorboard").glob("events*"))
    for name in ("curves.png", "grid.png"):
        with Image.open(folder / name) as picture:
            picture.load()
            assert min(picture.size) > 100
    hybridizer = Hybridizer.from_pretrained(folder / "hybridizer")
    dataset = load_dataset("digits-m")
    split = make_split(dataset, labels=100, seed=0, validation=100)
    assert hybridizer.origin.split_hash == values["split_hash"] == split.hash
    assert hybridizer.origin.fingerprint == dataset.fingerprint
    steps_per_epoch = (len(dataset.train) - 100) // 40
    assert metrics(folder)[-1]["step"] == values["steps"] == round(0.05 * steps_per_epoch)
    training = hybridizer.origin.training
    assert len(training["method"]) > 30 and training == {field: config[field] for field in training}
    assert config.keys() - training.keys() == set(UNIDENTIFIED)


def test_the_weights_of_the_artefact_are_the_averaged_ones_of_the_last_checkpoint(stage_1):
    state = torch.load(max((stage_1 / "checkpoints").glob("*.pt")), weights_only=True)["modules"]["average"]
    saved = load_file(stage_1 / "hybridizer" / "model.safetensors")
    assert flat(saved) == flat({name: state[f"network.{name}"] for name in saved})


def test_the_saved_configuration_runs_again_and_gives_the_same(recipes, stage_1):
    """Whoever judges its hybrids: this one's are."""
    judged = ("--oracle", "trained", "--oracle.steps", "10")
    recipes.succeed("scimix.py", "--config", stage_1 / "config.yaml", "--out", "again", *judged)
    again, said = recipes.folder / "again", recipes.stdout()
    rates = json.loads((again / "transfer.json").read_text())
    shares = np.array(rates["confusion"])  # each class has as many semantic parents
    assert shares.trace() / 2 == pytest.approx(rates["semantic_transfer"]) and rates["semantic_parents"] == 24
    assert f"hybrids: semantic transfer {rates['semantic_transfer']:.3f} [" in said
    assert (
        "again: report.html," in said and "next: hybridgen train scimix-fixmatch --hybridizer again/hybridizer" in said
    )
    assert (again / "report.html").stat().st_size > 1000 and not (stage_1 / "transfer.json").exists()
    assert metrics(again) == metrics(stage_1)
    assert result(again, "seconds") == result(stage_1, "seconds")
    assert_same_artefact(again, stage_1)


def test_another_seed_gives_another_run(recipes, stage_1):
    recipes.succeed("scimix.py", "--config", stage_1 / "config.yaml", "--out", "seed", "--seed", "1", "--epochs", "1")
    assert metrics(recipes.folder / "seed")[0] != metrics(stage_1)[0]


def test_stopped_three_ways_and_resumed_equals_never_stopped(recipes, toy, stage_1):
    folder, arguments = recipes.folder / "stopped", tiny(toy, "stopped")
    recipes.start("scimix.py", *arguments)
    assert recipes.stop(signal.SIGINT, recorded(folder, 3)) == 130
    first = max((folder / "checkpoints").glob("*.pt"))
    assert f"stopped by signal 2 after {first.relative_to(recipes.folder)}; --resume continues" in recipes.stderr()
    assert not (folder / "result.json").exists() and not (folder / "hybridizer").exists()

    recipes.start("scimix.py", *arguments, "--resume")
    assert recipes.stop(signal.SIGTERM, recorded(folder, 12)) == 143
    assert max((folder / "checkpoints").glob("*.pt")) > first

    recipes.start("scimix.py", *arguments, "--resume")
    assert recipes.stop(signal.SIGKILL, reached(folder, 20)) == -signal.SIGKILL

    recipes.succeed("scimix.py", *arguments, "--resume")
    assert metrics(folder) == metrics(stage_1)
    assert result(folder, "seconds") == result(stage_1, "seconds")
    assert_same_state(folder, stage_1)
    assert_same_artefact(folder, stage_1)


def test_an_occupied_folder_is_never_written_over(recipes, toy, stage_1):
    before = {path: path.stat().st_mtime_ns for path in stage_1.rglob("*")}
    assert "stage_1 is not empty; --resume" in recipes.refuse("scimix.py", *tiny(toy, "stage_1"))
    assert "seed = 0, this run 1" in recipes.refuse("scimix.py", *tiny(toy, "stage_1", "--resume", "--seed", "1"))
    assert {path: path.stat().st_mtime_ns for path in stage_1.rglob("*")} == before


def test_a_damaged_checkpoint_stops_a_resumed_run(recipes, toy):
    folder = recipes.folder / "damaged"
    recipes.start("scimix.py", *tiny(toy, "damaged"))
    recipes.stop(signal.SIGTERM, recorded(folder, 3))
    newest = max((folder / "checkpoints").glob("*.pt"))
    newest.write_bytes(newest.read_bytes()[:-1000])
    said = recipes.refuse("scimix.py", *tiny(toy, "damaged", "--resume"))
    assert newest.name in said and "damaged checkpoint" in said


def test_a_full_disk_leaves_the_last_good_checkpoint(recipes, toy):
    """Files of this process end at a size that holds the first checkpoint, before the optimizers have state, and not
    the next."""
    folder = recipes.folder / "full"
    recipes.start("scimix.py", *tiny(toy, "full", "--epochs", "1"))
    while not reached(folder, 0)():
        time.sleep(0.01)
    size = (folder / "checkpoints" / "step-00000000.pt").stat().st_size
    resource.prlimit(*recipes.pids, resource.RLIMIT_FSIZE, (size, size))
    assert recipes.code() == 2
    last = recipes.stderr().splitlines()[-1]
    assert last == "error: full/checkpoints/step-00000005.pt: cannot be written: File too large"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000000.pt"]
    assert not (folder / "result.json").exists()
    recipes.succeed("scimix.py", *tiny(toy, "full", "--epochs", "1", "--resume"))


def test_a_diverging_run_names_the_term_and_the_last_good_checkpoint(recipes, toy):
    code = recipes.run("scimix.py", *tiny(toy, "diverged", "--rate", "1e6", "--method.optimizer", "sgd"))
    assert code == 1
    said = recipes.stderr().splitlines()[-1]
    assert said.startswith("error: loss '") and "diverged/checkpoints/step-00000000.pt" in said
    assert not (recipes.folder / "diverged" / "hybridizer").exists()


@pytest.mark.parametrize("guide", ["mean-teacher", "fixmatch", "supervised"])
def test_every_guide_trains(recipes, toy, guide):
    recipes.succeed(
        "scimix.py", *tiny(toy, f"guide-{guide}", "--guide", guide, "--epochs", "0.5"),
        "--method.weight-gradient-penalty", "1",
    )  # fmt: skip
    terms = {"mean-teacher": "consistency", "fixmatch": "pseudo_label", "supervised": "supervised"}
    row = metrics(recipes.folder / f"guide-{guide}")[0]
    assert f"generator/{terms[guide]}" in row and "discriminator/gradient_penalty" in row


# --- stage 2 -------------------------------------------------------------------------------------------------


def test_both_classifiers_stand_side_by_side(recipes, stage_1, stage_2):
    values = result(stage_2)
    assert list(values["classifiers"]) == ["FixMatch", "FixMatch + SciMix"]
    last = values["classifiers"]["FixMatch + SciMix"]
    assert values["test_accuracy_last"] == last["test_accuracy_last"]["mean"]
    assert values["test_accuracy_selected"] == last["test_accuracy_selected"]["mean"]
    assert (values["seed"], values["steps"], values["allow_other_split"]) == (0, 16, False)
    assert values["split_hash"] == result(stage_1)["split_hash"] and values["seconds"] > 0
    for key in ("semantic_transfer", "nonsemantic_preservation", "oracle_accuracy"):
        assert 0 <= values["transfer"][key] <= 1
    assert (stage_2 / "grid.png").exists()
    for name in ("fixmatch-seed0", "scimix-seed0"):
        assert result(stage_2 / name)["steps"] == 16
        assert (stage_2 / name / "curves.png").exists() and list((stage_2 / name / "tensorboard").glob("events*"))
    rows = [row for row in metrics(stage_2 / "scimix-seed0") if "classifier/hybrids" in row]
    assert [row["step"] for row in rows if row["classifier/hybrids"] > 0] == [6, 9, 12]  # epochs 0.5 to 1.5


def test_without_a_hybridizer_it_is_the_same_fixmatch_alone(recipes, toy, stage_2):
    recipes.succeed("scimix_fixmatch.py", *tiny_stage_2(toy, "none", "plain"))
    plain = recipes.folder / "plain"
    assert list(result(plain)["classifiers"]) == ["FixMatch"] and result(plain)["transfer"] is None
    assert metrics(plain / "fixmatch-seed0") == metrics(stage_2 / "fixmatch-seed0")
    assert not (plain / "scimix-seed0").exists()
    printed = recipes.stdout()
    assert "FixMatch" in printed and "SciMix" not in printed


def test_several_seeds_give_a_mean_and_a_deviation(recipes, toy):
    recipes.succeed("scimix_fixmatch.py", *tiny_stage_2(toy, "none", "seeds", "--seeds", "2", "--epochs", "1"))
    folder = recipes.folder / "seeds"
    each = [result(folder / f"fixmatch-seed{seed}")["test_accuracy_last"] for seed in (0, 1)]
    summary = result(folder)["classifiers"]["FixMatch"]["test_accuracy_last"]
    assert summary == {"mean": pytest.approx(np.mean(each)), "std": pytest.approx(np.std(each, ddof=1))}
    assert "±" in recipes.stdout()


def test_a_comparison_stopped_in_its_second_half_goes_on_there(recipes, toy, stage_1, stage_2):
    folder, arguments = recipes.folder / "halves", tiny_stage_2(toy, stage_1 / "hybridizer", "halves")
    recipes.start("scimix_fixmatch.py", *arguments)
    assert recipes.stop(signal.SIGTERM, recorded(folder / "scimix-seed0", 6)) == 143
    assert not (folder / "result.json").exists()
    first = (folder / "fixmatch-seed0" / "result.json").stat().st_mtime_ns
    recipes.succeed("scimix_fixmatch.py", *arguments, "--resume")
    assert (folder / "fixmatch-seed0" / "result.json").stat().st_mtime_ns == first
    for name in ("fixmatch-seed0", "scimix-seed0"):
        assert metrics(folder / name) == metrics(stage_2 / name)
        assert result(folder / name, "seconds") == result(stage_2 / name, "seconds")
        assert_same_state(folder / name, stage_2 / name)
    assert result(folder, "seconds", "classifiers") == result(stage_2, "seconds", "classifiers")


def test_the_bundled_hybridizer_is_for_its_own_images(recipes, toy):
    said = recipes.refuse("scimix_fixmatch.py", *tiny_stage_2(toy, "bundled", "foreign"))
    assert "bundled" in said and "digits-m" in said and "--hybridizer" in said
    assert not (recipes.folder / "foreign").exists()


@pytest.mark.parametrize("recipe", ["scimix.py", "scimix_fixmatch.py", "samosa_mean_teacher.py"])
def test_a_single_test_image_is_refused_before_training(recipes, recipe):
    random = np.random.default_rng(0)
    labels = np.arange(40) % 2
    images = random.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    np.savez(recipes.folder / "one.npz", x_train=images, y_train=labels, x_test=images[:1], y_test=labels[:1])
    data = f"npz:{recipes.folder / 'one.npz'}"
    given = {"scimix.py": tiny(data, "one"), "samosa_mean_teacher.py": tiny_samosa(data, "one")}
    assert "1" in recipes.refuse(recipe, *given.get(recipe, tiny_stage_2(data, "none", "one")))
    assert not (recipes.folder / "one").exists()


def test_a_hybridizer_of_another_split_is_refused_unless_allowed(recipes, toy, stage_1):
    other = tiny_stage_2(toy, stage_1 / "hybridizer", "other", "--split-seed", "1", "--epochs", "1")
    said = recipes.refuse("scimix_fixmatch.py", *other)
    assert result(stage_1)["split_hash"] in said and "--allow-other-split" in said
    assert not (recipes.folder / "other").exists()
    recipes.succeed(
        "scimix_fixmatch.py", *other, "--hybrids.stop", "inf", "--hybrids.start", "0", "--allow-other-split"
    )
    assert result(recipes.folder / "other")["allow_other_split"] is True


def test_hybrids_are_judged_by_nobody_if_so_asked(recipes, toy, stage_1, stage_2):
    """Then no oracle is trained; nor is it where one is there, which is refused for other data."""
    cache = recipes.folder / "cache"
    (kept,) = (path.parent for path in cache.rglob("oracle.json") if '"steps": 10,' in path.read_text())
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    arguments = tiny_stage_2(toy, stage_1 / "hybridizer", "unjudged", "--no-baseline", "--oracle", kept)
    said = recipes.refuse("scimix_fixmatch.py", *arguments)
    assert said.startswith("error: --oracle.steps: is for training an oracle, but --oracle ")
    other = ("--oracle.steps", "None", "--image-size", "32", "--hybridizer", "none", "--baseline")
    said = recipes.refuse("scimix_fixmatch.py", *arguments, *other)
    assert said.endswith("an oracle of other data: image_size is 16, here 32")
    recipes.succeed("scimix_fixmatch.py", *arguments, "--oracle", "none", "--epochs", "1.2")
    assert result(recipes.folder / "unjudged")["transfer"] is None
    assert "hybrids: not judged (--oracle none); unjudged/grid.png" in recipes.stdout()
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before


# --- classifier first, then generator ------------------------------------------------------------------------


def test_stage_1_starts_from_a_finished_classifier_of_its_own_split(recipes, toy, stage_2):
    classifier = stage_2 / "fixmatch-seed0"
    given = tiny(toy, "guided", "--epochs", "0.5", "--classifier", classifier)
    for change, words in {
        ("--split-seed", "1"): (result(stage_2)["split_hash"], "would leak"),
        ("--classifier", stage_2): (f"give one of {classifier}, {stage_2 / 'scimix-seed0'}",),
    }.items():
        said = recipes.refuse("scimix.py", *given, *change)
        assert said.startswith("error: classifier: ") and all(word in said for word in words), said
        assert not (recipes.folder / "guided").exists()
    recipes.succeed("scimix.py", *given)
    folder = recipes.folder / "guided"
    saved = load_file(folder / "hybridizer" / "model.safetensors")
    for name, tensor in load_file(classifier / "network.safetensors").items():
        assert torch.equal(saved[f"classifier.{name.replace('head.', 'heads.predictions.')}"], tensor), name
    terms = {term for row in metrics(folder) for term in row}
    assert "generator/reconstruction" in terms and not terms & {"generator/supervised", "generator/pseudo_label"}


# --- other classifiers ---------------------------------------------------------------------------------------


BACKBONES = {
    "scimix_mean_teacher.py": ("Mean Teacher", ()),
    "scimix_mixmatch.py": ("MixMatch", (*MIXMATCH_BATCHES, "--hybrids.stop", "1.2")),
    "scimix_supervised.py": ("Supervised", ()),
}


@pytest.fixture(scope="module", params=BACKBONES)
def other(request, recipes, toy, stage_1) -> tuple[str, Path, tuple[str | Path, ...]]:
    """A recipe, the folder of its run that never stopped, and its arguments but for the folder."""
    _, more = BACKBONES[request.param]
    name = request.param.removesuffix(".py")
    arguments = (*tiny_stage_2(toy, stage_1 / "hybridizer", name), *more)
    recipes.succeed(request.param, *arguments)
    return request.param, recipes.folder / name, arguments


def test_other_classifiers_leave_the_same(recipes, other):
    recipe, folder, _ = other
    name, _ = BACKBONES[recipe]
    assert f"{name} + SciMix" in recipes.stdout()
    values = result(folder)
    assert list(values["classifiers"]) == [name, f"{name} + SciMix"]
    assert 0 <= values["transfer"]["semantic_transfer"] <= 1 and (folder / "grid.png").exists()
    plain = folder / f"{name.lower().replace(' ', '-')}-seed0"
    assert (plain / "curves.png").exists() and list((plain / "tensorboard").glob("events*"))
    assert all("classifier/hybrids" not in row for row in metrics(plain))
    rows = [row for row in metrics(folder / "scimix-seed0") if "classifier/hybrids" in row]
    assert rows[0]["classifier/hybrids"] == 0 and any(row["classifier/hybrids"] > 0 for row in rows)


@pytest.mark.parametrize("other", ["scimix_mean_teacher.py"], indirect=True)  # it has a teacher beside the average
def test_other_classifiers_stopped_and_resumed_equal_never_stopped(recipes, other):
    recipe, whole, arguments = other
    folder = recipes.folder / f"{whole.name}_stopped"
    arguments = (*arguments, "--out", folder.name)
    recipes.start(recipe, *arguments)
    assert recipes.stop(signal.SIGKILL, reached(folder / "scimix-seed0", 10)) == -signal.SIGKILL
    recipes.succeed(recipe, *arguments, "--resume")
    for name in (path.name for path in whole.glob("*-seed0")):
        assert metrics(folder / name) == metrics(whole / name)
        assert result(folder / name, "seconds") == result(whole / name, "seconds")
        assert_same_state(folder / name, whole / name)


def test_a_backbone_alone_is_the_same_in_both_of_its_recipes(recipes, other):
    recipe, whole, arguments = other
    alone = recipe if recipe == "scimix_supervised.py" else recipe.removeprefix("scimix_")
    recipes.succeed(alone, *arguments, "--hybridizer", "none", "--out", f"{whole.name}_alone")
    name = next(path.name for path in whole.glob("*-seed0") if not path.name.startswith("scimix"))
    folder = recipes.folder / f"{whole.name}_alone"
    assert [path.name for path in folder.glob("*-seed0")] == [name]
    assert_same_state(folder / name, whole / name)


COUNTS = {"bar": 10, "cross": 14, "square": 20}


@pytest.fixture(scope="module")
def marks(recipes) -> str:
    """Photographs of unequal size and number in classes that differ in a small mark, anywhere on any background."""
    random = np.random.default_rng(0)
    for part, counts in (("train", COUNTS), ("test", dict.fromkeys(COUNTS, 4))):
        for name, count in counts.items():
            folder = recipes.folder / "marks" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                background = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
                pixels = np.array(background.resize((64, 64 + 2 * number), Image.Resampling.BICUBIC))
                row, column = random.integers(16, 40, 2)
                mark = pixels[row + number : row + number + 9, column : column + 9]
                mark[3:6] = 255
                if name == "cross":
                    mark[:, 3:6] = 255
                if name == "square":
                    mark[:] = 255
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return f"folder:{recipes.folder / 'marks'}"


def test_supervised_scimix_on_a_fully_labelled_folder(recipes, marks):
    """Tens of images a class and all of them labelled: stage 1, then stage 2 (thesis 2.5.4)."""
    size = 48
    dataset = load_dataset(marks, image_size=size)
    assert np.bincount(dataset.train.labels).tolist() == list(COUNTS.values())
    assert make_split(dataset, labels=38, seed=0, validation=6).unlabelled == ()

    folder, common = recipes.folder / f"marks_{size}", ("--image-size", size, "--labels", "38", "--validation", "6")
    recipes.succeed("scimix.py", *tiny(marks, folder / "stage_1", *common, "--guide", "supervised", "--epochs", "0.8"))
    terms = {name for row in metrics(folder / "stage_1") for name in row}
    assert "generator/supervised" in terms and "generator/consistency" not in terms
    hybridizer = Hybridizer.from_pretrained(folder / "stage_1" / "hybridizer")
    image = dataset.test.images.gather(torch.tensor([0])) / 255
    assert hybridizer.encode_nonsemantic(image).shape[2:] == (size // 4, size // 4)
    assert hybridizer.hybridize(semantic=image, nonsemantic=image).shape == (1, 3, size, size)

    arguments = tiny_stage_2(
        marks, folder / "stage_1" / "hybridizer", folder / "stage_2", *common, "--epochs", "2", "--hybrids.start",
        "0.5", "--hybrids.stop", "1.5", "--hybrids.copies", "1", "--hybrids.no-keep-consistent",
        "--oracle.network", "leaky-wrn-10-1",
    )  # fmt: skip
    recipes.succeed("scimix_supervised.py", *arguments)
    values = result(folder / "stage_2")
    assert list(values["classifiers"]) == ["Supervised", "Supervised + SciMix"] and values["steps"] == 8
    assert values["split_hash"] == result(folder / "stage_1")["split_hash"]
    assert 0 <= values["transfer"]["semantic_transfer"] <= 1 and (folder / "stage_2" / "grid.png").exists()
    plain, hybrids = (metrics(folder / "stage_2" / f"{name}-seed0") for name in ("supervised", "scimix"))
    assert [row["classifier/hybrids"] > 0 for row in hybrids if "classifier/hybrids" in row] == [True, True, False]
    assert not any("classifier/hybrids" in row for row in plain)


@pytest.mark.parametrize("size", [64, 96])
def test_the_birds_are_looked_for_in_their_folder(recipes, size):
    said = recipes.refuse("scimix_supervised.py", "--preset", f"paper-cub-{size}")
    assert said == "error: data/CUB_200: no such folder"


# --- SAMOSA --------------------------------------------------------------------------------------------------


SAMOSA = {
    "samosa_mean_teacher.py": ("Mean Teacher", ()),
    "samosa_fixmatch.py": ("FixMatch", ()),
    "samosa_mixmatch.py": ("MixMatch", (*MIXMATCH_BATCHES, "--samosa.stop", "1.2", "--probability", "1")),
}


@pytest.fixture(scope="module", params=SAMOSA)
def samosa(request, recipes, toy) -> tuple[str, Path, tuple[str | Path, ...]]:
    _, more = SAMOSA[request.param]
    name = request.param.removesuffix(".py")
    arguments = (*tiny_samosa(toy, name, "--samosa.snapshot-every", "7"), *more)
    recipes.succeed(request.param, *arguments)
    return request.param, recipes.folder / name, arguments


def test_samosa_leaves_both_classifiers_and_a_hybridizer(recipes, toy, samosa):
    recipe, folder, _ = samosa
    name, _ = SAMOSA[recipe]
    values = result(folder)
    assert list(values["classifiers"]) == [name, f"{name} + SAMOSA"]
    together, alone = folder / "samosa-seed0", folder / f"{name.lower().replace(' ', '-')}-seed0"
    assert result(together)["steps"] == result(alone)["steps"] == values["steps"]
    terms = metrics(together)[0].keys()
    assert {"classifier/regularizer", "reconstruction/reconstruction"} <= terms
    assert "classifier/regularizer" not in metrics(alone)[0]
    hybridizer = Hybridizer.from_pretrained(together / "hybridizer")
    assert hybridizer.origin.method == "samosa" and hybridizer.origin.split_hash == values["split_hash"]
    assert 0 <= values["transfer"]["nonsemantic_preservation"] <= 1 and (folder / "grid.png").exists()
    steps = values["steps"]
    snapshots = {path.name for path in (together / "snapshots").iterdir()}
    assert snapshots == {f"step-{step}" for step in (*range(7, steps, 7), steps)}
    last, saved = together / "snapshots" / f"step-{steps}", together / "hybridizer"
    assert (last / "model.safetensors").read_bytes() == (saved / "model.safetensors").read_bytes()
    kept = [row["hybrids_kept"] for row in metrics(together) if "hybrids_kept" in row]
    replaced = [row["classifier/replaced"] for row in metrics(together) if "classifier/replaced" in row]
    if name == "MixMatch":
        assert not kept and replaced[0] < max(replaced) == 1  # its window begins after the first record
    else:
        assert len(kept) == 1 and 0 <= kept[0] <= 1 and not replaced  # after the first of two cycles
        state = torch.load(max((together / "checkpoints").glob("*.pt")), weights_only=True)["modules"]["hybrids"]
        assert state["images"].shape == (80, 3, 16, 16) and state["images"].any()


@pytest.mark.parametrize("samosa", ["samosa_mixmatch.py"], indirect=True)
def test_samosa_stopped_in_its_last_part_and_resumed_equals_never_stopped(recipes, samosa):
    """With cycles, where labelled images are drawn from hybrids."""
    recipe, whole, arguments = samosa
    folder = recipes.folder / f"{whole.name}_stopped"
    arguments = (*arguments, "--out", folder.name)
    recipes.start(recipe, *arguments)
    assert recipes.stop(signal.SIGKILL, reached(folder / "samosa-seed0", 10)) == -signal.SIGKILL
    recipes.succeed(recipe, *arguments, "--resume")
    for name in (path.name for path in whole.glob("*-seed0")):
        assert metrics(folder / name) == metrics(whole / name)
        assert_same_state(folder / name, whole / name)
    assert_same_artefact(folder / "samosa-seed0", whole / "samosa-seed0")


@pytest.mark.parametrize("samosa", ["samosa_mixmatch.py"], indirect=True)
def test_hybrids_are_of_the_method_that_the_recipe_is_for(recipes, toy, samosa):
    _, folder, _ = samosa
    hybridizer = folder / "samosa-seed0" / "hybridizer"
    for name in ("mean_teacher", "fixmatch", "mixmatch", "supervised"):
        said = recipes.refuse(f"scimix_{name}.py", *tiny_stage_2(toy, hybridizer, "wrong-method"))
        assert "samosa" in said and "scimix" in said
    recipes.succeed(
        "mean_teacher.py",
        *tiny_stage_2(toy, hybridizer, f"{folder.name}_used", "--epochs", "0.7"),
        "--hybrids.stop",
        "0.7",
    )
    assert "Mean Teacher + SAMOSA" in recipes.stdout()


# --- AdaIN ---------------------------------------------------------------------------------------------------


def tiny_adain(data: str, out: Path | str, *more: str | Path) -> tuple[str | Path, ...]:
    """Twelve steps of the classifier and of the decoder."""
    return (
        "--preset", "smoke", "--data", data, "--labels", "8", "--validation", "8", "--threads", "1", "--epochs", "1.5",
        "--perception-steps", "12", "--batch", "9", "--record-every", "3", "--evaluate-every", "6", "--save-every",
        "5", "--oracle", "none", "--out", out, *more,
    )  # fmt: skip


def test_adain_leaves_a_hybridizer_and_resumes(recipes, toy):
    recipes.succeed("adain.py", *tiny_adain(toy, "adain"))
    whole, folder = recipes.folder / "adain", recipes.folder / "adain_stopped"
    hybridizer = Hybridizer.from_pretrained(whole / "hybridizer")
    assert hybridizer.origin.method == "adain"
    assert hybridizer.origin.split_hash == result(whole)["split_hash"]
    assert (whole / "grid.png").exists() and (whole / "curves.png").exists()
    recipes.start("adain.py", *tiny_adain(toy, "adain_stopped"))
    assert recipes.stop(signal.SIGKILL, reached(folder, 5)) == -signal.SIGKILL
    recipes.succeed("adain.py", *tiny_adain(toy, "adain_stopped", "--resume"))
    assert metrics(folder) == metrics(whole)
    assert_same_artefact(folder, whole)


# --- what is refused -----------------------------------------------------------------------------------------


CLASSIFIERS = ["scimix_fixmatch.py", *BACKBONES, "mean_teacher.py", "mixmatch.py", *SAMOSA]


@pytest.mark.parametrize("recipe", ["scimix.py", *CLASSIFIERS])
def test_help_names_the_presets(recipes, recipe):
    recipes.succeed(recipe, "--help")
    said = " ".join(recipes.stdout().split())
    paper = "paper-cub-96" if recipe == "scimix_supervised.py" else "paper-cifar10-250"
    for words in ("--preset NAME", "smoke", paper, "--config FILE", "--resume", "--labels"):
        assert words in said
    assert recipes.stderr() == ""


def test_help_whose_reader_goes_ends_without_a_word():
    """As with `head`, before there is a line (test_cli.py has the other ways)."""
    command = [sys.executable, RECIPES / "scimix.py", "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(PATIENCE) == 141


BAD = {
    "unknown flag": (["--lables", "10"], ["--lables"]),
    "unknown preset": (["--preset", "paper-imagenet"], ["paper-imagenet", "smoke"]),
    "wrong type": (["--epochs", "many"], ["--epochs", "many"]),
    "no epochs": (["--epochs", "0"], ["--epochs: 0"]),
    "labelled batch larger than the data": (["--labelled-batch", "1000"], ["labelled", "1000"]),
    "unlabelled batch larger than the data": (["--unlabelled-batch", "5000"], ["unlabelled", "5000"]),
    "no labels": (["--labels", "0"], ["--labels: 0"]),
    "more labels than images": (["--labels", "6000"], ["labels", "6000"]),
    "unknown data": (["--data", "imagenet"], ["imagenet", "digits-m"]),
    "no folder": (["--data", "folder:/nowhere/at/all"], ["/nowhere/at/all"]),
    "no split file": (["--split", "/nowhere/split.json"], ["/nowhere/split.json"]),
    "depth": (["--network", "leaky-wrn-11-1"], ["depth", "11"]),
    "nothing to resume": (["--resume"], ["resume", "no run"]),
    "below a file": (["--out", "toy.npz/run"], ["toy.npz/run", "cannot be written"]),
    "record interval": (["--record-every", "0"], ["--record-every: 0"]),
    "evaluation interval": (["--evaluate-every", "0"], ["--evaluate-every: 0"]),
    "unknown field": (
        ["--config", "unknown-field.yaml"], ["unknown-field.yaml", "unknown field 'lables', there is labels"]
    ),
    "wrong type in a file": (["--config", "wrong-type.yaml"], ["wrong-type.yaml: method.epochs", "many"]),
}  # fmt: skip
BAD_STAGE_1 = {
    "size": (["--image-size", "20"], ["20"]),
    "size the generator cannot make": (["--image-size", "24"], ["image_size", "24"]),
    "one block": (["--method.generator-channels", "8"], ["generator_channels"]),
}
BAD_STAGE_2 = {
    "no oracle there": (["--oracle", "/nowhere/oracle", "--oracle.steps", "None"], ["/nowhere/oracle", "oracle.json"]),
    "oracle of no depth that there is": (["--oracle.network", "leaky-wrn-11-1"], ["depth: 11"]),
    "oracle that cannot learn": (["--oracle.steps", "5"], ["--oracle.steps: 5"]),
    "no seeds": (["--seeds", "0"], ["--seeds: 0"]),
    "average": (["--ema-decay", "1"], ["--ema-decay: 1"]),
    "more labels in a batch than there are": (["--labelled-batch", "9"], ["labelled", "9"]),
}
BAD_HYBRIDS = {
    "no hybridizer": (["--hybridizer", "/nowhere/hybridizer"], ["/nowhere/hybridizer"]),
    "alpha": (["--hybrids.alpha", "0.2"], ["--hybrids.alpha: 0.2"]),
    "window": (["--hybrids.start", "5", "--hybrids.stop", "5"], ["hybrids.start"]),
}
BAD_ADAIN = {
    "no perception": (["--perception-steps", "0"], ["--perception-steps: 0"]),
    "no labels": (["--labels", "0"], ["--labels: 0"]),
    "batch larger than the data": (["--batch", "5000"], ["5000"]),
    "unknown flag": (["--lables", "10"], ["--lables"]),
    "no folder": (["--data", "folder:/nowhere/at/all"], ["/nowhere/at/all"]),
    "depth": (["--network", "leaky-wrn-11-1"], ["depth", "11"]),
    "another family": (["--network", "wrn-10-1"], ["network: 'wrn-10-1'", "leaky-wrn-DEPTH-WIDTH"]),
    "nothing to resume": (["--resume"], ["resume", "no run"]),
    "below a file": (["--out", "toy.npz/run"], ["toy.npz/run", "cannot be written"]),
}


AS_PROCESSES = ("unknown flag", "no folder")
"""Refused as by a user's recipe, a process of its own, whatever the recipe; the others are refused in this process."""


@pytest.mark.parametrize("name", BAD_ADAIN)
def test_bad_input_of_adain_is_one_line_and_leaves_no_run(recipes, refuse, toy, name):
    arguments, words = BAD_ADAIN[name]
    said = (recipes.refuse if name in AS_PROCESSES else refuse)("adain.py", *tiny_adain(toy, "bad_adain"), *arguments)
    assert all(word in said for word in words), said
    assert not (recipes.folder / "bad_adain").exists()


BAD_METHOD = {
    "teacher": (["--method.teacher-decay", "1"], ["--method.teacher-decay: 1"]),
    "temperature": (["--method.temperature", "0"], ["--method.temperature: 0"]),
    "mixing": (["--method.alpha", "0"], ["--method.alpha: 0"]),
    "no guesses": (["--method.guesses", "0"], ["--method.guesses: 0"]),
    "batches of unequal size": (["--unlabelled-batch", "5"], ["unlabelled_batch"]),
    "probability": (["--probability", "1.5"], ["--probability: 1.5"]),
    "no cycles": (["--samosa.cycles", "0"], ["--samosa.cycles: 0"]),
    "no hybrids": (["--samosa.hybrids-per-image", "0"], ["--samosa.hybrids-per-image: 0"]),
    "window after the end": (["--samosa.start", "9", "--samosa.stop", "10"], ["samosa.start", "epochs"]),
}
METHOD_CASES = {
    "mean_teacher.py": ["teacher"],
    "scimix_mean_teacher.py": ["teacher"],
    "mixmatch.py": ["temperature", "mixing", "no guesses", "batches of unequal size"],
    "scimix_mixmatch.py": ["temperature", "mixing", "no guesses", "batches of unequal size"],
    "samosa_mean_teacher.py": ["teacher", "no cycles", "no hybrids", "window after the end"],
    "samosa_fixmatch.py": ["no cycles", "no hybrids", "window after the end"],
    "samosa_mixmatch.py": ["temperature", "probability", "window after the end", "batches of unequal size"],
}
GIB = 1 << 30
EXTREME = {
    "threads": ("fixmatch.py", ["--threads", "1000000"], 2, "--threads: 1000000"),
    "workers": ("fixmatch.py", ["--workers", "1000"], 2, "--workers: 1000"),
    "shift": ("scimix.py", ["--method.criterion-shift", "16"], 2, "criterion_shift: 16 pixels of images of 16"),
    "largest shift": ("scimix.py", ["--method.criterion-shift", "15", "--epochs", "0.2"], 0, ""),
    "image size": ("scimix.py", ["--image-size", "1048576"], 2, "--image-size: 1048576"),
    "batch": ("fixmatch.py", ["--labelled-batch", "2000000000"], 2, "labelled_batch = 2000000000: larger"),
    "one filter": ("scimix.py", ["--method.generator-channels", "1", "1", "--epochs", "0.2"], 0, ""),
    "filters": ("scimix.py", ["--method.generator-channels", "2147483647", "8"], 2, "--method.generator-channels: 2"),
    "depth": ("fixmatch.py", ["--network", "leaky-wrn-1000000000-1"], 2, "depth: 1000000000"),
    "width": ("fixmatch.py", ["--network", "leaky-wrn-10-100"], 1, "not enough memory: you tried to allocate"),
    "copies": ("fixmatch.py", ["--hybrids.copies", "2000000000"], 2, "--hybrids.copies: 2000000000"),
    "guesses": ("mixmatch.py", ["--method.guesses", "2000000000"], 2, "--method.guesses: 2000000000"),
    "hybrids": ("samosa_fixmatch.py", ["--samosa.hybrids-per-image", "2000000000"], 2, "--samosa.hybrids-per-image"),
    "seeds": ("fixmatch.py", ["--seeds", "2000000000"], 2, "--seeds: 2000000000"),
    "seed": ("fixmatch.py", ["--seed", str(2**63 - 1), "--split-seed", str(2**63 - 1), "--epochs", "0.2"], 0, ""),
    "cutout": ("fixmatch.py", ["--method.cutout", "2000000000", "--epochs", "0.2"], 0, ""),
    "clip": ("fixmatch.py", ["--clip", "1e-300", "--epochs", "0.2"], 0, ""),
    "temperature": ("mixmatch.py", ["--method.temperature", "1e-300"], 1, "loss 'classifier/supervised' is not finite"),
    "ratio": ("mixmatch.py", ["--method.alpha", "1e-3", "--epochs", "0.2"], 0, ""),
    "no name": ("fixmatch.py", ["--network", ""], 2, "network: '' is unknown"),
    "no data": ("fixmatch.py", ["--data", ""], 2, "unknown data set ''"),
    "window that never comes": ("scimix.py", ["--method.nonsemantic-from", "inf", "--epochs", "0.2"], 0, ""),
}
"""What is taken or refused far from anything meant: the recipe, its arguments, exit code and words."""


@pytest.mark.parametrize("name", EXTREME)
def test_extremes_train_or_end_with_one_line(recipes, toy, name):
    """With no more memory than a small training needs, so that whoever fills it is found out."""
    recipe, arguments, code, words = EXTREME[name]
    out = f"extreme-{name.replace(' ', '-')}"
    given = tiny(toy, out) if recipe == "scimix.py" else tiny_stage_2(toy, "none", out)
    if recipe == "samosa_fixmatch.py":
        given = tiny_samosa(toy, out)
    if recipe == "mixmatch.py":
        given = (*given, *MIXMATCH_BATCHES)
    memory = GIB // 2 if name == "width" else 4 * GIB  # soon full
    assert recipes.run(recipe, *given, *arguments, memory=memory) == code, recipes.stderr()
    last = recipes.stderr().splitlines()[-1]
    assert "Traceback" not in recipes.stderr() and (code == 0) == (recipes.folder / out / "result.json").exists()
    if code:
        assert last.startswith("error: ") and words in last, last
    if code == 2:
        assert recipes.stderr().count("\n") == 1 and not (recipes.folder / out).exists()


CASES = [(recipe, name) for recipe in ("scimix.py", *CLASSIFIERS) for name in BAD]
CASES += [("scimix.py", name) for name in BAD_STAGE_1]
CASES += [(recipe, name) for recipe in CLASSIFIERS for name in BAD_STAGE_2]
CASES += [(recipe, name) for recipe in CLASSIFIERS if recipe not in SAMOSA for name in BAD_HYBRIDS]
CASES += [(recipe, name) for recipe, names in METHOD_CASES.items() for name in names]


@pytest.mark.parametrize("recipe, name", CASES, ids=lambda value: value.removesuffix(".py").replace(" ", "-"))
def test_bad_input_is_one_line_and_leaves_no_run(recipes, refuse, toy, stage_1, recipe, name):
    (recipes.folder / "unknown-field.yaml").write_text("lables: 10\n")
    (recipes.folder / "wrong-type.yaml").write_text("method:\n  epochs: many\n")
    arguments, words = (BAD | BAD_STAGE_1 | BAD_STAGE_2 | BAD_HYBRIDS | BAD_METHOD)[name]
    if recipe == "scimix.py":
        given = tiny(toy, "bad")
    else:
        given = tiny_samosa(toy, "bad") if recipe in SAMOSA else tiny_stage_2(toy, "none", "bad")
    if name == "window":  # which without hybrids has no meaning
        arguments = [*arguments, "--hybridizer", stage_1 / "hybridizer"]
    if "mixmatch" in recipe:
        group = "samosa" if recipe in SAMOSA else "hybrids"
        given = (*given, *MIXMATCH_BATCHES, f"--{group}.stop", "1.2")
    said = (recipes.refuse if name in AS_PROCESSES else refuse)(recipe, *given, *arguments)
    for word in words:
        assert word in said, said
    assert not (recipes.folder / "bad").exists()
