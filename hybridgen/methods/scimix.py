"""SciMix, stage 1: the hybridizing auto-encoder and its discriminator (thesis 2.4.1 and A.1.2.2)."""

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from hybridgen.data.augment import diff_augment
from hybridgen.data.randaugment import strong
from hybridgen.hybridizer import Hybridizer, Origin
from hybridgen.losses import adversarial, classification, consistency, hybridization
from hybridgen.losses.reconstruction import Distance, reconstruction
from hybridgen.networks.autoencoder import Architecture, Codes, SemanticAutoencoder
from hybridgen.networks.classifiers import Classifier
from hybridgen.networks.discriminator import Discriminator, FeatureDiscriminator
from hybridgen.networks.frozen import frozen
from hybridgen.networks.wide_resnet import Normalize
from hybridgen.settings import (
    MOST,
    NUMBER,
    Count,
    Decay,
    Epoch,
    Few,
    Flat,
    Positive,
    Share,
    Weight,
    Whole,
    merged,
    settings,
)
from hybridgen.training.context import Context
from hybridgen.training.ema import EMA
from hybridgen.training.objective import Guessed, Outcome, Task, adam, sgd, slowed
from hybridgen.training.plan import Plan, by_accuracy
from hybridgen.training.schedules import Clock, cosine, window
from hybridgen.training.schedules import Weight as LossWeight
from hybridgen.types import Batch, Images, InputError, Losses, full_precision, single

Guide = Literal["mean-teacher", "fixmatch", "supervised"]
"""What makes z_c semantic: L_S on E_c and C (footnote 1 of 2.4.1; A.4.1)."""


EPOCHS = 36
"""How many, unless given."""
PACE: dict[str, Any] = dict(rate_epochs=37.0, semantic_from=1.0, semantic_ramp=1.5, nonsemantic_from=2.5)
"""Of so many; of others in proportion."""
LONGEST = 128
"""Steps of an epoch, at most, where epochs are not given."""


@settings
class Settings:
    """How SciMix trains two encoders, a classifier that guides them, and a StyleGAN2 generator. The defaults suit
    digits-m."""

    network: Flat[str | None] = None
    """Of both encoders: fast, fast-WIDTH-WIDTH-..., or leaky-wrn-DEPTH-WIDTH; unless given fast, and leaky-wrn-10-1 for
    images of 16 pixels or fewer."""
    guide: Flat[Guide] = "fixmatch"
    """L_S: what trains the classifier E_c, C."""
    epochs: Flat[Positive | None] = None
    """Passes over the unlabelled images; unless given 36, of fewer than 20 steps several in the place of each, of more
    than 128 a part."""
    rate_epochs: Flat[Positive | None] = None
    """Epochs in which the cosine rate would decrease fully; unless given 37, or of other epochs than 36 in
    proportion."""
    rate: Flat[Positive] = 4e-3
    """Learning rate of the generator's side at the start."""
    discriminator_rate: Positive = 1e-3
    """Learning rate of the discriminator at the start."""
    classifier_rate: Share | None = None
    """Factor on the rate of E_c and C. At 0 they stay as they are, batch-norm's statistics too, and neither the losses
    of the guide nor strong views are computed. Unless given it is 1, but 0 for a finished classifier: its rate was
    annealed, and what would move it on are losses that it has learnt from and a reconstruction that it was not made
    for."""
    optimizer: Literal["sgd", "adam"] = "adam"
    """Nesterov SGD as in the thesis, or Adam."""
    weight_decay: Flat[Weight] = 0.01
    """Weight decay."""
    clip: Flat[Positive | None] = None
    """Largest norm of the gradient."""
    labelled_batch: Flat[Count | None] = None
    """Labelled images a step, all processes together; unless given 24, or all where there are fewer."""
    unlabelled_batch: Flat[Count | None] = None
    """Unlabelled images a step, all processes together; unless given 40, or all where there are fewer."""
    ema_decay: Flat[Decay] = 0.995
    """Decay of the averaged networks that are saved."""

    nonsemantic_channels: Few = 4
    """Channels of z_r."""
    generator_channels: tuple[Few, ...] = (48, 96, 48, 24)
    """Filters of the generator's blocks."""
    upsampling: Literal["bilinear", "between"] | None = None
    """How the generator's last two blocks double the size of their maps, bilinearly: before their convolutions as
    table A.10 has it, or between them, for 40 % less work; unless given between for images above 16 pixels, and
    bilinear up to there."""
    discriminator_width: Annotated[float, Field(gt=0, le=16), NUMBER] = 0.5
    """Factor on the discriminator's filters."""
    style: Literal["semantic", "nonsemantic"] = "semantic"
    """Which code is the style; 'nonsemantic' is the variant 'structural z_c' of table A.14."""
    backend: Literal["hybridgen", "stylegan2-pytorch"] = "hybridgen"
    """Whose modulated convolutions to use."""

    teacher_decay: Decay = 0.97
    """EMA decay of Mean Teacher's teacher."""
    reduction: consistency.Reduction = "mean"
    """Of Mean Teacher's consistency over classes."""
    threshold: Share = 0.9
    """FixMatch's confidence threshold."""
    semantic_distance: hybridization.SemanticDistance = "cross-entropy"
    """Of the hybrid's class from its parents': between logits, or cross-entropy between probabilities."""
    nonsemantic_distance: Distance = "norm"
    """Of the hybrid's z_r from its parents'."""
    reconstruction_distance: Distance = "norm"
    """Of standardised images."""
    freeze_criteria: bool = True
    """Whether hybridization losses leave E_c, C and E_r as criteria alone (table A.14)."""
    criterion_shift: Whole = 1
    """Pixels by which hybrids are shifted at random before they are judged."""
    criterion_noise: Weight = 0.05
    """Standard deviation of noise added to hybrids before they are judged."""
    criterion_views: Whole = 0
    """Of each hybrid that E_c and C judge, changed at random in colour, place and by a cutout (DiffAugment, Zhao et al.
    2020): what convinces them in every one is no pattern of pixels that merely fools them. At 0 they see what E_r sees,
    the hybrid shifted."""

    weight_reconstruction: Weight = 1.0
    """λ_recons, of L_rec (2.8)."""
    weight_adversarial_reconstruction: Weight = 1.0
    """λ_adv,r: realism of reconstructions, on both sides of the game."""
    weight_adversarial_hybrid: Weight = 1.0
    """λ_adv,h: realism of hybrids, on both sides of the game."""
    weight_adversarial_features: Weight | None = None
    """How much hybrids have to look real to E_c's feature maps, too, for the class that they take: a second
    discriminator judges these, and sees what merely fools E_c. From `semantic_from` on, growing as the semantic losses
    do; unless given 2 for images above 16 pixels, and 0 (there is none) up to there. The thesis has none."""
    weight_semantic_attraction: Weight | None = None
    """λ+_hyb,class (2.11): hybrids take the class of their semantic parent; unless given 8 for images above 16 pixels,
    and 4 up to there."""
    weight_semantic_repulsion: Weight = 0.2
    """λ-_hyb,class: and not that of their non-semantic parent."""
    weight_nonsemantic_attraction: Weight | None = None
    """λ+_hyb,cont (2.12): hybrids keep the z_r of their non-semantic parent; unless given 0.04 for images above 16
    pixels, and 0.02 up to there."""
    weight_nonsemantic_repulsion: Weight = 0.002
    """λ-_hyb,cont: and not that of their semantic parent."""
    weight_supervised: Weight = 10.0
    """Cross-entropy on labelled images. Adam divides by the sum of all gradients, so that at 1 the reconstruction would
    rule E_c too, and the classifier would learn slowly."""
    weight_consistency: Weight = 300.0
    """λ_cons of Mean Teacher."""
    weight_logit_distance: Weight = 0.01
    """λ_logitdist: ties Mean Teacher's two heads."""
    weight_pseudo_label: Weight = 10.0
    """λ_u of FixMatch."""
    weight_gradient_penalty: Weight = 0.03
    """R1 on real images: without it the discriminator wins, and hybrids show coloured fringes. The thesis has none."""
    penalty_every: Count | None = None
    """Steps from one R1 to the next, which counts for all of them (StyleGAN2's lazy regularization); unless given 16
    for images above 16 pixels, and 1 up to there."""
    half_size: Annotated[float, Field(ge=0, lt=1), NUMBER] = 0.0
    """Part of the run, from its start, in which E_r, the generator and the discriminator learn on images of half the
    size; E_c and C never do."""
    semantic_from: Epoch | None = None
    """Epoch from which the semantic hybridization losses count; unless given 1, or of other epochs than 36 in
    proportion."""
    semantic_ramp: Epoch | None = None
    """Epochs over which they grow to their weight; unless given 1.5, or in proportion."""
    nonsemantic_from: Epoch | None = None
    """Epoch from which the non-semantic ones count; unless given 2.5, or in proportion."""

    snapshot_every: Flat[Count | None] = None
    """Steps between copies of the hybridizer in the run's snapshots/step-N, for `hybridgen study transfer`; none unless
    given."""


class SciMixGenerator(nn.Module):
    """L_gen = L_AE + L_S + L_hyb (equation 2.9), for E_c, C, E_r and G.

    Losses: `reconstruction`, `adversarial_reconstruction`, `adversarial_hybrid`, with `features` (judging E_c's maps
    of hybrids) `adversarial_features`, `semantic_attraction`, `semantic_repulsion`, `nonsemantic_attraction`,
    `nonsemantic_repulsion`, and those of the guide: `supervised`; `consistency` and `logit_distance` (Mean Teacher);
    `pseudo_label` (FixMatch). Every image of the batch is the semantic parent of one hybrid and the non-semantic parent
    of another.

    Gradient of the hybridization losses reaches the codes and G through the hybrid's pixels; what judges a hybrid
    (E_c, C, E_r, the discriminator) is frozen unless `freeze_criteria` is off (table A.14). Batches carry two views:
    weak and weak for Mean Teacher, weak and strong of the unlabelled images for FixMatch. Without a guide E_c and C are
    finished: they stay as they are, in evaluation mode, and the first views are all that is looked at. In the first
    `half_size` of the run all but E_c and C know images at half the size, of which E_c sees the hybrids enlarged.
    """

    def __init__(
        self,
        autoencoder: SemanticAutoencoder,
        discriminator: Discriminator,
        *,
        guide: Guide | None,
        teacher_decay: float,
        threshold: float,
        semantic_distance: hybridization.SemanticDistance,
        nonsemantic_distance: Distance,
        reconstruction_distance: Distance,
        consistency_reduction: consistency.Reduction,
        freeze_criteria: bool,
        criterion_shift: int,
        criterion_noise: float,
        criterion_views: int,
        half_size: float,
        features: FeatureDiscriminator | None = None,
    ) -> None:
        super().__init__()
        self.autoencoder, self.half_size = autoencoder, half_size
        self.guide, self.threshold = guide, threshold
        self.semantic_distance, self.nonsemantic_distance = semantic_distance, nonsemantic_distance
        self.reconstruction_distance, self.consistency_reduction = (
            reconstruction_distance,
            consistency_reduction,
        )
        self.criterion_shift, self.criterion_noise = criterion_shift, criterion_noise
        self.criterion_views = criterion_views
        self.normalize = Normalize(autoencoder.architecture.mean, autoencoder.architecture.std)
        self.judge = frozen(discriminator)
        self.judge_features = None if features is None else frozen(features)
        self.freeze_criteria = freeze_criteria
        if guide is None:
            autoencoder.classifier.requires_grad_(False).eval()
        elif guide == "mean-teacher":
            self.teacher = EMA(autoencoder.classifier, teacher_decay, buffers="own")
        else:
            autoencoder.classifier.heads.consistency.requires_grad_(False)

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        whole = torch.cat([batch.labelled[0], batch.unlabelled[0]])
        halved = clock.progress < self.half_size
        images = nn.functional.avg_pool2d(whole, 2) if halved else whole
        codes, strong = self._encode(whole, images, batch)

        # Reconstructions, and hybrids with another image's non-semantic content
        partner = torch.randperm(len(images), device=images.device)
        decoded = self.autoencoder.decode(
            torch.cat([codes.semantic, codes.semantic]),
            torch.cat([codes.nonsemantic, codes.nonsemantic[partner]]),
        )
        reconstructions, hybrids = decoded.chunk(2)
        judged_reconstructions, judged_hybrids = self.judge(decoded).chunk(2)

        # What the criteria see in the hybrids, E_c in several views of them
        criterion = frozen(self.autoencoder) if self.freeze_criteria else self.autoencoder
        viewed, disturbed = self._views(hybrids, halved)
        views = max(1, self.criterion_views)
        seen: Codes = criterion(viewed, disturbed)
        of_parents = codes.predictions.repeat(views, 1)
        of_partners = codes.predictions[partner].repeat(views, 1)

        losses = {
            "reconstruction": reconstruction(
                self.normalize(reconstructions), self.normalize(images), kind=self.reconstruction_distance
            ),
            "adversarial_reconstruction": adversarial.fool(judged_reconstructions),
            "adversarial_hybrid": adversarial.fool(judged_hybrids),
            "semantic_attraction": hybridization.semantic_attraction(
                seen.predictions, of_parents, kind=self.semantic_distance
            ),
            "semantic_repulsion": hybridization.semantic_repulsion(
                seen.predictions, of_partners, kind=self.semantic_distance
            ),
            "nonsemantic_attraction": hybridization.nonsemantic_attraction(
                seen.nonsemantic, codes.nonsemantic[partner], kind=self.nonsemantic_distance
            ),
            "nonsemantic_repulsion": hybridization.nonsemantic_repulsion(
                seen.nonsemantic, codes.nonsemantic, kind=self.nonsemantic_distance
            ),
        } | self._guided(batch, codes, strong)
        handed = images, reconstructions.detach(), hybrids.detach()
        if self.judge_features is not None:
            # Of real images as of hybrids what E_c sees, and the class that it is to see in them
            classes = single(of_parents.detach()).softmax(dim=1)
            losses["adversarial_features"] = adversarial.fool(self.judge_features(seen.maps, classes).flatten())
            with torch.no_grad():
                of_images = frozen(self.autoencoder.classifier)(self._views(images, halved)[0]).maps
            handed += classes, *of_images, *(each.detach() for each in seen.maps)
        mean = seen.predictions.unflatten(0, (views, -1)).mean(dim=0)
        transferred = mean.argmax(dim=1) == codes.predictions.argmax(dim=1)
        return Outcome(
            losses,
            rates={"own_semantic_transfer": transferred.float().mean()},
            handed=handed,
            guessed=Guessed(codes.predictions[len(batch.labels) :].argmax(dim=1)),
        )

    def follow(self) -> None:
        """Mean Teacher's teacher moves towards the student: after each step of the optimizer."""
        self.teacher.update(self.autoencoder.classifier)

    def _encode(
        self,
        whole: Float[Tensor, "batch 3 height width"],
        images: Float[Tensor, "batch 3 its_height its_width"],
        batch: Batch,
    ) -> tuple[Codes, Float[Tensor, "unlabelled classes"] | None]:
        """The codes of the images, of which E_c sees the whole; and for FixMatch the logits of the strong views.

        E_c sees both in one batch: in FixMatch batch-norm's statistics are over all views.
        """
        if self.guide != "fixmatch":
            return self.autoencoder(whole, images), None
        strong = batch.unlabelled[1]
        encoded = self.autoencoder.classifier(torch.cat([whole, strong]))
        (semantic, _), (predictions, of_strong), (consistent, _) = (
            part.split([len(whole), len(strong)]) for part in encoded[:3]
        )
        return Codes(semantic, self.autoencoder.nonsemantic_encoder(images), predictions, consistent), of_strong

    def _guided(self, batch: Batch, codes: Codes, strong: Float[Tensor, "unlabelled classes"] | None) -> Losses:
        """L_S: the losses that make z_c semantic."""
        if self.guide is None:
            return {}
        count = len(batch.labels)
        labelled, unlabelled = codes.predictions[:count], codes.predictions[count:]
        if self.guide == "supervised":
            return {"supervised": classification.cross_entropy(labelled, batch.labels)}
        if strong is not None:
            return {
                "supervised": classification.cross_entropy(labelled, batch.labels),
                "pseudo_label": classification.pseudo_label(unlabelled, strong, threshold=self.threshold),
            }
        with torch.no_grad():
            target = self.teacher(torch.cat([batch.labelled[1], batch.unlabelled[1]])).predictions
        return consistency.mean_teacher(
            codes.predictions, codes.consistency, target, batch.labels, reduction=self.consistency_reduction
        )

    def _views(self, hybrids: Images, halved: bool) -> tuple[Float[Tensor, "views 3 rows columns"], Images]:
        """What E_c sees of the hybrids, its views one after the other (see `criterion_views`), and what E_r does."""
        viewed = disturbed = self._disturbed(hybrids)
        if self.criterion_views:
            viewed = diff_augment(hybrids.repeat(self.criterion_views, 1, 1, 1))
            viewed = viewed + self.criterion_noise * torch.randn_like(viewed)
        return doubled(viewed) if halved else viewed, disturbed

    def _disturbed(self, hybrids: Images) -> Images:
        """Hybrids shifted by a few pixels, all by the same, with a little noise: so criteria are harder to fool."""
        if self.criterion_shift:
            shift = self.criterion_shift
            row, column = torch.randint(0, 2 * shift + 1, (2,)).tolist()
            padded = nn.functional.pad(hybrids, (shift,) * 4, mode="reflect")
            hybrids = padded[:, :, row : row + hybrids.shape[2], column : column + hybrids.shape[3]]
        if self.criterion_noise:
            hybrids = hybrids + self.criterion_noise * torch.randn_like(hybrids)
        return hybrids


def doubled(images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 2*height 2*width"]:
    """Twice the size, bilinearly."""
    return nn.functional.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)


class SciMixDiscriminator(nn.Module):
    """The critic's side of L_adv,r and L_adv,h: real images against reconstructions and against hybrids.

    Losses: `real`, `reconstruction`, `hybrid`; with `features`, which judge E_c's maps of images and of hybrids,
    `real_features` and `hybrid_features`; and unless `penalty_every` is None R1's `gradient_penalty` (ours: the
    thesis's discriminator is unregularised). This is computed in so many steps once, in float32 or better, and counts
    for all of them (Karras et al. 2020, appendix B: lazy regularization); in the others it is zero. Gradient reaches
    the discriminator only.
    """

    def __init__(
        self, discriminator: Discriminator, *, penalty_every: int | None, features: FeatureDiscriminator | None = None
    ) -> None:
        super().__init__()
        self.discriminator, self.features = discriminator, features
        self.penalty_every = penalty_every

    def forward(
        self,
        batch: Batch,
        clock: Clock,
        images: Float[Tensor, "batch 3 height width"],
        reconstructions: Float[Tensor, "batch 3 height width"],
        hybrids: Float[Tensor, "batch 3 height width"],
        classes: Float[Tensor, "views classes"] | None = None,
        *maps: Float[Tensor, "views _channels _rows _columns"],
    ) -> Outcome:
        """`maps` are those of the images, and then those of the hybrids, which should have these `classes`, too."""
        due = self.penalty_every is not None and clock.step % self.penalty_every == 0
        images = images.detach().requires_grad_(due)
        with full_precision(images.device) if due else nullcontext():
            real, *fakes = self.discriminator(torch.cat([images, reconstructions, hybrids])).chunk(3)
            losses = {
                "real": adversarial.detect_real(real),
                "reconstruction": adversarial.detect_fake(fakes[0]),
                "hybrid": adversarial.detect_fake(fakes[1]),
            }
            if self.penalty_every is not None:
                penalty = adversarial.gradient_penalty(real, images) if due else images.new_zeros(())
                losses["gradient_penalty"] = self.penalty_every * penalty
        if self.features is not None and classes is not None:
            half = len(maps) // 2
            both = [torch.cat(pair) for pair in zip(maps[:half], maps[half:], strict=True)]
            of_images, of_hybrids = self.features(both, classes.repeat(2, 1)).chunk(2)
            losses["real_features"] = adversarial.detect_real(of_images.flatten())
            losses["hybrid_features"] = adversarial.detect_fake(of_hybrids.flatten())
        rates = {
            "accuracy_real": (real > 0).float().mean(),
            "accuracy_reconstruction": (fakes[0] < 0).float().mean(),
            "accuracy_hybrid": (fakes[1] < 0).float().mean(),
        }
        return Outcome(losses, rates={name: rate.detach() for name, rate in rates.items()})


GUIDES: dict[Guide, tuple[str, ...]] = {
    "mean-teacher": ("supervised", "consistency", "logit_distance"),
    "fixmatch": ("supervised", "pseudo_label"),
    "supervised": ("supervised",),
}
"""The losses that each adds."""


CHOSEN: dict[bool, dict[str, Any]] = {
    True: dict(
        upsampling="bilinear", penalty_every=1, weight_adversarial_features=0.0, weight_semantic_attraction=4.0,
        weight_nonsemantic_attraction=0.02,
    ),
    False: dict(
        upsampling="between", penalty_every=16, weight_adversarial_features=2.0, weight_semantic_attraction=8.0,
        weight_nonsemantic_attraction=0.04,
    ),
}  # fmt: skip
"""What is chosen for small images and for others, where nothing is given."""


def networks(settings: Settings, context: Context) -> tuple[SemanticAutoencoder, Discriminator]:
    """New ones, of settings that leave the upsampling open no more. InputError for an image size that the generator
    cannot make, and for a network of another family."""
    dataset = context.dataset
    assert settings.upsampling is not None
    side = dataset.image_size // 2 if settings.half_size else dataset.image_size
    if settings.criterion_shift >= side:
        raise InputError(f"criterion_shift: {settings.criterion_shift} pixels of images of {side}; less are needed")
    if settings.half_size and settings.style != "semantic":
        raise InputError(
            f"half_size: {settings.half_size:g} beside style {settings.style!r}: the generator would start from z_c, "
            "which is of the whole size"
        )
    architecture = Architecture(
        image_size=dataset.image_size,
        classes=len(dataset.classes),
        mean=dataset.mean,
        std=dataset.std,
        network=context.network(settings.network),
        nonsemantic_channels=settings.nonsemantic_channels,
        generator_channels=settings.generator_channels,
        upsampling=settings.upsampling,
        style=settings.style,
    )
    autoencoder = SemanticAutoencoder(architecture, backend=settings.backend)
    discriminator = Discriminator(
        dataset.image_size, width=settings.discriminator_width, mean=dataset.mean, std=dataset.std
    )
    # Compiled networks have no second derivative, which the gradient penalty needs
    compiled = context.settings.compiled and not settings.weight_gradient_penalty
    return context.laid_out(autoencoder), context.laid_out(discriminator, compiled=compiled)


def weights_of(settings: Settings, *, guided: bool = True) -> tuple[dict[str, LossWeight], dict[str, LossWeight]]:
    """Of the losses of the generator's side, those of the guide among them unless E_c and C are finished, and of the
    critic's; of settings that leave nothing open."""
    assert settings.semantic_from is not None and settings.semantic_ramp is not None
    assert settings.nonsemantic_from is not None
    plain = ("reconstruction", "adversarial_reconstruction", "adversarial_hybrid")
    plain += GUIDES[settings.guide] if guided else ()
    weights: dict[str, LossWeight] = {name: getattr(settings, f"weight_{name}") for name in plain}
    semantic = ("semantic_attraction", "semantic_repulsion")
    if settings.weight_adversarial_features:
        semantic = ("adversarial_features", *semantic)
    for name in semantic:
        weights[name] = window(getattr(settings, f"weight_{name}"), settings.semantic_from, ramp=settings.semantic_ramp)
    for name in ("nonsemantic_attraction", "nonsemantic_repulsion"):
        weights[name] = window(getattr(settings, f"weight_{name}"), settings.nonsemantic_from)
    critic: dict[str, LossWeight] = {
        "real": 1.0,
        "reconstruction": settings.weight_adversarial_reconstruction,
        "hybrid": settings.weight_adversarial_hybrid,
    }
    if settings.weight_adversarial_features:
        critic |= dict.fromkeys(("real_features", "hybrid_features"), 1.0)
    if settings.weight_gradient_penalty:
        critic["gradient_penalty"] = settings.weight_gradient_penalty
    return weights, critic


def plan(
    settings: Settings, context: Context, seed: int, *, classifier: Classifier | None = None
) -> tuple[Plan, Hybridizer]:
    """SciMix on this split from this seed, and the hybridizer that it leaves in the run's folder: the averages of its
    networks. E_c and C start from a finished classifier of the same network, if one is given.

    InputError for a classifier of another network, and for E_c and C that would stay as they were drawn.
    """
    pace = {name: min(MOST, value * (settings.epochs or EPOCHS) / EPOCHS) for name, value in PACE.items()}
    settings, factor = context.filled(context.by_size(settings, CHOSEN), pace), settings.classifier_rate
    if factor is None:
        factor = 1.0 if classifier is None else 0.0
    if not factor and classifier is None:
        raise InputError("classifier_rate: 0, but E_c and C are new; a finished classifier is needed (--classifier)")
    guide = settings.guide if factor else None
    size, flip = context.dataset.image_size, context.flip
    weakly, strongly = context.weak(), partial(strong, flip=flip, shift=size // 8, cutout=size // 2)
    labelled, unlabelled = context.batch_sizes(settings.labelled_batch, settings.unlabelled_batch, (24, 40))
    stream = context.stream(
        seed,
        labelled=labelled,
        labelled_views=(weakly, weakly) if guide else (weakly,),
        unlabelled=unlabelled,
        unlabelled_views=(weakly, strongly if guide == "fixmatch" else weakly) if guide else (weakly,),
    )
    clock = context.clock(settings.epochs, stream.steps_per_epoch, EPOCHS, longest=LONGEST)
    torch.manual_seed(seed)

    # Networks and objectives
    autoencoder, discriminator = networks(settings, context)
    if classifier is not None:
        autoencoder.classifier.start_from(classifier.network)
    features = None
    if settings.weight_adversarial_features:
        widths = autoencoder.classifier.encoder.trunk.widths
        features = context.laid_out(FeatureDiscriminator(widths, len(context.dataset.classes)))
    generating = SciMixGenerator(
        autoencoder,
        discriminator,
        guide=guide,
        teacher_decay=settings.teacher_decay,
        threshold=settings.threshold,
        semantic_distance=settings.semantic_distance,
        nonsemantic_distance=settings.nonsemantic_distance,
        reconstruction_distance=settings.reconstruction_distance,
        consistency_reduction=settings.reduction,
        freeze_criteria=settings.freeze_criteria,
        criterion_shift=settings.criterion_shift,
        criterion_noise=settings.criterion_noise,
        criterion_views=settings.criterion_views,
        half_size=settings.half_size,
        features=features,
    )
    context.note(classifier_rate=factor)
    penalised = settings.penalty_every if settings.weight_gradient_penalty else None
    criticising = SciMixDiscriminator(discriminator, penalty_every=penalised, features=features)
    optimizer = {"sgd": sgd, "adam": adam}[settings.optimizer]
    tasks = {
        name: Task(
            objective,
            weights,
            optimizer(objective, decay=settings.weight_decay),
            cosine(rate, settings.rate_epochs),
            clip=settings.clip,
        )
        for (name, objective, rate), weights in zip(
            (
                ("generator", generating, settings.rate),
                ("discriminator", criticising, settings.discriminator_rate),
            ),
            weights_of(settings, guided=guide is not None),
            strict=True,
        )
    }
    if 0 < factor < 1:
        slowed(tasks["generator"].optimizer, autoencoder.classifier, factor)

    # The artefact
    average = EMA(autoencoder, settings.ema_decay, buffers="average").eval()
    hybridizer = Hybridizer(average.network, Origin.of(context, "scimix"))

    def after_step(folder: Path) -> dict[str, float]:
        if guide == "mean-teacher":
            generating.follow()
        if settings.snapshot_every and clock.every(settings.snapshot_every):
            hybridizer.save_by_first(folder / "snapshots" / f"step-{clock.step}", context.accelerator)
        return {}

    classify = lambda network, images: network.classifier(images)[1]
    made = Plan(
        context,
        stream,
        clock,
        tasks,
        network=autoencoder,
        average=average,
        score=by_accuracy(context, classify),
        select=None,
        after_step=after_step,
        finish=lambda folder, _: hybridizer.save_by_first(folder / "hybridizer", context.accelerator),
    )
    return made, hybridizer


PAPER: dict[str, Any] = dict(
    precision="fp32", validation=0, evaluate_every=2550, save_every=2550,
    method=dict(
        epochs=300, rate_epochs=350, optimizer="sgd", weight_decay=5e-4, labelled_batch=60, unlabelled_batch=196,
        network="leaky-wrn-28-2", nonsemantic_channels=8, generator_channels=(32, 64, 128, 64, 32),
        upsampling="bilinear", discriminator_width=1.0, style="semantic", guide="mean-teacher", teacher_decay=0.97,
        reduction="mean", ema_decay=0.999, semantic_distance="norm", nonsemantic_distance="norm",
        reconstruction_distance="norm", freeze_criteria=True, criterion_shift=0, criterion_noise=0.0,
        criterion_views=0, threshold=0.95,
        weight_reconstruction=1.0,
        weight_adversarial_reconstruction=0.5, weight_adversarial_hybrid=0.5, weight_adversarial_features=0.0,
        weight_semantic_attraction=0.5,
        weight_semantic_repulsion=0.05, weight_nonsemantic_attraction=0.5, weight_nonsemantic_repulsion=0.05,
        weight_supervised=1.0, weight_pseudo_label=1.0, weight_consistency=300.0, weight_logit_distance=0.01,
        weight_gradient_penalty=0.0, penalty_every=1, half_size=0.0, semantic_from=0.0, semantic_ramp=0.0,
        nonsemantic_from=50.0,
    ),
)  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "structural": dict(style="nonsemantic"),
    "no-hybridization": dict(
        weight_semantic_attraction=0.0, weight_semantic_repulsion=0.0, weight_nonsemantic_attraction=0.0,
        weight_nonsemantic_repulsion=0.0, weight_adversarial_hybrid=0.0,
    ),
    "basic": dict(weight_semantic_repulsion=0.0, weight_nonsemantic_repulsion=0.0),
    "not-frozen": dict(freeze_criteria=False),
}  # fmt: skip
"""What those of table A.14 leave out."""
PRESETS: dict[str, Mapping[str, Any]] = {
    "smoke": dict(
        precision="fp32",
        evaluate_every=40,
        oracle=dict(steps=20),
        method=dict(epochs=0.6, semantic_from=0.1, semantic_ramp=0.1, nonsemantic_from=0.2),
    ),
    **{
        f"paper-{data}-{labels}": merged(
            PAPER, dict(data=data, labels=labels, method=dict(rate=rate, discriminator_rate=rate))
        )
        for data, rate, several in (("cifar10", 0.1, (100, 250, 500)), ("svhn", 0.2, (60, 100)))
        for labels in several
    },
}
PRESETS |= {
    f"variant-{name}": merged(PRESETS["paper-svhn-60"], dict(method=changes)) for name, changes in VARIANTS.items()
}
"""Thesis A.1.2.2; the variants of table A.14 are those of SVHN with 60 labels."""
