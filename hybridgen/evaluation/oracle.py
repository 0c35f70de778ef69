"""The oracle: a classifier that has seen all training labels, as a stand-in for a human who judges hybrids.

Source: thesis 2.5.3.1. It only measures; no training of a hybridizer or a classifier may see it.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn
from torch.nn import functional as F

from hybridgen.data.augment import weak
from hybridgen.data.datasets import Dataset
from hybridgen.data.splits import Split
from hybridgen.files import write_text, written_aside
from hybridgen.networks.classifiers import Classifier
from hybridgen.networks.registry import make_network
from hybridgen.settings import NUMBER, settings
from hybridgen.training.context import Context, RunSettings
from hybridgen.training.engine import agree
from hybridgen.training.objective import Outcome, Task, adam
from hybridgen.training.plan import Plan, by_accuracy
from hybridgen.training.schedules import Clock, one_cycle
from hybridgen.training.scores import accuracy
from hybridgen.training.train import train
from hybridgen.types import Batch, InputError

FORMAT = "hybridgen-oracle"
VERSION = 2
CONFIG, WEIGHTS = "oracle.json", "oracle.safetensors"
SMALL_SET = 10_000
"""Up to this many labelled images of at most 32 pixels, the small network and short training are enough."""


@settings
class OracleSettings:
    """Of the oracle that judges hybrids; by the size of the data set unless given."""

    steps: Annotated[int, Field(ge=10, lt=2**31), NUMBER] | None = None
    """Training steps."""
    network: str | None = None
    """leaky-wrn-10-2, leaky-wrn-28-2, or another of --network."""


@dataclass(frozen=True)
class Training:
    """How an oracle is trained: AdamW, one cycle of the rate, weak augmentation. Defaults suit digits-m."""

    steps: int = 1500
    batch_size: int = 64
    """Images a step, all processes together."""
    network: str = "leaky-wrn-10-2"
    seed: int = 0
    rate: float = 4e-3
    """Highest learning rate of the cycle."""
    weight_decay: float = 0.02
    label_smoothing: float = 0.05

    def __post_init__(self) -> None:
        if self.steps < 10:
            raise InputError(f"steps: {self.steps} is below 10; an oracle has to learn")


def training_for(settings: OracleSettings, dataset: Dataset) -> Training:
    """That for the size of the data set (leaky-wrn-10-2 or -28-2), with what the settings give."""
    small = int((dataset.train.labels >= 0).sum()) <= SMALL_SET and dataset.image_size <= 32
    training = Training() if small else Training(steps=20_000, batch_size=128, network="leaky-wrn-28-2")
    given = {"steps": settings.steps, "network": settings.network}
    return replace(training, **{field: value for field, value in given.items() if value is not None})


def judge_of(settings: OracleSettings, dataset: Dataset) -> Training:
    """How the oracle that judges hybrids is trained; InputError for one that cannot be made, and for too few images to
    judge."""
    if len(dataset.test) < 3:
        raise InputError(f"{dataset.name}: {len(dataset.test)} test images; transfer rates need three or more")
    training = training_for(settings, dataset)
    with torch.random.fork_rng(devices=[]):
        make_network(training.network, len(dataset.classes))
    return training


class Judging(nn.Module):
    """Loss `supervised`, with label smoothing, on the labelled images."""

    def __init__(self, classifier: nn.Module, *, smoothing: float) -> None:
        super().__init__()
        self.classifier, self.smoothing = classifier, smoothing

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        logits = self.classifier(batch.labelled[0])
        return Outcome({"supervised": F.cross_entropy(logits.float(), batch.labels, label_smoothing=self.smoothing)})


def plan(training: Training, dataset: Dataset, accelerator: Accelerator) -> Plan:
    """The training of an oracle on every training image of known class. InputError where there is none."""
    known = (dataset.train.labels >= 0).nonzero().flatten().tolist()
    if not known:
        raise InputError(f"{dataset.name}: no training image of known class to train an oracle on")
    world = accelerator.num_processes
    context = Context(
        RunSettings(data=dataset.name, evaluate_every=training.steps, save_every=500),
        accelerator,
        dataset,
        Split(dataset.name, dataset.fingerprint, training.seed, tuple(known), (), ()),
    )
    stream = context.stream(
        training.seed,
        labelled=max(world, min(training.batch_size, len(known)) // world * world),
        labelled_views=(partial(weak, flip=dataset.flip, shift=max(1, dataset.image_size // 8)),),
    )
    torch.manual_seed(training.seed)
    oracle = context.classifier(training.network)
    objective = Judging(oracle, smoothing=training.label_smoothing)
    optimizer = adam(objective, betas=(0.9, 0.999), decay=training.weight_decay)
    classify = lambda network, images: network(images)
    return Plan(
        context,
        stream,
        Clock(training.steps, stream.steps_per_epoch),
        {"oracle": Task(objective, {"supervised": 1.0}, optimizer, one_cycle(training.rate))},
        network=oracle,
        classify=classify,
        score=by_accuracy(context, classify),
        select=None,
    )


def train_oracle(dataset: Dataset, accelerator: Accelerator, training: Training, folder: Path) -> Classifier:
    """An oracle in evaluation mode, whose run is kept in a folder until it is done; one that was stopped is continued.

    Processes share each batch, and all end with the same parameters. The global random state stays as it was.
    """
    with torch.random.fork_rng(devices=[]):
        made = plan(training, dataset, accelerator)
        settings = replace(made.context.settings, resume=folder.exists())
        train(made, settings, folder, training.seed)
    oracle = made.network.requires_grad_(False).eval()
    agree(oracle, accelerator)
    return oracle


def load_or_train_oracle(
    dataset: Dataset, accelerator: Accelerator, training: Training, *, cache: Path | None = None
) -> tuple[Classifier, float]:
    """The oracle of a data set at its image size and its accuracy on the test images, measured now.

    It is kept in a folder of `cache` (default: the user's) that is named after the data's fingerprint and the
    settings. A damaged one is never used: it is trained again, which a line on standard error says.
    """
    description = _description(dataset, training)
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
        oracle = oracle or _network(dataset, training).requires_grad_(False).eval()
        oracle.to(accelerator.device)
        agree(oracle, accelerator)
    else:
        oracle = _trained(dataset, accelerator, training, folder)
    return oracle, accuracy(oracle, dataset.test, range(len(dataset.test)), accelerator)


def _trained(dataset: Dataset, accelerator: Accelerator, training: Training, folder: Path) -> Classifier:
    """Trained beside its folder, and kept; where that cannot be, another process trains it there, or what an earlier
    one left is damaged, in a folder that does not last."""
    run = folder.with_name(f"{folder.name}.training") / "oracle"
    with torch.random.fork_rng(devices=[]):
        plan(training, dataset, accelerator)  # InputError for one that cannot be made at all
    try:
        oracle = train_oracle(dataset, accelerator, training, run)
    except InputError as error:
        if accelerator.is_main_process:
            print(f"oracle: not kept for the next time: {error}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as aside:
            return train_oracle(dataset, accelerator, training, Path(aside) / "oracle")
    if accelerator.is_main_process:
        try:
            save_oracle(oracle, folder, dataset, training)
            shutil.rmtree(run.parent)
        except (InputError, OSError) as error:
            print(f"oracle: not kept for the next time: {error}", file=sys.stderr)
    return oracle


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/hybridgen/oracles`, or the same below `~/.cache`."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "hybridgen" / "oracles"


def save_oracle(oracle: Classifier, folder: Path, dataset: Dataset, training: Training) -> None:
    """Write weights (safetensors) and description (JSON); each file whole or not at all."""
    weights = save_tensors({name: tensor.contiguous().cpu() for name, tensor in oracle.state_dict().items()})
    config = _description(dataset, training) | {"weights_sha256": hashlib.sha256(weights).hexdigest()}
    with written_aside(folder / WEIGHTS) as aside:
        aside.write_bytes(weights)
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def load_oracle(folder: Path, dataset: Dataset) -> Classifier:
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
        training = Training(**config["settings"])
        digest = config["weights_sha256"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged description ({type(error).__name__}: {error})") from error
    for field, value in _description(dataset, training).items():
        if config.get(field) != value:
            raise InputError(f"{path}: an oracle of other data: {field} is {config.get(field)!r}, here {value!r}")

    path = folder / WEIGHTS
    try:
        weights = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if hashlib.sha256(weights).hexdigest() != digest:
        raise InputError(f"{path}: truncated or changed: its SHA-256 is not the one that {CONFIG} records")
    oracle = _network(dataset, training)
    try:
        oracle.load_state_dict(load_tensors(weights))
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"{path}: does not fit its description ({str(error).splitlines()[0]})") from error
    return oracle.requires_grad_(False).eval()


def _network(dataset: Dataset, training: Training) -> Classifier:
    network = make_network(training.network, len(dataset.classes), pretrained=False)
    return Classifier(network, mean=dataset.mean, std=dataset.std).to(memory_format=torch.channels_last)


def _description(dataset: Dataset, training: Training) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": dataset.fingerprint,
        "image_size": dataset.image_size,
        "classes": len(dataset.classes),
        "settings": asdict(training),
    }
