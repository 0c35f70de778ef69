"""Classification networks of the supervised half, from their names, and the one shape in which it trains them.

Our own networks follow timm's convention: `forward_features` gives the last feature map before global pooling,
`forward_head` its logits, `feature_info` lists the stages.
"""

import copy
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import timm
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.models.densenet import DenseNet
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from hybridgen.files import written_aside
from hybridgen.networks.preact_resnet import PreActResNet18
from hybridgen.networks.pyramidnet import PyramidNet
from hybridgen.networks.wide_resnet import Normalize, WideResNetClassifier
from hybridgen.types import Images, InputError


def _cifar_form(network: ResNet | DenseNet) -> None:
    """Tell `feature_info` that the stem no longer divides the map's sides by 4."""
    for stage in network.feature_info:
        stage["reduction"] = max(1, stage["reduction"] // 4)


def cifar_resnet(
    block: type[BasicBlock | Bottleneck], layers: Sequence[int], classes: int, *, width: float = 1
) -> ResNet:
    """timm's ResNet of `layers` blocks a stage, 64w to 512w filters, a 3×3 stem of stride 1 and no max-pooling.

    Source: RecursiveMix, supplement C.1. Initialisation is the CutMix code's: convolutions normal with variance
    2 / fan-out, batch-norm weights 1 (not 0 at the ends of the branches, timm's habit), the linear layer torch's.
    """
    filters = round(64 * width)
    # timm fixes its plain stem at 64 filters, but takes twice stem_width for a deep one
    network = ResNet(
        block,
        tuple(layers),
        num_classes=classes,
        channels=tuple(filters * 2**stage for stage in range(4)),
        stem_type="deep",
        stem_width=filters // 2,
        zero_init_last=False,
    )
    network.conv1 = nn.Conv2d(3, filters, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    _cifar_form(network)
    return network


def cifar_densenet(growth: int, layers: Sequence[int], classes: int, *, width: float = 1) -> DenseNet:
    """timm's DenseNet of `layers` layers a block and growth·w filters each, a 3×3 stem of stride 1, no max-pooling.

    Source: RecursiveMix, supplement C.1. Initialisation is torchvision's and timm's: convolutions normal with variance
    2 / fan-in, the linear layer's bias 0.
    """
    growth = round(growth * width)
    network = DenseNet(growth, tuple(layers), num_classes=classes)
    network.features.conv0 = nn.Conv2d(3, 2 * growth, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.features.conv0.weight)
    network.features.pool0 = nn.Identity()
    _cifar_form(network)
    return network


NETWORKS = {
    "cifar-resnet18": partial(cifar_resnet, BasicBlock, (2, 2, 2, 2)),
    "cifar-resnet34": partial(cifar_resnet, BasicBlock, (3, 4, 6, 3)),
    "cifar-resnet50": partial(cifar_resnet, Bottleneck, (3, 4, 6, 3)),
    "cifar-densenet121": partial(cifar_densenet, 32, (6, 12, 24, 16)),
    "cifar-densenet161": partial(cifar_densenet, 48, (6, 12, 36, 24)),
    "preact-resnet18": PreActResNet18,
}
"""Networks of `make_network` that come in any `width`."""


def make_network(name: str, classes: int, *, width: float = 1) -> nn.Module:
    """A network that takes standardised images to logits `[b, classes]`, with fresh weights.

    `name` is one of `NETWORKS`; `pyramidnetDEPTH-ALPHA`, such as pyramidnet200-240; `wrn-DEPTH-WIDTH`, such as
    wrn-28-10, with the ReLUs of Zagoruyko and Komodakis and FixMatch's initialisation; or a model of timm (resnet50,
    pvt_v2_b1), as `timm.create_model` makes and initialises it, never with pretrained weights. `width` multiplies the
    filters of `NETWORKS`. Raises `InputError` for a name that nobody knows, fewer than one class, a width that is not
    a positive multiple of 1/8 (with fewer than 8 filters, oneDNN's strided 1×1
    convolutions write past their memory: uxlfoundation/oneDNN#6035), and a width beside a name that sets its own.
    """
    if classes < 1:
        raise InputError(f"classes: {classes} is below 1")
    if not width > 0 or 8 * width % 1:
        raise InputError(f"width: {width} is not a positive multiple of 1/8")
    if name in NETWORKS:
        return NETWORKS[name](classes, width=width)

    ours = re.fullmatch(r"(wrn-|pyramidnet)(\d+)-(\d+)", name)
    # timm's tags (after a dot) name pretrained weights
    if not ours and ("." in name or not timm.is_model(name)):
        nearest = ", ".join(get_close_matches(name, [*NETWORKS, *timm.list_models()])) or "none"
        raise InputError(
            f"network: {name!r} is unknown; there are {', '.join(NETWORKS)}, pyramidnetDEPTH-ALPHA, wrn-DEPTH-WIDTH "
            f"and timm's models; nearest: {nearest}"
        )
    if width != 1:
        raise InputError(f"width: {width} has no meaning for {name}; only {', '.join(NETWORKS)} take a width")
    if not ours:
        return timm.create_model(name, pretrained=False, num_classes=classes)
    family, depth, size = ours[1], int(ours[2]), int(ours[3])
    if family == "pyramidnet":
        return PyramidNet(depth, size, classes)
    return WideResNetClassifier(depth, size, classes, mean=None, std=None, slope=0.0)


class Classifier(nn.Module):
    """Images in [0, 1] to logits, by way of the network's last feature map: gradient to the images and all parameters.

    `network` is a network of `make_network` or any other with timm's convention. It sees the images standardised with
    `mean` and `std`, three values each; trained, it is what is deployed, and torchvision or timm load its weights.
    `channels` is the number of the last map's channels. `stages` are the modules of the network whose inputs are the
    places where feature maps may be mixed (Manifold Mixup, PatchUp), first to last: those that timm's `feature_info`
    lists and that hold a convolution or a linear layer, so no bare activations; none if it lists none. Raises
    `InputError` for a network without timm's convention, and for one whose last feature map is not
    `[batch, channels, rows, columns]` (the tokens of a ViT, the channels-last maps of a Swin).
    """

    def __init__(self, network: nn.Module, *, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        name = type(network).__name__
        missing = [word for word in ("forward_features", "forward_head", "num_features") if not hasattr(network, word)]
        if missing:
            raise InputError(f"network: {name} has no {', '.join(missing)}; timm's convention is needed")
        size = (getattr(network, "default_cfg", None) or {}).get("input_size", (3, 32, 32))
        with torch.no_grad():
            features = copy.deepcopy(network).to("meta").eval().forward_features(torch.empty(1, *size, device="meta"))
        shape = tuple(features.shape)
        if len(shape) != 4 or shape[1] != network.num_features:
            raise InputError(
                f"network: {name} gives features of shape {shape}; "
                f"a map [batch, {network.num_features}, rows, columns] is needed"
            )

        self.normalize = Normalize(mean, std)
        self.network = network
        self.channels: int = network.num_features

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        listed = [self.network.get_submodule(stage["module"]) for stage in getattr(self.network, "feature_info", ())]
        return tuple(stage for stage in listed if any(weight.ndim > 1 for weight in stage.parameters()))

    def features(self, images: Images) -> Float[Tensor, "batch channels rows columns"]:
        """The last feature map before global pooling."""
        return self.network.forward_features(self.normalize(images))

    def classify(self, features: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch classes"]:
        """Logits of a feature map of any size."""
        return self.network.forward_head(features)

    def forward(self, images: Images) -> Float[Tensor, "batch classes"]:
        return self.classify(self.features(images))


# --- files ----------------------------------------------------------------------------------------------


def save_classifier(
    classifier: Classifier,
    path: str | Path,
    *,
    name: str,
    width: float = 1,
    classes: Sequence[str],
    image_size: int,
) -> None:
    """Write the deployed network, a plain state dict in safetensors' format, whole or not at all.

    The class of that name of torchvision or timm loads it. `name` and `width` are `make_network`'s; they, the names of
    the classes, mean and standard deviation of the images and their side are the file's metadata.
    """
    weights = {key: value.detach().contiguous().cpu() for key, value in classifier.network.state_dict().items()}
    about = {
        "network": name,
        "width": f"{width:g}",
        "classes": json.dumps(list(classes)),
        "image_size": str(image_size),
        **{key: json.dumps(getattr(classifier.normalize, key).flatten().tolist()) for key in ("mean", "std")},
        "weights_sha256": _digest(weights),
    }
    with written_aside(path) as aside:
        save_file(weights, aside, metadata=about)


def load_classifier(path: str | Path) -> tuple[Classifier, tuple[str, ...], int]:
    """What `save_classifier` wrote: a classifier in evaluation mode on the CPU, its classes and the side of its images.

    Executes nothing that it reads. InputError, naming the file, for one that is missing, damaged, changed or not of
    `save_classifier`.
    """
    try:
        with open(path, "rb"):
            pass
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise InputError(f"{path}: damaged, or not a safetensors file ({error})") from error
    missing = [
        key
        for key in ("network", "width", "classes", "image_size", "mean", "std", "weights_sha256")
        if key not in about
    ]
    if missing:
        raise InputError(
            f"{path}: its metadata lack {', '.join(missing)}; the network.safetensors of a run of supervised training "
            "is needed"
        )
    if _digest(weights) != about["weights_sha256"]:
        raise InputError(f"{path}: changed: the SHA-256 of its weights is not the one that its metadata record")
    try:
        classes, mean, std = (tuple(json.loads(about[key])) for key in ("classes", "mean", "std"))
        with torch.random.fork_rng(devices=[]):  # the first values are drawn in vain
            network = make_network(about["network"], len(classes), width=float(about["width"]))
        network.load_state_dict(weights)
        return Classifier(network, mean=mean, std=std).eval(), classes, int(about["image_size"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # RuntimeError: weights of other names or sizes
        raise InputError(f"{path}: does not fit its own metadata ({' '.join(str(error).split())[:200]})") from error


def _digest(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(weights):
        digest.update(f"{key} {weights[key].dtype} {tuple(weights[key].shape)}".encode())
        digest.update(weights[key].reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
