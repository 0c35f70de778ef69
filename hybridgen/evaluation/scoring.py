"""How finished classifiers and their ensembles do: on images as they are, and corrupted."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from jaxtyping import Float, Float64, Int64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from hybridgen.data.cifar_c import CifarC
from hybridgen.data.corruptions import CORRUPTIONS, check_corruptions, corrupt
from hybridgen.data.datasets import Part
from hybridgen.data.streams import derive_seed
from hybridgen.evaluation.calibration import BINS, binned, calibration_error
from hybridgen.evaluation.classification import Classes, Predicted, brier, confusion_counts, nll, top_accuracy
from hybridgen.evaluation.ensembles import TOP
from hybridgen.evaluation.figures import WITH_FIGURES, WITH_NAMES, draw_confusion
from hybridgen.evaluation.finished import Trained
from hybridgen.evaluation.intervals import Estimate, with_intervals
from hybridgen.evaluation.predictions import Predictions
from hybridgen.evaluation.selective import risk_coverage
from hybridgen.evaluation.transfer import aligned, wilson
from hybridgen.files import written_aside
from hybridgen.networks.members import Ensemble, ensembled
from hybridgen.training.scores import logits_of
from hybridgen.types import Images


class Shown(NamedTuple):
    """How a figure is written."""

    title: str
    percent: bool = False

    def number(self, value: float) -> str:
        return f"{100 * value:z.1f}" if self.percent else f"{value:z.3f}"

    def text(self, value: Estimate | float | None) -> str:
        """With its interval where it has one; a dash where there is none."""
        if value is None:
            return "–"
        if not isinstance(value, Estimate):
            return self.number(value)
        return f"{self.number(value.value)} [{self.number(value.low)}, {self.number(value.high)}]"


OF_ALL = {
    "accuracy": Shown("top-1, %", percent=True),
    "top5": Shown(f"top-{TOP}, %", percent=True),
    "nll": Shown("NLL"),
    "nll_calibrated": Shown("NLL_c"),
    "ece": Shown("ECE, %", percent=True),
    "brier": Shown("Brier"),
    "aurc": Shown("AURC"),
}
OF_MEMBERS = {
    "member_accuracy": Shown("members' top-1, %", percent=True),
    "disagreement": Shown("disagreement, %", percent=True),
    "ratio_error": Shown("ratio-error"),
    "error_correlation": Shown("correlation of errors"),
}
OF_CORRUPTED = {name: OF_ALL[name] for name in ("accuracy", "top5", "nll", "ece", "brier")}

Scores = dict[str, Estimate]
"""Figures by their names: those of `evaluation.ensembles`, and `aurc`."""


def scores_of(predictions: Predictions, *, seed: int) -> Scores:
    """All figures of a classifier or an ensemble with their 95 % intervals, whose draws are from `seed`."""
    return with_intervals(predictions.members, predictions.logits, predictions.labels, seed=seed)


def table(scores: Mapping[str, Scores]) -> str:
    """A row for each classifier and ensemble; below, one for each that has several members."""
    rows = [("", *(shown.title for shown in OF_ALL.values()))]
    rows += [(name, *(shown.text(own.get(key)) for key, shown in OF_ALL.items())) for name, own in scores.items()]
    several = {name: own for name, own in scores.items() if "disagreement" in own}
    if not several:
        return aligned(rows)
    more = [("", *(shown.title for shown in OF_MEMBERS.values()))]
    more += [(name, *(shown.text(own[key]) for key, shown in OF_MEMBERS.items())) for name, own in several.items()]
    return f"{aligned(rows)}\n\n{aligned(more)}"


def plain(scores: Scores) -> dict[str, Any]:
    """In JSON's types: each figure, and its interval under `<name>_interval`; null for what is not finite."""
    found: dict[str, Any] = {}
    for name, (value, low, high) in scores.items():
        found[name] = _finite(value)
        found[f"{name}_interval"] = [_finite(low), _finite(high)]
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# --- Classes ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ByClass:
    """How a classifier or an ensemble does on the images of each class."""

    counts: Int64[Tensor, "classes classes"]
    """`confusion_counts`: rows are the images' classes, columns what is predicted."""

    @classmethod
    def of(cls, predictions: Predictions) -> "ByClass":
        return cls(confusion_counts(predictions.logits, predictions.labels))

    @property
    def images(self) -> list[int]:
        """Of each class."""
        return self.counts.sum(dim=1).tolist()

    @property
    def accuracies(self) -> list[Estimate | None]:
        """Share of the class's images that are taken for it, with Wilson's 95 % interval; None where there is none."""
        return [
            Estimate(*wilson(right / images, images)) if images else None
            for right, images in zip(self.counts.diagonal().tolist(), self.images, strict=True)
        ]

    @property
    def shares(self) -> Float64[Tensor, "classes classes"]:
        """Of each row; nan where the class has no image."""
        return self.counts.double() / self.counts.sum(dim=1, keepdim=True)

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types; null for a class without an image."""
        of = self.accuracies
        return {
            "class_accuracy": [one and one.value for one in of],
            "class_accuracy_interval": [one and [one.low, one.high] for one in of],
            "confusion": self.counts.tolist(),
        }


def class_tables(of: Mapping[str, ByClass], classes: Sequence[str]) -> str:
    """Accuracy by class of each classifier and ensemble; and the last one's confusion, of many classes its twenty
    largest errors."""
    *_, (name, last) = of.items()
    rows = [("class", "images", *(f"{each}, top-1, %" for each in of))]
    for title, images, *own in zip(classes, last.images, *(each.accuracies for each in of.values()), strict=True):
        rows.append((title, str(images), *map(OF_ALL["accuracy"].text, own)))
    if len(classes) <= WITH_FIGURES:
        heading = f"Confusion of {name}: rows are classes of images, columns what is predicted of them"
        cells = [("", *classes)]
        cells += [(title, *map(str, row)) for title, row in zip(classes, last.counts.tolist(), strict=True)]
    else:
        heading = f"The twenty largest confusions of {name}"
        wrong = last.counts - last.counts.diag().diag()
        largest = wrong.flatten().argsort(descending=True, stable=True)[:20].tolist()
        pairs = [divmod(place, len(classes)) for place in largest if wrong.flatten()[place]]
        cells = [("class", "taken for", "images")]
        cells += [(classes[i], classes[j], f"{wrong[i, j]} of {last.images[i]}") for i, j in pairs]
    return f"{aligned(rows)}\n\n{heading}\n{aligned(cells)}"


# --- Corrupted images -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corrupted:
    """Kinds of corrupted images."""

    names: tuple[str, ...]
    at: Callable[[str, int], tuple[Part, Callable[[Images], Images]]]
    """Of a kind and a severity from 1 to 5: images, and what is done to each batch of them."""


ALL = "all"


def own_corruptions(part: Part, names: Sequence[str], accelerator: Accelerator, *, seed: int) -> Corrupted:
    """Those of `data.corruptions`: these, or `all`. The draws of each at a severity are a function of seed and process,
    in batches of the same size. InputError for an unknown name."""
    names = tuple(CORRUPTIONS) if list(names) == [ALL] else tuple(names)
    check_corruptions(names, flag="--corruptions")

    def at(name: str, severity: int) -> tuple[Part, Callable[[Images], Images]]:
        generator = torch.Generator(accelerator.device)
        generator.manual_seed(derive_seed(seed, name, severity, accelerator.process_index))
        return part, lambda images: corrupt(images, name, severity, generator)

    return Corrupted(names, at)


def benchmark_files(files: CifarC) -> Corrupted:
    """Those of CIFAR-10-C or CIFAR-100-C."""
    return Corrupted(files.names, lambda name, severity: (files.part(name, severity), lambda images: images))


@dataclass(frozen=True)
class Robustness:
    """Figures on corrupted images."""

    severities: tuple[int, ...]
    figures: dict[str, dict[str, dict[str, list[float]]]]
    """Of each classifier, and of the ensemble if there is one, by corruption and figure, in the order of severities."""

    def means(self, name: str) -> dict[str, dict[str, float]]:
        """Of a classifier, by corruption: means over severities; and under `mean` those over corruptions."""
        of = {
            corruption: {key: fmean(values) for key, values in figures.items()}
            for corruption, figures in self.figures[name].items()
        }
        return of | {"mean": {key: fmean(each[key] for each in of.values()) for key in OF_CORRUPTED}}

    def to_dict(self) -> dict[str, Any]:
        return {
            "severities": list(self.severities),
            "classifiers": {name: {"means": self.means(name), "severities": of} for name, of in self.figures.items()},
        }

    def table(self) -> str:
        """Of the ensemble, or of the only classifier, by corruption; then the means of all."""
        *others, last = self.figures
        rows = [(last, *(shown.title for shown in OF_CORRUPTED.values()))]
        rows += [_row(corruption, own) for corruption, own in self.means(last).items()]
        rows += [_row(f"mean of {name}", self.means(name)["mean"]) for name in others]
        return aligned(rows)


def _row(name: str, figures: Mapping[str, float]) -> tuple[str, ...]:
    return (name, *(shown.text(figures[key]) for key, shown in OF_CORRUPTED.items()))


def robustness(
    classifiers: Mapping[str, Trained],
    ensemble: Ensemble,
    indices: Int64[Tensor, " images"],
    accelerator: Accelerator,
    corrupted: Corrupted,
    severities: Sequence[int],
    *,
    batch_size: int = 512,
) -> Robustness:
    """Figures of classifiers, and of the ensemble of several, on the same corrupted images."""
    figures: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name in corrupted.names:
        for severity in severities:
            part, spoil = corrupted.at(name, severity)

            def logits(images: Images, spoil: Callable[[Images], Images] = spoil) -> Float[Tensor, "own batch classes"]:
                images = spoil(images)
                return torch.stack([ensembled(own.members(images), own.ensemble) for own in classifiers.values()])

            predicted, labels = logits_of(logits, part, indices.tolist(), accelerator, batch_size=batch_size)
            for key, own in _named(predicted, classifiers, ensemble):
                of = figures.setdefault(key, {}).setdefault(name, {})
                for figure, value in _plain_figures(own, labels).items():
                    of.setdefault(figure, []).append(value)
    return Robustness(tuple(severities), figures)


def _named(
    predicted: Float[Tensor, "own images classes"], names: Mapping[str, Any], ensemble: Ensemble
) -> Iterator[tuple[str, Predicted]]:
    yield from zip(names, predicted, strict=True)
    if len(predicted) > 1:
        yield f"ensemble of {len(predicted)}", ensembled(predicted, ensemble)


def _plain_figures(logits: Predicted, labels: Classes) -> dict[str, float]:
    return {
        "accuracy": top_accuracy(logits, labels),
        "top5": top_accuracy(logits, labels, TOP),
        "nll": nll(logits, labels),
        "ece": calibration_error(logits, labels),
        "brier": brier(logits, labels),
    }


# --- Pictures ---------------------------------------------------------------------------------------------------


def picture(each: Sequence[Predictions], scores: Mapping[str, Scores]) -> Figure:
    """Reliability diagrams (DeGroot and Fienberg 1983) with the confidences of the last one below, risk-coverage
    curves, and the last one's confusion, the larger the more classes it names."""
    last, classes = each[-1], each[-1].titles
    many = len(classes) > WITH_FIGURES
    side = max(5.2, 0.15 * min(len(classes), WITH_NAMES))
    widths = 5.75 if many else 11.5, side + 1.2
    figure = Figure(figsize=(sum(widths), side + many), layout="constrained")
    diagrams, matrix = figure.subfigures(1, 2, squeeze=False, width_ratios=widths).flat
    left, right = diagrams.subfigures(*((2, 1) if many else (1, 2)), squeeze=False).flat
    reliability, confidences = left.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    curves = right.subplots()
    draw_confusion(
        matrix.subplots(),
        ByClass.of(last).shares,
        classes,
        f"{last.name}: confusion, %",
        rows="class of the image",
        columns="class that is predicted",
    )
    for one in each:
        own = scores[one.name]
        style = dict(linewidth=2.0, alpha=1.0) if one is last else dict(linewidth=1.1, alpha=0.75)
        draw_reliability(reliability, one, f"{one.name}, ECE {own['ece'].value:.1%}", **style)
        draw_risk_coverage(curves, one, f"{one.name}, AURC {own['aurc'].value:.4f}", **style)
    counts = binned(last.logits, last.labels).bins.bincount(minlength=BINS).tolist()
    confidences.bar([(place + 0.5) / BINS for place in range(BINS)], counts, 1 / BINS, color="grey")
    confidences.set_xlabel("confidence", fontsize=9)
    confidences.set_ylabel("images", fontsize=9)
    confidences.set_title(f"confidences of {last.name}", fontsize=8)
    reliability.plot((0, 1), (0, 1), color="black", linewidth=0.8, linestyle=":")
    reliability.set(xlim=(0, 1), ylim=(0, 1))
    reliability.set_ylabel("accuracy", fontsize=9)
    reliability.set_title("Reliability", fontsize=10)
    curves.set(xlim=(0, 1), ylim=(0, None))
    curves.set_xlabel("coverage: share of the surest predictions", fontsize=9)
    curves.set_ylabel("risk: share of errors among them", fontsize=9)
    curves.set_title("Risk and coverage", fontsize=10)
    for axis in (reliability, confidences, curves):
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
    for axis in (reliability, curves):
        axis.legend(fontsize=8, frameon=False, loc="best")
    return figure


def draw_reliability(axis: Axes, predictions: Predictions, label: str, **style: Any) -> None:
    """Accuracy over mean confidence, a point for each of the bins that holds an image."""
    place, confidence, right = binned(predictions.logits, predictions.labels)
    images, sure, correct = (
        torch.zeros(BINS, dtype=torch.float64).index_add(0, place, of)
        for of in (torch.ones_like(confidence), confidence, right.double())
    )
    there = images > 0
    at, heights = ((of[there] / images[there]).tolist() for of in (sure, correct))
    axis.plot(at, heights, marker="o", markersize=3, label=label, **style)


def draw_risk_coverage(axis: Axes, predictions: Predictions, label: str, **style: Any) -> None:
    coverage, risk = risk_coverage(predictions.logits, predictions.labels)
    axis.plot(coverage.tolist(), risk.tolist(), label=label, **style)


def save_figure(path: Path, figure: Figure) -> None:
    """A PNG, whole or not at all."""
    with written_aside(path) as aside:
        figure.savefig(aside, dpi=110, format="png")
