"""RecursiveMix's ablations over seeds: tables 2, 4a and 4b, figures 4 (α) and 5 (ω).

python recipes/recursivemix_ablation.py --table 2
python recipes/recursivemix_ablation.py --table figure-4 --arguments="--preset paper-cifar100-resnet18 --download"
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator

from hybridgen.configuration import launch
from hybridgen.settings import Few, Seed, settings
from hybridgen.tables.jobs import Job, run_table, split_words
from hybridgen.training.record import claim
from hybridgen.types import InputError


@settings
class Config:
    """Train every row of one of RecursiveMix's ablations over seeds; --resume continues where it stopped.

    Each run is a recipe's, as a process of its own with a folder and a log in --out.
    """

    table: Literal["2", "4a", "4b", "figure-4", "figure-5"] = "2"
    """The paper's table or figure."""
    arguments: str = ""
    """Arguments for all runs, in one word: --arguments="--epochs 6 --width 0.25"."""
    out: Path = Path("runs/recursivemix_ablation")
    """Folder of all runs, table.json, table.txt and table.png."""
    resume: bool = False
    """Continue the ablation in --out; finished runs are left as they are."""
    seed: Seed = 0
    """The first of --seeds."""
    seeds: Few = 3
    """Number of seeds."""


PRESETS: dict[str, Mapping[str, Any]] = {"smoke": dict(seeds=1, arguments="--preset smoke")}

Row = tuple[str, str, tuple[str, ...]]
"""Its name, its recipe, and the recipe's arguments."""


def baseline(method: str, name: str) -> Row:
    return name, "mixing_baselines.py", ("--methods", method)


def recursive(name: str, *arguments: str) -> Row:
    return name, "recursivemix.py", ("--no-baseline", *arguments)


TABLES: dict[str, tuple[str, dict[str, Row]]] = {
    "2": ("Table 2: components", {
        "baseline": baseline("none", "no mixing"),
        "cutmix": baseline("cutmix", "CutMix"),
        "resize": baseline("cutmix-resized", "resize"),
        "history": recursive("resize, history", "--method.weight-consistency", "0"),
        "consistency": recursive("resize, history, consistency"),
    }),
    "4a": ("Table 4a: weights of the two linear layers", {
        "unshared": recursive("unshared"),
        "shared": recursive("shared", "--method.shared-head"),
    }),
    "4b": ("Table 4b: interpolation", {
        "nearest": recursive("nearest"),
        "bilinear": recursive("bilinear", "--method.interpolation", "bilinear"),
    }),
    "figure-4": ("Figure 4: α", {
        "baseline": baseline("none", "no mixing"),
        **{f"alpha-{alpha}": recursive(f"α = {alpha}", "--method.alpha", str(alpha))
           for alpha in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)},
    }),
    "figure-5": ("Figure 5: ω", {
        "baseline": baseline("none", "no mixing"),
        **{f"omega-{omega:g}": recursive(f"ω = {omega:g}", "--method.weight-consistency", str(omega))
           for omega in (0.0, 0.01, 0.05, 0.08, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0)},
    }),
}  # fmt: skip


def jobs_of(config: Config, key: str, seed: int) -> list[Job]:
    """The run behind a row from one seed."""
    _, recipe, arguments = TABLES[config.table][1][key]
    given = (*split_words(config, "arguments"), "--seed", str(seed), "--seeds", "1", *arguments)
    return [Job(config.out / f"{key}-seed{seed}", Path(__file__).with_name(recipe), given)]


def main(config: Config) -> dict[str, Any]:
    environment = dict(os.environ)
    if int(environment.get("WORLD_SIZE", 1)) > 1:
        raise InputError("recursivemix_ablation: several processes; start it as one, with python")
    title, rows = TABLES[config.table]
    seeds = range(config.seed, config.seed + config.seeds)
    planned = {key: [jobs_of(config, key, seed) for seed in seeds] for key in rows}
    claim(config.out, config, Accelerator(cpu=True, mixed_precision="no"), resume=config.resume)
    names = {key: name for key, (name, *_) in rows.items()}
    about = {"table": config.table, "arguments": config.arguments, "seeds": list(seeds)}
    return run_table(config.out, title, config.arguments or "defaults", names, planned, environment, about=about)


if __name__ == "__main__":
    launch(main, Config, PRESETS)
