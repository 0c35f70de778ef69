"""What a run is made of, beside its settings: data, split, software and machine."""

import inspect
import json
import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from hybridgen import __version__
from hybridgen.files import write_text
from hybridgen.settings import flags, flat, left_open, plain
from hybridgen.training.context import Context, RunSettings

SETUP, SPLIT = "setup.json", "split.json"

LIBRARIES = ("torch", "torchvision", "kornia", "timm", "accelerate", "numpy", "scikit-learn")
"""Whose versions are told, where they are installed."""


def write_setup(folder: Path, settings: RunSettings, context: Context, **more: Any) -> None:
    """Write `setup.json` into a run's folder: the data's classes and counts, the split's hash, the recipe, which
    settings are not its defaults, what was chosen where they leave something open, and of the process that writes it
    versions and kind of machine, without names of hosts, users or folders; and `more`. A run that is continued tells of
    the last process. Beside it a copy of the split, `split.json`, if that is of a file, which may be gone one day."""
    if not context.accelerator.is_main_process:
        return
    dataset, split = context.dataset, context.split
    data = {
        "name": without_folders(dataset.name),
        "fingerprint": dataset.fingerprint,
        "image_size": dataset.image_size,
        "classes": list(dataset.classes),
        "train": len(dataset.train),
        "test": len(dataset.test.known),
    }
    of_split = {role: len(getattr(split, role)) for role in ("labelled", "unlabelled", "validation")}
    setup = {
        "data": data,
        "split": of_split | {"seed": split.seed, "hash": split.hash},
        **begun_by(settings),
        "chosen": {name: context.chosen[name] for name in left_open(plain(settings)) if name in context.chosen},
        "environment": environment(context),
    }
    write_text(folder / SETUP, json.dumps(setup | more, indent=1, ensure_ascii=False) + "\n")
    if settings.split is not None and not (folder / SPLIT).exists():
        split.save(folder / SPLIT)


def without_folders(data: str) -> str:
    """The name of a data set of the hub (hf:owner/name); of what lies in folders its own, after the last slash."""
    kind, _, name = data.partition(":")
    return data if kind == "hf" and not Path(name).expanduser().is_dir() else data.rpartition("/")[2]


def begun_by(settings: Any) -> dict[str, Any]:
    """The recipe whose settings these are, its fields that are `changed`, and their flags."""
    changed = changed_fields(settings)
    return {
        "recipe": Path(inspect.getfile(type(settings))).stem,
        "changed": changed,
        "flags": {name: flag for name, flag in flags(type(settings)).items() if name in changed},
    }


def changed_fields(settings: Any, than: Any = None) -> list[str]:
    """Dotted names of the fields that are others `than` these settings have, the defaults unless given."""
    before, now = (dict(flat(plain(each))) for each in (type(settings)() if than is None else than, settings))
    return [name for name, value in now.items() if value != before.get(name)]


def environment(context: Context) -> dict[str, str]:
    """Versions and kind of machine, each under what it is of."""
    accelerator = context.accelerator
    found = {"hybridgen": __version__, "Python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    found["system"] = f"{platform.system()} {platform.machine()}"
    found["processor"] = f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads a process"
    if accelerator.device.type == "cuda":
        found["GPU"] = torch.cuda.get_device_name(accelerator.device)
    return found | {"processes": str(accelerator.num_processes)}


def _processor() -> str:
    """Its model, as Linux tells it; else what Python calls it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
