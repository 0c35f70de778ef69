"""The classification networks of every recipe, by name.

All follow timm's convention: `forward_features` gives the last feature map before global pooling (or the last tokens),
`forward_head` its logits or, with `pre_logits`, what the last linear layer sees; `num_features`, `num_classes`;
`feature_info` lists the stages.
"""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hybridgen.networks.cifar import cifar_densenet, cifar_resnet
from hybridgen.networks.fast import CONVOLUTIONS, WIDTHS, FastClassifier, FastEncoder, FastTrunk
from hybridgen.networks.preact_resnet import PreActResNet18
from hybridgen.networks.pyramidnet import PyramidNet
from hybridgen.networks.resnet import resnet
from hybridgen.networks.wide_resnet import SemanticEncoder, WideResNet, WideResNetClassifier
from hybridgen.types import InputError, Network

NETWORKS = {
    "cifar-resnet18": partial(cifar_resnet, "basic", (2, 2, 2, 2)),
    "cifar-resnet34": partial(cifar_resnet, "basic", (3, 4, 6, 3)),
    "cifar-resnet50": partial(cifar_resnet, "bottleneck", (3, 4, 6, 3)),
    "cifar-densenet121": partial(cifar_densenet, 32, (6, 12, 24, 16)),
    "cifar-densenet161": partial(cifar_densenet, 48, (6, 12, 36, 24)),
    "preact-resnet18": PreActResNet18,
    "resnet18": partial(resnet, "basic", (2, 2, 2, 2)),
}
"""Networks of `make_network` that come in any `width`."""

SIZED = re.compile(r"(?P<family>wrn-|leaky-wrn-|pyramidnet)(?P<depth>[0-9]{1,99})-(?P<size>[0-9]{1,99})(?P<rest>.*)")

FAST = re.compile(r"fast(-(?P<widths>[0-9]{1,99}(-[0-9]{1,99}){0,99})(x(?P<convolutions>[0-9]{1,99}))?)?")

TRANSFORMER = re.compile(
    r"(?P<family>convit|cait|vit)-(?P<sizes>[0-9]{1,99}-[0-9]{1,99}-[0-9]{1,99}|(xxs|xs|s)-[0-9]{1,99})"
    r"(-patch(?P<patch>[0-9]{1,99}))?"
)

SIDE = 32
"""Pixels of the images' side for which transformers are made where none is given."""

LIMITS = {
    "depth": 1000, "width": 100, "alpha": 1000, "filters": 10_000, "blocks": 12, "convolutions": 100, "dimension": 4096,
    "heads": 256, "patch": 1024,
}  # fmt: skip
"""The largest that are built: far beyond every published network, and a slip of the keyboard does not fill memory."""

SMALL = 16
"""Pixels of the side up to which images are small: what is chosen by their size is chosen as for digits-m."""


def default_network(image_size: int, small: str = "leaky-wrn-10-1") -> str:
    """The name of the network where none is given: `small` for small images, `fast` for larger ones."""
    return small if image_size <= SMALL else "fast"


def make_network(
    name: str, classes: int, *, width: float = 1, image_size: int | None = None, pretrained: bool = True
) -> nn.Module:
    """A network that takes standardised images to logits `[b, classes]`; a vision transformer, of this size only.

    `name` is one of

    - `NETWORKS`, whose filters `width` multiplies;
    - `wrn-DEPTH-WIDTH`, such as wrn-28-10: ReLUs as Zagoruyko and Komodakis have them, FixMatch's initialisation;
    - `leaky-wrn-DEPTH-WIDTH`, such as leaky-wrn-28-2: LeakyReLUs of slope 0.1, FixMatch's and the thesis's, and with
      `-normalized` after it a batch-norm behind every 1×1 convolution (table A.5, for MixMatch);
    - `fast`, for small images, and `fast-WIDTH-WIDTH-...xCONVOLUTIONS`: a block for each width, of two convolutions
      unless given; fast is fast-32-64-128x2. Its stem has to `whiten` images before it sees any;
    - `pyramidnetDEPTH-ALPHA`, such as pyramidnet200-240;
    - `convit-DIM-HEADS-BLOCKS`, `cait-DIM-HEADS-BLOCKS` and `vit-DIM-HEADS-BLOCKS`, such as convit-384-12-5, the
      thesis's: transformers whose feature blocks are ConViT's (GPSA), CaiT's or plain ones, with two class-attention
      blocks behind them; cait-xxs-24, cait-xs-24 and cait-s-24 have CaiT's sizes. `-patchN` after it is the patches'
      side in pixels, `default_patch` of the `image_size` unless given, which is 32 unless given;
    - `pvt_v2_b1_li`: PVTv2-B1 with linear (pooled) attention, RecursiveMix's;
    - a model of timm (resnet50, pvt_v2_b1), as `timm.create_model` makes and initialises it; its plain vision
      transformers, ConViT and CaiT for images of `image_size`, if given;
    - a model of timm with a tag after a dot (resnet18.a1_in1k): the weights of that tag under a new head, fetched or
      read from where an earlier call left them. Without `pretrained` they are left out.

    All others have fresh weights. Raises `InputError` for a name that nobody knows, weights that cannot be had, fewer
    than one class, a width that is not a positive multiple of 1/8 (with fewer than 8 filters, oneDNN's strided 1×1
    convolutions write past their memory: uxlfoundation/oneDNN#6035), a width beside a name that sets its own, and what
    is beyond `LIMITS`.
    """
    if classes < 1:
        raise InputError(f"classes: {classes} is below 1")
    if not width > 0 or 8 * width % 1:
        raise InputError(f"width: {width} is not a positive multiple of 1/8")
    _check_limit("width", width, name)
    if name in NETWORKS:
        return NETWORKS[name](classes, width=width)

    make = _sized(name) or _transformer(name, image_size) or _of_timm(name, pretrained, image_size)
    if make is None:
        raise InputError(_unknown(name))
    if width != 1:
        raise InputError(f"width: {width} has no meaning for {name}; only {', '.join(NETWORKS)} take a width")
    return make(classes)


def _sized(name: str) -> partial[nn.Module] | None:
    """Of a name that holds its sizes: what makes it from a number of classes."""
    if fast := _fast(name):
        return partial(FastClassifier, widths=fast.widths, convolutions=fast.convolutions)
    parts = SIZED.fullmatch(name)
    if not parts or parts["rest"] not in ("", "-normalized"):
        return None
    depth, size, normalized = int(parts["depth"]), int(parts["size"]), bool(parts["rest"])
    if normalized and parts["family"] != "leaky-wrn-":
        return None
    _check_limit("depth", depth, name)
    _check_limit("alpha" if parts["family"] == "pyramidnet" else "width", size, name)
    if parts["family"] == "pyramidnet":
        return partial(PyramidNet, depth, size)
    bare = partial(WideResNetClassifier, depth, size, mean=None, std=None)
    return partial(bare, slope=0.0) if parts["family"] == "wrn-" else partial(bare, normalized_resampling=normalized)


def _transformer(name: str, image_size: int | None) -> partial[nn.Module] | None:
    """Of convit-, cait- and vit-DIM-HEADS-BLOCKS(-patchN): what makes it from a number of classes."""
    parts = TRANSFORMER.fullmatch(name)
    if not parts:
        return None
    from hybridgen.networks.vision_transformers import CAITS, FAMILIES, default_patch  # with timm, which takes its time

    first, *others = parts["sizes"].split("-")
    if first in CAITS:
        if parts["family"] != "cait":
            return None
        dim, heads, depth = *CAITS[first], int(others[0])
    else:
        dim, heads, depth = int(first), *map(int, others)
    side = image_size or SIDE
    patch = int(parts["patch"]) if parts["patch"] else default_patch(side)
    for field, value in (("dimension", dim), ("heads", heads), ("depth", depth), ("patch", patch)):
        _check_limit(field, value, name)
        if value < 1:
            raise InputError(f"{field}: {value} of {name} is below 1")
    return partial(FAMILIES[parts["family"]], image_size=side, patch=patch, dim=dim, heads=heads, depth=depth)


class _Fast(NamedTuple):
    """The sizes of a fast network."""

    widths: tuple[int, ...]
    convolutions: int


def _fast(name: str) -> _Fast | None:
    """Of fast(-WIDTH-WIDTH-...xCONVOLUTIONS). None for another name, InputError beyond `LIMITS`."""
    parts = FAST.fullmatch(name)
    if not parts:
        return None
    widths = tuple(map(int, parts["widths"].split("-"))) if parts["widths"] else WIDTHS
    convolutions = int(parts["convolutions"] or CONVOLUTIONS)
    for field, value in (("blocks", len(widths)), ("filters", max(widths)), ("convolutions", convolutions)):
        _check_limit(field, value, name)
    return _Fast(widths, convolutions)


class _WideResNet(NamedTuple):
    """The sizes of a wide residual network."""

    depth: int
    width: int
    normalized_resampling: bool


def leaky_wrn(name: str) -> _WideResNet | None:
    """The sizes of leaky-wrn-DEPTH-WIDTH(-normalized). None for another name, InputError beyond `LIMITS`."""
    parts = SIZED.fullmatch(name)
    if not parts or parts["family"] != "leaky-wrn-" or parts["rest"] not in ("", "-normalized"):
        return None
    depth, width = int(parts["depth"]), int(parts["size"])
    _check_limit("depth", depth, name)
    _check_limit("width", width, name)
    return _WideResNet(depth, width, bool(parts["rest"]))


def _of_encoders(name: str) -> _Fast | _WideResNet:
    """The sizes of a network that encoders are made from; InputError for another."""
    sizes = _fast(name) or leaky_wrn(name)
    if sizes is None:
        raise InputError(
            f"network: {name!r}; encoders are made from fast, fast-WIDTH-WIDTH-..., leaky-wrn-DEPTH-WIDTH, such as "
            "leaky-wrn-28-2, and its -normalized form"
        )
    if isinstance(sizes, _Fast) and len(sizes.widths) < 2:
        raise InputError(f"network: {name!r}; encoders need two blocks, for a map of a quarter of the image's sides")
    return sizes


def make_encoder(
    name: str, *, mean: Sequence[float], std: Sequence[float], quarter: bool = False
) -> SemanticEncoder | FastEncoder:
    """An encoder of images in [0, 1], to a vector `[b, channels]`, by the name of the network that it is the body of:
    leaky-wrn-DEPTH-WIDTH(-normalized), fast or fast-WIDTH-WIDTH-... of two blocks or more.

    Where its `features` are asked for as a map of a `quarter` of the image's sides, a fast one ends with its second
    block. InputError for another network.
    """
    sizes = _of_encoders(name)
    if isinstance(sizes, _Fast):
        widths = sizes.widths[:2] if quarter else sizes.widths
        return FastEncoder(widths, sizes.convolutions, mean=mean, std=std)
    return SemanticEncoder(**sizes._asdict(), mean=mean, std=std)


def make_trunk(name: str, *, mean: Sequence[float], std: Sequence[float]) -> WideResNet | FastTrunk:
    """What makes of images in [0, 1] a map `[b, channels, h/4, w/4]`, by the same names: a wide residual network before
    its last batch-norm, or the first two blocks of a fast one."""
    sizes = _of_encoders(name)
    if isinstance(sizes, _Fast):
        return FastTrunk(sizes.widths[:2], sizes.convolutions, mean=mean, std=std)
    return WideResNet(**sizes._asdict(), mean=mean, std=std)


def _check_limit(field: str, value: float, name: str) -> None:
    if value > LIMITS[field]:
        raise InputError(f"{field}: {value} of {name} is above {LIMITS[field]}")


SIZED_BY_IMAGE = ("vision_transformer", "deit", "convit", "cait")
"""Modules of timm whose networks are made for images of one size."""


def _of_timm(name: str, pretrained: bool, image_size: int | None) -> partial[nn.Module] | None:
    """Of a name that timm knows: what makes it from a number of classes."""
    import timm

    if name == "pvt_v2_b1_li":
        return partial(_create, "pvt_v2_b1", linear=True)
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture) or (tag and name not in timm.list_pretrained(f"{architecture}.*")):
        return None
    sized = (
        {}
        if image_size is None or not timm.models.is_model_in_modules(architecture, SIZED_BY_IMAGE)
        else {"img_size": image_size}
    )
    return partial(_create, name, pretrained=pretrained and bool(tag), **sized)


def _create(name: str, classes: int, *, pretrained: bool = False, **options: Any) -> nn.Module:
    import timm

    if not pretrained:
        return timm.create_model(name, pretrained=False, num_classes=classes, **options)
    try:
        return timm.create_model(name, pretrained=True, num_classes=classes, **options)
    except Exception as error:  # of every library that may fetch them
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"network: the pretrained weights of {name} could not be had ({why}); without the tag, "
            f"{name.partition('.')[0]} has fresh ones"
        ) from error


def _unknown(name: str) -> str:
    import timm

    known = [*NETWORKS, "fast", "pvt_v2_b1_li", *(timm.list_pretrained() if "." in name else timm.list_models())]
    nearest = ", ".join(get_close_matches(name, known)) or "none"
    return (
        f"network: {name!r} is unknown; there are {', '.join(NETWORKS)}, fast, fast-WIDTH-WIDTH-...xCONVOLUTIONS, "
        "wrn-DEPTH-WIDTH, leaky-wrn-DEPTH-WIDTH (and -normalized), pyramidnetDEPTH-ALPHA, convit-, cait- and "
        "vit-DIM-HEADS-BLOCKS(-patchN), cait-xxs-24, cait-xs-24, pvt_v2_b1_li and timm's models; "
        f"nearest: {nearest}"
    )


def set_batch_norm_momentum(network: Network, momentum: float) -> Network:
    """The same network, its batch-norms' momentum set, in torch's sense: the part of the new statistics in the running
    ones (FixMatch: 0.001). A network without batch-norm stays as it is. InputError outside (0, 1]."""
    if not 0 < momentum <= 1:
        raise InputError(f"momentum: {momentum} is outside (0, 1]")
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = momentum
    return network
