"""Recipes as modules, to look at what stands in them without running them."""

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

RECIPES = Path(__file__).parent.parent / "recipes"
NAMES = tuple(sorted(path.stem for path in RECIPES.glob("*.py")))


@cache
def recipe(name: str) -> ModuleType:
    """`fixmatch` as the module `recipe_fixmatch`, which the command line's parser reads the documentation of."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
