"""Recipes as processes of their own, without the seconds that each would take for its imports.

Imports what recipes import and forks a process for every line of JSON on standard input, `{"argv": [...], "folder":
..., "memory": ..., "curves": ...}`: argv[0] is a recipe, the process's output goes to `stdout` and `stderr` in the
folder, which has its `cache` too, and where so many bytes more than it has at its beginning are given, it gets no more.
Curves, which take as long as the training of a toy, are an empty file unless asked for. Answers with two lines: its
process id at once, and its exit code (a signal's number negative) when it has ended.
"""

import gc
import importlib
import json
import os
import pkgutil
import resource
import runpy
import sys
import traceback
from pathlib import Path

from jaxtyping import install_import_hook
from libraries import LIBRARIES

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
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if not curves:
        record.draw_curves = lambda folder: (folder / "curves.png").touch()
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    os.chdir(folder)
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


if __name__ == "__main__":
    for name in LIBRARIES:
        importlib.import_module(name)
    install_import_hook("hybridgen", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")
    from recipe_modules import NAMES, recipe

    import hybridgen
    from hybridgen.configuration import parse
    from hybridgen.training import record

    for name in NAMES:  # parsed once, documentation has been read
        parse(recipe(name).Config, recipe(name).PRESETS, [])
    # What is imported late, by the package and by torch's optimizers
    for module in pkgutil.walk_packages(hybridgen.__path__, "hybridgen."):
        importlib.import_module(module.name)
    for name in LATE:
        importlib.import_module(name)
    # What is here is not garbage, and is looked at by no process again
    gc.collect()
    gc.freeze()

    print("ready", flush=True)
    while line := sys.stdin.readline():
        request = json.loads(line)
        process = os.fork()
        if process == 0:
            become(request["argv"], Path(request["folder"]), request["memory"], request["curves"])
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
    os._exit(0)  # as above
