"""Timings of the cases: a table or JSON.

A case and its floor take turns within one process, so that whatever else the machine does slows both; the ratio is
that of the medians. Every case has a process of its own, whose peak memory is read before the floor first runs.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from json import dumps, loads
from statistics import median
from typing import Any

import torch

from hybridgen.bench.cases import CASES, ON_CPU, ON_GPU, QUICK
from hybridgen.training.engine import make_accelerator, now, peak_memory
from hybridgen.types import InputError


def timed(name: str, *, quick: bool = False, rounds: int | None = None, threads: int | None = None) -> dict[str, Any]:
    """Time one case in this process: device, threads, and the case's figures as they stand in the JSON."""
    entry = CASES[name]
    accelerator = make_accelerator(precision="fp32", threads=threads, keep_memory=entry.keep_memory)
    device = accelerator.device
    torch.manual_seed(0)
    sizes = QUICK if quick else ON_CPU if device.type == "cpu" else ON_GPU
    used = torch.get_num_threads()

    # Peak memory, and a first step that is not timed
    before = peak_memory(device)
    case = entry.make(sizes, accelerator)
    case.step()
    memory = max(0, peak_memory(device) - before)  # Linux counts in batches, and may know less than it knew before
    case.floor()

    # Times
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds or (2 if quick else entry.rounds)):
        for run_once, taken in zip((case.step, case.floor), times, strict=True):
            if entry.settled:
                run_once()
            start = now(device)
            run_once()
            taken.append(1000 * (now(device) - start))
    milliseconds, floor_milliseconds = map(median, times)
    figures = {
        "what": case.what,
        "images_per_second": 1000 * case.images / milliseconds,
        "milliseconds": milliseconds,
        "milliseconds_min": min(times[0]),
        "floor": case.floor_is,
        "floor_milliseconds": floor_milliseconds,
        "floor_milliseconds_min": min(times[1]),
        "ratio": milliseconds / floor_milliseconds,
        "goal": entry.goal,
        "rounds": len(times[0]),
        "peak_memory_mib": memory / 2**20,
    }
    where = "cpu" if device.type == "cpu" else f"{device.type} ({torch.cuda.get_device_name(device)})"
    return {"device": where, "threads": used, "case": figures}


def run(
    json: bool = False,
    *,
    only: Sequence[str] = (),
    rounds: int | None = None,
    threads: int | None = None,
    quick: bool = False,
) -> None:
    """Measure and print: a table, row by row, or JSON and nothing else on standard output.

    `only` names cases; `rounds` is how often each and its floor are timed, unless given as many as the case needs;
    `threads` of the CPU, all cores unless given; `quick` takes small networks and batches, whose figures say nothing
    about the real ones. Raises InputError for an unknown case.
    """
    for name in only:
        if name not in CASES:
            raise InputError(f"--only: unknown case {name!r}; there are {', '.join(CASES)}")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("bench: measures one process; start it without accelerate launch")

    cases: dict[str, dict[str, Any]] = {}
    head: dict[str, Any] = {}
    for name in only or CASES:
        result = _in_fresh_process(name, {"quick": quick, "rounds": rounds, "threads": threads})
        cases[name] = result.pop("case")
        if not json and not head:
            print(f"{result['device']}, {result['threads']} threads, torch {torch.__version__}; medians")
            print(f"{'':26} {'images/s':>9} {'ms':>9} {'floor ms':>9} {'ratio':>7} {'goal':>7} {'peak MiB':>9}")
        head = result
        if not json:
            print(_row(name, cases[name]), flush=True)
    if json:
        print(dumps(head | {"torch": torch.__version__, "quick": quick, "cases": cases}, indent=2))
        return
    print()
    for name, figures in cases.items():
        print(f"{name}: {figures['what']}; floor: {figures['floor']}")
    if quick:
        print("\n--quick: small networks and batches; not the figures to report")


def _in_fresh_process(name: str, options: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "hybridgen.bench.measure", dumps({"name": name} | options)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode < 0:
        raise InputError(f"bench: {name} was ended by signal {-done.returncode}; 9 is mostly a lack of memory")
    if done.returncode:
        raise RuntimeError(f"bench: {name} failed; its error stands above")
    return loads(done.stdout.splitlines()[-1])


def _row(name: str, figures: dict[str, Any]) -> str:
    goal = "" if figures["goal"] is None else f"≤ {figures['goal']:.2f}"
    return (
        f"{name:26} {figures['images_per_second']:>9.1f} {figures['milliseconds']:>9.1f} "
        f"{figures['floor_milliseconds']:>9.1f} {figures['ratio']:>7.3f} {goal:>7} {figures['peak_memory_mib']:>9.0f}"
    )


if __name__ == "__main__":
    order = loads(sys.argv[1])
    print(dumps(timed(order.pop("name"), **order)))
