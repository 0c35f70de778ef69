"""Figures of finished runs over one of their settings (thesis, figures 3.5 to 3.9 and A.7)."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import stdev
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hybridgen import configuration
from hybridgen.evaluation.studies import Finding
from hybridgen.evaluation.transfer import aligned
from hybridgen.settings import OPEN
from hybridgen.tables.compare import shown, summarize
from hybridgen.tables.left import read_setup
from hybridgen.training.checkpoint import differences
from hybridgen.training.record import UNIDENTIFIED, finished_inside, read_result
from hybridgen.types import InputError

Epoch = Literal["last", "selected"]

RATIOS = ("nll", "nll_calibrated", "brier", "ratio_error", "error_correlation")
"""Figures that are no shares, which are told in percent."""


Found = dict[str, dict[str, dict[Any, list[float]]]]
"""By figure, method and value: one of each seed."""


def finished(folders: Sequence[Path]) -> list[Path]:
    """The folders of single runs: those given, and of one that compares several the runs inside it. InputError for one
    without a finished run, and for a run that is there twice."""
    found: list[Path] = []
    for folder in folders:
        inside = [run for run in finished_inside(folder) if (run / "config.yaml").is_file()]
        if not inside and not (folder / "result.json").is_file():
            raise InputError(f"{folder}: no finished run in it (result.json is missing)")
        found += inside or [folder]
    places = [path.resolve() for path in found]
    if len(set(places)) < len(places):
        twice = next(path for path in found if places.count(path.resolve()) > 1)
        raise InputError(f"--runs: {twice} is there twice")
    return found


def over(
    setting: str, folders: Sequence[Path], figures: Sequence[str] = ("accuracy",), *, epoch: Epoch = "last"
) -> Finding:
    """Means and deviations over seeds of test figures, for each value of a setting and each method, whose names the
    runs' folders have (`cut-mixmo-seed0`; where the value is in it, without: `convit-views-3-seed0`).

    `setting` is a field of the configuration with its group: `method.alpha`, `training.width`, `labels`; hyphens and
    underscores are the same. Where it was left open, its value is what the run chose (setup.json). `figures` are those
    of a run's result.json between `test_` and `_last` or `_selected`.
    What else differs between the runs is told below the table.

    InputError for a setting that a run does not have, a figure that none has, the same method, value and seed twice,
    and for no run.
    """
    runs = finished(folders)
    if not runs:
        raise InputError("--runs: none; finished runs are needed")
    if not figures or len(set(figures)) < len(figures):
        raise InputError(f"--figures: {' '.join(figures) or 'none'}; one or more are needed, each once")
    names = [figure.replace("-", "_") for figure in figures]
    groups = setting.replace("-", "_").split(".")
    configs = {
        run: _filled(configuration.load(run / "config.yaml"), read_setup(run, []).get("chosen", {})) for run in runs
    }
    values = {run: _value(config, groups, run) for run, config in configs.items()}
    results = {run: result for run in runs if (result := read_result(run, ["seed"])) is not None}

    # Each figure by method and value, of all seeds
    found: Found = {name: {} for name in names}
    seeds: dict[tuple[str, Any, int], Path] = {}
    for run in runs:
        value, result = values[run], results[run]
        method = re.sub(r"-seed\d+$", "", run.name).removesuffix(f"-{groups[-1]}-{_told(value)}".replace("_", "-"))
        earlier = seeds.setdefault((method, value, result["seed"]), run)
        if earlier is not run:
            raise InputError(f"{run}: {setting} = {value} and seed {result['seed']} are those of {earlier}, too")
        for name in names:
            if (figure := result.get(f"test_{name}_{epoch}")) is not None:  # of ensembles alone, some of them
                found[name].setdefault(method, {}).setdefault(value, []).append(float(figure))
    for name, of in found.items():
        if not of:
            keys = {key for result in results.values() for key in result if key.endswith(f"_{epoch}")}
            there = sorted(key.removeprefix("test_").removesuffix(f"_{epoch}") for key in keys)
            raise InputError(f"--figures {name}: no run has it; there are {', '.join(there)}")
    at = sorted(set(values.values()), key=lambda value: (isinstance(value, str), value))
    others = _others(configs, ".".join(groups))

    rows = [(f"{setting}", *map(_told, at))]
    for name, methods in found.items():
        scale, digits = (1, 3) if name in RATIOS else (100, 1)
        for method, of in methods.items():
            cells = [shown(summarize(of[v]), scale=scale, digits=digits) if v in of else "–" for v in at]
            rows.append((f"{method}, {name}{'' if name in RATIOS else ', %'}", *cells))
    said = f"Of the test images, {epoch} epoch; {len(runs)} runs, means ± deviations over seeds."
    if others:
        said += f"\nThe runs differ in {', '.join(others)} as well."
    listed = {
        name: {method: [_summary(of.get(v)) for v in at] for method, of in methods.items()}
        for name, methods in found.items()
    }
    return Finding(
        {"study": "runs", "setting": ".".join(groups), "values": [_plain(v) for v in at], "epoch": epoch}
        | {"figures": listed, "runs": [str(run) for run in runs], "differ_in": others},
        f"{aligned(rows)}\n\n{said}\n",
        _figure(setting, at, found),
    )


def _filled(values: Mapping[str, Any], chosen: Mapping[str, Any], group: str = "") -> dict[str, Any]:
    """With what was chosen, by dotted names, of the fields that are left open."""
    return {
        name: _filled(value, chosen, f"{group}{name}.")
        if isinstance(value, Mapping)
        else chosen.get(group + name, value)
        if value in OPEN
        else value
        for name, value in values.items()
    }


def _value(config: Mapping[str, Any], groups: Sequence[str], run: Path) -> Any:
    value: Any = config
    for name in groups:
        if not isinstance(value, Mapping) or name not in value:
            there = ", ".join(value) if isinstance(value, Mapping) else "none"
            raise InputError(f"--over {'.'.join(groups)}: {run / 'config.yaml'} has no {name!r} there; it has {there}")
        value = value[name]
    if isinstance(value, Mapping):
        raise InputError(f"--over {'.'.join(groups)}: is a group of settings; one of {', '.join(value)} is needed")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return float(value)


def _others(configs: Mapping[Path, Mapping[str, Any]], setting: str) -> list[str]:
    """Names of other settings in which the runs differ, those apart that say nothing about what was trained."""
    first, *rest = (
        {name: value for name, value in config.items() if name not in (*UNIDENTIFIED, "seed", "seeds", "methods")}
        for config in configs.values()
    )
    differing = {field for config in rest for field, _, _ in differences(first, config)}
    return sorted(differing - {setting})


def _summary(values: Sequence[float] | None) -> dict[str, Any] | None:
    if values is None:
        return None
    summary = {name: number if math.isfinite(number) else None for name, number in summarize(list(values)).items()}
    return summary | {"seeds": len(values)}


def _plain(value: Any) -> Any:
    """In JSON's types."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _told(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else value


def _figure(
    setting: str, at: Sequence[Any], found: Mapping[str, Mapping[str, Mapping[Any, Sequence[float]]]]
) -> Figure:
    figure = Figure(figsize=(4.6 * len(found) + 0.4, 3.8), layout="constrained")
    numbers = all(isinstance(value, float) and math.isfinite(value) for value in at)
    for axis, (name, methods) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        for method, of in methods.items():
            there = [value for value in at if value in of]
            _draw(axis, there if numbers else [at.index(value) for value in there], [of[v] for v in there], method)
        if not numbers or len(at) < 9:
            axis.set_xticks(at if numbers else range(len(at)), map(_told, at))
        if name not in RATIOS:
            axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
        axis.set_title(name.replace("_", " "), fontsize=10)
        axis.set_xlabel(setting, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, frameon=False)
    return figure


def _draw(axis: Axes, places: Sequence[float], of: Sequence[Sequence[float]], label: str) -> None:
    means = [sum(values) / len(values) for values in of]
    spreads = [stdev(values) if len(values) > 1 else 0.0 for values in of]
    axis.errorbar(places, means, spreads, label=label, marker="o", markersize=3, linewidth=1.4, capsize=2)
