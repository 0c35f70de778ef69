"""Timings of the parts, each against its floor: the bare networks on the same images, or the form it replaces.

A case and its floor take turns within one process, so that whatever else the machine does slows both; the ratio is
that of the medians. Every case has a process of its own, whose peak memory is read before the floor first runs.
Nothing that a training step would do anew is done before the clock starts.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from json import dumps, loads
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from timm.data import Mixup
from torch import nn
from torchvision.transforms import v2

from hybridgen.data.augment import strong, weak
from hybridgen.data.datasets import InMemory, Part
from hybridgen.data.pillow_policy import pillow_strong
from hybridgen.data.splits import Split
from hybridgen.data.streams import Stream, View
from hybridgen.generators.samosa import Samosa, SamosaReconstruction, Watched
from hybridgen.generators.scimix import SciMixDiscriminator, SciMixGenerator
from hybridgen.hybridizer import Hybridizer, Origin
from hybridgen.mixing.methods import METHODS
from hybridgen.mixing.transform import Mix
from hybridgen.networks.autoencoder import Architecture, SamosaArchitecture, SamosaAutoencoder, SemanticAutoencoder
from hybridgen.networks.classifiers import Classifier, make_network
from hybridgen.networks.discriminator import Discriminator
from hybridgen.networks.stylegan2 import ModulatedConv2d, grouped_modulated_conv2d
from hybridgen.networks.wide_resnet import TwoHeadClassifier, WideResNetClassifier
from hybridgen.semi.fixmatch import FixMatch
from hybridgen.semi.hybrids import HybridUse
from hybridgen.semi.mean_teacher import MeanTeacher
from hybridgen.semi.mixmatch import MixMatch
from hybridgen.supervised.mixed import Mixed
from hybridgen.supervised.recursivemix import RecursiveMix
from hybridgen.training.ema import EMA
from hybridgen.training.engine import make_accelerator
from hybridgen.training.fit import fit
from hybridgen.training.objective import Task, sgd
from hybridgen.training.schedules import Clock
from hybridgen.types import InputError

SIZE, CLASSES = 32, 10
STATISTICS: dict[str, Any] = dict(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
RATE = 1e-3
"""Learning rate of the timed steps; small, so that random images and labels let no loss diverge."""


@dataclass(frozen=True)
class Sizes:
    """How large the cases are. Batches are labelled and unlabelled images."""

    depth: int = 28
    width: int = 2
    generator_channels: tuple[int, ...] = (32, 64, 128, 64, 32)
    discriminator_width: float = 1.0
    stage1: tuple[int, int] = (16, 48)
    hybridization: int = 128
    fixmatch: tuple[int, int] = (64, 448)
    fixmatch_hybrids: tuple[int, int] = (16, 112)
    mean_teacher: tuple[int, int] = (30, 98)
    mixmatch: tuple[int, int] = (64, 64)
    strong: int = 448
    mixing: int = 128
    resnet_width: float = 1.0
    convolution: tuple[int, int, int] = (256, 128, 8)
    """Batch, channels, side."""


ON_CPU = Sizes()
ON_GPU = Sizes(stage1=(60, 196), hybridization=1024, fixmatch_hybrids=(64, 448), mean_teacher=(60, 196))
QUICK = Sizes(
    depth=10,
    width=1,
    generator_channels=(8, 8, 8),
    discriminator_width=0.25,
    stage1=(2, 6),
    hybridization=8,
    fixmatch=(2, 14),
    fixmatch_hybrids=(2, 6),
    mean_teacher=(2, 6),
    mixmatch=(4, 4),
    strong=32,
    mixing=8,
    resnet_width=0.125,
    convolution=(8, 16, 8),
)


class Case(NamedTuple):
    """What is timed, ready to run."""

    what: str
    floor_is: str
    """What the floor does, on the same images."""
    images: int
    """Of the data set, a step."""
    step: Callable[[], object]
    floor: Callable[[], object]


# --- The cases ----------------------------------------------------------------------------------------------


def stage_1(sizes: Sizes, accelerator: Accelerator) -> Case:
    """SciMix's generator and discriminator, Mean Teacher as guide, as recipes/scimix.py trains them."""
    weakly = partial(weak, flip=True, shift=SIZE // 8)
    stream = _stream(sizes.stage1, (weakly, weakly), (weakly, weakly), accelerator)
    autoencoder = _autoencoder(sizes).to(memory_format=torch.channels_last)
    discriminator = Discriminator(SIZE, width=sizes.discriminator_width, **STATISTICS)
    discriminator.to(memory_format=torch.channels_last)
    generator = SciMixGenerator(autoencoder, discriminator)
    critic = SciMixDiscriminator(discriminator)
    parents = [f"{kind}_{way}" for kind in ("semantic", "nonsemantic") for way in ("attraction", "repulsion")]
    guide = ("supervised", "consistency", "logit_distance")
    adversarial = ("adversarial_reconstruction", "adversarial_hybrid")
    weights = dict.fromkeys(["reconstruction", *adversarial, *parents, *guide], 1.0)
    critic_weights = dict.fromkeys(["real", "reconstruction", "hybrid"], 1.0)
    tasks = {
        "generator": _task(generator, weights, accelerator),
        "discriminator": _task(critic, critic_weights, accelerator),
    }
    average = EMA(autoencoder, 0.999, buffers="average")
    steps = fit(tasks, stream.from_step(0), _clock(stream), accelerator, seed=0)

    def step() -> None:
        next(steps)
        average.update(autoencoder)
        generator.teacher.update(autoencoder.classifier)

    # Floor: every network on the images it sees in a step, and back
    batch = next(stream.from_step(0))
    images, others = (torch.cat([batch.labelled[view], batch.unlabelled[view]]) for view in (0, 1))
    teacher, criterion, judge = (
        deepcopy(module).requires_grad_(False) for module in (autoencoder.classifier, autoencoder, discriminator)
    )

    def floor() -> None:
        with torch.no_grad():
            teacher(others)
        codes = autoencoder(images)
        decoded = autoencoder.decode(torch.cat([codes.semantic] * 2), torch.cat([codes.nonsemantic] * 2))
        judged, seen = judge(decoded), criterion(decoded[len(images) :])
        _backward(autoencoder, judged, seen.predictions, seen.nonsemantic, codes.predictions, codes.consistency)
        _backward(discriminator, discriminator(torch.cat([images, decoded.detach()])))

    return Case(
        f"SciMix stage-1 step, {_shown(sizes.stage1)}",
        "bare forward and backward of E_c, C, E_r, G, D, the teacher and the frozen criteria",
        sum(sizes.stage1),
        step,
        floor,
    )


def hybridization(sizes: Sizes, accelerator: Accelerator) -> Case:
    hybridizer = _hybridizer(sizes, accelerator)
    autoencoder = hybridizer.autoencoder
    encode_semantic, encode_nonsemantic = autoencoder.classifier.encoder, autoencoder.nonsemantic_encoder
    semantic, nonsemantic = (
        images.float() / 255 for images in _pixels(2 * sizes.hybridization).to(accelerator.device).chunk(2)
    )

    @torch.no_grad()
    def step() -> None:
        hybridizer.hybridize(semantic=semantic, nonsemantic=nonsemantic)

    @torch.no_grad()
    def floor() -> None:
        autoencoder.generator(encode_nonsemantic(nonsemantic), encode_semantic(semantic))

    return Case(
        f"hybridization, {sizes.hybridization} hybrids",
        "bare forward of E_c, E_r and G",
        sizes.hybridization,
        step,
        floor,
    )


def fixmatch(sizes: Sizes, accelerator: Accelerator) -> Case:
    """As recipes/scimix_fixmatch.py trains it: batch, augmentation, losses, optimizer and average."""
    step, batch, classifier = _fixmatch_step(sizes, sizes.fixmatch, None, accelerator)

    def floor() -> None:
        _backward(classifier, classifier(batch))

    return Case(
        f"FixMatch step, {_shown(sizes.fixmatch)}",
        f"bare forward and backward of the same {len(batch)} images through the classifier",
        sum(sizes.fixmatch),
        step,
        floor,
    )


def fixmatch_hybrids(sizes: Sizes, accelerator: Accelerator) -> Case:
    """The same with hybrids; the hybrids' images and those who make and check them are in the floor too."""
    hybridizer = _hybridizer(sizes, accelerator)
    autoencoder, copies = hybridizer.autoencoder, HybridUse().copies
    step, batch, classifier = _fixmatch_step(sizes, sizes.fixmatch_hybrids, hybridizer, accelerator)
    parents = batch[: sum(sizes.fixmatch_hybrids)]

    def floor() -> None:
        with torch.no_grad():
            semantic, nonsemantic = autoencoder.classifier.encoder(parents), autoencoder.nonsemantic_encoder(parents)
            hybrids = autoencoder.generator(torch.cat([nonsemantic] * copies), torch.cat([semantic] * copies))
            autoencoder.classifier(hybrids)
        _backward(classifier, classifier(batch), classifier(hybrids))

    return Case(
        f"FixMatch step with {copies} hybrids an image, {_shown(sizes.fixmatch_hybrids)}",
        f"bare forward and backward of the same {len(batch)} images and {copies * len(parents)} hybrids through the "
        "classifier; bare forward of E_c, E_r and G to make the hybrids, of E_c and C to check them",
        sum(sizes.fixmatch_hybrids),
        step,
        floor,
    )


def mean_teacher(sizes: Sizes, accelerator: Accelerator) -> Case:
    """As recipes/mean_teacher.py trains it: batches, two views, losses, optimizer, teacher and average."""
    classifier = TwoHeadClassifier(sizes.depth, sizes.width, CLASSES, **STATISTICS)
    step, first, second = _mean_teacher_step(sizes, classifier, classifier, accelerator)
    teacher = deepcopy(classifier).requires_grad_(False)

    def floor() -> None:
        with torch.no_grad():
            teacher(second)
        _backward(classifier, *classifier(first))

    return Case(
        f"Mean Teacher step, {_shown(sizes.mean_teacher)}",
        f"bare forward and backward of the {len(first)} images through the student, bare forward through the teacher",
        len(first),
        step,
        floor,
    )


def mixmatch(sizes: Sizes, accelerator: Accelerator) -> Case:
    """As recipes/mixmatch.py trains it, with two guesses an image."""
    weakly = partial(weak, flip=True, shift=SIZE // 8)
    stream = _stream(sizes.mixmatch, (weakly,), (weakly, weakly), accelerator)
    classifier = WideResNetClassifier(sizes.depth, sizes.width, CLASSES, **STATISTICS)
    classifier.to(memory_format=torch.channels_last)
    weights = dict.fromkeys(["supervised", "unsupervised"], 1.0)
    task = _task(MixMatch(classifier), weights, accelerator, decay_all=False)
    average = EMA(classifier, 0.999, linear_start=False)
    steps = fit({"classifier": task}, stream.from_step(0), _clock(stream), accelerator, seed=0)

    def step() -> None:
        next(steps)
        average.update(classifier)

    batch = next(stream.from_step(0))

    def floor() -> None:
        with torch.no_grad():
            for view in batch.unlabelled:
                classifier(view)
        _backward(classifier, *(classifier(images) for images in (*batch.labelled, *batch.unlabelled)))

    return Case(
        f"MixMatch step, {_shown(sizes.mixmatch)}, two views",
        "bare forward of both views, bare forward and backward of the labelled images and both views, a batch each",
        sum(sizes.mixmatch),
        step,
        floor,
    )


def samosa(sizes: Sizes, accelerator: Accelerator) -> Case:
    """SAMOSA's two optimizers on Mean Teacher, as recipes/samosa_mean_teacher.py trains them."""
    architecture = SamosaArchitecture(SIZE, CLASSES, depth=sizes.depth, width=sizes.width, **STATISTICS)
    autoencoder = SamosaAutoencoder(architecture)
    watched = Watched(autoencoder.classifier, heads=2)
    step, first, second = _mean_teacher_step(sizes, watched, autoencoder, accelerator)
    classifier, encoder, decoder = autoencoder.classifier, autoencoder.nonsemantic_encoder, autoencoder.decoder
    teacher = deepcopy(classifier).requires_grad_(False)

    def floor() -> None:
        with torch.no_grad():
            teacher(second)
        seen = classifier(first)
        _backward(classifier, seen.predictions, seen.consistency, seen.before)
        encoder.zero_grad(set_to_none=True)
        _backward(decoder, decoder(seen.semantic.detach(), encoder(first)))

    return Case(
        f"SAMOSA step on Mean Teacher, {_shown(sizes.mean_teacher)}",
        "bare forward and backward of E_c and C, of E_r and D, bare forward through the teacher",
        len(first),
        step,
        floor,
    )


def averaging(sizes: Sizes, accelerator: Accelerator) -> Case:
    """The exponential moving average, against the whole training step that it is a part of."""
    step, _, classifier = _fixmatch_step(sizes, sizes.fixmatch_hybrids, None, accelerator)
    average = EMA(classifier, 0.999, linear_start=False)
    return Case(
        "EMA update of the classifier",
        f"a whole FixMatch step, {_shown(sizes.fixmatch_hybrids)}",
        sum(sizes.fixmatch_hybrids),
        lambda: average.update(classifier),
        step,
    )


def strong_augmentation(sizes: Sizes, accelerator: Accelerator) -> Case:
    """From 8-bit images to float; Pillow's images are at hand as such and stay such."""
    torch.set_num_threads(1)
    pixels = _pixels(sizes.strong).to(accelerator.device)
    generator = torch.Generator(accelerator.device).manual_seed(0)
    pictures = [Image.fromarray(image.permute(1, 2, 0).cpu().numpy()) for image in pixels]
    rng = np.random.default_rng(0)

    def step() -> None:
        strong(pixels.float().div_(255), generator, flip=True, shift=SIZE // 8)

    def floor() -> None:
        for picture in pictures:
            pillow_strong(picture, rng, flip=True, shift=SIZE // 8)

    return Case(
        f"strong augmentation, {sizes.strong} images, one CPU thread", "the policy in Pillow", sizes.strong, step, floor
    )


def modulated_convolution(sizes: Sizes, accelerator: Accelerator) -> Case:
    """Both forms in the layout that suits them: channels last, which the generator trains in, and contiguous."""
    batch, channels, side = sizes.convolution
    device = accelerator.device
    grouped = ModulatedConv2d(channels, channels, 3).to(device)
    module = deepcopy(grouped).to(memory_format=torch.channels_last)
    x, gradient = torch.randn(2, batch, channels, side, side, device=device)
    style = torch.randn(batch, channels, device=device, requires_grad=True)
    x_last, gradient_last = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, gradient))
    for tensor in (x, x_last):
        tensor.requires_grad_()

    def step() -> None:
        x_last.grad = style.grad = module.weight.grad = None
        module(x_last, style).backward(gradient_last)

    def floor() -> None:
        x.grad = style.grad = grouped.weight.grad = None
        grouped_modulated_conv2d(x, style, grouped.weight).backward(gradient)

    return Case(
        f"modulated convolution, forward and backward, {batch}×{channels}×{side}×{side} (-kept: memory reused)",
        "the grouped form: a kernel for every sample",
        batch,
        step,
        floor,
    )


def cutmix_beside_torchvision(sizes: Sizes, accelerator: Accelerator) -> Case:
    """Images and targets, a box for every image."""
    images, labels = _mixing_batch(sizes, accelerator)
    mix, theirs = Mix("cutmix", CLASSES, per_sample=True), v2.CutMix(num_classes=CLASSES)
    order = torch.randperm(len(images), device=images.device)

    def floor() -> None:
        theirs(images, labels)
        images[order]

    return Case(
        f"CutMix, a box for every image, {len(images)} images",
        "torchvision's CutMix, one box for the batch, and a gather of the batch",
        len(images),
        lambda: mix(images, labels),
        floor,
    )


def cutmix_beside_timm(sizes: Sizes, accelerator: Accelerator) -> Case:
    """The same against the library that has boxes for every image too."""
    images, labels = _mixing_batch(sizes, accelerator)
    mix = Mix("cutmix", CLASSES, per_sample=True)
    theirs = Mixup(mixup_alpha=0.0, cutmix_alpha=1.0, mode="elem", label_smoothing=0.0, num_classes=CLASSES)
    # timm mixes in place and takes the targets' device for a GPU
    return Case(
        f"CutMix, a box for every image, {len(images)} images",
        "timm's element-wise CutMix",
        len(images),
        lambda: mix(images, labels),
        lambda: theirs(images.cpu(), labels.cpu()),
    )


def mixing(name: str, sizes: Sizes, accelerator: Accelerator) -> Case:
    """A method's mask alone, as its paper draws it; its milliseconds are what is wanted, 2 at most."""
    images, _ = _mixing_batch(sizes, accelerator)
    order = torch.randperm(len(images), device=images.device)
    return Case(
        f"mask of {name}, {len(images)} images",
        "a gather of the batch",
        len(images),
        lambda: METHODS[name](images),
        lambda: images[order],
    )


def recursivemix(sizes: Sizes, accelerator: Accelerator) -> Case:
    """RecursiveMix's training step against the step of the same network without mixing."""
    steps = []
    for recursive in (True, False):
        torch.manual_seed(0)
        network = make_network("cifar-resnet18", CLASSES, width=sizes.resnet_width)
        classifier = Classifier(network, **STATISTICS).to(memory_format=torch.channels_last)
        objective = RecursiveMix(classifier, CLASSES) if recursive else Mixed(classifier, CLASSES)
        weights = {"supervised": 1.0} | ({"consistency": 0.1} if recursive else {})
        pixels, labels = _pixels(2 * sizes.mixing), torch.arange(2 * sizes.mixing) % CLASSES
        split = Split("random", "random", 0, tuple(range(len(labels))), (), ())
        view = partial(weak, flip=True, shift=SIZE // 8)
        stream = Stream(
            Part(InMemory(pixels), labels), split, labelled=sizes.mixing, unlabelled=None, labelled_views=(view,),
            seed=0, device=accelerator.device,
        )  # fmt: skip
        tasks = {"classifier": _task(objective, weights, accelerator)}
        steps.append(fit(tasks, stream.from_step(0), _clock(stream), accelerator, seed=0))
    mixed, plain = steps
    return Case(
        f"RecursiveMix step, ResNet-18 of width {sizes.resnet_width:g}, {sizes.mixing} images",
        "the step without mixing",
        sizes.mixing,
        lambda: next(mixed),
        lambda: next(plain),
    )


def _mixing_batch(sizes: Sizes, accelerator: Accelerator) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(sizes.mixing, 3, SIZE, SIZE, device=accelerator.device)
    return images, torch.arange(sizes.mixing, device=accelerator.device) % CLASSES


class Entry(NamedTuple):
    """A case of the table."""

    make: Callable[[Sizes, Accelerator], Case]
    goal: float | None
    """Largest ratio of its time to the floor's that is wanted."""
    rounds: int
    keep_memory: bool = True
    """Whether freed memory is reused, as while training; the C library's own way otherwise."""
    settled: bool = False
    """Whether each call that is timed follows one that is not, so that neither pays for what the other has left of
    caches and free memory: for floors that allocate far more than the case."""


CASES: dict[str, Entry] = {
    "stage-1": Entry(stage_1, None, 5),
    "hybridization": Entry(hybridization, 1.1, 9),
    "fixmatch": Entry(fixmatch, 1.25, 3),
    "fixmatch-hybrids": Entry(fixmatch_hybrids, 1.25, 3),
    "mean-teacher": Entry(mean_teacher, 1.25, 5),
    "mixmatch": Entry(mixmatch, 1.25, 5),
    "samosa": Entry(samosa, 1.25, 5),
    "ema": Entry(averaging, 0.03, 5),
    "strong-augmentation": Entry(strong_augmentation, 1 / 4, 31),
    # Reusing memory is three times as fast for the grouped form, which has a kernel for every sample to allocate: the
    # goal is for the form as plain PyTorch runs it, and both are shown.
    "modulated-convolution": Entry(modulated_convolution, 1 / 10, 9, keep_memory=False, settled=True),
    "modulated-convolution-kept": Entry(modulated_convolution, None, 9, settled=True),
    "cutmix": Entry(cutmix_beside_torchvision, 1.5, 101),
    "cutmix-elementwise": Entry(cutmix_beside_timm, 1 / 5, 31),
    **{f"mask-{name}": Entry(partial(mixing, name), None, 101) for name in METHODS},
    "recursivemix": Entry(recursivemix, 1.03, 15),
}


# --- Measuring ----------------------------------------------------------------------------------------------


def measure(name: str, *, quick: bool = False, rounds: int | None = None, threads: int | None = None) -> dict[str, Any]:
    """Time one case in this process: device, threads, and the case's figures as they stand in the JSON."""
    entry = CASES[name]
    accelerator = make_accelerator(threads=threads, keep_memory=entry.keep_memory)
    device = accelerator.device
    torch.manual_seed(0)
    sizes = QUICK if quick else ON_CPU if device.type == "cpu" else ON_GPU
    used = torch.get_num_threads()

    # Peak memory, and a first step that is not timed
    before = _peak_memory(device)
    case = entry.make(sizes, accelerator)
    case.step()
    memory = _peak_memory(device) - before
    case.floor()

    # Times
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds or (2 if quick else entry.rounds)):
        for run_once, taken in zip((case.step, case.floor), times, strict=True):
            if entry.settled:
                run_once()
            _wait(device)
            start = perf_counter()
            run_once()
            _wait(device)
            taken.append(1000 * (perf_counter() - start))
    milliseconds, floor_milliseconds = map(median, times)
    figures = {
        "what": case.what,
        "images_per_second": 1000 * case.images / milliseconds,
        "milliseconds": milliseconds,
        "milliseconds_min": min(times[0]),
        "floor": case.floor_is,
        "floor_milliseconds": floor_milliseconds,
        "floor_milliseconds_min": min(times[1]),
        "ratio": milliseconds / floor_milliseconds,
        "goal": entry.goal,
        "rounds": len(times[0]),
        "peak_memory_mib": memory / 2**20,
    }
    where = "cpu" if device.type == "cpu" else f"{device.type} ({torch.cuda.get_device_name(device)})"
    return {"device": where, "threads": used, "case": figures}


def run(
    json: bool = False,
    *,
    only: Sequence[str] = (),
    rounds: int | None = None,
    threads: int | None = None,
    quick: bool = False,
) -> None:
    """Measure and print: a table, row by row, or JSON and nothing else on standard output.

    `only` names cases; `rounds` is how often each and its floor are timed, unless given as many as the case needs;
    `threads` of the CPU, all cores unless given; `quick` takes small networks and batches, whose figures say nothing
    about the real ones. Raises InputError for an unknown case and for numbers below 1.
    """
    for name in only:
        if name not in CASES:
            raise InputError(f"--only: unknown case {name!r}; there are {', '.join(CASES)}")
    for field, number in (("rounds", rounds), ("threads", threads)):
        if number is not None and number < 1:
            raise InputError(f"--{field} {number}: must be at least 1")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("bench: measures one process; start it without accelerate launch")

    cases: dict[str, dict[str, Any]] = {}
    head: dict[str, Any] = {}
    for name in only or CASES:
        result = _in_fresh_process(name, {"quick": quick, "rounds": rounds, "threads": threads})
        cases[name] = result.pop("case")
        if not json and not head:
            print(f"{result['device']}, {result['threads']} threads, torch {torch.__version__}; medians")
            print(f"{'':26} {'images/s':>9} {'ms':>9} {'floor ms':>9} {'ratio':>7} {'goal':>7} {'peak MiB':>9}")
        head = result
        if not json:
            print(_row(name, cases[name]), flush=True)
    if json:
        print(dumps(head | {"torch": torch.__version__, "quick": quick, "cases": cases}, indent=2))
        return
    print()
    for name, figures in cases.items():
        print(f"{name}: {figures['what']}; floor: {figures['floor']}")
    if quick:
        print("\n--quick: small networks and batches; not the figures to report")


def _in_fresh_process(name: str, options: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "hybridgen.bench", dumps({"name": name} | options)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode < 0:
        raise InputError(f"bench: {name} was ended by signal {-done.returncode}; 9 is mostly a lack of memory")
    if done.returncode:
        raise RuntimeError(f"bench: {name} failed; its error stands above")
    return loads(done.stdout.splitlines()[-1])


def _row(name: str, figures: dict[str, Any]) -> str:
    goal = "" if figures["goal"] is None else f"≤ {figures['goal']:.2f}"
    return (
        f"{name:26} {figures['images_per_second']:>9.1f} {figures['milliseconds']:>9.1f} "
        f"{figures['floor_milliseconds']:>9.1f} {figures['ratio']:>7.3f} {goal:>7} {figures['peak_memory_mib']:>9.0f}"
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_memory(device: torch.device) -> int:
    """Bytes: the device's, or this process's largest resident size.

    Not `ru_maxrss`, which starts at the size of the process that started this one.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        (peak,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(peak)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# --- What the cases are made of -----------------------------------------------------------------------------


def _pixels(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8)


def _stream(
    batch: tuple[int, int],
    labelled_views: Sequence[View],
    unlabelled_views: Sequence[View],
    accelerator: Accelerator,
) -> Stream:
    """Random 8-bit images in memory, eight steps an epoch."""
    labelled, unlabelled = batch
    count = 8 * unlabelled
    part = Part(InMemory(_pixels(count)), torch.arange(count) % CLASSES)
    split = Split("random", "random", 0, tuple(range(labelled)), tuple(range(labelled, count)), ())
    return Stream(
        part,
        split,
        labelled=labelled,
        unlabelled=unlabelled,
        labelled_views=labelled_views,
        unlabelled_views=unlabelled_views,
        seed=0,
        device=accelerator.device,
    )


def _clock(stream: Stream) -> Clock:
    return Clock(steps=10**9, steps_per_epoch=stream.steps_per_epoch)


def _task(objective: nn.Module, weights: dict[str, float], accelerator: Accelerator, **options: Any) -> Task:
    prepared, optimizer = accelerator.prepare(objective, sgd(objective, **options))
    return Task(prepared, weights, optimizer, lambda clock: RATE)


def _autoencoder(sizes: Sizes) -> SemanticAutoencoder:
    architecture = Architecture(
        image_size=SIZE,
        classes=CLASSES,
        depth=sizes.depth,
        width=sizes.width,
        generator_channels=sizes.generator_channels,
        **STATISTICS,
    )
    return SemanticAutoencoder(architecture)


def _hybridizer(sizes: Sizes, accelerator: Accelerator) -> Hybridizer:
    origin = Origin("random", "random", "random", tuple(map(str, range(CLASSES))))
    return Hybridizer(_autoencoder(sizes), origin).to(accelerator.device)


def _fixmatch_step(
    sizes: Sizes, batch: tuple[int, int], hybridizer: Hybridizer | None, accelerator: Accelerator
) -> tuple[Callable[[], None], torch.Tensor, nn.Module]:
    """The step, images like those that its classifier sees in it, and the classifier."""
    weakly = partial(weak, flip=True, shift=SIZE // 8)
    strongly = partial(strong, flip=True, shift=SIZE // 8)
    stream = _stream(batch, (weakly,), (weakly, strongly), accelerator)
    classifier = WideResNetClassifier(sizes.depth, sizes.width, CLASSES, momentum=0.001, **STATISTICS)
    classifier.to(memory_format=torch.channels_last)
    weights = dict.fromkeys(["supervised", "unsupervised", *(["hybrids"] if hybridizer else [])], 1.0)
    task = _task(FixMatch(classifier, hybridizer=hybridizer), weights, accelerator, decay_all=False)
    average = EMA(classifier, 0.999, linear_start=False)
    steps = fit({"classifier": task}, stream.from_step(0), _clock(stream), accelerator, seed=0)

    def step() -> None:
        next(steps)
        average.update(classifier)

    first = next(stream.from_step(0))
    return step, torch.cat([*first.labelled, *first.unlabelled]), classifier


def _mean_teacher_step(
    sizes: Sizes, classifier: nn.Module, network: nn.Module, accelerator: Accelerator
) -> tuple[Callable[[], None], torch.Tensor, torch.Tensor]:
    """The step on a classifier of two heads, and both views of its images. With SAMOSA's auto-encoder as the network
    that is averaged, its two objectives."""
    weakly = partial(weak, flip=True, shift=SIZE // 8)
    stream = _stream(sizes.mean_teacher, (weakly, weakly), (weakly, weakly), accelerator)
    network.to(memory_format=torch.channels_last)
    objective = MeanTeacher(classifier)
    weights = dict.fromkeys(["supervised", "consistency", "logit_distance"], 1.0)
    if isinstance(network, SamosaAutoencoder):
        regularized = Samosa(objective, classifier, network.decoder)
        second = SamosaReconstruction(network.nonsemantic_encoder, network.decoder, network.normalize)
        tasks = {
            "classifier": _task(regularized, weights | {"regularizer": 1.0}, accelerator),
            "reconstruction": _task(second, {"reconstruction": 1.0}, accelerator),
        }
    else:
        tasks = {"classifier": _task(objective, weights, accelerator)}
    average = EMA(network, 0.999, linear_start=False)
    steps = fit(tasks, stream.from_step(0), _clock(stream), accelerator, seed=0)

    def step() -> None:
        next(steps)
        objective.teacher.update(classifier)
        average.update(network)

    batch = next(stream.from_step(0))
    return step, *(torch.cat([batch.labelled[view], batch.unlabelled[view]]) for view in (0, 1))


def _backward(network: nn.Module, *outputs: torch.Tensor) -> None:
    """Gradients of all the outputs' sum, afresh."""
    network.zero_grad(set_to_none=True)
    torch.stack([output.sum() for output in outputs]).sum().backward()


def _shown(batch: tuple[int, int]) -> str:
    return f"{batch[0]} labelled and {batch[1]} unlabelled images"


if __name__ == "__main__":
    order = loads(sys.argv[1])
    print(dumps(measure(order.pop("name"), **order)))
