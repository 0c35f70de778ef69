"""What training by each method costs on one network (RecursiveMix, table 11)."""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from hybridgen.data.datasets import Dataset, Part
from hybridgen.data.sources import InMemory
from hybridgen.data.splits import Split
from hybridgen.evaluation.figures import draw_bars
from hybridgen.evaluation.studies import Finding
from hybridgen.evaluation.transfer import aligned
from hybridgen.methods import mixing
from hybridgen.methods.labelled import TrainingSettings, chosen_network
from hybridgen.methods.mixing import TITLES
from hybridgen.networks.classifiers import Classifier
from hybridgen.networks.flops import flops
from hybridgen.training.context import Context, RunSettings
from hybridgen.training.engine import now
from hybridgen.training.fit import fit
from hybridgen.training.schedules import Clock
from hybridgen.types import InputError

NONE = "none"

RATE = 1e-3
"""Learning rate of the steps; small, so that random images let no loss diverge."""

WARMING = 2
"""Steps before the clock starts; in the second, RecursiveMix has a history."""

MEASURES = {
    "cuda": "the most that CUDA's allocator held at once",
    "cpu": "bytes of all tensors that lived at once, at most",
}


class LiveBytes(TorchDispatchMode):
    """Counts what the tensors hold that operations make inside it; `peak` is the most that lived at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage not in self._seen:
                    self._seen[storage] = weakref.finalize(storage, self._free, storage.nbytes())
                    self.live += storage.nbytes()
                    self.peak = max(self.peak, self.live)
        return made

    def _free(self, size: int) -> None:
        self.live -= size


class Trainee:
    """A new classifier in training by one method, by its plan, on one batch that is augmented anew for every step."""

    def __init__(self, settings: TrainingSettings, method: str, context: Context, seed: int = 0) -> None:
        plan, accelerator = mixing.plan(method, settings, context, seed), context.accelerator
        assert isinstance(plan.network, Classifier)
        self.classifier = plan.network
        task = plan.tasks["classifier"]
        self.objective: nn.Module = task.objective
        prepared, optimizer = accelerator.prepare(task.objective, task.optimizer)
        task = replace(task, objective=prepared, optimizer=optimizer, rate=lambda clock: RATE)
        clock = Clock(10**9, 10**9)
        self._steps = fit({"classifier": task}, plan.stream.from_step(0), clock, accelerator, seed=seed)

    def step(self) -> None:
        next(self._steps)


def noise(
    classes: int, image_size: int, count: int, accelerator: Accelerator, *, labelled: int | None = None
) -> Context:
    """So many random images, whose classes take turns; the first ones are labelled, all unless told otherwise."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, image_size, image_size), generator=generator, dtype=torch.uint8)
    part = Part(InMemory(pixels), torch.arange(count) % classes)
    names = tuple(map(str, range(classes)))
    known = count if labelled is None else labelled
    dataset = Dataset("noise", names, image_size, part, part, "noise", True, (0.5,) * 3, (0.25,) * 3)
    split = Split("noise", "noise", 0, tuple(range(known)), tuple(range(known, count)), ())
    return Context(RunSettings(data="noise"), accelerator, dataset, split)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def cost(
    settings: TrainingSettings,
    methods: Sequence[str],
    accelerator: Accelerator,
    *,
    classes: int = 10,
    image_size: int = 32,
    rounds: int = 5,
    steps: int = 3,
) -> Finding:
    """Peak memory, FLOPs, parameters and time of a training step, by method, and as ratios to no mixing, which is
    always measured.

    On random images of `image_size`, `settings.batch` in a step; a step is what training does, augmentation and mixing
    with it, but no decoding of files. Memory is of the first two steps and all that they need. Methods take turns:
    in each round each makes some steps; times are the rounds' medians. InputError for unknown methods, one given twice,
    and numbers below 1.
    """
    for field, number in (("classes", classes), ("image_size", image_size), ("rounds", rounds), ("steps", steps)):
        if number < 1:
            raise InputError(f"{field}: {number} is not above 0")
    if not methods or len(set(methods)) < len(methods):
        raise InputError(f"methods: {' '.join(methods) or 'none'}; one or more are needed, each once")
    names = dict.fromkeys((NONE, *methods))
    if unknown := [name for name in names if name not in TITLES]:
        raise InputError(f"methods: {unknown[0]!r} is unknown; there are {', '.join(TITLES)}")
    context, device = noise(classes, image_size, settings.batch, accelerator), accelerator.device

    # Memory, one method after another
    trainees: dict[str, Trainee] = {}
    figures: dict[str, dict[str, float]] = {}
    for name in names:
        if device.type == "cuda":
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            trainees[name] = warmed(settings, name, context)
            peak = torch.cuda.max_memory_allocated(device) - before
        else:
            with LiveBytes() as memory:
                trainees[name] = warmed(settings, name, context)
            peak = memory.peak
        figures[name] = {
            "peak_bytes": peak,
            "flops": flops(trainees[name].classifier, image_size),
            "parameters_training": parameters(trainees[name].objective),
            "parameters_deployed": parameters(trainees[name].classifier.network),
        }

    # Time, by turns
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, trainee in trainees.items():
            began = now(device)
            for _ in range(steps):
                trainee.step()
            seconds[name].append((now(device) - began) / steps)
    for name, of in figures.items():
        of["seconds_per_step"] = median(seconds[name])
        of |= {f"{key}_ratio": value / figures[NONE][key] for key, value in list(of.items())}
    return _finding(settings, figures, device, classes, image_size, rounds, steps)


def warmed(settings: TrainingSettings, method: str, context: Context) -> Trainee:
    """A trainee that has done its first steps."""
    trainee = Trainee(settings, method, context)
    for _ in range(WARMING):
        trainee.step()
    return trainee


def _finding(
    settings: TrainingSettings,
    figures: Mapping[str, Mapping[str, float]],
    device: torch.device,
    classes: int,
    image_size: int,
    rounds: int,
    steps: int,
) -> Finding:
    network, width = chosen_network(settings.network, settings.width, image_size)
    columns = (
        ("memory, MiB", "peak_bytes", 2**20, 1),
        ("multiply-adds, M", "flops", 2e6, 1),
        ("#P training, M", "parameters_training", 1e6, 4),
        ("#P deployed, M", "parameters_deployed", 1e6, 4),
        ("ms a step", "seconds_per_step", 1e-3, 1),
    )
    rows = [("", *(word for title, *_ in columns for word in (title, "ratio")))]
    for name, of in figures.items():
        cells = [(f"{of[key] / unit:.{digits}f}", f"{of[f'{key}_ratio']:.3f}") for _, key, unit, digits in columns]
        rows.append((TITLES[name], *(cell for pair in cells for cell in pair)))
    measure = MEASURES["cuda" if device.type == "cuda" else "cpu"]
    said = (
        f"{network}, width {width:g}, {classes} classes; batches of {settings.batch} images of "
        f"{image_size}×{image_size}; {device.type}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
        f"memory: {measure}; multiply-adds: of a forward of the deployed network for one image\n"
        f"time: median of {rounds} rounds of {steps} steps, augmentation included; ratios: to {TITLES[NONE].lower()}"
    )
    figure = Figure(figsize=(11, 0.9 + 0.3 * len(figures)), layout="constrained")
    for axis, column in zip(figure.subplots(1, 3, sharey=True), (columns[0], columns[2], columns[4]), strict=True):
        title, key, unit, _ = column
        values = {TITLES[name]: of[key] / unit for name, of in figures.items()}
        draw_bars(axis, values, title, [f"{of[f'{key}_ratio']:.3f}×" for of in figures.values()])
    values = {
        "study": "cost",
        "network": network,
        "width": width,
        "classes": classes,
        "image_size": image_size,
        "batch": settings.batch,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "memory_measure": measure,
        "rounds": rounds,
        "steps": steps,
        "methods": figures,
    }
    return Finding(values, f"{aligned(rows)}\n\n{said}\n", figure)
