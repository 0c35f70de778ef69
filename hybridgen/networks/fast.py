"""A small network for small images, in the manner of CIFAR-10's record holders.

Source: K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (2024; airbench94), and before it
tysam-code/hlb-CIFAR10 and D. Page's ResNet-9: a frozen whitening convolution as stem, pooling right after the
convolution that widens, identity at first. Ours for this project: maps that are exactly halved, an average at the end,
and batch-norms that scale too, so that every method's rates suit it.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from hybridgen.networks.wide_resnet import Normalize, Stemmed, linear, outputs
from hybridgen.types import Images, InputError

SIDE = 2
"""Of the patches that are whitened."""
PATCH = 3 * SIDE**2
"""Numbers in a patch."""
EPSILON = 5e-4
"""Added to the variances that are divided by (airbench94's): what patches hardly ever show is not blown up."""
WIDTHS = (32, 64, 128)
CONVOLUTIONS = 2


def patch_covariance(images: Shaped[Tensor, "batch 3 height width"]) -> Float[Tensor, "patch patch"]:
    """Covariance of all 2×2 patches of the images, channel by channel, rows before columns; in float64, on the CPU.

    Of 8-bit levels it is exact: sums of whole numbers do not depend on their order, nor on the machine. InputError for
    images without a patch.
    """
    if len(images) == 0 or min(images.shape[2:]) < SIDE:
        height, width = images.shape[2:]
        raise InputError(f"images: {len(images)} of {height}×{width}; patches of {SIDE}×{SIDE} pixels are needed")
    count, total, products = (
        0,
        *(torch.zeros(shape, dtype=torch.float64, device="cpu") for shape in (PATCH, (PATCH, PATCH))),
    )
    for some in images.cpu().split(128):
        # [batch, 3, height - 1, width - 1, 2, 2] to one patch a row
        patches = some.double().unfold(2, SIDE, 1).unfold(3, SIDE, 1).movedim(1, 3).reshape(-1, PATCH)
        count += len(patches)
        total += patches.sum(dim=0)
        products += patches.T @ patches
    return (products - total.outer(total) / count) / count


def whitening_filters(covariance: Float[Tensor, "patch patch"]) -> Float[Tensor, "filters 3 2 2"]:
    """Filters whose answers to patches of this covariance are uncorrelated and of variance 1 (λ / (λ + ε) for each
    eigenvalue λ): its eigenvectors, the most frequent first, and then all with the other sign.

    An eigenvector has two signs; that is taken which makes its largest element positive.
    """
    values, vectors = torch.linalg.eigh(covariance.double())
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    scaled = vectors * largest.sign() / (values.clamp(min=0) + EPSILON).sqrt()
    filters = scaled.T.flip(0).reshape(PATCH, 3, SIDE, SIDE)
    return torch.cat([filters, -filters])


class Whitening(nn.Module):
    """The stem: a 2×2 convolution whose 24 filters whiten the training images' patches, and GELU; no parameters.

    Standardised images to `[b, 24, h, w]`. They are continued by their last row and column, which shows no edge where
    there is none. Filters are not numbers until `whiten` has made them, or they were loaded; the first forward looks
    for that (looking waits for the device): InputError.
    """

    filters: Float[Tensor, "filters 3 2 2"]
    channels = 2 * PATCH

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", torch.full((self.channels, 3, SIDE, SIDE), torch.nan))
        self._looked = False

    @torch.no_grad()
    def whiten(self, covariance: Float[Tensor, "patch patch"]) -> None:
        """Take the filters that belong to the `patch_covariance` of standardised training images."""
        self.filters.copy_(whitening_filters(covariance))

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch filters height width"]:
        if not self._looked and not self.filters.is_meta and not torch.compiler.is_compiling():
            if not self.filters.isfinite().all():
                raise InputError("network: a fast network whose stem knows no images yet; let it `whiten` some first")
            self._looked = True
        return F.gelu(F.conv2d(F.pad(images, (0, SIDE - 1, 0, SIDE - 1), mode="replicate"), self.filters))


class FastBlock(nn.Module):
    """3×3 convolution, 2×2 max-pooling, batch-norm, GELU; and then further convolutions, each with batch-norm and GELU.

    Maps `[b, in, h, w]` to `[b, out, ⌈h/2⌉, ⌈w/2⌉]`. At first every convolution hands its input on, as far as it has as
    many filters; what filters it has beyond are drawn as torch draws them.
    """

    def __init__(self, in_channels: int, out_channels: int, convolutions: int) -> None:
        super().__init__()
        convs = [
            nn.Conv2d(before, out_channels, 3, padding=1, bias=False)
            for before in (in_channels, *[out_channels] * (convolutions - 1))
        ]
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(out_channels) for _ in range(convolutions))
        with torch.no_grad():
            for conv in convs:
                same = min(conv.weight.shape[:2])
                conv.weight[:same] = 0
                conv.weight[:same, :same, 1, 1] = torch.eye(same)

    def last_two(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> tuple[
        Float[Tensor, "batch out_channels rows columns"] | None, Float[Tensor, "batch out_channels rows columns"]
    ]:
        """The output of the last convolution but one, None where there is none, and that of the last; the first one's
        is pooled."""
        before, x = None, F.max_pool2d(self.convs[0](x), 2, ceil_mode=True)
        for norm, conv in zip(self.norms, self.convs[1:], strict=False):
            before, x = x, conv(F.gelu(norm(x)))
        return before, x

    def finish(
        self, x: Float[Tensor, "batch out_channels rows columns"]
    ) -> Float[Tensor, "batch out_channels rows columns"]:
        """The block's output, from that of its last convolution."""
        return F.gelu(self.norms[-1](x))

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels rows columns"]:
        return self.finish(self.last_two(x)[1])


class FastTrunk(nn.Module):
    """Standardisation, whitening stem and one block for each width: images to a map whose sides are halved by every
    block. `channels` is the last width.

    With `mean` and `std` None the images come standardised. Raises `InputError` for one of them None, for no width, and
    for a width or a number of convolutions below 1.
    """

    def __init__(
        self,
        widths: Sequence[int] = WIDTHS,
        convolutions: int = CONVOLUTIONS,
        *,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        super().__init__()
        if not widths:
            raise InputError("widths: none; one for each block is needed")
        for field, value in (("width", min(widths)), ("convolutions", convolutions)):
            if value < 1:
                raise InputError(f"{field}: {value} is below 1")
        if (mean is None) != (std is None):
            raise InputError(f"{'mean' if mean is None else 'std'}: None beside the other; both are needed or neither")
        self.channels, self.widths, self.convolutions = widths[-1], tuple(widths), convolutions
        self.normalize = nn.Identity() if mean is None or std is None else Normalize(mean, std)
        self.stem = Whitening()
        self.blocks = nn.Sequential(
            *(FastBlock(before, after, convolutions) for before, after in pairwise((self.stem.channels, *widths)))
        )

    def forward(self, images: Stemmed) -> Float[Tensor, "batch channels rows columns"]:
        return self.blocks(self.stem(self.normalize(images)))

    def maps(self, images: Images) -> list[Float[Tensor, "batch _channels _rows _columns"]]:
        """What each block makes, of `widths` channels; the last one is that of `forward`."""
        return outputs(self.blocks, self.stem(self.normalize(images)))

    def last_two(
        self, images: Images
    ) -> tuple[Float[Tensor, "batch quarter rows columns"], Float[Tensor, "batch quarter rows columns"]]:
        """The outputs of the last two convolutions of the second block, whose maps have a quarter of the sides."""
        second = cast(FastBlock, self.blocks[1])
        before, last = second.last_two(self.blocks[0](self.stem(self.normalize(images))))
        assert before is not None
        return before, last

    def rest(self, x: Float[Tensor, "batch quarter rows columns"]) -> Float[Tensor, "batch channels _rows _columns"]:
        """What is left of `forward` after `last_two`."""
        second = cast(FastBlock, self.blocks[1])
        return self.blocks[2:](second.finish(x))


class FastEncoder(nn.Module):
    """Trunk and global average: images to a vector `[b, channels]`; `features` gives the map before the average.

    SAMOSA's z_c is what the second block's last convolution makes: `last_two` and `pooled` are E_c and the first part
    of C.
    """

    def __init__(
        self,
        widths: Sequence[int] = WIDTHS,
        convolutions: int = CONVOLUTIONS,
        *,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        super().__init__()
        self.trunk = FastTrunk(widths, convolutions, mean=mean, std=std)
        self.channels = self.trunk.channels

    def activated(
        self, x: Float[Tensor, "batch channels rows columns"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """The features, of the trunk's map: the same."""
        return x

    def features(self, images: Stemmed) -> Float[Tensor, "batch channels rows columns"]:
        return self.trunk(images)

    def forward(self, images: Images) -> Float[Tensor, "batch channels"]:
        return self.features(images).mean((2, 3))

    def pooled(self, semantic: Float[Tensor, "batch quarter rows columns"]) -> Float[Tensor, "batch channels"]:
        """The vector, from the second of `trunk.last_two`."""
        return self.trunk.rest(semantic).mean((2, 3))


class FastClassifier(nn.Module):
    """Encoder and one linear layer: standardised images, once it was shown some to `whiten`, to logits `[b, classes]`.

    `forward_features`, `forward_head`, `num_features` and `feature_info` are timm's convention; stages are the blocks.
    """

    def __init__(self, classes: int, widths: Sequence[int] = WIDTHS, convolutions: int = CONVOLUTIONS) -> None:
        super().__init__()
        self.encoder = FastEncoder(widths, convolutions, mean=None, std=None)
        self.head = linear(self.encoder.channels, classes)
        self.num_features, self.num_classes = self.encoder.channels, classes
        self.feature_info = [
            {"num_chs": width, "reduction": 2 ** (block + 1), "module": f"encoder.trunk.blocks.{block}"}
            for block, width in enumerate(widths)
        ]

    def whiten(self, images: Float[Tensor, "batch 3 height width"]) -> "FastClassifier":
        """The same network, its stem made for images like these, standardised as it will see them: some 1,000."""
        self.encoder.trunk.stem.whiten(patch_covariance(images))
        return self

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
