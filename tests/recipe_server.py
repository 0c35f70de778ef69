"""Recipes as processes of their own, without the seconds that each would take for its imports.

`start_server` forks a process that forks another for every request, a dictionary of `argv`, `folder`, `memory`,
`curves` and `processes`: argv[0] is a recipe, the process's output goes to `stdout` and `stderr` in the folder, which
has its `cache` too, and where so many bytes more than it has at its beginning are given, it gets no more. It does not
check shapes and types, as no user's does. Curves, which take as long as the training of a toy, are an empty file unless
asked for. The server sends two answers: the process ids
at once, and the exit code (a signal's number negative) when all have ended.

Several processes are a group, as torchrun would start them, on CPUs: one that fails ends the others, and the exit code
is that of the first that fails. Recipes that a recipe starts are forked, too.
"""

import contextlib
import gc
import importlib
import os
import pkgutil
import resource
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
from accelerate.state import AcceleratorState
from light import lighten
from recipe_modules import NAMES, recipe
from tyro import _unsafe_cache

import hybridgen
from hybridgen.configuration import parse
from hybridgen.data.datasets import load_dataset
from hybridgen.tables import jobs
from hybridgen.training import record

LATE = (
    "PIL.BmpImagePlugin", "PIL.GifImagePlugin", "PIL.JpegImagePlugin", "PIL.PpmImagePlugin", "sklearn.datasets",
    "torch._inductor.config", "torch.utils.serialization", "torch.utils.tensorboard", "typeguard", "tyro._backends",
)  # fmt: skip


def become(argv: list[str], folder: Path, memory: int | None, curves: bool) -> None:
    """Turn this process into one that was started with a recipe."""
    if memory is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory,) * 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_APPEND), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", 1, errors="backslashreplace")  # not pytest's
    if not curves:
        record.draw_curves = lambda folder: (folder / "curves.png").touch()
    jobs.subprocess = Forks
    jaxtyping.config.update("jaxtyping_disable", True)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    os.chdir(folder)
    run(argv)


def run(argv: list[str]) -> None:
    """Run a recipe as a process that ends with it."""
    sys.argv = argv
    try:
        runpy.run_path(argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the interpreter would take more than a second to take leave of all its modules


class Forked(subprocess.Popen):
    """A process of `[python, recipe, ...]` that never becomes another program."""

    def __init__(self, command: list[str], *, env: dict[str, str], preexec_fn: Callable[[], None], **options):
        def instead() -> None:
            preexec_fn()
            os.closerange(3, 256)  # on one of them the parent waits for the other program
            os.environ.clear()
            os.environ.update(env)
            AcceleratorState._reset_state(reset_partial_state=True)
            run(command[1:])

        super().__init__(command, preexec_fn=instead, **options)


class Forks:
    """What of `subprocess` the ablations use."""

    DEVNULL, Popen = subprocess.DEVNULL, Forked


def start(request: dict[str, Any]) -> list[int]:
    """The ids of the processes."""
    folder, count = request["folder"], request.pop("processes")
    for name in ("stdout", "stderr"):
        (folder / name).write_bytes(b"")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = []
    for rank in range(count):
        process = os.fork()
        if process == 0:
            if count > 1:
                group = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=count, LOCAL_WORLD_SIZE=count, MASTER_PORT=port)
                os.environ |= {name: str(value) for name, value in group.items()}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "CUDA_VISIBLE_DEVICES": ""}
            become(request["argv"], folder, request["memory"], request["curves"])
        started.append(process)
    return started


def ended(processes: list[int]) -> int:
    """The exit code, when all have ended."""
    first, left = 0, set(processes)
    while left:
        process, status = os.wait()
        left.remove(process)
        if not first and (first := os.waitstatus_to_exitcode(status)):
            for other in left:
                os.kill(other, signal.SIGTERM)
    return first


def serve(requests: Connection, other: Connection) -> None:
    """Until the other end is closed."""
    other.close()  # which is this process's, too
    os.environ["OMP_NUM_THREADS"] = "1"
    _unsafe_cache.clear_cache = lambda: None
    for name in NAMES:  # parsed once, documentation has been read, and what tyro made of the types stays
        parse(recipe(name).Config, recipe(name).PRESETS, ["--out", "x"])
    # What is imported late, by the package and by torch's optimizers
    for module in pkgutil.walk_packages(hybridgen.__path__, "hybridgen."):
        importlib.import_module(module.name)
    for name in LATE:
        importlib.import_module(name)
    lighten(pytest.MonkeyPatch())
    load_dataset("digits-m")
    # What is here is not garbage, and is looked at by no process again
    gc.collect()
    gc.freeze()

    with contextlib.suppress(EOFError):
        while request := requests.recv():
            processes = start(request)
            requests.send(processes)
            requests.send(ended(processes))


def start_server() -> Connection:
    """Of requests to a server, which ends when it is closed, by this process's end too."""
    context = get_context("fork")
    here, there = context.Pipe()
    context.Process(target=serve, args=(there, here)).start()
    there.close()
    return here
