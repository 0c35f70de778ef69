"""MixShare (thesis 3.4): MixMo whose subnetworks share features. Encoders begin alike, and each classifier sees of the
last feature map what its own input's mask leaves, at first."""

from collections.abc import Mapping
from dataclasses import replace
from math import inf
from typing import Any, Literal

import torch
from torch import nn

from hybridgen.losses.classification import smoothed
from hybridgen.methods import mixmo
from hybridgen.methods.labelled import TrainingSettings
from hybridgen.methods.mixmo import Classifiers, answer_losses, asked, inputs_of, of_asked, others_of, several_inputs
from hybridgen.mixing.inputs import Patches, loss_weights, mix_inputs
from hybridgen.mixing.mixing import as_targets
from hybridgen.networks.multi_input import Kernels, MultiInputClassifier
from hybridgen.settings import Positive, Share, merged, settings
from hybridgen.training.context import Context
from hybridgen.training.objective import Outcome
from hybridgen.training.plan import Plan
from hybridgen.training.schedules import Clock
from hybridgen.training.scores import Measure
from hybridgen.types import Batch, Images, InputError, Labels, single


@settings
class Settings(mixmo.Settings):
    """How images are mixed inside the network, how its encoders begin, and what each answer is drawn from."""

    patch_probability: Share = 1.0
    """p, of a step that mixes by patches and not linearly, to the end: unmixing needs patches (A.6.1)."""
    root = 1.0
    input_repetition = 0.1
    kernels: Kernels = "equal"
    """How the inputs' first convolutions begin: with equal kernels, with collinear ones, which is enough (A.6.2), or
    apart, as they are drawn."""
    unmixing: Literal["fade-out", "partial", "whole"] = "fade-out"
    """Of the last map, which each classifier sees under its input's mask M: all channels under M + r (1 - M) with an r
    that grows to 1, a part of the channels under M, or all of them to the end (3.4.2)."""
    fade: Positive = 100.0
    """Epochs after which nothing is unmixed any more: r = min(1, epoch / fade), of fade-out unmixing."""
    part: Share = 0.25
    """Part of the channels, the first ones, of partial unmixing."""


TITLES = {
    "plain": "Plain network",
    "cut-mixmo": "Cut-MixMo",
    "unmixing": "Unmixing",
    "unmixing-aligned": "Unmixing, kernels aligned",
    "mixshare-partial": "MixShare, partial",
    "mixshare": "MixShare, fade-out",
}
"""By the names that command lines give them: the plain network, and the rows of table 3.6."""


def variant(name: str, of: Settings) -> mixmo.Settings:
    """These settings as the method of this name in `TITLES` has them. The plain network and Cut-MixMo have MixMo's own,
    but for the number of inputs, masks, distribution of shares, repetitions, ensemble, AugMix and CutMix. Unmixing is
    that of the whole map to the end, with kernels as they are drawn or aligned. InputError for another name."""
    match name:
        case "plain" | "cut-mixmo":
            alike = ("inputs", "mask", "alpha", "repetitions", "ensemble", "augmix", "cutmix")
            return mixmo.variant(name, mixmo.Settings(**{field: getattr(of, field) for field in alike}))
        case "unmixing":
            return replace(of, unmixing="whole", kernels="apart")
        case "unmixing-aligned":
            return replace(of, unmixing="whole")
        case "mixshare-partial":
            return replace(of, unmixing="partial")
        case "mixshare":
            return replace(of, unmixing="fade-out")
    raise InputError(f"methods: {name!r} is unknown; there are {', '.join(TITLES)}")


def faded(clock: Clock, fade: float) -> float:
    """r of fade-out unmixing (3.4.2.3): from 0 at the beginning to 1 after `fade` epochs, within an epoch too."""
    return min(1.0, clock.epoch / fade)


class MixShare(nn.Module):
    """Loss `supervised` of algorithm A.7: MixMo's, but that every answer is drawn from the last map under the mask of
    the input that it is for, before pooling.

    Masks M are the inputs' shares at each place, brought to the size of the last map by the mean over the area, and
    fade out to M + r (1 - M), r = epoch / `fade`; infinity keeps them to the end. Of the channels the first `part` is
    unmixed. Nothing is divided by a mask's area, so that the masks of all inputs together leave the whole map.

    All else is as in `MixMo`, but that the chance of patches stays the same to the end. The rates are each input's mean
    share, `share_0`, …, whether the step has `patches`, and what is left of `unmixing`, 1 - r. InputError for a share
    outside [0, 1], a root or a number of epochs that is not above 0, and for one classifier for all inputs.
    """

    def __init__(
        self,
        classifier: MultiInputClassifier,
        classes: int,
        *,
        mask: Patches,
        patch_probability: float,
        alpha: float,
        root: float,
        input_repetition: float,
        classifiers: Classifiers,
        part: float,
        fade: float,
        cutmix: float,
        labels: Labels,
        smoothing: float,
    ) -> None:
        super().__init__()
        shares = {"patch_probability": patch_probability, "part": part, "cutmix": cutmix, "smoothing": smoothing}
        for field, share in shares.items():
            if not 0 <= share <= 1:
                raise InputError(f"{field}: {share} is outside [0, 1]")
        if not fade > 0:
            raise InputError(f"fade: {fade} epochs are not above 0")
        if classifiers == "one":
            raise InputError("classifiers: one answers for all inputs at once; unmixing needs one for each")
        loss_weights(torch.ones(1, 1), root)  # InputError for root
        self.classifier, self.classes, self.mask, self.alpha, self.root = classifier, classes, mask, alpha, root
        self.patch_probability, self.input_repetition, self.smoothing = patch_probability, input_repetition, smoothing
        self.classifiers, self.part, self.fade, self.cutmix = classifiers, part, fade, cutmix
        self.register_buffer("labels", labels, persistent=False)

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        (images,) = batch.labelled
        targets = smoothed(as_targets(batch.labels, self.classes), self.smoothing)

        # Kind and role of the step, and for each image its partners, shares and mask
        patched = self.classifier.inputs > 1 and torch.rand((), device="cpu").item() < self.patch_probability
        mixing = mix_inputs(
            len(images),
            self.classifier.encoded_size(images),
            inputs=self.classifier.inputs,
            patches=self.mask if patched else None,
            alpha=self.alpha,
            repeated=self.input_repetition,
            device=images.device,
        )
        asked_for = asked(self.classifiers, mixing.ratios)

        # One forward, each answer from its own input's part of the last map
        others = others_of(batch, self.labels, self.classes, self.smoothing) if self.cutmix else None
        shown, wanted = inputs_of(images, targets, mixing, others, self.cutmix)
        r = faded(clock, self.fade)
        assert asked_for is not None  # one classifier for all inputs is refused
        masks = of_asked(mixing.masks + r * (1 - mixing.masks), asked_for) if r < 1 else None
        logits = single(self.classifier.decode(mixing.mix(self.classifier.encode(shown)), masks, part=self.part))

        # Losses
        losses = answer_losses(logits, wanted.to(logits.dtype), mixing.ratios, asked_for, self.root)
        rates = {f"share_{place}": share.mean() for place, share in enumerate(mixing.ratios)}
        rates |= {"patches": logits.new_full((), float(patched)), "unmixing": logits.new_full((), 1 - r)}
        return Outcome({"supervised": losses.mean(dim=1).sum()}, rates)


def plan(of: Settings, training: TrainingSettings, context: Context, seed: int, *, measure: Measure) -> Plan:
    """Training of MixShare on this split from this seed, judged by `measure`, whose `accuracy` selects.

    For inference the encodings are summed (A.6.1) and nothing is unmixed, since every place is all inputs': one
    forward, which the plain network that is left computes too, exactly, as MixMo's does. An ensemble of probabilities
    leaves none. InputError for more inputs than images in a batch, for one classifier for all inputs, for source
    attribution, and for a last map of fewer than two places a side, where masks vanish.
    """

    if of.attribution != "none":
        raise InputError(f"method.attribution: {of.attribution}; MixShare's answers are told apart by unmixing, none")

    def objective(classifier: MultiInputClassifier, image: Images) -> nn.Module:
        made = MixShare(
            classifier,
            len(context.dataset.classes),
            mask=of.mask,
            patch_probability=of.patch_probability,
            alpha=of.alpha,
            root=of.root,
            input_repetition=of.input_repetition,
            classifiers=of.classifiers,
            part=of.part if of.unmixing == "partial" else 1.0,
            fade=of.fade if of.unmixing == "fade-out" else inf,
            cutmix=of.cutmix,
            labels=context.dataset.train.labels,
            smoothing=training.label_smoothing,
        )
        height, width = classifier.map_size(image)
        if of.inputs > 1 and min(height, width) < 2:
            raise InputError(
                f"network: its last map has {height}×{width} places; on fewer than 2 a side masks vanish, and nothing "
                "can be unmixed"
            )
        classifier.align(of.kernels)
        return made

    return several_inputs(of, training, context, seed, objective=objective, measure=measure)


def compared(
    name: str, of: Settings, training: TrainingSettings, context: Context, seed: int, *, measure: Measure
) -> Plan:
    """The plan of the method of this name in `TITLES`, as `variant` has it."""
    own = variant(name, of)
    if isinstance(own, Settings):
        return plan(own, training, context, seed, measure=measure)
    return mixmo.plan(own, training, context, seed, measure=measure)


PAPER: dict[str, Any] = dict(
    data="cifar100", precision="fp32", validation=0, record_every=100, evaluate_every=3125, save_every=3125,
    training=dict(
        epochs=300, batch=64, rate=0.05, warmup=1, decay_at=(75, 150, 225), weight_decay=6e-4, nesterov=True,
        padding="zeros",
    ),
    method=dict(
        inputs=2, mask="cutmix", patch_probability=1.0, alpha=2.0, root=1.0, repetitions=2, input_repetition=0.1,
        ensemble="logits", encoders="each", classifiers="own", attribution="none", kernels="equal",
        unmixing="fade-out", fade=100.0,
        part=0.25, augmix=False, cutmix=0.0,
    ),
)  # fmt: skip
"""Thesis A.1.4, which has MixMo's settings but for b = 2 and the epochs at which the rate falls, and A.6.1: losses are
weighted by the shares themselves, r = 1, where algorithm A.7 leaves r open."""

PRESETS: dict[str, Mapping[str, Any]] = {
    "smoke": dict(precision="fp32", evaluate_every=20, training=dict(epochs=1.5), method=dict(fade=0.5)),
    **{f"paper-cifar100-w{width}": merged(PAPER, dict(training=dict(network=f"wrn-28-{width}"))) for width in (2, 5)},
}
"""Table 3.6 has WRN-28-2 and WRN-28-5."""
