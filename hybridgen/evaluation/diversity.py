"""How much the members of an ensemble differ: each a mean over their pairs."""

from collections.abc import Callable
from itertools import combinations
from math import inf, nan
from statistics import fmean

from jaxtyping import Bool, Float
from torch import Tensor

from hybridgen.evaluation.classification import Classes
from hybridgen.types import InputError

Members = Float[Tensor, "members images classes"]
"""Logits."""

Errors = Bool[Tensor, " images"]


def disagreement(members: Members) -> float:
    """Share of images for which two members predict different classes, in [0, 1]. InputError for a single member."""
    predicted = members.argmax(dim=2)
    return _of_pairs(predicted, lambda first, second: (first != second).double().mean().item())


def ratio_error(members: Members, labels: Classes) -> float:
    """d_re (Aksela 2003; thesis 3.3.5.2): how many images just one of two members has wrong, for each that both have.

    Infinite for a pair that has no error in common, nan for one without any. InputError for a single member.
    """

    def ratio(first: Errors, second: Errors) -> float:
        alone, common = (first ^ second).sum().item(), (first & second).sum().item()
        return alone / common if common else inf if alone else nan

    return _of_pairs(_wrong(members, labels), ratio)


def error_correlation(members: Members, labels: Classes) -> float:
    """Pearson's correlation of two members' errors, in [-1, 1]; nan where one has none or all wrong. InputError for a
    single member."""

    def correlation(first: Errors, second: Errors) -> float:
        one, two = (errors.double() - errors.double().mean() for errors in (first, second))
        norm = (one.square().sum() * two.square().sum()).sqrt().item()
        return (one @ two).item() / norm if norm else nan

    return _of_pairs(_wrong(members, labels), correlation)


def _wrong(members: Members, labels: Tensor) -> Bool[Tensor, "members images"]:
    if members.shape[1] != len(labels):
        raise InputError(f"predictions: of {members.shape[1]} images, but there are {len(labels)} labels")
    return members.argmax(dim=2) != labels


def _of_pairs(each: Tensor, of: Callable[[Tensor, Tensor], float]) -> float:
    if len(each) < 2:
        raise InputError(f"members: {len(each)}; two at least are needed to differ")
    return fmean(of(*pair) for pair in combinations(each, 2))
