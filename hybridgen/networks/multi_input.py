"""Networks of several inputs and several answers: MIMO's (Havasi et al. 2021), MixMo's (Ramé et al. 2021) and
MixShare's (thesis 3.4), told apart at their first layer or, by source attribution, behind their last map."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache, partial, reduce
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from hybridgen.networks.classifiers import Classifier, on_meta
from hybridgen.networks.fast import Whitening
from hybridgen.networks.members import Ensemble, MemberLogits, ensembled
from hybridgen.networks.wide_resnet import Normalize
from hybridgen.types import Images, InputError

Encodings = Float[Tensor, "batch channels rows columns"]
"""Of one input: what its first convolution makes of the images."""

Shown = Float[Tensor, "members batch 1 height width"]
"""Masks in [0, 1]: what each subnetwork's last layer sees of every place."""

Attribution = Literal["none", "embedding", "encoding"]
"""What tells the last layers which places of the last map are whose: nothing, or a vector or a 1×1 convolution of each
input's own."""

Kernels = Literal["equal", "collinear", "apart"]
"""How first convolutions begin: all with the same kernels, with kernels of the same directions, or as they are drawn
(thesis 3.4.2.2 and A.6.2)."""


def unmix(
    features: Float[Tensor, "batch channels rows columns"], shown: Shown, part: float
) -> Float[Tensor, "members batch channels rows columns"]:
    """What each of the last layers sees of a map (algorithm A.7): its first channels, this part of them, rounded, under
    the layer's mask, the others as they are.

    Masks of another size are brought to that of the map, by the mean over the area of each place. Gradient reaches the
    features. InputError for a part outside [0, 1].
    """
    if not 0 <= part <= 1:
        raise InputError(f"part: {part} is outside [0, 1]")
    masks = _at_size_of(features, shown)
    masked, others = features.tensor_split([round(part * features.shape[1])], dim=1)
    unmixed = masked * masks
    return torch.cat([unmixed, others.expand(len(shown), *others.shape)], dim=2) if others.shape[1] else unmixed


def _at_size_of(
    features: Float[Tensor, "batch channels rows columns"], masks: Shown
) -> Float[Tensor, "members batch 1 rows columns"]:
    """Masks brought to the size and precision of a map, by the mean over the area of each place."""
    rows, columns = features.shape[2:]
    pooled = F.adaptive_avg_pool2d(masks.flatten(0, 1), (rows, columns)).unflatten(0, masks.shape[:2])
    return pooled.to(features.dtype)


class SourceAttribution(nn.Module):
    """MixViT's source attribution (thesis 4.3.3.1), brought to maps (5.2): to what the core makes of a place it adds
    what s_i, of the input i that the place belongs to, makes of it, f + Σ M_i ⊙ s_i(f).

    s_i is a 1×1 convolution with a bias (encoding, equation 4.5) or the bias alone (embedding, 4.6), both drawn as
    torch draws a linear layer's. Masks M_i `[inputs, batch, 1, height, width]` in [0, 1] are brought to the size of the
    map by the mean over the area of each place. Gradient reaches maps and parameters.
    """

    def __init__(self, inputs: int, channels: int, *, encoding: bool) -> None:
        super().__init__()
        drawn = [nn.Linear(channels, channels) for _ in range(inputs)]
        stacked = lambda name: nn.Parameter(torch.stack([getattr(layer, name).detach() for layer in drawn]))
        self.bias = stacked("bias")
        self.weight = stacked("weight") if encoding else None

    def each(
        self, features: Float[Tensor, "batch channels rows columns"]
    ) -> Float[Tensor, "inputs batch channels rows columns"]:
        """s_0(f), s_1(f), … of the whole map."""
        if self.weight is None:
            return self.bias.to(features.dtype)[:, None, :, None, None].expand(
                -1, len(features), -1, *features.shape[2:]
            )
        weight, bias = self.weight.flatten(0, 1)[:, :, None, None], self.bias.flatten()
        return F.conv2d(features, weight, bias).unflatten(1, self.bias.shape).transpose(0, 1)

    def forward(
        self, features: Float[Tensor, "batch channels rows columns"], masks: Shown
    ) -> Float[Tensor, "batch channels rows columns"]:
        """The map of mixed images, attributed by the masks of their inputs."""
        return features + (_at_size_of(features, masks) * self.each(features)).sum(dim=0)

    def folded(self, heads: nn.ModuleList) -> tuple[Tensor, Tensor]:
        """Weight and bias of the linear layer that gives the mean of each head's logits on its own whole map."""
        weight, bias = (torch.stack([head.get_parameter(name) for head in heads]) for name in ("weight", "bias"))
        bias = bias + (weight @ self.bias.unsqueeze(2)).squeeze(2)
        return (weight if self.weight is None else weight + weight @ self.weight).mean(dim=0), bias.mean(dim=0)


class MultiInputClassifier(nn.Module):
    """M first convolutions, one core, M last layers (thesis 3.3.1): images in [0, 1] to the logits of an ensemble.

    `networks` are M of one kind, freshly made, of `make_network` or any with timm's convention. The first one is the
    core; each gives its first convolution, c_i, and its last layer, d_i, as they were drawn. So with one network, or
    for whoever knows its seed, the core is the plain network's. Encodings are mixed right behind the convolutions,
    before the first normalisation. The first convolution of a `fast` network, behind the whitening that all inputs
    share, hands on what it gets at first; of several inputs all are drawn anew, as torch draws them, so that they
    differ. With `one_encoder` all inputs go through c_0, with `one_head` there is d_0 alone (table 3.4).

    With an `attribution` the last layers are told which places of the last map are whose (`SourceAttribution`): of
    mixed images by their masks; of one image each last layer sees all as its own input's, behind a core that runs once.

    For inference the encodings of the same image are summed, in one forward. Gradient reaches the images and all
    parameters. InputError for no network, networks of several kinds, without timm's convention, whose first layer is
    no convolution of the images without bias, or whose last layer is not linear; and for an attribution before one
    head for all, or where the last map is not averaged.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        ensemble: Ensemble,
        one_encoder: bool = False,
        one_head: bool = False,
        attribution: Attribution = "none",
    ) -> None:
        super().__init__()
        if not networks:
            raise InputError("inputs: 0 networks; one for each input is needed")
        if len({type(network) for network in networks}) > 1:
            raise InputError("inputs: networks of several kinds; as many of one kind are needed")
        core = networks[0]
        encoders = [_first_convolution(core if one_encoder else each) for each in networks]
        heads = [_last_layer(network) for network in networks[: 1 if one_head else None]]
        self.places = encoders[0][0], heads[0][0]
        """Names of the core's first and last layer, which are not in it."""
        self.normalize = Normalize(mean, std)
        self.before = nn.Identity()
        self.encoders = nn.ModuleList(encoder for _, encoder in encoders)
        """Of every input, all the same one if there is but one."""
        self.heads = nn.ModuleList(head for _, head in heads)
        self.whitened = next((name for name, part in core.named_modules() if isinstance(part, Whitening)), None)
        """Name of the core's whitening, before its first convolution, which is not in it either."""
        if self.whitened is not None:
            self.before = core.get_submodule(self.whitened)
            core.set_submodule(self.whitened, nn.Identity())
            for _, encoder in encoders if len(networks) > 1 else ():
                encoder.reset_parameters()
        for place in self.places:
            core.set_submodule(place, nn.Identity())
        self.core: Any = core
        self.ensemble = ensemble
        self.attribution: SourceAttribution | None = None
        if attribution != "none":
            if one_head:
                raise InputError(f"attribution: {attribution}, but one last layer answers for all; each needs its own")
            channels = heads[0][1].in_features
            _check_average(core, channels)
            self.attribution = SourceAttribution(len(networks), channels, encoding=attribution == "encoding")
        self._compiled: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None

    @property
    def inputs(self) -> int:
        """M."""
        return len(self.encoders)

    @torch.no_grad()
    def align(self, kernels: Kernels) -> None:
        """Give every input's first convolution the first one's kernels, or, for `collinear`, their directions: each
        kernel keeps the length that was drawn for it."""
        first, *others = (encoder.get_parameter("weight") for encoder in self.encoders)
        lengths = lambda weight: weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        for weight in others if kernels != "apart" else ():
            scale = lengths(weight) / lengths(first).clamp(min=1e-12) if kernels == "collinear" else 1
            weight.copy_(scale * first)

    def encoded_size(self, images: Images) -> tuple[int, int]:
        """Height and width of their encodings."""
        from timm.layers import Conv2dSame  # with timm, which takes its time

        first: Any = self.encoders[0]
        if isinstance(first, Conv2dSame):  # as TensorFlow's, which pad by the size of the images
            height, width = (-(-side // stride) for side, stride in zip(images.shape[2:], first.stride, strict=True))
            return height, width
        sides = zip(images.shape[2:], first.kernel_size, first.stride, first.padding, first.dilation, strict=True)
        height, width = (
            (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for side, kernel, stride, padding, dilation in sides
        )
        return height, width

    def map_size(self, images: Images) -> tuple[int, int]:
        """Height and width of the last map of these images, which are not looked at. InputError where it is none."""
        channels = len(self.encoders[0].get_parameter("weight"))
        with torch.no_grad():
            encodings = torch.empty(1, channels, *self.encoded_size(images), device="meta")
            features = on_meta(self.core).eval().forward_features(encodings)
        if features.ndim != 4:
            raise InputError(
                f"network: {type(self.core).__name__} gives features of shape {tuple(features.shape)}; a map "
                "[batch, channels, rows, columns] is needed"
            )
        height, width = features.shape[2:]
        return height, width

    def encode(self, inputs: Sequence[Images]) -> tuple[Encodings, ...]:
        """c_0(x_0), c_1(x_1), …: a batch for each input. InputError for another number of them."""
        if len(inputs) != self.inputs:
            raise InputError(f"inputs: {len(inputs)} batches for {self.inputs} encoders; one for each is needed")
        return tuple(
            encoder(self.before(self.normalize(images))) for encoder, images in zip(self.encoders, inputs, strict=True)
        )

    def decode(
        self, mixed: Encodings, shown: Shown | None = None, *, part: float = 1.0, masks: Shown | None = None
    ) -> MemberLogits:
        """d_0(C(l)), d_1(C(l)), … of mixed encodings l: of the whole last map, or of what is `shown` to each of this
        part of its channels (`unmix`). With an attribution, of the map that the inputs' `masks` attribute, or without
        them of one that is all each one's own."""
        decoded = _decoded if self._compiled is None else self._compiled(_decoded)
        return decoded(self, mixed, shown, part, masks)

    def members(self, images: Images) -> MemberLogits:
        """Of the same images at every input: the sum of the encodings is one convolution, by the kernels' sum."""
        kernels: list[Tensor] = [encoder.get_parameter("weight") for encoder in self.encoders]
        kernel = reduce(torch.add, kernels)
        return self.decode(functional_call(self.encoders[0], {"weight": kernel}, self.before(self.normalize(images))))

    def forward(self, images: Images) -> Float[Tensor, "batch classes"]:
        return ensembled(self.members(images), self.ensemble)

    @torch.no_grad()
    def plain(self) -> Classifier:
        """The ordinary network that computes the same ensemble of logits: its first kernel is the sum of all, its last
        layer their mean, with the attribution in it. In evaluation mode, sharing nothing. InputError for an ensemble of
        probabilities, which none computes."""
        if self.ensemble != "logits":
            raise InputError("ensemble: of probabilities; only one of logits is a plain network too")
        core = deepcopy(self.core)
        first, last = deepcopy(self.encoders[0]), deepcopy(self.heads[0])
        kernels = torch.stack([encoder.get_parameter("weight") for encoder in self.encoders])
        first.get_parameter("weight").copy_(kernels.sum(dim=0))
        for name, parameter in last.named_parameters():
            parameter.copy_(torch.stack([head.get_parameter(name) for head in self.heads]).mean(dim=0))
        if self.attribution is not None:
            for name, folded in zip(("weight", "bias"), self.attribution.folded(self.heads), strict=True):
                last.get_parameter(name).copy_(folded)
        for place, layer in zip(self.places, (first, last), strict=True):
            core.set_submodule(place, layer)
        if self.whitened is not None:
            core.set_submodule(self.whitened, deepcopy(self.before))
        mean, std = (values.flatten().tolist() for values in (self.normalize.mean, self.normalize.std))
        return Classifier(core, mean=mean, std=std).to(self.normalize.mean.device).eval()

    def compile(self, **options: Any) -> None:
        """Have what follows the mixing run compiled from now on; `options` are those of `torch.compile`. Copies of a
        compiled classifier are not compiled."""
        self._compiled = cache(partial(torch.compile, **options))

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_compiled": None}


def _decoded(
    classifier: MultiInputClassifier, mixed: Tensor, shown: Tensor | None, part: float, masks: Tensor | None
) -> Tensor:
    core, heads, attribution = classifier.core, classifier.heads, classifier.attribution
    features = core.forward_features(mixed)
    if attribution is not None and masks is not None:
        features = attribution(features, masks)
    if shown is not None:
        own = unmix(features, shown, part)
    elif attribution is not None and masks is None:
        own = features + attribution.each(features)
    else:
        pooled = core.forward_head(features)
        return torch.stack([head(pooled) for head in heads])
    pooled = core.forward_head(own.flatten(0, 1)).unflatten(0, own.shape[:2])
    return torch.stack([head(each) for head, each in zip(heads, pooled, strict=True)])


@torch.no_grad()
def _check_average(core: Any, channels: int) -> None:
    features = torch.arange(channels * 6.0).view(1, channels, 2, 3).sin()
    pooled = core.forward_head(features)
    if pooled.shape != (1, channels) or not torch.allclose(pooled, features.mean((2, 3)), atol=1e-6):
        raise InputError(
            f"network: {type(core).__name__} does not average its last map; attributing its places needs that"
        )


def _first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d]:
    """Its name, and it: the first layer that has parameters, a convolution without bias."""
    missing = [word for word in ("forward_features", "forward_head") if not hasattr(network, word)]
    if missing:
        raise InputError(f"network: {type(network).__name__} has no {', '.join(missing)}; timm's convention is needed")
    parameter = next((name for name, _ in network.named_parameters()), "")
    name = parameter.rpartition(".")[0]
    layer = network.get_submodule(name)
    if not isinstance(layer, nn.Conv2d) or layer.bias is not None:
        what = "a convolution with a bias" if isinstance(layer, nn.Conv2d) else f"no convolution, but {parameter!r}"
        raise InputError(
            f"network: the first layer of {type(network).__name__} is {what}; several inputs need a convolution "
            "without bias there, as in a ResNet, wide ResNet, DenseNet, PyramidNet or fast network"
        )
    return name, layer


def _last_layer(network: nn.Module) -> tuple[str, nn.Linear]:
    """Its name, and it: the last layer that has parameters, a linear one that gives the logits."""
    *_, (parameter, _) = network.named_parameters()
    name = parameter.rpartition(".")[0]
    layer = network.get_submodule(name)
    if not isinstance(layer, nn.Linear) or layer.out_features != getattr(network, "num_classes", None):
        raise InputError(f"network: the last layer of {type(network).__name__}, {name!r}, is no linear one of logits")
    return name, layer
