"""The perceptual losses against plain float64 sums."""

import numpy as np
import pytest
import torch

from hybridgen.losses.style import content, style


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_content_is_the_mean_square_and_gives_the_target_no_gradient():
    output, target = (draw(3, 4, 5, 5, seed=seed).requires_grad_() for seed in (0, 1))
    loss = content(output, target)
    o, t = output.detach().numpy(), target.detach().numpy()
    assert loss.item() == pytest.approx(((o - t) ** 2).sum() / o.size)
    loss.backward()
    assert output.grad.any() and target.grad is None


def test_style_sums_layers_and_both_moments():
    output = [draw(3, 2 * channels, seed=channels).requires_grad_() for channels in (4, 6)]
    wanted = [draw(3, 2 * channels, seed=9 * channels).requires_grad_() for channels in (4, 6)]
    loss = style(output, wanted)
    expected = 0.0
    for o, w in zip(output, wanted, strict=True):
        o, w = o.detach().numpy(), w.detach().numpy()
        channels = o.shape[1] // 2
        for part in (slice(None, channels), slice(channels, None)):  # means, deviations
            expected += np.mean(((o[:, part] - w[:, part]) ** 2).sum(axis=1) / channels)
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert all(o.grad.any() for o in output) and all(w.grad is None for w in wanted)


def test_same_moments_cost_nothing():
    layers = [draw(2, 8), draw(2, 4)]
    assert style(layers, layers) == 0.0
