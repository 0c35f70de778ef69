"""The asymmetrical decoder of SAMOSA: z_c is what it decodes, z_r chooses by which maps (thesis 2.3.2)."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hybridgen.types import InputError


class DeconvBlock(nn.Module):
    """Table A.6: batch-norm, LeakyReLU, 3×3 transposed convolution, whose output is `stride` times the size.

    With `normalized` a batch-norm follows.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        normalized: bool = False,
        slope: float = 0.1,
        momentum: float = 0.1,
    ):
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels, momentum=momentum)
        self.deconv = nn.ConvTranspose2d(in_channels, out_channels, 3, stride, padding=1, output_padding=stride - 1)
        self.after = nn.BatchNorm2d(out_channels, momentum=momentum) if normalized else nn.Identity()
        self.slope = slope

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        return self.after(self.deconv(F.leaky_relu(self.norm(x), self.slope, inplace=True)))


class SamosaDecoder(nn.Module):
    """D, table A.3: z_c `[b, channels, h, w]` and gates z_r `[b, channels/2]` to a standardised image `[b, 3, 4h, 4w]`.

    D_pre makes one map for each gate, h `[b, channels/2, 4h, 4w]`; D_post makes the image of h' = z_r ⊙ h. D^(0) of
    thesis 2.3.3 is `first`, which z_r does not touch; its output has the shape of z_c. With `normalized_resampling` a
    batch-norm follows the two convolutions that double the size ("stabilized [...] in MixMatch experiments", A.1.1).

    The table leaves open whether convolutions have a bias and how they are initialised: both are torch's defaults,
    which A.1.1 takes where it says nothing else. The rows of the table then have 786,755 parameters for 128 channels;
    A.4.1 speaks of 2M. Raises `InputError` for a number of channels that is no multiple of 8.
    """

    def __init__(
        self, channels: int = 128, *, normalized_resampling: bool = False, slope: float = 0.1, momentum: float = 0.1
    ):
        super().__init__()
        if channels < 8 or channels % 8:
            raise InputError(f"channels: {channels} of z_c; SAMOSA's decoder needs a multiple of 8")
        wide, gates, narrow = channels, channels // 2, channels // 8
        pre = [(wide, 1)] * 3 + [(gates, 2)] + [(gates, 1)] * 3 + [(gates, 2)]
        post = [(gates, 1)] * 3 + [(narrow, 1)]
        blocks = []
        for filters, stride in pre + post:
            normalized = normalized_resampling and stride > 1
            blocks.append(DeconvBlock(channels, filters, stride, normalized=normalized, slope=slope, momentum=momentum))
            channels = filters
        self.pre = nn.Sequential(*blocks[: len(pre)])
        self.post = nn.Sequential(*blocks[len(pre) :], nn.ConvTranspose2d(narrow, 3, 3, padding=1))

    @property
    def first(self) -> nn.Module:
        """D^(0), the first block."""
        return self.pre[0]

    def forward(
        self, semantic: Float[Tensor, "batch channels rows columns"], gates: Float[Tensor, "batch gates"]
    ) -> Float[Tensor, "batch 3 height width"]:
        return self.post(gates[:, :, None, None] * self.pre(semantic))
