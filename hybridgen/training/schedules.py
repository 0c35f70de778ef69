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
    """Steps in which the unlabelled images are seen once, or of few images several times (`Context.clock`)."""
    step: int = 0
    """Steps done."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"epochs: {self.steps} steps of training; at least one is needed")

    @classmethod
    def lasting(cls, epochs: float, steps_per_epoch: int) -> "Clock":
        """At the beginning of so many epochs."""
        return cls(round(epochs * steps_per_epoch), steps_per_epoch)

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


def step_ramp(weight: float, steps: int) -> Schedule:
    """Grows linearly to `weight` over the first `steps` steps (MixMatch: 16,384)."""
    return lambda clock: weight * min(1.0, clock.step / steps) if steps > 0 else weight


def cosine(rate: float, epochs: float | None) -> Schedule:
    """rate · (1 + cos(π · epoch / epochs)) / 2: "set to fully decrease over 350 epochs" of 300 (thesis A.1.2.2);
    without epochs, over the whole run."""

    def schedule(clock: Clock) -> float:
        done = clock.progress if epochs is None else clock.epoch / epochs
        return rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return schedule


def fixmatch_cosine(rate: float) -> Schedule:
    """rate · cos(7π/16 · progress) (Sohn et al. 2020)."""
    return lambda clock: rate * math.cos(7 * math.pi / 16 * clock.progress)


def one_cycle(rate: float) -> Schedule:
    """From a twenty-fifth of `rate` up to it in the first 30 % of the run and down to a 250,000th, along cosines (Smith
    and Topin 2019, as torch's OneCycleLR; momenta are left alone)."""

    def schedule(clock: Clock) -> float:
        top = 0.3 * clock.steps - 1
        if clock.step <= top:
            part, low = clock.step / top, rate / 25
            return rate + (low - rate) * (1 + math.cos(math.pi * part)) / 2
        part, low = (clock.step - top) / (clock.steps - 1 - top), rate / 25e4
        return low + (rate - low) * (1 + math.cos(math.pi * part)) / 2

    return schedule


def triangular(rate: float, *, start: float, peak: float, end: float) -> Schedule:
    """Along straight lines from the part `start` of `rate` up to it after the part `peak` of the run, and down to the
    part `end` at its end (Jordan 2024, airbench: 0.2, 0.23, 0.07)."""

    def schedule(clock: Clock) -> float:
        if clock.progress < peak:
            return rate * (start + (1 - start) * clock.progress / peak)
        return rate * (1 + (end - 1) * (clock.progress - peak) / (1 - peak))

    return schedule


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

    return lambda clock: schedule(cycle_of(clock, cycles))


def cycle_of(clock: Clock, cycles: int) -> Clock:
    """The time within the current one of `cycles` equal parts of the run."""
    steps = clock.steps // cycles
    return Clock(steps, clock.steps_per_epoch, clock.step % steps)
