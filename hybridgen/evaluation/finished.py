"""Classifiers that training runs left: in their folders, their files and their checkpoints."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from hybridgen import configuration
from hybridgen.data.datasets import Dataset, load_dataset, of_files
from hybridgen.evaluation.studies import apart
from hybridgen.methods import mixvit
from hybridgen.methods.labelled import central, chosen_network
from hybridgen.networks.classifiers import (
    FILE,
    About,
    Classifier,
    about_classifier,
    load_classifier,
    several_inputs_of,
)
from hybridgen.networks.members import Ensemble
from hybridgen.networks.multi_input import Attribution, MultiInputClassifier
from hybridgen.networks.registry import default_network, make_network
from hybridgen.settings import checked
from hybridgen.training.checkpoint import read_checkpoint
from hybridgen.training.context import RunSettings, split_of
from hybridgen.training.engine import laid_out
from hybridgen.training.record import finished_inside, read_result
from hybridgen.training.setup import SPLIT
from hybridgen.types import Images, InputError

SUFFIX = ".pt"
"""Of checkpoints."""


@dataclass(frozen=True)
class Left:
    """What a run left of a classifier, not read yet; what is None is not known."""

    path: Path
    """As it was given."""
    weights: Path
    """A network.safetensors, or a checkpoint."""
    config: Mapping[str, Any] | None
    """The run's configuration."""
    about: About | None
    """What its network.safetensors says, or the one beside the checkpoint."""
    split_hash: str | None

    @property
    def settings(self) -> RunSettings | None:
        """Those of the run that tell its data and split, a file of which is the run's own copy. InputError where they
        are none."""
        if self.config is None:
            return None
        known = {field.name for field in fields(RunSettings)}
        own = {name: value for name, value in self.config.items() if name in known}
        folder = self.weights.parent.parent if self.weights.suffix == SUFFIX else self.weights.parent
        if own.get("split") is not None and (folder / SPLIT).is_file():
            own["split"] = str(folder / SPLIT)
        return checked(RunSettings, own, source=f"{self.path}: configuration: ")


class Trained(NamedTuple):
    """A classifier in evaluation mode, on the device."""

    members: Callable[[Images], Float[Tensor, "members batch classes"]]
    """Logits of its members; of one where it is one network."""
    ensemble: Ensemble
    """What of them it averages."""


def find(path: Path) -> Left:
    """The classifier of a finished run's folder, the selected or last one that it deployed, of a run with several
    inputs its members; a network.safetensors; or a checkpoint: the network that the run would evaluate at that step,
    the average where it keeps one.

    InputError, naming the path, for a folder without a result, one that holds several runs or no classifier, and for
    files that cannot be read.
    """
    if path.is_dir():
        return _of_folder(path)
    if not path.exists():
        raise InputError(
            f"{path}: no such file or folder; a finished run's folder, its {FILE} or a checkpoint is needed"
        )
    if path.suffix == SUFFIX:
        identity = read_checkpoint(path).get("identity")
        if not isinstance(identity, dict):
            raise InputError(f"{path}: not a checkpoint of a run (no identity)")
        beside = path.parent.parent / "config.yaml"
        about = _about(beside.with_name(FILE))
        return Left(path, path, (_config(beside) or {}) | identity, about, identity.get("split_hash"))
    about = about_classifier(path)
    return Left(path, path, _config(path.parent / "config.yaml"), about, about.split_hash)


def deployed(path: Path) -> Path:
    """The network.safetensors of a finished run's folder, or that file itself. InputError, naming the path, for a
    folder without a result, one that holds several runs or no classifier, and where nothing is."""
    if not path.is_dir():
        if path.is_file():
            return path
        raise InputError(f"{path}: no such file or folder; a finished run's folder, or its {FILE}, is needed")
    _finished(path)
    if not (path / FILE).is_file():
        raise InputError(f"{path}: no classifier in it ({FILE} is missing)")
    return path / FILE


def _finished(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configuration and result of a run's folder; InputError for one without."""
    config, result = _config(folder / "config.yaml"), read_result(folder, ("steps",))
    inside = finished_inside(folder)
    if inside and not (folder / FILE).exists() and not (folder / "checkpoints").exists():
        raise InputError(f"{folder}: holds several runs; give some of {', '.join(map(str, inside))}")
    if config is None:
        raise InputError(f"{folder}: not the folder of a run (config.yaml is missing)")
    if result is None:
        raise InputError(
            f"{folder}: no result (result.json is missing); let the run finish (--resume), or give a checkpoint of it"
        )
    return config, result


def _of_folder(folder: Path) -> Left:
    config, result = _finished(folder)
    about = _about(folder / FILE)
    # Of several inputs, network.safetensors is the plain network that computes the same as all members together, but of
    # a transformer, which has its members
    if "inputs" in (config.get("method") or ()) and (about is None or about.inputs is None):
        last = folder / "checkpoints" / f"step-{int(result['steps']):08d}.pt"
        if not last.is_file():
            raise InputError(
                f"{folder}: its members are not there ({last} is missing); {folder / FILE} is without them"
            )
        return Left(folder, last, config, about, result.get("split_hash"))
    if about is None:
        raise InputError(f"{folder}: no classifier in it ({FILE} is missing)")
    return Left(folder, folder / FILE, config, about, result.get("split_hash"))


def _about(path: Path) -> About | None:
    return about_classifier(path) if path.is_file() else None


def _config(path: Path) -> dict[str, Any] | None:
    return configuration.load(path) if path.is_file() else None


def names_of(paths: Sequence[Path]) -> dict[Path, str]:
    """What tells each from the others."""
    if len(paths) > 1:
        return dict(zip(paths, apart([path.parts for path in paths]), strict=True))
    (path,) = paths
    if path.name == FILE and path.parent.name:
        return {path: path.parent.name}
    return {path: path.resolve().name if path.is_dir() else path.stem}


def check_data(left: Sequence[Left], dataset: Dataset, *, others: bool = False) -> None:
    """InputError, naming what differs, for classifiers of other classes than the data's, and for data that are not
    those of the runs, whose test images they may have been trained on: the split that a run's configuration makes of
    them has another hash than the run's. With `others`, data may be others of the same classes."""
    for one in left:
        if one.about is not None and one.about.classes != dataset.classes:
            theirs, ours = (f"{len(names)} ({', '.join(names)[:60]})" for names in (one.about.classes, dataset.classes))
            raise InputError(f"{one.path}: a classifier of {theirs} classes, {dataset.name} has {ours}")
        settings = one.settings
        if settings is not None and not others and (made := split_of(settings, dataset).hash) != one.split_hash:
            raise InputError(
                f"{one.path}: trained on other data or another split than {dataset.name} (split {one.split_hash}, of "
                f"these data {made}); give the data of the run, or --allow-other-data if it saw none of these images"
            )


def load(left: Left, dataset: Dataset, accelerator: Accelerator) -> Trained:
    """The classifier, which sees images as its run evaluated them: whole, or their centre. InputError, naming the file,
    for one that is damaged or does not fit, and for images of another size or smaller than that centre."""
    network, crop = network_of(left, dataset, accelerator)
    several = network if isinstance(network, MultiInputClassifier) else network.network
    return Trained(lambda images: network.members(central(images, crop)), getattr(several, "ensemble", "logits"))


def network_of(
    left: Left, dataset: Dataset, accelerator: Accelerator
) -> tuple[Classifier | MultiInputClassifier, int | None]:
    """The network, on the device and in evaluation mode, and the side of the images' centre if it sees no more."""
    config = left.config or {}
    if left.weights.suffix == SUFFIX:
        network = _of_checkpoint(left.weights, config, dataset, left.about, selected=left.path.is_dir())
    else:
        network = load_classifier(left.weights)[0]
    crop = (config.get("training") or {}).get("crop")
    side = dataset.image_size
    wanted = crop or (left.about.image_size if left.about else side)
    if wanted > side or (crop is None and wanted < side):
        raise InputError(
            f"{left.path}: a network for images of {wanted}×{wanted}, these have {side}×{side}; --image-size {wanted} "
            "makes them alike"
        )
    network = laid_out(network, accelerator, channels_last=config.get("channels_last", True))
    return network.requires_grad_(False).eval(), crop


def dataset_of(
    left: Sequence[Left],
    data: str | None = None,
    *,
    image_size: int | None = None,
    data_root: str | None = None,
    download: bool = False,
) -> Dataset:
    """The runs' data set, or another that is given. InputError where it is not known, and for runs whose images have
    different sizes."""
    runs = [own for one in left if (own := one.settings) is not None]
    if not runs and data is None:
        raise InputError(f"{left[0].path}: in no run's folder, so that its data are not known; give --data")
    whole, sizes = {own.whole for own in runs}, {own.image_size for own in runs}
    if len(whole) > 1 or len(sizes) > 1:
        raise InputError(f"RUNS: of images of different sizes ({', '.join(map(str, sizes))}); give those of one size")
    about = next((one.about for one in left if one.about is not None), None)
    return load_dataset(
        data or runs[0].data,
        image_size=image_size or (runs[0].image_size if runs else None if about is None else about.image_size),
        data_root=data_root or (runs[0].data_root if runs else "data"),
        download=download,
        whole=bool(runs) and runs[0].whole and of_files(data or runs[0].data),
    )


def _of_checkpoint(
    path: Path, config: Mapping[str, Any], dataset: Dataset, about: About | None, *, selected: bool
) -> Classifier | MultiInputClassifier:
    """What the run evaluates, or has `selected` where it does, made anew from its configuration; a transformer of
    several inputs as the network that the run left says, or its configuration."""
    modules = read_checkpoint(path).get("modules", {})
    kept = ("selected", "average") if selected else ("average",)
    holder = next((name for name in kept if name in modules), "classifier")
    prefix = "classifier." if holder == "classifier" else "network."
    wrapped = modules.get(holder, {})  # with hybrids, what they are added to is the base of the objective
    state = {
        key.removeprefix(prefix): value
        for key, value in ((key.removeprefix("base."), value) for key, value in wrapped.items())
        if key.startswith(prefix) and not key.startswith(f"{prefix}consistency.")  # a head that predicts nothing
    }
    if "normalize.mean" not in state:
        raise InputError(f"{path}: no classifier in it; checkpoints of {', '.join(RECIPES)} have one")
    statistics = {name: state[f"normalize.{name}"].flatten().tolist() for name in ("mean", "std")}
    inputs, heads = (
        {key.split(".")[1] for key in state if key.startswith(f"{part}.")} for part in ("encoders", "heads")
    )
    attribution: Attribution = "none"
    if "attribution.bias" in state:
        attribution = "encoding" if "attribution.weight" in state else "embedding"
    try:
        name, width = _network(config, dataset.image_size)
        side = (config.get("training") or {}).get("crop") or dataset.image_size
        make = lambda: make_network(name, len(dataset.classes), width=width, image_size=side, pretrained=False)
        with torch.random.fork_rng(devices=[]):  # the first values are drawn in vain
            networks = [make() for _ in range(len(inputs) or 1)]
            if any(key.startswith("network.encoders.") for key in state):
                networks = [several_inputs_of(networks[0], _options(path, config, about))]
        if inputs:
            network: Classifier | MultiInputClassifier = MultiInputClassifier(
                networks,
                **statistics,
                ensemble=config["method"]["ensemble"],
                one_head=len(heads) == 1,
                attribution=attribution,
            )
        else:
            network = Classifier(networks[0], **statistics)
        network.load_state_dict(state)
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{path}: does not fit its configuration ({' '.join(str(error).split())[:200]})") from error
    return network


def _options(path: Path, config: Mapping[str, Any], about: About | None) -> Mapping[str, Any]:
    """What a transformer of several inputs is made with. InputError for the configuration of a comparison, which does
    not tell which of its methods this is."""
    if about is not None and about.inputs is not None:
        return about.inputs
    if len(config["methods"]) > 1 or config.get("table") is not None:
        raise InputError(
            f"{path}: its configuration is that of several methods; train it anew, or let the run finish (--resume), "
            f"which leaves a {FILE}"
        )
    return {field: config["method"][field] for field in mixvit.OPTIONS}


RECIPES = (
    "fixmatch", "mean_teacher", "mixmatch", "scimix_fixmatch", "scimix_mean_teacher", "scimix_mixmatch",
    "scimix_supervised", "mixing_baselines", "recursivemix", "mixmo", "mixshare", "mixvit",
)  # fmt: skip


def _network(config: Mapping[str, Any], image_size: int) -> tuple[str, float]:
    """Name and width, as the recipes choose them."""
    if "training" in config:
        return chosen_network(config["training"]["network"], config["training"]["width"], image_size)
    name = config["method"]["network"]
    return (default_network(image_size) if name is None else name), 1
