"""The frozen hybridizer: the only door between stage 1 and stage 2."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float, Shaped
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

import hybridgen
from hybridgen.data.datasets import Dataset
from hybridgen.data.splits import Split
from hybridgen.files import written_aside
from hybridgen.networks.autoencoder import METHODS, Autoencoder, check_described, size_of
from hybridgen.training.context import Context
from hybridgen.training.record import identity
from hybridgen.types import Images, InputError, Labels

FORMAT = "hybridgen-hybridizer"
VERSION = 2
CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True)
class Origin:
    """Where a hybridizer comes from: what a classifier has to know before it trusts it."""

    dataset: str
    fingerprint: str
    """Of the data set it was trained on."""
    split_hash: str
    classes: tuple[str, ...]
    training: dict[str, Any] = field(default_factory=dict)
    """The configuration of the run that trained it."""
    method: str = "scimix"
    """A name of `networks.autoencoder.METHODS`."""

    @classmethod
    def of(cls, context: Context, method: str) -> "Origin":
        """Of a hybridizer that a run trains."""
        data = context.dataset
        training = identity(context.settings)
        return cls(data.name, data.fingerprint, context.split.hash, data.classes, training, method)


class Hybridizer(nn.Module):
    """Puts the semantic content of one image into the non-semantic context of another.

    Images `[b, 3, size, size]` in [0, 1] in and out; standardisation is inside. Always in evaluation mode, and its
    parameters never receive a gradient; inputs may. InputError for networks that are not those of the origin's method.
    """

    def __init__(self, autoencoder: Autoencoder, origin: Origin) -> None:
        super().__init__()
        method = next(name for name, (_, network) in METHODS.items() if isinstance(autoencoder, network))
        if origin.method != method:
            raise InputError(f"method: {origin.method!r}, but these are the networks of {method!r}")
        self.autoencoder = autoencoder.requires_grad_(False).to(memory_format=torch.channels_last)
        self.origin = origin
        self.train(False)

    @property
    def image_size(self) -> int:
        return self.autoencoder.architecture.image_size

    def train(self, mode: bool = True) -> "Hybridizer":
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(self, images: Images) -> Images:
        """Reconstruct."""
        return self.hybridize(semantic=images, nonsemantic=images)

    def encode_semantic(self, images: Images) -> Float[Tensor, "batch *semantic"]:
        """z_c."""
        return self.encode_and_classify(images)[0]

    def encode_nonsemantic(self, images: Images) -> Float[Tensor, "batch *nonsemantic"]:
        """z_r."""
        self._check(images)
        return self.autoencoder.nonsemantic_encoder(images)

    def classify(self, images: Images) -> Float[Tensor, "batch classes"]:
        """Logits of the classifier that guided the training."""
        return self.encode_and_classify(images)[1]

    def encode_and_classify(
        self, images: Images
    ) -> tuple[Float[Tensor, "batch *semantic"], Float[Tensor, "batch classes"]]:
        """z_c and the logits, in one pass."""
        self._check(images)
        return self.autoencoder.classifier(images)[:2]

    def decode(
        self, semantic: Float[Tensor, "batch *semantic"], nonsemantic: Float[Tensor, "batch *nonsemantic"]
    ) -> Images:
        """The image of a pair of codes."""
        return self.autoencoder.decode(semantic, nonsemantic)

    def hybridize(
        self, *, semantic: Float[Tensor, "batch 3 size size"], nonsemantic: Float[Tensor, "batch 3 size size"]
    ) -> Images:
        """Hybrids G(E_c(semantic), E_r(nonsemantic)), one for each pair (algorithm A.4)."""
        return self.decode(self.encode_semantic(semantic), self.encode_nonsemantic(nonsemantic))

    def _check(self, images: Tensor) -> None:
        if tuple(images.shape[1:]) != (3, self.image_size, self.image_size):
            shape = "×".join(map(str, images.shape[1:]))
            raise InputError(
                f"images: {shape}, but this hybridizer takes 3×{self.image_size}×{self.image_size}; "
                f"use --image-size {self.image_size} or another hybridizer"
            )

    def check_method(self, method: str) -> None:
        """InputError if another method made it, for whoever needs this one."""
        if self.origin.method != method:
            raise InputError(f"hybridizer: made by {self.origin.method}; one made by {method} is needed")

    def check_split(self, dataset: Dataset, split: Split, *, allow_other_split: bool = False) -> None:
        """InputError if it does not fit the data set, or was trained on another split of it: labels would leak."""
        if dataset.image_size != self.image_size:
            raise InputError(
                f"hybridizer: made for images of {self.image_size}×{self.image_size}, "
                f"{dataset.name} has {dataset.image_size}×{dataset.image_size}"
            )
        if dataset.fingerprint != self.origin.fingerprint or allow_other_split:
            return
        if split.hash != self.origin.split_hash:
            raise InputError(
                f"hybridizer: trained on split {self.origin.split_hash} of {dataset.name}, not on {split.hash}: its "
                "labels would leak into this run; train one on this split, or pass --allow-other-split"
            )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights (safetensors) and description (JSON) into a folder, both or neither.

        Neither takes its place before both are written: a full disk leaves an older artefact as it was.
        """
        folder = Path(folder)
        tensors = {name: tensor.contiguous().cpu() for name, tensor in self.autoencoder.state_dict().items()}
        weights = save_tensors(tensors)
        config = {
            "format": FORMAT,
            "version": VERSION,
            "hybridgen": hybridgen.__version__,
            "architecture": self.autoencoder.architecture.to_dict(),
            **asdict(self.origin),
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
        }
        with written_aside(folder / CONFIG) as description:
            description.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            with written_aside(folder / WEIGHTS) as aside:
                aside.write_bytes(weights)

    def save_by_first(self, folder: Path, accelerator: Accelerator) -> None:
        """`save_pretrained` by the first of several processes."""
        if accelerator.is_main_process:
            self.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, source: str | Path, *, backend: str = "hybridgen") -> "Hybridizer":
        """Read a folder, or a repository of the Hugging Face hub by its id. Executes nothing that it reads.

        Raises InputError, naming the file, for one that is missing, damaged, tampered with, of another program or
        of a version that this one does not read.
        """
        folder = _fetched(source)
        path = folder / CONFIG
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({error.strerror}); a hybridizer has {CONFIG} and {WEIGHTS}"
            ) from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: damaged JSON ({error})") from error
        if not isinstance(config, dict) or config.get("format") != FORMAT:
            raise InputError(f"{path}: not the description of a hybridizer (format {FORMAT!r})")
        if config.get("version") != VERSION:
            raise InputError(f"{path}: version {config.get('version')}; this hybridgen reads version {VERSION}")
        if config.get("method") not in tuple(METHODS):
            raise InputError(f"{path}: method {config.get('method')!r}; this hybridgen reads {', '.join(METHODS)}")
        try:
            shape, network = METHODS[config["method"]]
            for name in ("dataset", "fingerprint", "split_hash"):
                if not isinstance(config[name], str):
                    raise InputError(f"{name}: {str(config[name])[:60]} is not a text")
            origin = Origin(**{f.name: _tupled(config[f.name]) for f in fields(Origin)})
            if unknown := config["architecture"].keys() - {f.name for f in fields(shape)}:
                raise InputError(f"architecture: a {origin.method} hybridizer has no {', '.join(sorted(unknown))}")
            check_described(config["architecture"], shape)
            architecture = shape(**{k: _tupled(v) for k, v in config["architecture"].items()})
            digest = config["weights_sha256"]
            if len(origin.classes) != architecture.classes or not all(isinstance(n, str) for n in origin.classes):
                raise InputError(f"classes: {architecture.classes} names are needed")
            size = size_of(architecture, network)
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{path}: damaged description ({type(error).__name__}: {reason})") from error

        path = folder / WEIGHTS
        try:
            weights = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        if hashlib.sha256(weights).hexdigest() != digest:
            raise InputError(f"{path}: truncated or changed: its SHA-256 is not the one that {CONFIG} records")
        try:
            if size > len(weights):  # or memory would be taken for networks that these are not the weights of
                raise RuntimeError(f"{size} bytes are needed, there are {len(weights)}")
            with torch.random.fork_rng(devices=[]):  # the first values are drawn in vain
                autoencoder = network(architecture, backend=backend)
            autoencoder.load_state_dict(load_tensors(weights))
        except (SafetensorError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{path}: does not fit its description, that of a {origin.method} hybridizer ({reason})"
            ) from error
        return cls(autoencoder, origin)


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _fetched(source: str | Path) -> Path:
    """The folder, downloaded first if `source` is a hub id."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    name = str(source)
    if isinstance(source, Path) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(f"hybridizer: {source} is neither a folder nor a hub id (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"hybridizer: {source} is no folder, and the hub does not give it ({reason})") from error


class Hybridize(nn.Module):
    """A batch transform for anyone's training loop, called like `torchvision.transforms.v2.MixUp`.

    `images` `[b, 3, size, size]` (uint8 or float in [0, 1]) and `labels` `[b]` in, as two arguments or one tuple;
    hybrids (float) and soft labels `[b, classes]` out. Each image is the semantic parent of the hybrid in its
    place, whose label is α of its own class and 1 - α of that of its non-semantic parent, a random place of the
    batch (as in equation 2.13).

    A call makes hybrids with `probability` and else, and in evaluation mode, gives the images back, with their
    labels as probabilities. With `keep_consistent` an image whose hybrid the hybridizer's own classifier gives
    another class stays as it is. An image of unknown class, label -1, stays as it is with a soft label of zeros,
    which loses nothing, and is nobody's non-semantic parent with another label than the semantic one's. Draws come
    from `generator`, on a CPU or the images' device, or from torch's global one. The hybridizer, which follows the
    images' device, is no part of the module's parameters and state.

    InputError for a probability outside [0, 1], for `classes`, if their names are given, other than the
    hybridizer's, for labels outside them, and for floats outside [0, 1] (looked for in the first batch alone, since
    looking waits for the device): standardise after this transform.
    """

    def __init__(
        self,
        hybridizer: Hybridizer,
        *,
        alpha: float = 0.9,
        probability: float = 1.0,
        keep_consistent: bool = False,
        classes: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not 0.5 < alpha <= 1:
            raise InputError(f"alpha: {alpha} is outside (0.5, 1]: a hybrid has mostly its semantic parent's class")
        if not 0 <= probability <= 1:
            raise InputError(f"probability: {probability} is outside [0, 1]")
        if classes is not None and tuple(classes) != hybridizer.origin.classes:
            own, given = (", ".join(names)[:80] for names in (hybridizer.origin.classes, classes))
            raise InputError(f"classes: {given}; this hybridizer has {own}, in this order")
        self._hybridizer = (hybridizer,)
        self.alpha, self.probability, self.keep_consistent = alpha, probability, keep_consistent
        self.generator = generator
        self._looked = False

    @property
    def hybridizer(self) -> Hybridizer:
        return self._hybridizer[0]

    @torch.no_grad()
    def forward(
        self,
        images: Shaped[Tensor, "batch 3 height width"] | tuple[Shaped[Tensor, "batch 3 height width"], Labels],
        labels: Labels | None = None,
    ) -> tuple[Images, Float[Tensor, "batch classes"]]:
        if labels is None:
            images, labels = images
        if not images.is_floating_point():
            images = images.float() / 255
        elif not self._looked and len(images):
            low, high = (float(bound) for bound in torch.aminmax(images))
            if not (low >= 0 and high <= 1):
                raise InputError(f"images: in [{low:.2f}, {high:.2f}], not in [0, 1]; standardise after this transform")
            self._looked = True
        classes = len(self.hybridizer.origin.classes)
        if len(labels) and not -1 <= int(labels.min()) <= int(labels.max()) < classes:
            raise InputError(f"labels: outside 0..{classes - 1}, the classes of this hybridizer (-1: not known)")
        known = labels >= 0
        hard = nn.functional.one_hot(labels.clamp(min=0), classes).to(images.dtype) * known.unsqueeze(1)
        if not self.training or not self._toss():
            return images, hard

        # Hybrids, and their soft labels
        hybridizer = self.hybridizer.to(images.device)
        device = images.device if self.generator is None else self.generator.device
        partner = torch.randperm(len(images), generator=self.generator, device=device).to(images.device)
        hybrids = hybridizer.hybridize(semantic=images, nonsemantic=images[partner])
        others = torch.where(known[partner].unsqueeze(1), hard[partner], hard)
        soft = self.alpha * hard + (1 - self.alpha) * others

        # Those that stay as they are
        made = known
        if self.keep_consistent:
            made = made & (hybridizer.classify(hybrids).argmax(dim=1) == labels)
        return torch.where(made[:, None, None, None], hybrids, images), torch.where(made.unsqueeze(1), soft, hard)

    def _toss(self) -> bool:
        """Whether to make hybrids; on a CPU unless the generator is elsewhere."""
        if self.probability in (0, 1):
            return bool(self.probability)
        device = torch.device("cpu") if self.generator is None else self.generator.device
        return bool(torch.rand((), generator=self.generator, device=device) < self.probability)
