"""What a run leaves behind, and what it refuses to write over."""

import json
import math
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from accelerate.utils import LoggerType
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer
from torch import nn
from tqdm import tqdm

from hybridgen.files import LOCK, hold, release
from hybridgen.settings import plain
from hybridgen.training import bars, record, trackers
from hybridgen.training.checkpoint import Checkpoints
from hybridgen.training.context import Context, RunSettings
from hybridgen.training.fit import Diverged
from hybridgen.training.record import Run, claim, read_metrics, read_result, write_result
from hybridgen.training.schedules import Clock
from hybridgen.types import InputError


@dataclass(frozen=True)
class Config:
    rate: float = 0.1
    channels: tuple[int, ...] = (8, 16)
    hybridizer: Path = Path("some/folder")
    out: Path = Path("run")
    resume: bool = False
    threads: int | None = None
    record_every: int = 4
    save_every: int = 5


CONFIG = Config()
DRAW_CURVES = record.draw_curves


@pytest.fixture(autouse=True)
def curves(monkeypatch):
    """Are drawn here."""
    monkeypatch.setattr(record, "draw_curves", DRAW_CURVES)


def run(folder: Path, steps: int = 10, **changes) -> Run:
    """A run whose only parameter is the number of steps that were done."""
    torch.manual_seed(0)
    counter = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(counter.weight)
    made = Run(
        folder, CONFIG, Accelerator(), Clock(steps=steps, steps_per_epoch=5), modules={"counter": counter},
        split_hash="abc",
        **({"optimizers": {}, "record_every": 4, "save_every": 5, "images_per_step": 6} | changes),
    )  # fmt: skip
    made.counter = counter
    return made


def scalars(step: int) -> dict[str, torch.Tensor]:
    return {"it/error": torch.tensor(1 / step), "it/weighted/error": torch.tensor(0.5 / step)}


def train(run: Run, until: int | None = None) -> None:
    while not run.clock.done and run.clock.step != until:
        run.clock.step += 1
        with torch.no_grad():
            run.counter.weight += 1
        run.step(scalars(run.clock.step))


def finished(folder: Path, **changes) -> Run:
    with run(folder, **changes) as made:
        train(made)
    return made


@pytest.mark.parametrize(
    ("changes", "processes", "said"),
    [
        ({"read": {"hybridizer": "5eed"}}, 1, "read.hybridizer was 'c0de', is '5eed'"),
        ({}, 1, "read.hybridizer was 'c0de', is None"),
        ({"read": {"hybridizer": "c0de"}}, 2, "processes was 1, is 2"),
    ],
)
def test_a_run_goes_on_with_what_it_read_and_as_many_processes(tmp_path, monkeypatch, changes, processes, said):
    with run(tmp_path, read={"hybridizer": "c0de"}) as made:
        train(made, until=7)
    monkeypatch.setattr(Accelerator, "num_processes", processes)
    monkeypatch.setattr(record, "by_first", lambda accelerator, act: act())
    with pytest.raises(InputError, match=re.escape(said)), run(tmp_path, resume=True, **changes):
        pass


# --- records -------------------------------------------------------------------------------------------------


def test_metrics_are_means_over_the_steps_since_the_last_record(tmp_path):
    finished(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["epoch"]) for row in rows] == [(4, 0.8), (8, 1.6), (10, 2.0)]
    for row, steps in zip(rows, ([1, 2, 3, 4], [5, 6, 7, 8], [9, 10]), strict=True):
        assert row["it/error"] == pytest.approx(sum(1 / step for step in steps) / len(steps), rel=1e-6)
        assert row["it/weighted/error"] == pytest.approx(row["it/error"] / 2, rel=1e-6)


def test_the_accuracy_of_pseudo_labels_is_over_all_that_counted(tmp_path):
    """And not a mean of steps' accuracies; none where nothing counted."""
    counts = {1: (0.0, 0.0), 2: (1.0, 4.0), 3: (3.0, 3.0), 4: (0.5, 1.0), 9: (0.0, 2.0)}
    with run(tmp_path) as made:
        while not made.clock.done:
            made.clock.step += 1
            right, counted = counts.get(made.clock.step, (0.0, 0.0))
            made.step({"it/pseudo_right": torch.tensor(right), "it/pseudo_counted": torch.tensor(counted)})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("it/pseudo_label_accuracy") for row in rows] == [pytest.approx(4.5 / 8), None, 0]
    assert not any(name in row for row in rows for name in ("it/pseudo_right", "it/pseudo_counted"))


def test_one_bar_shows_all_runs_with_loss_and_accuracy(tmp_path, monkeypatch):
    """Of 20, 12 and 8 steps, the first finished, the second resumed after 5."""
    bars = []
    monkeypatch.setattr(
        "hybridgen.training.record.tqdm",
        lambda **how: bars.append((how, bar := tqdm(**how | {"disable": True}))) or bar,
    )
    first, second, third = (tmp_path / name for name in ("alone", "mixed", "other"))
    first.mkdir()
    (first / "result.json").write_text("{}")
    among = {first: 20, second: 12, third: 8}
    for until in (5, None):
        with run(second, steps=12, record_every=1, save_every=5, among=among, resume=until is None) as one:
            while not one.clock.done and one.clock.step != until:
                one.clock.step += 1
                one.step({"it/total": torch.tensor(1 / 3), "it/weighted/a": torch.tensor(5.0)})
            one.log(**{"validation/accuracy": 0.875})
            one.log(**{"validation/accuracy": float("nan")})  # where nothing is set aside
    assert one._shown == {"loss": "0.333", "validation": "87.5%"}
    (new, _), (resumed, _) = bars
    assert (new["desc"], new["total"], new["initial"], new["leave"]) == ("mixed (2 of 3)", 40, 20, False)
    assert (resumed["desc"], resumed["total"], resumed["initial"]) == ("mixed (2 of 3)", 40, 25)
    for folder in (second, third):
        folder.mkdir(exist_ok=True)
    (second / "result.json").write_text("{}")
    with run(third, steps=8, among=among):
        assert (bars[-1][0]["desc"], bars[-1][0]["initial"], bars[-1][0]["leave"]) == ("other (3 of 3)", 32, True)
    with run(tmp_path / "lone", steps=8):
        assert (bars[-1][0]["desc"], bars[-1][0]["total"]) == ("lone", 8)


def test_the_bar_goes_on_in_a_long_step_and_ends_with_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bars, "EVERY", 0.02)
    with run(tmp_path) as made:
        train(made, until=3)
        before = capsys.readouterr().err.count("3/10")
        time.sleep(0.3)
        assert capsys.readouterr().err.count("3/10") >= before + 3
        train(made)
    assert not [thread for thread in threading.enumerate() if thread.name == "bar"]


def test_means_are_of_scalars_by_their_names_in_whatever_order_a_step_has_them():
    means = record.Means()
    means.add({"one": torch.tensor(1.0), "ten": torch.tensor(10.0)})
    means.add({"ten": torch.tensor(30.0), "one": torch.tensor(4.0)})
    assert means.taken() == {"one": 2.5, "ten": 20.0}


def test_tensorboard_has_the_same_values_and_the_pictures(tmp_path):
    grid = torch.rand(3, 5, 7)
    with run(tmp_path) as made:
        train(made)
        made.log(**{"validation/accuracy": 0.75})
        made.picture("grid", grid)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    rows = [row for row in read_metrics(tmp_path) if "it/error" in row]
    assert [(e.step, e.value) for e in events.Scalars("it/error")] == [
        (row["step"], pytest.approx(row["it/error"], rel=1e-6)) for row in rows
    ]
    assert [(e.step, e.value) for e in events.Scalars("validation/accuracy")] == [(10, 0.75)]
    (image,) = events.Images("grid")
    assert (image.step, image.height, image.width) == (10, 5, 7)
    with Image.open(tmp_path / "grid.png") as picture, Image.open(BytesIO(image.encoded_image_string)) as shown:
        assert picture.size == (7, 5) and picture.convert("RGB").tobytes() == shown.convert("RGB").tobytes()
        pixels = torch.tensor(list(picture.convert("RGB").tobytes())).view(5, 7, 3)
    torch.testing.assert_close(pixels.permute(2, 0, 1) / 255, grid, atol=0.51 / 255, rtol=0)


def test_tensorboard_has_the_configuration_once_and_what_the_process_does(tmp_path, monkeypatch):
    """Ten steps of two images each, of which each takes half a second, and a checkpoint every four, which takes an
    hour; rates are 0.1 times the step, and a third of it of slowed parameters."""
    clock, before = [0.0], psutil.Process().memory_info().rss
    monkeypatch.setattr(record, "now", lambda device: clock[0])
    save = Checkpoints.save

    def slow(*given):
        clock[0] += 3600
        return save(*given)

    monkeypatch.setattr(Checkpoints, "save", slow)
    # Of files of one second the names count up, and TensorBoard reads them in the order of their letters
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))]} for _ in range(2)], lr=0.0)
    optimizer.param_groups[1]["factor"] = 1 / 3
    for resume in (False, True):  # once is once a run, however often it is begun
        often = dict(record_every=2, save_every=4)
        with run(tmp_path, optimizers={"it": optimizer}, images_per_step=2, resume=resume, **often) as made:
            while not made.clock.done and (resume or made.clock.step < 7):
                made.clock.step += 1
                clock[0] += 0.5
                for group in optimizer.param_groups:
                    group["lr"] = 0.1 * made.clock.step * group.get("factor", 1)
                made.step(scalars(made.clock.step))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    read = lambda tag: [(event.step, event.value) for event in events.Scalars(tag)]
    assert read("learning_rate/it") == [(step, pytest.approx(step / 10)) for step in (2, 4, 6, 8, 10)]
    assert read("learning_rate/it/x0.333333") == [(step, pytest.approx(step / 30)) for step in (2, 4, 6, 8, 10)]
    assert read("speed/images_per_second") == [(step, pytest.approx(4)) for step in (2, 4, 6, 8, 10)]
    most = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _, gib in read("memory/peak_gib"):  # Linux counts pages in batches
        assert 0.95 * before < gib * 2**30 < 1.05 * most
    (text,) = events.Tensors("configuration/text_summary")
    assert yaml.safe_load(text.tensor_proto.string_val[0].decode()) == plain(CONFIG)
    assert {*read_metrics(tmp_path)[0]} == {"step", "epoch", "it/error", "it/weighted/error"}


class Fake(GeneralTracker):
    """A tracker that keeps what it is told."""

    name, requires_logging_directory, tracker = "fake", False, None
    made: ClassVar[list["Fake"]] = []

    def __init__(self, project: str, run: str) -> None:
        super().__init__()
        self.told = [("project", project, run)]
        self.made.append(self)

    def start(self):
        self.told.append(("start",))

    def store_init_configuration(self, values):
        self.told.append(("configuration", values))

    def log(self, values, step=None):
        self.told.append((step, values))

    def log_images(self, values, step=None):
        self.told.append((step, {name: [image.shape for image in images] for name, images in values.items()}))

    def finish(self):
        self.told.append(("finish",))


def test_another_tracker_is_told_the_same_as_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "fake", Fake)
    monkeypatch.setitem(trackers.NAMED, "fake", "run")
    with run(tmp_path, log_with=("tensorboard", "fake", "fake")) as made:
        train(made)
        made.picture("grid", torch.rand(3, 5, 7))
    (fake,) = Fake.made
    assert fake.told[:2] == [("project", "hybridgen", tmp_path.name), ("start",)] and fake.told[-1] == ("finish",)
    assert fake.told[2] == ("configuration", {
        "rate": 0.1, "channels": "[8, 16]", "hybridizer": "some/folder", "out": "run", "resume": False,
        "threads": None, "record_every": 4, "save_every": 5,
    })  # fmt: skip
    assert fake.told[-2] == (10, {"grid": [(5, 7, 3)]})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    numbers = [(step, name, value) for step, values in fake.told[3:-2] for name, value in values.items()]
    written = [(e.step, name, e.value) for name in events.Tags()["scalars"] for e in events.Scalars(name)]
    assert sorted(numbers) == [(*place, pytest.approx(value, rel=1e-6)) for *place, value in sorted(written)]
    assert {name for _, name, _ in numbers} >= {"it/error", "speed/images_per_second", "memory/peak_gib"}


def test_trackers_that_cannot_be_are_an_input_error(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    missing, unknown = "wandb needs the package wandb, which is not installed", "'wandbb' is none of aim, "
    for name, said in (("wandb", missing), ("wandbb", unknown)):
        with pytest.raises(InputError, match=f"^log_with: {said}"):
            Context.of(RunSettings(log_with=("tensorboard", name)))

    def start(self):
        raise RuntimeError("no key\nset one")

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "fake", Fake)
    monkeypatch.setitem(trackers.NAMED, "fake", "run")
    monkeypatch.setattr(Fake, "start", start)
    with pytest.raises(InputError, match=r"^log_with: fake fails \(no key\); "), run(tmp_path, log_with=("fake",)):
        pass


def test_no_tracker_at_all(tmp_path):
    finished(tmp_path, log_with=())
    assert [row["step"] for row in read_metrics(tmp_path)] == [4, 8, 10] and not (tmp_path / "tensorboard").exists()


def test_curves_are_a_readable_picture_with_a_panel_for_every_unweighted_term(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.set_title", lambda self, title, **options: drawn.append(title.replace(" ", "_"))
    )
    with run(tmp_path) as made:
        train(made)
        made.log(**{"validation/accuracy": 0.75})
    assert drawn == ["validation/accuracy", "it/error"]
    with Image.open(tmp_path / "curves.png") as picture:
        picture.load()
        assert picture.format == "PNG" and min(picture.size) > 100


def test_curves_show_every_term_over_the_steps_at_which_it_was_recorded(tmp_path, monkeypatch):
    drawn, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *given, **how: drawn.append(self) or save(self, *given, **how))
    finished(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("".join(f'{{"step": {step}, "epoch": 2.0, "val_score/a": {step / 2}}}\n' for step in range(30, 70)))
        file.write('{"step": 70, "validation/b": 1, "x": 2, "y": 3, "z": 4}\n')
    record.draw_curves(tmp_path)
    _, first, second, *_ = axes = drawn[-1].axes  # four beside one another
    assert [axis.get_title() for axis in axes] == ["validation/b", "it/error", "val score/a", "x", "y", "z"]
    assert [axis.get_xlabel() for axis in axes] == ["", "", "step", "step", "step", "step"]
    rows = [row for row in read_metrics(tmp_path) if "it/error" in row]
    ((few,), (many,)) = (axis.get_lines() for axis in (first, second))
    assert few.get_xydata().tolist() == [[row["step"], row["it/error"]] for row in rows]
    assert many.get_xydata().tolist() == [[step, step / 2] for step in range(30, 70)]
    assert (few.get_marker(), many.get_marker()) == (".", "None")


def test_no_curves_without_records(tmp_path):
    with run(tmp_path):
        pass
    assert not (tmp_path / "curves.png").exists()


def test_an_unfinished_last_line_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 2.0}\n{"step": 2, "a"')
    assert read_metrics(tmp_path) == [{"step": 1, "a": 2.0}]
    assert read_metrics(tmp_path / "nowhere") == []


def test_the_result(tmp_path):
    assert read_result(tmp_path) is None
    values = {"test_accuracy_last": 0.5, "transfer": None, "classifiers": {"a": [1, 2]}}
    assert write_result(tmp_path, Accelerator(), **values) == values
    assert read_result(tmp_path) == json.loads((tmp_path / "result.json").read_text()) == values


@pytest.mark.parametrize("field", ["record_every", "save_every"])
def test_an_interval_below_one_step_is_an_input_error(tmp_path, field):
    with pytest.raises(InputError, match=f"{field}: 0 is below 1"):
        run(tmp_path, **{field: 0})


# --- stopping and resuming -----------------------------------------------------------------------------------


def test_checkpoints_at_intervals_and_at_the_end(tmp_path):
    with run(tmp_path, steps=12, keep=9) as made:
        train(made)
    steps = [int(path.stem.removeprefix("step-")) for path in made.checkpoints.paths()]
    assert steps == [0, 5, 10, 12]


def test_a_checkpoint_every_ten_minutes_at_the_latest(tmp_path, monkeypatch):
    """Of steps that take four minutes each: after the third, and three after each other one."""
    clock = [0.0]
    monkeypatch.setattr(record.time, "perf_counter", lambda: clock[0])
    saved = []
    save = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda self, now, *more: saved.append(now.step) or save(self, now))
    with run(tmp_path, steps=12, save_every=5) as made:
        while not made.clock.done:
            clock[0] += 240
            train(made, until=made.clock.step + 1)
    assert saved == [0, 3, 5, 8, 10, 12]


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("step", [4, 6, 7])
def test_a_signal_saves_and_exits_and_the_resumed_run_equals_one_that_never_stopped(
    tmp_path, number, code, step, capsys
):
    whole = finished(tmp_path / "whole")
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stopped, run(tmp_path / "halves") as made:
        train(made, until=step - 1)
        signal.raise_signal(number)
        train(made)
    assert stopped.value.code == code
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    newest = made.checkpoints.paths()[-1]
    assert newest.name == f"step-0000000{step}.pt"
    said = f"stopped by signal {int(number)} after {newest}; --resume continues"
    assert said in capsys.readouterr().err

    resumed = run(tmp_path / "halves", resume=True)
    with resumed:
        assert resumed.clock.step == step
        train(resumed)
    assert resumed.counter.weight.item() == whole.counter.weight.item() == 10
    assert read_metrics(tmp_path / "halves") == read_metrics(tmp_path / "whole")


def test_a_resumed_run_has_trained_as_long_as_both_of_its_processes(tmp_path, monkeypatch):
    """Ten seconds a step: five steps until the checkpoint, and the other five; finished, it takes no more."""
    clock = [0.0]
    monkeypatch.setattr(record.time, "perf_counter", lambda: clock[0])

    def trained(until: int | None, **how) -> float:
        with run(tmp_path, **how) as made:
            while not made.clock.done and made.clock.step != until:
                clock[0] += 10
                train(made, until=made.clock.step + 1)
            return made.seconds

    assert trained(8) == 80
    clock[0] += 1000
    assert trained(None, resume=True) == 100
    clock[0] += 1000
    assert trained(None, resume=True) == 100


def test_a_killed_run_loses_the_rows_after_its_checkpoint_and_writes_them_again(tmp_path):
    finished(tmp_path / "whole", record_every=1)
    folder = tmp_path / "killed"
    killed = run(folder, record_every=1)
    with killed:
        train(killed, until=8)
    with (folder / "metrics.jsonl").open("a") as file:  # as a killed process leaves it
        file.write('{"step": 9, "epo')
    with run(folder, record_every=1, resume=True) as resumed:
        assert resumed.clock.step == 5
        assert [row["step"] for row in read_metrics(folder)] == [1, 2, 3, 4, 5]
        train(resumed)
    assert read_metrics(folder) == read_metrics(tmp_path / "whole")
    assert (folder / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()


def test_a_signal_after_the_last_step_is_not_forgotten(tmp_path):
    """The next classifier of the same command must not begin to train."""
    with pytest.raises(SystemExit) as stopped, run(tmp_path) as made:
        train(made)
        signal.raise_signal(signal.SIGINT)
    assert stopped.value.code == 130


def test_a_run_killed_before_its_first_checkpoint_starts_at_its_beginning(tmp_path):
    with run(tmp_path, resume=True) as made:
        assert made.clock.step == 0
        train(made)
    assert made.counter.weight.item() == 10


def test_a_resumed_run_of_another_split_is_an_input_error(tmp_path):
    finished(tmp_path)
    other = run(tmp_path, resume=True)
    other.checkpoints.identity["split_hash"] = "xyz"
    with pytest.raises(InputError, match="split_hash was 'abc', is 'xyz'"), other:
        pass


def test_a_diverged_run_names_the_last_good_checkpoint(tmp_path):
    with pytest.raises(FloatingPointError) as caught, run(tmp_path) as made:
        train(made, until=7)
        raise Diverged("it/error", 8)
    good = tmp_path / "checkpoints" / "step-00000005.pt"
    assert str(caught.value) == f"loss 'it/error' is not finite at step 8; the last good checkpoint is {good}"
    assert good.exists()
    assert [row["step"] for row in read_metrics(tmp_path)] == [4]


def test_what_ended_a_run_is_told_and_not_what_came_of_it(tmp_path, monkeypatch):
    """On a full disk the curves cannot be drawn either."""

    def full(folder):
        raise InputError("curves.png: cannot be written")

    monkeypatch.setattr(record, "draw_curves", full)
    with pytest.raises(InputError, match="step-5"), run(tmp_path) as made:
        train(made, until=4)
        raise InputError("step-5: cannot be written")
    with pytest.raises(InputError, match="curves"):
        finished(tmp_path / "other")


def test_metrics_that_cannot_be_written_are_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"metrics.jsonl: cannot be written: No space left"), run(tmp_path) as made:
        made._metrics.close()
        made._metrics = Path("/dev/full").open("w")  # noqa: SIM115
        train(made)


# --- the folder of a run -------------------------------------------------------------------------------------


def test_a_new_run_writes_its_configuration(tmp_path):
    claim(tmp_path / "a" / "run", CONFIG, Accelerator(), resume=False)
    saved = yaml.safe_load((tmp_path / "a" / "run" / "config.yaml").read_text())
    assert saved == {
        "rate": 0.1, "channels": [8, 16], "hybridizer": "some/folder", "out": "run", "resume": False,
        "threads": None, "record_every": 4, "save_every": 5,
    }  # fmt: skip


def test_an_empty_folder_may_be_taken_and_another_may_not(tmp_path):
    claim(tmp_path, CONFIG, Accelerator(), resume=False)
    before = (tmp_path / "config.yaml").read_text()
    with pytest.raises(InputError, match=rf"out: {tmp_path} is not empty; --resume continues"):
        claim(tmp_path, replace(CONFIG, rate=0.2), Accelerator(), resume=False)
    assert (tmp_path / "config.yaml").read_text() == before


def test_a_folder_of_a_process_killed_while_it_claimed_it_may_be_taken(tmp_path):
    (tmp_path / ".config.yaml.123.tmp").write_text("rate: 0")
    claim(tmp_path, CONFIG, Accelerator(), resume=False)
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", LOCK}
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".step-00000005.pt.123.tmp").write_text("half")
    claim(tmp_path, CONFIG, Accelerator(), resume=True)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_resuming_needs_a_run(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=rf"resume: no run in {folder} .config.yaml is missing"):
            claim(folder, CONFIG, Accelerator(), resume=True)
    with pytest.raises(InputError, match="which holds something else; give another --out"):
        claim(tmp_path, CONFIG, Accelerator(), resume=True, fresh_ok=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("left", ["nothing", "a leftover", "the lock"])
def test_a_run_killed_before_its_configuration_was_written_is_begun_anew(tmp_path, left):
    folder = tmp_path / "run"
    folder.mkdir()
    if left != "nothing":
        (folder / {"a leftover": ".config.yaml.99.tmp", "the lock": LOCK}[left]).write_text("rate: 0.")
    claim(folder, replace(CONFIG, resume=True), Accelerator(), resume=True)
    assert yaml.safe_load((folder / "config.yaml").read_text())["rate"] == 0.1
    assert {path.name for path in folder.iterdir()} == {"config.yaml", LOCK}


def test_a_part_of_a_larger_run_may_not_have_been_reached(tmp_path):
    claim(tmp_path / "variant", CONFIG, Accelerator(), resume=True, fresh_ok=True)
    assert (tmp_path / "variant" / "config.yaml").exists()
    with pytest.raises(InputError, match=r"rate = 0.1, this run 0.2"):
        claim(tmp_path / "variant", replace(CONFIG, rate=0.2), Accelerator(), resume=True, fresh_ok=True)


@dataclass(frozen=True)
class Method:
    rate: float = 0.1
    betas: tuple[float, ...] = (0.9, 0.99)


@dataclass(frozen=True)
class Grouped:
    method: Method | None = Method()
    out: Path = Path("run")
    resume: bool = False


@pytest.mark.parametrize(
    "method, said",
    [
        (Method(rate=0.2), "has method.rate = 0.1, this run 0.2"),
        (Method(betas=(0.5, 0.99)), r"has method.betas = \[0.9, 0.99\], this run \[0.5, 0.99\]"),
        (None, "has method.rate = 0.1, this run None"),
    ],
)
def test_a_field_of_a_group_is_named_with_its_group(tmp_path, method, said):
    claim(tmp_path, Grouped(), Accelerator(), resume=False)
    claim(tmp_path, Grouped(), Accelerator(), resume=True)
    with pytest.raises(InputError, match=said):
        claim(tmp_path, Grouped(method), Accelerator(), resume=True)


# --- one process a folder ------------------------------------------------------------------------------------

HOLDER = """
import os, sys, time
from pathlib import Path
from hybridgen.files import hold
folder = Path(sys.argv[1])
folder.mkdir(exist_ok=True)
hold(folder)
if sys.argv[2] == "alone" or os.fork() == 0:
    print(os.getpid(), flush=True)
time.sleep(600)
"""


@contextmanager
def holder(folder: Path, how: str = "alone"):
    """Another process that holds the folder; and what it said."""
    command = [sys.executable, "-c", HOLDER, str(folder), how]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_folder_that_another_process_writes_into_is_refused_and_says_who_does(tmp_path):
    claim(tmp_path, CONFIG, Accelerator(), resume=False)
    release(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with holder(tmp_path) as (process, _):
        said = rf"out: {tmp_path} is in use by process {process.pid} on {socket.gethostname()} since 2\d\d\d-\d\d-\d\d"
        for attempt in (
            lambda: claim(tmp_path, CONFIG, Accelerator(), resume=True),
            lambda: run(tmp_path, resume=True).__enter__(),
        ):
            with pytest.raises(InputError, match=said) as caught:
                attempt()
            assert "\n" not in str(caught.value)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != LOCK} == before
    claim(tmp_path, CONFIG, Accelerator(), resume=True)  # killed: its hold went with it


def test_a_folder_just_made_by_another_process_is_refused(tmp_path):
    with holder(tmp_path / "new"), pytest.raises(InputError, match="in use"):
        claim(tmp_path / "new", CONFIG, Accelerator(), resume=False)
    assert not (tmp_path / "new" / "config.yaml").exists()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_outlives_its_parent_does_not_hold_the_folder(tmp_path, end):
    with holder(tmp_path, "forks") as (process, child):
        process.send_signal(end)
        process.wait()
        os.kill(int(child), 0)  # it is alive
        try:
            claim(tmp_path, CONFIG, Accelerator(), resume=True)
        finally:
            os.kill(int(child), signal.SIGKILL)


def test_a_worker_does_not_take_the_hold_from_its_parent(tmp_path):
    """Closing what it inherited leaves the parent's lock, and its end as well."""
    hold(tmp_path)
    try:
        if (child := os.fork()) == 0:
            os._exit(0)
        os.waitpid(child, 0)
        script = "import sys; from pathlib import Path; from hybridgen.files import hold; hold(Path(sys.argv[1]))"
        done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
        assert f"is in use by process {os.getpid()} on" in done.stderr
    finally:
        release(tmp_path)


def test_the_end_of_a_run_frees_its_folder_and_leaves_no_lock(tmp_path):
    claim(tmp_path, CONFIG, Accelerator(), resume=False)
    with run(tmp_path) as made:
        train(made)
        write_result(tmp_path, Accelerator(), seed=0)
        assert (tmp_path / LOCK).exists()  # its curves may yet be drawn
    assert not (tmp_path / LOCK).exists()
    with pytest.raises(ZeroDivisionError), run(tmp_path, resume=True):
        _ = 1 / 0
    assert not (tmp_path / LOCK).exists()
    with holder(tmp_path):
        pass
    claim(tmp_path, CONFIG, Accelerator(), resume=True)
    write_result(tmp_path, Accelerator(), seed=0)  # as a comparison ends
    assert not (tmp_path / LOCK).exists()


def test_a_process_that_ends_leaves_no_lock(tmp_path):
    script = "import sys; from pathlib import Path; from hybridgen.files import hold; hold(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    assert list(tmp_path.iterdir()) == []


def test_without_locks_nobody_is_kept_out(tmp_path, monkeypatch):
    with holder(tmp_path):
        monkeypatch.setattr("hybridgen.files.fcntl", None)
        claim(tmp_path, CONFIG, Accelerator(), resume=False)


# --- what others have put there ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard"])
def test_a_file_where_a_folder_is_needed_is_an_input_error(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=f"^{tmp_path / name}: a file, where the run needs a folder"), run(tmp_path):
        pass
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["metrics.jsonl", "curves.png", "result.json"])
def test_a_folder_where_a_file_is_needed_is_an_input_error(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"^{tmp_path / name}: a folder, where the run needs a file"), run(tmp_path):
        pass
    if name == "metrics.jsonl":
        with pytest.raises(InputError, match=f"^{tmp_path / name}: cannot be read: Is a directory"):
            read_metrics(tmp_path)
    if name == "result.json":
        with pytest.raises(InputError, match=f"^{tmp_path / name}: cannot be read .Is a directory"):
            read_result(tmp_path)


BROKEN = [
    b"\xff\xfe", b"3", b"[1, 2]", b'"step"', b"null", b"{}", b'{"a": 1.0}', b'{"step": "3", "a": 1}', b'{"step": true}',
    b'{"step": 3, "a": [1]}', b'{"step": 3, "a": "x"}', b'{"step": 3, "a": null}', b'{"step": 3.5}', b"[" * 100_000,
    b'{"step": 3, "a": ' + b"9" * 400 + b"}", b"",
]  # fmt: skip


def test_lines_that_are_no_records_are_dropped_and_a_resumed_run_goes_on(tmp_path):
    finished(tmp_path)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    first, *others = whole.splitlines()
    path.write_bytes(b"\n".join([first, *BROKEN, *others, b'{"step": 11, "epo']))
    assert read_metrics(tmp_path) == [json.loads(line) for line in whole.splitlines()]
    with run(tmp_path, resume=True):
        pass
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "content", [b"", b'{"seed": 1, "test', b"\xff\xfe", b"[]", b"3", b"null", b"{}", b"[" * 100_000]
)
def test_a_result_that_is_none_is_an_input_error(tmp_path, content):
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(InputError, match=f"^{tmp_path / 'result.json'}: .*; remove it to train this run again$") as got:
        read_result(tmp_path)
    assert "\n" not in str(got.value)


@pytest.mark.parametrize("value", ['"high"', "null", "[0.5]", "true", "{}"])
def test_a_result_lacks_what_its_reader_needs(tmp_path, value):
    (tmp_path / "result.json").write_text(f'{{"seed": 0, "seconds": {value}}}')
    assert read_result(tmp_path, ["seed"])["seed"] == 0
    for name in ("seconds", "test_accuracy_last"):
        with pytest.raises(InputError, match=f"result.json: {name} is missing or no number; remove it to train"):
            read_result(tmp_path, ["seed", name])


def test_recorded_means_of_another_shape_or_of_other_losses_are_an_input_error(tmp_path):
    with run(tmp_path, save_every=6) as made:
        train(made, until=6)
    path = made.checkpoints.paths()[-1]
    state = torch.load(path, weights_only=True)
    kept = state["modules"]["means"]["_extra_state"]
    assert (kept["count"], list(kept["sums"])) == (2, ["it/error", "it/weighted/error"])
    vector, other = torch.zeros(3), {"it/other": torch.zeros(())}
    of = lambda value: {"sums": {"it/error": value}}
    damaged = [{"count": -1}, {"count": "2"}, {"sums": [1]}, of(vector), of(1.0)]
    for change in damaged:
        state["modules"]["means"]["_extra_state"] = kept | change
        torch.save(state, path)
        with pytest.raises(InputError, match=f"^{path}: does not fit this run"), run(tmp_path, resume=True):
            pass
    state["modules"]["means"]["_extra_state"] = kept | {"sums": other}
    torch.save(state, path)
    with pytest.raises(InputError, match="the checkpoint has means of it/other"), run(tmp_path, resume=True) as again:
        train(again)


# --- killed at its end ---------------------------------------------------------------------------------------


def killed_while_drawing(folder: Path, monkeypatch) -> None:
    class Killed(BaseException):
        pass

    def kill(folder):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed), run(folder) as made:
        patch.setattr(record, "draw_curves", kill)
        train(made)
        write_result(folder, Accelerator(), seed=0)
    assert not (folder / "curves.png").exists()


def test_a_run_killed_while_its_curves_are_drawn_has_no_result_and_draws_them_when_resumed(tmp_path, monkeypatch):
    killed_while_drawing(tmp_path, monkeypatch)
    assert read_result(tmp_path) is None
    with run(tmp_path, resume=True) as made:
        assert made.clock.done
    assert (tmp_path / "curves.png").exists()


def test_curves_are_drawn_once_and_again_when_there_is_more_to_see(tmp_path, monkeypatch):
    drawn = []
    draw = record.draw_curves
    monkeypatch.setattr(record, "draw_curves", lambda folder: (drawn.append(len(read_metrics(folder))), draw(folder)))
    with run(tmp_path) as made:
        train(made)
        write_result(tmp_path, Accelerator(), seed=0)
    assert drawn == [3]
    with run(tmp_path, resume=True) as made:
        made.log(more=1.0)
    assert drawn == [3, 4]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"rate": 0.2}, "rate = 0.1, this run 0.2"),
        ({"channels": (8,)}, r"channels = \[8, 16\], this run \[8\]"),
        ({"hybridizer": Path("none")}, "hybridizer = 'some/folder', this run 'none'"),
    ],
)
def test_resuming_needs_the_same_configuration(tmp_path, change, said):
    claim(tmp_path, CONFIG, Accelerator(), resume=False)
    before = (tmp_path / "config.yaml").read_text()
    with pytest.raises(InputError, match=f"resume: {tmp_path} has {said}"):
        claim(tmp_path, replace(CONFIG, **change), Accelerator(), resume=True)
    assert (tmp_path / "config.yaml").read_text() == before


def test_where_and_how_often_may_differ_and_the_saved_configuration_starts_a_new_run(tmp_path):
    claim(tmp_path, CONFIG, Accelerator(), resume=False)
    changed = replace(CONFIG, out=tmp_path, resume=True, threads=3, record_every=7, save_every=9)
    claim(tmp_path, changed, Accelerator(), resume=True)
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (saved["threads"], saved["record_every"], saved["save_every"]) == (3, 7, 9)
    assert saved["resume"] is False  # --config of it, with another --out, is a run of its own


def test_fields_in_which_halves_of_a_run_may_differ():
    """None that changes what is trained, or which network is selected: evaluations do."""
    assert set(record.UNIDENTIFIED) == {
        "out", "resume", "threads", "workers", "data_root", "download", "record_every", "save_every",
        "log_with",
    }  # fmt: skip


@pytest.mark.parametrize("content", ["", "- 1\n", "a: [1\n", "just words"])
def test_a_damaged_configuration_is_an_input_error(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(InputError, match=f"{tmp_path / 'config.yaml'}: "):
        claim(tmp_path, CONFIG, Accelerator(), resume=True)


def test_a_folder_that_cannot_be_made_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for resume in (False, True):
        with pytest.raises(InputError, match=r"out: .*file is not a folder"):
            claim(tmp_path / "file", CONFIG, Accelerator(), resume=resume)
    with pytest.raises(InputError, match=r"file/run/config.yaml: cannot be written: Not a directory"):
        claim(tmp_path / "file" / "run", CONFIG, Accelerator(), resume=False)


def test_nan_rows_can_be_read_again(tmp_path):
    with run(tmp_path) as made:
        made.log(**{"validation/accuracy": math.nan})
    assert math.isnan(read_metrics(tmp_path)[0]["validation/accuracy"])
