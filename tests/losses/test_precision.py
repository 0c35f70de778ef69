"""Losses of numbers in half precision."""

import pytest
import torch

from hybridgen.losses import adversarial, classification, consistency, hybridization, reconstruction, style

LABELS, WEIGHTS = torch.arange(9) % 4, torch.arange(9) / 9

LOSSES = {
    "fool": lambda a, b: adversarial.fool(a[:, 0]),
    "detect_real": lambda a, b: adversarial.detect_real(a[:, 0]),
    "detect_fake": lambda a, b: adversarial.detect_fake(a[:, 0]),
    "cross_entropy": lambda a, b: classification.cross_entropy(a, LABELS),
    "weighted_cross_entropy": lambda a, b: classification.weighted_cross_entropy(a, LABELS, WEIGHTS),
    "pseudo_label": lambda a, b: classification.pseudo_label(a, b, threshold=0.6),
    "soft_cross_entropy": lambda a, b: classification.soft_cross_entropy(a, b.abs()),
    "sharpen": lambda a, b: classification.sharpen(a.abs(), 0.5),
    "mean_squared": consistency.mean_squared,
    "teacher_consistency": consistency.teacher_consistency,
    "historical_consistency": consistency.historical_consistency,
    "logit_distance": consistency.logit_distance,
    "jensen_shannon": lambda a, b: consistency.jensen_shannon(a, b, -b),
    **{
        f"{loss.__name__}, {kind}": lambda a, b, loss=loss, kind=kind: loss(a, b, kind=kind)
        for loss in (hybridization.semantic_attraction, hybridization.semantic_repulsion)
        for kind in ("norm", "squared", "cross-entropy")
    },
    "nonsemantic_attraction": hybridization.nonsemantic_attraction,
    "nonsemantic_repulsion": hybridization.nonsemantic_repulsion,
    **{
        f"squared_error, {over}": lambda a, b, over=over: reconstruction.squared_error(a, b, reduction=over)
        for over in ("mean", "sum")
    },
    "content": lambda a, b: style.content(a[:, :, None, None], b[:, :, None, None]),
    "style": lambda a, b: style.style([a, b], [b, a]),
}


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_lost_on_half_precision_is_computed_in_single(name):
    """As if the same numbers came in float32; nothing is rounded on the way."""
    given = (4 * torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))).bfloat16()
    found, expected = (LOSSES[name](*each) for each in (given, given.float()))
    assert found.dtype == torch.float32 and torch.equal(found, expected)
