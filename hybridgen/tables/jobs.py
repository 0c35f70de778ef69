"""Runs of recipes as processes of their own, and tables that are made of many runs."""

import ctypes
import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hybridgen.evaluation.transfer import Rate, aligned
from hybridgen.files import write_text, writing, written_aside
from hybridgen.tables.compare import shown, summarize
from hybridgen.training.record import read_result
from hybridgen.types import InputError

LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class Job(NamedTuple):
    """A recipe with its arguments, but for `--out` and `--resume`."""

    folder: Path
    recipe: Path
    arguments: tuple[str, ...]


NEEDED = ("test_accuracy_last",)
"""Of the result of a job."""


def finish(job: Job, environment: Mapping[str, str]) -> dict[str, Any]:
    """The result in the job's folder, once the job is done: nothing where it is done already, what is left of it where
    it was begun. All that it says goes to a log beside the folder.

    SIGINT and SIGTERM are handed on. Ends this process with one line where they came, and where the job fails.
    """
    result = read_result(job.folder, NEEDED)
    if result is not None:
        return result
    log = job.folder.with_name(f"{job.folder.name}.log")
    command = [sys.executable, str(job.recipe), *job.arguments, "--out", str(job.folder)]
    if (job.folder / "config.yaml").exists():
        command.append("--resume")
    with writing(log), log.open("ab") as said:
        began = said.tell()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=dict(environment),
            start_new_session=True, preexec_fn=_end_with_parent if LIBC else None,
        )  # fmt: skip
    stopped = _waited(process)
    if stopped:
        print(f"stopped by signal {stopped} in {job.folder}; --resume continues", file=sys.stderr)
        sys.exit(128 + stopped)
    result = read_result(job.folder, NEEDED)
    if process.returncode or result is None:
        spoken = log.read_bytes()[began:].decode(errors="replace").strip()
        print(
            f"error: {job.folder}, a run of {job.recipe.name}: {_reason(process.returncode, spoken)}; "
            f"all it said is in {log}",
            file=sys.stderr,
        )
        sys.exit(process.returncode if process.returncode > 0 else 1)
    return result


def _waited(process: subprocess.Popen) -> int:
    """The signal that came before the process ended, and was handed on to it; 0 for none."""
    came = 0

    def hand_on(number: int, frame: Any) -> None:
        nonlocal came
        came = number
        process.send_signal(number)

    handlers = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return came


def _reason(code: int, spoken: str) -> str:
    """Why a process failed: its last error, else its last line."""
    lines = re.split(r"[\r\n]+", spoken)
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return f"killed by signal {-code}" if code < 0 else (errors or lines)[-1]


def _end_with_parent() -> None:
    """The system is to kill this process with its parent: a killed experiment leaves nobody writing to its folders."""
    LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


# --- tables -----------------------------------------------------------------------------------------------------

ACCURACIES = {"test_accuracy_last": "last", "test_accuracy_selected": "selected"}
"""Measures of a result by their headings: the test accuracy of the last and of the selected epoch."""

Figures = Mapping[str, Mapping[str, dict[str, float] | None]]
"""Mean and deviation of every measure in every row, None where a row does not have it."""


def arguments_of(changes: Mapping[str, Any], group: str) -> tuple[str, ...]:
    """Changes of a group as a recipe's arguments: `--method.style nonsemantic`, `--method.no-freeze-criteria`."""
    words: list[str] = []
    for name, value in changes.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{group}.{'' if value else 'no-'}{flag}")
        else:
            words += [f"--{group}.{flag}", str(value)]
    return tuple(words)


def split_words(config: Any, field: str) -> list[str]:
    """The arguments that a field gives in one word, as a shell would split them. InputError where it cannot."""
    try:
        return shlex.split(getattr(config, field))
    except ValueError as error:
        raise InputError(f"{field}: {getattr(config, field)!r} cannot be split into arguments ({error})") from error


def run_table(
    folder: Path,
    title: str,
    setting: str,
    names: Mapping[str, str],
    planned: Mapping[str, list[list[Job]]],
    environment: Mapping[str, str],
    *,
    about: Mapping[str, Any],
    measures: Mapping[str, str] = ACCURACIES,
    note: str = "",
) -> dict[str, Any]:
    """Finish all jobs, each folder's once, and set the rows side by side in table.txt, table.json and table.png.

    A row has a name and, for every seed, the jobs behind it, of which the last one's result counts. `about` is what
    table.json says of the setting, `setting` what stands above the names.
    """
    every = {job.folder: job for row in planned.values() for jobs in row for job in jobs}
    results = {}
    for number, (place, job) in enumerate(every.items(), start=1):
        print(f"{number}/{len(every)} {place}", flush=True)
        results[place] = finish(job, environment)

    figures = {key: measured([results[jobs[-1].folder] for jobs in row], measures) for key, row in planned.items()}
    seeds = max(len(row) for row in planned.values())
    rows = {
        key: {"name": names[key], "runs": [str(jobs[-1].folder) for jobs in row], **figures[key]}
        for key, row in planned.items()
    }
    values = {**about, "rows": rows}
    text = text_of(title, setting, names, figures, measures, seeds, note)
    draw(folder / "table.png", f"{title} ({setting}, {seeds} seed(s))", names, figures, measures)
    write_text(folder / "table.txt", text)
    write_text(folder / "table.json", json.dumps(values, indent=2) + "\n")
    print(f"\n{text}{folder / 'table.png'}")
    return values


def measured(results: list[dict[str, Any]], measures: Mapping[str, str]) -> dict[str, dict[str, float] | None]:
    """Mean and deviation of every measure over a row's seeds, None for one that the row does not have."""
    flat = [result | (result.get("transfer") or {}) for result in results]
    has = lambda key: all(each.get(key) is not None for each in flat)
    return {key: summarize([each[key] for each in flat]) if has(key) else None for key in measures}


def text_of(
    title: str,
    setting: str,
    names: Mapping[str, str],
    figures: Figures,
    measures: Mapping[str, str],
    seeds: int,
    note: str,
) -> str:
    body = [
        (names[key], *("-" if value is None else shown(value) for value in row.values()))
        for key, row in figures.items()
    ]
    return (
        f"{title}\n\n{aligned([(setting, *measures.values()), *body])}\n\n"
        f"In %: mean{' ± standard deviation' if seeds > 1 else ''} over {seeds} seed(s); last and selected: test "
        f"accuracy of that epoch.\n{note}{chr(10) if note else ''}"
    )


def draw(path: Path, title: str, names: Mapping[str, str], figures: Figures, measures: Mapping[str, str]) -> None:
    """All rows with their deviations; of the accuracies the last epoch's."""
    spread = lambda value: Rate(*(value["mean"] + sign * value.get("std", 0.0) for sign in (0, -1, 1)))
    series = {}
    for key in ("test_accuracy_last", *(key for key in measures if key not in ACCURACIES)):
        values = [row[key] for row in figures.values()]
        if any(values):
            series[key.replace("_", " ").removesuffix(" last")] = [
                None if value is None else spread(value) for value in values
            ]
    from matplotlib.figure import Figure  # which takes its time

    from hybridgen.evaluation.figures import draw_series

    figure = Figure(figsize=(1.5 + 1.6 * len(figures), 4.6), layout="constrained")
    draw_series(figure.subplots(), [names[key] for key in figures], series, title)
    with written_aside(path) as aside:
        figure.savefig(aside, dpi=110, format="png")
