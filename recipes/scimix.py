"""Stage 1: train a SciMix hybridizer on a split and save it (thesis 2.4.1 and A.1.2.2).

accelerate launch recipes/scimix.py --preset paper-cifar10-250 --download
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from hybridgen.configuration import check_positive, launch
from hybridgen.data.augment import strong, weak
from hybridgen.data.streams import Stream
from hybridgen.evaluation.classification import accuracy
from hybridgen.evaluation.grid import sample_grid
from hybridgen.experiments.settings import DataSettings, load_data
from hybridgen.generators.scimix import SciMixDiscriminator, SciMixGenerator
from hybridgen.hybridizer import Hybridizer, Origin
from hybridgen.networks.autoencoder import Architecture, SemanticAutoencoder
from hybridgen.networks.discriminator import Discriminator
from hybridgen.training.ema import EMA
from hybridgen.training.engine import laid_out, make_accelerator
from hybridgen.training.fit import fit
from hybridgen.training.objective import Task, adam, sgd
from hybridgen.training.record import Run, claim, identity, write_result
from hybridgen.training.schedules import Clock, cosine, window


@dataclass(frozen=True)
class Config(DataSettings):
    """Train a SciMix hybridizer: two encoders, a classifier that guides them, a StyleGAN2 generator."""

    out: Path = Path("runs/scimix")

    epochs: float = 36
    """Passes over the unlabelled images."""
    rate_epochs: float = 37
    """Epochs in which the cosine rate would decrease fully."""
    rate: float = 4e-3
    """Learning rate of the generator's side at the start."""
    discriminator_rate: float = 1e-3
    """Learning rate of the discriminator at the start."""
    optimizer: Literal["sgd", "adam"] = "adam"
    """Nesterov SGD as in the thesis, or Adam."""
    weight_decay: float = 0.01
    """Weight decay."""
    labelled_batch: int = 24
    """Labelled images a step, all processes together."""
    unlabelled_batch: int = 40
    """Unlabelled images a step, all processes together."""
    clip: float | None = None
    """Largest norm of the gradient."""

    channels_last: bool = True
    """Memory layout of the convolutions; faster on CPUs and with bf16 on GPUs."""
    compiled: bool = False
    """Compile the networks with torch.compile; not the discriminator if there is a gradient penalty."""
    sync_batchnorm: bool = False
    """Batch-norm statistics over all processes."""
    depth: int = 10
    """Depth of both wide residual networks."""
    width: int = 1
    """Their width."""
    nonsemantic_channels: int = 4
    """Channels of z_r."""
    generator_channels: tuple[int, ...] = (48, 96, 48, 24)
    """Filters of the generator's blocks."""
    discriminator_width: float = 0.5
    """Factor on the discriminator's filters."""
    style: Literal["semantic", "nonsemantic"] = "semantic"
    """Which code is the style; 'nonsemantic' is the variant 'structural z_c' of table A.14."""
    backend: Literal["hybridgen", "stylegan2-pytorch"] = "hybridgen"
    """Whose modulated convolutions to use."""

    guide: Literal["mean-teacher", "fixmatch", "supervised"] = "fixmatch"
    """L_S: what trains the classifier E_c, C."""
    teacher_decay: float = 0.97
    """EMA decay of Mean Teacher's teacher."""
    average_decay: float = 0.995
    """EMA decay of the saved networks."""
    threshold: float = 0.9
    """FixMatch's confidence threshold."""
    semantic_distance: Literal["norm", "squared", "cross-entropy"] = "cross-entropy"
    """Of the hybrid's class from its parents': between logits, or cross-entropy between probabilities."""
    nonsemantic_distance: Literal["norm", "squared"] = "norm"
    """Of the hybrid's z_r from its parents'."""
    reconstruction_distance: Literal["norm", "squared"] = "norm"
    """Of standardised images."""
    freeze_criteria: bool = True
    """Whether hybridization losses leave E_c, C and E_r as criteria alone (table A.14)."""
    criterion_shift: int = 1
    """Pixels by which hybrids are shifted at random before they are judged."""
    criterion_noise: float = 0.05
    """Standard deviation of noise added to hybrids before they are judged."""

    weight_reconstruction: float = 1.0
    """λ_recons, of L_rec (2.8)."""
    weight_adversarial_reconstruction: float = 1.0
    """λ_adv,r: realism of reconstructions, on both sides of the game."""
    weight_adversarial_hybrid: float = 1.0
    """λ_adv,h: realism of hybrids, on both sides of the game."""
    weight_semantic_attraction: float = 4.0
    """λ+_hyb,class (2.11): hybrids take the class of their semantic parent."""
    weight_semantic_repulsion: float = 0.2
    """λ-_hyb,class: and not that of their non-semantic parent."""
    weight_nonsemantic_attraction: float = 0.02
    """λ+_hyb,cont (2.12): hybrids keep the z_r of their non-semantic parent."""
    weight_nonsemantic_repulsion: float = 0.002
    """λ-_hyb,cont: and not that of their semantic parent."""
    weight_supervised: float = 10.0
    """Cross-entropy on labelled images. Adam divides by the sum of all gradients, so that at 1 the reconstruction would
    rule E_c too, and the classifier would learn slowly."""
    weight_consistency: float = 300.0
    """λ_cons of Mean Teacher; its mean is over batch and classes."""
    weight_logit_distance: float = 0.01
    """λ_logitdist: ties Mean Teacher's two heads."""
    weight_pseudo_label: float = 10.0
    """λ_u of FixMatch."""
    weight_gradient_penalty: float = 0.03
    """R1 on real images: without it the discriminator wins, and hybrids show coloured fringes. The thesis has none."""
    semantic_from: float = 1.0
    """Epoch from which the semantic hybridization losses count."""
    semantic_ramp: float = 1.5
    """Epochs over which they grow to their weight."""
    nonsemantic_from: float = 2.5
    """Epoch from which the non-semantic ones count."""

    record_every: int = 50
    """Steps between records."""
    evaluate_every: int = 500
    """Steps between evaluations and pictures."""
    snapshot_every: int | None = None
    """Steps between copies of the hybridizer in OUT/snapshots/step-N, for `hybridgen study transfer`; none unless
    given."""
    save_every: int = 500
    """Steps between checkpoints."""


PAPER: dict[str, Any] = dict(
    validation=0, epochs=300, rate_epochs=350, optimizer="sgd", weight_decay=5e-4, labelled_batch=60,
    unlabelled_batch=196, depth=28, width=2, nonsemantic_channels=8, generator_channels=(32, 64, 128, 64, 32),
    discriminator_width=1.0, guide="mean-teacher", average_decay=0.999, semantic_distance="norm", criterion_shift=0,
    criterion_noise=0.0, threshold=0.95, weight_adversarial_reconstruction=0.5, weight_adversarial_hybrid=0.5,
    weight_semantic_attraction=0.5, weight_semantic_repulsion=0.05, weight_nonsemantic_attraction=0.5,
    weight_nonsemantic_repulsion=0.05, weight_supervised=1.0, weight_pseudo_label=1.0, weight_consistency=300.0,
    weight_gradient_penalty=0.0, semantic_from=0.0, semantic_ramp=0.0, nonsemantic_from=50.0,
    evaluate_every=2550, save_every=2550,
)  # fmt: skip
CIFAR10: dict[str, Any] = PAPER | dict(data="cifar10", rate=0.1, discriminator_rate=0.1)
SVHN: dict[str, Any] = PAPER | dict(data="svhn", rate=0.2, discriminator_rate=0.2)

PRESETS: dict[str, Mapping[str, Any]] = {
    "smoke": dict(epochs=0.6, semantic_from=0.1, semantic_ramp=0.1, nonsemantic_from=0.2, evaluate_every=40),
    "paper-cifar10-100": CIFAR10 | dict(labels=100),
    "paper-cifar10-250": CIFAR10 | dict(labels=250),
    "paper-cifar10-500": CIFAR10 | dict(labels=500),
    "paper-svhn-60": SVHN | dict(labels=60),
    "paper-svhn-100": SVHN | dict(labels=100),
    # The variants of table A.14, to be combined with the labels and data of a paper preset
    "variant-structural": SVHN | dict(labels=60, style="nonsemantic"),
    "variant-no-hybridization": SVHN | dict(
        labels=60, weight_semantic_attraction=0, weight_semantic_repulsion=0, weight_nonsemantic_attraction=0,
        weight_nonsemantic_repulsion=0, weight_adversarial_hybrid=0,
    ),
    "variant-basic": SVHN | dict(labels=60, weight_semantic_repulsion=0, weight_nonsemantic_repulsion=0),
    "variant-not-frozen": SVHN | dict(labels=60, freeze_criteria=False),
}  # fmt: skip


def main(config: Config) -> dict[str, Any]:
    check_positive(config, "epochs", "rate_epochs", "record_every", "evaluate_every", "snapshot_every", "save_every")
    accelerator = make_accelerator(threads=config.threads)
    torch.manual_seed(config.seed)

    # Data
    dataset, split = load_data(config)
    weakly = partial(weak, flip=dataset.flip, shift=dataset.image_size // 8)
    strongly = partial(strong, flip=dataset.flip, shift=dataset.image_size // 8, cutout=dataset.image_size // 2)
    stream = Stream(
        dataset.train,
        split,
        labelled=config.labelled_batch,
        unlabelled=config.unlabelled_batch,
        labelled_views=(weakly, weakly),
        unlabelled_views=(weakly, strongly if config.guide == "fixmatch" else weakly),
        seed=config.seed,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        device=accelerator.device,
        workers=config.workers,
    )

    # Networks
    architecture = Architecture(
        image_size=dataset.image_size,
        classes=len(dataset.classes),
        mean=dataset.mean,
        std=dataset.std,
        depth=config.depth,
        width=config.width,
        nonsemantic_channels=config.nonsemantic_channels,
        generator_channels=config.generator_channels,
        style=config.style,
    )
    autoencoder = SemanticAutoencoder(architecture, backend=config.backend)
    discriminator = Discriminator(
        dataset.image_size, width=config.discriminator_width, mean=dataset.mean, std=dataset.std
    )
    layout = dict(channels_last=config.channels_last, synchronized=config.sync_batchnorm)
    autoencoder = laid_out(autoencoder, accelerator, compiled=config.compiled, **layout)
    # Compiled networks have no second derivative, which the gradient penalty needs
    critic_compiled = config.compiled and not config.weight_gradient_penalty
    discriminator = laid_out(discriminator, accelerator, compiled=critic_compiled, **layout)

    # Objectives
    guide = {
        "mean-teacher": ("supervised", "consistency", "logit_distance"),
        "fixmatch": ("supervised", "pseudo_label"),
        "supervised": ("supervised",),
    }[config.guide]
    weights = {
        "reconstruction": config.weight_reconstruction,
        "adversarial_reconstruction": config.weight_adversarial_reconstruction,
        "adversarial_hybrid": config.weight_adversarial_hybrid,
    } | {name: getattr(config, f"weight_{name}") for name in guide}
    for name in ("semantic_attraction", "semantic_repulsion"):
        weights[name] = window(getattr(config, f"weight_{name}"), config.semantic_from, ramp=config.semantic_ramp)
    for name in ("nonsemantic_attraction", "nonsemantic_repulsion"):
        weights[name] = window(getattr(config, f"weight_{name}"), config.nonsemantic_from)
    generator_objective = SciMixGenerator(
        autoencoder,
        discriminator,
        guide=config.guide,
        teacher_decay=config.teacher_decay,
        threshold=config.threshold,
        semantic_distance=config.semantic_distance,
        nonsemantic_distance=config.nonsemantic_distance,
        reconstruction_distance=config.reconstruction_distance,
        freeze_criteria=config.freeze_criteria,
        criterion_shift=config.criterion_shift,
        criterion_noise=config.criterion_noise,
    )
    critic_weights = {
        "real": 1.0,
        "reconstruction": config.weight_adversarial_reconstruction,
        "hybrid": config.weight_adversarial_hybrid,
    }
    if config.weight_gradient_penalty:
        critic_weights["gradient_penalty"] = config.weight_gradient_penalty
    critic_objective = SciMixDiscriminator(discriminator, penalize=bool(config.weight_gradient_penalty))
    optimizer = sgd if config.optimizer == "sgd" else adam
    prepared = accelerator.prepare(
        generator_objective,
        critic_objective,
        optimizer(generator_objective, decay=config.weight_decay),
        optimizer(critic_objective, decay=config.weight_decay),
    )
    tasks = {
        "generator": Task(prepared[0], weights, prepared[2], cosine(config.rate, config.rate_epochs), clip=config.clip),
        "discriminator": Task(
            prepared[1],
            critic_weights,
            prepared[3],
            cosine(config.discriminator_rate, config.rate_epochs),
            clip=config.clip,
        ),
    }
    average = EMA(autoencoder, config.average_decay, buffers="average")
    hybridizer = Hybridizer(
        average.network,
        Origin(dataset.name, dataset.fingerprint, split.hash, dataset.classes, identity(config)),
    )
    sample_grid(hybridizer, dataset.test, config.seed)  # refuses too few test images now and not later

    # Training
    clock = Clock(steps=round(config.epochs * stream.steps_per_epoch), steps_per_epoch=stream.steps_per_epoch)
    claim(config.out, config, accelerator, resume=config.resume)
    with Run(
        config.out,
        config,
        accelerator,
        clock,
        modules={"generator": generator_objective, "discriminator": critic_objective, "average": average},
        optimizers={
            "generator": tasks["generator"].optimizer,
            "discriminator": tasks["discriminator"].optimizer,
        },
        split_hash=split.hash,
        record_every=config.record_every,
        save_every=config.save_every,
        resume=config.resume,
    ) as run:
        for scalars in fit(tasks, stream.from_step(clock.step), clock, accelerator, seed=config.seed):
            average.update(autoencoder)
            if config.guide == "mean-teacher":
                generator_objective.teacher.update(autoencoder.classifier)
            if clock.every(config.evaluate_every):
                scores = {
                    "validation/accuracy": accuracy(hybridizer.classify, dataset.train, split.validation, accelerator)
                }
                run.log(**scores)
                run.picture("grid", sample_grid(hybridizer, dataset.test, config.seed))
            if config.snapshot_every and clock.every(config.snapshot_every) and accelerator.is_main_process:
                hybridizer.save_pretrained(config.out / "snapshots" / f"step-{clock.step}")
            run.step(scalars)

        # The artefact
        test_accuracy = accuracy(hybridizer.classify, dataset.test, range(len(dataset.test)), accelerator)
        if accelerator.is_main_process:
            hybridizer.save_pretrained(config.out / "hybridizer")
        return write_result(
            config.out,
            accelerator,
            test_accuracy_last=test_accuracy,
            seed=config.seed,
            steps=clock.steps,
            seconds=run.seconds,
            split_hash=split.hash,
        )


if __name__ == "__main__":
    launch(main, Config, PRESETS)
