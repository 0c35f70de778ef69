"""The pipeline as one long run, in this process, which is stopped wherever it can be."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe_modules import recipe
from safetensors.torch import load_file

from hybridgen.configuration import parse
from hybridgen.tables import compare
from hybridgen.tables.pipeline import check_unused
from hybridgen.training import train as module
from hybridgen.types import InputError

PARTS = ("fixmatch-seed0", "hybridizer-seed0", "scimix-seed0")


@pytest.fixture
def toy(tmp_path) -> str:
    """Two classes, a bright and a dark square, on noise."""
    random = np.random.default_rng(0)
    parts = {}
    for name, count in (("train", 80), ("test", 24)):
        labels = np.arange(count) % 2
        images = random.integers(64, 192, (count, 16, 16, 3), dtype=np.uint8)
        images[:, 5:11, 5:11] = (labels * 255)[:, None, None, None]
        parts |= {f"x_{name}": images, f"y_{name}": labels}
    np.savez(tmp_path / "toy.npz", **parts)
    return f"npz:{tmp_path / 'toy.npz'}"


def run(data: str, out: Path, *more: str) -> dict:
    """Eight steps of each part, and twelve of the oracle."""
    of = recipe("scimix_fixmatch")
    small = (
        "--preset", "smoke", "--data", data, "--labels", "8", "--validation", "8", "--labelled-batch", "4",
        "--unlabelled-batch", "9", "--epochs", "1", "--hybrids.start", "0.2", "--hybrids.stop", "0.9",
        "--generator.labelled-batch", "4", "--generator.unlabelled-batch", "9", "--generator.epochs", "1",
        "--generator.generator-channels", "8", "8", "--generator.discriminator-width", "0.1", "--threads", "1",
        "--record-every", "1", "--evaluate-every", "4", "--save-every", "2", "--oracle.steps", "12",
        "--oracle.network", "leaky-wrn-10-1", "--out", str(out),  # and whose hybridizer is trained: none is bundled
    )  # fmt: skip
    return of.main(parse(of.Config, of.PRESETS, [*small, *more]))


class Steps:
    """Counts the steps that are trained, and stops the run at one of them."""

    def __init__(self, monkeypatch) -> None:
        self.done, self.last, self.fit = 0, None, module.fit
        monkeypatch.setattr(module, "fit", self)

    def __call__(self, *arguments, **options):
        for scalars in self.fit(*arguments, **options):
            self.done += 1
            if self.done == self.last:
                raise KeyboardInterrupt
            yield scalars


def read(folder: Path, *without: str) -> dict:
    values = json.loads((folder / "result.json").read_text())
    return {key: value for key, value in values.items() if key not in without}


def test_stopped_in_each_of_its_parts_and_resumed_it_equals_one_that_never_stopped(toy, tmp_path, monkeypatch, capsys):
    """In its oracle too; and no step is done twice but those since the last checkpoint."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    steps, folder, resume, told = Steps(monkeypatch), tmp_path / "stopped", (), []
    for part in range(4):
        steps.done, steps.last = 0, 5 if part == 0 else 4 + 5  # what is left of the part before, and five of this one
        with pytest.raises(KeyboardInterrupt):
            run(toy, folder, *resume)
        finished = [name for name in PARTS if (folder / name / "result.json").exists()]
        assert finished == list(PARTS[:part]) and not (folder / "result.json").exists()
        told += [line for line in capsys.readouterr().out.splitlines() if "of judging takes about" in line]
        resume = ("--resume",)
        for name in ("whole_time", "oracle_seconds", "judging_seconds"):  # once is enough
            monkeypatch.setattr(compare, name, lambda *_: 1.0)
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*/result.json")}
    steps.done, steps.last = 0, None
    stopped = run(toy, folder, "--resume")
    assert steps.done == 12  # the oracle's, whose only checkpoint was its first
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/result.json")} == times
    assert len(told) == 4 and all(line.startswith("what is left of 3 trainings and of judging") for line in told)

    steps.done = 0
    whole = run(toy, tmp_path / "whole")
    assert steps.done == 3 * 8  # and the oracle is there
    timed = ("seconds", "classifiers", "beside")
    assert {k: v for k, v in stopped.items() if k not in timed} == {k: v for k, v in whole.items() if k not in timed}
    assert list(whole["classifiers"]) == ["FixMatch", "FixMatch + SciMix"] and whole["transfer"]
    for part in PARTS:
        first, second = folder / part, tmp_path / "whole" / part
        assert read(first, "seconds") == read(second, "seconds")
        assert (first / "metrics.jsonl").read_text() == (second / "metrics.jsonl").read_text()
        weights = "hybridizer/model.safetensors" if part == PARTS[1] else "network.safetensors"
        mine, theirs = load_file(first / weights), load_file(second / weights)
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    for place in ("", *PARTS):  # what was chosen stands in the comparison's file and in each run's
        text = (tmp_path / "whole" / place / "config.yaml").read_text()
        assert "  alpha: null  # 0.9\n" in text and "  hybridizer: " in text and text.count("# leaky-wrn-10-1\n") == 2
    guide, generator = (load_file(tmp_path / "whole" / name) for name in (
        "fixmatch-seed0/network.safetensors", "hybridizer-seed0/hybridizer/model.safetensors"
    ))  # fmt: skip
    assert torch.equal(generator["classifier.heads.predictions.weight"], guide["head.weight"])
    said = capsys.readouterr().out
    assert "hybrids: semantic transfer" in said and f"{tmp_path / 'whole' / 'grid.png'}" in said


def test_settings_of_a_hybridizer_that_nobody_trains_are_refused_unless_a_preset_has_them(toy, tmp_path):
    of = recipe("scimix_fixmatch")
    for words in ([], *(["--preset", name] for name in of.PRESETS)):
        check_unused(parse(of.Config, of.PRESETS, words).generator, of.PRESETS)
        changed = parse(of.Config, of.PRESETS, [*words, "--generator.generator-channels", "8", "9"])
        with pytest.raises(InputError, match=r"^generator\.generator_channels: .*--hybridizer trained"):
            check_unused(changed.generator, of.PRESETS)
    with pytest.raises(InputError, match=r"^generator\."):
        run(toy, tmp_path / "run", "--hybridizer", "none")
    assert not (tmp_path / "run").exists()
