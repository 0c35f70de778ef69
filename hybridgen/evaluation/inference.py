"""What one transformer of several inputs answers by each of its inferences, and what each costs: table 4.6 of the
thesis on the same weights, and A.7.3's estimate beside what is measured."""

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any, NamedTuple, get_args

import torch
from accelerate import Accelerator
from matplotlib.figure import Figure

from hybridgen.data.datasets import Part
from hybridgen.evaluation.classification import top_accuracy
from hybridgen.evaluation.figures import draw_bars
from hybridgen.evaluation.studies import Finding
from hybridgen.evaluation.transfer import Rate, aligned, shown, wilson
from hybridgen.methods.labelled import central
from hybridgen.methods.mixvit import transformer_of
from hybridgen.networks.classifiers import Classifier
from hybridgen.networks.flops import flops
from hybridgen.networks.members import Inference, ensembled
from hybridgen.networks.multi_input import MultiInputClassifier
from hybridgen.networks.multi_input_transformer import MultiInputTransformer
from hybridgen.networks.vision_transformers import CLASS_BLOCKS
from hybridgen.training.engine import now
from hybridgen.training.scores import logits_of
from hybridgen.types import Images, InputError

ONE = "one input"
"""The plain network that is in every one of several inputs."""

TITLES: dict[str, str] = {
    ONE: "One input",
    "separate": "Separate",
    "sum": "Sum",
    "alternating": "Alternating",
    "single": "Single subnetwork",
    "together": "All tokens",
}

CLASS_BLOCK = 0.25
"""What a class-attention block computes of what a block of self-attention does, at most (A.7.3)."""


class Answers(NamedTuple):
    """Of one inference, how many images it classifies rightly."""

    accuracy: Rate
    members: tuple[float, ...]
    """Accuracy of each answer; of one where there is no more."""


class Cost(NamedTuple):
    """Of one inference."""

    flops: int
    """Of an image; a multiplication and an addition are two."""
    estimate: float
    """Times the plain network's, by A.7.3."""
    seconds: float
    """An image takes, in a batch."""


def estimated_ratio(network: MultiInputTransformer) -> float:
    """How much more than the plain network of L feature blocks an inference computes, by A.7.3, (L + M/2) / (L + 1/2)
    of M passes through the classifier blocks alone; M of M passes through the whole network, and of M times the tokens.
    """
    passes = len(network.versions)
    early = network.place == "early" or len(network.encoders) > 1
    tokens = network.inputs if network.inference == "together" else 1
    blocks, classing = len(network.core.blocks), CLASS_BLOCKS * CLASS_BLOCK
    return tokens * (blocks * (passes if early else 1) + classing * passes) / (blocks + classing)


def inferences(classifier: Classifier | MultiInputClassifier) -> dict[str, Classifier]:
    """The plain network of one input, and the same network by each of its inferences, of the same parameters and in
    evaluation mode. InputError for another network, and for one of a single input."""
    network = transformer_of(classifier)
    if network.inputs < 2:
        raise InputError("network: of one input, which has one inference; two inputs or more are needed")
    mean, std = (values.flatten().tolist() for values in (classifier.normalize.mean, classifier.normalize.std))
    every = {ONE: network.of_one_input()} | {how: network.inferring(how) for how in get_args(Inference)}
    device = classifier.normalize.mean.device
    return {how: Classifier(each, mean=mean, std=std).to(device).eval() for how, each in every.items()}


def answers_of(
    every: Mapping[str, Classifier],
    part: Part,
    indices: Sequence[int],
    accelerator: Accelerator,
    *,
    crop: int | None = None,
) -> dict[str, Answers]:
    """Of all inferences but the plain network's on these images, or their centre of this side. Processes share the
    work; InputError for no image."""
    found = {}
    for how, classifier in every.items():
        if how != ONE:
            members, labels = logits_of(
                lambda images, of=classifier: of.members(central(images, crop)), part, indices, accelerator
            )
            right = top_accuracy(ensembled(members, transformer_of(classifier).ensemble), labels)
            found[how] = Answers(wilson(right, len(labels)), tuple(top_accuracy(one, labels) for one in members))
    return found


@torch.no_grad()
def costs(every: Mapping[str, Classifier], images: Images, *, rounds: int) -> dict[str, Cost]:
    """Of each inference on a batch of images, of which each is timed in every round, by turns; the median counts."""
    seconds: dict[str, list[float]] = {how: [] for how in every}
    for number in range(rounds + 1):
        for how, classifier in every.items():
            began = now(images.device)
            classifier(images)
            if number:  # the first one warms up
                seconds[how].append((now(images.device) - began) / len(images))
    return {
        how: Cost(
            flops(classifier, images.shape[2]),
            1.0 if how == ONE else estimated_ratio(transformer_of(classifier)),
            median(seconds[how]),
        )
        for how, classifier in every.items()
    }


def study(found: Mapping[str, Cost], answers: Mapping[str, Answers], trained: Inference | None) -> Finding:
    """Of one network's inferences: a table, JSON and a picture. `answers` are of a trained network, none of a new one;
    `trained` is the inference that its run judged it by."""
    plain = found[ONE]
    rows = [("", "accuracy, %", "members, %", "MFLOPs", "ratio", "A.7.3", "ms an image", "ratio")]
    values: dict[str, Any] = {}
    for how, cost in found.items():
        asked = answers.get(how)
        rows.append((
            TITLES[how] + " (the run's)" * (how == trained),
            "–" if asked is None else shown(asked.accuracy),
            "–" if asked is None else " ".join(f"{100 * share:.1f}" for share in asked.members),
            f"{cost.flops / 1e6:.2f}",
            f"{cost.flops / plain.flops:.3f}",
            f"{cost.estimate:.3f}",
            f"{1e3 * cost.seconds:.3f}",
            f"{cost.seconds / plain.seconds:.2f}",
        ))  # fmt: skip
        values[how] = {
            "flops": cost.flops,
            "flops_ratio": cost.flops / plain.flops,
            "estimated_ratio": cost.estimate,
            "seconds_per_image": cost.seconds,
            "seconds_ratio": cost.seconds / plain.seconds,
        }
        if asked is not None:
            accuracy, low, high = asked.accuracy
            values[how] |= {
                "accuracy": accuracy,
                "accuracy_interval": [low, high],
                "member_accuracies": list(asked.members),
            }
    said = (
        "MFLOPs: of an image, two for each multiplication and addition, as measured; A.7.3: what the thesis estimates\n"
        "by blocks alone; ratios: to the plain network of one input, whose answers are not asked for"
    )
    table, figure = f"{aligned(rows)}\n\n{said}\n", _figure(found, answers)
    return Finding({"inference_of_the_run": trained, "inferences": values}, table, figure)


def _figure(found: Mapping[str, Cost], answers: Mapping[str, Answers]) -> Figure:
    plain = found[ONE]
    figure = Figure(figsize=(4.2 * (2 + bool(answers)), 2.8), layout="constrained")
    first, *others = figure.subplots(1, 2 + bool(answers), squeeze=False)[0]
    if answers:
        draw_bars(
            first,
            {TITLES[how]: 100 * of.accuracy.value for how, of in answers.items()},
            "accuracy, %",
            [f"{100 * of.accuracy.value:.1f} (members {100 * fmean(of.members):.1f})" for of in answers.values()],
        )
    axes = others if answers else [first, *others]
    for axis, title, of in (
        (axes[0], "MFLOPs an image", lambda cost: cost.flops / 1e6),
        (axes[1], "ms an image", lambda cost: 1e3 * cost.seconds),
    ):
        bars = {TITLES[how]: of(cost) for how, cost in found.items()}
        draw_bars(axis, bars, title, [f"{value / of(plain):.2f}×" for value in bars.values()])
    return figure
