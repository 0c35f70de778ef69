"""The commands that the README and the recipes' docstrings show are ones that the recipes take."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

from hybridgen.configuration import parse

ROOT = Path(__file__).parent.parent
SOURCES = [ROOT / "README.md", *sorted((ROOT / "recipes").glob("*.py"))]


def commands() -> list[str]:
    """Whatever stands behind `recipes/NAME.py` in a block or a line of code, lines that go on joined."""
    found = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        if path.suffix == ".py":
            text = text[: text.index('"""', 3)]
        spans = re.findall(r"```sh\n(.*?)```|`([^`\n]*)`|(^(?:accelerate|python) .*$)", text, re.S | re.M)
        lines = [line for span in spans for part in span for line in part.splitlines()]
        for line in lines:
            command = line.partition("  #")[0].partition(" && ")
            for part in (command[0], command[2]):
                if match := re.search(r"recipes/([a-z_]+\.py)(.*)$", part):
                    found.append(f"{match[1]}{match[2]}")
    return sorted(set(found))


@pytest.mark.parametrize("command", commands())
def test_the_recipe_takes_the_command(command):
    name, *arguments = shlex.split(command)
    spec = importlib.util.spec_from_file_location(f"shown_{name.removesuffix('.py')}", ROOT / "recipes" / name)
    recipe = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = recipe
    spec.loader.exec_module(recipe)
    presets = getattr(recipe, "PRESETS", None) or next(
        made.PRESETS for made in vars(recipe).values() if hasattr(made, "PRESETS")
    )
    parse(recipe.Config, presets, arguments)


def test_there_are_commands_of_many_recipes():
    assert len({command.split()[0] for command in commands()}) > 12 and len(commands()) > 20
