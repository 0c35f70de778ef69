"""The command `train`: every recipe, of a checkout or of an installed wheel."""

import ast
import os
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

from hybridgen.assets import carried
from hybridgen.errors import InputError


def recipes() -> Mapping[str, Path]:
    """The recipes' files by the names that the command line gives them, such as scimix-fixmatch."""
    return {path.stem.replace("_", "-"): path for path in sorted(carried("recipes").glob("*.py"))}


def summary(recipe: Path) -> str:
    """The first line that its configuration's docstring has; the recipe is not run."""
    body = ast.parse(recipe.read_text(encoding="utf-8")).body
    config = next(each for each in body if isinstance(each, ast.ClassDef) and each.name == "Config")
    return (ast.get_docstring(config) or "").split("\n\n")[0].replace("\n", " ")


def train(arguments: Sequence[str]) -> None:
    """Run a recipe as if its file had been started with these arguments. InputError for a name that it has not."""
    name, *rest = list(arguments) or [""]
    known = recipes()
    if name in ("-h", "--help"):
        print(_overview(known))
        return
    chosen = name.replace("_", "-")
    if chosen not in known:
        said = f"unknown recipe {name!r}" if name else "a recipe is missing"
        near = get_close_matches(chosen, known, n=1)
        perhaps = f"; perhaps you meant {near[0]}" if near else ""
        raise InputError(f"{said}{perhaps}; there are {', '.join(known)}; see hybridgen train --help")
    if sys.stderr.isatty() and os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"{chosen}: PyTorch is loaded", file=sys.stderr)
        import torch  # noqa: F401 - which takes seconds, as the recipe does after it

        print(f"{chosen}: the recipe is loaded, and its data", file=sys.stderr)
    sys.argv = [f"hybridgen train {chosen}", *rest]
    module = ModuleType("__main__")
    module.__file__ = str(known[chosen])
    sys.modules["__main__"] = module
    exec(compile(known[chosen].read_text(encoding="utf-8"), module.__file__, "exec"), module.__dict__)


def _overview(known: Mapping[str, Path]) -> str:
    lines = ["usage: hybridgen train RECIPE [OPTIONS]", ""]
    width = max(map(len, known))
    for name, path in known.items():
        lines.append(f"  {name:<{width}}  {summary(path)}")
    return "\n".join(
        [
            *lines,
            "",
            "hybridgen train RECIPE --help lists a recipe's options. On several GPUs: accelerate launch -m hybridgen",
            "train RECIPE [OPTIONS].",
        ]
    )
