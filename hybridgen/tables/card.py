"""What finished runs leave, with their model cards, on the Hugging Face hub."""

import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hybridgen.evaluation.finished import deployed
from hybridgen.evaluation.transfer import wilson
from hybridgen.files import write_text
from hybridgen.hub import CARD, Figure, card, pushed, without_places
from hybridgen.hybridizer import CONFIG, Hybridizer
from hybridgen.networks.classifiers import FILE, about_classifier, load_classifier
from hybridgen.settings import flat
from hybridgen.tables.left import Group, read_group
from hybridgen.training.record import UNIDENTIFIED, read_result
from hybridgen.types import InputError


def push(
    run: Path, repo_id: str, *, private: bool = False, revision: str | None = None, license: str | None = None
) -> str:
    """Upload what a finished run left, its hybridizer or its classifier, with a model card, to owner/name on the hub;
    the address of the commit.

    `run` is its folder, that of a hybridizer, or a network.safetensors. A README.md that lies there is the card as it
    stands; else one is made, and left there. InputError, naming the path, for what is not finished, damaged, none of
    these, or both; and as by `hub.pushed`.
    """
    made = next((place for place in (run, run / "hybridizer") if (place / CONFIG).is_file()), None)
    if made == run / "hybridizer":
        if (run / FILE).is_file():
            raise InputError(f"{run}: has a hybridizer and a classifier; give {made} or {run / FILE}")
        if read_result(run) is None:
            raise InputError(f"{run}: no result (result.json is missing); let the run finish (--resume)")
    if made is not None:
        return _push_hybridizer(made, repo_id, private, revision, license)
    path = deployed(run)
    load_classifier(path)  # which refuses a damaged one
    make = lambda: classifier_card(path, repo_id, license)
    with TemporaryDirectory() as folder, _kept(path.parent, make, license) as text:
        shutil.copy(path, Path(folder) / FILE)
        write_text(Path(folder) / CARD, text)
        return pushed(Path(folder), repo_id, private=private, revision=revision)


def _push_hybridizer(folder: Path, repo_id: str, private: bool, revision: str | None, license: str | None) -> str:
    hybridizer = Hybridizer.from_pretrained(folder)

    def made() -> str:
        if read_result(folder.parent) is None:
            return hybridizer.card(repo_id, license=license)
        group = read_group(folder.parent, folder.parent.name)
        return hybridizer.card(
            repo_id, trained=trained(group), figures=figures(group, "accuracy of its own classifier", last=True),
            images=group.images, license=license,
        )  # fmt: skip

    with _kept(folder, made, license) as text:
        return hybridizer.push_to_hub(repo_id, private=private, revision=revision, card=text)


@contextmanager
def _kept(folder: Path, make: Callable[[], str], license: str | None) -> Iterator[str]:
    """The card that lies there, or else one that is made, and left there when it has been pushed. InputError for a
    licence beside the one that lies there."""
    path = folder / CARD
    if path.exists():
        if license is not None:
            raise InputError(f"--license {license}: {path} goes as it stands; name the licence there, or remove it")
        yield path.read_text(encoding="utf-8")
    else:
        text = make()
        yield text
        write_text(path, text)


def classifier_card(path: Path, repo_id: str, license: str | None = None) -> str:
    """The model card of a classifier in its run's folder, under this id. InputError for one in no run's folder, and
    for a run without a result."""
    about, group = about_classifier(path), read_group(path.parent, path.parent.name)
    if group.result is None:
        raise InputError(f"{path.parent}: no result (result.json is missing); let the run finish (--resume)")
    side = about.image_size
    return card(
        repo_id,
        what=f"A classifier, a {about.network}",
        tags=("image-classification", "semi-supervised-learning"),
        dataset=group.setup.get("data", {}).get("name", str(group.config.get("data", "unknown"))),
        classes=about.classes,
        image_size=side,
        loading=(
            "from hybridgen import load_classifier",
            f'classifier, classes, side = load_classifier("{repo_id}")',
            f"logits = classifier(images)  # of [b, 3, {side}, {side}] in [0, 1]",
        ),
        trained=f"{trained(group)} Split {about.split_hash or 'unknown'}. The configuration:",
        training=configuration_of(group),
        figures=figures(group, "accuracy"),
        images=group.images,
        limits=(
            f"It knows its {len(about.classes)} classes alone, and gives one of them to every image.",
            "The figures are of images like those that it was trained on; of others they differ.",
            f"Where it is judged it sees {about.seen}.",
        ),
        license=license,
    )


def configuration_of(group: Group) -> dict[str, Any]:
    """The run's, without folders of its machine."""
    return without_places({name: value for name, value in group.config.items() if name not in UNIDENTIFIED})


def trained(group: Group) -> str:
    """By which command, as far as that is recorded, from how many images, and how long."""
    words, result = command(group), group.result or {}
    said = f"`{shlex.join(words)}`: " if words else ""
    counts = [f"{count:,} {role}" for role, count in group.setup.get("split", {}).items() if role in ROLES]
    of = f"from {', '.join(counts)} images; " if counts else ""
    return f"{said}{of}seed {result['seed']}, {result['steps']:,} steps, {result['seconds']:,.0f} seconds."


def command(group: Group) -> list[str]:
    """The words that train with the settings of a run anew; none where its recipe is not recorded."""
    setup, values = group.setup, dict(flat(configuration_of(group)))
    if "recipe" not in setup:
        return []
    changed = [(flag, values[name]) for name, flag in setup.get("flags", {}).items() if name in values]
    arguments = [word for each in changed for word in _arguments(*each)]
    return ["hybridgen", "train", setup["recipe"].replace("_", "-"), *arguments]


def _arguments(flag: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        group, dot, own = flag.removeprefix("--").rpartition(".")
        return [f"--{group}{dot}{'' if value else 'no-'}{own}"]
    return [flag, *map(str, value if isinstance(value, list) else [value])]


def figures(group: Group, accuracy: str, *, last: bool = False) -> list[Figure]:
    """Of a finished run, on its test images: accuracies of the network that it left and of the last (of that alone if
    it left the `last`, as with hybridizers), and what hybrids inherit where that was measured. Without intervals where
    the number of images is not known."""
    result, transfer = group.result or {}, group.transfer or {}
    found = []
    how = {"selected": "selected on the validation images", "last": "after the last step"}
    chosen = "selected" if not last and "test_accuracy_selected" in result else "last"
    for which in dict.fromkeys((chosen, "last")):
        share = result.get(f"test_accuracy_{which}")
        if share is not None and share == share:  # nan: no test image of known class
            known = (wilson(share, group.images).low, wilson(share, group.images).high) if group.images else None
            found.append(Figure(f"{accuracy}, {how[which]}", share, known, "accuracy" if which == chosen else None))
    for name, said in INHERITED.items():
        if transfer.get(name) is not None:
            found.append(Figure(said, transfer[name], tuple(transfer[f"{name}_interval"])))
    if transfer:
        found.append(Figure("accuracy of the oracle that judges hybrids", transfer["oracle_accuracy"]))
    return found


ROLES = ("labelled", "unlabelled", "validation")
"""Of images in a split."""
INHERITED = {
    "semantic_transfer": "semantic transfer, by an oracle",
    "nonsemantic_preservation": "non-semantic preservation (nearer in pixels to the non-semantic parent)",
    "background_inheritance": "background inheritance (by the known masks)",
}
"""What hybrids inherit, by the names of transfer.json."""
