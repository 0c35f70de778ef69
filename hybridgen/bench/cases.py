"""The cases that are timed: each part, and its floor: the bare networks on the same images, or the form it replaces.

Nothing that a training step would do anew is done before the clock starts.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from timm.data import Mixup
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, v2

from hybridgen.data.autoaugment import autoaugment
from hybridgen.data.pillow_policy import pillow_strong, pillow_weak
from hybridgen.data.randaugment import strong
from hybridgen.evaluation.ensembles import judged_by
from hybridgen.evaluation.predictions import Predictions
from hybridgen.evaluation.scoring import scores_of
from hybridgen.hybridizer import Hybridizer, Origin
from hybridgen.methods import fixmatch as fixmatch_method
from hybridgen.methods import mean_teacher as mean_teacher_method
from hybridgen.methods import mixing as mixing_method
from hybridgen.methods import mixmatch as mixmatch_method
from hybridgen.methods import mixmo as mixmo_method
from hybridgen.methods import mixshare as mixshare_method
from hybridgen.methods import mixvit as mixvit_method
from hybridgen.methods import recursivemix as recursivemix_method
from hybridgen.methods import scimix
from hybridgen.methods.hybrids import Settings as HybridSettings
from hybridgen.methods.hybrids import with_hybrids
from hybridgen.methods.labelled import TrainingSettings
from hybridgen.methods.samosa import Settings as SamosaSettings
from hybridgen.methods.samosa import networks, with_samosa
from hybridgen.mixing.inputs import Patches, mix_inputs
from hybridgen.mixing.methods import METHODS
from hybridgen.mixing.transform import Mix
from hybridgen.networks.autoencoder import Architecture, SemanticAutoencoder
from hybridgen.networks.discriminator import Discriminator
from hybridgen.networks.stylegan2 import ModulatedConv2d, grouped_modulated_conv2d
from hybridgen.settings import changed
from hybridgen.tables.cost import noise
from hybridgen.training.context import Context
from hybridgen.training.ema import EMA
from hybridgen.training.fit import fit
from hybridgen.training.plan import Plan
from hybridgen.training.scores import logits_of

SIZE, CLASSES = 32, 10
STATISTICS: dict[str, Any] = dict(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
FOREVER = 1e6
"""Epochs of the plans of which steps are timed."""
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
    fixmatch_fast: tuple[int, int] = (32, 96)
    fixmatch_hybrids: tuple[int, int] = (16, 112)
    mean_teacher: tuple[int, int] = (30, 98)
    mixmatch: tuple[int, int] = (64, 64)
    network: int = 128
    strong: int = 448
    mixing: int = 128
    resnet_width: float = 1.0
    convit: tuple[int, int, int, int] = (384, 12, 5, 32)
    """Dimension, heads, feature blocks, images."""
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
    fixmatch_fast=(2, 6),
    fixmatch_hybrids=(2, 6),
    mean_teacher=(2, 6),
    mixmatch=(4, 4),
    network=8,
    strong=32,
    mixing=8,
    resnet_width=0.125,
    convit=(12, 3, 1, 4),
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
    labelled, unlabelled = sizes.stage1
    settings = changed(
        scimix.Settings(),
        scimix.PAPER["method"]
        | dict(
            network=_leaky(sizes),
            labelled_batch=labelled,
            unlabelled_batch=unlabelled,
            generator_channels=sizes.generator_channels,
            discriminator_width=sizes.discriminator_width,
            nonsemantic_from=0.0,
            epochs=FOREVER,
        ),
    )
    plan, _ = scimix.plan(settings, _context(sizes.stage1, accelerator), 0)
    autoencoder, discriminator = plan.network, plan.tasks["discriminator"].objective.discriminator
    assert isinstance(autoencoder, SemanticAutoencoder) and isinstance(discriminator, Discriminator)
    step = _training(plan)
    batch = next(plan.stream.from_step(0))

    # Floor: every network on the images it sees in a step, and back
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


def stage_1_fast(sizes: Sizes, accelerator: Accelerator) -> Case:
    """The default above 16 pixels, with a finished classifier as guide."""
    labelled, unlabelled = sizes.stage1
    context = _context(sizes.stage1, accelerator)
    guide = context.classifier("fast")

    def step_of(upsampling: Literal["bilinear", "between"] | None) -> Callable[[], None]:
        settings = scimix.Settings(
            labelled_batch=labelled, unlabelled_batch=unlabelled, epochs=FOREVER, upsampling=upsampling
        )
        return _training(scimix.plan(settings, context, 0, classifier=guide)[0])

    return Case(
        f"SciMix stage-1 step of the default, {_shown(sizes.stage1)}",
        "the same with a generator that doubles its maps before its convolutions (table A.10)",
        sum(sizes.stage1),
        step_of(None),
        step_of("bilinear"),
    )


def hybridization(sizes: Sizes, accelerator: Accelerator) -> Case:
    hybridizer = _hybridizer(sizes, accelerator)
    autoencoder = hybridizer.autoencoder
    assert isinstance(autoencoder, SemanticAutoencoder)
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
    step, batch, classifier = _fixmatch_step(sizes, sizes.fixmatch, accelerator)

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
    autoencoder, copies = hybridizer.autoencoder, 3
    how = HybridSettings(copies=copies, start=0, stop=inf)
    assert isinstance(autoencoder, SemanticAutoencoder)
    step, batch, classifier = _fixmatch_step(sizes, sizes.fixmatch_hybrids, accelerator, (hybridizer, how))
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


class PillowViews(torch.utils.data.Dataset):
    """Pictures in Pillow, normalised: a weak view, and for those without label a strong one too."""

    def __init__(self, pictures: Sequence[Image.Image], *, strong: bool) -> None:
        self.pictures, self.strong = pictures, strong
        mean, std = STATISTICS["mean"], STATISTICS["std"]
        self.normalized = v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        picture, rng = self.pictures[index], np.random.default_rng()
        weak = self.normalized(pillow_weak(picture, rng, flip=True, shift=SIZE // 8))
        if not self.strong:
            return weak, torch.tensor(index % CLASSES)
        return weak, self.normalized(pillow_strong(picture, rng, flip=True, shift=SIZE // 8))


def fixmatch_fast(sizes: Sizes, accelerator: Accelerator) -> Case:
    """The default above 16 pixels, against the form in which FixMatch is mostly found: its paper's network, Pillow in
    two workers, an average that is moved tensor by tensor, three values that are read back in every step."""
    labelled, unlabelled = sizes.fixmatch_fast
    context, device = _context(sizes.fixmatch_fast, accelerator), accelerator.device
    settings = fixmatch_method.Settings(
        network="fast", labelled_batch=labelled, unlabelled_batch=unlabelled, epochs=FOREVER
    )
    step = _training(fixmatch_method.plan(settings, context, 0))

    # The other form
    network = context.classifier(_leaky(sizes))
    average = deepcopy(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in _pixels(8 * unlabelled)]

    def batches(count: int, *, strong: bool) -> Iterator[list[torch.Tensor]]:
        views = PillowViews(pictures, strong=strong)
        loader = DataLoader(views, count, shuffle=True, num_workers=1, drop_last=True, persistent_workers=True)
        while True:
            yield from loader

    known, unknown = batches(labelled, strong=False), batches(unlabelled, strong=True)
    seen: list[float] = []

    def floor() -> None:
        (images, labels), (weak, strong_view) = next(known), next(unknown)
        logits = network.network(torch.cat([images, weak, strong_view]).to(device))
        ours, weakly, strongly = logits.split([labelled, unlabelled, unlabelled])
        confidence, guess = weakly.detach().softmax(dim=1).max(dim=1)
        supervised = F.cross_entropy(ours, labels.to(device))
        unsupervised = (F.cross_entropy(strongly, guess, reduction="none") * (confidence >= 0.95)).mean()
        loss = supervised + unsupervised
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mean, own in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
                mean.copy_(0.999 * mean + 0.001 * own)
        seen[:] = loss.item(), supervised.item(), unsupervised.item()

    return Case(
        f"FixMatch step of the default, fast, {_shown(sizes.fixmatch_fast)}",
        f"the usual form: {_leaky(sizes)}, Pillow in two workers, three values read back",
        labelled + unlabelled,
        step,
        floor,
    )


def mean_teacher(sizes: Sizes, accelerator: Accelerator) -> Case:
    """As recipes/mean_teacher.py trains it: batches, two views, losses, optimizer, teacher and average."""
    plan = mean_teacher_method.plan(_mean_teacher_settings(sizes), _context(sizes.mean_teacher, accelerator), 0)
    classifier, step, (first, second) = plan.network, _training(plan), _views(plan)
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
    labelled, unlabelled = sizes.mixmatch
    settings = mixmatch_method.Settings(
        network=_leaky(sizes), labelled_batch=labelled, unlabelled_batch=unlabelled, epochs=FOREVER
    )
    plan = mixmatch_method.plan(settings, _context(sizes.mixmatch, accelerator), 0)
    classifier, step, batch = plan.network, _training(plan), next(plan.stream.from_step(0))

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
    settings, context = _mean_teacher_settings(sizes), _context(sizes.mean_teacher, accelerator)
    made = networks(settings, context, 0, heads=2)
    base = mean_teacher_method.plan(settings, context, 0, classifier=made.watched)
    plan = with_samosa(base, made, SamosaSettings(cycles=1, start=0, stop=inf), 0)
    autoencoder, step, (first, second) = made.autoencoder, _training(plan), _views(plan)
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


def fast_network(sizes: Sizes, accelerator: Accelerator) -> Case:
    """The default above 16 pixels, in bfloat16, against FixMatch's and the thesis's network in single precision."""
    context, device = _context((sizes.network, 0), accelerator), accelerator.device
    fast, wide = (context.classifier(name) for name in ("fast", _leaky(sizes)))
    images = _pixels(sizes.network).to(device).float() / 255

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = fast(images)
        _backward(fast, logits.float())

    return Case(
        f"fast in bfloat16, forward and backward of {sizes.network} images",
        f"{_leaky(sizes)} in float32",
        sizes.network,
        step,
        lambda: _backward(wide, wide(images)),
    )


def averaging(sizes: Sizes, accelerator: Accelerator) -> Case:
    """The exponential moving average, against the whole training step that it is a part of."""
    step, _, classifier = _fixmatch_step(sizes, sizes.fixmatch_hybrids, accelerator)
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


def automatic_augmentation(sizes: Sizes, accelerator: Accelerator) -> Case:
    """From 8-bit images to float; torchvision's, on Pillow's images, are at hand as such and stay such."""
    torch.set_num_threads(1)
    pixels = _pixels(sizes.strong).to(accelerator.device)
    generator = torch.Generator(accelerator.device).manual_seed(0)
    pictures = [Image.fromarray(image.permute(1, 2, 0).cpu().numpy()) for image in pixels]
    theirs = AutoAugment(AutoAugmentPolicy.CIFAR10)
    return Case(
        f"AutoAugment, {sizes.strong} images, one CPU thread",
        "torchvision's",
        sizes.strong,
        lambda: autoaugment(pixels.float().div_(255), generator, policy="cifar10"),
        lambda: [theirs(picture) for picture in pictures],
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
    settings = TrainingSettings(network="cifar-resnet18", width=sizes.resnet_width, batch=sizes.mixing, epochs=FOREVER)
    context = _context((2 * sizes.mixing, 0), accelerator)
    mixed, plain = (
        _training(plan)
        for plan in (
            recursivemix_method.plan(recursivemix_method.Settings(), settings, context, 0),
            mixing_method.plan("none", settings, context, 0),
        )
    )
    return Case(
        f"RecursiveMix step, ResNet-18 of width {sizes.resnet_width:g}, {sizes.mixing} images",
        "the step without mixing",
        sizes.mixing,
        mixed,
        plain,
    )


def _mixmo_plans(sizes: Sizes, accelerator: Accelerator) -> tuple[Plan, Plan]:
    """Cut-MixMo with two inputs, whose every step mixes by patches, and the plain network."""
    settings = TrainingSettings(network=_wide(sizes), batch=sizes.mixing, epochs=FOREVER)
    of = mixmo_method.Settings(patch_probability=1.0, repetitions=1)
    context, measure = _context((2 * sizes.mixing, 0), accelerator), judged_by(of.ensemble)
    mixed, plain = (
        mixmo_method.plan(mixmo_method.variant(name, of), settings, context, 0, measure=measure)
        for name in ("cut-mixmo", "plain")
    )
    return mixed, plain


def mixmo(sizes: Sizes, accelerator: Accelerator) -> Case:
    """Cut-MixMo's training step against the step of the plain network."""
    mixed, plain = map(_training, _mixmo_plans(sizes, accelerator))
    return Case(
        f"Cut-MixMo step, 2 inputs, {_wide(sizes)}, {sizes.mixing} images",
        "the plain network's step",
        sizes.mixing,
        mixed,
        plain,
    )


def mixmo_inference(sizes: Sizes, accelerator: Accelerator) -> Case:
    """The ensemble's logits, in one forward, against the plain network's."""
    mixed, plain = (plan.network.eval() for plan in _mixmo_plans(sizes, accelerator))
    images, _ = _mixing_batch(sizes, accelerator)
    return Case(
        f"MixMo's logits, 2 inputs, {_wide(sizes)}, {sizes.mixing} images",
        "the plain network's",
        sizes.mixing,
        torch.no_grad(lambda: mixed(images)),
        torch.no_grad(lambda: plain(images)),
    )


def mixmo_masks(patches: Patches, sizes: Sizes, accelerator: Accelerator) -> Case:
    """Partners, shares and masks of a batch of MixMo's, against the plain network's step."""
    _, plain = _mixmo_plans(sizes, accelerator)
    draw = partial(mix_inputs, sizes.mixing, (SIZE, SIZE), inputs=2, alpha=2.0, device=accelerator.device)
    return Case(
        f"MixMo's {patches} masks, 2 inputs, {sizes.mixing} images",
        f"the plain network's step, {_wide(sizes)}",
        sizes.mixing,
        lambda: draw(patches=patches),
        _training(plain),
    )


def mixshare(sizes: Sizes, accelerator: Accelerator) -> Case:
    """MixShare's training step at the beginning, when all of the last map is unmixed, against the plain network's."""
    settings = TrainingSettings(network=_wide(sizes), batch=sizes.mixing, epochs=FOREVER)
    context, of = _context((2 * sizes.mixing, 0), accelerator), mixshare_method.Settings()
    shared, plain = (
        _training(mixshare_method.compared(name, of, settings, context, 0, measure=judged_by(of.ensemble)))
        for name in ("mixshare", "plain")
    )
    return Case(
        f"MixShare step, 2 inputs, {_wide(sizes)}, {sizes.mixing} images",
        "the plain network's step",
        sizes.mixing,
        shared,
        plain,
    )


def _mixvit_plans(sizes: Sizes, accelerator: Accelerator) -> tuple[Plan, Plan]:
    """MixViT-embedding with two inputs and the transformer of one."""
    settings = TrainingSettings(network=_convit(sizes), batch=sizes.convit[3], optimizer="adamw", epochs=FOREVER)
    context, of = _context((2 * sizes.convit[3], 0), accelerator), mixvit_method.Settings()
    mixed, plain = (
        mixvit_method.plan(mixvit_method.variant(name, of), settings, context, 0, measure=judged_by(of.ensemble))
        for name in ("mixvit-embedding", "single")
    )
    return mixed, plain


def mixvit(sizes: Sizes, accelerator: Accelerator) -> Case:
    """MixViT's training step against the step of the same transformer with one input."""
    mixed, plain = map(_training, _mixvit_plans(sizes, accelerator))
    return Case(
        f"MixViT-embedding step, 2 inputs, {_convit(sizes)}, {sizes.convit[3]} images",
        "the step of one input",
        sizes.convit[3],
        mixed,
        plain,
    )


def mixvit_inference(sizes: Sizes, accelerator: Accelerator) -> Case:
    """Separate inference, the feature blocks once, against the transformer of one input."""
    mixed, plain = (plan.network.eval() for plan in _mixvit_plans(sizes, accelerator))
    images = torch.rand(sizes.convit[3], 3, SIZE, SIZE, device=accelerator.device)
    return Case(
        f"MixViT's logits, 2 inputs, separate inference, {_convit(sizes)}, {len(images)} images",
        "those of one input",
        len(images),
        torch.no_grad(lambda: mixed(images)),
        torch.no_grad(lambda: plain(images)),
    )


def gated_attention(sizes: Sizes, accelerator: Accelerator) -> Case:
    """Gated positional self-attention, contents fused, and its gradients, against timm's."""
    from timm.models.convit import GPSA

    from hybridgen.networks.vision_transformers import GatedAttention

    dim, heads, _, count = sizes.convit
    ours = GatedAttention(dim, heads, 64).to(accelerator.device)
    theirs = GPSA(dim, heads).to(accelerator.device)
    theirs.load_state_dict(ours.state_dict())
    tokens = torch.rand(count, 64, dim, device=accelerator.device)
    return Case(
        f"gated positional self-attention and back, dimension {dim}, {heads} heads, {count} images of 64 tokens",
        "timm's",
        count,
        lambda: _backward(ours, ours(tokens)),
        lambda: _backward(theirs, theirs(tokens)),
    )


def score(sizes: Sizes, accelerator: Accelerator) -> Case:
    """Logits, and all figures that `hybridgen score` prints of them with their intervals."""
    context = _context((4 * sizes.network, 0), accelerator)
    network = context.classifier(_wide(sizes)).requires_grad_(False).eval()
    part = context.dataset.train
    indices = range(len(part))
    images = part.images.gather(torch.arange(len(part))).to(accelerator.device).float() / 255

    def step() -> None:
        members, labels = logits_of(lambda batch: network(batch)[None], part, indices, accelerator)
        scores_of(Predictions("network", members, labels), seed=0)

    return Case(
        f"scores of {_wide(sizes)} with their intervals, {len(part)} images",
        "bare forward",
        len(part),
        step,
        torch.no_grad(lambda: network(images)),
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
    "stage-1-fast": Entry(stage_1_fast, 0.85, 5),
    "hybridization": Entry(hybridization, 1.1, 9),
    "fixmatch": Entry(fixmatch, 1.25, 3),
    "fixmatch-fast": Entry(fixmatch_fast, 1 / 8, 5),
    "fixmatch-hybrids": Entry(fixmatch_hybrids, 1.25, 3),
    "mean-teacher": Entry(mean_teacher, 1.25, 5),
    "mixmatch": Entry(mixmatch, 1.25, 5),
    "samosa": Entry(samosa, 1.25, 5),
    "fast-network": Entry(fast_network, 1 / 8, 5),
    "ema": Entry(averaging, 0.03, 5),
    "strong-augmentation": Entry(strong_augmentation, 1 / 4, 31),
    "autoaugment": Entry(automatic_augmentation, 1 / 4, 31),
    # Reusing memory is three times as fast for the grouped form, which has a kernel for every sample to allocate: the
    # goal is for the form as plain PyTorch runs it, and both are shown.
    "modulated-convolution": Entry(modulated_convolution, 1 / 10, 9, keep_memory=False, settled=True),
    "modulated-convolution-kept": Entry(modulated_convolution, None, 9, settled=True),
    "cutmix": Entry(cutmix_beside_torchvision, 1.5, 101),
    "cutmix-elementwise": Entry(cutmix_beside_timm, 1 / 5, 31),
    **{f"mask-{name}": Entry(partial(mixing, name), None, 101) for name in METHODS},
    "recursivemix": Entry(recursivemix, 1.03, 15),
    "mixmo": Entry(mixmo, 1.05, 9),
    "mixmo-inference": Entry(mixmo_inference, 1.02, 15),
    **{f"mixmo-{name}": Entry(partial(mixmo_masks, name), 0.01, 5) for name in get_args(Patches)},
    "mixshare": Entry(mixshare, 1.08, 9),
    "mixvit": Entry(mixvit, 1.05, 9),
    "mixvit-inference": Entry(mixvit_inference, 1.15, 15),
    "gated-attention": Entry(gated_attention, 1.0, 31),
    "score": Entry(score, 1.05, 5),
}


# --- What the cases are made of -----------------------------------------------------------------------------


def _pixels(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8)


def _context(batch: tuple[int, int], accelerator: Accelerator) -> Context:
    """Random 8-bit images in memory: eight batches of unlabelled ones, or all labelled where there are none."""
    labelled, unlabelled = batch
    return noise(CLASSES, SIZE, 8 * unlabelled or labelled, accelerator, labelled=labelled)


def _training(plan: Plan) -> Callable[[], None]:
    """A step of a plan, at a small rate."""
    tasks = {}
    for name, task in plan.tasks.items():
        objective, optimizer = plan.context.accelerator.prepare(task.objective, task.optimizer)
        tasks[name] = replace(task, objective=objective, optimizer=optimizer, rate=lambda clock: RATE)
    steps = fit(tasks, plan.stream.from_step(0), plan.clock, plan.context.accelerator, seed=0)

    def step() -> None:
        next(steps)
        if plan.average is not None:
            plan.average.update(plan.network)
        plan.after_step(Path())

    return step


def _views(plan: Plan) -> Iterator[torch.Tensor]:
    """Both views of the images of a step."""
    batch = next(plan.stream.from_step(0))
    return (torch.cat([batch.labelled[view], batch.unlabelled[view]]) for view in (0, 1))


def _wide(sizes: Sizes) -> str:
    return f"wrn-{sizes.depth}-{sizes.width}"


def _convit(sizes: Sizes) -> str:
    dim, heads, depth, _ = sizes.convit
    return f"convit-{dim}-{heads}-{depth}"


def _leaky(sizes: Sizes) -> str:
    return f"leaky-wrn-{sizes.depth}-{sizes.width}"


def _mean_teacher_settings(sizes: Sizes) -> mean_teacher_method.Settings:
    labelled, unlabelled = sizes.mean_teacher
    return mean_teacher_method.Settings(
        network=_leaky(sizes), labelled_batch=labelled, unlabelled_batch=unlabelled, epochs=FOREVER
    )


def _autoencoder(sizes: Sizes) -> SemanticAutoencoder:
    architecture = Architecture(
        image_size=SIZE,
        classes=CLASSES,
        network=_leaky(sizes),
        generator_channels=sizes.generator_channels,
        **STATISTICS,
    )
    return SemanticAutoencoder(architecture)


def _hybridizer(sizes: Sizes, accelerator: Accelerator) -> Hybridizer:
    origin = Origin("random", "random", "random", tuple(map(str, range(CLASSES))))
    return Hybridizer(_autoencoder(sizes), origin).to(accelerator.device)


def _fixmatch_step(
    sizes: Sizes,
    batch: tuple[int, int],
    accelerator: Accelerator,
    hybrids: tuple[Hybridizer, HybridSettings] | None = None,
) -> tuple[Callable[[], None], torch.Tensor, nn.Module]:
    """The step, images like those that its classifier sees in it, and the classifier."""
    labelled, unlabelled = batch
    settings = fixmatch_method.Settings(
        network=_leaky(sizes), momentum=0.001, labelled_batch=labelled, unlabelled_batch=unlabelled, epochs=FOREVER
    )
    plan = fixmatch_method.plan(settings, _context(batch, accelerator), 0)
    if hybrids is not None:
        plan = with_hybrids(plan, *hybrids)
    first = next(plan.stream.from_step(0))
    return _training(plan), torch.cat([*first.labelled, *first.unlabelled]), plan.network


def _backward(network: nn.Module, *outputs: torch.Tensor) -> None:
    """Gradients of all the outputs' sum, afresh."""
    network.zero_grad(set_to_none=True)
    torch.stack([output.sum() for output in outputs]).sum().backward()


def _shown(batch: tuple[int, int]) -> str:
    return f"{batch[0]} labelled and {batch[1]} unlabelled images"
