"""Time, and what depends on it: weights and learning rates are functions of the clock."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hybridgen.types import InputError


@dataclass
class Clock:
    """How far training is. Only the training loop moves it."""

    steps: int
    """Steps of the whole run."""
    steps_per_epoch: int
    """Steps in which the unlabelled images are seen once."""
    step: int = 0
    """Steps done."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"epochs: {self.steps} steps of training; at least one is needed")

    @property
    def epoch(self) -> float:
        """Epochs done, with their fraction."""
        return self.step / self.steps_per_epoch

    @property
    def progress(self) -> float:
        """Part of the run that is done, from 0 to 1."""
        return self.step / self.steps

    @property
    def done(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.steps

    def every(self, interval: int) -> bool:
        """Whether an event of this interval (in steps) is due after the step just done; the last step always is."""
        return self.step % interval == 0 or self.done


Schedule = Callable[[Clock], float]
"""A weight or a rate as a function of the clock."""

Weight = float | Schedule


def value(weight: Weight, clock: Clock) -> float:
    """The weight at this time."""
    return weight(clock) if callable(weight) else weight


def within(clock: Clock, start: float, stop: float) -> bool:
    """Whether the current epoch lies in [start, stop)."""
    return start <= clock.epoch < stop


def window(weight: float, start: float = 0.0, stop: float = math.inf, *, ramp: float = 0.0) -> Schedule:
    """`weight` in the epochs [start, stop), zero elsewhere; grows linearly over the first `ramp` epochs."""

    def schedule(clock: Clock) -> float:
        if not within(clock, start, stop):
            return 0.0
        return weight if ramp == 0 else weight * min(1.0, (clock.epoch - start) / ramp)

    return schedule


def sigmoid_ramp(weight: float, epochs: float) -> Schedule:
    """weight · exp(-5 (1 - t)²), t the part of `epochs` that is done (Tarvainen and Valpola 2017)."""

    def schedule(clock: Clock) -> float:
        t = min(1.0, clock.epoch / epochs) if epochs > 0 else 1.0
        return weight * math.exp(-5 * (1 - t) ** 2)

    return schedule


def step_ramp(weight: float, steps: int) -> Schedule:
    """Grows linearly to `weight` over the first `steps` steps (MixMatch: 16,384)."""
    return lambda clock: weight * min(1.0, clock.step / steps) if steps > 0 else weight


def cosine(rate: float, epochs: float) -> Schedule:
    """rate · (1 + cos(π · epoch / epochs)) / 2: "set to fully decrease over 350 epochs" of 300 (thesis A.1.2.2)."""
    return lambda clock: rate * 0.5 * (1 + math.cos(math.pi * min(1.0, clock.epoch / epochs)))


def fixmatch_cosine(rate: float) -> Schedule:
    """rate · cos(7π/16 · progress) (Sohn et al. 2020)."""
    return lambda clock: rate * math.cos(7 * math.pi / 16 * clock.progress)


def stepped(rate: float, at: Sequence[float], factor: float = 0.1) -> Schedule:
    """`rate`, times `factor` at each of these epochs."""
    return lambda clock: rate * factor ** sum(clock.epoch >= epoch for epoch in at)


def warmed(schedule: Schedule, epochs: float) -> Schedule:
    """`schedule`, of which a part that grows linearly to the whole over the first epochs (Goyal et al. 2017)."""
    return lambda clock: (
        schedule(clock) * (min(1.0, (clock.epoch + 1 / clock.steps_per_epoch) / epochs) if epochs > 0 else 1.0)
    )


def cycled(schedule: Schedule, cycles: int) -> Schedule:
    """`schedule` over each of `cycles` equal parts of the run, from its beginning every time (thesis A.1.1)."""

    def restarted(clock: Clock) -> float:
        steps = clock.steps // cycles
        return schedule(Clock(steps, clock.steps_per_epoch, clock.step % steps))

    return restarted
