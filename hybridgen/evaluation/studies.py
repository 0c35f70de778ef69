"""The studies of what hybrids inherit (thesis A.3.2, A.3.3 and tables 2.5 and A.13): numbers, a table and a picture."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from hybridgen.data.datasets import Dataset
from hybridgen.data.streams import derive_seed
from hybridgen.evaluation.features import encoded, linear_probe
from hybridgen.evaluation.figures import Series, draw_confusion, draw_series, image_columns
from hybridgen.evaluation.grid import choose_parents
from hybridgen.evaluation.transfer import (
    CHANCE,
    FDA,
    MIXUP,
    Distances,
    Method,
    Observed,
    Rate,
    Transfer,
    Trial,
    aligned,
    chance,
    confusion,
    fourier,
    hybridizing,
    known_test_images,
    mixing,
    note,
    observe,
    plain_rate,
    shown,
    transfer_table,
)
from hybridgen.files import written_aside
from hybridgen.hybridizer import Hybridizer
from hybridgen.training.scores import accuracy
from hybridgen.types import Images, InputError

TITLES = {"scimix": "SciMix", "samosa": "SAMOSA", "adain": "AdaIN"}
"""How the methods of hybridizers are written."""

STEP = re.compile(r"step-(\d+)")
"""The name of a snapshot's folder."""

ROWS = 6
"""Pairs in a picture of hybrids."""


@dataclass(frozen=True)
class Conditions:
    """What a study is made on."""

    hybridizers: Mapping[str, Hybridizer]
    """By the names that their rows bear."""
    steps: tuple[int, ...] | None
    """Of training, one for each hybridizer, where all are snapshots."""
    dataset: Dataset
    oracle: Callable[[Images], Float[Tensor, "batch classes"]]
    accelerator: Accelerator
    repeats: int = 4
    """Non-semantic parents of every test image."""
    seed: int = 0
    probe_images: int = 5000
    """Training images of a linear classifier, at most."""
    fda_beta: float = 0.1

    def observe(self, methods: Mapping[str, Method]) -> dict[str, Observed]:
        return observe(methods, self.dataset, self.oracle, self.accelerator, repeats=self.repeats, seed=self.seed)

    def observe_hybridizers(self) -> dict[str, Observed]:
        return self.observe({name: hybridizing(each) for name, each in self.hybridizers.items()})


@dataclass(frozen=True)
class Finding:
    """What a study found."""

    values: dict[str, Any]
    """In JSON's types; null for what is not finite."""
    table: str
    figure: Figure


class Column(NamedTuple):
    """One figure for each hybridizer."""

    key: str
    """In JSON."""
    label: str
    """In table and picture."""
    values: Sequence[Rate | float | None]
    """None where there is none."""


# --- the studies ----------------------------------------------------------------------------------------


def transfer(conditions: Conditions) -> Finding:
    """Whose class and whose context hybrids have, by the oracle, by the hybridizer itself and in pixels (A.13a)."""
    classes = conditions.dataset.classes
    observed = conditions.observe_hybridizers()
    hybrids = observed.values()
    shares = [
        Column("semantic_transfer", "s_c, oracle", [each.semantic_transfer for each in hybrids]),
        Column("own_semantic_transfer", "s_c, own classifier", [each.own_semantic_transfer for each in hybrids]),
        Column("nonsemantic_preservation", "s_r, pixels", [each.nonsemantic_preservation for each in hybrids]),
        Column("code_preservation", "s_r, z_r", [each.code_preservation for each in hybrids]),
    ]
    pixels = _distances("pixel", "pixels", [each.pixels for each in hybrids])
    codes = _distances("code", "z_r", [each.codes for each in hybrids])
    ratios = [pixels[-1], codes[-1]]
    confusions = [confusion(each, len(classes)) for each in hybrids]
    last = list(observed)[-1]

    figure = Figure(figsize=(15, 4.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    draw_series(left, list(observed), _series(shares), "share of hybrids", steps=conditions.steps)
    draw_series(middle, list(observed), _series(ratios), "mean d_c / mean d_r", steps=conditions.steps)
    draw_confusion(
        right,
        confusions[-1],
        classes,
        f"{last}: classes of hybrids, %",
        rows="class of the semantic parent",
        columns="class that the oracle sees in the hybrid",
    )

    values = _values(observed, [*shares, *pixels, *codes])
    for name, shares_seen in zip(observed, confusions, strict=True):
        values[name]["confusion"] = [[_finite(share) for share in row] for row in shares_seen.tolist()]
    seen = [("semantic parent", *classes)]
    cells = [["–" if math.isnan(share) else f"{share:.0%}" for share in row] for row in confusions[-1].tolist()]
    seen += [(name, *row) for name, row in zip(classes, cells, strict=True)]
    table = f"{aligned(_rows(observed, [*shares, *ratios]))}\n\n{last}: classes that the oracle sees\n{aligned(seen)}"
    return Finding({"hybridizers": values}, table, figure)


def background(conditions: Conditions) -> Finding:
    """Whose background hybrids have outside the semantic parent's object m_1: b_h = m_1 * x_h (A.13b)."""
    observed = conditions.observe_hybridizers()
    hybrids = observed.values()
    columns = [
        Column("semantic_transfer", "s_c, oracle", [each.semantic_transfer for each in hybrids]),
        Column("background_inheritance", "s_r, backgrounds", [each.background_inheritance for each in hybrids]),
        *_distances("background", "backgrounds", [each.backgrounds for each in hybrids]),
    ]
    table = aligned(_rows(observed, columns))
    return Finding({"hybridizers": _values(observed, columns)}, table, _backgrounds_shown(conditions))


def probe(conditions: Conditions) -> Finding:
    """How much of the class a linear classifier reads from z_r and z_c, and hybrids take from z_r (A.3.3).

    Processes share the latter; each does the whole of the former.
    """
    dataset, device = conditions.dataset, conditions.accelerator.device

    # Linear classifiers
    known = (dataset.train.labels >= 0).nonzero().flatten()
    generator = torch.Generator().manual_seed(derive_seed(conditions.seed, "probe"))
    chosen = known[torch.randperm(len(known), generator=generator)[: conditions.probe_images]].sort().values
    test = known_test_images(dataset)
    labels = dataset.train.labels[chosen], dataset.test.labels[test]
    accuracies: tuple[list[Rate | None], ...] = [], [], []
    for hybridizer in conditions.hybridizers.values():
        z_r, z_c = (
            [encoded(encode, *which, device) for which in ((dataset.train, chosen), (dataset.test, test))]
            for encode in (hybridizer.encode_nonsemantic, hybridizer.encode_semantic)
        )
        pooled = [code.mean((2, 3)) for code in z_c] if z_c[0].ndim == 4 else None
        for found, codes in zip(accuracies, (z_r, z_c, pooled), strict=True):
            found.append(None if codes is None else linear_probe(codes[0], labels[0], codes[1], labels[1]))
    titles = {"nonsemantic_probe": "z_r", "semantic_probe": "z_c", "pooled_semantic_probe": "z_c, pooled"}
    probes = [Column(*title, found) for title, found in zip(titles.items(), accuracies, strict=True) if any(found)]
    largest = labels[1].bincount().max().item() / len(test)

    # Hybrids of parents of different classes
    compared = {name: hybridizing(each) for name, each in conditions.hybridizers.items()}
    observed = conditions.observe(compared | {CHANCE: chance()})
    unrelated = observed.pop(CHANCE)
    hybrids = observed.values()
    differ = unrelated.semantic_labels != unrelated.nonsemantic_labels
    taken = [
        Column(
            "semantic_class_taken",
            "semantic parent's class",
            [each.rate(each.seen == each.semantic_labels, differ) for each in hybrids],
        ),
        Column(
            "nonsemantic_class_taken",
            "non-semantic parent's class",
            [each.rate(each.seen == each.nonsemantic_labels, differ) for each in hybrids],
        ),
    ]
    by_chance = unrelated.rate(unrelated.seen == unrelated.nonsemantic_labels, differ)

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    title = f"accuracy of a linear classifier ({len(chosen)} images)"
    draw_series(left, list(observed), _series(probes), title, steps=conditions.steps, chance=largest)
    title = "hybrids of parents of different classes have the ..."
    draw_series(right, list(observed), _series(taken), title, steps=conditions.steps, chance=by_chance.value)
    rows = _rows(observed, [*probes, *taken])
    rows.append(("chance", *(f"{largest:6.1%}" for _ in probes), "", shown(by_chance)))
    table = (
        f"{aligned(rows)}\n\nz_r, z_c: accuracy of a linear classifier trained on the codes of {len(chosen)} images"
        f"\nclasses: what the oracle sees in hybrids of parents of different classes; chance there: {CHANCE}"
    )
    values = {
        "hybridizers": _values(observed, [*probes, *taken]),
        "chance": {"probe": largest} | _plain("nonsemantic_class_taken", by_chance),
        "probe_images": len(chosen),
    }
    return Finding(values, table, figure)


def methods(conditions: Conditions) -> Finding:
    """The hybridizers beside MixUp, FDA and unrelated images (table 2.5), and pairs hybridized by each."""
    compared = {name: Method(hybridizing(each).hybridize) for name, each in conditions.hybridizers.items()}
    compared |= {MIXUP: mixing(), FDA: fourier(conditions.fda_beta), CHANCE: chance()}
    transfers = {name: Transfer.of(each) for name, each in conditions.observe(compared).items()}

    trial, (semantic, nonsemantic), _ = _shown_pairs(conditions)
    columns = {"semantic parent": semantic, "non-semantic parent": nonsemantic}
    for name, rates in transfers.items():
        if name != CHANCE:
            measured = f"s_c {rates.semantic_transfer.value:.0%}, s_r {rates.nonsemantic_preservation.value:.0%}"
            columns[f"{name}\n{measured}"] = compared[name].hybridize(trial).cpu()
    values = {"methods": {name: each.to_dict() for name, each in transfers.items()}, "fda_beta": conditions.fda_beta}
    return Finding(values, transfer_table(transfers), image_columns(columns))


STUDIES: dict[str, Callable[[Conditions], Finding]] = {
    "transfer": transfer,
    "background": background,
    "probe": probe,
    "methods": methods,
}


# --- in and out -----------------------------------------------------------------------------------------


def check(name: str, hybridizers: Mapping[str, Hybridizer], dataset: Dataset) -> None:
    """InputError if the study cannot be made of these: before an oracle is trained for it."""
    known_test_images(dataset)
    if name == "background" and (dataset.test.masks is None or dataset.test.backgrounds is None):
        known = "digits-m and mnist-m:PATH have them"
        raise InputError(f"--data {dataset.name}: its masks and backgrounds are not known; {known}")
    for title, hybridizer in hybridizers.items():
        if name == "transfer" and hybridizer.origin.classes != dataset.classes:
            own, here = (", ".join(classes) for classes in (hybridizer.origin.classes, dataset.classes))
            raise InputError(f"--data: {title} knows the classes {own}, {dataset.name} has {here}")


@torch.no_grad()
def study(name: str, conditions: Conditions) -> Finding:
    """Make a study; its values and table also say on what."""
    check(name, conditions.hybridizers, conditions.dataset)
    finding, dataset = STUDIES[name](conditions), conditions.dataset
    known = known_test_images(dataset)
    oracle = accuracy(conditions.oracle, dataset.test, known.tolist(), conditions.accelerator)
    circumstances = {
        "study": name,
        "data": dataset.name,
        "oracle_accuracy": oracle,
        "semantic_parents": len(known),
        "repeats": conditions.repeats,
        "seed": conditions.seed,
        "steps": conditions.steps and list(conditions.steps),
    }
    table = f"{finding.table}\n\n{note(dataset.name, oracle, len(known), conditions.repeats)}\n"
    return Finding(circumstances | finding.values, table, finding.figure)


def files_of(name: str, folder: Path) -> tuple[Path, Path, Path]:
    """The JSON file, table and picture of a study. InputError where one is there already or none can be."""
    for parent in (folder, *folder.parents):
        if parent.exists() and not parent.is_dir():
            raise InputError(f"--out {folder}: {parent} is not a folder")
    paths = folder / f"{name}.json", folder / f"{name}.txt", folder / f"{name}.png"
    for path in paths:
        if path.exists():
            raise InputError(f"--out: {path} is there already and is not overwritten; remove it or give another --out")
    return paths


def write(finding: Finding, paths: tuple[Path, Path, Path]) -> None:
    """Write all three or none; none takes its place before all are whole."""
    values, table, picture = paths
    with written_aside(values) as aside:
        aside.write_text(json.dumps(finding.values, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        with written_aside(table) as aside_table:
            aside_table.write_text(finding.table, encoding="utf-8")
            with written_aside(picture) as aside_picture:
                finding.figure.savefig(aside_picture, dpi=110, format="png")


def load_hybridizers(sources: Sequence[str | Path]) -> tuple[dict[str, Hybridizer], tuple[int, ...] | None]:
    """Hybridizers by name, and the steps of training where all are snapshots (`step-<n>`).

    Of a folder of snapshots, all are taken in the order of their steps. A name is the method's, with what tells its
    folder from the others' where several are given. InputError for one given twice, for images of different sizes
    and for what `Hybridizer.from_pretrained` refuses.
    """
    paths = [path for source in sources for path in _snapshots(source) or [source]]
    twice = [path for path, count in Counter(map(str, paths)).items() if count > 1]
    if twice:
        raise InputError(f"--hybridizer: {twice[0]} is given twice")
    hybridizers = [Hybridizer.from_pretrained(path) for path in paths]
    sizes = sorted({hybridizer.image_size for hybridizer in hybridizers})
    if len(sizes) > 1:
        raise InputError(f"--hybridizer: made for images of different sizes ({', '.join(map(str, sizes))})")
    written = [TITLES.get(each.origin.method, each.origin.method) for each in hybridizers]
    names = [
        f"{method} {place}" if written.count(method) > 1 else method
        for method, place in zip(written, apart([Path(path).parts for path in paths]), strict=True)
    ]
    steps = [STEP.fullmatch(Path(path).name) for path in paths]
    numbers = tuple(int(step[1]) for step in steps if step)
    snapshots = len(set(numbers)) == len(paths) > 1
    return dict(zip(names, hybridizers, strict=True)), numbers if snapshots else None


def _snapshots(source: str | Path) -> list[Path]:
    """The folders `step-<n>` in a folder, by n."""
    folder = Path(source)
    found = [path for path in folder.iterdir() if STEP.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def apart(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """Each path without what all have in common at both ends."""
    first, last = 0, 0
    shortest = min(map(len, paths))
    while first < shortest and len({path[first] for path in paths}) == 1:
        first += 1
    while last < shortest - first and len({path[-1 - last] for path in paths}) == 1:
        last += 1
    return ["/".join(path[first : len(path) - last]) or "." for path in paths]


# --- numbers ---------------------------------------------------------------------------------------------


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(key: str, value: Rate | float | None) -> dict[str, Any]:
    """A figure under its key, and a rate's interval under `<key>_interval`; null for both where it is of nothing."""
    if isinstance(value, Rate):
        return plain_rate(key, None if math.isnan(value.value) else value)
    return {key: None if value is None else _finite(value)}


def _values(names: Iterable[str], columns: Sequence[Column]) -> dict[str, dict[str, Any]]:
    values: dict[str, dict[str, Any]] = {name: {} for name in names}
    for column in columns:
        for of_name, value in zip(values.values(), column.values, strict=True):
            of_name.update(_plain(column.key, value))
    return values


def _rows(names: Iterable[str], columns: Sequence[Column]) -> list[tuple[str, ...]]:
    def cell(value: Rate | float | None) -> str:
        return f"{value:.3g}" if isinstance(value, float) else "" if value is None else shown(value)

    rows = zip(names, *([cell(value) for value in column.values] for column in columns), strict=True)
    return [("", *(column.label for column in columns)), *rows]


def _series(columns: Sequence[Column]) -> Series:
    return {column.label: column.values for column in columns}


def _distances(key: str, label: str, distances: Sequence[Distances | None]) -> list[Column]:
    """Means of squared distances from both parents, and their ratio."""
    of = lambda figure: [None if each is None else figure(each) for each in distances]
    return [
        Column(f"{key}_distance_semantic", f"mean d_c, {label}", of(lambda each: each.semantic.mean().item())),
        Column(f"{key}_distance_nonsemantic", f"mean d_r, {label}", of(lambda each: each.nonsemantic.mean().item())),
        Column(f"{key}_distance_ratio", f"d_c/d_r, {label}", of(lambda each: each.ratio)),
    ]


# --- pairs to look at ------------------------------------------------------------------------------------


def _shown_pairs(conditions: Conditions) -> tuple[Trial, tuple[Images, Images], tuple[Tensor, Tensor]]:
    """A few pairs of test images: on the device, on the CPU, and as indices."""
    part, count = conditions.dataset.test, min(ROWS, len(conditions.dataset.test) // 2)
    indices = choose_parents(part, count, count, conditions.seed)
    semantic, nonsemantic = (part.images.gather(chosen).cpu() / 255 for chosen in indices)
    ratio = torch.rand(count, generator=torch.Generator().manual_seed(derive_seed(conditions.seed, "shown")))
    x_c, x_r, ratio = (each.to(conditions.accelerator.device) for each in (semantic, nonsemantic, ratio))
    return Trial(x_c, x_r, x_r, ratio), (semantic, nonsemantic), indices


def _backgrounds_shown(conditions: Conditions) -> Figure:
    """Parents, hybrids of the last hybridizer, and how far their background is from those of both parents."""
    trial, (semantic, nonsemantic), indices = _shown_pairs(conditions)
    part, (name, hybridizer) = conditions.dataset.test, list(conditions.hybridizers.items())[-1]
    hybrids = hybridizer.hybridize(semantic=trial.semantic, nonsemantic=trial.nonsemantic).cpu()
    masks, backgrounds = part.masks, part.backgrounds
    assert masks is not None and backgrounds is not None  # `check` refuses data without
    inside = masks[indices[0]].cpu()
    squared = [
        (hybrids - backgrounds[chosen].cpu() / 255).square().sum(dim=1).masked_fill(inside, torch.nan)
        for chosen in indices
    ]
    return image_columns(
        {
            "semantic parent": semantic,
            "non-semantic parent": nonsemantic,
            f"hybrid ({name})": hybrids,
            "its background\n$b_h = m_1 * x_h$": hybrids.masked_fill(inside[:, None], 1.0),
            "squared difference,\nsemantic parent's\nbackground": squared[0],
            "squared difference,\nnon-semantic parent's\nbackground": squared[1],
        }
    )
