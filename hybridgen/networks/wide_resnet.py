"""Wide residual networks (Zagoruyko and Komodakis 2016), and SciMix's and SAMOSA's encoders and classifiers on them.

Source: thesis, tables A.1, A.2, A.4, A.5 and A.7 to A.9. All networks take images in [0, 1] and standardise them
themselves, unless they are told to leave it to others.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hybridgen.types import Images, InputError, single

Stemmed = Float[Tensor, "batch _ height width"]
"""Images; or what a stem has made of them, for a network whose own stem was taken out of it."""


class Normalize(nn.Module):
    """Standardise images in [0, 1] channel by channel.

    `mean` and `std` are the data's statistics, three values each. Raises `InputError` for another number of
    values and for a deviation that is not positive.
    """

    mean: Float[Tensor, "1 3 1 1"]
    std: Float[Tensor, "1 3 1 1"]

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        for field, values in (("mean", mean), ("std", std)):
            if len(values) != 3:
                raise InputError(f"{field}: {len(values)} values; one for each of the 3 channels is needed")
        if min(std) <= 0:
            raise InputError(f"std: {min(std)} is not above 0")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.get_default_dtype()).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.get_default_dtype()).view(1, 3, 1, 1))

    def forward(self, images: Images) -> Float[Tensor, "batch 3 height width"]:
        return (images - self.mean) / self.std

    def inverse(self, standardised: Float[Tensor, "batch 3 height width"]) -> Images:
        return standardised * self.std + self.mean


class WideResBlock(nn.Module):
    """Table A.5: BN, LeakyReLU, 3×3 conv, BN, LeakyReLU, 3×3 conv, added to the input.

    Where the number of channels changes, a 1×1 convolution takes the raw input, as the table has it
    (FixMatch's own code lets it take the activated input in the first block of the network). With
    `normalized_resampling` a batch-norm follows this convolution (the table: "only for MixMatch").
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        slope: float,
        momentum: float,
        normalized_resampling: bool = False,
    ):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels, momentum=momentum)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels, momentum=momentum)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = (
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            if in_channels != out_channels
            else nn.Identity()
        )
        if normalized_resampling and in_channels != out_channels:
            self.shortcut = nn.Sequential(self.shortcut, nn.BatchNorm2d(out_channels, momentum=momentum))
        self.slope = slope

    def first(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        """The output of the first 3×3 convolution."""
        return self.conv1(F.leaky_relu(self.norm1(x), self.slope, inplace=True))

    def second(
        self,
        x: Float[Tensor, "batch in_channels height width"],
        residual: Float[Tensor, "batch out_channels out_height out_width"],
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        """The block's output, from its input and what `first` made of it."""
        return self.shortcut(x) + self.conv2(F.leaky_relu(self.norm2(residual), self.slope, inplace=True))

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        return self.second(x, self.first(x))


def outputs(
    blocks: Iterable[nn.Module], x: Float[Tensor, "batch _channels _rows _columns"]
) -> list[Float[Tensor, "batch _channels _rows _columns"]]:
    """What each block makes of what the one before it has made."""
    return list(accumulate(blocks, lambda made, block: block(made), initial=x))[1:]


class WideResNet(nn.Module):
    """The trunk: standardisation, 3×3 stem, three groups of `(depth - 4) / 6` blocks with strides 1, 2, 2.

    Gives the map `[b, 64·width, ⌈h/4⌉, ⌈w/4⌉]` before the final batch-norm; `channels` is `64·width`.
    `stem` is the stem's number of filters, `slope` that of the LeakyReLUs, `momentum` batch-norm's in
    torch's sense (0.001 in FixMatch), `normalized_resampling` that of the blocks. Initialisation is FixMatch's:
    normal, variance 2 / fan-out. With `mean` and `std` None the images come standardised. Raises `InputError` for one
    of them None, for a depth that is not 6n + 4 and for a width or stem below 1.
    """

    def __init__(
        self,
        depth: int = 28,
        width: int = 2,
        *,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        stem: int = 16,
        slope: float = 0.1,
        momentum: float = 0.1,
        normalized_resampling: bool = False,
    ):
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            below = max(10, depth - (depth - 4) % 6)
            nearest = f"{below} and {below + 6}" if depth > 10 else "10"
            raise InputError(f"depth: {depth} is not 6n + 4 (n ≥ 1); nearest: {nearest}")
        for field, value in (("width", width), ("stem", stem)):
            if value < 1:
                raise InputError(f"{field}: {value} is below 1")
        if (mean is None) != (std is None):
            raise InputError(f"{'mean' if mean is None else 'std'}: None beside the other; both are needed or neither")

        blocks = []
        channels = stem
        for filters, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            for block in range((depth - 4) // 6):
                blocks.append(
                    WideResBlock(
                        channels,
                        filters,
                        stride if block == 0 else 1,
                        slope=slope,
                        momentum=momentum,
                        normalized_resampling=normalized_resampling,
                    )
                )
                channels = filters

        self.channels, self.widths = channels, (16 * width, 32 * width, 64 * width)
        self.normalize = nn.Identity() if mean is None or std is None else Normalize(mean, std)
        self.stem = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, images: Stemmed) -> Float[Tensor, "batch channels rows columns"]:
        return self.blocks(self.stem(self.normalize(images)))

    def maps(self, images: Images) -> list[Float[Tensor, "batch _channels _rows _columns"]]:
        """What each group makes, of `widths` channels; the last one is that of `forward`."""
        made = outputs(self.blocks, self.stem(self.normalize(images)))
        return made[len(made) // 3 - 1 :: len(made) // 3]

    def last_two(
        self, images: Images
    ) -> tuple[Float[Tensor, "batch channels rows columns"], Float[Tensor, "batch channels rows columns"]]:
        """The output of the last convolution but one, E_c^(0..(d_c-2)) of thesis 2.3.3, and the map of `forward`."""
        *body, last = cast(Iterable[WideResBlock], self.blocks)
        x = self.stem(self.normalize(images))
        for block in body:
            x = block(x)
        before = last.first(x)
        return before, last.second(x, before)


class SemanticEncoder(nn.Module):
    """E_c, table A.8: trunk, batch-norm, LeakyReLU, global average: images to z_c `[b, 64·width]`.

    `features` gives the map before the average, for the variant whose z_c is structural (table A.14); `activated`
    makes it of the trunk's map, which is SAMOSA's z_c.
    """

    def __init__(
        self,
        depth: int = 28,
        width: int = 2,
        *,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        stem: int = 16,
        slope: float = 0.1,
        momentum: float = 0.1,
        normalized_resampling: bool = False,
    ):
        super().__init__()
        self.trunk = WideResNet(
            depth,
            width,
            mean=mean,
            std=std,
            stem=stem,
            slope=slope,
            momentum=momentum,
            normalized_resampling=normalized_resampling,
        )
        self.channels = self.trunk.channels
        self.norm = nn.BatchNorm2d(self.channels, momentum=momentum)
        self.slope = slope

    def activated(
        self, x: Float[Tensor, "batch channels rows columns"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        return F.leaky_relu(self.norm(x), self.slope, inplace=True)

    def features(self, images: Stemmed) -> Float[Tensor, "batch channels rows columns"]:
        return self.activated(self.trunk(images))

    def forward(self, images: Images) -> Float[Tensor, "batch channels"]:
        return self.features(images).mean((2, 3))

    def pooled(self, semantic: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch channels"]:
        """The vector, from the second of `trunk.last_two`."""
        return self.activated(semantic).mean((2, 3))


@runtime_checkable
class Trunk(Protocol):
    """Makes of images maps of so many channels."""

    channels: int

    def __call__(self, images: Images, /) -> Tensor: ...


class NonSemanticEncoder(nn.Module):
    """E_r, table A.9: trunk and 1×1 convolution: images to z_r `[b, channels, h/4, w/4]`.

    The trunk makes maps of a quarter of the image's sides and says how many `channels` they have. Raises `InputError`
    for images whose height or width is not a multiple of 4: the generator could not make them.
    """

    def __init__(self, trunk: Trunk, channels: int = 8):
        super().__init__()
        self.trunk, self.channels = trunk, channels
        self.projection = nn.Conv2d(trunk.channels, channels, 1)

    def forward(self, images: Images) -> Float[Tensor, "batch channels rows columns"]:
        height, width = images.shape[2:]
        if height % 4 or width % 4:
            raise InputError(
                f"image size: {height}×{width} is a size that the generator cannot make; multiples of 4 are needed"
            )
        return self.projection(self.trunk(images))


class GatingEncoder(nn.Module):
    """SAMOSA's E_r, table A.2: trunk, linear layer and softmax: images to gates `[b, gates]`, positive, of sum 1.

    The trunk makes maps of a quarter of the image's sides and says how many `channels` they have; there is a
    gate for every two of them. The linear layer sees all places of the map, so it is made for images of one size:
    `InputError` for another. It has torch's initialisation.
    """

    def __init__(self, trunk: Trunk, image_size: int):
        super().__init__()
        self.trunk, self.image_size, self.gates = trunk, image_size, trunk.channels // 2
        self.linear = nn.Linear(trunk.channels * (-(-image_size // 4)) ** 2, self.gates)

    def forward(self, images: Images) -> Float[Tensor, "batch gates"]:
        if tuple(images.shape[2:]) != (self.image_size, self.image_size):
            raise InputError(
                f"image size: {images.shape[2]}×{images.shape[3]}; "
                f"this encoder takes {self.image_size}×{self.image_size}"
            )
        return single(self.linear(self.trunk(images).flatten(1))).softmax(dim=1)


def linear(features: int, classes: int) -> nn.Linear:
    """A linear layer initialised as FixMatch's: Glorot normal, no bias at first."""
    layer = nn.Linear(features, classes)
    nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class ClassifierHeads(nn.Module):
    """C, table A.7: z_c to the logits of two heads, predictions and consistency ("stability output")."""

    def __init__(self, features: int, classes: int):
        super().__init__()
        self.predictions = linear(features, classes)
        self.consistency = linear(features, classes)

    def forward(
        self, semantic: Float[Tensor, "batch features"]
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
        return self.predictions(semantic), self.consistency(semantic)


class WideResNetClassifier(nn.Module):
    """E_c and one linear layer: images to logits `[b, classes]`, the classifier of FixMatch and MixMatch.

    `options` are those of `SemanticEncoder`. `forward_features`, `forward_head`, `num_features` and `feature_info` are
    timm's convention; the stages that the last lists are the first blocks of the trunk's three groups.
    """

    def __init__(self, depth: int, width: int, classes: int, **options: Any):
        super().__init__()
        self.encoder = SemanticEncoder(depth, width, **options)
        self.head = linear(self.encoder.channels, classes)
        self.num_features, self.num_classes = self.encoder.channels, classes
        self.feature_info = [
            {
                "num_chs": 2**group * 16 * width,
                "reduction": 2**group,
                "module": f"encoder.trunk.blocks.{group * (depth - 4) // 6}",
            }
            for group in range(3)
        ]

    def forward_features(self, images: Stemmed) -> Float[Tensor, "batch channels rows columns"]:
        return self.encoder.features(images)

    def forward_head(
        self, features: Float[Tensor, "batch channels rows columns"], pre_logits: bool = False
    ) -> Float[Tensor, "batch outputs"]:
        """Logits, or with `pre_logits` the features' mean over the map."""
        pooled = features.mean((2, 3))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, images: Images) -> Float[Tensor, "batch classes"]:
        return self.forward_head(self.forward_features(images))


class TwoHeadClassifier(nn.Module):
    """E_c and C of table A.7: images to the logits of two heads, the classifier of Mean Teacher.

    `options` are those of `SemanticEncoder`.
    """

    def __init__(self, depth: int, width: int, classes: int, **options: Any):
        super().__init__()
        self.encoder = SemanticEncoder(depth, width, **options)
        self.heads = ClassifierHeads(self.encoder.channels, classes)

    def forward(self, images: Images) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
        """Predictions and consistency."""
        return self.heads(self.encoder(images))
