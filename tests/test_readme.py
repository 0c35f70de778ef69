"""The commands that the README and the recipes' docstrings show are ones that the recipes take."""

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import matplotlib
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


def test_the_notebook_runs(capsys):
    """With few steps: its pictures are drawn, and its classifiers trained."""
    cells = json.loads((ROOT / "assets" / "hybrids.ipynb").read_text(encoding="utf-8"))["cells"]
    cells = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert sum(cell.count("steps = 300") for cell in cells) == 1
    names = {}
    matplotlib.use("agg")
    for cell in cells:
        exec(compile(cell.replace("steps = 300", "steps = 2"), "hybrids.ipynb", "exec"), names)
    assert re.search(r"alone \d+\.\d%, with hybrids \d+\.\d%", capsys.readouterr().out)
    right = names["hybridizer"].classify(names["hybrids"][:4]).argmax(dim=1) == names["truth"][:4]
    assert right.float().mean() > 0.5
