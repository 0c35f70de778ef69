"""Non-saturating losses and R1 against their formulas."""

import numpy as np
import pytest
import torch

from hybridgen.losses.adversarial import detect_fake, detect_real, fool, gradient_penalty

LOGITS = torch.tensor([-3.0, -0.5, 0.0, 0.7, 4.0], dtype=torch.float64)


def probability(logits):
    return 1 / (1 + np.exp(-logits.numpy()))


@pytest.mark.parametrize(
    ("loss", "formula"),
    [
        (fool, lambda d: -np.log(d)),
        (detect_real, lambda d: -np.log(d)),
        (detect_fake, lambda d: -np.log(1 - d)),
    ],
)
def test_value_is_the_mean_of_the_formula(loss, formula):
    assert loss(LOGITS).item() == pytest.approx(formula(probability(LOGITS)).mean(), rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "slope"), [(fool, lambda d: d - 1), (detect_real, lambda d: d - 1), (detect_fake, lambda d: d)]
)
def test_gradient_by_the_formula(loss, slope):
    logits = LOGITS.clone().requires_grad_()
    loss(logits).backward()
    np.testing.assert_allclose(logits.grad.numpy(), slope(probability(LOGITS)) / len(LOGITS), rtol=1e-12)


@pytest.mark.parametrize("loss", [fool, detect_real, detect_fake])
def test_extreme_logits_stay_finite(loss):
    logits = torch.tensor([-500.0, 500.0], requires_grad=True)
    value = loss(logits)
    value.backward()
    assert value.item() == pytest.approx(250)
    assert torch.isfinite(logits.grad).all()


def test_fooling_does_not_saturate_where_the_discriminator_is_sure():
    logits = torch.tensor([-20.0], dtype=torch.float64, requires_grad=True)
    fool(logits).backward()
    assert logits.grad.item() == pytest.approx(-1)


def test_r1_of_a_quadratic_discriminator_and_its_gradient():
    """D(x) = a·x + b·|x|²/2 has the slope a + b·x: the penalty and its derivatives are known."""
    g = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 2, 5, dtype=torch.float64, generator=g).requires_grad_()
    a = torch.randn(30, dtype=torch.float64, generator=g).requires_grad_()
    b = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    flat = images.flatten(1)
    penalty = gradient_penalty(flat @ a + b * flat.square().sum(1) / 2, images)
    penalty.backward()

    x = images.detach().flatten(1).numpy()
    slope = a.detach().numpy() + 0.3 * x
    assert penalty.item() == pytest.approx(0.5 * (slope**2).sum(1).mean(), rel=1e-12)
    np.testing.assert_allclose(a.grad.numpy(), slope.mean(0), rtol=1e-12)
    assert b.grad.item() == pytest.approx((slope * x).sum(1).mean(), rel=1e-12)
