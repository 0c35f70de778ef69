"""Distances of images against plain numpy."""

import numpy as np
import pytest
import torch

from hybridgen.losses.reconstruction import distance, reconstruction, squared_error


@pytest.fixture
def pair():
    g = torch.Generator().manual_seed(0)
    return tuple(torch.randn(5, 3, 4, 6, dtype=torch.float64, generator=g) for _ in range(2))


def by_hand(first, second, kind):
    """One number a sample: no dimension but the batch is left."""
    norms = [np.sqrt(((a - b) ** 2).sum()) for a, b in zip(first.numpy(), second.numpy(), strict=True)]
    return np.array(norms) ** (2 if kind == "squared" else 1)


@pytest.mark.parametrize("kind", ["norm", "squared"])
def test_per_sample_distance_and_its_mean_over_the_batch(pair, kind):
    expected = by_hand(*pair, kind)
    np.testing.assert_allclose(distance(*pair, kind).numpy(), expected, rtol=1e-12)
    assert reconstruction(*pair, kind=kind).item() == pytest.approx(expected.mean(), rel=1e-12)


def test_defaults_are_the_norms_of_the_thesis(pair):
    assert torch.equal(distance(*pair), distance(*pair, "norm"))
    assert torch.equal(reconstruction(*pair), reconstruction(*pair, kind="norm"))


@pytest.mark.parametrize("kind", ["norm", "squared"])
def test_gradient_to_the_output_by_the_formula(pair, kind):
    output, target = pair[0].requires_grad_(), pair[1]
    reconstruction(output, target, kind=kind).backward()
    difference = (output - target).detach().numpy()
    factor = 2.0 if kind == "squared" else 1 / by_hand(output.detach(), target, "norm")[:, None, None, None]
    np.testing.assert_allclose(output.grad.numpy(), difference * factor / len(target), rtol=1e-12)


@pytest.mark.parametrize("kind", ["norm", "squared"])
def test_equal_images_cost_nothing_and_have_a_finite_gradient(pair, kind):
    output = pair[0].clone().requires_grad_()
    loss = reconstruction(output, pair[0], kind=kind)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(output.grad, torch.zeros_like(output))


@pytest.mark.parametrize(("reduction", "divisor"), [("mean", 5 * 3 * 4 * 6), ("sum", 5)])
def test_squared_error_and_its_gradient_to_both_sides(pair, reduction, divisor):
    output, target = (side.requires_grad_() for side in pair)
    loss = squared_error(output, target, reduction=reduction)
    difference = (output - target).detach().numpy()
    assert loss.item() == pytest.approx((difference**2).sum() / divisor, rel=1e-12)
    loss.backward()
    np.testing.assert_allclose(output.grad.numpy(), 2 * difference / divisor, rtol=1e-12)
    np.testing.assert_allclose(target.grad.numpy(), -2 * difference / divisor, rtol=1e-12)


def test_summed_squared_error_is_the_squared_distance(pair):
    torch.testing.assert_close(squared_error(*pair, reduction="sum"), reconstruction(*pair, kind="squared"))
    assert torch.equal(squared_error(*pair), squared_error(*pair, reduction="mean"))
