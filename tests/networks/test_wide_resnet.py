"""Encoders and classifiers against tables A.1, A.2, A.5, A.7 to A.9: shapes, parameters, order of operations."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hybridgen.networks.wide_resnet import (
    ClassifierHeads,
    GatingEncoder,
    NonSemanticEncoder,
    Normalize,
    SemanticEncoder,
    WideResBlock,
    WideResNet,
    WideResNetClassifier,
)
from hybridgen.types import InputError

STATISTICS = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def trunk_parameters(depth: int, width: int, stem: int = 16) -> int:
    """Table A.5 and the convolutions of table A.8, counted by hand."""
    total, before = 3 * 9 * stem, stem
    for filters in (16 * width, 32 * width, 64 * width):
        for _ in range((depth - 4) // 6):
            total += 2 * before + before * filters * 9 + 2 * filters + filters * filters * 9
            total += before * filters if before != filters else 0
            before = filters
    return total


def test_parameters_of_the_tables():
    trunk = trunk_parameters(28, 2)
    assert parameters(WideResNet(28, 2, **STATISTICS)) == trunk == 1_466_064
    assert parameters(SemanticEncoder(28, 2, **STATISTICS)) == trunk + 2 * 128
    assert parameters(NonSemanticEncoder(WideResNet(28, 2, **STATISTICS))) == trunk + 8 * (128 + 1)
    assert parameters(GatingEncoder(WideResNet(28, 2, **STATISTICS), 32)) == trunk + 8192 * 64 + 64
    assert parameters(ClassifierHeads(128, 10)) == 2 * 10 * (128 + 1)
    assert parameters(WideResNetClassifier(28, 2, 10, **STATISTICS)) == 1_467_610


@pytest.mark.parametrize(("depth", "width", "stem"), [(10, 1, 16), (16, 3, 8), (22, 1, 4)])
def test_parameters_of_other_depths_and_widths(depth, width, stem):
    network = WideResNet(depth, width, stem=stem, **STATISTICS)
    assert network.channels == 64 * width
    assert parameters(network) == trunk_parameters(depth, width, stem)


def test_parameters_with_normalized_resampling():
    """A batch-norm on each of the three shortcuts that change the number of channels."""
    extra = 2 * (32 + 64 + 128)
    trunk = trunk_parameters(28, 2) + extra
    assert parameters(WideResNet(28, 2, normalized_resampling=True, **STATISTICS)) == trunk
    assert parameters(SemanticEncoder(28, 2, normalized_resampling=True, **STATISTICS)) == trunk + 2 * 128
    gating = GatingEncoder(WideResNet(28, 2, normalized_resampling=True, **STATISTICS), 16)
    assert parameters(gating) == trunk + 2048 * 64 + 64
    same = WideResNet(10, 1, stem=16, normalized_resampling=True, **STATISTICS)  # the first group keeps 16 channels
    assert parameters(same) == trunk_parameters(10, 1) + 2 * (32 + 64)


@pytest.mark.parametrize("size", [16, 32, 64, 96])
def test_shapes(size):
    images = torch.rand(2, 3, size, size)
    trunk = WideResNet(28, 2, **STATISTICS)
    side = size // 4
    shapes = []
    for block in trunk.blocks:
        block.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
    assert trunk(images).shape == (2, 128, side, side)
    assert shapes == [(32, size, size)] * 4 + [(64, size // 2, size // 2)] * 4 + [(128, side, side)] * 4

    semantic = SemanticEncoder(10, 1, **STATISTICS)
    assert semantic.channels == 64
    assert semantic.features(images).shape == (2, 64, side, side)
    assert semantic(images).shape == (2, 64)
    nonsemantic = NonSemanticEncoder(WideResNet(10, 1, **STATISTICS), 5)
    assert nonsemantic.channels == 5
    assert nonsemantic(images).shape == (2, 5, side, side)
    assert WideResNetClassifier(10, 1, 7, **STATISTICS)(images).shape == (2, 7)
    assert [head.shape for head in ClassifierHeads(64, 7)(semantic(images))] == [(2, 7), (2, 7)]


def test_images_need_not_be_square():
    images = torch.rand(2, 3, 16, 24)
    assert NonSemanticEncoder(WideResNet(10, 1, **STATISTICS))(images).shape == (2, 8, 4, 6)


def test_semantic_vector_is_the_mean_of_its_features():
    encoder = SemanticEncoder(10, 1, **STATISTICS).eval()
    images = torch.rand(3, 3, 16, 16)
    torch.testing.assert_close(encoder(images), encoder.features(images).mean((2, 3)))
    assert torch.equal(encoder.pooled(encoder.trunk.last_two(images)[1]), encoder(images))


@pytest.mark.parametrize("size", [16, 20, 32])
def test_gates_are_the_softmax_of_a_linear_layer_on_the_whole_map(size):
    encoder = GatingEncoder(WideResNet(10, 1, **STATISTICS), size).double().eval()
    images = torch.rand(3, 3, size, size, dtype=torch.float64)
    gates = encoder(images)
    assert gates.shape == (3, encoder.gates) == (3, 32)
    features = encoder.trunk(images)
    weight = encoder.linear.weight.view(32, 64, size // 4, size // 4)
    exponentials = (torch.einsum("bchw,gchw->bg", features, weight) + encoder.linear.bias).exp()
    torch.testing.assert_close(gates, exponentials / exponentials.sum(1, keepdim=True))
    torch.testing.assert_close(gates.sum(1), torch.ones(3, dtype=torch.float64))


def test_last_two_convolutions():
    """The map is that of `forward`; before it, the last block's first convolution; statistics move once."""
    trunk = WideResNet(16, 1, stem=4, **STATISTICS).double()
    images = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    hooked = []
    trunk.blocks[-1].conv1.register_forward_hook(lambda _, __, output: hooked.append(output.clone()))
    expected = trunk(images)
    before, features = trunk.last_two(images)
    assert torch.equal(features, expected) and torch.equal(before, hooked[0])
    assert before.shape == features.shape == (3, 64, 4, 4)
    assert all(m.num_batches_tracked == 2 for m in trunk.modules() if isinstance(m, nn.BatchNorm2d))
    last = trunk.blocks[-1]
    reached = torch.autograd.grad(before.square().sum(), list(trunk.parameters()), allow_unused=True)
    unreached = [name for (name, _), g in zip(trunk.named_parameters(), reached, strict=True) if g is None]
    own = {*last.norm2.parameters(), last.conv2.weight}
    assert unreached == [name for name, parameter in trunk.named_parameters() if parameter in own]


@pytest.mark.parametrize(("filters", "stride"), [(4, 1), (6, 1), (6, 2)])
@pytest.mark.parametrize("normalized", [False, True])
def test_block_is_table_a5(filters, stride, normalized):
    block = WideResBlock(4, filters, stride, slope=0.1, momentum=0.1, normalized_resampling=normalized).double()
    x = torch.randn(3, 4, 8, 8, dtype=torch.float64)
    before = x.clone()

    def norm(t):
        mean, var = t.mean((0, 2, 3), keepdim=True), t.var((0, 2, 3), unbiased=False, keepdim=True)
        return (t - mean) / (var + 1e-5).sqrt()

    def leaky_relu(t):
        return torch.where(t > 0, t, 0.1 * t)

    residual = F.conv2d(leaky_relu(norm(x)), block.conv1.weight, stride=stride, padding=1)
    residual = F.conv2d(leaky_relu(norm(residual)), block.conv2.weight, padding=1)
    if filters == 4:
        direct = x
    else:
        shortcut = block.shortcut[0] if normalized else block.shortcut
        direct = F.conv2d(x, shortcut.weight, stride=stride)
        direct = norm(direct) if normalized else direct
    torch.testing.assert_close(block(x), direct + residual, rtol=1e-12, atol=1e-12)
    assert torch.equal(x, before)


def test_initialisation_and_momentum_are_fixmatchs():
    torch.manual_seed(0)
    classifier = WideResNetClassifier(28, 2, 10, momentum=0.001, **STATISTICS)
    for module in classifier.modules():
        if isinstance(module, nn.Conv2d):
            out, _, height, width = module.weight.shape
            expected = (2 / (out * height * width)) ** 0.5
            assert module.bias is None
            assert module.weight.std().item() == pytest.approx(expected, rel=0.2)
        if isinstance(module, nn.BatchNorm2d):
            assert module.momentum == 0.001
    assert classifier.head.weight.std().item() == pytest.approx((2 / (128 + 10)) ** 0.5, rel=0.1)
    assert not classifier.head.bias.any()


def test_normalize_standardises_and_goes_back():
    normalize = Normalize(**STATISTICS)
    images = torch.rand(2, 3, 4, 4)
    mean, std = (torch.tensor(STATISTICS[name]) for name in ("mean", "std"))
    expected = (images.movedim(1, 3) - mean) / std
    torch.testing.assert_close(normalize(images), expected.movedim(3, 1))
    torch.testing.assert_close(normalize.inverse(normalize(images)), images)


@pytest.mark.parametrize(("depth", "nearest"), [(27, "22 and 28"), (9, "10"), (4, "10"), (11, "10 and 16"), (-2, "10")])
def test_wrong_depth_names_the_nearest(depth, nearest):
    with pytest.raises(InputError, match=rf"^depth: {depth} .*nearest: {nearest}$"):
        WideResNet(depth, 2, **STATISTICS)


def test_other_bad_input():
    with pytest.raises(InputError, match=r"^width: 0"):
        WideResNet(10, 0, **STATISTICS)
    with pytest.raises(InputError, match=r"^stem: 0"):
        WideResNet(10, 1, stem=0, **STATISTICS)
    with pytest.raises(InputError, match=r"^mean: 1 values"):
        Normalize((0.5,), (0.5, 0.5, 0.5))
    with pytest.raises(InputError, match=r"^std: 0\.0 is not above 0"):
        Normalize((0.5, 0.5, 0.5), (0.5, 0.0, 0.5))
    with pytest.raises(InputError, match=r"30×32 .* multiples of 4"):
        NonSemanticEncoder(WideResNet(10, 1, **STATISTICS))(torch.rand(2, 3, 30, 32))
    with pytest.raises(InputError, match=r"^image size: 32×16; this encoder takes 16×16"):
        GatingEncoder(WideResNet(10, 1, **STATISTICS), 16)(torch.rand(2, 3, 32, 16))
