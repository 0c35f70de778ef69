"""The plan of the house, held by reading the imports."""

import ast
import builtins
import dis
import tomllib
from pathlib import Path
from types import CodeType

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hybridgen"

RANKS = (
    {"errors"},
    {"types", "files", "settings", "assets", "hub", "page"},
    {"configuration", "data", "networks", "losses"},
    {"mixing"},
    {"training"},
    {"hybridizer"},
    {"methods"},
    {"evaluation"},
    {"tables"},
    {"bench"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
"""The rooms of the package. Each may import those of lower ranks only; recipes may import all but the last four."""

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


def test_what_trains_on_hybrids_sees_a_hybridizer_and_nothing_behind_it():
    """No classifier's method knows who makes hybrids or judges them, and no hybridizer's who trains on its own."""
    methods = {path.stem for path in (PACKAGE / "methods").glob("*.py")}
    makers = {"scimix", "samosa", "adain"}
    inside = lambda name: {
        other.split(".")[2]
        for other in imported(PACKAGE / "methods" / f"{name}.py")
        if other.startswith("hybridgen.methods.")
    }
    assert makers | {"hybrids"} <= methods
    for name in methods - makers:
        assert not inside(name) & makers, name
        assert not any(
            other.startswith(f"hybridgen.networks.{behind}")
            for other in imported(PACKAGE / "methods" / f"{name}.py")
            for behind in ("autoencoder", "decoder", "discriminator", "stylegan2", "adain")
        ), name
    for name in makers:
        assert inside(name) <= {"classifiers"}, name
    for name in methods - makers - {"hybrids"}:
        assert "hybrids" not in inside(name), name


def test_losses_and_mixing_are_pure_functions_that_know_no_other_room():
    """But the transform for other training loops, which has AugMix too."""
    for name in ("losses", "mixing"):
        for path in (PACKAGE / name).glob("*.py"):
            more = {"data"} if path.name == "transform.py" else set()
            assert rooms(path) <= {name, "types"} | more, path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_stands_alone(path):
    others = {other.stem for other in RECIPES} - {path.stem}
    modules = {name.split(".")[0] for name in imported(path)}
    assert not modules & (others | {"recipes"})
    assert not rooms(path) & {"cli", "commands", "bench"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_is_read_from_top_to_bottom(path):
    """Its `main` stands there written out, and is what it launches."""
    text = path.read_text(encoding="utf-8")
    if not path.stem.endswith("ablation"):
        assert 20 <= len(text.splitlines()) <= 90
    functions = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    assert len(functions["main"].body) > 2
    assert text.endswith('\n\nif __name__ == "__main__":\n    launch(main, Config, PRESETS)\n')


def defined(kind: type[ast.AST]) -> dict[str, list[str]]:
    """The files in which names of the package are defined, wherever they stand in them."""
    found: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, kind):
                found.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    return found


def test_one_name_for_one_thing():
    """Every method has its `Settings`; a command and a transform are both called `Hybridize` by their users."""
    classes = {name: files for name, files in defined(ast.ClassDef).items() if len(files) > 1}
    assert all(file.startswith("methods/") for file in classes.pop("Settings"))
    assert set(classes.pop("Hybridize", ())) <= {"hybridizer.py", "commands/hybridize.py"}
    assert not classes
    functions = defined(ast.FunctionDef)
    for name in ("make_stream", "make_classifier", "make_network", "make_split", "make_accelerator"):
        assert len(functions.get(name, ())) <= 1, name


def unknown_globals(path: Path) -> set[str]:
    """Names that code of a file looks up in its module and that neither this nor Python has."""
    code = compile(path.read_text(encoding="utf-8"), str(path), "exec")
    there = set(dir(builtins)) | {"__file__", "__name__", "__doc__"}
    asked, codes = set(), [code]
    while codes:
        part = codes.pop()
        codes += [constant for constant in part.co_consts if isinstance(constant, CodeType)]
        for step in dis.get_instructions(part):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                asked.add(step.argval)
            if step.opname in ("STORE_NAME", "STORE_GLOBAL"):
                there.add(step.argval)
    return asked - there - {"__annotations__", "__module__", "__qualname__"}


@pytest.mark.parametrize("path", [*SOURCES, *RECIPES], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_name_is_defined(path):
    assert not unknown_globals(path)


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
    (tmp_path / "methods").mkdir()
    path = tmp_path / "methods" / "a.py"
    path.write_text("import torch\ndef f():\n    import hybridgen.evaluation.grid\n    from hybridgen import tables")
    assert violations(path) == ["methods/a.py imports hybridgen.evaluation", "methods/a.py imports hybridgen.tables"]
    assert unknown_globals(path) == set()
    path.write_text("import os\ndef f():\n    def g():\n        return os.sep + Split(open)\n    return g")
    assert unknown_globals(path) == {"Split"}
    path.write_text(
        "from hybridgen import __version__\nfrom hybridgen.hybridizer import Hybridizer\nimport hybridgenx.cli"
    )
    assert violations(path) == []


def test_a_wheel_carries_every_room_the_recipes_and_the_assets():
    """Setuptools takes what is listed."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        told = tomllib.load(file)["tool"]["setuptools"]
    rooms = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    assert set(told["packages"]) == rooms | {"hybridgen._recipes", "hybridgen._assets"}
    assert told["package-dir"] == {"hybridgen._recipes": "recipes", "hybridgen._assets": "assets"}
    data = {path for each in told["package-data"]["hybridgen._assets"] for path in (ROOT / "assets").glob(each)}
    assert data == {
        path
        for part in ("classes", "hybridizers", "splits")
        for path in (ROOT / "assets" / part).rglob("*")
        if path.is_file()
    }
    pages = {f"hybridgen.{path.parent.name}": [path.name] for path in PACKAGE.rglob("*.html")}
    assert pages == {room: files for room, files in told["package-data"].items() if files[0].endswith(".html")}
    assert (PACKAGE / "py.typed").is_file() and told["package-data"]["hybridgen"] == ["py.typed"]
