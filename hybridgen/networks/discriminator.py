"""The discriminator of SciMix (thesis, table A.11), and one that sees what another network makes of images."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hybridgen.networks.wide_resnet import Normalize
from hybridgen.types import Images, InputError


class DownResBlock(nn.Module):
    """A residual block that halves the map, as in StyleGAN2's discriminator (Karras et al. 2020, figure 7).

    Two 3×3 convolutions, the second with stride 2, a LeakyReLU of slope 0.2 after each; the mean of 2×2
    pixels and a 1×1 convolution as shortcut; the sum divided by √2. Told not to `halve`, it leaves the size as it is,
    with the same weights.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"], *, halve: bool = True
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        y = F.leaky_relu(self.conv1(x), 0.2, inplace=True)
        y = self.conv2(y) if halve else F.conv2d(y, self.conv2.weight, self.conv2.bias, padding=1)
        y = F.leaky_relu(y, 0.2, inplace=True)
        return (self.shortcut(F.avg_pool2d(x, 2) if halve else x) + y) * 0.5**0.5


class Discriminator(nn.Module):
    """D, table A.11: images in [0, 1] to one logit an image, `[b]`; above 0 means real.

    A 3×3 convolution and residual blocks halve the map until its side is 2 or odd (2 for sizes 16, 32, 64;
    3 for 96): two blocks at size 16, three at 32 (the table), four at 64 and 96. `channels` are the filters
    of the convolution and of each block: cut short where there are fewer blocks, its last value repeated
    where there are more. A linear layer of as many units as the last block has filters, a LeakyReLU and a
    linear layer of one unit follow. `width` multiplies all filters. Images of half the size are judged with the same
    weights: the last block leaves the size as it is. The "32 filters" in the table's last
    block are a misprint for 256. Raises `InputError` for an image size that is not a multiple of 16.
    """

    def __init__(
        self,
        image_size: int,
        *,
        channels: Sequence[int] = (32, 64, 128, 256),
        width: float = 1.0,
        mean: Sequence[float],
        std: Sequence[float],
    ):
        super().__init__()
        if image_size < 16 or image_size % 16:
            below = max(16, image_size - image_size % 16)
            nearest = f"{below} and {below + 16}" if image_size > 16 else "16"
            raise InputError(
                f"image_size: {image_size} is a size that the discriminator cannot judge; "
                f"multiples of 16 are needed, nearest: {nearest}"
            )
        if not channels:
            raise InputError("channels: empty; at least one number of filters is needed")
        if width <= 0:
            raise InputError(f"width: {width} is not above 0")

        side = image_size // 2
        halvings = 0
        while side > 2 and side % 2 == 0:
            side //= 2
            halvings += 1
        filters = [channels[min(block, len(channels) - 1)] for block in range(halvings + 1)]
        filters = [max(1, round(width * count)) for count in filters]

        self.image_size = image_size
        self.normalize = Normalize(mean, std)
        self.stem = nn.Conv2d(3, filters[0], 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(DownResBlock(before, after) for before, after in pairwise(filters)))
        self.hidden = nn.Linear(filters[-1] * side**2, filters[-1])
        self.logit = nn.Linear(filters[-1], 1)

    def forward(self, images: Images) -> Float[Tensor, " batch"]:
        size, half = self.image_size, images.shape[2:] == (self.image_size // 2,) * 2
        if not half and images.shape[2:] != (size, size):
            raise InputError(
                f"images: {images.shape[2]}×{images.shape[3]} for a discriminator of size {size}, or half of it"
            )
        x = F.leaky_relu(self.stem(self.normalize(images)), 0.2, inplace=True)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)
        x = F.leaky_relu(self.hidden(last(x, halve=not half).flatten(1)), 0.2, inplace=True)
        return self.logit(x).squeeze(1)


class FeatureDiscriminator(nn.Module):
    """Whether images look real to a network that stays as it is, and of their class: for each of its feature maps
    `[b, widths[i], h, w]` a logit, `[b, maps]`; above 0 means real.

    The maps of a trained network show at once what a discriminator would learn late (projected GANs, Sauer et al.
    2021). Of each a 1×1 and a 3×3 convolution of so many `channels`, a LeakyReLU of slope 0.2 after each, and the mean
    over places make a vector h. Its logit is linear in h, and has h·Wp added for the probabilities p of the classes
    `[b, classes]` that the images should have (projection, Miyato and Koyama 2018, equation 3).
    """

    def __init__(self, widths: Sequence[int], classes: int, *, channels: int = 64):
        super().__init__()
        self.bodies = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, channels, 1),
                nn.LeakyReLU(0.2, inplace=True),
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.LeakyReLU(0.2, inplace=True),
            )
            for width in widths
        )
        self.logits = nn.ModuleList(nn.Linear(channels, 1) for _ in widths)
        self.projections = nn.ModuleList(nn.Linear(classes, channels, bias=False) for _ in widths)

    def forward(
        self,
        maps: Sequence[Float[Tensor, "batch _channels _rows _columns"]],
        classes: Float[Tensor, "batch classes"],
    ) -> Float[Tensor, "batch maps"]:
        found = []
        for x, body, logit, projection in zip(maps, self.bodies, self.logits, self.projections, strict=True):
            h = body(x).mean((2, 3))
            found.append(logit(h).squeeze(1) + (h * projection(classes)).sum(dim=1))
        return torch.stack(found, dim=1)
