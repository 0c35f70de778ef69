"""Times that are told beforehand, against a clock that the work itself moves."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from hybridgen.data.datasets import Dataset, Part
from hybridgen.data.sources import InMemory
from hybridgen.data.splits import Split
from hybridgen.training import estimate
from hybridgen.training.context import Context, RunSettings
from hybridgen.training.ema import EMA
from hybridgen.training.estimate import left_of, seconds_of, spoken, whole_time
from hybridgen.training.objective import Outcome, Task, sgd
from hybridgen.training.plan import Plan
from hybridgen.training.schedules import Clock
from hybridgen.training.scores import Scored
from hybridgen.types import Batch


class Working(nn.Module):
    """A step takes so many seconds, thrice as many in the second half of the run; the first after a beginning takes ten
    more."""

    def __init__(self, now: SimpleNamespace) -> None:
        super().__init__()
        self.weight, self.now, self.steps = nn.Parameter(torch.ones(2)), (now,), []

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        now = self.now[0]
        now.seconds += now.of_a_step * (1 if clock.progress < 0.5 else 3)
        if now.fresh:
            now.seconds, now.fresh = now.seconds + 10, False
        self.steps.append(clock.step)
        return Outcome({"loss": (self.weight * torch.rand(2)).sum()})


@pytest.fixture
def now(monkeypatch) -> SimpleNamespace:
    now = SimpleNamespace(seconds=0.0, fresh=False, begun=0, of_a_step=0.1)
    monkeypatch.setattr(estimate, "now", lambda device: now.seconds)
    return now


def plan(now: SimpleNamespace, steps: int = 160, evaluate_every: int = 60) -> Plan:
    """With seven validation and twenty test images, each of which takes half a second to look at."""
    part = lambda count: Part(InMemory(torch.zeros(count, 3, 4, 4, dtype=torch.uint8)), torch.zeros(count).long())
    dataset = Dataset("noise", ("a",), 4, part(40), part(20), "f", True, (0.5,) * 3, (0.5,) * 3)
    split = Split("noise", "f", 0, tuple(range(33)), (), tuple(range(33, 40)))
    context = Context(RunSettings(data="noise", evaluate_every=evaluate_every), Accelerator(cpu=True), dataset, split)

    class Stream:
        steps_per_epoch, images_per_step = 8, 1

        def from_step(self, step):
            now.fresh, now.begun = True, now.begun + 1
            while True:
                yield Batch((torch.zeros(1, 3, 4, 6),), torch.zeros(1).long(), ())

    def score(network, part, indices):
        assert part is dataset.test and not network.training
        now.seconds += 0.5 * len(indices)
        return Scored({"accuracy": 0.0})

    objective = Working(now)
    task = Task(objective, {"loss": 1.0}, sgd(objective, decay=0.1), lambda clock: 1e30)
    return Plan(
        context, Stream(), Clock(steps, 8), {"work": task}, network=objective, score=score,
        average=EMA(objective, 0.5, linear_start=False),
    )  # fmt: skip


def test_steps_at_several_times_and_evaluations_make_the_whole(now):
    """Without what the first steps take; at a rate of zero, so that nothing diverges however high the rate is."""
    made = plan(now)
    state = torch.get_rng_state()
    found = seconds_of(made)
    # Half of the steps take a tenth of a second, half three; three evaluations of 7 images, two of 20 at the end
    assert found == pytest.approx(160 * 0.2 + 0.5 * (3 * 7 + 2 * 20))
    assert torch.equal(torch.get_rng_state(), state)
    objective = made.tasks["work"].objective
    assert torch.equal(objective.weight, torch.ones(2)) and now.begun == 4
    assert objective.steps == [20, 21, 22, 60, 61, 62, 100, 101, 102, 140, 141, 142]
    unselected = replace(plan(now), select=None)
    assert seconds_of(unselected) == pytest.approx(160 * 0.2 + 0.5 * (3 * 7 + 20))


def test_of_slow_steps_fewer_are_timed(now, capsys):
    """The second and third of the first time; then one at each, which takes a while to begin. A bar shows that."""
    now.of_a_step = 20.0
    made = plan(now)
    a_step = (20 + 20 + (20 + 10) + (60 + 10) + (60 + 10)) / 5
    assert seconds_of(made) == pytest.approx(160 * a_step + 0.5 * (3 * 7 + 2 * 20))
    assert made.tasks["work"].objective.steps == [20, 21, 22, 60, 100, 140]
    assert "timing:" in capsys.readouterr().err


def test_all_processes_time_as_many_steps_as_the_first(now, monkeypatch):
    """Though their clocks disagree on what is slow: steps of several processes wait for each other."""
    asked = []
    monkeypatch.setattr("hybridgen.training.estimate.by_first", lambda accelerator, act: asked.append(act()) or True)
    made = plan(now)
    seconds_of(made)
    assert asked[0] is False and made.tasks["work"].objective.steps == [20, 21, 22, 60, 100, 140]


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_shortest_runs_have_a_time(now, steps):
    assert 0 <= seconds_of(plan(now, steps=steps)) < 100


def test_what_is_done_is_not_counted(now, tmp_path):
    assert left_of(tmp_path / "nothing", 80) == 1
    for name, step in (("half", 40), ("over", 80)):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        for number in (10, step):
            (tmp_path / name / "checkpoints" / f"step-{number:08d}.pt").touch()
        (tmp_path / name / "checkpoints" / f"step-{step + 9:08d}.process-1.pt").touch()
    assert left_of(tmp_path / "half", 80) == 0.5 and left_of(tmp_path / "over", 80) == 0
    (tmp_path / "half" / "result.json").touch()
    assert left_of(tmp_path / "half", 80) == 0

    made, over = plan(now), plan(now, 80)
    parts = dict.fromkeys((tmp_path / "a", tmp_path / "b", tmp_path / "half"), made)
    parts |= {tmp_path / "c": plan(now, 40), tmp_path / "over": over}
    each, short = 32 + 0.5 * (3 * 7 + 2 * 20), 0.3 * 40 + 0.5 * (1 * 7 + 2 * 20)  # of the short one the middle is timed
    assert whole_time(parts) == pytest.approx(2 * each + short)
    assert now.begun == 4 + 1  # each plan was timed once, and not what is done


def test_times_are_told_in_words():
    assert [spoken(seconds) for seconds in (0.2, 1.4, 89, 90, 100, 5000, 5400, 8000)] == [
        "1 second", "1 second", "89 seconds", "2 minutes", "2 minutes", "83 minutes", "1.5 hours", "2.2 hours",
    ]  # fmt: skip
