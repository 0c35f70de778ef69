"""The generator against table A.10, its modulated convolution against the grouped form and the package's."""

import sys
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hybridgen.networks.stylegan2 import (
    ModulatedConv2d,
    StyleGAN2Generator,
    StyleResBlock,
    _package_convolution,
    grouped_modulated_conv2d,
)
from hybridgen.networks.wide_resnet import NonSemanticEncoder, SemanticEncoder, WideResNet
from hybridgen.types import InputError

STATISTICS = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def value_and_gradients(function, *inputs):
    """The output and the gradients of a fixed random projection of it."""
    inputs = [value.detach().clone().requires_grad_() for value in inputs]
    output = function(*inputs)
    generator = torch.Generator().manual_seed(1)
    projection = torch.randn(output.shape, generator=generator, dtype=output.dtype)
    return output, *torch.autograd.grad((output * projection).sum(), inputs)


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
def test_modulated_convolution_equals_the_grouped_form_and_the_package(kernel, demodulate):
    torch.manual_seed(0)
    convolution = ModulatedConv2d(5, 7, kernel, demodulate=demodulate).double()
    package = _package_convolution()(5, 7, kernel, demod=demodulate).double()
    x = torch.randn(4, 5, 6, 9, dtype=torch.float64)
    style = torch.randn(4, 5, dtype=torch.float64)
    weight = convolution.weight.detach()

    def ours(x, style, weight):
        return torch.func.functional_call(convolution, {"weight": weight}, (x, style))

    def grouped(x, style, weight):
        return grouped_modulated_conv2d(x, style, weight, demodulate=demodulate)

    def theirs(x, style, weight):
        return torch.func.functional_call(package, {"weight": weight}, (x, style))

    expected = value_and_gradients(grouped, x, style, weight)
    for function in (ours, theirs):
        for name, got, want in zip(
            ("output", "x", "style", "weight"),
            value_and_gradients(function, x, style, weight),
            expected,
            strict=True,
        ):
            torch.testing.assert_close(got, want, msg=lambda text, name=name: f"{name}: {text}", **EXACT)


def test_samples_do_not_meet():
    """A sample's output depends on its own map and style alone, although the kernel is shared."""
    torch.manual_seed(0)
    convolution = ModulatedConv2d(5, 7, 3).double()
    x, style = torch.randn(3, 5, 4, 4, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    alone = torch.cat([convolution(x[i : i + 1], style[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(convolution(x, style), alone, **EXACT)


def test_weight_has_the_packages_name_shape_and_initialisation():
    torch.manual_seed(0)
    ours, package = ModulatedConv2d(64, 96, 3), _package_convolution()(64, 96, 3)
    shapes = [{name: value.shape for name, value in m.state_dict().items()} for m in (ours, package)]
    assert shapes[0] == shapes[1] == {"weight": (96, 64, 3, 3)}
    for module in (ours, package):
        assert module.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
        assert abs(module.weight.mean().item()) < 0.002


def test_demodulation_keeps_its_precision_in_mixed_precision():
    torch.manual_seed(0)
    convolution = ModulatedConv2d(32, 32, 3)
    x, style = torch.randn(4, 32, 8, 8), torch.randn(4, 32)
    exact = convolution(x, style)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = convolution(x, style.bfloat16())
    assert mixed.dtype == torch.bfloat16
    assert (mixed - exact).norm() / exact.norm() < 0.01


def test_modulated_convolution_convolves_the_whole_batch_with_one_kernel(monkeypatch):
    """What makes it fast: no kernel and no group for every sample. `hybridgen bench` has the figure."""
    seen = []

    def convolve(x, weight, **options):
        seen.append((tuple(x.shape), tuple(weight.shape), options.get("groups", 1)))
        return conv2d(x, weight, **options)

    conv2d = F.conv2d
    monkeypatch.setattr(F, "conv2d", convolve)
    convolution, x, style = ModulatedConv2d(6, 5, 3), torch.randn(4, 6, 8, 8), torch.randn(4, 6)
    convolution(x, style)
    grouped_modulated_conv2d(x, style, convolution.weight)
    assert seen == [((4, 6, 8, 8), (5, 6, 3, 3), 1), ((1, 24, 8, 8), (20, 6, 3, 3), 4)]


def block_parameters(before: int, after: int, style: int) -> int:
    """A StyleResBlock counted by hand: two affine maps, two kernels, two biases, the shortcut."""
    affine = (style + 1) * (before + after)
    kernels = 9 * before * after + 9 * after * after
    return affine + kernels + 2 * after + ((before + 1) * after if before != after else 0)


@pytest.mark.parametrize("backend", ["hybridgen", "stylegan2-pytorch"])
def test_parameters_of_table_a10(backend):
    widths = (8, 32, 64, 128, 64, 32)
    blocks = sum(block_parameters(a, b, 128) for a, b in pairwise(widths))
    assert parameters(StyleGAN2Generator(backend=backend)) == blocks + 3 * (32 * 9 + 1) == 528_267


@pytest.mark.parametrize("size", [16, 32, 64, 96])
def test_shapes_of_table_a10(size):
    generator = StyleGAN2Generator()
    shapes = []
    for block in generator.blocks:
        block.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
    side = size // 4
    images = generator(torch.randn(2, 8, side, side), torch.randn(2, 128))
    assert shapes == [
        (32, side, side),
        (64, side, side),
        (128, side, side),
        (64, 2 * side, 2 * side),
        (32, size, size),
    ]
    assert images.shape == (2, 3, size, size)
    assert images.min() >= 0 and images.max() <= 1


def test_either_code_can_be_the_style():
    """SciMix, and the "structural z_c" of table A.14, with narrow encoders."""
    images = torch.rand(2, 3, 16, 16)
    semantic = SemanticEncoder(10, 1, **STATISTICS)
    nonsemantic = NonSemanticEncoder(WideResNet(10, 1, **STATISTICS), 4)
    scimix = StyleGAN2Generator(4, 64, channels=(8, 8, 8), upsample=(False, True, True))
    assert scimix(nonsemantic(images), semantic(images)).shape == images.shape
    structural = StyleGAN2Generator(64, 4, channels=(8, 8, 8), upsample=(False, True, True))
    style = nonsemantic(images).mean((2, 3))
    assert structural(semantic.features(images), style).shape == images.shape


@pytest.mark.parametrize(
    ("filters", "upsample", "between"), [(4, False, False), (6, False, True), (6, True, False), (6, True, True)]
)
def test_block_by_the_book(filters, upsample, between):
    torch.manual_seed(0)
    block = StyleResBlock(4, filters, 3, upsample=upsample, between=between).double()
    nn.init.normal_(block.bias1)
    nn.init.normal_(block.bias2)
    x, style = torch.randn(2, 4, 5, 6, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    before = x.clone()
    double = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)

    def leaky_relu(t):
        return torch.where(t > 0, t, 0.2 * t)

    up = double(x) if upsample else x
    y = leaky_relu(
        grouped_modulated_conv2d(x if between else up, block.style1(style), block.conv1.weight) + block.bias1
    )
    y = double(y) if upsample and between else y
    y = leaky_relu(grouped_modulated_conv2d(y, block.style2(style), block.conv2.weight) + block.bias2)
    direct = block.shortcut(up) if filters != 4 else up
    torch.testing.assert_close(block(x, style), (direct + y) / 2**0.5, **EXACT)
    assert torch.equal(x, before)


@pytest.mark.parametrize("between", [False, True])
def test_backends_are_interchangeable(between):
    """State dicts fit both ways; outputs and gradients of inputs and parameters are equal."""
    torch.manual_seed(0)
    shape = {"channels": (8, 16, 8), "upsample": (False, True, True), "between": between}
    ours = StyleGAN2Generator(4, 12, **shape).double()
    theirs = StyleGAN2Generator(4, 12, backend="stylegan2-pytorch", **shape).double()
    assert type(theirs.blocks[0].conv1).__module__.startswith("stylegan2_pytorch")
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())

    structure = torch.randn(3, 4, 4, 4, dtype=torch.float64)
    style = torch.randn(3, 12, dtype=torch.float64)
    for got, want in zip(
        value_and_gradients(ours, structure, style),
        value_and_gradients(theirs, structure, style),
        strict=True,
    ):
        torch.testing.assert_close(got, want, **EXACT)
    for generator in (ours, theirs):
        generator(structure, style).square().sum().backward()
    want = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
        torch.testing.assert_close(parameter.grad, want[name].grad, **EXACT)


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "stylegan2_pytorch", None)
    monkeypatch.setitem(sys.modules, "stylegan2_pytorch.stylegan2_pytorch", None)
    with pytest.raises(InputError, match=r"pip install 'hybridgen\[stylegan2\]'") as error:
        StyleGAN2Generator(backend="stylegan2-pytorch")
    assert "\n" not in str(error.value)


def test_bad_input():
    with pytest.raises(InputError, match=r"^backend: 'rosinality' .*hybridgen, stylegan2-pytorch"):
        StyleGAN2Generator(backend="rosinality")
    with pytest.raises(InputError, match=r"^upsample: 2 entries for 3 blocks"):
        StyleGAN2Generator(channels=(8, 8, 8), upsample=(True, True))
    with pytest.raises(InputError, match=r"^upsample: 0 entries for 0 blocks"):
        StyleGAN2Generator(channels=(), upsample=())
    with pytest.raises(InputError, match=r"^kernel: 2"):
        ModulatedConv2d(4, 4, 2)
