"""The thesis's ablations over seeds: tables A.14 (generators), A.15 (uses of hybrids), 2.3 (classifiers), 2.6 (mixing).

python recipes/ablation.py --table A.15 --hybridizer bundled
python recipes/ablation.py --table A.14 --preset paper-svhn-60 --common="--download" --out runs/table-a14
python recipes/ablation.py --table 2.3 --generator="--epochs 18" --classifier="--epochs 7 --hybrids.stop 6"
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from accelerate import Accelerator

from hybridgen.configuration import launch
from hybridgen.methods import scimix
from hybridgen.settings import Count, Few, Seed, settings
from hybridgen.tables.jobs import ACCURACIES, Job, arguments_of, run_table, split_words
from hybridgen.training.record import claim
from hybridgen.types import InputError


@settings
class Config:
    """Train every row of one of the thesis's ablations over seeds; --resume continues where it stopped.

    Each run is a recipe's, as a process of its own with a folder and a log in --out. Arguments for them are given in
    one word, as in --classifier="--epochs 6 --network leaky-wrn-16-1".
    """

    table: Literal["A.14", "A.15", "2.3", "2.6"] = "A.14"
    """The thesis's table."""
    data: str = "digits-m"
    """Data set: digits-m, cifar10, ..., the path of a folder, CSV, Parquet or npz file, or hf:NAME (Hugging Face)."""
    labels: Count = 100
    """Labelled images."""
    backbone: Literal["mean-teacher", "fixmatch", "mixmatch"] = "mean-teacher"
    """What trains the classifier."""
    hybridizer: str | None = None
    """Of tables A.15 and 2.6: folder or hub id of a SciMix hybridizer, or bundled. The others train their own."""
    common: str = ""
    """Arguments for all runs."""
    generator: str = ""
    """Arguments for runs of stage 1, recipes/scimix.py."""
    classifier: str = ""
    """Arguments for runs of classifiers, the backbone's recipe."""
    out: Path = Path("runs/ablation")
    """Folder of all runs, table.json, table.txt and table.png."""
    resume: bool = False
    """Continue the ablation in --out; finished runs are left as they are."""
    seed: Seed = 0
    """The first of --seeds."""
    seeds: Few = 3
    """Number of seeds."""


PRESETS: dict[str, Mapping[str, Any]] = {
    "smoke": dict(seeds=1, generator="--preset smoke", classifier="--preset smoke"),
    "paper-svhn-60": dict(
        data="svhn", labels=60, generator="--preset paper-svhn-60", classifier="--preset paper-svhn-60"
    ),
    "paper-cifar10-250": dict(
        data="cifar10", labels=250, generator="--preset paper-cifar10-250", classifier="--preset paper-cifar10-250"
    ),
}
"""The second has the settings of all four tables, the third those of table 2.6 too."""


# --- what the tables are ----------------------------------------------------------------------------------------


class Row(NamedTuple):
    name: str
    hybrids: str
    """none, given (those of --hybridizer), mixup, cutmix, or a name of GENERATORS."""
    classifier: tuple[str, ...] | None = ()
    """Arguments; None where the classifier is the generator's own."""


class Table(NamedTuple):
    title: str
    rows: dict[str, Row]
    """By the names of their folders."""
    note: str
    generators: Literal["none", "one", "each"] = "none"
    """Of each kind: one, for all seeds of the classifiers, or one for each."""


GENERATORS: dict[str, tuple[str, ...]] = {
    name: arguments_of(changes, "method") for name, changes in {"full": {}, **scimix.VARIANTS}.items()
}
"""What each leaves out of stage 1."""

ALONE = {"alone": Row("no hybrids", "none")}

TABLES = {
    "A.14": Table(
        "variants of the generator",
        ALONE | {
            "structural": Row("structural z_c (z_r as style)", "structural"),
            "no-hybridization": Row("no L_hyb", "no-hybridization"),
            "basic": Row("basic L_hyb", "basic"),
            "not-frozen": Row("criteria not frozen", "not-frozen"),
            "full": Row("full", "full"),
        },
        "Each variant was trained once, from the first seed; deviations are those of the classifiers.",
        "one",
    ),
    "A.15": Table(
        "uses of hybrids",
        ALONE | {
            "labelled": Row("labelled", "given", ("--hybrids.use", "labelled")),
            "pseudo-label": Row("pseudo-label", "given", ("--hybrids.use", "pseudo-label")),
            "consistency": Row("consistency", "given", ("--hybrids.use", "consistency")),
            "contradict": Row("contradict", "given", ("--hybrids.use", "contradict")),
        },
        "All uses are of the hybrids of one hybridizer.",
    ),
    "2.3": Table(
        "the generator's own classifier or a new one",
        ALONE | {
            "own": Row("generator's classifier", "full", None),
            "trained-on": Row("generator's classifier, then hybrids", "full", ("--from-hybridizer",)),
            "new": Row("new classifier, hybrids", "full"),
        },
        "Every seed has a generator of its own. Its classifier, E_c and C of stage 1, guides the training and sees no "
        "hybrids;\nit is then trained on with them, or a new one is trained in its place.",
        "each",
    ),
    "2.6": Table(
        "hybrids against MixUp and CutMix",
        ALONE | {
            "mixup": Row("MixUp", "mixup"),
            "cutmix": Row("CutMix", "cutmix"),
            "scimix": Row("SciMix", "given"),
        },
        "As many images are mixed as hybrids are made, in the same epochs.",
    ),
}  # fmt: skip

# --- runs -------------------------------------------------------------------------------------------------------


def jobs_of(config: Config, key: str, seed: int) -> list[Job]:
    """The runs behind a row from one seed; the last one gives its result. InputError for what cannot be split."""
    table = TABLES[config.table]
    row = table.rows[key]
    shared = ("--data", config.data, "--labels", str(config.labels))
    name, jobs, beside = row.hybrids, [], Path(__file__).with_name
    if row.hybrids in GENERATORS:
        own = config.seed if table.generators == "one" else seed
        own_words = ("--oracle", "none", *split_words(config, "generator"))  # the classifier's run has hybrids judged
        given = (*split_words(config, "common"), *own_words, *shared, "--seed", str(own))
        folder = config.out / f"generator-{row.hybrids}-seed{own}"
        jobs.append(Job(folder, beside("scimix.py"), (*given, *GENERATORS[row.hybrids])))
        name = str(folder / "hybridizer")
    elif row.hybrids == "given":
        name = str(config.hybridizer)
    if row.classifier is not None:
        recipe = f"{'' if row.hybrids in ('mixup', 'cutmix') else 'scimix_'}{config.backbone.replace('-', '_')}.py"
        given = (
            *split_words(config, "common"),
            *split_words(config, "classifier"),
            *shared,
            "--seed",
            str(seed),
            "--seeds",
            "1",
        )
        given = (*given, "--hybridizer", name, *(() if row.hybrids == "none" else ("--no-baseline",)))
        jobs.append(Job(config.out / f"{key}-seed{seed}", beside(recipe), (*given, *row.classifier)))
    return jobs


def main(config: Config) -> dict[str, Any]:
    environment = dict(os.environ)
    if int(environment.get("WORLD_SIZE", 1)) > 1:
        raise InputError("ablation: several processes; start it as one, with python")
    table = TABLES[config.table]
    if any(row.hybrids == "given" for row in table.rows.values()) != (config.hybridizer not in (None, "none")):
        needs = "needs one: a folder, a hub id or bundled" if table.generators == "none" else "trains its own"
        raise InputError(f"hybridizer: {config.hybridizer or 'none'}, but table {config.table} {needs}")
    seeds = range(config.seed, config.seed + config.seeds)
    planned = {key: [jobs_of(config, key, seed) for seed in seeds] for key in table.rows}
    claim(config.out, config, Accelerator(cpu=True, mixed_precision="no"), resume=config.resume)

    return run_table(
        config.out,
        f"Table {config.table}: {table.title}",
        f"{config.data}, {config.labels} labels, {config.backbone}",
        {key: row.name for key, row in table.rows.items()},
        planned,
        environment,
        measures={**ACCURACIES, "semantic_transfer": "s_c", "nonsemantic_preservation": "s_r"},
        note=f"s_c and s_r: semantic transfer and non-semantic preservation of the hybrids. {table.note}",
        about={"table": config.table, "data": config.data, "labels": config.labels, "seeds": list(seeds)},
    )


if __name__ == "__main__":
    launch(main, Config, PRESETS)
