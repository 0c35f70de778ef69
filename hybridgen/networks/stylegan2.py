"""The generator of SciMix: StyleGAN2's modulated convolutions (Karras et al. 2020) in residual blocks."""

from collections.abc import Sequence
from typing import Literal, get_args
from unittest.mock import patch

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hybridgen.types import Images, InputError, full_precision, single

Backend = Literal["hybridgen", "stylegan2-pytorch"]
"""Whose modulated convolutions the generator takes. Both compute the same from the same parameters."""

EPSILON = 1e-8


class ModulatedConv2d(nn.Module):
    """Convolution whose input channels each sample scales by 1 + its style (Karras et al. 2020, 2.2).

    With `demodulate`, output channels are divided by the norm of the sample's scaled kernel. Computed by
    scaling the input, convolving the whole batch with the shared kernel and scaling the output: the numbers
    of `grouped_modulated_conv2d` without a kernel for every sample. `kernel` is odd; the map keeps its
    size; there is no bias. The parameter `weight` `[out, in, k, k]` has name, shape and initialisation of
    stylegan2-pytorch's `Conv2DMod`. Raises `InputError` for an even kernel.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, demodulate: bool = True):
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise InputError(f"kernel: {kernel} is not an odd number above 0")
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))
        nn.init.kaiming_normal_(self.weight, mode="fan_in", nonlinearity="leaky_relu")
        self.demodulate = demodulate

    def forward(
        self,
        x: Float[Tensor, "batch in_channels height width"],
        style: Float[Tensor, "batch in_channels"],
    ) -> Float[Tensor, "batch out_channels height width"]:
        # Mixed precision stops at the convolution: the sum of squares below wants the weight's precision.
        with full_precision(x.device):
            scale = style.to(self.weight.dtype) + 1
            demodulation = None
            if self.demodulate:
                power = scale.square() @ self.weight.square().sum((2, 3)).T
                demodulation = torch.rsqrt(power + EPSILON)
        y = F.conv2d(x * scale.to(x.dtype)[:, :, None, None], self.weight, padding=self.weight.shape[-1] // 2)
        return y if demodulation is None else y * demodulation.to(y.dtype)[:, :, None, None]


def grouped_modulated_conv2d(
    x: Float[Tensor, "batch in_channels height width"],
    style: Float[Tensor, "batch in_channels"],
    weight: Float[Tensor, "out_channels in_channels kernel kernel"],
    *,
    demodulate: bool = True,
) -> Float[Tensor, "batch out_channels height width"]:
    """The same by the book: a kernel for every sample, convolved in as many groups. For tests and timing."""
    kernels = weight * (style + 1)[:, None, :, None, None]
    if demodulate:
        kernels = kernels * torch.rsqrt(kernels.square().sum((2, 3, 4), keepdim=True) + EPSILON)
    y = F.conv2d(x.flatten(0, 1)[None], kernels.flatten(0, 1), padding=weight.shape[-1] // 2, groups=x.shape[0])
    return y.view(x.shape[0], weight.shape[0], *x.shape[2:])


def _package_convolution() -> type[nn.Module]:
    """stylegan2-pytorch's `Conv2DMod`, on machines without CUDA too.

    The package asserts, while it is imported and never again, that CUDA is there; its modulated convolution
    needs none. Where the assertion fails, it is told once more, for the moment of a second import, that
    CUDA is there. Its dependencies are loaded by then, so that nothing but the package hears this.
    """
    try:
        try:
            from stylegan2_pytorch.stylegan2_pytorch import Conv2DMod
        except AssertionError:
            with patch.object(torch.cuda, "is_available", lambda: True):
                from stylegan2_pytorch.stylegan2_pytorch import Conv2DMod
    except ImportError as error:
        raise InputError(
            f"backend: stylegan2-pytorch cannot be imported ({error}); pip install 'hybridgen[stylegan2]'"
        ) from error
    return Conv2DMod


def _convolution(backend: str) -> type[nn.Module]:
    if backend not in get_args(Backend):
        raise InputError(f"backend: {backend!r} is not one of {', '.join(get_args(Backend))}")
    return ModulatedConv2d if backend == "hybridgen" else _package_convolution()


class StyleResBlock(nn.Module):
    """A residual block of two modulated 3×3 convolutions, the generator's unit in table A.10.

    Bilinear ×2 upsampling where asked for, before the convolutions or between them; twice a modulated
    convolution with an affine map of the style of its own, a bias and a LeakyReLU of slope 0.2; a 1×1
    convolution as shortcut where the number of channels changes; the sum divided by √2 (Karras et al. 2020,
    figures 2 and 7). No noise: an autoencoder reconstructs.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style_features: int,
        *,
        upsample: bool = False,
        between: bool = False,
        backend: str = "hybridgen",
    ):
        super().__init__()
        convolution = _convolution(backend)
        self.upsample, self.between = upsample, between
        self.style1 = nn.Linear(style_features, in_channels)
        self.conv1 = convolution(in_channels, out_channels, 3)
        self.bias1 = nn.Parameter(torch.zeros(out_channels, 1, 1))
        self.style2 = nn.Linear(style_features, out_channels)
        self.conv2 = convolution(out_channels, out_channels, 3)
        self.bias2 = nn.Parameter(torch.zeros(out_channels, 1, 1))
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "batch in_channels height width"],
        style: Float[Tensor, "batch style_features"],
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        if self.upsample and not self.between:
            x = _doubled(x)
        y = F.leaky_relu(self.conv1(x, self.style1(style)) + self.bias1, 0.2, inplace=True)
        x = self.shortcut(x)
        if self.upsample and self.between:
            x, y = _doubled(x), _doubled(y)
        y = F.leaky_relu(self.conv2(y, self.style2(style)) + self.bias2, 0.2, inplace=True)
        return (x + y) * 0.5**0.5


def _doubled(x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels 2*height 2*width"]:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class StyleGAN2Generator(nn.Module):
    """G, table A.10: a map that gives the structure and a vector that gives the style, to images.

    `structure` `[b, structure_channels, h, w]` runs through one `StyleResBlock` for every entry of
    `channels`, modulated by `style` `[b, style_features]`; a 3×3 convolution makes three channels of it and
    a sigmoid images in [0, 1] (the thesis names no output activation). With the default `upsample`, images
    are `[b, 3, 4h, 4w]`. SciMix passes z_r as structure and z_c as style; "structural z_c" (table A.14) is
    the other way round.

    With `between` blocks double the size between their convolutions.

    `backend="stylegan2-pytorch"` takes the modulated convolutions of that package; state dicts fit both
    ways. Raises `InputError` for an unknown backend, where the package is missing, and where `channels` and
    `upsample` differ in length or are empty.
    """

    def __init__(
        self,
        structure_channels: int = 8,
        style_features: int = 128,
        *,
        channels: Sequence[int] = (32, 64, 128, 64, 32),
        upsample: Sequence[bool] = (False, False, False, True, True),
        between: bool = False,
        backend: str = "hybridgen",
    ):
        super().__init__()
        if not channels or len(channels) != len(upsample):
            raise InputError(
                f"upsample: {len(upsample)} entries for {len(channels)} blocks of channels; one for each is needed"
            )
        self.blocks = nn.ModuleList(
            StyleResBlock(before, after, style_features, upsample=up, between=between, backend=backend)
            for before, after, up in zip((structure_channels, *channels), channels, upsample, strict=False)
        )
        self.to_rgb = nn.Conv2d(channels[-1], 3, 3, padding=1)

    def forward(
        self,
        structure: Float[Tensor, "batch structure_channels rows columns"],
        style: Float[Tensor, "batch style_features"],
    ) -> Images:
        x = structure
        for block in self.blocks:
            x = block(x, style)
        return torch.sigmoid(single(self.to_rgb(x)))
