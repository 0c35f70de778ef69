"""The linear classifier against logistic regression written out, and the codes that it reads."""

import pytest
import torch
from torch.nn import functional as F

from hybridgen.data.datasets import Part
from hybridgen.data.sources import InMemory
from hybridgen.evaluation.features import encoded, linear_probe
from hybridgen.types import InputError


def clusters(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three overlapping classes in 2×3 features of unequal scale and place."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = torch.tensor([[0.0, 0, 0, 0, 0, 0], [1.5, 0, 1, 0, 0, 0], [0, 1.5, 0, 1, 0, 0]])
    noise = torch.randn(count, 6, generator=g)
    return (100 + (centres[labels] + noise) * torch.tensor([1.0, 10, 0.1, 1, 5, 1])).view(count, 2, 3), labels


def test_accuracy_is_that_of_regularised_logistic_regression_on_standardised_features():
    (train, labels), (test, test_labels) = clusters(150, 0), clusters(90, 1)
    x, mean = train.flatten(1).double(), train.flatten(1).double().mean(0)
    deviation = x.std(0, correction=0)
    weight, bias = (torch.zeros(*shape, dtype=torch.float64, requires_grad=True) for shape in ((6, 3), (3,)))
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = (x - mean) / deviation @ weight + bias
        loss = F.cross_entropy(logits, labels, reduction="sum") + 0.5 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    predicted = ((test.flatten(1).double() - mean) / deviation @ weight + bias).argmax(1)
    rate = linear_probe(train, labels, test, test_labels)
    assert 0.5 < rate.value < 1
    assert rate.value == pytest.approx((predicted == test_labels).double().mean().item(), abs=1.01 / 90)
    assert rate.low < rate.value < rate.high


def test_codes_without_the_class_give_chance():
    (train, labels), (test, test_labels) = clusters(300, 0), clusters(300, 1)
    shuffled = labels[torch.randperm(300, generator=torch.Generator().manual_seed(0))]
    assert linear_probe(train, shuffled, test, test_labels).value == pytest.approx(1 / 3, abs=0.1)


def test_one_class_cannot_be_told_apart():
    train, labels = clusters(30, 0)
    with pytest.raises(InputError, match="two classes"):
        linear_probe(train, torch.zeros_like(labels), train, labels)


def test_codes_come_in_the_order_of_the_indices():
    pixels = torch.randint(0, 256, (10, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    part = Part(InMemory(pixels), torch.arange(10))
    indices = torch.tensor([7, 1, 1, 9, 0])
    codes = encoded(lambda images: images.mean((2, 3)), part, indices, batch_size=2)
    torch.testing.assert_close(codes, pixels[indices].float().div(255).mean((2, 3)))
