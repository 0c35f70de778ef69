"""How far two classifiers' accuracies on the same test images lie apart."""

import math
from pathlib import Path

from jaxtyping import Bool
from torch import Tensor

from hybridgen.evaluation.predictions import check_alike, read_predictions
from hybridgen.evaluation.transfer import Z
from hybridgen.training.scores import PREDICTIONS


def paired_gain(first: Bool[Tensor, " images"], other: Bool[Tensor, " images"]) -> dict[str, float]:
    """By how much more of the same images the other one is right, and the bounds of its 95 % interval, which knows of
    the images' draw alone and not of the trainings'.

    The interval is Bonett and Price's (2012, "Adjusted Wald confidence interval for a difference of binomial
    proportions based on paired data"): with one more image that only the one, and one that only the other, has right.
    It is never empty, of equal predictions too.
    """
    images = len(first)
    lost, won = (int(each.sum()) for each in (first & ~other, other & ~first))
    less, more = ((count + 1) / (images + 2) for count in (lost, won))
    spread = Z * math.sqrt((more + less - (more - less) ** 2) / (images + 2))
    return {"mean": (won - lost) / images, "low": more - less - spread, "high": more - less + spread}


def gain_of_runs(first: Path, other: Path) -> dict[str, float] | None:
    """`paired_gain` of what two runs' selected networks predict of the test images; None where one left no predictions.
    InputError, naming it, for predictions that cannot be read or are of other images."""
    paths = [folder / PREDICTIONS for folder in (first, other)]
    if not all(path.is_file() for path in paths):
        return None
    each = [read_predictions(path, name=path.parent.name) for path in paths]
    check_alike(each)
    return paired_gain(*(one.logits.argmax(dim=1) == one.labels for one in each))
