"""Shapes in the signatures of the package are checked while the tests run; and recipes' server."""

import gc
import importlib
import os
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, get_args

import jaxtyping
import pytest
from jaxtyping import install_import_hook

gc.disable()  # until everything is imported: all of it stays


def holds_arrays(annotation: Any) -> bool:
    """Whether it is a shape, or is made of one."""
    if isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(map(holds_arrays, get_args(annotation)))


def checked(function: Any = None, *, typechecker: Any, of=jaxtyping.jaxtyped) -> Any:
    """jaxtyping's decorator, but for functions without a shape: their types are the type checker's business."""
    if function is None:
        return partial(checked, typechecker=typechecker)
    if isinstance(function, type) or any(map(holds_arrays, getattr(function, "__annotations__", {}).values())):
        return of(function, typechecker=typechecker)
    return function


jaxtyping.jaxtyped = checked
# An int where a float is asked for is right in Python (PEP 484), but not with beartype unless told so
install_import_hook("hybridgen", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

SERVER = pytest.StashKey[Connection]()


def pytest_configure(config: pytest.Config) -> None:
    if config.option.dist != "no":  # this process only hands out the tests
        return
    import torch
    from libraries import LIBRARIES

    for name in LIBRARIES:
        importlib.import_module(name)
    # Each of pytest-xdist's processes has one core
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    config.stash[SERVER] = importlib.import_module("recipe_server").start_server()


def pytest_unconfigure(config: pytest.Config) -> None:
    if SERVER in config.stash:
        config.stash[SERVER].close()


def pytest_collection_finish() -> None:
    """Nobody needs to look again and again which of all that is imported is garbage, nor so often for what is new."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()


@pytest.fixture(autouse=True)
def no_bf16(monkeypatch):
    """What trains in this process trains in float32 unless a test says otherwise: figures are the same on all CPUs."""
    monkeypatch.setattr("hybridgen.training.engine.look_for_bf16", lambda: ("this CPU", ""))


@pytest.fixture
def unchecked(monkeypatch):
    """For what is about settings and not about tensors: shapes and types are checked where these are."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session", autouse=True)
def tyro_remembers() -> Iterator[None]:
    """What tyro has read of a recipe's settings stays for the next command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tyro._unsafe_cache.clear_cache", lambda: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def light_trainings() -> Iterator[None]:
    """Recipes and trainings of this process draw no curves, and leave out what light.py tells."""
    from light import lighten

    from hybridgen.training import record

    with pytest.MonkeyPatch.context() as patch:
        lighten(patch)
        patch.setattr(record, "draw_curves", lambda folder: (folder / "curves.png").touch())
        yield


@pytest.fixture(scope="session")
def recipe_server(pytestconfig: pytest.Config) -> Connection:
    """Forks a process for each recipe that it is asked for (see recipe_server.py)."""
    return pytestconfig.stash[SERVER]
