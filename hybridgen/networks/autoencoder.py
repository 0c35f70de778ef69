"""The auto-encoders of SciMix (thesis, figure 2.12a) and SAMOSA (figure 2.7): E_c, C, E_r and G or D put together."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple, cast, get_args, get_origin

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hybridgen.networks.adain import AdaINArchitecture, AdaINAutoencoder
from hybridgen.networks.decoder import SamosaDecoder
from hybridgen.networks.fast import FastEncoder
from hybridgen.networks.registry import make_encoder, make_trunk, set_batch_norm_momentum
from hybridgen.networks.stylegan2 import StyleGAN2Generator
from hybridgen.networks.wide_resnet import ClassifierHeads, GatingEncoder, NonSemanticEncoder, Normalize
from hybridgen.types import Images, InputError


@dataclass(frozen=True)
class Architecture:
    """All that shapes a semantic auto-encoder. The defaults are tables A.7 to A.10 for 10 classes of 32×32 images."""

    image_size: int = 32
    """Side of the images, a multiple of 16."""
    classes: int = 10
    mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, float, float] = (0.2470, 0.2435, 0.2616)
    network: str = "leaky-wrn-28-2"
    """What both encoders are made from: a name of `networks.registry.make_encoder`."""
    nonsemantic_channels: int = 8
    """Channels of z_r."""
    generator_channels: tuple[int, ...] = (32, 64, 128, 64, 32)
    """Filters of G's blocks."""
    upsampling: Literal["bilinear", "between"] = "bilinear"
    """How G comes from a quarter of the images' size to the whole: its last two blocks double it bilinearly, before
    their convolutions (table A.10) or, for 40 % less work, between them."""
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
        _at_least_one(self, "classes", "nonsemantic_channels")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class SamosaArchitecture:
    """All that shapes a SAMOSA auto-encoder. The defaults are tables A.1 to A.6 for 10 classes of 32×32 images."""

    image_size: int = 32
    """Side of the images, a multiple of 4."""
    classes: int = 10
    mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, float, float] = (0.2470, 0.2435, 0.2616)
    network: str = "leaky-wrn-28-2"
    """What both encoders are made from: a name of `networks.registry.make_encoder`. z_c has the channels of its map of
    a quarter of the image's sides, and there are half as many gates. The -normalized form has batch-norms behind the
    convolutions that double the size in the decoder too, as in the MixMatch experiments (A.1.1)."""
    momentum: float = 0.1
    """Of batch-norm in E_c and C, in torch's sense (the base method's: 0.001 in FixMatch); E_r and D keep 0.1."""

    def __post_init__(self) -> None:
        if self.image_size % 4 or self.image_size < 4:
            raise InputError(f"image_size: {self.image_size} is a size the decoder cannot make; take a multiple of 4")
        if not 0 < self.momentum <= 1:
            raise InputError(f"momentum: {self.momentum} is outside (0, 1]")
        _at_least_one(self, "classes")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _at_least_one(architecture: Architecture | SamosaArchitecture, *names: str) -> None:
    for name in names:
        if getattr(architecture, name) < 1:
            raise InputError(f"{name}: {getattr(architecture, name)} is below 1")


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
    maps: Sequence[Float[Tensor, "batch _channels _rows _columns"]] = ()
    """SciMix: the `maps` of E_c's trunk."""


class SemanticFeatures(NamedTuple):
    """What SciMix's classifier sees in a batch of images."""

    semantic: Float[Tensor, "batch *semantic"]
    """z_c."""
    predictions: Float[Tensor, "batch classes"]
    """Logits of C's primary head."""
    consistency: Float[Tensor, "batch classes"]
    """Logits of C's stability head."""
    maps: Sequence[Float[Tensor, "batch _channels _rows _columns"]]
    """The `maps` of E_c's trunk."""


class SemanticClassifier(nn.Module):
    """E_c followed by C: a standard classifier whose features are z_c."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        self.pooled = a.style == "semantic"
        self.encoder = make_encoder(a.network, mean=a.mean, std=a.std, quarter=not self.pooled)
        self.heads = ClassifierHeads(self.encoder.channels, a.classes)

    def forward(self, images: Images) -> SemanticFeatures:
        maps = self.encoder.trunk.maps(images)
        features = self.encoder.activated(maps[-1])
        pooled = features.mean((2, 3))
        predictions, consistency = self.heads(pooled)
        return SemanticFeatures(pooled if self.pooled else features, predictions, consistency, maps)

    def start_from(self, network: nn.Module) -> None:
        """Take the weights and statistics of a classification network that computes the same, both heads those of its
        one. The standardisation stays. InputError for another network."""
        own = {name: buffer for name, buffer in self.encoder.state_dict().items() if ".normalize." in name}
        state = network.state_dict()
        of = lambda part: {name.removeprefix(part): value for name, value in state.items() if name.startswith(part)}
        try:
            if getattr(network.encoder, "slope", None) != getattr(self.encoder, "slope", None):  # no weight tells it
                raise RuntimeError
            self.encoder.load_state_dict(of("encoder.") | own)
            for head in (self.heads.predictions, self.heads.consistency):
                head.load_state_dict(of("head."))
        except (AttributeError, RuntimeError) as error:
            raise InputError(
                f"classifier: a {type(network).__name__} that is not the encoders' network; one --network for both"
            ) from error


class SemanticAutoencoder(nn.Module):
    """Encodes images into z_c and z_r, and decodes any pair of codes into an image in [0, 1].

    With `style="semantic"` (SciMix) z_c is a vector and z_r `[b, nonsemantic_channels, h/4, w/4]`; with "nonsemantic"
    (the variant "structural z_c" of table A.14) z_c is a map of that size and z_r a vector. `InputError` for a network
    that encoders are not made from, and for a -normalized one, which is SAMOSA's.
    """

    def __init__(self, architecture: Architecture, *, backend: str = "hybridgen") -> None:
        super().__init__()
        a = self.architecture = architecture
        if a.network.endswith("-normalized"):
            raise InputError(f"network: {a.network}; SciMix's encoders have no -normalized form")
        self.classifier = SemanticClassifier(a)
        if a.style == "semantic":
            trunk = make_trunk(a.network, mean=a.mean, std=a.std)
            self.nonsemantic_encoder = NonSemanticEncoder(trunk, a.nonsemantic_channels)
            structure, style = self.nonsemantic_encoder.channels, self.classifier.encoder.channels
        else:
            self.nonsemantic_encoder = make_encoder(a.network, mean=a.mean, std=a.std)
            structure, style = self.classifier.encoder.channels, self.nonsemantic_encoder.channels
        blocks = len(a.generator_channels)
        self.generator = StyleGAN2Generator(
            structure,
            style,
            channels=a.generator_channels,
            upsample=tuple(block >= blocks - 2 for block in range(blocks)),
            between=a.upsampling == "between",
            backend=backend,
        )

    def forward(
        self,
        images: Float[Tensor, "batch 3 height width"],
        seen_by_nonsemantic: Float[Tensor, "its_batch 3 its_height its_width"] | None = None,
    ) -> Codes:
        """Encode; E_r sees others, if it is given them: the same in another size, or not in several views."""
        features = self.classifier(images)
        nonsemantic = self.nonsemantic_encoder(images if seen_by_nonsemantic is None else seen_by_nonsemantic)
        return Codes(features.semantic, nonsemantic, features.predictions, features.consistency, features.maps)

    def decode(
        self, semantic: Float[Tensor, "batch *semantic"], nonsemantic: Float[Tensor, "batch *nonsemantic"]
    ) -> Images:
        """G: the image that has this semantic and this non-semantic content."""
        if self.architecture.style == "semantic":
            return self.generator(nonsemantic, semantic)
        return self.generator(semantic, nonsemantic)


class SamosaFeatures(NamedTuple):
    """What SAMOSA's classifier sees in a batch of images."""

    semantic: Float[Tensor, "batch channels rows columns"]
    """z_c."""
    predictions: Float[Tensor, "batch classes"]
    """Logits of C's primary head."""
    consistency: Float[Tensor, "batch classes"]
    """Logits of C's stability head."""
    before: Float[Tensor, "batch channels rows columns"]
    """E_c^(0..(d_c-2))(x), the output of E_c's last convolution but one, of z_c's shape (thesis 2.3.3)."""


class SamosaClassifier(nn.Module):
    """E_c (table A.1) followed by C (table A.4): `SemanticClassifier`, weight for weight, cut elsewhere.

    Of a wide residual network E_c is `encoder.trunk`; C is `encoder.norm`, the activation, the average and `heads`. Of
    a fast network E_c ends with the second block's last convolution, and C has its batch-norm and the other blocks. The
    initialisation is that of the other classifiers too, for they are compared; A.1.1 has torch's. `InputError` for a
    fast network of one convolution a block: SAMOSA takes the outputs of E_c's last two, which are of one shape.
    """

    def __init__(self, architecture: SamosaArchitecture) -> None:
        super().__init__()
        a = architecture
        encoder = make_encoder(a.network, mean=a.mean, std=a.std)
        if isinstance(encoder, FastEncoder) and encoder.trunk.convolutions < 2:
            raise InputError(f"network: {a.network}; SAMOSA's encoders need two convolutions a block or more")
        self.encoder = set_batch_norm_momentum(encoder, a.momentum)
        self.heads = ClassifierHeads(self.encoder.channels, a.classes)

    def forward(self, images: Images) -> SamosaFeatures:
        before, semantic = self.encoder.trunk.last_two(images)
        predictions, consistency = self.heads(self.encoder.pooled(semantic))
        return SamosaFeatures(semantic, predictions, consistency, before)


class SamosaAutoencoder(nn.Module):
    """Encodes images into z_c and z_r, and decodes any pair of codes into an image in [0, 1].

    z_c is a map `[b, channels, h/4, w/4]`, z_r the gates `[b, channels/2]`, 128 and 64 in the tables. For 10 classes of
    32×32 images these give 1,468,900 parameters for E_c and C, 1,990,416 for E_r (524,352 of them in its linear layer)
    and 786,755 for D; A.4.1 speaks of 1.5M, 1.5M and 2M. `backend` is there for the protocol: `InputError` for another.
    """

    def __init__(self, architecture: SamosaArchitecture, *, backend: str = "hybridgen") -> None:
        super().__init__()
        if backend != "hybridgen":
            raise InputError(f"backend: {backend!r} is a choice for SciMix's generator; SAMOSA has 'hybridgen' alone")
        a = self.architecture = architecture
        self.classifier = SamosaClassifier(a)
        trunk = make_trunk(a.network, mean=a.mean, std=a.std)
        self.nonsemantic_encoder = GatingEncoder(trunk, a.image_size)
        self.decoder = SamosaDecoder(trunk.channels, normalized_resampling=a.network.endswith("-normalized"))

    @property
    def normalize(self) -> Normalize:
        """The standardisation: `decoder` makes standardised images."""
        return cast(Normalize, self.classifier.encoder.trunk.normalize)

    def forward(self, images: Images) -> Codes:
        """Encode."""
        features = self.classifier(images)
        return Codes(features.semantic, self.nonsemantic_encoder(images), features.predictions, features.consistency)

    def decode(
        self, semantic: Float[Tensor, "batch channels rows columns"], nonsemantic: Float[Tensor, "batch gates"]
    ) -> Images:
        """D's image in [0, 1]. No gradient passes where it was clamped; training takes the unclamped `decoder`."""
        return self.normalize.inverse(self.decoder(semantic, nonsemantic)).clamp(0, 1)


Autoencoder = SemanticAutoencoder | SamosaAutoencoder | AdaINAutoencoder

METHODS = {
    "scimix": (Architecture, SemanticAutoencoder),
    "samosa": (SamosaArchitecture, SamosaAutoencoder),
    "adain": (AdaINArchitecture, AdaINAutoencoder),
}
"""The methods that make hybridizers: what shapes each one's networks, and the networks."""

LARGEST = {
    "image_size": 4096,
    "classes": 100_000,
    "depth": 1000,
    "width": 100,
    "stem": 10_000,
    "nonsemantic_channels": 10_000,
    "generator_channels": 10_000,
}
"""What a description that was read may ask for: beyond it, networks take longer to lay out than to refuse."""


def check_described(values: Mapping[str, Any], shape: type) -> None:
    """InputError, naming the field, for a value of another type than the field's, beyond `LARGEST` or not finite.

    `values` come from JSON, where anything may stand, and `shape` is the architecture that is to be made of them.
    """
    for field in fields(shape):
        if field.name not in values:
            continue
        value, kind = values[field.name], field.type
        if not _is_of(kind, value):
            raise InputError(f"{field.name}: {_cut(value)} is not {_named(kind)}")
        for number in value if isinstance(value, list | tuple) else [value]:
            if not isinstance(number, str) and number > LARGEST.get(field.name, math.inf):
                raise InputError(f"{field.name}: {_cut(number)} is above {LARGEST[field.name]}")
        if field.name == "std" and min(value) <= 0:
            raise InputError(f"std: {_cut(value)} has a deviation that is not above 0")


def _is_of(kind: Any, value: Any) -> bool:
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if not isinstance(value, list | tuple):
            return False
        if kinds[-1] is Ellipsis:
            return bool(value) and all(_is_of(kinds[0], item) for item in value)
        return len(value) == len(kinds) and all(map(_is_of, kinds, value))
    if kind is float:
        return type(value) in (int, float) and -1e9 < value < 1e9  # false for nan
    return type(value) is kind


def _named(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        return f"a list of {'' if kinds[-1] is Ellipsis else f'{len(kinds)} '}{_PLURAL[kinds[0]]}"
    return _ONE[kind]


_ONE = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}
_PLURAL = {int: "whole numbers", float: "finite numbers"}


def _cut(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def size_of(architecture: Any, network: type[nn.Module]) -> int:
    """Bytes of the networks' weights and statistics. Takes none of them: shapes are all that is laid out."""
    with torch.device("meta"), _Undrawn():
        laid_out = network(architecture)
    return sum(tensor.numel() * tensor.element_size() for tensor in laid_out.state_dict().values())


class _Undrawn(TorchFunctionMode):
    """Leaves out the draws of first values, which would import a second's worth of modules on tensors without data."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))
