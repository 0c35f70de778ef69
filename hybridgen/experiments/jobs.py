"""Runs of recipes as processes of their own, for experiments that are made of many runs."""

import ctypes
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hybridgen.files import writing
from hybridgen.training.record import read_result

LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class Job(NamedTuple):
    """A recipe with its arguments, but for `--out` and `--resume`."""

    folder: Path
    recipe: Path
    arguments: tuple[str, ...]


def finish(job: Job, environment: Mapping[str, str]) -> dict[str, Any]:
    """The result in the job's folder, once the job is done: nothing where it is done already, what is left of it where
    it was begun. All that it says goes to a log beside the folder.

    SIGINT and SIGTERM are handed on. Ends this process with one line where they came, and where the job fails.
    """
    result = read_result(job.folder)
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
    result = read_result(job.folder)
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
