"""MixViT (Sun 2022, chapter 4): a vision transformer of several inputs, told apart in its last blocks alone, beside the
same one of one input.

accelerate launch recipes/mixvit.py
accelerate launch recipes/mixvit.py --methods single no-attribution mixvit-embedding sum alternating --seeds 3
accelerate launch recipes/mixvit.py --preset paper-cifar100 --data-root data
"""

from functools import partial
from pathlib import Path

from hybridgen.configuration import launch
from hybridgen.evaluation.ensembles import judged_by
from hybridgen.methods import mixvit
from hybridgen.methods.labelled import TrainingSettings
from hybridgen.settings import settings
from hybridgen.tables.compare import OF_ENSEMBLES, CompareSettings, Comparison, FigureColumn, some_of
from hybridgen.training.context import Context
from hybridgen.training.train import Result, train


@settings
class Config(CompareSettings):
    """Train a vision transformer with one input and with several, and set them side by side."""

    out = Path("runs/mixvit")
    labels = None
    evaluate_every = 400
    methods: some_of(mixvit.TITLES) = ("single", "mixvit-embedding", "mixvit-encoding")
    """Which ones: rows of the thesis's tables 4.2, 4.6, 4.1 and A.18."""
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
    of = {name: mixvit.variant(name, config.method) for name in config.methods}
    context = Context.of(config)
    measure = judged_by(config.method.ensemble)
    variants = {
        mixvit.TITLES[name]: partial(mixvit.plan, own, config.training, context, measure=measure)
        for name, own in of.items()
    }

    # Every method from every seed
    comparison = Comparison(config, context, variants)
    for run in comparison.unfinished():
        comparison.add(run, train(variants[run.variant](run.seed), config, run.folder, run.seed))
    return comparison.conclude(columns=(*OF_ENSEMBLES, FigureColumn("MFLOPs", "test_mflops_last")))


if __name__ == "__main__":
    launch(main, Config, PRESETS)
