"""PreActResNet-18-w against the thesis's figure and against its plain description."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hybridgen.networks.preact_resnet import PreActBlock, PreActResNet18
from hybridgen.types import InputError


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def expected_parameters(width: int, classes: int) -> int:
    total, before = 3 * 9 * 64 * width, 64 * width
    for index, filters in enumerate([64 * width, 128 * width, 256 * width, 512 * width]):
        total += 2 * before + 9 * before * filters + 2 * filters + 9 * filters**2  # first block
        total += before * filters if index > 0 else 0
        total += 4 * filters + 18 * filters**2  # second block
        before = filters
    return total + (before + 1) * classes


@pytest.mark.parametrize(("width", "exact"), [(1, 11_268_616), (2, 44_852_040), (3, None)])
def test_parameters(width, exact):
    """Thesis, table 3.5 and its text: 44.9 M for w = 2 and the 200 classes of Tiny ImageNet."""
    with torch.device("meta"):
        count = parameters(PreActResNet18(200, width=width))
        final = parameters(PreActResNet18(200, width=width, final_norm=True))
    assert count == expected_parameters(width, 200)
    assert final - count == 2 * 512 * width
    assert width != 2 or round(count / 1e6, 1) == 44.9
    assert exact is None or count == exact


def norm(t):
    mean, var = t.mean((0, 2, 3), keepdim=True), t.var((0, 2, 3), unbiased=False, keepdim=True)
    return (t - mean) / (var + 1e-5).sqrt()


@pytest.mark.parametrize(("filters", "stride"), [(4, 1), (6, 1), (4, 2), (6, 2)])
def test_block_in_plain_words(filters, stride):
    block = PreActBlock(4, filters, stride).double()
    x = torch.randn(3, 4, 7, 6, dtype=torch.float64)
    before = x.clone()
    activated = norm(x).clamp(min=0)
    y = norm(F.conv2d(activated, block.conv1.weight, stride=stride, padding=1)).clamp(min=0)
    same = (filters, stride) == (4, 1)
    shortcut = x if same else F.conv2d(activated, block.shortcut.weight, stride=stride)
    expected = shortcut + F.conv2d(y, block.conv2.weight, padding=1)
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(x, before)


@pytest.mark.parametrize("final_norm", [False, True])
def test_the_network_is_its_parts_in_order(final_norm):
    network = PreActResNet18(5, width=1 / 16, final_norm=final_norm).double()
    images = torch.randn(4, 3, 64, 32, dtype=torch.float64)
    x = F.conv2d(images, network.conv1.weight, stride=2, padding=1)
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = layer(x)
    x = norm(x).clamp(min=0) if final_norm else x
    features = network.forward_features(images)
    torch.testing.assert_close(features, x)
    assert features.shape == (4, 32, 4, 2)
    torch.testing.assert_close(network(images), features.mean((2, 3)) @ network.fc.weight.T + network.fc.bias)
    assert PreActResNet18(5, width=1 / 16, stem_stride=1)(torch.rand(2, 3, 32, 32)).shape == (2, 5)


def test_width_multiplies_every_filter():
    with torch.device("meta"):
        for width in (0.25, 1, 3):
            network = PreActResNet18(5, width=width)
            filters = [network.conv1.out_channels, *(stage["num_chs"] for stage in network.feature_info)]
            assert filters == [width * count for count in (64, 64, 128, 256, 512)]
            assert network.layer1[0].shortcut is None


def test_initialisation():
    torch.manual_seed(0)
    network = PreActResNet18(100, width=1 / 4)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            deviation = (2 / module.weight[0].numel()) ** 0.5
            assert module.weight.std().item() == pytest.approx(deviation, rel=0.1)
            assert module.weight.abs().max().item() <= 2 * deviation / 0.879
    assert network.fc.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not network.fc.bias.any()


def test_bad_input():
    with pytest.raises(InputError, match=r"^classes: 0 is below 1"):
        PreActResNet18(0)
    with pytest.raises(InputError, match=r"^stem_stride: 0 is below 1"):
        PreActResNet18(5, stem_stride=0)
    with pytest.raises(InputError, match=r"^width: 0 leaves less than one filter"):
        PreActResNet18(5, width=0)
