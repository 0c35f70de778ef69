"""SAMOSA's decoder against tables A.3 and A.6: shapes, parameters, order of operations, what the gates do."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hybridgen.networks.decoder import DeconvBlock, SamosaDecoder
from hybridgen.types import InputError

ROWS = ((128, 1), (128, 1), (128, 1), (64, 2), (64, 1), (64, 1), (64, 1), (64, 2), (64, 1), (64, 1), (64, 1), (16, 1))
"""Filters and stride of the rows of table A.3."""


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def transposed(x, weight, bias, stride):
    """What takes the gradient of a strided convolution back to its input, `stride` times as large."""
    larger = torch.zeros(
        len(x), weight.shape[1], stride * x.shape[2], stride * x.shape[3], dtype=x.dtype, requires_grad=True
    )
    (result,) = torch.autograd.grad(F.conv2d(larger, weight, stride=stride, padding=1), larger, x, create_graph=True)
    return result + bias.view(-1, 1, 1)


def norm(x):
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt()


def block_by_hand(block, x, stride, normalized=False):
    x = norm(x)
    x = transposed(torch.where(x > 0, x, 0.1 * x), block.deconv.weight, block.deconv.bias, stride)
    return norm(x) if normalized else x


def test_parameters_of_the_table():
    """Batch-norm, kernels and biases of every row; the thesis's 2M (A.4.1) is not what its table gives."""
    count, before = 0, 128
    for filters, _ in ROWS:
        count += 2 * before + 9 * before * filters + filters
        before = filters
    count += 9 * before * 3 + 3
    assert parameters(SamosaDecoder()) == count == 786_755
    assert round(count / 1e6) != 2
    assert parameters(SamosaDecoder(normalized_resampling=True)) == count + 2 * (64 + 64)


@pytest.mark.parametrize("width", [1, 3])
def test_parameters_of_other_widths(width):
    count, before = 0, 64 * width
    for filters, _ in ROWS:
        count += 2 * before + 9 * before * (filters * width // 2) + filters * width // 2
        before = filters * width // 2
    assert parameters(SamosaDecoder(64 * width)) == count + 9 * before * 3 + 3


def test_shapes_of_the_table():
    decoder = SamosaDecoder()
    shapes = []
    for block in (*decoder.pre, *decoder.post):
        block.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[1:])))
    assert decoder(torch.randn(2, 128, 8, 8), torch.rand(2, 64)).shape == (2, 3, 32, 32)
    assert len(decoder.pre) == 8 and len(decoder.post) == 5
    assert shapes == [
        *[(128, 8, 8)] * 3,
        *[(64, 16, 16)] * 4,
        *[(64, 32, 32)] * 4,
        (16, 32, 32),
        (3, 32, 32),
    ]


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 7)])
def test_four_times_the_size_of_the_semantic_code(size):
    decoder = SamosaDecoder(64)
    height, width = size
    assert decoder(torch.randn(2, 64, *size), torch.rand(2, 32)).shape == (2, 3, 4 * height, 4 * width)
    assert decoder.first(torch.randn(2, 64, *size)).shape == (2, 64, *size)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("normalized", [False, True])
def test_block_is_table_a6(stride, normalized):
    block = DeconvBlock(4, 6, stride, normalized=normalized).double()
    x = random(3, 4, 5, 5)
    before = x.clone()
    torch.testing.assert_close(block(x), block_by_hand(block, x, stride, normalized), rtol=1e-10, atol=1e-10)
    assert torch.equal(x, before)


@pytest.mark.parametrize("normalized", [False, True])
def test_decoder_is_table_a3(normalized):
    decoder = SamosaDecoder(64, normalized_resampling=normalized).double()
    semantic, gates = random(3, 64, 2, 2), random(3, 32, seed=1).softmax(1)
    x = semantic
    for row, ((_, stride), block) in enumerate(zip(ROWS, (*decoder.pre, *decoder.post[:4]), strict=True)):
        x = block_by_hand(block, x, stride, normalized and stride == 2)
        if row == 7:
            x = torch.einsum("bs,bshw->bshw", gates, x)
    last = decoder.post[4]
    expected = transposed(x, last.weight, last.bias, 1)
    torch.testing.assert_close(decoder(semantic, gates), expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(decoder.first(semantic), block_by_hand(decoder.pre[0], semantic, 1))


def test_a_closed_gate_leaves_its_map_out():
    """Of each sample on its own: the first shows its map 3 alone, the second all but this one."""
    decoder = SamosaDecoder(64).double().eval()
    gates = torch.stack([torch.eye(32)[3], 1 - torch.eye(32)[3]]).double()
    maps = []
    decoder.pre.register_forward_hook(lambda _, __, output: maps.append(output.requires_grad_()))
    output = decoder(random(2, 64, 2, 2), gates)
    (gradient,) = torch.autograd.grad(output.square().sum(), maps)
    assert torch.equal(gradient.flatten(2).any(dim=2), gates.bool())


def test_initialisation_is_torchs():
    torch.manual_seed(0)
    decoder = SamosaDecoder()
    torch.manual_seed(0)
    expected = nn.ConvTranspose2d(128, 128, 3, padding=1)
    assert torch.equal(decoder.first.deconv.weight, expected.weight)
    assert torch.equal(decoder.first.deconv.bias, expected.bias)


@pytest.mark.parametrize("channels", [0, -8, 7, 12])
def test_channels_that_cannot_be_halved_three_times(channels):
    with pytest.raises(InputError, match=rf"^channels: {channels} of z_c; .* multiple of 8"):
        SamosaDecoder(channels)
