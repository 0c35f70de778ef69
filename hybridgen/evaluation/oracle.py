"""The oracle: a classifier that has seen all training labels, as a stand-in for a human who judges hybrids.

Source: thesis 2.5.3.1. It only measures; no training of a hybridizer or a classifier may see it.
"""

import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn
from torch.nn import functional as F

from hybridgen.data.augment import weak
from hybridgen.data.datasets import Dataset
from hybridgen.data.sources import holds_photographs
from hybridgen.data.splits import Split
from hybridgen.evaluation.oracle_settings import NONE, TRAINED, OracleSettings
from hybridgen.files import write_text, written_aside
from hybridgen.networks.classifiers import Classifier
from hybridgen.networks.registry import SMALL, default_network, make_network
from hybridgen.training.context import Context, RunSettings
from hybridgen.training.ema import EMA
from hybridgen.training.engine import agree
from hybridgen.training.estimate import left_of, seconds_of, spoken
from hybridgen.training.objective import Outcome, Task, adam, sgd
from hybridgen.training.plan import Plan, by_accuracy
from hybridgen.training.schedules import Clock, one_cycle, triangular
from hybridgen.training.scores import accuracy
from hybridgen.training.train import train
from hybridgen.types import Batch, InputError

FORMAT = "hybridgen-oracle"
VERSION = 3
CONFIG, WEIGHTS = "oracle.json", "oracle.safetensors"

USUAL = {"flip": "auto", "whole": False}
"""What a description leaves out: how images are shown in training."""

PASSES = (2, 75)
"""Over the labelled images, at least and at most: seeing few of them oftener makes no better oracle."""

PIXELS = 8 * 50_000 * 32 * 32
"""That an oracle of larger images sees in its training between these bounds: eight passes over CIFAR-10."""

BATCH_PIXELS = 512 * 32 * 32
"""Of its batches, at most."""

BATCHES = 16
"""In a pass over few images, of 64 at least: of as many passes over 2,000 smaller batches make the better oracle."""

PART = 20
"""By which a run's time is divided for the oracle's."""

DEARER = 5
"""A run's work on each image that it draws (two views or more, its hybrids and their criteria, or a generator and its
critic) is at least that of an oracle's training on so many."""

TOLD = 100
"""Steps from which on it is said beforehand how long they take."""


@dataclass(frozen=True)
class Training:
    """How an oracle is trained, on weakly augmented images. Defaults suit digits-m.

    By AdamW and one cycle of the rate; or, as networks for CIFAR-10 are trained in seconds (airbench, Jordan 2024), by
    Nesterov's SGD of momentum 0.85, whose rate rises and falls along straight lines, and averaged.
    """

    steps: int = 1500
    batch_size: int = 64
    """Images a step, all processes together."""
    network: str = "leaky-wrn-10-2"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    seed: int = 0
    rate: float = 4e-3
    """Highest learning rate."""
    weight_decay: float = 0.02
    label_smoothing: float = 0.05
    ema_decay: float = 0.0
    """Of the averaged weights, which are then what judges; 0 for the network itself."""
    shrinks: bool = field(default=False, compare=False)
    """Whether the judge of a short run is trained for less."""

    def __post_init__(self) -> None:
        if self.steps < 10:
            raise InputError(f"steps: {self.steps} is below 10; an oracle has to learn")

    def within(self, drawn: int) -> "Training":
        """That of the judge of a run which draws so many images: if it shrinks, of a half, a quarter, ... of the steps,
        so that it takes a twentieth of the run at most, and runs of about the same length have the same judge."""
        steps = self.steps
        while self.shrinks and steps * self.batch_size > drawn * DEARER / PART and steps >= 20:
            steps //= 2
        return replace(self, steps=steps)


Judge = Training | Classifier | None
"""One that is to be trained, or is there already; None where hybrids are not judged."""


def training_for(settings: OracleSettings, dataset: Dataset) -> Training:
    """That for the number and the size of the labelled images, with what the settings give."""
    known, pixels = max(1, int((dataset.train.labels >= 0).sum())), dataset.image_size**2
    least, most = PASSES
    if dataset.image_size <= SMALL:
        training = Training(batch_size=min(Training.batch_size, known))
        steps = min(training.steps, most * known // training.batch_size)
    else:
        batch = min(max(32, BATCH_PIXELS // pixels), max(64, known // BATCHES), known)
        training = Training(
            batch_size=batch,
            network=default_network(dataset.image_size),
            optimizer="sgd",
            rate=0.6 * math.sqrt(batch / 512),
            weight_decay=1e-3,
            label_smoothing=0.2,
            ema_decay=0.98,
            shrinks=settings.steps is None,
        )
        steps = min(max(least * known, PIXELS // pixels), most * known) // batch
    return replace(
        training,
        steps=max(10, steps) if settings.steps is None else settings.steps,
        network=training.network if settings.network is None else settings.network,
    )


def judge_of(settings: OracleSettings, dataset: Dataset) -> Judge:
    """Who judges hybrids; InputError for an oracle that cannot be made or is of other data, and for too few images to
    judge."""
    settings.check()
    if settings.oracle == NONE:
        return None
    if len(dataset.test) < 3:
        raise InputError(f"{dataset.name}: {len(dataset.test)} test images; transfer rates need three or more")
    if settings.oracle != TRAINED:
        return load_oracle(Path(settings.oracle), dataset)
    training = training_for(settings, dataset)
    with torch.random.fork_rng(devices=[]):
        make_network(training.network, len(dataset.classes), image_size=dataset.image_size)
    return training


def oracle_of(judge: Training | Classifier, dataset: Dataset, accelerator: Accelerator) -> Classifier:
    """The oracle, on the device: the one that is there, one of the cache, or a newly trained one."""
    if isinstance(judge, Training):
        return load_or_train_oracle(dataset, accelerator, judge)[0]
    return judge.to(accelerator.device)


def oracle_seconds(judge: Judge, dataset: Dataset, accelerator: Accelerator, *, cache: Path | None = None) -> float:
    """How long it takes to have this judge: no time where it is there already."""
    if not isinstance(judge, Training) or _kept_in(dataset, judge, cache).exists():
        return 0.0
    with torch.random.fork_rng(devices=[]):
        return seconds_of(plan(judge, dataset, accelerator))


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
        RunSettings(data=dataset.name, evaluate_every=training.steps, save_every=100),
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
    if training.optimizer == "adamw":
        optimizer = adam(objective, betas=(0.9, 0.999), decay=training.weight_decay)
        rate = one_cycle(training.rate)
    else:
        optimizer = sgd(objective, momentum=0.85, decay=training.weight_decay, decay_all=False)
        rate = triangular(training.rate, start=0.2, peak=0.23, end=0.07)
    classify = lambda network, images: network(images)
    return Plan(
        context,
        stream,
        Clock(training.steps, stream.steps_per_epoch),
        {"oracle": Task(objective, {"supervised": 1.0}, optimizer, rate)},
        network=oracle,
        average=EMA(oracle, training.ema_decay, buffers="average").eval() if training.ema_decay else None,
        classify=classify,
        score=by_accuracy(context, classify),
        select=None,
    )


def train_oracle(dataset: Dataset, accelerator: Accelerator, training: Training, folder: Path) -> Classifier:
    """An oracle in evaluation mode, whose run is kept in a folder until it is done; one that was stopped is continued.

    How long it takes is said beforehand. Processes share each batch, and all end with the same parameters. The global
    random state stays as it was.
    """
    with torch.random.fork_rng(devices=[]):
        if training.steps >= TOLD:
            seconds = seconds_of(plan(training, dataset, accelerator)) * left_of(folder, training.steps)
            if accelerator.is_main_process:
                passes = training.steps * training.batch_size / max(1, int((dataset.train.labels >= 0).sum()))
                print(
                    f"oracle: trains on all labels of {dataset.name} to judge the hybrids, {training.steps} steps "
                    f"({passes:.2g} passes), about {spoken(seconds)}",
                    file=sys.stderr,
                )
        made = plan(training, dataset, accelerator)
        settings = replace(made.context.settings, resume=folder.exists())
        train(made, settings, folder, training.seed)
    oracle = made.judged.requires_grad_(False).eval()
    agree(oracle, accelerator)
    assert isinstance(oracle, Classifier)
    return oracle


def load_or_train_oracle(
    dataset: Dataset, accelerator: Accelerator, training: Training, *, cache: Path | None = None
) -> tuple[Classifier, float]:
    """The oracle of a data set at its image size and its accuracy on the test images, measured now.

    It is kept in a folder of `cache` (default: the user's) that is named after the data's fingerprint and the
    settings. A damaged one is never used: it is trained again, which a line on standard error says.
    """
    folder, oracle = _kept_in(dataset, training, cache), None
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


def _kept_in(dataset: Dataset, training: Training, cache: Path | None) -> Path:
    """The folder of such an oracle, if there is one."""
    key = hashlib.sha256(json.dumps(_description(dataset, training), sort_keys=True).encode()).hexdigest()[:16]
    return (cache or default_cache()) / f"{dataset.name.partition(':')[0]}-{dataset.image_size}-{key}"


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
    folder = folder.parent if folder.name in (CONFIG, WEIGHTS) else folder
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
    for name, value in (USUAL | _description(dataset, training)).items():
        if (own := config.get(name, USUAL.get(name))) != value:
            raise InputError(f"{path}: an oracle of other data: {name} is {own!r}, here {value!r}")

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
    side = dataset.image_size
    network = make_network(training.network, len(dataset.classes), image_size=side, pretrained=False)
    return Classifier(network, mean=dataset.mean, std=dataset.std).to(memory_format=torch.channels_last)


def _description(dataset: Dataset, training: Training) -> dict[str, Any]:
    shown = {"flip": dataset.asked_flip, "whole": holds_photographs(dataset.train.images)}
    return {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": dataset.fingerprint,
        "image_size": dataset.image_size,
        "classes": len(dataset.classes),
        "settings": {name: value for name, value in asdict(training).items() if name != "shrinks"},
        **{name: value for name, value in shown.items() if value != USUAL[name]},
    }
