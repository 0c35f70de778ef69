"""The plan of the house, held by reading the imports."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hybridgen"

RANKS = (
    {"types"},
    {"files"},
    {"configuration", "assets", "data", "networks", "losses", "mixing"},
    {"training"},
    {"hybridizer"},
    {"generators", "semi", "supervised", "export"},
    {"evaluation"},
    {"experiments"},
    {"bench", "commands"},
    {"cli"},
)
"""The rooms of the package. Each may import those of lower ranks only; recipes may import all but the last two."""

RANK = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}

SOURCES = sorted(PACKAGE.rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").glob("*.py"))


def room(path: Path) -> str:
    """`data` for hybridgen/data/splits.py, `cli` for hybridgen/cli.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms(path: Path) -> set[str]:
    """The rooms of hybridgen that a file imports from; the package itself (its version) is none."""
    inside = {name.split(".")[1] for name in imported(path) if name.startswith("hybridgen.")}
    return {name for name in inside if not name.startswith("__")}


def violations(path: Path) -> list[str]:
    own = room(path)
    return [
        f"{path.relative_to(ROOT)} imports hybridgen.{other}"
        for other in sorted(rooms(path) - {own})
        if RANK[other] >= RANK[own]
    ]


def test_every_room_has_its_place():
    there = {room(path) for path in SOURCES} - {"__init__"}
    assert there <= RANK.keys(), f"rooms that the plan does not know: {sorted(there - RANK.keys())}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    if room(path) != "__init__":
        assert not violations(path)


def test_stage_2_sees_a_hybridizer_and_nothing_behind_it():
    for path in (PACKAGE / "semi").glob("*.py"):
        assert not rooms(path) & {"generators", "networks"}, path
    for path in (PACKAGE / "generators").glob("*.py"):
        assert not rooms(path) & {"semi", "hybridizer"}, path


def test_losses_and_mixing_are_pure_functions_that_know_no_other_room():
    for name in ("losses", "mixing"):
        for path in (PACKAGE / name).glob("*.py"):
            assert rooms(path) <= {name, "types"}, path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_stands_alone(path):
    others = {other.stem for other in RECIPES} - {path.stem}
    modules = {name.split(".")[0] for name in imported(path)}
    assert not modules & (others | {"recipes"})
    assert not rooms(path) & {"cli", "bench"}


def test_the_package_does_not_import_recipes_or_tests():
    for path in SOURCES:
        assert not {name.split(".")[0] for name in imported(path)} & {"recipes", "tests"}, path


def test_no_absolute_paths_of_one_machine():
    """Written so that this file does not find itself."""
    private = [
        f"{first}{rest}" for first in ("/", "~/") for rest in ("home" + "/", "root" + "/", "work" + "/", "tmp/h")
    ]
    for path in [*SOURCES, *RECIPES, *(ROOT / "tests").rglob("*.py"), ROOT / "pyproject.toml", ROOT / "README.md"]:
        text = path.read_text(encoding="utf-8")
        assert not [word for word in private if word in text], path


def test_the_rule_sees_imports_wherever_they_stand(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "semi").mkdir()
    path = tmp_path / "semi" / "a.py"
    path.write_text(
        "import torch\ndef f():\n    import hybridgen.evaluation.grid\n    from hybridgen import generators"
    )
    assert violations(path) == ["semi/a.py imports hybridgen.evaluation", "semi/a.py imports hybridgen.generators"]
    path.write_text(
        "from hybridgen import __version__\nfrom hybridgen.hybridizer import Hybridizer\nimport hybridgenx.cli"
    )
    assert violations(path) == []
