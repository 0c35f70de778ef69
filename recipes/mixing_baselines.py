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
from hybridgen.tables.compare import CompareSettings, Comparison
from hybridgen.training.context import Context
from hybridgen.training.train import Result, train
from hybridgen.types import InputError


@settings
class Config(CompareSettings):
    """Train one network by many methods and set them side by side."""

    out = Path("runs/mixing_baselines")
    labels = None
    evaluate_every = 200
    methods: tuple[str, ...] = tuple(mixing.TITLES)
    """Which ones; all unless given."""
    alphas: mixing.Alphas = "own"
    """How they mix: as each method's own paper, or as AutoMix's authors compare them on CIFAR (AutoMix, A.1)."""
    training: TrainingSettings = TrainingSettings()


PRESETS = mixing.PRESETS


def main(config: Config) -> Result:
    names = config.methods
    if not names or len(set(names)) < len(names):
        raise InputError(f"methods: {' '.join(names) or 'none'}; one or more are needed, each once")
    if unknown := [name for name in names if name not in mixing.TITLES]:
        raise InputError(f"methods: {unknown[0]!r} is unknown; there are {', '.join(mixing.TITLES)}")
    context = Context.of(config)
    variants = {
        mixing.TITLES[name]: partial(mixing.plan, name, config.training, context, alphas=config.alphas)
        for name in names
    }

    # Every method from every seed
    comparison = Comparison(config, context, variants)
    for run in comparison.unfinished():
        comparison.add(run, train(variants[run.variant](run.seed), config, run.folder, run.seed))
    return comparison.conclude()


if __name__ == "__main__":
    launch(main, Config, PRESETS)
