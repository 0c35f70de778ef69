"""What a run tells of its data, its split, its recipe and its machine."""

import json
import platform
from dataclasses import replace
from importlib.metadata import version

import torch
from accelerate import Accelerator
from recipe_modules import recipe

from hybridgen import __version__
from hybridgen.configuration import parse
from hybridgen.data.datasets import Part
from hybridgen.data.sources import InMemory
from hybridgen.data.splits import Split
from hybridgen.tables.cost import noise
from hybridgen.training.setup import without_folders, write_setup


def test_setup_tells_counts_changed_settings_and_versions_and_keeps_the_split_of_a_file(tmp_path):
    """Of forty training images and thirty test images, of two of which the class is not known; without folders."""
    made = noise(3, 16, 40, Accelerator(cpu=True))
    labels = torch.tensor([0, 1, 2, -1, -1] + [0] * 25)
    test = Part(InMemory(made.dataset.test.images.pixels[:30]), labels)
    dataset = replace(made.dataset, name="npz:/elsewhere/me/toy.npz", test=test)
    split = Split("noise", "noise", 7, tuple(range(12)), tuple(range(12, 35)), tuple(range(35, 40)))
    module, file = recipe("mean_teacher"), tmp_path / "mine.json"
    given = ["--split", str(file), "--epochs", "3", "--hybrids.no-keep-consistent", "--seed", "5"]
    config = parse(module.Config, module.PRESETS, given)
    chosen = {"method.network": "fast", "labels": 12, "method.epochs": 3, "seed": 5, "training.width": 1}
    context = replace(made, dataset=dataset, split=split, chosen=chosen)
    write_setup(tmp_path, config, context, steps=30)
    told = json.loads((tmp_path / "setup.json").read_text())
    own = told.pop("environment")
    assert told == {
        "data": {"name": "toy.npz", "fingerprint": "noise", "image_size": 16, "classes": ["0", "1", "2"], "train": 40,
                 "test": 28},
        "split": {"labelled": 12, "unlabelled": 23, "validation": 5, "seed": 7, "hash": split.hash},
        "recipe": "mean_teacher", "steps": 30, "chosen": {"method.network": "fast", "labels": 12},
        "changed": ["split", "seed", "method.epochs", "hybrids.keep_consistent"],
        "flags": {"split": "--split", "seed": "--seed", "method.epochs": "--epochs",
                  "hybrids.keep_consistent": "--hybrids.keep-consistent"},
    }  # fmt: skip
    expected = {"hybridgen": __version__, "Python": platform.python_version(), "timm": version("timm")}
    assert own.items() >= (expected | {"processes": "1"}).items() and "GPU" not in own
    assert f"{torch.get_num_threads()} threads a process" in own["processor"]

    # Of a run that goes on, the split stays; one that was drawn needs no copy
    assert Split.load(tmp_path / "split.json") == split
    write_setup(tmp_path, config, replace(context, split=replace(split, seed=8)))
    assert Split.load(tmp_path / "split.json") == split
    write_setup(tmp_path / "drawn", replace(config, split=None), context)
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["setup.json"]


def test_data_sets_of_the_hub_keep_their_owner_and_others_lose_their_folders(tmp_path):
    for name in ("hf:owner/name", "hf:owner/name,label=fine", "hf:name", "cifar10"):
        assert without_folders(name) == name
    names = (f"hf:{tmp_path}", "folder:a/b", "csv:~/c.csv")
    assert [without_folders(name) for name in names] == [tmp_path.name, "b", "c.csv"]
