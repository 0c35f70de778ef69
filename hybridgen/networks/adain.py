"""AdaIN style transfer as a hybridizer: the content of one image in the style of another.

Source: Huang and Belongie 2017; thesis 2.2.2.1, figure 2.4.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hybridgen.networks.wide_resnet import Normalize, WideResNetClassifier
from hybridgen.types import Images, InputError, single

EPSILON = 1e-5
"""Added to variances before the root is taken."""


def moments(maps: Float[Tensor, "batch channels rows columns"], eps: float = EPSILON) -> Float[Tensor, "batch moments"]:
    """μ of every map and then σ of every map, over its places: the style (Huang and Belongie, equations 5 and 6)."""
    variance, mean = torch.var_mean(single(maps), dim=(2, 3), correction=0)
    return torch.cat([mean, (variance + eps).sqrt()], dim=1)


def restyled(
    content: Float[Tensor, "batch channels rows columns"],
    style: Float[Tensor, "batch moments"],
    eps: float = EPSILON,
) -> Float[Tensor, "batch channels rows columns"]:
    """The content's maps with other `moments`."""
    (mean, deviation), (new_mean, new_deviation) = (
        both[:, :, None, None].chunk(2, dim=1) for both in (moments(content, eps), style)
    )
    return (content - mean) / deviation * new_deviation + new_mean


def adain(
    content: Float[Tensor, "batch channels rows columns"],
    style: Float[Tensor, "batch channels style_rows style_columns"],
    eps: float = EPSILON,
) -> Float[Tensor, "batch channels rows columns"]:
    """σ(z_s) · (z_c - μ(z_c)) / σ(z_c) + μ(z_s), moments map by map (thesis equation 2.5)."""
    return restyled(content, moments(style, eps), eps)


@dataclass(frozen=True)
class AdaINArchitecture:
    """All that shapes the networks of AdaIN."""

    image_size: int = 32
    """Side of the images: a multiple of 2, for VGG of 8."""
    classes: int = 10
    mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, float, float] = (0.2470, 0.2435, 0.2616)
    perceptual: Literal["wide-resnet", "vgg"] = "wide-resnet"
    """Whose features: a small wide residual network's, or those of VGG-19 as in the paper."""
    depth: int = 10
    """Of the wide residual network: 6n + 4."""
    width: int = 2
    stem: int = 16

    def __post_init__(self) -> None:
        scales = {"wide-resnet": 2, "vgg": 8}
        if self.perceptual not in scales:
            raise InputError(f"perceptual: {self.perceptual!r}; there are {', '.join(scales)}")
        multiple = scales[self.perceptual]
        if self.image_size % multiple or self.image_size < 16:
            raise InputError(f"image_size: {self.image_size} is not a multiple of {multiple} from 16 on")
        if self.classes < 1:
            raise InputError(f"classes: {self.classes} is below 1")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class WideResNetPerception(nn.Module):
    """A classifier whose stem and first two groups are the perceptual features; the third and a linear layer classify.

    Features have `channels` and the image's size divided by `scales`; the last of them are the content.
    """

    def __init__(self, architecture: AdaINArchitecture) -> None:
        super().__init__()
        a = architecture
        self.network = WideResNetClassifier(a.depth, a.width, a.classes, mean=a.mean, std=a.std, stem=a.stem)
        self.group = (a.depth - 4) // 6
        self.channels, self.scales = (a.stem, 16 * a.width, 32 * a.width), (1, 1, 2)

    def features(self, images: Images) -> list[Float[Tensor, "batch _channels _rows _columns"]]:
        """From shallow to deep."""
        trunk = self.network.encoder.trunk
        maps = [trunk.stem(trunk.normalize(images))]
        for first in (0, self.group):
            maps.append(trunk.blocks[first : first + self.group](maps[-1]))
        return maps

    def forward(
        self, images: Images
    ) -> tuple[Float[Tensor, "batch channels rows columns"], Float[Tensor, "batch classes"]]:
        """The content and the logits."""
        encoder, content = self.network.encoder, self.features(images)[-1]
        deep = encoder.activated(encoder.trunk.blocks[2 * self.group :](content))
        return content, self.network.head(deep.mean((2, 3)))


class VGGPerception(nn.Module):
    """VGG-19 up to relu4_1 (Simonyan and Zisserman 2015), and a linear layer that classifies its mean features.

    Features are those of relu1_1, relu2_1, relu3_1 and relu4_1, as in the paper. Layers are numbered as in
    `torchvision.models.vgg19().features`; `load_vgg` gives them their weights, and they learn no more.
    """

    def __init__(self, architecture: AdaINArchitecture) -> None:
        super().__init__()
        self.normalize = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        layers: list[nn.Module] = []
        before = 3
        for filters, convolutions in ((64, 2), (128, 2), (256, 4), (512, 1)):
            for _ in range(convolutions):
                layers += [nn.Conv2d(before, filters, 3, padding=1), nn.ReLU()]
                before = filters
            layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers[:-1]).requires_grad_(False)
        self.head = nn.Linear(512, architecture.classes)
        self.channels, self.scales = (64, 128, 256, 512), (1, 2, 4, 8)

    def features(self, images: Images) -> list[Float[Tensor, "batch _channels _rows _columns"]]:
        """From shallow to deep."""
        maps, x, first = [], self.normalize(images), 0
        for stop in (2, 7, 12, 21):
            x = self.layers[first:stop](x)
            maps.append(x)
            first = stop
        return maps

    def forward(
        self, images: Images
    ) -> tuple[Float[Tensor, "batch channels rows columns"], Float[Tensor, "batch classes"]]:
        """The content and the logits."""
        content = self.features(images)[-1]
        return content, self.head(content.mean((2, 3)))


def load_vgg(network: VGGPerception, *, download: bool = False) -> None:
    """Give it torchvision's ImageNet weights, from torch hub's cache or (with `download`) from the net.

    InputError where they cannot be had.
    """
    from torchvision.models import VGG19_Weights

    weights = VGG19_Weights.IMAGENET1K_V1
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    if not file.exists() and not download:
        raise InputError(f"perceptual: the weights of VGG-19 are not in {file}; pass --download, or take 'labelled'")
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # what urllib, the system and torch raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"perceptual: the weights of VGG-19 cannot be had ({reason}); take 'labelled'") from error
    own = network.layers.state_dict()
    network.layers.load_state_dict({name: state[f"features.{name}"] for name in own})


class AdaINDecoder(nn.Module):
    """The features mirrored: 3×3 convolutions with reflection padding, nearest upsampling, a sigmoid to [0, 1]."""

    def __init__(self, channels: Sequence[int], scales: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(len(channels) - 1, -1, -1):
            shallower = channels[max(i - 1, 0)]
            for before, after in ((channels[i], channels[i]), (channels[i], shallower)):
                layers += [nn.Conv2d(before, after, 3, padding=1, padding_mode="reflect"), nn.ReLU()]
            if i and scales[i] > scales[i - 1]:
                layers.append(nn.Upsample(scale_factor=scales[i] // scales[i - 1], mode="nearest"))
        layers.append(nn.Conv2d(channels[0], 3, 3, padding=1, padding_mode="reflect"))
        self.layers = nn.Sequential(*layers)

    def forward(self, maps: Float[Tensor, "batch channels rows columns"]) -> Images:
        return torch.sigmoid(single(self.layers(maps)))


class AdaINAutoencoder(nn.Module):
    """Perceptual features, AdaIN between them, and the decoder.

    z_c is the content `[b, channels, h/s, w/s]`, z_r its moments `[b, 2·channels]` in another image. The classifier is
    in evaluation mode unless it is told otherwise itself: only the decoder learns to transfer. `backend` is there for
    the protocol: `InputError` for another.
    """

    def __init__(self, architecture: AdaINArchitecture, *, backend: str = "hybridgen") -> None:
        super().__init__()
        if backend != "hybridgen":
            raise InputError(f"backend: {backend!r} is a choice for SciMix's generator; AdaIN has 'hybridgen' alone")
        a = self.architecture = architecture
        self.classifier = VGGPerception(a) if a.perceptual == "vgg" else WideResNetPerception(a)
        self.decoder = AdaINDecoder(self.classifier.channels, self.classifier.scales)

    def train(self, mode: bool = True) -> "AdaINAutoencoder":
        super().train(mode)
        self.classifier.eval()
        return self

    def nonsemantic_encoder(self, images: Images) -> Float[Tensor, "batch moments"]:
        """z_r."""
        return moments(self.classifier.features(images)[-1])

    def decode(
        self, semantic: Float[Tensor, "batch channels rows columns"], nonsemantic: Float[Tensor, "batch moments"]
    ) -> Images:
        """The image of this content in this style."""
        return self.decoder(restyled(semantic, nonsemantic))
