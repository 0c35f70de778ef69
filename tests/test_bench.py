import json
import math
import os
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from hybridgen.bench import cases, measure
from hybridgen.mixing.inputs import Patches
from hybridgen.mixing.methods import METHODS
from hybridgen.types import InputError

MODAL = (nn.BatchNorm2d, nn.LayerNorm, nn.Dropout)

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


class Counted(TorchDispatchMode):
    """What a step computes: how often gradients, floating-point operations of convolutions and products of matrices,
    and modes of the layers that differ between training and evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.backwards, self.flops, self.operations, self.modes = 0, 0, [], set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        self.operations.append(function)
        if (count := flop_registry.get(function.overloadpacket)) is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=found)
        return found


@pytest.fixture
def counted(monkeypatch):
    """Of each case the different counts of its steps, and of those of its floor."""
    counts: dict[str, tuple[list[Counted], list[Counted]]] = {}
    backward = torch.Tensor.backward

    def watched(run, into):
        def step():
            now = Counted()
            mode = lambda module, given: now.modes.add(module.training) if isinstance(module, MODAL) else None
            once = lambda *given, **more: setattr(now, "backwards", now.backwards + 1) or backward(*given, **more)
            with now, register_module_forward_pre_hook(mode), pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch.Tensor, "backward", once)
                run()
            into.append(now)

        return step

    def watching(name, make):
        def case(sizes, accelerator):
            made, (of_step, of_floor) = make(sizes, accelerator), counts.setdefault(name, ([], []))
            return made._replace(step=watched(made.step, of_step), floor=watched(made.floor, of_floor))

        return case

    for name, entry in cases.CASES.items():
        monkeypatch.setitem(cases.CASES, name, entry._replace(make=watching(name, entry.make)))
    return counts


def test_json_has_every_case_and_key(in_this_process, counted, capsys):
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
    # Images of the quick sizes, labelled and unlabelled ones together
    others = {"fixmatch": 16, "strong-augmentation": 32, "autoaugment": 32, "score": 32} | dict.fromkeys(
        ("mixvit", "mixvit-inference", "gated-attention"), 4
    )
    for name, figures in said["cases"].items():
        images = figures["images_per_second"] * figures["milliseconds"] / 1000
        assert images == pytest.approx(others.get(name, 8)), name
    check_floors(counted)


def check_floors(counted):
    """A floor sees as many images as its step, through the same networks, in the same mode, and learns as often."""
    masks = {f"mixmo-{mask}" for mask in get_args(Patches)}
    parts = {"ema", *masks}  # whose floor is a whole step
    pixels = {"strong-augmentation", "autoaugment", "cutmix", "cutmix-elementwise", *(f"mask-{n}" for n in METHODS)}
    others = {"fixmatch-fast", "fast-network"}  # another network's floor, the same in both
    less = {"stage-1-fast"}  # work for the same losses than its floor; R1, which is lazy, is in the first step of both
    forms = {"modulated-convolution", "modulated-convolution-kept", "gated-attention"}
    for name, (of_step, of_floor) in counted.items():
        first = name in less
        (step,), (floor,) = ({(each.backwards, each.flops) for each in own[first:]} for own in (of_step, of_floor))
        modes = [set().union(*(each.modes for each in own)) for own in (of_step, of_floor)]
        assert step[0] == (floor[0] if name not in parts else 0) and (name not in parts or floor[0] == 1), name
        if name not in parts | pixels | others | less | forms:
            most = 1.2 if name == "mixvit-inference" else 1.03  # its last blocks see an image twice
            assert 1 <= step[1] / floor[1] < most and modes[0] == modes[1], name
        if name.startswith("modulated"):  # where gradients accumulated, the second would do what the first does not
            assert all(len(own) > 1 and own[0].operations == own[1].operations for own in (of_step, of_floor))
    one, other = (counted[name] for name in others)
    assert one[0][0].flops / one[1][0].flops == other[0][0].flops / other[1][0].flops
    step, floor = (own[-1].flops for own in counted["stage-1-fast"])
    assert 0.7 < step / floor < 0.85
    inference = [name for name, (of_step, _) in counted.items() if of_step[0].modes == {False}]
    assert inference == ["hybridization", "mixmo-inference", "mixvit-inference", "score"]


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


def test_a_settled_case_is_timed_after_a_call_that_is_not(monkeypatch):
    """In the precision of all figures, with the memory that it asks for and the sizes that count on a CPU."""
    order, made = [], []

    def case(sizes, accelerator):
        assert sizes is cases.ON_CPU
        return cases.Case("", "", 1, lambda: order.append("step"), lambda: order.append("floor"))

    def accelerator(**how):
        made.append(how)
        return SimpleNamespace(device=torch.device("cpu"))

    monkeypatch.setitem(cases.CASES, "timed", cases.Entry(case, None, 1, keep_memory=False, settled=True))
    monkeypatch.setattr(measure, "make_accelerator", accelerator)
    monkeypatch.setattr(measure, "now", lambda device: order.append("now") or len(order))
    measure.timed("timed", threads=3)
    one, other = (["now", each, "now"] for each in ("step", "floor"))
    assert order == ["step", "floor", "step", *one, "floor", *other]
    assert made == [dict(precision="fp32", threads=3, keep_memory=False)]


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
    "stage-1": None, "stage-1-fast": 0.85, "hybridization": 1.1, "fixmatch": 1.25, "fixmatch-fast": 1 / 8,
    "fixmatch-hybrids": 1.25, "mean-teacher": 1.25, "mixmatch": 1.25, "samosa": 1.25, "fast-network": 1 / 8,
    "ema": 0.03, "strong-augmentation": 1 / 4, "autoaugment": 1 / 4, "modulated-convolution": 1 / 10,
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
