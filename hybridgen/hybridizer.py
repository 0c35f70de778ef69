"""The frozen hybridizer: the only door between stage 1 and stage 2."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

import hybridgen
from hybridgen.assets import bundled
from hybridgen.data.datasets import Dataset
from hybridgen.data.splits import Split
from hybridgen.files import write_text, written_aside
from hybridgen.hub import CARD, Figure, card, fetched, pushed, without_places
from hybridgen.mixing.mixing import Targets
from hybridgen.mixing.samples import LabelsGetter, change_sample, check_transform, part_workers, toss
from hybridgen.networks.autoencoder import METHODS, Autoencoder, check_described, size_of
from hybridgen.settings import plain
from hybridgen.training.context import Context
from hybridgen.training.record import identity
from hybridgen.types import Images, InputError

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
        if not images.is_floating_point():
            raise InputError(f"images: {images.dtype}; a hybridizer takes floats in [0, 1] (of uint8: images / 255)")
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
        """InputError if it does not fit the data set, its size and its classes, or was trained on another split of it:
        labels would leak."""
        if dataset.image_size != self.image_size:
            raise InputError(
                f"hybridizer: made for images of {self.image_size}×{self.image_size}, "
                f"{dataset.name} has {dataset.image_size}×{dataset.image_size}"
            )
        if dataset.classes != self.origin.classes:
            own, here = (", ".join(names)[:80] for names in (self.origin.classes, dataset.classes))
            raise InputError(f"hybridizer: knows the classes {own}, in this order; {dataset.name} has {here}")
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

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, revision: str | None = None, card: str | None = None
    ) -> str:
        """Upload weights, description and model card to the repository owner/name of the Hugging Face hub, made if it
        is not there, into this branch or its first one; the address of the commit.

        The card tells where it comes from unless one is given, with the figures that it has. Of absolute paths in the
        origin the last part goes with it. InputError where there is no token, and where the hub takes nothing.
        """
        origin = replace(
            self.origin,
            dataset=without_places(self.origin.dataset),
            training=without_places(plain(self.origin.training)),
        )
        with TemporaryDirectory() as folder:
            Hybridizer(self.autoencoder, origin).save_pretrained(folder)
            write_text(Path(folder) / CARD, self.card(repo_id) if card is None else card)
            return pushed(Path(folder), repo_id, private=private, revision=revision)

    def card(
        self,
        repo_id: str,
        *,
        trained: str = "",
        figures: Sequence[Figure] = (),
        images: int | None = None,
        license: str | None = None,
    ) -> str:
        """Its model card under this id: how it was trained, beside its split and configuration, and figures on so many
        test images, as far as they are given."""
        origin, size = self.origin, self.image_size
        return card(
            repo_id,
            what=f"A hybridizer by {origin.method}, which puts the class of one image into the context of another",
            tags=("data-augmentation", "semi-supervised-learning", origin.method),
            dataset=origin.dataset,
            classes=origin.classes,
            image_size=size,
            loading=(
                "from hybridgen import Hybridizer",
                f'hybridizer = Hybridizer.from_pretrained("{repo_id}")',
                f"hybrids = hybridizer.hybridize(semantic=a, nonsemantic=b)  # [n, 3, {size}, {size}] in [0, 1]",
            ),
            trained=" ".join(filter(None, (trained, f"Split {origin.split_hash}. The configuration:"))),
            training=without_places(plain(origin.training)),
            figures=figures,
            images=images,
            limits=(
                f"It hybridizes images like those that it was trained on, at {size}×{size} alone.",
                "Labels leak into a classifier that is trained with its hybrids on another split of the same images: "
                f"hybridgen refuses other splits than {origin.split_hash}.",
                "Not every hybrid has the class of its semantic parent; `hybridgen evaluate` measures how many have.",
            ),
            license=license,
        )

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, revision: str | None = None, backend: str = "hybridgen"
    ) -> "Hybridizer":
        """Read a folder, or a repository of the Hugging Face hub by its id, owner/name or owner/name@revision: a
        branch, a tag or a commit; bundled for the one that comes with the code. Executes nothing that it reads.

        Raises InputError, naming the file, for one that is missing, damaged, tampered with, of another program or
        of a version that this one does not read.
        """
        if source == "bundled":
            source = bundled()
        folder = fetched(source, (CONFIG, WEIGHTS), what="hybridizer", revision=revision)
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
            architecture: Any = shape(**{k: _tupled(v) for k, v in config["architecture"].items()})
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


class Hybridize(nn.Module):
    """A batch transform for anyone's training loop, called like `torchvision.transforms.v2.MixUp`.

    `images` `[b, 3, size, size]` (uint8 or float in [0, 1]) and `labels`, `[b]` or probabilities `[b, classes]`, in, as
    two arguments, one tuple, or a sample of any structure, in which `labels_getter` finds the labels; hybrids and soft
    labels `[b, classes]` out, in the same structure. Hybrids take the images' kind, dtype and memory format, those of
    uint8 rounded to the nearest level. Each image is the semantic parent of the hybrid in its place, whose label is α
    of its own class and 1 - α of that of its non-semantic parent, a random place of the batch (as in equation 2.13).

    A call makes hybrids with `probability` and else, and in evaluation mode, gives the images back, with their
    labels as probabilities. With `keep_consistent` an image whose hybrid the hybridizer's own classifier gives
    another class stays as it is. An image of unknown class, label -1, stays as it is with a soft label of zeros,
    which loses nothing, and is nobody's non-semantic parent with another label than the semantic one's. Draws come
    from `generator`, on a CPU or the images' device, or from torch's global one, in a data loader's workers apart;
    after the first batch nothing waits for the device. The hybridizer, which follows the images' device, is no part
    of the module's parameters and state. Within `torch.compile` there is no graph break, but at a generator.

    InputError for a probability outside [0, 1], for `classes`, if their names are given, other than the hybridizer's,
    for labels outside them (looked for on CPUs only), for floats outside [0, 1] (looked for in the first batch alone,
    since looking waits for the device): standardise after this transform; and for videos and other samples of which
    `hybridgen.mixing.samples.change_sample` makes nothing.
    """

    def __init__(
        self,
        hybridizer: Hybridizer,
        *,
        alpha: float = 0.9,
        probability: float = 1.0,
        keep_consistent: bool = False,
        classes: Sequence[str] | None = None,
        labels_getter: LabelsGetter = "default",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not 0.5 < alpha <= 1:
            raise InputError(f"alpha: {alpha} is outside (0.5, 1]: a hybrid has mostly its semantic parent's class")
        check_transform(probability, labels_getter)
        if classes is not None and tuple(classes) != hybridizer.origin.classes:
            own, given = (", ".join(names)[:80] for names in (hybridizer.origin.classes, classes))
            raise InputError(f"classes: {given}; this hybridizer has {own}, in this order")
        self._hybridizer = (hybridizer,)
        self.alpha, self.probability, self.keep_consistent = alpha, probability, keep_consistent
        self.labels_getter, self.generator = labels_getter, generator
        self._looked = False
        self._worker: int | None = None

    @property
    def hybridizer(self) -> Hybridizer:
        return self._hybridizer[0]

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Any:
        classes = len(self.hybridizer.origin.classes)
        return change_sample(inputs, self.labels_getter, classes, self._change, unknown=True)

    def _change(self, images: list[Tensor], targets: Targets) -> tuple[list[Tensor], Targets]:
        for each in images:
            if each.ndim != 4:
                raise InputError("images: a video; batches of images are hybridized")
            self._look(each)
        self._worker = part_workers(self.generator, self._worker)
        coin = self.training and toss(self.probability, self.generator, targets.device)
        if coin is False:
            return images, targets

        # Hybrids, and their soft labels
        device = targets.device if self.generator is None else self.generator.device
        partner = torch.randperm(len(targets), generator=self.generator, device=device).to(targets.device)
        hybrids = [self._hybrids(each, partner) for each in images]
        known = targets.any(dim=1)
        others = torch.where(known[partner].unsqueeze(1), targets[partner], targets)
        soft = self.alpha * targets + (1 - self.alpha) * others

        # Those that stay as they are
        made = known & coin
        if self.keep_consistent:
            for each in hybrids:
                made = made & (self.hybridizer.classify(each).argmax(dim=1) == targets.argmax(dim=1))
        kept = [torch.where(made[:, None, None, None], *pair) for pair in zip(hybrids, images, strict=True)]
        return kept, torch.where(made.unsqueeze(1), soft, targets)

    def _look(self, images: Tensor) -> None:
        if self._looked or not len(images) or torch.compiler.is_compiling():
            return
        low, high = (float(bound) for bound in torch.aminmax(images))
        if not (low >= 0 and high <= 1):
            raise InputError(f"images: in [{low:.2f}, {high:.2f}], not in [0, 1]; standardise after this transform")
        self._looked = True

    def _hybrids(self, images: Tensor, partner: Tensor) -> Images:
        """In float32, as the hybridizer computes."""
        images, hybridizer = images.float(), self.hybridizer
        if next(hybridizer.parameters()).device != images.device:
            hybridizer.to(images.device)
        return hybridizer.hybridize(semantic=images, nonsemantic=images[partner])
