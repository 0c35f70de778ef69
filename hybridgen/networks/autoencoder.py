"""The semantic auto-encoder of SciMix: E_c, C, E_r and G put together (thesis, figure 2.12a)."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from hybridgen.networks.stylegan2 import StyleGAN2Generator
from hybridgen.networks.wide_resnet import ClassifierHeads, NonSemanticEncoder, SemanticEncoder
from hybridgen.types import Images, InputError


@dataclass(frozen=True)
class Architecture:
    """All that shapes a semantic auto-encoder. The defaults are tables A.7 to A.10 for 10 classes of 32×32 images."""

    image_size: int = 32
    """Side of the images, a multiple of 16."""
    classes: int = 10
    mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, float, float] = (0.2470, 0.2435, 0.2616)
    depth: int = 28
    """Of both wide residual networks: 6n + 4."""
    width: int = 2
    stem: int = 16
    nonsemantic_channels: int = 8
    """Channels of z_r."""
    generator_channels: tuple[int, ...] = (32, 64, 128, 64, 32)
    """Filters of G's blocks; the last two double the size."""
    style: Literal["semantic", "nonsemantic"] = "semantic"
    """Which code is the generator's style vector; the other is the map it starts from (table A.14)."""

    def __post_init__(self) -> None:
        if self.image_size % 16 or self.image_size < 16:
            raise InputError(
                f"image_size: {self.image_size} is a size the generator cannot make; take a multiple of 16"
            )
        if len(self.generator_channels) < 2:
            raise InputError(f"generator_channels: {self.generator_channels} has fewer than two blocks")
        if min(self.generator_channels) < 1:
            raise InputError(f"generator_channels: {self.generator_channels} has a block without filters")
        for field in ("classes", "nonsemantic_channels"):
            if getattr(self, field) < 1:
                raise InputError(f"{field}: {getattr(self, field)} is below 1")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Codes(NamedTuple):
    """What the encoders see in a batch of images."""

    semantic: Float[Tensor, "batch *semantic"]
    """z_c."""
    nonsemantic: Float[Tensor, "batch *nonsemantic"]
    """z_r."""
    predictions: Float[Tensor, "batch classes"]
    """Logits of C's primary head."""
    consistency: Float[Tensor, "batch classes"]
    """Logits of C's stability head."""


class SemanticClassifier(nn.Module):
    """E_c followed by C: a standard classifier whose features are z_c."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        self.encoder = SemanticEncoder(a.depth, a.width, mean=a.mean, std=a.std, stem=a.stem)
        self.heads = ClassifierHeads(self.encoder.channels, a.classes)
        self.pooled = a.style == "semantic"

    def forward(
        self, images: Images
    ) -> tuple[Float[Tensor, "batch *semantic"], Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
        """z_c and the logits of both heads."""
        if self.pooled:
            semantic = self.encoder(images)
            return semantic, *self.heads(semantic)
        semantic = self.encoder.features(images)
        return semantic, *self.heads(semantic.mean((2, 3)))


class SemanticAutoencoder(nn.Module):
    """Encodes images into z_c and z_r, and decodes any pair of codes into an image in [0, 1].

    With `style="semantic"` (SciMix) z_c is `[b, 64·width]` and z_r `[b, nonsemantic_channels, h/4, w/4]`; with
    "nonsemantic" (the variant "structural z_c" of table A.14) z_c is the map and z_r the vector.
    """

    def __init__(self, architecture: Architecture, *, backend: str = "hybridgen") -> None:
        super().__init__()
        a = self.architecture = architecture
        self.classifier = SemanticClassifier(a)
        features = self.classifier.encoder.channels
        if a.style == "semantic":
            self.nonsemantic_encoder = NonSemanticEncoder(
                a.depth, a.width, a.nonsemantic_channels, mean=a.mean, std=a.std, stem=a.stem
            )
            structure = a.nonsemantic_channels
        else:
            self.nonsemantic_encoder = SemanticEncoder(a.depth, a.width, mean=a.mean, std=a.std, stem=a.stem)
            structure = features
        blocks = len(a.generator_channels)
        self.generator = StyleGAN2Generator(
            structure,
            features,
            channels=a.generator_channels,
            upsample=tuple(block >= blocks - 2 for block in range(blocks)),
            backend=backend,
        )

    def forward(self, images: Images) -> Codes:
        """Encode."""
        semantic, predictions, consistency = self.classifier(images)
        return Codes(semantic, self.nonsemantic_encoder(images), predictions, consistency)

    def decode(
        self, semantic: Float[Tensor, "batch *semantic"], nonsemantic: Float[Tensor, "batch *nonsemantic"]
    ) -> Images:
        """G: the image that has this semantic and this non-semantic content."""
        if self.architecture.style == "semantic":
            return self.generator(nonsemantic, semantic)
        return self.generator(semantic, nonsemantic)
