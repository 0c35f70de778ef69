"""What a process of its own has imported after each of a few things: what is needed late is imported late."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import hybridgen
from hybridgen import hybridizer
from hybridgen.mixing import transform
from hybridgen.networks import classifiers

RECIPES = Path(__file__).parent.parent / "recipes"
SCRIPT = """
import contextlib, io, json, sys
from pathlib import Path
from runpy import run_path

imported = {}

# The package
import hybridgen
imported["package"] = list(sys.modules)

# A data set and its views
from hybridgen.data.datasets import load_dataset
load_dataset("digits-m")
import hybridgen.data.augmix, hybridgen.data.randaugment
imported["data"] = list(sys.modules)

# The help of every recipe
for recipe in sorted(Path(sys.argv[1]).glob("*.py")):
    sys.argv = [str(recipe), "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        run_path(str(recipe), run_name="__main__")
    assert "--preset NAME" in printed.getvalue(), recipe
imported["help"] = list(sys.modules)

# What every command imports that reads a run
import hybridgen.evaluation.finished
imported["finished"] = list(sys.modules)

# The reference of the generator
import torch
asked, before = torch.cuda.is_available, torch.cuda.is_available()
from hybridgen.networks import stylegan2
imported["generator"] = list(sys.modules)
stylegan2.StyleGAN2Generator(backend="stylegan2-pytorch")
imported["reference"] = list(sys.modules)
assert torch.cuda.is_available is asked and torch.cuda.is_available() == before

print(json.dumps(imported))
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, set[str]]:
    done = subprocess.run([sys.executable, "-c", SCRIPT, RECIPES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {after: set(modules) for after, modules in json.loads(done.stdout.splitlines()[-1]).items()}


def test_the_package_alone_is_light(imported):
    assert not {"torch", "numpy", "pydantic", "tyro", "accelerate"} & imported["package"]


def test_what_training_loops_take_lies_at_the_top():
    assert (hybridgen.Hybridize, hybridgen.Hybridizer) == (hybridizer.Hybridize, hybridizer.Hybridizer)
    assert (hybridgen.Mix, hybridgen.load_classifier) == (transform.Mix, classifiers.load_classifier)
    assert set(hybridgen.__all__) == {"Hybridize", "Hybridizer", "Mix", "load_classifier"}
    with pytest.raises(AttributeError, match="module 'hybridgen' has no attribute 'Hybrid'"):
        _ = hybridgen.Hybrid


def test_data_need_nothing_large(imported):
    assert not {"sklearn", "scipy", "torchvision", "matplotlib", "kornia"} & imported["data"]


def test_help_of_recipes_does_not_wait(imported):
    late = {"timm", "torchvision", "kornia", "matplotlib", "sklearn", "scipy", "tensorboard", "huggingface_hub"}
    assert not late & imported["help"]
    assert {"hybridgen.networks.classifiers", "hybridgen.training.record"} <= imported["help"]


def test_a_finished_run_is_read_without_what_only_studies_need(imported):
    assert "hybridgen.evaluation.features" in imported["finished"]
    assert not {"sklearn", "scipy", "timm", "torchvision", "kornia", "huggingface_hub"} & imported["finished"]


def test_stylegan2_pytorch_is_loaded_late_and_leaves_the_answer_about_cuda_the_machines_own(imported):
    assert "stylegan2_pytorch" in imported["reference"] - imported["generator"]
