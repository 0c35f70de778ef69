"""A run or a comparison as one HTML page that needs no network: settings, figures, curves, hybrids, confusions."""

import base64
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from hybridgen.configuration import spelled
from hybridgen.evaluation.transfer import CHANCE, FDA, HYBRIDIZER, MIXUP, verdict, wilson
from hybridgen.files import write_text
from hybridgen.page import rendered
from hybridgen.settings import OPEN, flat
from hybridgen.tables.left import Group, OneRun, read_group

REPORT = "report.html"
PAGE = Path(__file__).with_suffix(".html")
"""The page's template."""

POINTS = 400
"""Of a curve, at most."""
MATRIX, LEGIBLE = 50, 20
"""Classes up to which confusions are shown cell by cell, beyond the largest errors alone; and with figures in cells."""
COLOURS = 8
"""Of variants, in the page's style."""
DASHES = ("", "5 3", "2 2", "8 3 2 3")
"""Of a variant's seeds."""
UNTOLD = ("out", "resume")
"""Settings that tell a reader nothing."""

ACCURACIES = ("test_accuracy_last", "test_accuracy_selected")
OTHERS = {"mixup": MIXUP, "fda": FDA, "chance": CHANCE}
RATES = ("semantic_transfer", "nonsemantic_preservation", "background_inheritance")


class Told(NamedTuple):
    """Of a table: a text, and what stands small beside it."""

    text: str
    more: str = ""


class Table(NamedTuple):
    """The first cell of a row names it; a row of one cell alone is a heading."""

    head: Sequence[str]
    rows: Sequence[Sequence[Told | str | int]]
    caption: str = ""
    words: bool = False
    """Whether its columns hold words, which stand left, or numbers."""


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Write the page of these folders, of a run or a comparison each, finished or not. InputError, naming it, for one
    that is no run's, and for a configuration or a result that cannot be read; what else is damaged, the page tells."""
    from hybridgen.evaluation.finished import names_of  # with matplotlib, which takes its time

    write_text(out, page([read_group(folder, name) for folder, name in names_of(folders).items()]))


def page(groups: Sequence[Group]) -> str:
    """The whole page."""
    curves, runs = curves_of(groups), legend(groups)
    return rendered(
        PAGE,
        title=" · ".join(group.folder.resolve().name for group in groups),
        written=f"{datetime.now():%Y-%m-%d %H:%M}",
        notes=[each for group in groups for each in _told_of(group, groups, group.notes)],
        figures=list(_figures(groups)),
        settings=_settings(groups),
        recorded=all("changed" in group.setup for group in groups),
        runs=runs,
        curves=curves,
        thinned=POINTS if any(len(run.rows) > POINTS for group in groups for run in group.trainings) else 0,
        data={"runs": runs, "curves": curves},
        hybrids=list(_hybrids(groups)),
        transfers=list(_transfers(groups)),
        classes=list(_classes(groups)),
        split=_split(groups),
        environment=_environment(groups),
        legible=LEGIBLE,
    )


# --- What runs and figures are called ---------------------------------------------------------------------------


def _told_of(group: Group, groups: Sequence[Group], texts: Iterable[str]) -> list[str]:
    """With the group's name where there are several."""
    return [text if len(groups) == 1 else f"{group.name}: {text}" for text in texts]


def _named(groups: Sequence[Group]) -> Iterator[tuple[str, OneRun]]:
    for group in groups:
        for run in group.trainings:
            own = run.variant if run.seed is None else f"{run.variant}, seed {run.seed}"
            alone = run.folder == group.folder and len(groups) > 1  # whose group has its name
            yield group.name if alone else _told_of(group, groups, [own])[0], run


def _percent(value: float | None, images: int | None = None) -> Told | str:
    """With Wilson's interval where it is known of how many images it is a share."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    return Told(f"{100 * value:.1f}", _bounds(*wilson(value, images)[1:]) if images else "")


def _bounds(low: float, high: float, form: str = ".1f") -> str:
    return f"[{100 * low:{form}}, {100 * high:{form}}]"


def _duration(seconds: float | None) -> str:
    if not isinstance(seconds, int | float):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {rest:02} s"


def _head(groups: Sequence[Group], first: str, alone: str) -> tuple[str, ...]:
    return (first, *(group.name for group in groups)) if len(groups) > 1 else (first, alone)


# --- Figures and settings ---------------------------------------------------------------------------------------


def _figures(groups: Sequence[Group]) -> Iterator[Table]:
    for group in groups:
        rows = list(group.variants.items())
        several = any("std" in row[ACCURACIES[0]] for _, row in rows)
        if any(row.keys() & {"gain", "gain_by_image"} for _, row in rows) or several:
            paired = any("gain_by_image" in row for _, row in rows)
            how = "paired by image, of the selected networks of one training each" if paired else "by Student's t"
            mean = "mean ± standard deviation over seeds, and " if several else ""
            yield Table(
                ("variant", "last, %", "selected, %", "gain over the first, points", "time a run"),
                [(*_told_of(group, groups, [name]), *_of_variant(row, group.images)) for name, row in rows],
                f"Test accuracy: {mean}Wilson's 95 % interval. Gains with their 95 % intervals {how}.",
            )
    named = list(_named(groups))
    if not named:
        return
    each = [(name, run, run.result or {}) for name, run in named]
    images = sorted({run.images for _, run, _ in each if run.images})
    yield Table(
        ("run", "state", "last, %", "selected, %", "selected step", "steps", "time"),
        [
            (name, run.state, *(_percent(own.get(key), run.images) for key in ACCURACIES),
             own.get("selected_step", "–"), own.get("steps", "–"), _duration(own.get("seconds")))
            for name, run, own in each
        ],
        f"Test accuracy of every run, with Wilson's 95 % interval by {' or '.join(map(str, images))} test images."
        if images
        else "Test accuracy of every run; the number of test images is not recorded.",
    )  # fmt: skip
    further = sorted({key for *_, own in each for key in own if key.startswith("test_")} - set(ACCURACIES))
    if further:
        number = lambda value: f"{value:.4g}" if isinstance(value, int | float) else "–"
        yield Table(
            ("run", *(key.removeprefix("test_").replace("_", " ") for key in further)),
            [(name, *(number(own.get(key)) for key in further)) for name, _, own in each],
            "Further figures of the test images.",
        )


def _of_variant(row: Mapping[str, Any], images: int | None) -> list[Told | str]:
    cells: list[Told | str] = []
    for key in ACCURACIES:
        value = _percent(row[key]["mean"], images)
        spread = f" ± {100 * row[key]['std']:.1f}" if "std" in row[key] else ""
        cells.append(Told(value.text + spread, value.more) if isinstance(value, Told) else value)
    gain = row.get("gain") or row.get("gain_by_image")
    if gain is None:
        cells.append("–")
    else:
        chance = " within chance" if gain["low"] <= 0 <= gain["high"] else ""
        cells.append(Told(f"{100 * gain['mean']:+.1f}", _bounds(gain["low"], gain["high"], "+.1f") + chance))
    return [*cells, _duration(row["seconds"]["mean"])]


def _settings(groups: Sequence[Group]) -> tuple[Table, Table]:
    """Those that differ from the defaults or between the groups, and the others; by their own groups."""
    each = [
        {name: _setting(value, group.setup.get("chosen", {}).get(name)) for name, value in flat(group.config)}
        for group in groups
    ]
    told = {name: 0 for own in each for name in own if name not in UNTOLD}
    names = sorted(told, key=lambda name: name.rpartition(".")[0])
    changed = {name for group in groups for name in group.setup.get("changed", ())}
    first = [name for name in names if name in changed or len({own[name] for own in each if name in own}) > 1]

    def table(chosen: Sequence[str], caption: str) -> Table:
        rows: list[tuple[str, ...]] = []
        for place, name in enumerate(chosen):
            of, _, own = name.rpartition(".")
            if not place or of != chosen[place - 1].rpartition(".")[0]:
                rows.append((of or "run",))
            rows.append((own, *(values.get(name, "–") for values in each)))
        return Table(_head(groups, "setting", "value"), rows, caption, words=True)

    between = ", or between the runs" if len(groups) > 1 else ""
    rest = [name for name in names if name not in first]
    return table(first, f"What differs from the recipe's defaults{between}."), table(
        rest, f"{len(rest)} other settings"
    )


def _setting(value: Any, chosen: Any = None) -> str:
    """What was given; or what was chosen, where that is left open."""
    if value in OPEN and chosen is not None:
        return f"{spelled(chosen)}, chosen"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


# --- Curves -----------------------------------------------------------------------------------------------------


def legend(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Of every run, in their order, its name, its colour by variant, and its dashes by seed."""
    keys = [(group.name, run.variant) for group in groups for run in group.trainings]
    variants = list(dict.fromkeys(keys))
    told = []
    for place, ((name, _), key) in enumerate(zip(_named(groups), keys, strict=True)):
        turn, colour = divmod(variants.index(key), COLOURS)
        told.append({"name": name, "colour": colour, "dash": DASHES[(keys[:place].count(key) + turn) % len(DASHES)]})
    return told


def curves_of(groups: Sequence[Group]) -> dict[str, list[dict[str, Any]]]:
    """By metric the points (step, value) of the runs that have it, by their places in the legend: validation first,
    weighted losses not at all. Of many points some; what is not finite is null."""
    runs = [run for group in groups for run in group.trainings]
    names = {name for run in runs for row in run.rows for name in row if "/weighted/" not in name} - {"step", "epoch"}
    found: dict[str, list[dict[str, Any]]] = {}
    for name in sorted(names, key=lambda name: (not name.startswith("validation/"), name)):
        for number, run in enumerate(runs):
            points = [(row["step"], row[name] if math.isfinite(row[name]) else None) for row in run.rows if name in row]
            thin = points[:: max(1, -(-len(points) // POINTS))]
            if thin:
                whole = thin if thin[-1] == points[-1] else [*thin, points[-1]]
                found.setdefault(name, []).append({"run": number, "points": whole})
    return found


# --- Hybrids ----------------------------------------------------------------------------------------------------


def _hybrids(groups: Sequence[Group]) -> Iterator[dict[str, Any]]:
    """Pictures by step, as data URIs."""
    coded = lambda png: f"data:image/png;base64,{base64.b64encode(png).decode()}"
    shown = [(name, run.pictures) for name, run in _named(groups)]
    shown += [(*_told_of(group, groups, ["hybrids that were used"]), group.pictures) for group in groups]
    for name, pictures in shown:
        frames = [("as last drawn" if step is None else f"step {step}", coded(png)) for step, png in pictures]
        if frames:
            yield {"name": name, "frames": frames}


def _transfers(groups: Sequence[Group]) -> Iterator[dict[str, Any]]:
    for group in groups:
        for name, rates in group.transfers.items():
            of = {HYBRIDIZER: rates, **{title: rates.get(key) for key, title in OTHERS.items()}}
            beside = ""
            if "semantic_parents" in rates:
                beside = (
                    f"; 95 % intervals by {rates['semantic_parents']} semantic parents of {rates['repeats']} partners"
                )
            by_own = ""
            if (share := rates.get("own_semantic_transfer")) is not None:
                by_own = f" The hybridizer's own classifier sees a semantic transfer of {share:.1%}."
            yield {
                "name": " ".join(_told_of(group, groups, [name])) if name or len(groups) > 1 else "",
                "verdict": verdict(rates),
                "rates": Table(
                    ("hybrids of", "semantic transfer, %", "non-semantic preservation, %", "background inheritance, %"),
                    [(title, *(_rate(own, rate) for rate in RATES)) for title, own in of.items() if own],
                    f"By an oracle that sees the class of {rates['oracle_accuracy']:.1%} of the test images{beside}."
                    f"{by_own}",
                ),
                "confusion": "confusion" in rates and confusion(
                    [[math.nan if share is None else share for share in row] for row in rates["confusion"]],
                    rates["classes"],
                    "Rows: class of the semantic parent; columns: class that the oracle sees; in % of the row.",
                ),
            }  # fmt: skip


def _rate(rates: Mapping[str, Any], name: str) -> Told | str:
    """With its interval, or the deviation of several hybridizers."""
    if rates.get(name) is None:
        return "–"
    interval, spread = rates.get(f"{name}_interval"), rates.get(f"{name}_std")
    return Told(
        f"{100 * rates[name]:.1f}", _bounds(*interval) if interval else f"± {100 * spread:.1f}" if spread else ""
    )


# --- Classes ----------------------------------------------------------------------------------------------------


def confusion(
    shares: Sequence[Sequence[float]],
    classes: Sequence[str],
    caption: str,
    counts: Sequence[Sequence[int]] | None = None,
) -> dict[str, Any]:
    """A matrix of shares, nan where there is nothing of a class, with counts behind them if there are; of many classes
    its largest errors."""
    if len(classes) > MATRIX:
        cells = ((share, i, j) for i, row in enumerate(shares) for j, share in enumerate(row) if i != j and share > 0)
        rows = [(classes[i], classes[j], _percent(share)) for share, i, j in sorted(cells, reverse=True)[:20]]
        return {"errors": Table(("class", "taken for", "share, %"), rows, f"The twenty largest errors. {caption}")}
    rows = []
    for i, (name, row) in enumerate(zip(classes, shares, strict=True)):
        cells = []
        for j, share in enumerate(row):
            known = math.isfinite(share)
            count = f": {counts[i][j]} of {sum(counts[i])}" if counts and known else ""
            text = ("" if share < 0.005 else f"{100 * share:.0f}") if known else "–"
            cells.append((share if known else 0.0, text, f"{name} as {classes[j]}{count}"))
        rows.append((name, cells))
    return {"classes": classes, "rows": rows, "caption": caption}


def _classes(groups: Sequence[Group]) -> Iterator[dict[str, Any]]:
    """Accuracy by class and confusions of each variant's first seed that left predictions; data of other classes
    apart."""
    chosen: dict[str, tuple[OneRun, list[list[int]]]] = {}
    for group in groups:
        for run in group.trainings:
            if run.confusion is not None:
                (name,) = _told_of(group, groups, [run.variant])
                chosen.setdefault(name, (run, run.confusion))
    for names in dict.fromkeys(run.classes for run, _ in chosen.values()):
        own = {name: (run, counts) for name, (run, counts) in chosen.items() if run.classes == names}
        rows = []
        for place, name in enumerate(names):
            totals = [sum(counts[place]) for _, counts in own.values()]
            cells = [
                _percent(counts[place][place] / total, total) if total else "–"
                for (_, counts), total in zip(own.values(), totals, strict=True)
            ]
            told = " or ".join(map(str, sorted(set(totals)))) if any(totals) else "none in the test"
            rows.append((name, told, *cells))
        of = {"selected" if "selected_step" in (run.result or {}) else "last" for run, _ in own.values()}
        which = " or ".join(sorted(of))
        caption = f"Accuracy by class, of each variant's first seed and its {which} network; Wilson's 95 % intervals."
        yield {
            "table": Table(("class", "test images", *(f"{name}, %" for name in own)), rows, caption),
            "confusions": [_confusion_of(name, run, counts) for name, (run, counts) in own.items()],
        }


def _confusion_of(name: str, run: OneRun, counts: list[list[int]]) -> dict[str, Any]:
    shares = [[count / sum(row) if any(row) else math.nan for count in row] for row in counts]
    right, total = sum(row[place] for place, row in enumerate(counts)), sum(map(sum, counts))
    seed = "" if run.seed is None else f", seed {run.seed}"
    caption = "Rows: class of the test image; columns: class that is predicted; in % of the row."
    return {"title": f"{name}{seed}: {right} of {total} right"} | confusion(shares, run.classes, caption, counts)


# --- Where it comes from ----------------------------------------------------------------------------------------

SPLIT = {
    "name": "data", "image_size": "side of images, pixels", "number": "classes", "train": "training images",
    "labelled": "of them labelled", "unlabelled": "of them unlabelled", "validation": "of them for validation",
    "test": "test images", "seed": "seed of the split", "hash": "hash of the split", "fingerprint": "fingerprint",
}  # fmt: skip
"""What is told of data and split, and how."""


def _split(groups: Sequence[Group]) -> Table:
    each = []
    for group in groups:
        data, split = (group.setup.get(of, {}) for of in ("data", "split"))
        own = {"name": group.config.get("data"), "hash": group.split_hash}
        own |= data | split | ({"number": len(data["classes"])} if "classes" in data else {})
        each.append(own | {"fingerprint": re.sub(r"(.{16}).+", r"\1…", str(own.get("fingerprint") or "not recorded"))})
    told = lambda value: "not recorded" if value is None else str(value)
    rows = [(title, *(told(own.get(key)) for own in each)) for key, title in SPLIT.items()]
    return Table(_head(groups, "", ""), rows, words=True)


def _environment(groups: Sequence[Group]) -> Table:
    each = [group.setup.get("environment", {}) for group in groups]
    names = dict.fromkeys(name for own in each for name in own)
    rows = [(name, *(own.get(name, "not recorded") for own in each)) for name in names]
    return Table(_head(groups, "", ""), rows or [("not recorded",)], words=True)
