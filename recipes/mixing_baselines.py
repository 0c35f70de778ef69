"""The methods that mix two images of a batch, AugMix, and RecursiveMix, on one network, schedule and seed.

accelerate launch recipes/mixing_baselines.py
accelerate launch recipes/mixing_baselines.py --methods cutmix resizemix recursivemix --seeds 3
"""

from functools import partial
from pathlib import Path

from hybridgen.configuration import launch
from hybridgen.methods import mixing
from hybridgen.methods.labelled import TrainingSettings
from hybridgen.settings import settings
from hybridgen.tables.compare import CompareSettings, Comparison, some_of
from hybridgen.training.context import Context
from hybridgen.training.train import Result, train


@settings
class Config(CompareSettings):
    """Train one network by many methods and set them side by side."""

    out = Path("runs/mixing_baselines")
    labels = None
    evaluate_every = 200
    methods: some_of(mixing.TITLES) = tuple(mixing.TITLES)  # pyrefly: ignore[invalid-annotation]
    """Which ones; all unless given."""
    alphas: mixing.Alphas = "own"
    """How they mix: as each method's own paper, or as AutoMix's authors compare them on CIFAR (AutoMix, A.1)."""
    training: TrainingSettings = TrainingSettings()


PRESETS = mixing.PRESETS


def main(config: Config) -> Result:
    context = Context.of(config)
    variants = {
        mixing.TITLES[name]: partial(mixing.plan, name, config.training, context, alphas=config.alphas)
        for name in config.methods
    }

    # Every method from every seed
    comparison = Comparison(config, context, variants)
    for run in comparison.unfinished():
        comparison.add(run, train(variants[run.variant](run.seed), config, run.folder, run.seed))
    return comparison.conclude()


if __name__ == "__main__":
    launch(main, Config, PRESETS)
