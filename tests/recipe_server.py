"""Recipes as processes of their own, without the seconds that each would take for its imports.

Imports what recipes import and forks a process for every line of JSON on standard input, `{"argv": [...], "folder":
..., "memory": ...}`: argv[0] is a recipe, the process's output goes to `stdout` and `stderr` in the folder, and where
so many bytes more than it has at its beginning are given, it gets no more. Answers with two lines: its process id at
once, and its exit code (a signal's number negative) when it has ended.
"""

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

RECIPES = Path(__file__).parent.parent / "recipes"
LATE = (
    "kornia", "matplotlib.backends.backend_agg", "matplotlib.figure", "sklearn.datasets", "torch._dynamo",
    "torch._inductor.config", "torch.utils.tensorboard", "typeguard", "tyro",
)  # fmt: skip


def become(argv: list[str], folder: Path, memory: int | None) -> None:
    """Turn this process into one that was started with a recipe."""
    if memory is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory,) * 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
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
    install_import_hook("hybridgen", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")
    import hybridgen

    for recipe in sorted(RECIPES.glob("*.py")):
        runpy.run_path(str(recipe), run_name="imported")
    # What is imported late, by the package and by torch's optimizers
    for module in pkgutil.walk_packages(hybridgen.__path__, "hybridgen."):
        importlib.import_module(module.name)
    for name in LATE:
        importlib.import_module(name)

    print("ready", flush=True)
    while line := sys.stdin.readline():
        request = json.loads(line)
        process = os.fork()
        if process == 0:
            become(request["argv"], Path(request["folder"]), request.get("memory"))
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
