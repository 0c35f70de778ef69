"""Classification networks in the shape in which every recipe trains them, and their files."""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hybridgen.hub import fetched, is_id
from hybridgen.networks.members import MemberLogits
from hybridgen.networks.registry import make_network
from hybridgen.networks.wide_resnet import Normalize, linear
from hybridgen.types import Images, InputError, Network

Logits = Float[Tensor, "batch classes"]

FILE = "network.safetensors"
"""Of the classifier that a run leaves, in its folder."""


class Classifier(nn.Module):
    """Images in [0, 1] to logits, by any network of `make_network` or another with timm's convention: gradient to the
    images and all parameters.

    The network sees the images standardised with `mean` and `std`, three values each; trained, it is what is deployed,
    and torchvision or timm load its weights.

    With two `heads` the logits are a pair, predictions and consistency (thesis, table A.7): the network's own, and
    those of a second linear layer, `consistency`, on what the network's last layer sees. It is drawn after the
    network, from torch's generator: normal after Glorot, without bias at first.

    `features`, `channels` and `stages` are for networks whose last feature map before global pooling is `[batch,
    channels, rows, columns]`; they raise `InputError` for others (the tokens of a ViT, the channels-last maps of a
    Swin), which classify all the same. Raises `InputError` for a network without timm's convention.
    """

    def __init__(self, network: nn.Module, *, mean: Sequence[float], std: Sequence[float], heads: Literal[1, 2] = 1):
        super().__init__()
        needed = ("forward_features", "forward_head", "num_features", *(("num_classes",) if heads == 2 else ()))
        missing = [word for word in needed if not hasattr(network, word)]
        if missing:
            raise InputError(
                f"network: {type(network).__name__} has no {', '.join(missing)}; timm's convention is needed"
            )
        self.normalize = Normalize(mean, std)
        self.network: Any = network
        self.consistency = _consistency(network) if heads == 2 else None
        self._compiled: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None

    @property
    def heads(self) -> int:
        return 1 if self.consistency is None else 2

    @cached_property
    def channels(self) -> int:
        """Channels of the last feature map. InputError where it is none."""
        # Transformers are made for images of one size
        size = (getattr(self.network, "default_cfg", None) or {}).get("input_size", (3, 32, 32))
        size = 3, *(getattr(getattr(self.network, "patch_embed", None), "img_size", None) or size[1:])
        with torch.no_grad():
            probe = on_meta(self.network).eval()
            for module in probe.modules():  # whoever watches the network is not told of its copy
                module._forward_hooks.clear()
                module._forward_pre_hooks.clear()
            self._check_map(probe.forward_features(torch.empty(1, *size, device="meta")))
        return self.network.num_features

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """Modules of the network whose inputs are the places where feature maps may be mixed, first to last: what goes
        into `stages[k]` is what the first k stages of the network have made. So into `stages[0]` goes what the stem
        has made, and into `stages[1:3]` what the first and the second stage have, Manifold Mixup's and PatchUp's
        places (in a DenseNet after the transition behind them).

        They are those that timm's `feature_info` lists, but for its stem, and that hold a convolution or a linear
        layer, so no bare activations; none if it lists none. InputError for a network without a last feature map, and
        for one that lists what it has not.
        """
        _ = self.channels
        return stages_of(self.network)

    def features(self, images: Images) -> Float[Tensor, "batch channels rows columns"]:
        """The last feature map before global pooling. InputError for a network that has none."""
        features = self.run(_features, images)
        self._check_map(features)
        return features

    def classify(self, features: Float[Tensor, "batch ..."]) -> Logits | tuple[Logits, Logits]:
        """Logits of a feature map of any size (or of tokens)."""
        return self.run(_logits, features)

    def forward(self, images: Images) -> Logits | tuple[Logits, Logits]:
        return self.classify(self.run(_features, images))

    def members(self, images: Images) -> MemberLogits:
        """Logits of the members of a transformer of several inputs; of another network its own, those of one."""
        return self.run(_members, images)

    def compile(self, **options: Any) -> None:
        """Have `forward`, `features`, `classify` and `run` run compiled from now on; `options` are those of
        `torch.compile`.

        Where hooks watch or change what goes through a module of the network (feature maps mixed before a stage), they
        are called as ever, and what lies between them is compiled. Copies of a compiled classifier are not compiled.
        """
        self._compiled = cache(partial(torch.compile, **options))

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_compiled": None}

    def run(self, part: Callable[..., Any], *inputs: Any) -> Any:
        """What a function of the classifier and these inputs gives, compiled where the classifier is."""
        if self._compiled is None:
            return part(self, *inputs)
        hooked = {module for module in self.network.modules() if module._forward_hooks or module._forward_pre_hooks}
        if not hooked:
            return self._compiled(part)(self, *inputs)
        with _compiled_between(hooked, self.network, self._compiled):
            return part(self, *inputs)

    def _check_map(self, features: Tensor) -> None:
        if features.ndim != 4 or features.shape[1] != self.network.num_features:
            raise InputError(
                f"network: {type(self.network).__name__} gives features of shape {tuple(features.shape)}; "
                f"a map [batch, {self.network.num_features}, rows, columns] is needed"
            )


def _consistency(network: Any) -> nn.Linear:
    # timm's heads with a hidden layer (MobileNetV3's) widen the features
    pooled = getattr(network, "head_hidden_size", None) or network.num_features
    return linear(pooled, network.num_classes)


def stages_of(network: nn.Module) -> tuple[nn.Module, ...]:
    """`Classifier.stages` of a network in timm's convention."""
    described: Any = getattr(network, "feature_info", ())
    names = [stage["module"] for stage in described if "stem" not in stage["module"]]
    try:
        listed = [network.get_submodule(name) for name in names]
    except AttributeError as error:  # which a property would turn into its own
        raise InputError(f"network: {type(network).__name__} lists stages that it has not ({error})") from error
    return tuple(stage for stage in listed if any(weight.ndim > 1 for weight in stage.parameters()))


def on_meta(network: Network) -> Network:
    """A copy without values, for which none are copied."""
    tensors = (*network.parameters(), *network.buffers())
    return copy.deepcopy(network, {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors})


def _features(classifier: Classifier, images: Tensor) -> Tensor:
    return classifier.network.forward_features(classifier.normalize(images))


def _members(classifier: Classifier, images: Tensor) -> Tensor:
    if not hasattr(classifier.network, "members"):
        return classifier(images).unsqueeze(0)
    return classifier.network.members(classifier.normalize(images))


def _logits(classifier: Classifier, features: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    logits = classifier.network.forward_head(features)
    if classifier.consistency is None:
        return logits
    return logits, classifier.consistency(classifier.network.forward_head(features, pre_logits=True))


def _output(module: nn.Module, *inputs: Any, **options: Any) -> Any:
    return type(module).forward(module, *inputs, **options)


@contextmanager
def _compiled_between(
    hooked: Set[nn.Module], network: nn.Module, compiled: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """The largest modules of the network inside which there are no hooks compute compiled; compiled code itself would
    pass by hooks that come and go.

    Only their `forward` does, which a call surrounds with the hooks, and only in this block, since copies of a module
    would else compute with its weights.
    """
    replaced = []

    def replace(module: nn.Module) -> None:
        for part in module.children():
            if any(inner in hooked for inner in part.modules() if inner is not part):
                replace(part)
            elif "forward" not in vars(part):
                part.forward = partial(compiled(_output), part)
                replaced.append(part)

    replace(network)
    try:
        # One function for all modules: as many forms of it as there are
        with torch._dynamo.config.patch(recompile_limit=256):
            yield
    finally:
        for part in replaced:
            del part.forward


# --- files ----------------------------------------------------------------------------------------------


def save_classifier(
    classifier: Classifier,
    path: str | Path,
    *,
    name: str,
    width: float = 1,
    classes: Sequence[str],
    image_size: int,
    crop_of: int | None = None,
    whole: bool = False,
    split_hash: str | None = None,
) -> None:
    """Write the deployed network, a plain state dict in safetensors' format, whole or not at all.

    The class of that name of torchvision or timm loads it. `name` and `width` are `make_network`'s; they, the names of
    the classes, mean and standard deviation of the images, their side, what of an image it is judged by (`About`) and
    the split that it was trained on are the file's metadata. The head of consistency, which predicts nothing, is left
    out.
    """
    from hybridgen.files import written_aside  # with torchvision, which takes its time

    weights = {key: value.detach().contiguous().cpu() for key, value in classifier.network.state_dict().items()}
    about = {
        "network": name,
        "width": f"{width:g}",
        "classes": json.dumps(list(classes)),
        "image_size": str(image_size),
        **({} if crop_of is None else {"crop_of": str(crop_of)}),
        **({"whole": "true"} if whole else {}),
        **{key: json.dumps(getattr(classifier.normalize, key).flatten().tolist()) for key in ("mean", "std")},
        **({} if split_hash is None else {"split_hash": split_hash}),
        **({"inputs": json.dumps(options)} if (options := getattr(classifier.network, "options", None)) else {}),
        "weights_sha256": digest_of(weights),
    }
    with written_aside(path) as aside:
        save_file(weights, aside, metadata=about)


class About(NamedTuple):
    """What a file of `save_classifier` says of itself."""

    network: str
    width: float
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    """Side of the images."""
    crop_of: int | None
    """Side of the images of which it is judged by the centre, if it is."""
    whole: bool
    """Whether it is judged by the middle of whole photographs, as `Photographs` gives it, not by central squares."""
    split_hash: str | None
    """Of the split that it was trained on, where that is known."""
    inputs: dict[str, Any] | None
    """Of a transformer of several inputs, what it is made with."""

    @property
    def seen(self) -> str:
        """What of an image it sees where it is judged."""
        side = f"{self.image_size}×{self.image_size}"
        if self.whole:
            return f"the middle {side} of the photograph, its short side brought to 256/224 of that"
        square = "the central square, brought to"
        return f"{square} {side}" if self.crop_of is None else f"the centre {side} of {square} {self.crop_of} pixels"


def about_classifier(path: str | Path) -> About:
    """What the file says of its network, without the weights. InputError as by `load_classifier`."""
    return _about(path, _opened(path)[0])


def load_classifier(path: str | Path, *, revision: str | None = None) -> tuple[Classifier, tuple[str, ...], int]:
    """What `save_classifier` wrote: a classifier in evaluation mode on the CPU, its classes and the side of its images.
    By its file, the folder of its run, or its id on the Hugging Face hub: owner/name or owner/name@revision, a branch,
    a tag or a commit.

    Executes nothing that it reads. InputError, naming the file, for one that is missing, damaged, changed or not of
    `save_classifier`.
    """
    if not Path(path).is_file():
        named = isinstance(path, str) and is_id(path.partition("@")[0]) and not path.endswith(".safetensors")
        if named or (Path(path) / FILE).is_file():
            path = fetched(path, (FILE,), what="classifier", revision=revision) / FILE
    elif revision is not None:
        raise InputError(f"revision: {revision}, of a hub id; {path} is a file")
    metadata, weights = _opened(path, whole=True)
    about = _about(path, metadata)
    if digest_of(weights) != metadata["weights_sha256"]:
        raise InputError(f"{path}: changed: the SHA-256 of its weights is not the one that its metadata record")
    with _fitting(path):
        with torch.random.fork_rng(devices=[]):  # the first values are drawn in vain
            network = make_network(
                about.network, len(about.classes), width=about.width, image_size=about.image_size, pretrained=False
            )
            if about.inputs is not None:
                network = several_inputs_of(network, about.inputs)
        network.load_state_dict(weights)
        classifier = Classifier(network, mean=about.mean, std=about.std).eval()
    return classifier, about.classes, about.image_size


def several_inputs_of(network: nn.Module, options: Mapping[str, Any]) -> nn.Module:
    """A transformer of several inputs by its options. InputError for a network that is no transformer."""
    from hybridgen.networks.multi_input_transformer import MultiInputTransformer  # with timm, which takes its time
    from hybridgen.networks.vision_transformers import with_class_attention

    return MultiInputTransformer(with_class_attention(network), **options)


def _opened(path: str | Path, *, whole: bool = False) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The file's metadata, and with `whole` its weights."""
    try:
        with open(path, "rb"):
            pass
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {key: file.get_tensor(key) for key in (file.keys() if whole else ())}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise InputError(f"{path}: damaged, or not a safetensors file ({error})") from error


def _about(path: str | Path, metadata: Mapping[str, str]) -> About:
    needed = ("network", "width", "classes", "image_size", "mean", "std", "weights_sha256")
    if missing := [key for key in needed if key not in metadata]:
        raise InputError(
            f"{path}: its metadata lack {', '.join(missing)}; the {FILE} of a run that trained a classifier is needed"
        )
    with _fitting(path):
        classes, mean, std = (tuple(json.loads(metadata[key])) for key in ("classes", "mean", "std"))
        width, image_size = float(metadata["width"]), int(metadata["image_size"])
        inputs = json.loads(metadata["inputs"]) if "inputs" in metadata else None
        crop_of, whole = metadata.get("crop_of"), metadata.get("whole") == "true"
        return About(
            metadata["network"], width, classes, mean, std, image_size, None if crop_of is None else int(crop_of),
            whole, metadata.get("split_hash"), inputs,
        )  # fmt: skip


@contextmanager
def _fitting(path: str | Path) -> Iterator[None]:
    """What goes wrong with metadata, or with weights of other names or sizes (RuntimeError), as InputError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: does not fit its own metadata ({' '.join(str(error).split())[:200]})") from error


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors on the CPU, in hexadecimal, whatever their order: of names, types, shapes and values."""
    digest = hashlib.sha256()
    for key in sorted(weights):
        digest.update(f"{key} {weights[key].dtype} {tuple(weights[key].shape)}".encode())
        digest.update(weights[key].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
