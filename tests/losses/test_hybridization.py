"""Hybridization losses against the thesis's formulas, written out sample by sample."""

import numpy as np
import pytest
import torch

from hybridgen.losses.hybridization import (
    nonsemantic_attraction,
    nonsemantic_repulsion,
    semantic_attraction,
    semantic_repulsion,
)

SEMANTIC = (semantic_attraction, semantic_repulsion)
NONSEMANTIC = (nonsemantic_attraction, nonsemantic_repulsion)


def draw(*shape):
    g = torch.Generator().manual_seed(len(shape))
    return tuple(torch.randn(*shape, dtype=torch.float64, generator=g) for _ in range(2))


def softmax(row):
    exponentials = np.exp(row - row.max())
    return exponentials / exponentials.sum()


def of_samples(formula, hybrid, parent):
    return np.mean([formula(h, p) for h, p in zip(hybrid.numpy(), parent.numpy(), strict=True)])


FORMULAS = {
    "norm": lambda h, p: np.sqrt(((h - p) ** 2).sum()),
    "squared": lambda h, p: ((h - p) ** 2).sum(),
}


@pytest.mark.parametrize("kind", ["norm", "squared"])
@pytest.mark.parametrize(("losses", "shape"), [(SEMANTIC, (6, 4)), (NONSEMANTIC, (6, 2, 3, 5)), (NONSEMANTIC, (6, 7))])
def test_distances_per_sample_mean_over_the_batch(losses, shape, kind):
    hybrid, parent = draw(*shape)
    expected = of_samples(FORMULAS[kind], hybrid, parent)
    attraction, repulsion = losses
    assert attraction(hybrid, parent, kind=kind).item() == pytest.approx(expected, rel=1e-12)
    assert repulsion(hybrid, parent, kind=kind).item() == pytest.approx(-expected, rel=1e-12)


@pytest.mark.parametrize("loss", SEMANTIC + NONSEMANTIC)
def test_default_is_the_norm(loss):
    hybrid, parent = draw(6, 4)
    assert torch.equal(loss(hybrid, parent), loss(hybrid, parent, kind="norm"))


def test_cross_entropy_between_class_probabilities():
    hybrid, parent = draw(6, 4)
    attraction = of_samples(lambda h, p: -(softmax(p) * np.log(softmax(h))).sum(), hybrid, parent)
    repulsion = of_samples(lambda h, p: -np.log(1 - softmax(h) @ softmax(p)), hybrid, parent)
    assert semantic_attraction(hybrid, parent, kind="cross-entropy").item() == pytest.approx(attraction, rel=1e-12)
    assert semantic_repulsion(hybrid, parent, kind="cross-entropy").item() == pytest.approx(repulsion, rel=1e-12)


@pytest.mark.parametrize("kind", ["norm", "squared", "cross-entropy"])
def test_semantic_losses_move_the_hybrid_and_never_the_parent(kind):
    """A step downhill brings the hybrid's probabilities nearer to its parent's, or takes them away."""
    for loss, towards in zip(SEMANTIC, (True, False), strict=True):
        hybrid, parent = (tensor.requires_grad_() for tensor in draw(6, 4))
        before = loss(hybrid, parent, kind=kind)
        before.backward()
        assert parent.grad is None
        assert hybrid.grad.flatten(1).any(dim=1).all()
        stepped = (hybrid - 1e-3 * hybrid.grad).detach()
        assert loss(stepped, parent, kind=kind) < before
        nearer = FORMULAS["norm"](stepped.softmax(1).numpy(), parent.detach().softmax(1).numpy()) < FORMULAS["norm"](
            hybrid.detach().softmax(1).numpy(), parent.detach().softmax(1).numpy()
        )
        assert nearer == towards


@pytest.mark.parametrize("kind", ["norm", "squared"])
@pytest.mark.parametrize(("loss", "sign"), [(nonsemantic_attraction, 1), (nonsemantic_repulsion, -1)])
def test_nonsemantic_gradient_by_the_formula_and_none_to_the_parent(loss, sign, kind):
    hybrid, parent = (tensor.requires_grad_() for tensor in draw(6, 2, 3, 5))
    loss(hybrid, parent, kind=kind).backward()
    difference = (hybrid - parent).detach()
    norm = difference.flatten(1).norm(dim=1)[:, None, None, None]
    slope = difference / norm if kind == "norm" else 2 * difference
    torch.testing.assert_close(hybrid.grad, sign * slope / len(hybrid), rtol=1e-12, atol=1e-14)
    assert parent.grad is None


def test_repulsion_by_cross_entropy_is_bounded_where_both_are_certain():
    certain = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    loss = semantic_repulsion(certain, certain.detach(), kind="cross-entropy")
    loss.backward()
    assert loss.item() == pytest.approx(-np.log(1e-6), rel=1e-4)
    assert torch.isfinite(certain.grad).all()
