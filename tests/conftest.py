"""Shapes and types of every annotated function of the package are checked while the tests run."""

import os

import pytest
import torch
from jaxtyping import install_import_hook

# An int where a float is asked for is right in Python (PEP 484), but not with beartype unless told so
install_import_hook("hybridgen", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")
# Each of pytest-xdist's processes has one core
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))


@pytest.fixture(autouse=True)
def no_bf16(monkeypatch):
    """What trains in this process trains in float32 unless a test says otherwise: figures are the same on all CPUs."""
    monkeypatch.setattr("hybridgen.training.engine.look_for_bf16", lambda: ("this CPU", ""))
