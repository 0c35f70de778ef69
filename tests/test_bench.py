import json
import math
import os
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from hybridgen.bench import cases, measure
from hybridgen.mixing.inputs import Patches
from hybridgen.mixing.methods import METHODS
from hybridgen.types import InputError

KEYS = {
    "images_per_second",
    "milliseconds",
    "floor",
    "floor_milliseconds",
    "ratio",
    "goal",
    "peak_memory_mib",
}


@pytest.fixture
def in_this_process(monkeypatch):
    """Spares the start of a process a case; the number of threads is put back."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(measure, "_in_fresh_process", lambda name, options: measure.timed(name, **options))
    yield
    torch.set_num_threads(threads)


def check(figures):
    assert figures.keys() >= KEYS
    assert 0 < figures["ratio"] < math.inf
    assert figures["ratio"] == figures["milliseconds"] / figures["floor_milliseconds"]
    assert figures["milliseconds_min"] <= figures["milliseconds"]
    assert figures["floor_milliseconds_min"] <= figures["floor_milliseconds"]
    assert figures["images_per_second"] > 0
    assert figures["peak_memory_mib"] >= 0


@pytest.fixture
def backwards(monkeypatch):
    """How often gradients are computed in a step of each case, and in one of its floor."""
    counted: dict[str, tuple[set[int], set[int]]] = {}
    calls: list[None] = []
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda *given, **more: calls.append(None) or backward(*given, **more))

    def watched(run, counts):
        def step():
            calls.clear()
            run()
            counts.add(len(calls))

        return step

    def watching(name, make):
        def case(sizes, accelerator):
            made, (of_step, of_floor) = make(sizes, accelerator), counted.setdefault(name, (set(), set()))
            return made._replace(step=watched(made.step, of_step), floor=watched(made.floor, of_floor))

        return case

    for name, entry in cases.CASES.items():
        monkeypatch.setitem(cases.CASES, name, entry._replace(make=watching(name, entry.make)))
    return counted


def test_json_has_every_case_and_key(in_this_process, backwards, capsys):
    measure.run(json=True, quick=True, rounds=1, threads=1)
    said = json.loads(capsys.readouterr().out)
    assert said["device"].startswith("cpu" if not torch.cuda.is_available() else "cuda")
    assert (said["threads"], said["torch"], said["quick"]) == (1, torch.__version__, True)
    assert list(said["cases"]) == list(cases.CASES)
    for figures in said["cases"].values():
        check(figures)
        assert figures["rounds"] == 1
    goals = {name: figures["goal"] for name, figures in said["cases"].items()}
    assert goals["hybridization"] == 1.1
    assert goals["fixmatch"] == 1.25
    assert goals["strong-augmentation"] == 1 / 4
    assert goals["modulated-convolution"] == 1 / 10
    parts = {"ema", *(f"mixmo-{mask}" for mask in get_args(Patches))}  # whose floor is a whole step
    for name, (of_step, of_floor) in backwards.items():  # a floor learns where the step does
        assert len(of_step) == 1 and (of_floor == of_step or (name in parts and of_floor == {1}))
    assert backwards["ema"] == ({0}, {1}) and backwards["modulated-convolution"] == ({1}, {1})


def test_a_ratio_is_of_medians(monkeypatch):
    """Milliseconds of the step, then of its floor, in each of five rounds; both means are 25."""
    taken = iter([10, 20, 90, 20, 11, 45, 4, 18, 10, 22])
    clock = [0.0]

    def passing() -> None:
        clock[0] += next(taken) / 1000

    def case(sizes, accelerator):
        step, floor = ((lambda: passing() if counting else None) for _ in range(2))
        return cases.Case("a step", "its floor", 30, step, floor)

    counting: list[bool] = []
    monkeypatch.setitem(cases.CASES, "timed", cases.Entry(case, None, 5))
    monkeypatch.setattr(measure, "now", lambda device: counting.append(True) or clock[0])
    figures = measure.timed("timed", threads=torch.get_num_threads())["case"]
    assert figures["milliseconds"] == pytest.approx(10) and figures["floor_milliseconds"] == pytest.approx(20)
    assert figures["milliseconds_min"] == pytest.approx(4) and figures["floor_milliseconds_min"] == pytest.approx(18)
    assert figures["ratio"] == pytest.approx(0.5) and figures["images_per_second"] == pytest.approx(3000)
    assert (figures["what"], figures["floor"], figures["rounds"], figures["goal"]) == ("a step", "its floor", 5, None)


def test_table_has_a_row_and_an_explanation_a_case(in_this_process, capsys):
    measure.run(quick=True, rounds=1, threads=1, only=["strong-augmentation", "modulated-convolution"])
    lines = capsys.readouterr().out.splitlines()
    for name in ("strong-augmentation", "modulated-convolution"):
        assert sum(line.startswith(f"{name} ") for line in lines) == 1
        assert any(line.startswith(f"{name}: ") and "floor: " in line for line in lines)
    assert not any(line.startswith("fixmatch") for line in lines)
    assert "not the figures to report" in lines[-1]


def test_a_case_has_a_process_and_a_peak_memory_of_its_own(capfd):
    ballast = torch.ones(1 << 29, dtype=torch.uint8)  # `ru_maxrss` would begin at this process's size
    measure.run(json=True, quick=True, rounds=1, threads=1, only=["strong-augmentation"])
    said = json.loads(capfd.readouterr().out)
    check(said["cases"]["strong-augmentation"])
    if sys.platform.startswith("linux"):
        assert 0 < said["cases"]["strong-augmentation"]["peak_memory_mib"] < len(ballast) / 2**20


@pytest.mark.parametrize("code", [-9, -11, 1])
def test_a_case_that_fails_is_told_by_its_signal_or_error(monkeypatch, code):
    monkeypatch.setattr(measure.subprocess, "run", lambda *given, **more: SimpleNamespace(returncode=code, stdout=""))
    signal = f"fixmatch was ended by signal {-code}; 9 is mostly a lack of memory"
    with pytest.raises(*((InputError, RuntimeError)[code > 0],), match=signal if code < 0 else "fixmatch failed"):
        measure._in_fresh_process("fixmatch", {})


def test_an_unknown_case_is_an_input_error(capsys):
    with pytest.raises(InputError, match="unknown case 'fixmach'; there are stage-1, "):
        measure.run(only=["fixmatch", "fixmach"])
    assert capsys.readouterr().out == ""


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    with pytest.raises(InputError, match="accelerate launch"):
        measure.run()


GOALS = {
    "stage-1": None, "hybridization": 1.1, "fixmatch": 1.25, "fixmatch-fast": 1 / 8, "fixmatch-hybrids": 1.25,
    "mean-teacher": 1.25, "mixmatch": 1.25, "samosa": 1.25, "fast-network": 1 / 8, "ema": 0.03,
    "strong-augmentation": 1 / 4, "autoaugment": 1 / 4, "modulated-convolution": 1 / 10,
    "modulated-convolution-kept": None, "cutmix": 1.5, "cutmix-elementwise": 1 / 5,
    **dict.fromkeys((f"mask-{name}" for name in METHODS), None), "recursivemix": 1.03, "mixmo": 1.05,
    "mixmo-inference": 1.02, **dict.fromkeys((f"mixmo-{name}" for name in get_args(Patches)), 0.01), "mixshare": 1.08,
    "mixvit": 1.05, "mixvit-inference": 1.15, "gated-attention": 1.0, "score": 1.05,
}  # fmt: skip
"""Largest ratios that are wanted; ours."""


def test_every_case_has_its_goal_and_is_timed_often_enough():
    assert {name: entry.goal for name, entry in cases.CASES.items()} == GOALS
    assert min(entry.rounds for entry in cases.CASES.values()) == 3
    assert all(entry.rounds % 2 == 1 for entry in cases.CASES.values())  # the median is one of them
    otherwise = {name for name, entry in cases.CASES.items() if not entry.keep_memory or entry.settled}
    assert otherwise == {"modulated-convolution", "modulated-convolution-kept"}
    assert not cases.CASES["modulated-convolution"].keep_memory


def test_rows_of_the_table():
    figures = dict(images_per_second=1234.56, milliseconds=10.04, floor_milliseconds=20.06, ratio=0.50049)
    row = measure._row("ema", figures | dict(goal=0.03, peak_memory_mib=12.6))
    assert row.split() == ["ema", "1234.6", "10.0", "20.1", "0.500", "≤", "0.03", "13"]
    assert measure._row("ema", figures | dict(goal=None, peak_memory_mib=12.6)).split()[5:] == ["13"]


def test_the_goals_are_for_the_sizes_of_the_plan():
    assert (
        replace(cases.ON_CPU, stage1=(60, 196), hybridization=1024, fixmatch_hybrids=(64, 448), mean_teacher=(60, 196))
        == cases.ON_GPU
    )
    assert cases.ON_CPU.stage1 == (16, 48) and cases.ON_CPU.fixmatch_hybrids == (16, 112)
    assert cases.ON_CPU.mean_teacher == (30, 98) and cases.ON_CPU.mixmatch == (64, 64)
    assert (cases.ON_CPU.hybridization, cases.ON_CPU.network, cases.ON_CPU.mixing) == (128, 128, 128)
    for sizes in (cases.ON_CPU, cases.ON_GPU):
        assert (sizes.depth, sizes.width) == (28, 2)
        assert sizes.fixmatch == (64, 7 * 64)
        assert sizes.strong == 448
        assert sizes.convolution == (256, 128, 8)
