"""MixViT (thesis, chapter 4): a vision transformer sees patches of several images at once, which only its last blocks
tell apart; asked about one image, it is an ensemble. Beside it MIMO's and MixMo's transformers (4.3.1)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf, nan
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from hybridgen.data.datasets import Part
from hybridgen.losses.classification import smoothed
from hybridgen.methods.labelled import Made, TrainingSettings, central, chosen_network, labelled_plan
from hybridgen.methods.mixmo import Endless, patch_probability
from hybridgen.mixing.inputs import InputMixing, PatchMixing, Shares, cut_and_mixed, mix_inputs, mix_patches
from hybridgen.mixing.mixing import as_targets
from hybridgen.networks.classifiers import Classifier, several_inputs_of
from hybridgen.networks.flops import flops
from hybridgen.networks.members import Encoders, Ensemble, Inference, MemberLogits, Place, Source, ensembled
from hybridgen.networks.multi_input import MultiInputClassifier
from hybridgen.networks.registry import make_network
from hybridgen.settings import NUMBER, Share, merged, settings
from hybridgen.training.context import Context
from hybridgen.training.objective import Outcome
from hybridgen.training.plan import Plan, Score
from hybridgen.training.schedules import Clock
from hybridgen.training.scores import Measure, Scored, known, logits_of
from hybridgen.types import Batch, Images, InputError, single

if TYPE_CHECKING:
    import hybridgen.networks.multi_input_transformer

Mixed = Literal["patches", "mixmo", "sum", "all"]
"""How the inputs become tokens: by corrected CutMix, every patch of one input; as MixMo mixes encodings, by boxes of
tokens or linearly; as MIMO sums them; or not at all, all tokens of all inputs, one input after the other."""


@settings
class Settings:
    """How several images go into the transformer, and how they are told apart in it."""

    inputs: Annotated[int, Field(ge=1, le=16), NUMBER] = 2
    """M, images at once and answers; 1 with source none is the plain network."""
    source: Source = "embedding"
    """What tells tokens of different inputs apart: a vector of each (equation 4.6), a linear layer of each (4.5), or
    nothing."""
    place: Place = "late"
    """Whether that comes after the feature blocks or before them (table 4.6)."""
    mixing: Mixed = "patches"
    """How inputs are mixed: patches, each of one input; mixmo, tokens in boxes or linearly; sum, as MIMO; all, every
    token of every input (tables 4.1 and 4.6)."""
    alpha: Endless = 0.5
    """α, of the Dirichlet distribution of the images' shares λ, of patches and mixmo; inf: all have the same."""
    patch_probability: Share = 0.5
    """p, of a step of mixmo that mixes by boxes and not linearly; over the last twelfth of the epochs it falls to 0."""
    encoders: Encoders = "one"
    """Patch embeddings: one, each its own, or each its own from equal values on (table A.18)."""
    inference: Inference = "separate"
    """How one image is shown: as each input's, one after the other, in the classifier blocks alone where sources are
    told apart late; as the sum of all inputs' tokens; alternating, each token as of an input drawn at random; single,
    as the first input's; together, all inputs' tokens at once (table 4.6)."""
    msda: bool = False
    """Whether CutMix and Mixup, both at once, mix the images before they become inputs (A.1.5; MSDA in table 4.4)."""
    ensemble: Ensemble = "logits"
    """What of the members is averaged: logits, or probabilities."""


TITLES = {
    "single": "One input",
    "mixvit-embedding": "MixViT-embedding",
    "mixvit-encoding": "MixViT-encoding",
    "no-attribution": "No source attribution",
    "early-embedding": "Early source embedding",
    "early-encoding": "Early source encoding",
    "sum": "Sum inference",
    "alternating": "Alternating inference",
    "single-subnetwork": "Single subnetwork inference",
    "all-tokens": "All tokens",
    "mimo": "MIMO",
    "mixmo": "MixMo",
    "mixmo-separate": "MixMo, separate inference",
    "mixmo-equal": "MixMo, same initialization",
    "cutmix-mixmo": "CutMix-only MixMo",
}
"""By the names that command lines give them: rows of tables 4.2, 4.6, 4.1 and A.18."""


def variant(name: str, of: Settings) -> Settings:
    """These settings as the method of this name in `TITLES` has them: number of inputs, α, p, MSDA and ensemble stay,
    and of the ablations of table 4.6 the source, which MixViT-embedding and -encoding have their own of. InputError for
    another name."""
    mixvit = replace(of, place="late", mixing="patches", encoders="one", inference="separate")
    mixmo = replace(mixvit, source="none", mixing="mixmo", encoders="each")
    match name:
        case "single":
            return replace(mixvit, inputs=1, source="none")
        case "mixvit-embedding":
            return replace(mixvit, source="embedding")
        case "mixvit-encoding":
            return replace(mixvit, source="encoding")
        case "no-attribution":
            return replace(mixvit, source="none")
        case "early-embedding":
            return replace(mixvit, source="embedding", place="early")
        case "early-encoding":
            return replace(mixvit, source="encoding", place="early")
        case "sum" | "alternating":
            return replace(mixvit, inference=name)
        case "single-subnetwork":
            return replace(mixvit, inference="single")
        case "all-tokens":
            return replace(mixvit, mixing="all", inference="together")
        case "mimo":
            return replace(mixmo, mixing="sum", inference="sum")
        case "mixmo":
            return replace(mixmo, inference="sum")
        case "mixmo-separate":
            return mixmo
        case "mixmo-equal":
            return replace(mixmo, inference="sum", encoders="equal")
        case "cutmix-mixmo":
            return replace(mixmo, mixing="patches")
    raise InputError(f"methods: {name!r} is unknown; there are {', '.join(TITLES)}")


class TableRow(NamedTuple):
    """Of a table: a method by its name in `TITLES`; what is None is as the settings say."""

    method: str
    msda: bool | None = None
    views: int | None = None

    def of(self, method: Settings, training: TrainingSettings) -> tuple[Settings, TrainingSettings]:
        """These settings as the row has them."""
        own = variant(self.method, method)
        own = own if self.msda is None else replace(own, msda=self.msda)
        return own, training if self.views is None else replace(training, views=self.views)


MODELS = {"ConViT": "single", "MixViT-embedding": "mixvit-embedding", "MixViT-encoding": "mixvit-encoding"}

TABLES: dict[str, dict[str, TableRow]] = {
    "4.1": {
        "Single-input": TableRow("single"),
        "MIMO, sum": TableRow("mimo"),
        "MixMo, sum": TableRow("mixmo"),
        "MixMo, separate": TableRow("mixmo-separate"),
        "CutMix-only MixMo, separate": TableRow("cutmix-mixmo"),
    },
    "4.4": {
        f"{model}{', MSDA' * msda}{', BA' * (views > 1)}": TableRow(name, msda, views)
        for model, name in MODELS.items()
        for msda, views in ((False, 1), (True, 1), (False, 3), (True, 3))
    },
    "figure-4.4": {
        f"{model}, views {views}": TableRow(name, views=views) for views in (1, 2, 3) for model, name in MODELS.items()
    },
    "4.6": {
        "Late source embedding": TableRow("mixvit-embedding"),
        "Late source encoding": TableRow("mixvit-encoding"),
        "No source attribution": TableRow("no-attribution"),
        "Early input source embedding": TableRow("early-embedding"),
        "Early source encoding": TableRow("early-encoding"),
        "Sum inference": TableRow("sum"),
        "Alternating inference": TableRow("alternating"),
        "Single subnetwork inference": TableRow("single-subnetwork"),
        "All tokens": TableRow("all-tokens"),
    },
    "A.18": {
        "Single-input": TableRow("single"),
        "MixMo, sum": TableRow("mixmo"),
        "MixMo, separate": TableRow("mixmo-separate"),
        "MixMo, same init., sum": TableRow("mixmo-equal"),
    },
}
"""The thesis's tables, by the names of their rows: of 4.1 and A.18 with their inference; of 4.4 with three views of an
image for batch augmentation (A.1.5), one without. Table 4.6 has its first row thrice, as separate inference and as
binarized CutMix, too; here it is once. How many views figure 4.4 has is not in the text."""


def whole_probability(clock: Clock) -> float:
    """Of an image whose patches are all of one input: 0, and from 11/12 of the epochs on more with each, up to 1 in the
    last one (A.1.5), as the probability of MixMo's patches falls."""
    return 1 - patch_probability(clock, 1.0)


def answer_losses(
    logits: MemberLogits, targets: Float[Tensor, "inputs batch classes"], ratios: Shares
) -> Float[Tensor, "inputs batch"]:
    """Cross-entropy of each input's answer, weighted by the input's realised share λ (equation 4.4). Gradient reaches
    the logits."""
    each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(0, 1), reduction="none")
    return ratios.to(each.dtype) * each.view(ratios.shape)


class MixViT(nn.Module):
    """Loss `supervised`: of every image at every input the cross-entropy of its own answer, weighted by its share of
    the tokens, summed over inputs and averaged over the batch (equation 4.4, algorithm A.8).

    All draws are of each image, but whether a step of MixMo's mixing is linear. The rates are each input's mean share,
    `share_0`, …, and the part of images that are `whole` one input's. `smoothing` is label smoothing's.

    Batches carry one view of labelled images. InputError for a share outside [0, 1]; with the first batch for whatever
    `mix_patches` and `mix_inputs` refuse.
    """

    def __init__(
        self,
        classifier: Classifier,
        classes: int,
        *,
        mixing: Mixed,
        alpha: float,
        patch_probability: float,
        msda: bool,
        smoothing: float,
    ) -> None:
        super().__init__()
        for field, share in (("patch_probability", patch_probability), ("smoothing", smoothing)):
            if not 0 <= share <= 1:
                raise InputError(f"{field}: {share} is outside [0, 1]")
        self.classifier, self.classes, self.mixing, self.alpha = classifier, classes, mixing, alpha
        self.patch_probability, self.msda, self.smoothing = patch_probability, msda, smoothing

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        (images,) = batch.labelled
        targets = smoothed(as_targets(batch.labels, self.classes), self.smoothing).to(images.dtype)
        size, device = (images.shape[2], images.shape[3]), images.device
        if self.msda:
            mixed = cut_and_mixed(len(images), size, device=device)
            images, targets = mixed.mix(images), mixed.mix_targets(targets)

        # Who sees what together, and one forward, an answer of every last layer
        mixing = self.draw(len(images), size, clock, device)
        shown = [images, *(images[each] for each in mixing.partners[1:])]
        logits = single(self.classifier.run(mixed_logits, shown, mixing, self.mixing == "all"))

        # Losses
        ratios = mixing.ratios
        losses = answer_losses(logits, targets[mixing.partners].to(logits.dtype), ratios)
        rates = {f"share_{place}": share.mean() for place, share in enumerate(ratios)}
        rates["whole"] = (ratios == 1).any(dim=0).float().mean()
        return Outcome({"supervised": losses.sum(dim=0).mean()}, rates)

    def draw(self, count: int, size: tuple[int, int], clock: Clock, device: torch.device) -> PatchMixing | InputMixing:
        """How this step's inputs are mixed; of all tokens, who sees what together."""
        network = transformer_of(self.classifier)
        grid, inputs = network.grid, network.inputs
        match self.mixing:
            case "patches":
                whole = whole_probability(clock)
                return mix_patches(
                    count, size, patch=network.patch, inputs=inputs, alpha=self.alpha, whole=whole, device=device
                )
            case "mixmo":
                chance = torch.rand((), device="cpu").item()
                patched = inputs > 1 and chance < patch_probability(clock, self.patch_probability)
                patches = "cutmix" if patched else None
                return mix_inputs(count, grid, inputs=inputs, alpha=self.alpha, patches=patches, device=device)
            case "sum" | "all":
                return mix_inputs(count, grid, inputs=inputs, alpha=inf, patches=None, device=device)
        raise InputError(f"mixing: {self.mixing!r} is unknown")


def transformer_of(
    classifier: Classifier | MultiInputClassifier,
) -> "hybridgen.networks.multi_input_transformer.MultiInputTransformer":
    """The classifier's network. InputError for another."""
    from hybridgen.networks.multi_input_transformer import MultiInputTransformer  # with timm, which takes its time

    if isinstance(classifier, Classifier) and isinstance(classifier.network, MultiInputTransformer):
        return classifier.network
    raise InputError("network: no transformer of several inputs; runs of recipes/mixvit.py have one")


def mixed_logits(
    classifier: Classifier, inputs: list[Images], mixing: PatchMixing | InputMixing, every: bool
) -> MemberLogits:
    """Of images mixed by their patches, or else by their tokens; with `every` token of every input, one input after
    the other."""
    network, count = transformer_of(classifier), len(inputs)
    places = network.grid[0] * network.grid[1]
    if every:
        tokens = torch.cat(network.encode([classifier.normalize(images) for images in inputs]), dim=1)
        shares = torch.eye(count, device=tokens.device).repeat_interleave(places, dim=1).unsqueeze(1)
        return network.decode(count * tokens if len(network.encoders) > 1 else tokens, shares)
    shares = mixing.masks.expand(-1, -1, -1, *network.grid).flatten(2)
    if isinstance(mixing, PatchMixing) and len(network.encoders) == 1:
        return network.decode(network.encode_mixed(classifier.normalize(mixing.mix(inputs))), shares)
    tokens = mixing.mix(network.encode([classifier.normalize(images) for images in inputs]))
    return network.decode(count * tokens if isinstance(mixing, PatchMixing) else tokens, shares)


OPTIONS = ("inputs", "source", "place", "encoders", "inference", "ensemble")
"""Settings that the network is made with."""


def network_of(of: Settings, training: TrainingSettings, context: Context) -> Classifier:
    """A new transformer of the settings' kind with their inputs; InputError for one that cannot be made."""
    dataset = context.dataset
    name, width = chosen_network(training.network, training.width, dataset.image_size)
    plain = make_network(name, len(dataset.classes), width=width, image_size=training.crop or dataset.image_size)
    network = several_inputs_of(plain, {field: getattr(of, field) for field in OPTIONS})
    return context.laid_out(Classifier(network, mean=dataset.mean, std=dataset.std))


def by_members(context: Context, measure: Measure, crop: int | None) -> Score:
    """What `measure` says of the transformer's members, and the floating-point operations of an image's inference,
    `mflops`, in millions; of no image, that the accuracy is nan."""

    def score(classifier: nn.Module, part: Part, indices: Sequence[int]) -> Scored:
        if not (indices := known(part, indices)):
            return Scored({"accuracy": nan})
        assert isinstance(classifier, Classifier)
        of = lambda images: classifier.members(central(images, crop))
        members, labels = logits_of(of, part, indices, context.accelerator)
        cost = {"mflops": flops(classifier, crop or context.dataset.image_size) / 1e6}
        return Scored(measure(members, labels) | cost, ensembled(members, transformer_of(classifier).ensemble))

    return score


def plan(of: Settings, training: TrainingSettings, context: Context, seed: int, *, measure: Measure) -> Plan:
    """Training with several inputs on this split from this seed, judged by `measure`, whose `accuracy` selects. Leaves
    the network as it infers. InputError for more inputs than images in a batch, for another network than a vision
    transformer, and for images that its patches do not fit."""
    share = training.batch // context.accelerator.num_processes
    if of.inputs > share:
        raise InputError(f"method.inputs: {of.inputs}, but a batch has {share} images for each process")

    def make(classifier: Classifier) -> Made:
        objective = MixViT(
            classifier,
            len(context.dataset.classes),
            mixing=of.mixing,
            alpha=of.alpha,
            patch_probability=of.patch_probability,
            msda=of.msda,
            smoothing=training.label_smoothing,
        )
        if of.mixing == "mixmo" and of.patch_probability:  # InputError for too few patches
            mix_inputs(of.inputs, transformer_of(classifier).grid, inputs=of.inputs, patches="cutmix", alpha=of.alpha,
                       generator=torch.Generator())  # fmt: skip
        return Made(objective, {"supervised": 1.0})

    return labelled_plan(
        training,
        context,
        seed,
        make,
        network=lambda training, context: network_of(of, training, context),
        score=lambda context, _: by_members(context, measure, training.crop),
    )


PAPER: dict[str, Any] = dict(
    precision="fp32", validation=0, record_every=100,
    training=dict(
        optimizer="adamw", epochs=150, batch=128, rate=1e-3, rate_batch=128, warmup=15, decay_at=(125, 140),
        weight_decay=0.05, stochastic_depth=0.0, label_smoothing=0.1, autoaugment="cifar10", erasing=0.25, views=3,
    ),
    method=dict(
        inputs=2, source="embedding", place="late", mixing="patches", alpha=0.5, encoders="one", inference="separate",
        msda=True, ensemble="logits",
    ),
)  # fmt: skip
"""Thesis A.1.5; random erasing with DeiT's probability."""

CIFAR: dict[str, Any] = merged(
    PAPER,
    dict(evaluate_every=390, save_every=390, training=dict(network="convit-384-12-5", padding="zeros")),
)
"""Patches of 4 pixels of 32."""

TINY: dict[str, Any] = merged(
    PAPER,
    dict(
        data="folder:data/tiny-imagenet-200", image_size=64, evaluate_every=781, save_every=781,
        training=dict(weight_decay=0.1, padding="zeros", shift=4),
    ),
)  # fmt: skip
"""Patches of 8 pixels of 64; weight decay doubled."""

IMAGENET: dict[str, Any] = merged(
    PAPER,
    dict(
        data="imagenet-100:data/imagenet", image_size=224, whole=True, workers=8, evaluate_every=121, save_every=121,
        training=dict(batch=1048, rate_batch=1048, weight_decay=0.1, autoaugment="imagenet"),
    ),
)  # fmt: skip
"""Patches of 16 pixels of 224; weight decay doubled; four GPUs. The classes, out of a folder of all of ImageNet, are
Tian et al.'s (2020), which the thesis cites."""

BACKBONES: dict[str, dict[str, Any]] = {
    "convit": dict(network="convit-384-12-5"),
    "cait-xxs": dict(network="cait-xxs-24", stochastic_depth=0.1),
    "cait-xs": dict(network="cait-xs-24", stochastic_depth=0.1),
}
"""Of table 4.2; stochastic depth is CaiT's, 0.05, doubled on the data that they are trained on."""

LONG: dict[str, Any] = merged(
    CIFAR, dict(training=dict(epochs=300, rate=5e-4, warmup=30, decay_at=(250, 280), views=4))
)
"""Table A.19: 300 epochs and four views of each image; warm-up and steps at the same parts of the run. "If we reduce
the learning rate" (A.7.4) has no value there; half of it is ours."""

PRESETS: dict[str, Mapping[str, Any]] = {
    "smoke": dict(precision="fp32", evaluate_every=20, training=dict(epochs=0.3, warmup=0.1)),
    **{f"paper-{data}": merged(CIFAR, dict(data=data)) for data in ("cifar10", "cifar100")},
    "paper-cifar100-long": merged(LONG, dict(data="cifar100")),
    **{f"paper-tiny-imagenet-{name}": merged(TINY, dict(training=of)) for name, of in BACKBONES.items()},
    **{f"paper-imagenet-100-{name}": merged(IMAGENET, dict(training=of)) for name, of in BACKBONES.items()},
}
