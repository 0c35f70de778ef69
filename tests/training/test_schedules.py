"""Schedules against their closed forms, at their edges, and as functions of the clock alone."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from hybridgen.training.schedules import (
    Clock,
    cosine,
    cycle_of,
    cycled,
    fixmatch_cosine,
    one_cycle,
    step_ramp,
    stepped,
    triangular,
    value,
    warmed,
    window,
    within,
)
from hybridgen.types import InputError


def at(step: int, steps: int = 300, steps_per_epoch: int = 10) -> Clock:
    return Clock(steps=steps, steps_per_epoch=steps_per_epoch, step=step)


def test_clock():
    clock = at(25)
    assert (clock.epoch, clock.progress, clock.done) == (2.5, 25 / 300, False)
    assert at(300).done and at(300).progress == 1.0
    assert not at(299).done


@pytest.mark.parametrize("steps", [0, -3])
def test_a_run_without_a_step_is_an_input_error(steps):
    with pytest.raises(InputError, match=f"epochs: {steps} steps"):
        Clock(steps=steps, steps_per_epoch=10)


def test_an_event_is_due_at_its_interval_and_always_at_the_last_step():
    assert [step for step in range(1, 11) if at(step, steps=10).every(4)] == [4, 8, 10]
    assert [step for step in range(1, 9) if at(step, steps=8).every(4)] == [4, 8]
    assert [step for step in range(1, 4) if at(step, steps=3).every(100)] == [3]


def test_a_weight_is_a_number_or_a_schedule():
    assert value(0.25, at(7)) == 0.25
    assert value(lambda clock: clock.epoch, at(7)) == 0.7


def test_window_opens_at_its_first_epoch_and_closes_before_its_last():
    schedule = window(2.0, 5.0, 15.0)
    assert [schedule(at(step)) for step in (0, 49, 50, 149, 150, 299)] == [0, 0, 2.0, 2.0, 0, 0]
    assert [within(at(step), 5.0, 15.0) for step in (49, 50, 149, 150)] == [False, True, True, False]
    assert window(2.0)(at(0)) == window(2.0)(at(10**9)) == 2.0


def test_window_grows_linearly_from_its_start():
    schedule = window(2.0, 5.0, ramp=4.0)
    assert [schedule(at(step)) for step in (49, 50, 60, 70, 90, 91, 299)] == [0, 0, 0.5, 1.0, 2.0, 2.0, 2.0]


def test_the_thesis_cosine_would_have_decreased_fully_at_epoch_350_of_300():
    schedule = cosine(0.1, 350.0)
    rates = [schedule(at(epoch * 10, steps=3000)) for epoch in range(301)]
    assert rates[0] == 0.1
    assert rates[175] == pytest.approx(0.05, rel=1e-12)
    assert rates[300] == pytest.approx(0.1 * (1 + math.cos(math.pi * 300 / 350)) / 2, rel=1e-12)
    assert rates[300] > 0.004
    assert all(later < earlier for earlier, later in pairwise(rates))
    assert schedule(at(3500, steps=9000)) == pytest.approx(0, abs=1e-15)
    assert schedule(at(7000, steps=9000)) == pytest.approx(0, abs=1e-15)  # and stays there


@pytest.mark.parametrize("step", [0, 1, 150, 299, 300])
def test_fixmatch_cosine(step):
    assert fixmatch_cosine(0.03)(at(step)) == pytest.approx(0.03 * math.cos(7 * math.pi * step / (16 * 300)), rel=1e-12)


def test_fixmatch_cosine_ends_near_a_fifth_and_depends_on_steps_not_on_epochs():
    assert fixmatch_cosine(0.03)(at(300)) == pytest.approx(0.03 * 0.195090322016, rel=1e-9)
    assert fixmatch_cosine(0.03)(at(40, steps_per_epoch=1)) == fixmatch_cosine(0.03)(at(40, steps_per_epoch=99))


@pytest.mark.parametrize("steps_per_epoch", [1, 10])
def test_step_ramp_grows_linearly_in_steps_and_stays(steps_per_epoch):
    schedule = step_ramp(75.0, 200)
    values = [schedule(at(step, steps_per_epoch=steps_per_epoch)) for step in (0, 1, 50, 199, 200, 201, 300)]
    assert values == [0, 75 / 200, 18.75, 75 * 199 / 200, 75, 75, 75]


def test_step_ramp_of_no_length_is_on_at_once():
    assert step_ramp(75.0, 0)(at(0)) == 75.0


def test_a_cycled_schedule_starts_anew_in_every_cycle():
    schedule, alone = cycled(fixmatch_cosine(0.03), 3), fixmatch_cosine(0.03)
    values = [schedule(at(step, steps=30)) for step in range(30)]
    assert values == [alone(at(step, steps=10)) for step in range(10)] * 3
    assert cycled(cosine(0.1, 2.0), 1)(at(7, steps=30)) == cosine(0.1, 2.0)(at(7, steps=30))


def test_a_stepped_rate_falls_to_a_tenth_at_its_epochs():
    """CutMix's 300 epochs: at 150 and 225."""
    schedule = stepped(0.25, (150, 225))
    rates = [schedule(at(epoch * 10, steps=3000)) for epoch in (0, 149, 150, 224, 225, 299)]
    assert rates == pytest.approx([0.25, 0.25, 0.025, 0.025, 0.0025, 0.0025])
    assert stepped(0.25, ())(at(2999, steps=3000)) == 0.25


def test_a_warmed_schedule_grows_linearly_to_the_whole():
    schedule = warmed(lambda clock: 0.1, 5)
    rates = [schedule(at(step)) for step in range(60)]
    assert rates[:50] == pytest.approx([0.1 * (step + 1) / 50 for step in range(50)])
    assert rates[50:] == pytest.approx([0.1] * 10)
    falling, plain = warmed(cosine(0.1, 30.0), 5), cosine(0.1, 30.0)
    assert falling(at(24)) == pytest.approx(plain(at(24)) * 0.5)
    assert warmed(plain, 0)(at(0)) == plain(at(0))


def test_one_cycle_is_torchs():
    """Rate by rate, momenta aside."""
    optimizer = torch.optim.SGD([torch.zeros((), requires_grad=True)], lr=0.4, momentum=0.9)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.4, total_steps=57)
    schedule = one_cycle(0.4)
    for step in range(57):
        assert schedule(at(step, steps=57)) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
        optimizer.step()
        if step < 56:
            theirs.step()


def test_the_time_of_a_cycle_begins_anew():
    clock = cycle_of(at(130, steps=300), 3)
    assert (clock.step, clock.steps, clock.steps_per_epoch) == (30, 100, 10)
    assert cycle_of(at(99, steps=300), 3).step == 99 and cycle_of(at(100, steps=300), 3).step == 0


def test_a_clock_lasts_so_many_epochs():
    assert Clock.lasting(2.5, 13) == Clock(steps=32, steps_per_epoch=13)


def test_a_triangular_rate_is_numpys_interpolation_of_its_corners():
    schedule = triangular(3.0, start=0.2, peak=0.23, end=0.07)
    for step in range(301):
        expected = 3.0 * np.interp(step / 300, [0, 0.23, 1], [0.2, 1, 0.07])
        assert schedule(at(step)) == pytest.approx(expected, rel=1e-12), step
