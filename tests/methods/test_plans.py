"""What connects settings and training: every field arrives, groups decay as they should, rates and weights are those of
the settings at every time, averages and teachers follow by their own decays, seeds differ."""

import math
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from hybridgen.hybridizer import Hybridizer, Origin
from hybridgen.methods import (
    adain,
    fixmatch,
    hybrids,
    mean_teacher,
    mixing,
    mixmatch,
    mixmo,
    mixshare,
    mixvit,
    recursivemix,
    samosa,
    scimix,
    supervised,
)
from hybridgen.methods.labelled import TrainingSettings
from hybridgen.networks.autoencoder import Architecture, SemanticAutoencoder
from hybridgen.networks.classifiers import load_classifier
from hybridgen.networks.flops import flops
from hybridgen.settings import plain
from hybridgen.training.fit import fit
from hybridgen.training.plan import Plan, in_cycles
from hybridgen.training.schedules import Clock, value
from hybridgen.types import InputError

pytestmark = pytest.mark.usefixtures("unchecked")

SMALL = dict(labelled_batch=4, unlabelled_batch=10, epochs=7.0)
SCIMIX_SMALL = dict(
    **SMALL, generator_channels=(8, 8), discriminator_width=0.25, nonsemantic_channels=2, rate_epochs=8.0
)


def made_by_scimix(context, **given) -> SemanticAutoencoder:
    return scimix.plan(scimix.Settings(**SCIMIX_SMALL, **given), context, 0)[0].network


METHODS = {
    "fixmatch": (fixmatch, fixmatch.Settings(**SMALL)),
    "mean_teacher": (mean_teacher, mean_teacher.Settings(**SMALL)),
    "mixmatch": (mixmatch, mixmatch.Settings(**SMALL | dict(unlabelled_batch=4))),
    "supervised": (supervised, supervised.Settings(**SMALL)),
}


def make(name: str, context, seed: int = 0, **changes) -> Plan:
    module, settings = METHODS[name]
    return module.plan(replace(settings, **changes), context, seed)


def at(plan: Plan, progress: float) -> Clock:
    return replace(plan.clock, step=round(progress * plan.clock.steps))


# --- every field arrives -------------------------------------------------------------------------------------


def simple(thing: object) -> object:
    """What can be compared of an objective's attributes."""
    if isinstance(thing, bool | int | float | str | tuple | None) and " at 0x" not in str(thing):
        return thing
    return getattr(thing, "__dict__", {}).get("probability") if thing is not None else None


def observed(plan: Plan) -> dict[str, str]:
    """All of a plan that settings can change, part by part, as text: times, batches, losses of a step, networks,
    optimizers."""
    seen: dict[str, object] = {"clock": plan.clock, "selection": plan.select}
    batch = next(plan.stream.from_step(0))
    seen["batch"] = [tuple((view.shape, float(view.double().sum())) for view in views) for views in batch[::2]]
    times = [at(plan, progress / 20) for progress in range(20)]
    for name, task in plan.tasks.items():
        seen[f"{name}.clip"] = task.clip
        seen[f"{name}.rate"] = [value(task.rate, clock) for clock in times]
        seen[f"{name}.weights"] = {term: [value(weight, at) for at in times] for term, weight in task.weights.items()}
        seen[f"{name}.optimizer"] = (
            type(task.optimizer).__name__,
            [
                {key: simple(kept) for key, kept in group.items() if key != "params"}
                for group in task.optimizer.param_groups
            ],
        )
        seen[f"{name}.parameters"] = [
            [tuple(parameter.shape) for parameter in group["params"]] for group in task.optimizer.param_groups
        ]
        for place, module in task.objective.named_modules():
            own = {key: simple(kept) for key, kept in vars(module).items() if not key.startswith("__")}
            of: Any = seen.setdefault(f"{name}.{place.partition('.')[0] or 'objective'}", [])
            of.append((type(module).__name__, own))
    if plan.average is not None:
        seen["average"] = [plan.average.decay, plan.average.buffers_mode, plan.average.linear_start]
    # Losses in the middle of the run, twice: what has a history or a window shows
    handed: tuple = ()
    for round_ in range(2):
        torch.manual_seed(round_)
        for name, task in plan.tasks.items():
            outcome = task.objective(batch, at(plan, 0.55), *handed)
            handed = outcome.handed
            seen[f"{name}.losses {round_}"] = {term: loss.item() for term, loss in outcome.losses.items()}
        handed = ()
    return {part: repr(value) for part, value in seen.items()}


def differing(one: dict[str, str], other: dict[str, str]) -> set[str]:
    """The parts of two plans that differ; losses, which follow from all else, where nothing else does. What objectives
    keep has to show in their losses, or that it does not is a part, too."""
    parts = {part for part in one.keys() | other.keys() if one.get(part) != other.get(part)}
    for task in {part.partition(".")[0] for part in parts if part.endswith((".objective", ".labelling"))}:
        if not any(part.startswith(f"{task}.losses") for part in parts):
            parts.add(f"{task}.not_in_losses")
    return {part for part in parts if ".losses" not in part} or {part.partition(" ")[0] for part in parts}


def arriving(parts: dict[str, str]) -> dict[str, set[str]]:
    """By field the parts that it has to arrive in, all of them and no others; `parts` has fields by parts."""
    return {field: set(of.split()) for of, names in parts.items() for field in names.split()}


ONCE: dict[object, Any] = {}


def once(settings: object, seen: Callable[[], Any]) -> Any:
    """What is observed with the settings that each field of a method is changed from."""
    if settings not in ONCE:
        ONCE[settings] = seen()
    return ONCE[settings]


OTHERS = {
    "network": "leaky-wrn-16-1", "momentum": 0.3, "epochs": 5.0, "rate": 0.123, "rate_epochs": 9.5,
    "weight_decay": 0.0321, "clip": 0.77, "labelled_batch": 6, "unlabelled_batch": 8, "ema_decay": 0.871,
    "weight_supervised": 3.21,
    "strong_labelled": True, "threshold": 0.34, "cutout": 3, "weight_unsupervised": 7.5, "teacher_decay": 0.654,
    "weight_consistency": 12.5, "reduction": "sum", "weight_logit_distance": 0.777, "guesses": 3, "temperature": 0.9,
    "alpha": 0.31, "ramp_steps": 33,
    "unsupervised_from": 3.1, "unsupervised_ramp": 3.2, "targets": "average", "weighting": "flexmatch",
    "alignment": "labels", "alignment_window": 17, "statistics_decay": 0.31, "weight_fairness": 0.67,
    "gaussian_sigmas": 1.9, "interpolate_logits": True,
}  # fmt: skip
"""Another value for every field of the classifiers' settings."""
WITH = {
    "alignment": dict(weighting="softmatch", statistics_decay=0.3),
    "alignment_window": dict(alignment="labels", weighting="softmatch", statistics_decay=0.3),
    "statistics_decay": dict(weighting="freematch"), "weight_fairness": dict(weighting="freematch"),
    "gaussian_sigmas": dict(weighting="softmatch", statistics_decay=0.3),
}  # fmt: skip
"""What a field of theirs is observed with."""


ARRIVES = arriving(
    {
        "classifier.classifier classifier.parameters": "network",
        "classifier.classifier": "momentum",
        "clock classifier.rate": "epochs",
        "classifier.rate": "rate rate_epochs",
        "classifier.optimizer": "weight_decay",
        "classifier.clip": "clip",
        "batch": "labelled_batch strong_labelled cutout guesses",
        "batch clock classifier.rate": "unlabelled_batch",
        "average": "ema_decay",
        "classifier.weights": "weight_supervised weight_unsupervised unsupervised_from unsupervised_ramp "
        "weight_consistency weight_logit_distance weight_fairness ramp_steps",
        "classifier.labelling": "threshold weighting alignment statistics_decay gaussian_sigmas",
        "classifier.losses": "alignment_window",
        "classifier.objective": "interpolate_logits reduction temperature alpha",
        "classifier.objective classifier.average average": "targets",
        "classifier.teacher": "teacher_decay",
    }
)
"""Where the fields of classifiers' settings arrive."""
ELSEWHERE = {
    "mean_teacher": arriving(
        {
            "classifier.classifier classifier.teacher classifier.parameters": "network",
            "classifier.classifier classifier.teacher": "momentum",
        }
    ),
    "mixmatch": arriving(
        {"clock classifier.weights": "epochs", "batch clock classifier.weights": "labelled_batch unlabelled_batch"}
    ),
}
"""Where it is not so: a teacher is another network; MixMatch's rate stays, and its weight grows with time."""


@pytest.mark.parametrize(
    ("name", "field"),
    [(name, field.name) for name, (_, settings) in METHODS.items() for field in fields(settings)],
)
def test_every_field_of_a_classifier_arrives(name, field, context):
    changes, others = {field: OTHERS[field]}, WITH.get(field, {})
    if name == "mixmatch" and field in ("labelled_batch", "unlabelled_batch"):
        changes = dict(labelled_batch=6, unlabelled_batch=6)
    plain = once((name, *others.items()), lambda: observed(make(name, context, **others)))
    arrived = differing(plain, observed(make(name, context, **others, **changes)))
    assert arrived == (ARRIVES | ELSEWHERE.get(name, {}))[field]


VALUES = {
    "targets": ("joint", "apart", "average"),
    "weighting": ("fixmatch", "flexmatch", "freematch", "softmatch", "adamatch"),
    "alignment": ("none", "labels", "predictions", "uniform"),
}


@pytest.mark.parametrize("field", VALUES)
def test_every_word_of_fixmatchs_fields_is_another_training(field, context):
    seen = [repr(observed(make("fixmatch", context, threshold=0.3, **{field: word}))) for word in VALUES[field]]
    assert len(set(seen)) == len(VALUES[field])


OF_SCIMIX = OTHERS | {
    "guide": "supervised", "discriminator_rate": 0.0321, "optimizer": "sgd", "nonsemantic_channels": 3,
    "generator_channels": (8, 4), "upsampling": "between", "discriminator_width": 0.5, "style": "nonsemantic",
    "semantic_distance": "norm",
    "nonsemantic_distance": "squared", "reconstruction_distance": "squared", "freeze_criteria": False,
    "classifier_rate": 0.5,
    "criterion_shift": 2, "criterion_noise": 0.5, "semantic_from": 0.3, "semantic_ramp": 0.7, "nonsemantic_from": 4.2,
    "criterion_views": 3, "penalty_every": 4, "half_size": 0.6,
}  # fmt: skip
BESIDE = {
    "teacher_decay": dict(guide="mean-teacher"), "reduction": dict(guide="mean-teacher"),
    "weight_consistency": dict(guide="mean-teacher"), "weight_logit_distance": dict(guide="mean-teacher"),
    "semantic_ramp": dict(semantic_from=0.5),
}  # fmt: skip
"""What a field is observed with."""


IN_SCIMIX = arriving(
    {
        "generator.autoencoder generator.parameters": "network nonsemantic_channels generator_channels style",
        "generator.autoencoder": "upsampling",
        "discriminator.discriminator discriminator.parameters": "discriminator_width",
        "batch generator.objective generator.weights": "guide",
        "clock generator.rate discriminator.rate generator.weights": "epochs",
        "batch clock generator.rate discriminator.rate generator.weights": "unlabelled_batch",
        "batch": "labelled_batch",
        "generator.rate discriminator.rate": "rate_epochs",
        "generator.rate": "rate",
        "discriminator.rate": "discriminator_rate",
        "generator.optimizer generator.parameters": "classifier_rate",
        "generator.optimizer discriminator.optimizer": "optimizer weight_decay",
        "generator.clip discriminator.clip": "clip",
        "average": "ema_decay",
        "generator.teacher": "teacher_decay",
        "generator.objective": "reduction threshold semantic_distance nonsemantic_distance reconstruction_distance "
        "criterion_shift criterion_noise criterion_views half_size",
        "generator.objective generator.not_in_losses": "freeze_criteria",  # but in gradients alone
        "discriminator.objective": "penalty_every",
        "generator.weights": "weight_reconstruction weight_semantic_attraction weight_semantic_repulsion "
        "weight_nonsemantic_attraction weight_nonsemantic_repulsion weight_supervised weight_consistency "
        "weight_logit_distance weight_pseudo_label semantic_from semantic_ramp nonsemantic_from",
        "generator.weights discriminator.weights": "weight_adversarial_reconstruction weight_adversarial_hybrid",
        "generator.weights discriminator.weights discriminator.objective discriminator.features "
        "discriminator.parameters": "weight_adversarial_features",
        "discriminator.weights": "weight_gradient_penalty",
    }
)


@pytest.mark.parametrize("field", [f.name for f in fields(scimix.Settings)])
def test_every_field_of_scimix_arrives(field, context):
    if field in ("snapshot_every", "backend"):
        pytest.skip("of files, and of whose kernels compute the same: tested elsewhere")
    settings = replace(scimix.Settings(**SCIMIX_SMALL), **BESIDE.get(field, {}))
    other = replace(settings, **{field: OF_SCIMIX.get(field, 0.789)})
    seen = lambda settings: observed(scimix.plan(settings, context, 0)[0])
    assert differing(once(settings, lambda: seen(settings)), seen(other)) == IN_SCIMIX[field]


def samosa_plan(settings: samosa.Settings, context, seed: int = 0, **changes) -> Plan:
    of = mean_teacher.Settings(**SMALL | changes)
    made = samosa.networks(of, context, seed, heads=2)
    return samosa.with_samosa(mean_teacher.plan(of, context, seed, classifier=made.watched), made, settings, seed)


OF_SAMOSA = {
    "rate": 0.123, "rate_epochs": 9.5, "weight_decay": 0.0321, "clip": 0.55, "reduction": "sum",
    "weight_reconstruction": 3.3, "weight_regularizer": 4.4, "cycles": 3, "hybrids_per_image": 2, "start": 3.1,
    "stop": 5.5,
}  # fmt: skip


IN_SAMOSA = arriving(
    {
        "reconstruction.rate": "rate rate_epochs",
        "reconstruction.optimizer": "weight_decay",
        "reconstruction.clip": "clip",
        "reconstruction.weights": "weight_reconstruction",
        "reconstruction.objective classifier.objective": "reduction",
        "classifier.weights": "weight_regularizer",
        "clock classifier.rate reconstruction.rate stretches": "cycles",
        "hybrids": "hybrids_per_image",
        "stretches": "start stop",
    }
)


@pytest.mark.parametrize("field", OF_SAMOSA)
def test_every_field_of_samosa_arrives(field, context):
    def seen(settings):
        plan = samosa_plan(settings, context)
        cycle = plan.clock.steps // settings.cycles
        stretches = [samosa.stretch(settings, step, 5, cycle) for step in range(plan.clock.steps)]
        return observed(plan) | {"hybrids": plan.modules["hybrids"].images.shape, "stretches": stretches}

    settings = samosa.Settings(start=1.5, stop=6)
    other = replace(settings, **{field: OF_SAMOSA[field]})
    assert differing(once(settings, lambda: seen(settings)), seen(other)) == IN_SAMOSA[field]
    assert {f.name for f in fields(samosa.Settings)} == {*OF_SAMOSA, "snapshot_every"}


TRAINING = TrainingSettings(network="wrn-10-1", batch=6, epochs=7.0, warmup=2.0)
OF_TRAINING = {
    "network": "leaky-wrn-10-1", "width": None, "epochs": 5.0, "batch": 4, "optimizer": "adamw", "nesterov": False,
    "rate": 0.0123, "warmup": 3.3, "decay_at": (2.0, 4.0), "weight_decay": 0.0321, "clip": 0.77, "label_smoothing": 0.2,
    "ema_decay": 0.9, "crop": 12, "padding": "zeros", "shift": 1, "color_jitter": True, "erasing": 1.0,
    "autoaugment": "imagenet",
    "rate_batch": 24, "views": 2,
}  # fmt: skip


IN_TRAINING = arriving(
    {
        "classifier.classifier": "network",
        "classifier.classifier classifier.parameters": "width",
        "clock classifier.rate": "epochs",
        "batch clock classifier.rate": "batch",
        "classifier.optimizer classifier.parameters": "optimizer",
        "classifier.optimizer": "nesterov weight_decay",
        "classifier.rate": "rate warmup decay_at rate_batch",
        "classifier.clip": "clip",
        "classifier.objective": "label_smoothing",
        "average": "ema_decay",
        "batch": "crop padding shift color_jitter erasing autoaugment views",
    }
)


@pytest.mark.parametrize("name", ["none", "cutmix", "manifold-mixup", "augmix", "augmix-jsd", "recursivemix"])
@pytest.mark.parametrize("field", OF_TRAINING)
def test_every_field_of_training_on_labels_arrives(field, name, context):
    seen = lambda settings: observed(mixing.plan(name, settings, context, 0))
    settings, changes = TRAINING, {field: OF_TRAINING[field]}
    if field == "width":
        settings, changes = replace(TRAINING, network="cifar-resnet18", width=0.125), dict(width=0.25)
    beside = {"recursivemix": "classifier.region_head", "manifold-mixup": "classifier.objective"}  # heads, stages
    more = {beside[name]} if field == "width" and name in beside else set()
    arrived = differing(once((name, settings), lambda: seen(settings)), seen(replace(settings, **changes)))
    assert arrived == IN_TRAINING[field] | more
    assert {f.name for f in fields(TrainingSettings)} == OF_TRAINING.keys() | {"stochastic_depth"}


OF_MIXVIT = {
    "inputs": 3, "source": "encoding", "place": "early", "mixing": "all", "alpha": 3.7, "patch_probability": 0.01,
    "encoders": "each", "inference": "alternating", "msda": True, "ensemble": "probabilities",
}  # fmt: skip
IN_MIXVIT = arriving(
    {
        "classifier.classifier classifier.parameters": "inputs source encoders",
        "classifier.classifier": "place inference ensemble",
        "classifier.objective": "mixing alpha patch_probability msda",
    }
)
TRANSFORMER = replace(TRAINING, network="vit-8-2-1-patch4")


@pytest.mark.parametrize("field", OF_MIXVIT)
def test_every_field_of_mixvit_arrives(field, context):
    settings = mixvit.Settings()
    if field == "patch_probability":
        settings = replace(settings, mixing="mixmo", patch_probability=1.0)
    plan = lambda settings: mixvit.plan(settings, TRANSFORMER, context, 0, measure=lambda *given: {"accuracy": 0.0})
    before = once((settings, "mixvit"), lambda: observed(plan(settings)))
    assert differing(before, observed(plan(replace(settings, **{field: OF_MIXVIT[field]})))) == IN_MIXVIT[field]
    assert {f.name for f in fields(mixvit.Settings)} == OF_MIXVIT.keys()


@pytest.mark.parametrize("field", [*OF_TRAINING, "stochastic_depth"])
def test_every_field_of_training_on_labels_arrives_with_transformers(field, context):
    seen = lambda training: observed(
        mixvit.plan(mixvit.Settings(), training, context, 0, measure=lambda *given: {"accuracy": 0.0})
    )
    changes = {field: (OF_TRAINING | {"network": "vit-8-2-2-patch4", "stochastic_depth": 0.5})[field]}
    if field == "width":
        with pytest.raises(InputError, match=r"width: 0.5 has no meaning for vit-8-2-1-patch4"):
            seen(replace(TRANSFORMER, width=0.5))
        return
    arrived = differing(once(TRANSFORMER, lambda: seen(TRANSFORMER)), seen(replace(TRANSFORMER, **changes)))
    places = {"classifier.classifier", "classifier.parameters"}  # their shapes are those of network and crop
    more = {"network": places, "crop": places, "stochastic_depth": {"classifier.classifier"}}
    assert arrived == IN_TRAINING.get(field, set()) | more.get(field, set())


def test_rates_grow_with_the_root_of_the_batch(context):
    """Thesis A.1.5: √(b/B), of images and not of their views."""
    training = replace(TRANSFORMER, rate=0.1, batch=6, views=3, rate_batch=24, warmup=0.0, decay_at=(99.0,))
    plan = mixvit.plan(mixvit.Settings(), training, context, 0, measure=lambda *given: {"accuracy": 0.0})
    assert plan.tasks["classifier"].rate(plan.clock) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("training", "of", "words"),
    [
        (dict(network="wrn-10-1"), {}, "network: .* is no vision transformer with self-attention blocks"),
        (dict(network="vit-8-2-1-patch3"), {}, "patches of 3 pixels do not divide images of 16"),
        (dict(crop=12, network="vit-8-2-1-patch8"), {}, "patches of 8 pixels do not divide images of 12"),
        (dict(network="vit-8-3-1"), {}, "a dimension of 8 is not divided by 3 heads"),
        (dict(batch=2), dict(inputs=3), "method.inputs: 3, but a batch has 2 images for each process"),
        (dict(network="vit-8-2-1-patch8"), dict(mixing="mixmo"), "mask: cutmix on encodings of 2×2"),
        (dict(network="wrn-10-1", stochastic_depth=0.1), {}, "is no vision transformer"),
    ],
)
def test_what_mixvit_cannot_train_is_one_error(training, of, words, context):
    with pytest.raises(InputError, match=words):
        mixvit.plan(mixvit.Settings(**of), replace(TRANSFORMER, **training), context, 0, measure=lambda *given: {})


@pytest.mark.parametrize("crop", [None, 8])
def test_what_mixvit_leaves_computes_what_was_scored(crop, context, tmp_path):
    """Its ensemble is the mean of its members, and its operations are counted; of crops in the middle of the image."""
    of = mixvit.Settings(source="encoding", ensemble="probabilities")
    training = replace(TRANSFORMER, network="convit-8-2-1-patch4", crop=crop)
    said = {}

    def measure(members, labels):
        said["logits"] = members.softmax(dim=2).mean(dim=0)
        return {"accuracy": 0.0}

    plan = mixvit.plan(of, training, context, 0, measure=measure)
    figures, logits = plan.score(plan.judged.eval(), context.dataset.test, range(5))
    plan.finish(tmp_path, plan.judged)
    left, _, side = load_classifier(tmp_path / "network.safetensors")
    whole = context.dataset.test.images.gather(torch.arange(5)).float() / 255
    images = whole if crop is None else whole[:, :, 4:12, 4:12]
    torch.testing.assert_close(left(images).softmax(dim=1), said["logits"])
    assert torch.equal(logits, plan.classify(plan.judged, whole))
    assert side == (crop or 16)
    assert figures["mflops"] == flops(left, side) / 1e6 and plan.score(
        plan.judged, context.dataset.test, ()
    ).figures.keys() == {"accuracy"}


OF_RECURSIVEMIX = {
    "alpha": 0.9, "resize": False, "history": False, "weight_consistency": 0.7, "shared_head": True,
    "interpolation": "bilinear", "divergence": "cross-entropy", "reset_each_epoch": True,
}  # fmt: skip


@pytest.mark.parametrize("field", OF_RECURSIVEMIX)
def test_every_field_of_recursivemix_arrives(field, context):
    settings = recursivemix.Settings(weight_consistency=0.0) if field == "history" else recursivemix.Settings()
    seen = lambda settings: observed(recursivemix.plan(settings, TRAINING, context, 0))
    arrived = differing(
        once(settings, lambda: seen(settings)), seen(replace(settings, **{field: OF_RECURSIVEMIX[field]}))
    )
    heads = {"classifier.classifier", "classifier.objective", "classifier.parameters", "classifier.region_head"}
    others = {"weight_consistency": {"classifier.weights"}, "shared_head": heads}
    assert arrived == others.get(field, {"classifier.objective"})
    assert {f.name for f in fields(recursivemix.Settings)} == OF_RECURSIVEMIX.keys()


def test_recursivemixs_history_is_each_processes_own_and_is_not_there_in_the_first_step(context):
    plan = recursivemix.plan(recursivemix.Settings(), TRAINING, context, 0)
    objective, batches = plan.tasks["classifier"].objective, plan.stream.from_step(0)
    assert plan.local == {"history": objective.history}
    shares = [objective(next(batches), plan.clock).rates["history_share"].item() for _ in range(2)]
    assert shares[0] == 0 < shares[1] <= 0.5  # α


OF_MIXMO = {
    "inputs": 3, "mask": "fmix", "patch_probability": 0.1, "alpha": 0.7, "root": 1.5, "repetitions": 3,
    "input_repetition": 0.8, "ensemble": "probabilities", "encoders": "one", "classifiers": "random",
    "augmix": True, "cutmix": 0.9, "attribution": "encoding",
}  # fmt: skip


IN_MIXMO = arriving(
    {
        "classifier.classifier classifier.parameters": "inputs encoders attribution",
        "classifier.classifier": "ensemble",
        "classifier.objective": "mask patch_probability alpha root input_repetition classifiers unmixing fade part",
        "batch clock classifier.rate": "repetitions",
        "batch": "augmix",
        "batch classifier.objective": "cutmix",
        "classifier.losses": "kernels",
    }
)
"""And in MixShare."""


@pytest.mark.parametrize("field", OF_MIXMO)
def test_every_field_of_mixmo_arrives(field, context):
    settings = mixmo.Settings(patch_probability=1.0, encoders="one" if field == "attribution" else "each")
    plan = lambda settings: mixmo.plan(settings, TRAINING, context, 0, measure=lambda *given: {"accuracy": 0.0})
    arrived = differing(observed(plan(settings)), observed(plan(replace(settings, **{field: OF_MIXMO[field]}))))
    assert arrived == IN_MIXMO[field]
    assert {f.name for f in fields(mixmo.Settings)} == OF_MIXMO.keys()


OF_MIXSHARE = {field: value for field, value in OF_MIXMO.items() if field != "attribution"} | {
    "patch_probability": 0.1, "kernels": "collinear", "unmixing": "whole", "fade": 3.0, "part": 0.75
}  # fmt: skip
"""All but what MixShare refuses."""


@pytest.mark.parametrize("field", OF_MIXSHARE)
def test_every_field_of_mixshare_arrives(field, context):
    settings = mixshare.Settings(unmixing="partial" if field == "part" else "fade-out")
    plan = lambda settings: mixshare.plan(settings, TRAINING, context, 0, measure=lambda *given: {"accuracy": 0.0})
    before = once(settings, lambda: observed(plan(settings)))
    assert differing(before, observed(plan(replace(settings, **{field: OF_MIXSHARE[field]})))) == IN_MIXMO[field]
    assert {f.name for f in fields(mixshare.Settings)} == {*OF_MIXSHARE, "attribution"}


@pytest.mark.parametrize("field", OF_TRAINING)
def test_every_field_of_training_on_labels_arrives_with_several_inputs(field, context):
    plan = lambda training: mixmo.plan(mixmo.Settings(), training, context, 0, measure=lambda *given: {"accuracy": 0.0})
    settings, changes = TRAINING, {field: OF_TRAINING[field]}
    if field == "width":
        settings, changes = replace(TRAINING, network="cifar-resnet18", width=0.125), dict(width=0.25)
    assert differing(observed(plan(settings)), observed(plan(replace(settings, **changes)))) == IN_TRAINING[field]


OF_ADAIN = {
    "network": "leaky-wrn-10-1", "perception_steps": 44, "perception_batch": 5, "perception_rate": 0.0321,
    "epochs": 3.0,
    "batch": 7, "rate": 0.0123, "weight_decay": 0.0777, "ema_decay": 0.5, "weight_content": 2.2, "weight_style": 3.3,
}  # fmt: skip


IN_ADAIN = arriving(
    {
        "first.perception.classifier first.perception.parameters transfer.autoencoder transfer.parameters": "network",
        "first.clock first.perception.rate": "perception_steps",
        "first.batch": "perception_batch",
        "first.perception.rate": "perception_rate",
        "first.perception.optimizer transfer.optimizer": "weight_decay",
        "clock transfer.rate": "epochs",
        "batch clock": "batch",
        "transfer.rate": "rate",
        "average": "ema_decay",
        "transfer.weights": "weight_content weight_style",
    }
)


@pytest.mark.parametrize("field", OF_ADAIN)
def test_every_field_of_adain_arrives(field, context):
    def seen(settings):
        autoencoder = adain.network(settings, context, 0)
        first = observed(adain.perception_plan(settings, context, autoencoder, 0))
        second = observed(adain.plan(settings, context, autoencoder, 0)[0])
        return {f"first.{part}": of for part, of in first.items()} | second

    settings = adain.Settings(batch=10, perception_batch=6)
    other = replace(settings, **{field: OF_ADAIN[field]})
    assert differing(once(settings, lambda: seen(settings)), seen(other)) == IN_ADAIN[field]
    assert {f.name for f in fields(adain.Settings)} == {*OF_ADAIN, "perceptual"}


def test_nothing_but_settings_shows_in_what_is_observed(context):
    """Two times the same is observed, so that another observation is the field's."""
    for name in METHODS:
        assert observed(make(name, context)) == once((name,), lambda name=name: observed(make(name, context)))


# --- seeds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_two_seeds_differ_from_the_first_weights_and_images_on_and_one_seed_repeats(name, context):
    weights = lambda plan: torch.cat([p.detach().flatten() for p in plan.network.parameters()])
    images = lambda plan: torch.cat([v.flatten() for views in next(plan.stream.from_step(0))[::2] for v in views])
    first, again, other = (make(name, context, seed) for seed in (3, 3, 4))
    for part in (weights, images):
        assert torch.equal(part(first), part(again)) and not torch.equal(part(first), part(other))


@pytest.mark.parametrize(
    "plan",
    [
        lambda context, seed: scimix.plan(scimix.Settings(**SCIMIX_SMALL), context, seed)[0],
        lambda context, seed: mixing.plan("cutmix", TRAINING, context, seed),
        lambda context, seed: mixing.plan("augmix", TRAINING, context, seed),
        lambda context, seed: recursivemix.plan(recursivemix.Settings(), TRAINING, context, seed),
        lambda context, seed: mixmo.plan(mixmo.Settings(), TRAINING, context, seed, measure=lambda *given: {}),
        lambda context, seed: adain.perception_plan(
            adain.Settings(), context, adain.network(adain.Settings(), context, seed), seed
        ),
        lambda context, seed: adain.plan(
            adain.Settings(), context, adain.network(adain.Settings(), context, seed), seed
        )[0],
    ],
    ids=["scimix", "cutmix", "augmix", "recursivemix", "mixmo", "perception", "adain"],
)
def test_so_do_those_of_other_plans(plan, context):
    weights = lambda made: torch.cat([p.detach().flatten() for p in made.network.parameters()])
    first, again, other = (plan(context, seed) for seed in (3, 3, 4))
    assert torch.equal(weights(first), weights(again)) and not torch.equal(weights(first), weights(other))
    batches = [next(made.stream.from_step(0)) for made in (first, again, other)]
    images = [(*batch.labelled, *batch.unlabelled)[0] for batch in batches]
    assert torch.equal(*images[:2]) and not torch.equal(*images[1:])


# --- optimizers, rates, weights ------------------------------------------------------------------------------


def names_of(plan: Plan, group: dict) -> set[str]:
    wanted = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in plan.network.named_parameters() if id(parameter) in wanted}


@pytest.mark.parametrize("name", ["fixmatch", "mixmatch"])
def test_kernels_alone_decay_in_fixmatch_and_mixmatch(name, context):
    plan = make(name, context, weight_decay=0.0321)
    decaying, others = plan.tasks["classifier"].optimizer.param_groups
    kernels = {key for key, parameter in plan.network.named_parameters() if parameter.ndim > 1}
    assert names_of(plan, decaying) == kernels and decaying["weight_decay"] == 0.0321
    assert names_of(plan, others) == {key for key, _ in plan.network.named_parameters()} - kernels
    assert others["weight_decay"] == 0


@pytest.mark.parametrize("name", ["mean_teacher", "supervised"])
def test_all_parameters_decay_in_mean_teacher_and_supervised_training(name, context):
    plan = make(name, context, weight_decay=0.0321)
    (group,) = plan.tasks["classifier"].optimizer.param_groups
    assert names_of(plan, group) == {key for key, _ in plan.network.named_parameters()}
    assert group["weight_decay"] == 0.0321


def test_optimizers_are_nesterovs_sgd_and_mixmatchs_adam(context):
    for name in ("fixmatch", "mean_teacher", "supervised"):
        optimizer = make(name, context).tasks["classifier"].optimizer
        assert type(optimizer) is torch.optim.SGD
        assert all(group["nesterov"] and group["momentum"] == 0.9 for group in optimizer.param_groups)
    optimizer = make("mixmatch", context).tasks["classifier"].optimizer
    assert type(optimizer) is torch.optim.AdamW
    assert all(group["betas"] == (0.9, 0.999) for group in optimizer.param_groups)


RATES = {
    "fixmatch": lambda progress: math.cos(7 * math.pi / 16 * progress),
    "mean_teacher": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "mixmatch": lambda progress: 1.0,
    "supervised": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
}


@pytest.mark.parametrize("name", METHODS)
def test_rates_over_time(name, context):
    """The method's own, and along a cosine that would end after `rate_epochs`."""
    plan = make(name, context, rate=0.37)
    for progress in (0.0, 0.25, 0.5, 1.0):
        clock = at(plan, progress)
        exact = clock.step / clock.steps
        assert plan.tasks["classifier"].rate(clock) == pytest.approx(0.37 * RATES[name](exact), rel=1e-9)
    slower = make(name, context, rate=0.37, rate_epochs=11.0)
    for progress in (0.0, 0.25, 0.5, 1.0):
        clock = at(slower, progress)
        expected = 0.37 * (1 + math.cos(math.pi * clock.epoch / 11)) / 2
        assert slower.tasks["classifier"].rate(clock) == pytest.approx(expected, rel=1e-9)


def test_weights_by_value(context):
    """Distinct numbers, each at its own loss."""
    weights = lambda plan, progress: {
        name: value(weight, at(plan, progress)) for name, weight in plan.tasks["classifier"].weights.items()
    }
    assert weights(make("fixmatch", context, weight_supervised=2.5, weight_unsupervised=3.5), 0.5) == {
        "supervised": 2.5, "unsupervised": 3.5,
    }  # fmt: skip
    numbers = dict(weight_supervised=2.5, weight_consistency=3.5, weight_logit_distance=4.5)
    assert weights(make("mean_teacher", context, **numbers), 0.5) == {
        "supervised": 2.5, "consistency": 3.5, "logit_distance": 4.5,
    }  # fmt: skip
    assert weights(make("supervised", context, weight_supervised=2.5), 0.5) == {"supervised": 2.5}
    plan = make("mixmatch", context, weight_supervised=2.5, weight_unsupervised=8.0, ramp_steps=40)
    for step, expected in ((0, 0.0), (10, 2.0), (40, 8.0), (60, 8.0)):
        found = {name: value(w, replace(plan.clock, step=step)) for name, w in plan.tasks["classifier"].weights.items()}
        assert found == {"supervised": 2.5, "unsupervised": expected}


def test_scimix_weights_by_value_over_time():
    """Every λ at its own loss, from its own epoch on; the critic's are those of the same terms of the generator."""
    numbers = {f"weight_{name}": number / 7 for number, name in enumerate((
        "reconstruction", "adversarial_reconstruction", "adversarial_hybrid", "semantic_attraction",
        "semantic_repulsion", "nonsemantic_attraction", "nonsemantic_repulsion", "supervised", "consistency",
        "logit_distance", "pseudo_label", "gradient_penalty", "adversarial_features"), start=1)}  # fmt: skip
    settings = scimix.Settings(**numbers, semantic_from=2.0, semantic_ramp=4.0, nonsemantic_from=5.0)
    for epoch, semantic, nonsemantic in ((0, 0, 0), (1.9, 0, 0), (2, 0, 0), (3, 0.25, 0), (4.9, 0.725, 0), (5, 0.75, 1),
                                         (6, 1, 1), (20, 1, 1)):  # fmt: skip
        clock = Clock(steps=1000, steps_per_epoch=10, step=round(10 * epoch))
        weights, critic = ({k: value(w, clock) for k, w in each.items()} for each in scimix.weights_of(settings))
        assert weights == pytest.approx({
            "reconstruction": 1 / 7, "adversarial_reconstruction": 2 / 7, "adversarial_hybrid": 3 / 7,
            "adversarial_features": 13 / 7 * semantic,
            "semantic_attraction": 4 / 7 * semantic, "semantic_repulsion": 5 / 7 * semantic,
            "nonsemantic_attraction": 6 / 7 * nonsemantic, "nonsemantic_repulsion": nonsemantic, "supervised": 8 / 7,
            "pseudo_label": 11 / 7,
        })  # fmt: skip
        expected = {"real": 1.0, "reconstruction": 2 / 7, "hybrid": 3 / 7, "gradient_penalty": 12 / 7}
        assert critic == pytest.approx(expected | {"real_features": 1.0, "hybrid_features": 1.0})
    assert not any(
        "features" in name
        for each in scimix.weights_of(replace(settings, weight_adversarial_features=0.0))
        for name in each
    )
    teaching, _ = scimix.weights_of(replace(settings, guide="mean-teacher"))
    assert {name: teaching[name] for name in ("supervised", "consistency", "logit_distance")} == pytest.approx(
        {"supervised": 8 / 7, "consistency": 9 / 7, "logit_distance": 10 / 7}
    )
    assert "gradient_penalty" not in scimix.weights_of(replace(settings, weight_gradient_penalty=0))[1]


def test_the_penalty_of_scimix_is_lazy_above_16_pixels_unless_told_otherwise(context):
    every = lambda context, **given: (
        scimix.plan(scimix.Settings(**SCIMIX_SMALL, **given), context, 0)[0]
        .tasks["discriminator"]
        .objective.penalty_every
    )
    large = replace(context, dataset=replace(context.dataset, image_size=32))
    assert (every(context), every(large)) == (1, 16)
    assert every(context, penalty_every=5) == every(large, penalty_every=5) == 5
    assert every(large, weight_gradient_penalty=0.0, penalty_every=5) is None


def test_a_generator_doubles_the_size_between_convolutions_above_16_pixels_unless_told_otherwise(context, large):
    made = lambda context, **given: made_by_scimix(context, **given).architecture
    assert [made(each).upsampling for each in (context, large)] == ["bilinear", "between"]
    assert [made(context, upsampling=each).upsampling for each in ("bilinear", "between")] == ["bilinear", "between"]
    assert [made(large, upsampling=each).upsampling for each in ("bilinear", "between")] == ["bilinear", "between"]


def test_fixmatch_is_adamatch_above_16_pixels_unless_told_otherwise(context):
    large = replace(context, dataset=replace(context.dataset, image_size=32))

    def chosen(context, **given):
        settings = {name: value for name, value in SMALL.items() if name not in ("rate", "ema_decay")}
        plan = fixmatch.plan(fixmatch.Settings(**settings, **given), context, 0)
        task = plan.tasks["classifier"]
        weighting = type(task.objective.labelling.weighting).__name__
        return weighting, task.rate(replace(plan.clock, step=0)), plan.average.decay

    assert chosen(context) == ("FixedThreshold", 0.06, 0.99)
    steps = make("fixmatch", context).clock.steps
    assert chosen(large) == ("RelativeThreshold", 0.03, pytest.approx(1 - 6 / steps)) and 6 < steps < 600
    for of in (context, large):
        own = chosen(of, weighting="freematch", rate=0.123, ema_decay=0.5)
        assert own == ("SelfAdaptiveThresholds", 0.123, 0.5)


@pytest.mark.parametrize(
    ("size", "steps", "decay"),
    [(16, 10, 0.99), (16, 10**6, 0.99), (17, 10**6, 0.999), (32, 6000, 0.999), (32, 3000, 0.998), (64, 300, 0.98),
     (32, 6, 0.0), (32, 1, 0.0)],
)  # fmt: skip
def test_an_average_reaches_back_over_a_sixth_of_the_steps_at_most(size, steps, decay):
    assert fixmatch.usual_decay(size, steps) == pytest.approx(decay, abs=1e-12)


def test_half_the_size_needs_a_generator_that_starts_from_the_small_images_code(context):
    settings = scimix.Settings(**SCIMIX_SMALL, half_size=0.5, style="nonsemantic")
    with pytest.raises(InputError, match=r"^half_size: 0.5 beside style 'nonsemantic'"):
        scimix.plan(settings, context, 0)
    with pytest.raises(InputError, match=r"half_size: 1.0 .*less than 1"):
        scimix.Settings(half_size=1.0)


def test_scimix_rates_decay_and_clip_are_of_each_side(context):
    numbers = SCIMIX_SMALL | dict(rate=0.03, discriminator_rate=0.07, rate_epochs=9.0, weight_decay=0.0321, clip=0.5)
    plan, _ = scimix.plan(scimix.Settings(**numbers), context, 0)
    for name, rate in (("generator", 0.03), ("discriminator", 0.07)):
        task = plan.tasks[name]
        for progress in (0, 0.5, 1):
            clock = at(plan, progress)
            expected = rate * (1 + math.cos(math.pi * clock.epoch / 9)) / 2
            assert task.rate(clock) == pytest.approx(expected, rel=1e-9)
        assert task.clip == 0.5 and [group["weight_decay"] for group in task.optimizer.param_groups] == [0.0321]
    own = {id(p) for p in plan.tasks["discriminator"].objective.discriminator.parameters()}
    groups = [{id(p) for p in plan.tasks[name].parameters} for name in ("generator", "discriminator")]
    assert groups[1] == own and not groups[0] & own


@pytest.mark.parametrize("epochs", [None, 9.0, 72.0])
def test_scimix_rate_and_windows_keep_their_place_in_a_run_of_other_epochs(epochs, context):
    """The rate falls over 37 where there are 36, hybrids take their class from 1 to 2.5, and their place from 2.5 on;
    what is given stays."""
    numbers = SCIMIX_SMALL | dict(epochs=epochs, rate=0.03, rate_epochs=None)
    weights = dict(weight_semantic_attraction=0.3, weight_nonsemantic_attraction=0.7)
    for given in ({}, dict(semantic_from=0.5)):
        plan, _ = scimix.plan(scimix.Settings(**numbers, **weights, **given), context, 0)
        task = plan.tasks["generator"]
        for part in (0.0, 0.5, 1.0, 1.25, 1.75, 2.4, 2.6, 18.0, 36.0):  # of 36
            clock = at(plan, part / 36)
            now = 36 * clock.progress
            assert task.rate(clock) == pytest.approx(0.03 * (1 + math.cos(math.pi * now / 37)) / 2, rel=1e-6)
            begun = now - 1 if not given else 36 * (clock.epoch - 0.5) / (epochs or 36)
            assert value(task.weights["semantic_attraction"], clock) == pytest.approx(
                0.3 * min(1, max(0, begun / 1.5)), abs=1e-9
            )
            assert value(task.weights["nonsemantic_attraction"], clock) == 0.7 * (now >= 2.5)


def test_labelled_rates_warm_up_and_fall(context):
    plan = mixing.plan("none", replace(TRAINING, rate=0.4, warmup=2.0, epochs=10.0), context, 0)
    assert plan.clock.steps_per_epoch == 2
    rate = lambda step: plan.tasks["classifier"].rate(replace(plan.clock, step=step))
    for step in range(plan.clock.steps):
        falling = 0.4 * (1 + math.cos(math.pi * step / 20)) / 2
        assert rate(step) == pytest.approx(falling * min(1, (step + 1) / 4), rel=1e-9), step
    steps = mixing.plan("none", replace(TRAINING, rate=0.4, warmup=0, epochs=10.0, decay_at=(3, 5)), context, 0)
    rate = lambda epoch: steps.tasks["classifier"].rate(replace(steps.clock, step=2 * epoch))
    assert [rate(epoch) for epoch in (0, 2, 3, 4, 5, 9)] == pytest.approx([0.4, 0.4, 0.04, 0.04, 0.004, 0.004])


def test_label_smoothing_reaches_every_method_on_labels(context):
    for name in ("none", "cutmix", "manifold-mixup", "augmix", "augmix-jsd", "recursivemix"):
        plan = mixing.plan(name, replace(TRAINING, label_smoothing=0.3), context, 0)
        assert plan.tasks["classifier"].objective.smoothing == 0.3, name


# --- from a finished classifier ------------------------------------------------------------------------------


def finished(context, network: str = "leaky-wrn-10-1"):
    """A classifier whose weights and statistics are not those of a new one."""
    torch.manual_seed(17)
    made = context.classifier(network)
    for tensor in made.network.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand(tensor.shape) / 9)
    return made


def of_classifier(network) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.classifier.state_dict().items()}


def test_finished_encoders_classify_as_they_did_and_stay_as_they_are(context):
    """For whole steps, both tasks; E_r and G are drawn as without, and learn."""
    classifier = finished(context)
    settings = scimix.Settings(**SCIMIX_SMALL, semantic_from=0.0, nonsemantic_from=0.0)
    plan, hybridizer = scimix.plan(settings, context, 5, classifier=classifier)
    other, _ = scimix.plan(settings, context, 5)
    for part in ("nonsemantic_encoder", "generator"):
        mine, theirs = (getattr(each.network, part).state_dict() for each in (plan, other))
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)

    images = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        expected = classifier.eval()(images)
        torch.testing.assert_close(plan.network.classifier(images)[1], expected)
    before = of_classifier(plan.network)
    others = {name: p.clone() for name, p in plan.network.named_parameters() if not name.startswith("classifier.")}
    steps = fit(plan.tasks, plan.stream.from_step(0), plan.clock, context.accelerator, seed=0)
    for _ in islice(steps, 3):
        plan.average.update(plan.network)
    for network in (plan.network, plan.average.network):
        after = of_classifier(network)
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        assert not network.classifier.training
    assert plan.network.nonsemantic_encoder.training and plan.network.generator.training
    after = dict(plan.network.named_parameters())
    assert all(not torch.equal(after[name], parameter) for name, parameter in others.items())
    with torch.no_grad():
        torch.testing.assert_close(hybridizer.classify(images), expected)


def test_finished_encoders_need_neither_guide_nor_second_views(context):
    plan, _ = scimix.plan(scimix.Settings(**SCIMIX_SMALL), context, 0, classifier=finished(context))
    batch = next(plan.stream.from_step(0))
    assert (len(batch.labelled), len(batch.unlabelled)) == (1, 1)
    task = plan.tasks["generator"]
    guides = {"supervised", "pseudo_label", "consistency", "logit_distance"}
    assert not guides & task.weights.keys() and "semantic_attraction" in task.weights
    learning = {id(p) for name, p in plan.network.named_parameters() if not name.startswith("classifier.")}
    assert {id(p) for p in task.parameters} == learning
    assert all("factor" not in group for group in task.optimizer.param_groups)


@pytest.mark.parametrize("guide", ["fixmatch", "mean-teacher", "supervised"])
def test_encoders_that_go_on_learn_by_a_part_of_the_rate_from_their_guide(guide, context):
    """Batch-norm's statistics go on, and so does Mean Teacher's teacher, which starts where they do."""
    classifier = finished(context)
    settings = scimix.Settings(**SCIMIX_SMALL, guide=guide, classifier_rate=0.25)
    plan, _ = scimix.plan(settings, context, 0, classifier=classifier)
    task, network = plan.tasks["generator"], plan.network.classifier
    of = {"fixmatch": "pseudo_label", "mean-teacher": "consistency", "supervised": "supervised"}
    assert of[guide] in task.weights and network.training
    fast, slow = task.optimizer.param_groups
    assert (fast.get("factor"), slow["factor"], slow["weight_decay"]) == (None, 0.25, fast["weight_decay"])
    assert {id(p) for p in slow["params"]} == {id(p) for p in network.parameters() if p.requires_grad}
    stem = classifier.network.encoder.trunk.stem.weight
    assert torch.equal(network.encoder.trunk.stem.weight, stem)
    if guide == "mean-teacher":
        assert torch.equal(task.objective.teacher.network.encoder.trunk.stem.weight, stem)
        assert torch.equal(network.heads.consistency.weight, classifier.network.head.weight)
    whole, _ = scimix.plan(replace(settings, classifier_rate=1.0), context, 0, classifier=classifier)
    assert len(whole.tasks["generator"].optimizer.param_groups) == 1


def test_encoders_that_cannot_start_or_would_never_learn_are_refused(context):
    settings = scimix.Settings(**SCIMIX_SMALL)
    with pytest.raises(InputError, match=r"^classifier_rate: 0, but E_c and C are new; .* \(--classifier\)$"):
        scimix.plan(replace(settings, classifier_rate=0.0), context, 0)
    for network in ("leaky-wrn-16-1", "leaky-wrn-10-2", "leaky-wrn-10-1-normalized", "wrn-10-1", "pyramidnet11-3"):
        with pytest.raises(
            InputError, match=r"^classifier: a \w+ that is not the encoders' network; one --network for"
        ):
            scimix.plan(settings, context, 0, classifier=context.classifier(network))


# --- what follows a step -------------------------------------------------------------------------------------


def moved(network: nn.Module) -> None:
    """As a step of an optimizer would, and batch-norm."""
    with torch.no_grad():
        for tensor in (*network.parameters(), *(b for b in network.buffers() if b.is_floating_point())):
            tensor.add_(1.0)


def test_the_teacher_moves_by_its_own_decay_after_each_step(context, tmp_path):
    """After its linear start; the average, by another decay, is none of its business."""
    plan = make("mean_teacher", context, teacher_decay=0.6, ema_decay=0.9)
    teacher = plan.tasks["classifier"].objective.teacher
    before = [p.clone() for p in teacher.network.parameters()]
    own = {name: b.clone() for name, b in teacher.network.named_buffers()}
    factors = []
    for step in range(1, 6):
        moved(plan.network)
        assert plan.after_step(tmp_path) == {}
        decay = min(1 - 1 / (step + 1), 0.6)
        factors.append(decay)
        before = [decay * b + (1 - decay) * p for b, p in zip(before, plan.network.parameters(), strict=True)]
        for mine, theirs in zip(before, teacher.network.parameters(), strict=True):
            torch.testing.assert_close(theirs, mine)
    assert factors == [0.5, 0.6, 0.6, 0.6, 0.6]
    for name, buffer in teacher.network.named_buffers():  # batch-norm statistics are the teacher's own
        assert torch.equal(buffer, own[name]), name


@pytest.mark.parametrize("name", METHODS)
def test_averages_take_parameters_by_their_decay_and_carry_batch_norm_statistics(name, context):
    plan = make(name, context, ema_decay=0.75)
    old = [p.clone() for p in plan.average.network.parameters()]
    moved(plan.network)
    plan.average.update(plan.network)
    for was, now, source in zip(old, plan.average.network.parameters(), plan.network.parameters(), strict=True):
        torch.testing.assert_close(now, 0.75 * was + 0.25 * source)  # from the first step on: no linear start
    carried = [(a, b) for a, b in zip(plan.average.network.buffers(), plan.network.buffers(), strict=True)]
    assert len(carried) > 5 and all(torch.equal(a, b) for a, b in carried)
    assert plan.judged is plan.average.network and not plan.average.training


def test_scimix_averages_statistics_like_parameters_and_its_teacher_follows(context, tmp_path):
    settings = scimix.Settings(**SCIMIX_SMALL, guide="mean-teacher", ema_decay=0.2, teacher_decay=0.3)
    plan, hybridizer = scimix.plan(settings, context, 0)
    assert hybridizer.autoencoder is plan.average.network
    norm = lambda network: network.classifier.encoder.norm.running_mean
    old, teacher = norm(plan.average.network).clone(), plan.tasks["generator"].objective.teacher
    moved(plan.network)
    plan.average.update(plan.network)
    torch.testing.assert_close(norm(plan.average.network), 0.2 * old + 0.8 * norm(plan.network))
    before = next(teacher.network.parameters()).clone()
    plan.after_step(tmp_path)
    assert not torch.equal(next(teacher.network.parameters()), before)
    other, _ = scimix.plan(replace(settings, guide="supervised"), context, 0)
    assert other.after_step(tmp_path) == {}


def test_an_average_of_networks_on_labels_is_there_where_asked_for(context):
    without, with_one = (mixing.plan("none", replace(TRAINING, ema_decay=decay), context, 0) for decay in (0.0, 0.8))
    assert without.average is None and without.judged is without.network
    assert with_one.average.decay == 0.8 and with_one.judged is with_one.average.network
    assert not with_one.average.linear_start  # the decay of a whole run counts from its first step


# --- what is judged and left ---------------------------------------------------------------------------------


def adains(context, seed: int = 0) -> tuple[Plan, Plan]:
    autoencoder = adain.network(adain.Settings(), context, seed)
    first = adain.perception_plan(adain.Settings(), context, autoencoder, seed)
    return first, adain.plan(adain.Settings(), context, autoencoder, seed)[0]


GENERATING = {
    "scimix": lambda context: scimix.plan(scimix.Settings(**SCIMIX_SMALL), context, 0)[0],
    "samosa": lambda context: samosa_plan(samosa.Settings(stop=6), context),
    "perception": lambda context: adains(context)[0],
    "adain": lambda context: adains(context)[1],
}


@pytest.mark.parametrize("name", GENERATING)
def test_the_score_is_the_accuracy_of_the_head_that_predicts(name, context):
    """Of networks whose other head, if there is one, always errs; nothing but SAMOSA's classifier is selected by it."""
    plan = GENERATING[name](context)
    network = plan.judged.eval()
    classifier = network if name == "perception" else network.classifier
    heads = getattr(classifier, "heads", None)
    with torch.no_grad():
        if heads is None:
            classifier.network.head.bias.copy_(torch.tensor([0.0, 1e3, 0.0]))
        else:
            heads.predictions.bias.copy_(torch.tensor([0.0, 1e3, 0.0]))
            heads.consistency.bias.copy_(torch.tensor([1e3, 0.0, 0.0]))
    part = replace(context.dataset.test, labels=torch.tensor([1] * 9 + [2] * 6))
    assert plan.score(network, part, range(10)).figures == {"accuracy": 0.9}
    unknown = replace(part, labels=torch.tensor([-1] * 6 + [1] * 3 + [2] * 6))
    assert plan.score(network, unknown, range(10)).figures == {"accuracy": 0.75}
    assert plan.select == ("accuracy" if name == "samosa" else None)


@pytest.mark.parametrize("name", ["scimix", "samosa", "adain"])
def test_generators_know_the_statistics_of_the_images_and_leave_their_origin(name, context, tmp_path):
    plan = GENERATING[name](context)
    of = plan.network.architecture
    assert (of.mean, of.std, of.classes, of.image_size) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 3, 16)
    if name == "scimix":
        normalize = plan.tasks["discriminator"].objective.discriminator.normalize
        assert normalize.mean.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
        assert normalize.std.flatten().tolist() == pytest.approx([0.2, 0.3, 0.25])
    assert not any(module.training for module in plan.average.network.modules())
    assert plan.average.linear_start is (name != "samosa")
    assert plan.average.buffers_mode == ("average" if name == "scimix" else "copy")
    plan.finish(tmp_path, plan.judged)
    assert Hybridizer.from_pretrained(tmp_path / "hybridizer").origin.method == name
    if name == "samosa":  # the momentum of tables A.1 to A.6 unless the base method has another
        momenta = [
            samosa.networks(
                mean_teacher.Settings(momentum=given), context, 0, heads=2
            ).autoencoder.architecture.momentum
            for given in (None, 0.3)
        ]
        assert momenta == [0.1, 0.3]


def test_adains_optimizers_and_the_batch_of_its_first_training(context):
    """Adam of StyleGAN2 for features; fewer images a step than asked for where there are fewer."""
    first, second = adains(context)
    betas = [plan.tasks[name].optimizer.param_groups[0]["betas"] for plan, name in
             ((first, "perception"), (second, "transfer"))]  # fmt: skip
    assert betas == [(0.0, 0.99), (0.9, 0.99)]
    assert len(next(first.stream.from_step(0)).labels) == 12  # all that are labelled, of 64


def test_all_labels_are_those_of_validation_too_but_not_unknown_ones(context):
    labels = context.dataset.train.labels.clone()
    labels[-4:] = -1
    dataset = replace(context.dataset, train=replace(context.dataset.train, labels=labels))
    split = adain.with_all_labels(replace(context, dataset=dataset)).split
    assert (split.labelled, split.unlabelled, split.validation) == (tuple(range(56)), tuple(range(56, 60)), ())
    assert (split.dataset, split.fingerprint, split.seed) == ("noise", "f" * 64, 0)


def test_scimix_takes_the_convolutions_that_it_is_told_to(context):
    kinds = {}
    for backend in ("hybridgen", "stylegan2-pytorch"):
        generator = made_by_scimix(context, backend=backend).generator
        kinds[backend] = {type(module).__module__.partition(".")[0] for module in generator.modules()} - {"torch"}
    assert kinds == {"hybridgen": {"hybridgen"}, "stylegan2-pytorch": {"hybridgen", "stylegan2_pytorch"}}


def test_scimix_shifts_hybrids_by_less_than_their_side(context):
    """Of half of it, where they are half as large at first."""
    for half_size, side in ((0.0, 16), (0.5, 8)):
        made_by_scimix(context, criterion_shift=side - 1, half_size=half_size)
        with pytest.raises(InputError, match=rf"^criterion_shift: {side} pixels of images of {side}; less are needed"):
            made_by_scimix(context, criterion_shift=side, half_size=half_size)


# --- views ---------------------------------------------------------------------------------------------------


def test_fixmatch_sees_a_weak_and_a_strong_view_and_the_others_weak_ones(context):
    """The strong view of nothing but cutout's grey is far from its image; the weak one has its pixels."""
    batch = next(make("fixmatch", context, cutout=32).stream.from_step(0))
    assert (len(batch.labelled), len(batch.unlabelled)) == (1, 2)
    weak, strong = batch.unlabelled
    assert (strong == 0.5).all() and not (weak == 0.5).any()
    half = next(make("fixmatch", context).stream.from_step(0)).unlabelled[1]
    assert 0.1 < (half == 0.5).all(dim=1).float().mean() < 0.4  # squares of half the side, clipped at borders
    labelled = next(make("fixmatch", context, cutout=32, strong_labelled=True).stream.from_step(0)).labelled
    assert [(view == 0.5).all().item() for view in labelled] == [False, True]
    counts = {"mean_teacher": (2, 2), "mixmatch": (1, 2), "supervised": (1, 1)}
    for name, expected in counts.items():
        batch = next(make(name, context).stream.from_step(0))
        assert (len(batch.labelled), len(batch.unlabelled)) == expected
    assert len(next(make("mixmatch", context, guesses=3).stream.from_step(0)).unlabelled) == 3


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("module", [fixmatch, scimix])
def test_strong_views_are_mirrored_where_images_keep_their_class(module, mirrored, context, monkeypatch):
    """Digits do not. They are shifted by an eighth of the side, and a square of half the side is cut out."""
    seen = []
    monkeypatch.setattr(module, "strong", lambda images, generator, **how: seen.append(how) or images)
    context = replace(context, dataset=replace(context.dataset, flip=mirrored))
    made = module.plan(module.Settings(**SMALL), context, 0)
    plan = made[0] if module is scimix else made
    next(plan.stream.from_step(0))
    assert seen == [{"flip": mirrored, "shift": 2, "cutout": 8}]  # A.1.2.1: an eighth; code of FixMatch: a half


# --- hybrids wrap a plan -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hybridizer() -> Hybridizer:
    torch.manual_seed(1)
    architecture = Architecture(
        image_size=16, classes=3, network="leaky-wrn-10-1", nonsemantic_channels=2, generator_channels=(4, 4)
    )
    return Hybridizer(SemanticAutoencoder(architecture).eval(), Origin("none", "f", "0", ("a", "b", "c")))


OF_HYBRIDS = {
    "use": "consistency", "alpha": 0.6, "copies": 2, "start": 5.5, "stop": 2.0, "reduction": "mean",
    "keep_consistent": False, "weight": 3.7,
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("field", [*OF_HYBRIDS, "threshold"])
def test_every_field_of_hybrids_arrives(name, field, context, hybridizer):
    changes = {field: OF_HYBRIDS.get(field)}
    settings = hybrids.Settings(start=0.5, stop=6)
    if field == "threshold":
        settings, changes = replace(settings, use="pseudo-label", threshold=0.01), dict(threshold=0.99999)
    seen = lambda how: observed(hybrids.with_hybrids(make(name, context), hybridizer, how))
    arrived = differing(once((name, settings), lambda: seen(settings)), seen(replace(settings, **changes)))
    assert arrived == ({"classifier.weights"} if field == "weight" else {"classifier.losses"})
    others = {"hybridizer", "baseline", "from_hybridizer", "allow_other_split"}  # what is loaded: tested with recipes
    assert {f.name for f in fields(hybrids.Settings)} == {*OF_HYBRIDS, "threshold", *others}


@pytest.mark.parametrize(("size", "given", "copies"), [(16, None, 3), (17, None, 1), (16, 2, 2), (32, 4, 4)])
def test_each_image_has_three_hybrids_above_16_pixels_one_unless_told_otherwise(size, given, copies, context, capsys):
    base = make("supervised", context)
    base = replace(base, context=replace(context, dataset=replace(context.dataset, image_size=size)))
    plan = hybrids.with_hybrids(base, hybrids.Mixer("mixup"), hybrids.Settings(copies=given, start=0.0))
    seen, batch = [], next(plan.stream.from_step(0))
    plan.network.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    plan.tasks["classifier"].objective(batch, plan.clock)
    assert seen[-1] == copies * (len(batch.labelled[0]) + len(batch.unlabelled[0]))
    base.context.say()
    said = f"hybrids from epoch 0 to 6, {copies} of each image, α 0.6, for images above 16 pixels; --hybrids.start"
    assert (said in capsys.readouterr().out) == (size > 16)
    hybrids.with_hybrids(base, hybrids.Mixer("mixup"), hybrids.Settings(copies=copies, start=0.0, stop=6.0, alpha=0.7))
    base.context.say()
    assert "hybrids from epoch" not in capsys.readouterr().out  # where nothing is chosen nothing is told


@pytest.mark.parametrize("name", METHODS)
def test_hybrids_add_a_loss_with_its_weight_in_its_window_and_leave_the_rest(name, context, hybridizer):
    base = make(name, context)
    plan = hybrids.with_hybrids(make(name, context), hybridizer, hybrids.Settings(start=2.0, stop=5.0, weight=1.75))
    task, own = plan.tasks["classifier"], base.tasks["classifier"]
    for clock in (at(base, progress) for progress in (0, 0.3, 0.9)):
        weights, expected = ({n: value(w, clock) for n, w in each.weights.items()} for each in (task, own))
        assert weights == {**expected, "hybrids": 1.75}
    assert (task.rate(at(plan, 0.3)), task.clip) == (own.rate(at(base, 0.3)), own.clip)
    learnt = {id(p) for p in plan.network.parameters()}
    assert {id(p) for p in task.parameters} == learnt and {id(p) for p in task.objective.parameters()} >= learnt
    batch = next(plan.stream.from_step(0))
    hybrid = {}
    for epoch in (1.9, 2.0, 4.9, 5.0):
        step = math.ceil(epoch * plan.clock.steps_per_epoch)
        torch.manual_seed(0)
        loss = task.objective(batch, replace(plan.clock, step=step)).losses["hybrids"]
        hybrid[epoch] = loss.item()
        if hybrid[epoch] > 0:  # the network learns, and not its average
            found = torch.autograd.grad(
                loss, [p for p in plan.network.parameters() if p.requires_grad], allow_unused=True
            )
            assert any(gradient is not None and gradient.any() for gradient in found)
    steps = plan.clock.steps_per_epoch
    inside = {epoch: 2.0 <= math.ceil(epoch * steps) / steps < 5.0 for epoch in hybrid}
    assert {epoch: loss > 0 for epoch, loss in hybrid.items()} == inside


def test_an_empty_window_of_hybrids_is_refused(context, hybridizer):
    for start, stop in ((5.0, 5.0), (7.0, math.inf), (9.0, 10.0)):
        with pytest.raises(InputError, match=r"^hybrids.start, hybrids.stop: the window"):
            how = hybrids.Settings(start=start, stop=stop)
            hybrids.with_hybrids(make("fixmatch", context), hybridizer, how)


# --- cycles --------------------------------------------------------------------------------------------------


def test_cycles_are_the_plan_again_with_rates_from_their_beginning(context):
    plan, again = make("mean_teacher", context, rate=0.4), in_cycles(make("mean_teacher", context, rate=0.4), 3)
    assert again.clock.steps == 3 * plan.clock.steps
    for step in range(again.clock.steps):
        rate = again.tasks["classifier"].rate(replace(again.clock, step=step))
        assert rate == plan.tasks["classifier"].rate(replace(plan.clock, step=step % plan.clock.steps))


def test_samosas_rates_of_both_optimizers_start_anew_in_every_cycle(context):
    plan = samosa_plan(samosa.Settings(cycles=3, rate=0.6, start=1, stop=6), context, rate=0.2)
    cycle = plan.clock.steps // 3
    for name, rate in (("classifier", 0.2), ("reconstruction", 0.6)):
        at_step = lambda step, name=name: plan.tasks[name].rate(replace(plan.clock, step=step))
        assert [at_step(number * cycle) for number in range(3)] == pytest.approx([rate] * 3)
        assert at_step(cycle - 1) < 0.1 * rate and at_step(3 * cycle - 1) < 0.1 * rate
        middle = rate * (1 + math.cos(math.pi * (cycle // 2) / plan.clock.steps_per_epoch / 7.0)) / 2
        assert at_step(cycle // 2) == pytest.approx(middle)
    slower = samosa_plan(samosa.Settings(cycles=1, rate=0.6, rate_epochs=14.0, start=1, stop=6), context)
    end = slower.tasks["reconstruction"].rate(at(slower, 0.5))
    assert end == pytest.approx(0.6 * (1 + math.cos(math.pi * at(slower, 0.5).epoch / 14)) / 2)


def test_samosas_weights_decays_and_clips_are_of_each_optimizer(context):
    how = samosa.Settings(
        weight_decay=0.0321, clip=0.7, weight_reconstruction=2.5, weight_regularizer=3.5, stop=6, reduction="sum"
    )
    plan = samosa_plan(how, context, weight_decay=0.0123, clip=0.3)
    first, second = plan.tasks["classifier"], plan.tasks["reconstruction"]
    assert first.objective.reduction == second.objective.reduction == "sum"
    assert (first.clip, second.clip) == (0.3, 0.7)
    decays = [task.optimizer.param_groups[0]["weight_decay"] for task in (first, second)]
    assert decays == [0.0123, 0.0321]
    assert first.weights["regularizer"] == 3.5 and second.weights == {"reconstruction": 2.5}
    network = plan.network
    classifier = {id(p) for p in network.classifier.parameters()}
    others = {id(p) for part in (network.nonsemantic_encoder, network.decoder) for p in part.parameters()}
    assert {id(p) for p in first.parameters} == classifier and {id(p) for p in second.parameters} == others


@pytest.mark.parametrize(("start", "stop"), [(5.0, 5.0), (7.0, math.inf), (9.0, 10.0)])
def test_an_empty_window_of_samosas_hybrids_is_refused(start, stop, context):
    with pytest.raises(InputError, match=r"^samosa.start, samosa.stop: the window .* the 7 epochs"):
        samosa.alone(make("supervised", context), samosa.Settings(start=start, stop=stop))


def test_mixmatchs_replacement_is_in_the_window_of_every_cycle():
    how = samosa.Settings(cycles=2, start=1.0, stop=3.0)
    window = [how.window(Clock(steps=80, steps_per_epoch=10, step=step)) for step in range(80)]
    inside = [10 <= step % 40 < 30 for step in range(80)]
    assert window == inside


def test_samosas_average_takes_the_parameters_by_the_decay_of_its_base_method(context):
    plan = samosa_plan(samosa.Settings(stop=6), context, ema_decay=0.75)
    before = [parameter.clone() for parameter in plan.average.network.parameters()]
    with torch.no_grad():
        for parameter in plan.network.parameters():
            parameter.add_(1.0)
    plan.average.update(plan.network)
    for now, then in zip(plan.average.network.parameters(), before, strict=True):
        torch.testing.assert_close(now, then + 0.25)


def test_samosas_hybrids_have_other_parents_in_every_cycle_and_for_every_seed(context, tmp_path, monkeypatch):
    made, agreed = [], []
    monkeypatch.setattr(samosa.HybridSet, "make", lambda _, *given: float(made.append(given) is None))
    monkeypatch.setattr(samosa, "agree", lambda network, _: agreed.append((network, len(made))))
    for seed in (0, 1):
        plan = samosa_plan(samosa.Settings(cycles=3, stop=6), context, seed)
        for cycle in (1, 2):
            plan.clock.step = cycle * plan.clock.steps // 3
            assert plan.after_step(tmp_path)["hybrids_kept"] == 1.0
            assert made[-1][0] is plan.average.network  # by the averages, of which all processes have the first's
            assert agreed[-1] == (plan.average, len(made) - 1)
    assert len({seed for *_, seed in made}) == len(made) == 4


def test_samosa_leaves_snapshots_and_no_hybrids_after_its_last_cycle(context, tmp_path, monkeypatch):
    """And the teacher of the base method goes on to follow."""
    monkeypatch.setattr(samosa.HybridSet, "make", lambda *_: 0.25)
    plan = samosa_plan(samosa.Settings(cycles=2, stop=6, snapshot_every=3), context, labelled_batch=8)
    teacher = plan.tasks["classifier"].objective.base.teacher
    noted, steps = {}, plan.clock.steps
    for step in (2, 3, 4, 6, steps // 2, steps):
        plan.clock.step, before = step, teacher.updates
        noted[step] = plan.after_step(tmp_path)
        assert teacher.updates == before + 1
    assert {step: made for step, made in noted.items() if made} == {steps // 2: {"hybrids_kept": 0.25}}
    left = {f"step-{step}" for step in (3, 6, steps)}
    assert {path.name for path in (tmp_path / "snapshots").iterdir()} == left
    assert list(plan.modules) == ["hybrids"]


def test_validation_images_are_no_parents_of_samosas_hybrids(context):
    """Every training image but those of validation is drawn as a non-semantic parent, sooner or later."""
    drawn = set()

    class Sources:
        def gather(self, indices):
            drawn.update(indices.tolist())
            return torch.zeros(len(indices), 3, 16, 16, dtype=torch.uint8)

        def __len__(self):
            return 60

    plan = samosa_plan(samosa.Settings(stop=6, hybrids_per_image=40), context)
    hybrid_set = plan.modules["hybrids"]
    part = replace(context.dataset.train)
    object.__setattr__(part, "images", Sources())
    hybrid_set.make(plan.average.network, replace(context.dataset, train=part), context.split, 5)
    assert drawn == set(range(51))


# --- together ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_plan_is_made_of_a_classifier_that_is_there(name, context):
    classifier = context.classifier("leaky-wrn-10-1", heads=2 if name == "mean_teacher" else 1)
    module, settings = METHODS[name]
    plan = module.plan(settings, context, 0, classifier=classifier)
    assert plan.network is classifier
    for mine, theirs in zip(plan.average.network.parameters(), classifier.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_compiled_is_what_is_called_and_has_no_second_derivative(context, monkeypatch):
    """Objectives call parts of SAMOSA's networks; SciMix's penalty is a gradient of the discriminator's gradient."""
    compiled: list[str] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    context = replace(context, settings=replace(context.settings, compiled=True))
    made = samosa.networks(METHODS["mean_teacher"][1], context, 0, heads=2).autoencoder
    parts = (made.classifier, made.nonsemantic_encoder, made.decoder)
    assert compiled == [type(part).__name__ for part in parts]
    for penalty, expected in ((0.0, ["SemanticAutoencoder", "Discriminator"]), (1.0, ["SemanticAutoencoder"])):
        compiled.clear()
        made_by_scimix(context, weight_gradient_penalty=penalty)
        assert compiled == expected


def test_mixmatch_refuses_batches_of_unequal_size(context):
    with pytest.raises(InputError, match="unlabelled_batch: 5 beside 4"):
        make("mixmatch", context, unlabelled_batch=5)


@pytest.mark.parametrize(("given", "size"), [({}, 32), (dict(labelled_batch=5), 5), (dict(unlabelled_batch=7), 7)])
def test_mixmatchs_batches_are_of_one_size_where_one_or_none_is_given(given, size, context):
    """None: 32 of each, or all that are labelled where there are fewer."""
    many = replace(context.split, labelled=tuple(range(40)), unlabelled=tuple(range(40, 60)), validation=())
    for split, expected in ((many, size), (context.split, min(size, 12))):
        batch = next(mixmatch.plan(mixmatch.Settings(**given), replace(context, split=split), 0).stream.from_step(0))
        assert [len(views[0]) for views in (batch.labelled, batch.unlabelled)] == [expected] * 2


@pytest.mark.parametrize(("module", "training"), [(mixmo, TRAINING), (mixvit, TRANSFORMER)])
def test_a_process_has_as_many_images_as_there_are_inputs(module, training, context, monkeypatch):
    """Six of a batch are three for each of two processes."""
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(InputError, match=r"^method.inputs: 4, but a batch has 3 images for each process"):
        module.plan(module.Settings(inputs=4), training, context, 0, measure=lambda *given: {"accuracy": 0.0})


def test_a_transformer_is_made_for_the_crops_that_it_sees(context):
    plan = mixing.plan("none", replace(TRANSFORMER, crop=8), context, 0)
    images = next(plan.stream.from_step(0)).labelled[0]
    assert images.shape[2:] == (8, 8) and plan.network(images).shape == (6, 3)
    assert plan.classify(plan.network, context.dataset.test.images.gather(torch.arange(2)) / 255).shape == (2, 3)


@pytest.mark.parametrize("main", [True, False])
def test_the_main_process_alone_leaves_the_network(main, context, tmp_path, monkeypatch):
    plans = (make("fixmatch", context), mixing.plan("none", TRAINING, context, 0))
    monkeypatch.setattr(Accelerator, "is_main_process", main)
    for number, plan in enumerate(plans):
        plan.finish(tmp_path / str(number), plan.judged)
        assert (tmp_path / str(number) / "network.safetensors").exists() == main


def test_settings_are_plain_values(context):
    for _, settings in METHODS.values():
        assert all(isinstance(kept, int | float | str | bool | None) for kept in plain(settings).values())


def test_plans_leave_their_artefacts(context, tmp_path):
    plan, _ = scimix.plan(scimix.Settings(**SCIMIX_SMALL, snapshot_every=2), context, 0)
    for step in range(1, 5):
        plan.clock.step = step
        plan.after_step(tmp_path)
    assert {path.name for path in (tmp_path / "snapshots").iterdir()} == {"step-2", "step-4"}
    plan.finish(tmp_path, plan.judged)
    again = Hybridizer.from_pretrained(tmp_path / "hybridizer")
    assert again.origin.split_hash == context.split.hash and again.origin.method == "scimix"
    assert Path(tmp_path / "hybridizer" / "model.safetensors").exists()


# --- what is chosen ------------------------------------------------------------------------------------------


def test_what_settings_leave_open_is_noted_by_the_places_of_their_fields(context, large):
    fixmatch.plan(fixmatch.Settings(), context, 0)
    assert context.chosen == {
        "method.labelled_batch": 12, "method.unlabelled_batch": 51, "method.epochs": 14.0, "method.ema_decay": 0.99,
        "method.network": "leaky-wrn-10-1", "method.rate": 0.06, "method.weighting": "fixmatch",
    }  # fmt: skip
    plan = fixmatch.plan(fixmatch.Settings(labelled_batch=3), large, 0)
    hybrids.with_hybrids(plan, hybrids.Mixer("mixup"), hybrids.Settings())
    decay = 1 - 6 / plan.clock.steps
    assert large.chosen == {
        "method.labelled_batch": 3, "method.unlabelled_batch": 51, "method.epochs": 14.0, "method.network": "fast",
        "method.ema_decay": pytest.approx(decay), "method.rate": 0.03, "method.weighting": "adamatch",
        "hybrids.alpha": 0.6, "hybrids.copies": 1, "hybrids.start": 14 / 3, "hybrids.stop": 12.0,
    }  # fmt: skip
    large.chosen.clear()
    scimix.plan(scimix.Settings(generator_channels=(8, 8)), replace(large, group="generator"), 0)
    assert large.chosen == {
        "generator.labelled_batch": 12, "generator.unlabelled_batch": 40, "generator.epochs": 36.0,
        "generator.network": "fast", "generator.classifier_rate": 1.0, "generator.penalty_every": 16,
        "generator.upsampling": "between", "generator.weight_adversarial_features": 2.0,
        "generator.weight_semantic_attraction": 8.0,
        "generator.weight_nonsemantic_attraction": 0.04, "generator.rate_epochs": 37.0,
        "generator.semantic_from": 1.0, "generator.semantic_ramp": 1.5, "generator.nonsemantic_from": 2.5,
    }  # fmt: skip
    mixing.plan("none", TrainingSettings(batch=6, epochs=7.0), context, 0)
    assert {name: value for name, value in context.chosen.items() if "training" in name} == {
        "training.network": "cifar-resnet18", "training.width": 0.125,
    }  # fmt: skip


# --- few images ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_of_few_images_an_epoch_is_as_many_passes_as_twenty_steps_take_unless_epochs_are_given(name, context, capsys):
    """51 images are not set aside: in batches of 4 a pass is 12 steps, in batches of 10 it is 5."""
    unlabelled = METHODS[name][1].unlabelled_batch
    passes, steps = {4: (2, 24), 10: (4, 20)}[unlabelled]
    usual = 8 if name == "mixmatch" else 14
    plan = make(name, context, epochs=None)
    assert (plan.clock.steps_per_epoch, plan.clock.steps) == (steps, usual * steps)
    context.say()
    said = f"an epoch is {passes} passes over the images, of {steps // passes} steps each: {usual} epochs are "
    assert f"{said}{usual * steps} steps; --epochs" in capsys.readouterr().out
    if name in ("mean_teacher", "supervised"):  # whose rate falls over the whole
        first, half, last = (value(plan.tasks["classifier"].rate, at(plan, progress)) for progress in (0, 0.5, 1))
        assert half == pytest.approx(first / 2) and last == pytest.approx(0, abs=1e-12)
    make(name, replace(context, group="generator"), epochs=None)
    context.say()
    assert f"generator: {said}{usual * steps} steps; --generator.epochs\n" in capsys.readouterr().out
    given = make(name, context, epochs=2.0)
    assert (given.clock.steps_per_epoch, given.clock.steps) == (steps // passes, 2 * steps // passes)
    context.say()
    assert f"2 epochs are {given.clock.steps} steps, in which little is learnt" in capsys.readouterr().out


def test_of_many_images_an_epoch_of_the_generator_is_a_part_of_a_pass_unless_epochs_are_given(
    context, monkeypatch, capsys
):
    """Batches of 2 of 51 images: 25 steps a pass."""
    assert scimix.LONGEST == 128
    monkeypatch.setattr(scimix, "LONGEST", 22)
    small = SCIMIX_SMALL | dict(unlabelled_batch=2)
    plan, _ = scimix.plan(scimix.Settings(**small | dict(epochs=None)), context, 0)
    assert (plan.stream.steps_per_epoch, plan.clock.steps_per_epoch, plan.clock.steps) == (25, 22, 36 * 22)
    context.say()
    said = "an epoch is 22 of the 25 steps of a pass over the images: 36 epochs are 792 steps; --epochs"
    assert said in capsys.readouterr().out
    plan, _ = scimix.plan(scimix.Settings(**small | dict(epochs=2.0)), context, 0)
    assert (plan.clock.steps_per_epoch, plan.clock.steps) == (25, 50)
    monkeypatch.setattr(scimix, "LONGEST", 25)
    plan, _ = scimix.plan(scimix.Settings(**small | dict(epochs=None)), context, 0)
    assert plan.clock.steps == 36 * 25
    context.say()
    assert "an epoch is" not in capsys.readouterr().out


def test_of_few_images_the_generator_and_all_windows_keep_their_place(context, hybridizer):
    """Batches of 10 of 51 images: 20 steps an epoch; hybrids from its epoch 2 to its epoch 12."""
    plan, _ = scimix.plan(scimix.Settings(**SCIMIX_SMALL | dict(epochs=None)), context, 0)
    assert (plan.clock.steps_per_epoch, plan.clock.steps) == (20, 36 * 20)
    how = hybrids.Settings(start=2.0, stop=12.0, keep_consistent=False)
    with_them = hybrids.with_hybrids(make("supervised", context, epochs=None), hybridizer, how)
    objective, batch = with_them.tasks["classifier"].objective, next(with_them.stream.from_step(0))
    losses = [objective(batch, replace(with_them.clock, step=step)).losses for step in (39, 40, 239, 240)]
    assert [found["hybrids"].item() > 0 for found in losses] == [False, True, True, False]
    cycles = samosa_plan(samosa.Settings(cycles=2, start=1, stop=6), context, epochs=None)
    assert cycles.clock.steps == 2 * 14 * 20 and cycles.stream.steps_per_epoch == 20
