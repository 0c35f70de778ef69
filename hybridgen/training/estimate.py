"""How long training will take, said before it begins."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from hybridgen.training.bars import counted
from hybridgen.training.engine import now
from hybridgen.training.fit import fit
from hybridgen.training.plan import Plan
from hybridgen.training.record import by_first
from hybridgen.training.train import scored

PLACES, STEPS = 4, 2
"""Times of a run at which steps are timed, for windows open and close, and how many steps at each."""

SLOW = 1.0
"""Seconds of a step, beyond which one at each time is enough, with what it takes to begin there."""

SHORT = 100
"""Steps below which one time, its middle, is enough."""

SAMPLE = 256
"""Images on which an evaluation is timed, at most."""


def seconds_of(plan: Plan) -> float:
    """How long a plan's training takes on this machine with its evaluations, by a few steps at times spread over the
    run, whose rate is zero.

    The plan is used up: batch-norm's statistics, histories and optimizers have seen these steps. Another one is made
    to be trained. The global random state stays as it is. All processes call it.
    """
    context, clock = plan.context, plan.clock
    accelerator, dataset, every = context.accelerator, context.dataset, context.settings.evaluate_every
    tasks = {}
    for name, task in plan.tasks.items():
        objective, optimizer = accelerator.prepare(task.objective, task.optimizer)
        tasks[name] = replace(task, objective=objective, optimizer=optimizer, rate=lambda clock: 0.0)

    with torch.random.fork_rng(devices=[]):
        took, done, slow = 0.0, 0, False
        places = PLACES if clock.steps >= SHORT else 1
        for place in counted(range(places), "timing", accelerator):
            clock.step = min(round((place + 0.5) / places * clock.steps), max(0, clock.steps - 1 - STEPS))
            steps = fit(tasks, plan.stream.from_step(clock.step), clock, accelerator, seed=0)
            if not slow:
                next(steps)  # takes memory, and compiles
            began = now(accelerator.device)
            for _, _ in zip(range(1 if slow else STEPS), steps, strict=False):
                if plan.average:
                    plan.average.update(plan.network)
                done += 1
            took += now(accelerator.device) - began
            slow = by_first(accelerator, lambda: took > SLOW * done)  # noqa: B023 - asked at once
        a_step = took / max(1, done)

        seen = dataset.test.known[:SAMPLE].tolist()
        began = now(accelerator.device)
        scored(plan, plan.judged, dataset.test, seen)
        an_image = (now(accelerator.device) - began) / max(1, len(seen))
    accelerator.free_memory()
    images = math.ceil(clock.steps / every) * len(context.split.validation)
    images += len(dataset.test.known) * (2 if plan.select else 1)
    return clock.steps * a_step + images * an_image


def left_of(folder: Path, steps: int) -> float:
    """The part of a run of so many steps that is still to be done, by what lies in its folder: 0 with a result."""
    if (folder / "result.json").exists():
        return 0.0
    names = (re.fullmatch(r"step-(\d{8})\.pt", path.name) for path in folder.glob("checkpoints/step-*.pt"))
    return 1 - max((int(name[1]) for name in names if name), default=0) / steps


def whole_time(parts: Mapping[Path, Plan]) -> float:
    """Seconds for what is left of several trainings, each in its folder. Those of one plan take the same time; plans
    are used up."""
    left: dict[int, tuple[Plan, float]] = {}
    for folder, plan in parts.items():
        _, others = left.get(id(plan), (plan, 0.0))
        left[id(plan)] = plan, others + left_of(folder, plan.clock.steps)
    return sum(seconds_of(plan) * share for plan, share in left.values() if share)


def spoken(seconds: float) -> str:
    """A time as one says it: `40 seconds`, `12 minutes`, `2.3 hours`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} second{'' if round(seconds) <= 1 else 's'}"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
