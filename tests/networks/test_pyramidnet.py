"""PyramidNet against its equations: channels of every block, parameters, order, shortcut, initialisation."""

from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hybridgen.networks.pyramidnet import PyramidBottleneck, PyramidNet
from hybridgen.types import InputError


def widths(depth: int, alpha: int) -> list[int]:
    """Equation 3 in exact arithmetic: 16, then more by α / N with every bottleneck."""
    blocks = (depth - 2) // 3
    return [round(16 + Fraction(alpha, blocks) * k) for k in range(1, blocks + 1)]


def expected_parameters(depth: int, alpha: int, classes: int) -> int:
    total, before = 3 * 9 * 16 + 2 * 16, 16
    for d in widths(depth, alpha):
        total += 2 * before + before * d + 2 * d + 9 * d * d + 2 * d + 4 * d * d + 2 * 4 * d
        before = 4 * d
    return total + 2 * before + (before + 1) * classes


@pytest.mark.parametrize(
    ("depth", "alpha", "classes", "millions"), [(200, 240, 10, 26.8), (164, 270, 100, 27.3), (11, 9, 5, None)]
)
def test_parameters_and_the_channels_of_every_block(depth, alpha, classes, millions):
    with torch.device("meta"):
        network = PyramidNet(depth, alpha, classes)
    blocks = [block for layer in (network.layer1, network.layer2, network.layer3) for block in layer]
    assert len(network.layer1) == len(network.layer2) == len(network.layer3) == (depth - 2) // 9
    assert [block.conv2.out_channels for block in blocks] == widths(depth, alpha)
    assert [block.conv3.out_channels for block in blocks] == [4 * d for d in widths(depth, alpha)]
    assert blocks[-1].conv2.out_channels == 16 + alpha and network.num_features == 4 * (16 + alpha)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == expected_parameters(depth, alpha, classes)
    assert millions is None or round(count / 1e6, 1) == millions


def norm(t):
    mean, var = t.mean((0, 2, 3), keepdim=True), t.var((0, 2, 3), unbiased=False, keepdim=True)
    return (t - mean) / (var + 1e-5).sqrt()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1)])
def test_block_in_plain_words(stride, size):
    block = PyramidBottleneck(10, 3, stride).double()
    x = torch.randn(3, 10, *size, dtype=torch.float64)
    before = x.clone()
    y = F.conv2d(norm(x), block.conv1.weight)
    y = F.conv2d(norm(y).clamp(min=0), block.conv2.weight, stride=stride, padding=1)
    expected = norm(F.conv2d(norm(y).clamp(min=0), block.conv3.weight))
    for row in range(expected.shape[2]):
        for column in range(expected.shape[3]):
            window = x[:, :, stride * row :, stride * column :][:, :, :stride, :stride]
            expected[:, :10, row, column] += window.mean((2, 3))
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(x, before)


def test_the_network_is_its_parts_in_order():
    network = PyramidNet(11, 9, 5).double()
    images = torch.randn(4, 3, 12, 8, dtype=torch.float64)
    x = norm(F.conv2d(images, network.conv1.weight, padding=1))  # no ReLU here
    for layer in (network.layer1, network.layer2, network.layer3):
        x = layer(x)
    features = network.forward_features(images)
    torch.testing.assert_close(features, norm(x).clamp(min=0))
    assert features.shape == (4, 100, 3, 2)
    torch.testing.assert_close(network(images), features.mean((2, 3)) @ network.fc.weight.T + network.fc.bias)


def test_initialisation():
    torch.manual_seed(0)
    network = PyramidNet(11, 48, 5)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            out, _, height, width = module.weight.shape
            assert module.bias is None
            assert module.weight.std().item() == pytest.approx((2 / (out * height * width)) ** 0.5, rel=0.15)


@pytest.mark.parametrize(("depth", "nearest"), [(109, "101 and 110"), (12, "11 and 20"), (2, "11"), (-7, "11")])
def test_wrong_depth_names_the_nearest(depth, nearest):
    with pytest.raises(InputError, match=rf"^depth: {depth} .*nearest: {nearest}$"):
        PyramidNet(depth, 48, 10)


def test_other_bad_input():
    with pytest.raises(InputError, match=r"^alpha: 0 is not above 0"):
        PyramidNet(11, 0, 10)
    with pytest.raises(InputError, match=r"^classes: 0 is not above 0"):
        PyramidNet(11, 9, 0)
