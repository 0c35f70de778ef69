"""MIMO (Havasi et al. 2021) and MixMo (Ramé et al. 2021; thesis 3.3): several images go into one network at once, which
answers for each of them; asked about one image, it is an ensemble."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import floor, inf, nan
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from hybridgen.data.augmix import WITHOUT_CONTRAST, augmix
from hybridgen.data.datasets import Part
from hybridgen.data.streams import View
from hybridgen.losses.classification import smoothed
from hybridgen.methods.labelled import Made, TrainingSettings, central, chosen_network, labelled_plan
from hybridgen.mixing.inputs import InputMixing, Patches, Shares, cut_others_in, loss_weights, mix_inputs
from hybridgen.mixing.mixing import Targets, as_targets
from hybridgen.networks.members import Ensemble, MemberLogits, ensembled
from hybridgen.networks.multi_input import Attribution, MultiInputClassifier
from hybridgen.networks.registry import make_network
from hybridgen.settings import NUMBER, Few, Share, merged, settings
from hybridgen.training.context import Context
from hybridgen.training.objective import Outcome
from hybridgen.training.plan import Plan, Score
from hybridgen.training.schedules import Clock
from hybridgen.training.scores import Measure, Scored, known, logits_of
from hybridgen.types import Batch, Images, InputError, Labels, single

Endless = Annotated[float, Field(gt=0, allow_inf_nan=True), NUMBER]
"""Above 0, infinity included."""

Classifiers = Literal["own", "random", "predominant", "one"]
"""What last layers answer for (table 3.4)."""

Asked = Int64[Tensor, "members batch"]
"""Of which input each last layer is asked the class, in each image."""


@settings
class Settings:
    """How images are mixed inside the network, and what it answers."""

    inputs: Annotated[int, Field(ge=1, le=16), NUMBER] = 2
    """M, images at once and answers; 1 is the plain network."""
    mask: Patches = "cutmix"
    """What patches look like (table 3.3)."""
    patch_probability: Share = 0.5
    """p, of a step that mixes by patches and not linearly; over the last twelfth of the epochs it falls to 0."""
    alpha: Endless = 2.0
    """α, of the Dirichlet distribution of the images' shares κ; inf: all have the same, as in MIMO (A.5.7)."""
    root: Endless = 3.0
    """r, of the weights κ^(1/r) of the losses; 1: κ itself, inf: all the same (equation 3.3)."""
    repetitions: Few = 1
    """b, how often each image is in a batch, which has a b-th as many images, at a b-th of the rate, b times the
    steps (batch repetition; the thesis has 2 and 4)."""
    input_repetition: Share = 0.0
    """Part of the images that are shown at all inputs at once, as one is for an answer (MIMO)."""
    ensemble: Ensemble = "logits"
    """What of the members is averaged: logits, as the authors' code has it, which leaves a plain network; or
    probabilities, which none computes: no network.safetensors is left."""
    encoders: Literal["each", "one"] = "each"
    """Whether each input has a first convolution, or all have one (table 3.4)."""
    classifiers: Classifiers = "own"
    """What each of M last layers answers for: its own input; an input drawn at random, in each image anew (⊖); the
    first one for the input of the largest share, the next one for the next (⊗). Or one alone, for the labels mixed by
    their shares, which no root weights (table 3.4)."""
    attribution: Attribution = "none"
    """MixViT's source attribution behind the last map (thesis 4.3.3.1, 5.2), which then tells the inputs apart in place
    of their first convolutions: the places of each input get a vector of its own (embedding), or what a 1×1
    convolution of its own makes of them (encoding). Needs --method.encoders one and --method.classifiers own. Of an
    averaged map and linear answers a vector tells no more than the shares."""
    augmix: bool = False
    """Whether every image is AugMix's mixture of itself and three chains of four operations, none of which overlaps
    with the corruptions that robustness is measured by (A.1.3.1)."""
    cutmix: Share = 0.0
    """Chance of every image at every input to have a box of another of the training images in it, or to be a box in
    the other, whichever shows more of it (CutMix on the inputs, A.1.3.1). Targets are mixed by what is visible of
    both."""


TITLES = {
    "plain": "Plain network",
    "mimo": "MIMO",
    "linear-mixmo": "Linear-MixMo",
    "cut-mixmo": "Cut-MixMo",
}
"""By the names that command lines give them."""


def variant(name: str, of: Settings) -> Settings:
    """These settings as the method of this name in `TITLES` has them: the plain network sees every image once, MIMO
    sums encodings, Linear-MixMo mixes without patches. InputError for another name."""
    match name:
        case "plain":
            return replace(of, inputs=1, repetitions=1, attribution="none")
        case "mimo":
            return replace(of, alpha=inf, patch_probability=0.0)
        case "linear-mixmo":
            return replace(of, patch_probability=0.0)
        case "cut-mixmo":
            return of
    raise InputError(f"methods: {name!r} is unknown; there are {', '.join(TITLES)}")


def patch_probability(clock: Clock, probability: float) -> float:
    """p_e of algorithm A.6: the whole `probability`, and from 11/12 of the epochs on less with each, down to 0 in the
    last one. Of fewer than twelve epochs, whose last twelfth is a part of one, less with each step."""
    epochs = clock.steps / clock.steps_per_epoch
    epoch = clock.epoch if epochs < 12 else min(floor(clock.epoch) + 1, epochs)
    return probability * min(1.0, 12 * (epochs - epoch) / epochs)


def asked(classifiers: Classifiers, ratios: Shares) -> Asked | None:
    """Which input each last layer answers for: its own; a random one, another for each of them; or, by the inputs'
    shares, the largest first and equal ones in their order (table 3.4). None for one that answers for their mixture."""
    match classifiers:
        case "own":
            return torch.arange(len(ratios), device=ratios.device).unsqueeze(1).expand(ratios.shape)
        case "random":
            return torch.rand_like(ratios).argsort(dim=0)
        case "predominant":
            return ratios.argsort(dim=0, descending=True, stable=True)
        case "one":
            return None
    raise InputError(f"classifiers: {classifiers!r} is unknown")


def inputs_of(
    images: Images, targets: Targets, mixing: InputMixing, others: tuple[Images, Targets] | None, chance: float
) -> tuple[list[Images], Float[Tensor, "inputs batch classes"]]:
    """What each input sees of a batch, and its targets: the images of `mixing`, with this chance each mixed by CutMix
    with one of the `others` (`cut_others_in`), if there are any."""
    shown, wanted = [images, *(images[each] for each in mixing.partners[1:])], targets[mixing.partners]
    if others is None:
        return shown, wanted
    more, their_targets = others
    size = images.shape[2], images.shape[3]
    cut = [cut_others_in(mask, size, chance) for mask in mixing.masks]
    parts = torch.stack([part for _, part in cut]).to(targets.dtype).unsqueeze(2)
    theirs = torch.stack([their_targets[each.partner] for each, _ in cut])
    wanted = parts * wanted + (1 - parts) * theirs
    return [each.mix(own, more) for own, (each, _) in zip(shown, cut, strict=True)], wanted


def others_of(batch: Batch, labels: Int64[Tensor, " images"], classes: int, smoothing: float) -> tuple[Images, Targets]:
    """The second batch of training images, which travels as unlabelled ones do, and its targets, of all images'
    `labels`."""
    (images,) = batch.unlabelled
    return images, smoothed(as_targets(labels[batch.indices], classes), smoothing)


def of_asked(values: Float[Tensor, "inputs batch ..."], asked: Asked) -> Float[Tensor, "members batch ..."]:
    """For each last layer those of the input that it is asked for."""
    return values[asked, torch.arange(asked.shape[1], device=asked.device)]


def answer_losses(
    logits: MemberLogits,
    targets: Float[Tensor, "inputs batch classes"],
    ratios: Shares,
    asked: Asked | None,
    root: float,
) -> Float[Tensor, "members batch"]:
    """Cross-entropies of the answers, each weighted by w_r of the share of the input that it is for (equations 3.1 and
    A.1); without `asked` of the one answer for the targets mixed by the inputs' shares. Gradient reaches the logits."""
    if asked is None:
        wanted = (ratios.to(targets.dtype).unsqueeze(2) * targets).sum(dim=0, keepdim=True)
        weights = torch.ones_like(ratios[:1])
    else:
        wanted, weights = of_asked(targets, asked), of_asked(loss_weights(ratios, root), asked)
    each = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(0, 1), reduction="none").view(weights.shape)
    return weights * each


class MixMo(nn.Module):
    """Loss `supervised`: of every image at every input the cross-entropy of its own answer, weighted by w_r of its
    share, summed over inputs and averaged over the batch (equations 3.1 and A.1, algorithm A.6), or what `classifiers`
    asks instead (table 3.4).

    Kind of mixing and role are drawn for the step, κ and mask for each image (`mix_inputs`). The rates are each input's
    mean share, `share_0`, …, and whether the step has `patches`. `smoothing` is label smoothing's.

    Batches carry one view of labelled images, and for `cutmix` one of others, whose places in `labels`, those of all
    training images, they tell. Raises InputError for a share outside [0, 1] and a root that is not above 0; with the
    first batch for whatever `mix_inputs` refuses.
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
        cutmix: float,
        labels: Labels,
        smoothing: float,
    ) -> None:
        super().__init__()
        for field, share in (("patch_probability", patch_probability), ("cutmix", cutmix), ("smoothing", smoothing)):
            if not 0 <= share <= 1:
                raise InputError(f"{field}: {share} is outside [0, 1]")
        loss_weights(torch.ones(1, 1), root)  # InputError for root
        self.classifier, self.classes, self.mask, self.alpha, self.root = classifier, classes, mask, alpha, root
        self.patch_probability, self.input_repetition, self.smoothing = patch_probability, input_repetition, smoothing
        self.classifiers, self.cutmix = classifiers, cutmix
        self.register_buffer("labels", labels, persistent=False)

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        (images,) = batch.labelled
        targets = smoothed(as_targets(batch.labels, self.classes), self.smoothing)

        # Kind and role of the step, and for each image its partners, shares and mask
        chance = torch.rand((), device="cpu").item()
        patched = self.classifier.inputs > 1 and chance < patch_probability(clock, self.patch_probability)
        mixing = mix_inputs(
            len(images),
            self.classifier.encoded_size(images),
            inputs=self.classifier.inputs,
            patches=self.mask if patched else None,
            alpha=self.alpha,
            repeated=self.input_repetition,
            device=images.device,
        )

        # One forward, an answer of every last layer
        others = others_of(batch, self.labels, self.classes, self.smoothing) if self.cutmix else None
        shown, wanted = inputs_of(images, targets, mixing, others, self.cutmix)
        masks = None if self.classifier.attribution is None else mixing.masks
        logits = single(self.classifier.decode(mixing.mix(self.classifier.encode(shown)), masks=masks))

        # Losses
        asked_for = asked(self.classifiers, mixing.ratios)
        losses = answer_losses(logits, wanted.to(logits.dtype), mixing.ratios, asked_for, self.root)
        rates = {f"share_{place}": share.mean() for place, share in enumerate(mixing.ratios)}
        rates["patches"] = logits.new_full((), float(patched))
        return Outcome({"supervised": losses.mean(dim=1).sum()}, rates)


def network_of(of: Settings, training: TrainingSettings, context: Context) -> MultiInputClassifier:
    """A new one, of as many networks of the settings' kind as there are inputs; InputError for one that cannot be
    made."""
    name, width = chosen_network(training.network, training.width, context.dataset.image_size)
    networks = [make_network(name, len(context.dataset.classes), width=width) for _ in range(of.inputs)]
    statistics = dict(mean=context.dataset.mean, std=context.dataset.std)
    made = MultiInputClassifier(
        networks,
        **statistics,
        ensemble=of.ensemble,
        one_encoder=of.encoders == "one",
        one_head=of.classifiers == "one",
        attribution=of.attribution,
    )
    return context.laid_out(made)


def by_members(context: Context, measure: Measure, crop: int | None) -> Score:
    """What `measure` says of the members of multi-input classifiers; of no image, that the accuracy is nan."""

    def score(network: nn.Module, part: Part, indices: Sequence[int]) -> Scored:
        if not (indices := known(part, indices)):
            return Scored({"accuracy": nan})
        assert isinstance(network, MultiInputClassifier)
        of = lambda images: network.members(central(images, crop))
        members, labels = logits_of(of, part, indices, context.accelerator)
        return Scored(measure(members, labels), ensembled(members, network.ensemble))

    return score


def several_inputs(
    of: Settings,
    training: TrainingSettings,
    context: Context,
    seed: int,
    *,
    objective: Callable[[MultiInputClassifier, Images], nn.Module],
    measure: Measure,
) -> Plan:
    """Training of a new network of these settings' inputs by what `objective` makes of it and of an image of the
    training's size, which has no values. As `plan` has it."""
    share = training.batch // context.accelerator.num_processes
    if of.inputs > share:
        raise InputError(f"method.inputs: {of.inputs}, but a batch has {share} images for each process")
    if of.attribution != "none" and (of.encoders, of.classifiers) != ("one", "own"):
        raise InputError(
            f"method.attribution: {of.attribution} tells inputs apart that one encoder sees, for classifiers of their "
            "own; give --method.encoders one and --method.classifiers own"
        )

    def make(classifier: MultiInputClassifier) -> Made:
        side = training.crop or context.dataset.image_size
        image = torch.empty(1, 3, side, side, device="meta")
        made = Made(objective(classifier, image), {"supervised": 1.0})
        size, patches = classifier.encoded_size(image), of.mask if of.patch_probability else None
        mix_inputs(of.inputs, size, inputs=of.inputs, patches=patches, alpha=of.alpha, generator=torch.Generator())
        return made

    def views(view: View) -> Sequence[View]:
        mixture: View = lambda images, generator: augmix(
            view(images, generator), generator, depth=4, operations=WITHOUT_CONTRAST
        )
        return (mixture if of.augmix else view,)

    return labelled_plan(
        training,
        context,
        seed,
        make,
        views=views,
        repetitions=of.repetitions,
        others=of.cutmix > 0,
        network=lambda training, context: network_of(of, training, context),
        score=lambda context, _: by_members(context, measure, training.crop),
        deployed=lambda classifier: classifier.plain() if of.ensemble == "logits" else None,
    )


def plan(of: Settings, training: TrainingSettings, context: Context, seed: int, *, measure: Measure) -> Plan:
    """Training with several inputs on this split from this seed, judged by `measure`, whose `accuracy` selects. Leaves
    the plain network that computes the ensemble. InputError for more inputs than images in a batch."""

    def objective(classifier: MultiInputClassifier, image: Images) -> nn.Module:
        return MixMo(
            classifier,
            len(context.dataset.classes),
            mask=of.mask,
            patch_probability=of.patch_probability,
            alpha=of.alpha,
            root=of.root,
            input_repetition=of.input_repetition,
            classifiers=of.classifiers,
            cutmix=of.cutmix,
            labels=context.dataset.train.labels,
            smoothing=training.label_smoothing,
        )

    return several_inputs(of, training, context, seed, objective=objective, measure=measure)


PAPER: dict[str, Any] = dict(
    precision="fp32", validation=0, record_every=100,
    method=dict(
        inputs=2, mask="cutmix", patch_probability=0.5, alpha=2.0, root=3.0, repetitions=4, input_repetition=0.0,
        ensemble="logits", encoders="each", classifiers="own", attribution="none",
        augmix=False, cutmix=0.0,
    ),
)  # fmt: skip
"""Thesis 3.3.4.1, b = 4 of its tables."""

CIFAR: dict[str, Any] = merged(
    PAPER,
    dict(
        evaluate_every=3125, save_every=3125,
        training=dict(
            network="wrn-28-10", epochs=300, batch=64, rate=0.05, warmup=1, decay_at=(100, 200, 225),
            weight_decay=6e-4, nesterov=True, padding="zeros",
        ),
    ),
)  # fmt: skip
"""Thesis A.1.3.1: rate 0.1 / b · 64 / 128, and a penalty of 3e-4 Σ w², whose slope is a weight decay of twice that;
Nesterov's momentum is that of MIMO's code."""

TINY: dict[str, Any] = merged(
    PAPER,
    dict(
        data="folder:data/tiny-imagenet-200", image_size=64, evaluate_every=4000, save_every=4000,
        training=dict(
            network="preact-resnet18", epochs=1200, batch=100, rate=0.2, warmup=0, decay_at=(600, 900),
            weight_decay=1e-4, nesterov=True, padding="zeros", shift=4,
        ),
    ),
)  # fmt: skip
"""Thesis A.1.3.1: Puzzle-Mix's hyper-parameters, rate 0.2 / b."""

PRESETS: dict[str, Mapping[str, Any]] = {
    "smoke": dict(precision="fp32", evaluate_every=20, training=dict(epochs=1.5)),
    **{f"paper-{data}": merged(CIFAR, dict(data=data)) for data in ("cifar10", "cifar100")},
    **{f"paper-tiny-imagenet-w{width}": merged(TINY, dict(training=dict(width=float(width)))) for width in (1, 2, 3)},
}
