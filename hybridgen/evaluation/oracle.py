"""The oracle: a classifier that has seen all training labels, as a stand-in for a human who judges hybrids.

Source: thesis 2.5.3.1. It only measures; no training of a hybridizer or a classifier may see it.
"""

import hashlib
import json
import math
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch.nn import functional as F
from tqdm import tqdm

from hybridgen.data.augment import weak
from hybridgen.data.datasets import Dataset
from hybridgen.data.splits import Split
from hybridgen.data.streams import Stream
from hybridgen.evaluation.classification import accuracy
from hybridgen.files import write_text, written_aside
from hybridgen.networks.wide_resnet import WideResNetClassifier
from hybridgen.types import InputError

FORMAT = "hybridgen-oracle"
VERSION = 1
CONFIG, WEIGHTS = "oracle.json", "oracle.safetensors"
SMALL_SET = 10_000
"""Up to this many labelled images of at most 32 pixels, the small network and short training are enough."""


@dataclass(frozen=True)
class Settings:
    """How an oracle is trained: AdamW, one cycle of the rate, weak augmentation. Defaults suit digits-m."""

    steps: int = 1500
    batch_size: int = 64
    """Images a step, all processes together."""
    depth: int = 10
    width: int = 2
    seed: int = 0
    rate: float = 4e-3
    """Highest learning rate of the cycle."""
    weight_decay: float = 0.02
    label_smoothing: float = 0.05

    def __post_init__(self) -> None:
        if self.steps < 10:
            raise InputError(f"steps: {self.steps} is below 10; an oracle has to learn")


def settings_for(
    dataset: Dataset, *, steps: int | None = None, depth: int | None = None, width: int | None = None
) -> Settings:
    """Those for the size of the data set (WRN-10-2 or WRN-28-2); what is given wins."""
    small = int((dataset.train.labels >= 0).sum()) <= SMALL_SET and dataset.image_size <= 32
    settings = Settings() if small else Settings(steps=20_000, batch_size=128, depth=28)
    given = {"steps": steps, "depth": depth, "width": width}
    return replace(settings, **{field: value for field, value in given.items() if value is not None})


def train_oracle(
    dataset: Dataset, accelerator: Accelerator, settings: Settings | None = None, *, progress: bool = False
) -> WideResNetClassifier:
    """A classifier in evaluation mode that was trained on every training image of known class.

    Processes share each batch, and all end with the same parameters. The global random state stays as it was.
    """
    settings = settings or settings_for(dataset)
    known = (dataset.train.labels >= 0).nonzero().flatten().tolist()
    if not known:
        raise InputError(f"{dataset.name}: no training image of known class to train an oracle on")
    world = accelerator.num_processes
    shift = max(1, dataset.image_size // 8)
    stream = Stream(
        dataset.train,
        Split(dataset.name, dataset.fingerprint, settings.seed, tuple(known), (), ()),
        labelled=max(world, min(settings.batch_size, len(known)) // world * world),
        unlabelled=world,  # the fewest a stream allows; no view of them is made
        labelled_views=[lambda images, generator: weak(images, generator, flip=dataset.flip, shift=shift)],
        unlabelled_views=[],
        seed=settings.seed,
        rank=accelerator.process_index,
        world=world,
        device=accelerator.device,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        oracle = _network(dataset, settings)
    optimizer = torch.optim.AdamW(
        oracle.parameters(), lr=settings.rate, weight_decay=settings.weight_decay, foreach=True
    )
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.rate, total_steps=settings.steps)
    network, optimizer = accelerator.prepare(oracle, optimizer)

    hidden = not (progress and accelerator.is_main_process)
    steps = tqdm(range(settings.steps), "oracle", disable=hidden, mininterval=1)
    for _, batch in zip(steps, stream.from_step(0), strict=False):
        logits = network(batch.labelled[0].contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), batch.labels, label_smoothing=settings.label_smoothing)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        cycle.step()
    if not math.isfinite(loss.item()):
        raise FloatingPointError(f"oracle: its loss is {loss.item()} after {settings.steps} steps")

    oracle = accelerator.unwrap_model(network, keep_fp32_wrapper=False).requires_grad_(False).eval()
    _agree(oracle)
    return oracle


def load_or_train_oracle(
    dataset: Dataset, accelerator: Accelerator, *, cache: Path | None = None, settings: Settings | None = None
) -> tuple[WideResNetClassifier, float]:
    """The oracle of a data set at its image size and its accuracy on the test images, measured now.

    It is kept in a folder of `cache` (default: the user's) that is named after the data's fingerprint and the
    settings. A damaged one is never used: it is trained again, which a line on standard error says.
    """
    settings = settings or settings_for(dataset)
    description = _description(dataset, settings)
    key = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]
    folder = (cache or default_cache()) / f"{dataset.name.partition(':')[0]}-{dataset.image_size}-{key}"

    oracle = None
    if accelerator.is_main_process and folder.exists():
        try:
            oracle = load_oracle(folder, dataset)
        except InputError as error:
            print(f"oracle: trained again, since the cached one cannot be used: {error}", file=sys.stderr)
    found = [oracle is not None]
    if broadcast_object_list(found)[0]:
        oracle = oracle or _network(dataset, settings).requires_grad_(False).eval()
        oracle.to(accelerator.device)
        _agree(oracle)
    else:
        oracle = train_oracle(dataset, accelerator, settings, progress=True)
        if accelerator.is_main_process:
            try:
                save_oracle(oracle, folder, dataset, settings)
            except InputError as error:
                print(f"oracle: not kept for the next time: {error}", file=sys.stderr)
    return oracle, accuracy(oracle, dataset.test, range(len(dataset.test)), accelerator)


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/hybridgen/oracles`, or the same below `~/.cache`."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "hybridgen" / "oracles"


def save_oracle(oracle: WideResNetClassifier, folder: Path, dataset: Dataset, settings: Settings) -> None:
    """Write weights (safetensors) and description (JSON); each file whole or not at all."""
    weights = save_tensors({name: tensor.contiguous().cpu() for name, tensor in oracle.state_dict().items()})
    config = _description(dataset, settings) | {"weights_sha256": hashlib.sha256(weights).hexdigest()}
    with written_aside(folder / WEIGHTS) as aside:
        aside.write_bytes(weights)
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def load_oracle(folder: Path, dataset: Dataset) -> WideResNetClassifier:
    """Read an oracle of this data set at this image size, in evaluation mode, on the CPU.

    InputError, naming the file, if it is missing, damaged, changed, or the oracle of other data.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); an oracle has {CONFIG} and {WEIGHTS}") from error
    except ValueError as error:
        raise InputError(f"{path}: damaged JSON ({error})") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise InputError(f"{path}: not the description of an oracle (format {FORMAT!r})")
    if config.get("version") != VERSION:
        raise InputError(f"{path}: version {config.get('version')}; this hybridgen reads version {VERSION}")
    try:
        settings = Settings(**config["settings"])
        digest = config["weights_sha256"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged description ({type(error).__name__}: {error})") from error
    for field, value in _description(dataset, settings).items():
        if config.get(field) != value:
            raise InputError(f"{path}: an oracle of other data: {field} is {config.get(field)!r}, here {value!r}")

    path = folder / WEIGHTS
    try:
        weights = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if hashlib.sha256(weights).hexdigest() != digest:
        raise InputError(f"{path}: truncated or changed: its SHA-256 is not the one that {CONFIG} records")
    oracle = _network(dataset, settings)
    try:
        oracle.load_state_dict(load_tensors(weights))
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"{path}: does not fit its description ({str(error).splitlines()[0]})") from error
    return oracle.requires_grad_(False).eval()


def _network(dataset: Dataset, settings: Settings) -> WideResNetClassifier:
    network = WideResNetClassifier(
        settings.depth, settings.width, len(dataset.classes), mean=dataset.mean, std=dataset.std
    )
    return network.to(memory_format=torch.channels_last)


def _description(dataset: Dataset, settings: Settings) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": dataset.fingerprint,
        "image_size": dataset.image_size,
        "classes": len(dataset.classes),
        "settings": asdict(settings),
    }


@torch.no_grad()
def _agree(oracle: WideResNetClassifier) -> None:
    """Every process takes the first one's parameters and batch-norm statistics."""
    for tensor in oracle.state_dict().values():
        tensor.copy_(broadcast(tensor.clone()))
