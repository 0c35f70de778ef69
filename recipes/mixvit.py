"""MixViT (Sun 2022, chapter 4): a vision transformer of several inputs, told apart in its last blocks alone, beside the
same one of one input.

accelerate launch recipes/mixvit.py
accelerate launch recipes/mixvit.py --methods single no-attribution mixvit-embedding sum alternating
accelerate launch recipes/mixvit.py --table 4.4 --preset paper-cifar100 --seeds 3 --out runs/table-4.4
accelerate launch recipes/mixvit.py --preset paper-cifar100 --data-root data
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from hybridgen.configuration import launch
from hybridgen.evaluation.ensembles import judged_by
from hybridgen.methods import mixvit
from hybridgen.methods.labelled import TrainingSettings
from hybridgen.settings import settings
from hybridgen.tables.compare import OF_ENSEMBLES, CompareSettings, Comparison, FigureColumn, check_taken, some_of
from hybridgen.training.context import Context
from hybridgen.training.train import Result, train
from hybridgen.types import InputError

METHODS = ("single", "mixvit-embedding", "mixvit-encoding")


@settings
class Config(CompareSettings):
    """Train a vision transformer with one input and with several, and set them side by side."""

    out = Path("runs/mixvit")
    labels = None
    evaluate_every = 400
    methods: some_of(mixvit.TITLES) = METHODS  # pyrefly: ignore[invalid-annotation]
    """Which ones: rows of the thesis's tables 4.2, 4.6, 4.1 and A.18."""
    table: Literal[tuple(mixvit.TABLES)] | None = None  # pyrefly: ignore[invalid-literal]
    """Instead, all rows of a table of the thesis, or of its figure 4.4, whose picture `hybridgen study runs --over
    training.views` draws."""
    training: TrainingSettings = TrainingSettings(
        network="convit-64-4-2-patch4",
        optimizer="adamw",
        epochs=20,
        rate=2e-3,
        warmup=2,
        decay_at=(17, 19),
        weight_decay=0.05,
    )
    method: mixvit.Settings = mixvit.Settings()


PRESETS = mixvit.PRESETS


def main(config: Config) -> Result:
    if config.table is not None and config.methods != METHODS:
        raise InputError(f"methods: table {config.table} has its own; give one or the other")
    rows = {mixvit.TITLES[name]: mixvit.TableRow(name) for name in config.methods}
    own = {}
    for title, row in (mixvit.TABLES[config.table] if config.table else rows).items():
        method, training = row.of(config.method, config.training)
        own[title] = replace(config, methods=(row.method,), table=None, method=method, training=training)
    check_taken(config, PRESETS, [each.method for each in own.values()])
    context = Context.of(config)
    measure = judged_by(config.method.ensemble)
    variants = {
        title: partial(mixvit.plan, of.method, of.training, context, measure=measure) for title, of in own.items()
    }

    # Every method from every seed
    comparison = Comparison(config, context, variants)
    for run in comparison.unfinished():
        comparison.add(run, train(variants[run.variant](run.seed), own[run.variant], run.folder, run.seed))
    return comparison.conclude(columns=(*OF_ENSEMBLES, FigureColumn("MFLOPs", "test_mflops_last")))


if __name__ == "__main__":
    launch(main, Config, PRESETS)
