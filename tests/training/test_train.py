"""One run from its plan to its result: what is averaged, scored, selected and left, by a network that only counts."""

import gc
import json
import math
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from hybridgen.data.datasets import Dataset, Part
from hybridgen.data.sources import InMemory
from hybridgen.data.splits import Split
from hybridgen.evaluation.predictions import read_predictions
from hybridgen.training.context import Context, RunSettings
from hybridgen.training.ema import EMA
from hybridgen.training.objective import Guessed, Outcome, Task, sgd
from hybridgen.training.plan import Plan, by_accuracy
from hybridgen.training.schedules import Clock, cosine
from hybridgen.training.scores import Scored
from hybridgen.training.train import train
from hybridgen.types import Batch, InputError

SCORES = {2: 0.4, 4: 0.9, 6: 0.9, 8: 0.3, 10: 0.2}
"""On the validation images, by the step of the network; on the test images the last one is the best."""


class Counter(nn.Module):
    """A network whose parameter is the number of steps done, and batch-norm's buffer ten times that."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.Parameter(torch.zeros(()))
        self.register_buffer("ten", torch.zeros(()))
        self.eval_when_scored = []


class Counting(nn.Module):
    def __init__(self, network: Counter) -> None:
        super().__init__()
        self.network, self.guessed = network, None

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        with torch.no_grad():
            self.network.ten.fill_(10.0 * (clock.step + 1))
        losses = {"count": -self.network.steps}  # whose gradient is -1: with a rate of 1 it counts
        return Outcome(losses, guessed=self.guessed)


class Batches:
    steps_per_epoch, images_per_step = 5, 1

    def __init__(self) -> None:
        self.begun = []

    def from_step(self, step):
        self.begun.append(step)
        while True:
            yield Batch((torch.zeros(1, 3, 4, 4),), torch.zeros(1, dtype=torch.int64), ())


class Noted:
    """A plan of ten steps, and everything that was asked of it."""

    def __init__(self, folder: Path, *, average: float | None = None, select: str | None = "accuracy", **settings):
        part = lambda count: Part(
            InMemory(torch.zeros(count, 3, 4, 4, dtype=torch.uint8)), torch.zeros(count, dtype=torch.int64)
        )
        dataset = Dataset("noise", ("a",), 4, part(20), part(6), "f", True, (0.5,) * 3, (0.5,) * 3)
        split = Split("noise", "f", 0, (0, 1), (2, 3, 4, 5), (11, 13, 17))
        given = dict(data="noise", out=folder, record_every=1, evaluate_every=2, save_every=3)
        self.settings = RunSettings(**(given | settings))
        self.context = Context(self.settings, Accelerator(cpu=True), dataset, split)
        self.scored, self.after, self.drawn, self.finished, self.stream = [], [], 0, [], Batches()
        self.network = network = Counter()
        objective = Counting(network)
        task = Task(objective, {"count": 1.0}, sgd(objective, momentum=0.0, decay=0.0), lambda clock: 1.0)
        self.plan = Plan(
            self.context,
            self.stream,
            Clock(10, 5),
            {"counting": task},
            network=network,
            average=None if average is None else EMA(network, average, linear_start=False),
            score=self.score,
            select=select,
            after_step=self.after_step,
            pictures=self.pictures,
            finish=self.finish,
        )

    def score(self, network, part, indices):
        which = "validation" if part is self.context.dataset.train else "test"
        self.scored.append((which, list(indices), round(float(network.steps), 6), network.training))
        if which == "test":
            return Scored({"accuracy": float(network.steps) / 100, "members": 0.5})
        return Scored({"accuracy": SCORES.get(round(float(network.steps)), 0.0), "members": 0.25})

    def after_step(self, folder):
        average = self.plan.average
        mean = None if average is None else average.network.steps.item()
        self.after.append((folder, self.network.steps.item(), mean))
        return {"noted": float(self.network.steps)} if self.network.steps == 5 else {}

    def finish(self, folder, chosen):
        self.finished.append((folder, (folder / "result.json").exists(), float(chosen.steps)))

    def pictures(self):
        self.drawn += 1
        return {"grid": torch.zeros(3, 8, 8)}

    def train(self, folder, **more):
        return train(self.plan, self.settings, folder, 7, **more)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_network_is_selected_on_validation_images_and_never_on_the_test_set(tmp_path):
    noted = Noted(tmp_path)
    result = noted.train(tmp_path)
    assert [(which, indices) for which, indices, *_ in noted.scored] == [
        *[("validation", [11, 13, 17])] * 5, *[("test", list(range(6)))] * 2,
    ]  # fmt: skip
    assert [steps for _, _, steps, _ in noted.scored] == [2, 4, 6, 8, 10, 10, 6]  # of equal scores the later one
    assert not any(training for *_, training in noted.scored) and noted.network.training
    assert result == json.loads((tmp_path / "result.json").read_text())
    expected = {
        "test_accuracy_last": 0.1, "test_members_last": 0.5, "test_accuracy_selected": pytest.approx(0.06),
        "test_members_selected": 0.5, "selected_step": 6, "seed": 7, "steps": 10,
        "split_hash": noted.context.split.hash,
    }  # fmt: skip
    assert {name: value for name, value in result.items() if name != "seconds"} == expected


def test_the_bar_is_of_all_that_is_expected(tmp_path, capsys):
    noted = Noted(tmp_path)
    noted.plan.context.expected[tmp_path / "later"] = 1000
    noted.train(tmp_path)
    assert f"{tmp_path.name} (1 of 2):" in (said := capsys.readouterr().err)
    assert f"0/{1000 + noted.plan.clock.steps} " in said


def test_trackers_are_those_of_the_settings_and_told_the_images_of_a_step(tmp_path, monkeypatch):
    Noted(tmp_path / "none", log_with=()).train(tmp_path / "none")
    assert not (tmp_path / "none" / "tensorboard").exists()
    told = []
    monkeypatch.setattr("hybridgen.training.record.Run.measured", lambda run: told.append(run.images_per_step) or {})
    noted = Noted(tmp_path / "some")
    noted.stream.images_per_step = 48
    noted.train(tmp_path / "some")
    assert (tmp_path / "some" / "tensorboard").exists() and set(told) == {48}


def test_guesses_are_compared_with_hidden_labels_alone(tmp_path):
    """Of 20 images 0 and 1 are labelled, of image 5 nobody knows the class."""
    noted = Noted(tmp_path)
    labels = noted.context.dataset.train.labels
    labels[:6] = torch.tensor([1, 1, 0, 1, 1, -1])
    batch = next(noted.stream.from_step(0))._replace(indices=torch.tensor([0, 1, 2, 3, 4, 5, 2]))
    noted.stream.from_step = lambda step: iter([batch] * 10)
    objective = noted.plan.tasks["counting"].objective
    objective.guessed = Guessed(torch.tensor([1, 1, 0, 1, 0, 0, 1]))
    noted.train(tmp_path)
    assert {row.get("counting/pseudo_label_accuracy", 2 / 4) for row in rows(tmp_path)} == {2 / 4}
    assert sum("counting/pseudo_label_accuracy" in row for row in rows(tmp_path)) == 10
    assert labels[:6].tolist() == [1, 1, 0, 1, 1, -1]


def test_records_hold_scores_notes_and_losses(tmp_path):
    noted = Noted(tmp_path)
    noted.train(tmp_path)
    validated = {row["step"]: row["validation/accuracy"] for row in rows(tmp_path) if "validation/accuracy" in row}
    assert validated == {2: 0.4, 4: 0.9, 6: 0.9, 8: 0.3, 10: 0.2}
    assert [row["step"] for row in rows(tmp_path) if "noted" in row] == [5]
    assert [row["counting/count"] for row in rows(tmp_path) if "counting/count" in row] == [-n for n in range(10)]
    assert noted.drawn == 5 and (tmp_path / "grid.png").exists()


def test_the_average_is_updated_once_a_step_before_what_follows_and_is_what_is_judged(tmp_path):
    """By its own decay, and with the network's buffers."""
    noted = Noted(tmp_path, average=0.5)
    noted.train(tmp_path)
    mean, means = 0.0, []
    for step in range(1, 11):
        mean = 0.5 * mean + 0.5 * step
        means.append(mean)
    assert [(n, m) for _, n, m in noted.after] == [
        (float(step), pytest.approx(mean)) for step, mean in enumerate(means, start=1)
    ]
    assert {folder for folder, *_ in noted.after} == {tmp_path}
    judged = [steps for which, _, steps, _ in noted.scored if which == "validation"]
    assert judged == pytest.approx([means[step - 1] for step in (2, 4, 6, 8, 10)], abs=1e-5)
    assert noted.plan.average.network.ten == 100


def test_without_selection_there_is_the_last_network_alone(tmp_path):
    noted = Noted(tmp_path, select=None)
    result = noted.train(tmp_path)
    assert {name for name in result if name.startswith(("test", "selected"))} == {
        "test_accuracy_last", "test_members_last",
    }  # fmt: skip
    state = torch.load(max((tmp_path / "checkpoints").glob("*.pt")), weights_only=True)
    assert "selected" not in state["modules"]


def test_the_artefact_is_written_before_the_result_and_is_the_selected_network_or_the_last_average(tmp_path):
    for name, how, steps in (("a", {}, 6), ("b", dict(select=None), 10), ("c", dict(select=None, average=0.5), 9)):
        noted = Noted(tmp_path / name, **how)
        noted.train(tmp_path / name)
        assert noted.finished == [(tmp_path / name, False, pytest.approx(steps, abs=0.1))]


def test_test_images_of_known_class_are_classified_once_by_each_network(tmp_path):
    """Figures and predictions.npz are of the same logits; an image of unknown class is neither right nor wrong."""
    noted, seen = Noted(tmp_path), []
    values = torch.tensor([0, 1, 1, 0, 2], dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)
    test = Part(InMemory(values), torch.tensor([0, 1, -1, 2, 2]))
    noted.context = replace(noted.context, dataset=replace(noted.context.dataset, classes=("a", "b", "c"), test=test))

    def classify(network: Counter, images: torch.Tensor) -> torch.Tensor:
        seen.extend([network.steps.item()] * len(images))
        return network.steps.detach() * nn.functional.one_hot((255 * images[:, 0, 0, 0]).round().long(), 3)

    def score(network: Counter, part: Part, indices: range) -> Scored:
        return (scoring if part is test else noted.score)(network, part, indices)

    scoring = by_accuracy(noted.context, classify)
    noted.plan = replace(noted.plan, context=noted.context, classify=classify, score=score)
    result = noted.train(tmp_path)
    assert result["test_accuracy_last"] == result["test_accuracy_selected"] == 3 / 4
    assert seen == [10.0] * 4 + [6.0] * 4
    kept = read_predictions(tmp_path / "predictions.npz", name="kept")
    assert kept.indices.tolist() == [0, 1, 3, 4] and kept.labels.tolist() == [0, 1, 2, 2]
    assert kept.logits.tolist() == [[6, 0, 0], [0, 6, 0], [6, 0, 0], [0, 0, 6]]
    dataset, split = noted.context.dataset, noted.context.split
    of = (kept.classes, kept.fingerprint, kept.part, kept.split_hash)
    assert of == (("a", "b", "c"), dataset.fingerprint, "test", split.hash)
    assert json.loads((tmp_path / "setup.json").read_text())["data"]["test"] == 4


def test_a_resumed_run_begins_where_the_checkpoint_is(tmp_path):
    whole = Noted(tmp_path / "whole")
    expected = whole.train(tmp_path / "whole")
    stopped = Noted(tmp_path / "halves")
    stopped.plan.after_step = lambda folder: (_ for _ in ()).throw(KeyError) if stopped.network.steps == 8 else {}
    with pytest.raises(KeyError):
        stopped.train(tmp_path / "halves")
    again = Noted(tmp_path / "halves", resume=True)
    found = again.train(tmp_path / "halves")
    assert again.stream.begun == [6]
    same = lambda result: {name: value for name, value in result.items() if name != "seconds"}
    assert same(found) == same(expected)
    kept = [row for row in rows(tmp_path / "halves") if "counting/count" in row]
    assert kept == [row for row in rows(tmp_path / "whole") if "counting/count" in row]


def test_a_resumed_run_has_read_the_same_weights(tmp_path):
    noted = Noted(tmp_path)
    noted.context.read["hybridizer"] = "c0de"
    noted.train(tmp_path)
    (tmp_path / "result.json").unlink()
    again = Noted(tmp_path, resume=True)
    again.context.read["hybridizer"] = "5eed"
    with pytest.raises(InputError, match=r"read\.hybridizer was 'c0de', is '5eed'"):
        again.train(tmp_path)


def test_the_folder_is_claimed_unless_it_is_already(tmp_path):
    Noted(tmp_path).train(tmp_path)
    with pytest.raises(InputError, match="is not empty"):
        Noted(tmp_path).train(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "first").mkdir()
    result = Noted(tmp_path / "other").train(tmp_path / "other", claimed=True, seconds=1000.0)
    assert result["seconds"] > 1000


def test_a_part_of_a_larger_run_that_was_not_begun_is_begun_when_that_is_resumed(tmp_path):
    Noted(tmp_path, resume=True).train(tmp_path / "fixmatch-seed0")
    assert (tmp_path / "fixmatch-seed0" / "result.json").exists()
    with pytest.raises(InputError, match="no run in"):
        Noted(tmp_path / "nothing", resume=True).train(tmp_path / "nothing")


def test_the_seed_is_that_of_the_steps(tmp_path):
    """Draws inside objectives are functions of it."""

    def drawn(folder: Path, seed: int) -> list[float]:
        noted, seen = Noted(folder), []
        task = noted.plan.tasks["counting"]
        task.objective.register_forward_hook(lambda *_: seen.append(float(torch.rand(()))))
        train(noted.plan, noted.settings, folder, seed)
        return seen

    first, again, other = (drawn(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert first == again and not set(first) & set(other)


def test_modules_of_a_plan_are_part_of_checkpoints(tmp_path):
    noted = Noted(tmp_path)
    more = nn.Linear(1, 1)
    noted.plan = replace(noted.plan, modules={"more": more}, average=EMA(noted.network, 0.5))
    noted.train(tmp_path)
    state = torch.load(max((tmp_path / "checkpoints").glob("*.pt")), weights_only=True)
    assert {"counting", "more", "average", "selected", "means"} <= state["modules"].keys()
    assert torch.equal(state["modules"]["more"]["weight"], more.weight)


def test_tensorboard_has_the_schedule_s_rate_of_each_step(tmp_path):
    noted = Noted(tmp_path)
    noted.plan.tasks["counting"].rate = cosine(0.4, None)
    train(noted.plan, noted.settings, tmp_path, seed=0)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    rates = [(event.step, event.value) for event in events.Scalars("learning_rate/counting")]
    assert rates == [(k + 1, pytest.approx(0.2 * (1 + math.cos(math.pi * k / 10)))) for k in range(10)]
    assert not any("learning_rate" in line for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


def test_the_scale_of_fp16s_losses_is_each_runs_own_and_part_of_checkpoints(tmp_path):
    """It begins where torch's does, whatever the run before has left, and goes on where the checkpoint is."""

    def scaled(folder: Path, **settings) -> tuple[Noted, torch.amp.GradScaler]:
        noted = Noted(folder, **settings)
        noted.context.accelerator.scaler = scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        scaler.scale(torch.ones(()))
        return noted, scaler

    noted, scaler = scaled(tmp_path)
    seen = []

    def after_step(folder):
        seen.append(scaler.get_scale())
        scaler.update(128.0)
        return (_ for _ in ()).throw(KeyError) if len(seen) == 8 else {}

    noted.plan.after_step = after_step
    with pytest.raises(KeyError):
        noted.train(tmp_path)
    assert seen[:2] == [2.0**16, 128.0]
    again, scaler = scaled(tmp_path, resume=True)
    seen.clear()
    again.plan.after_step = lambda folder: seen.append(scaler.get_scale()) or {}
    again.train(tmp_path)
    assert len(seen) == 4 and set(seen) == {128.0}


def test_what_has_trained_is_let_go(tmp_path):
    """Or every network of a comparison would stay in memory to its end."""
    noted = Noted(tmp_path)
    accelerator, left = noted.context.accelerator, weakref.ref(noted.plan.tasks["counting"].objective)
    noted.train(tmp_path)
    del noted
    gc.collect()
    assert left() is None and accelerator is not None
