"""RecursiveMix (Yang et al. 2022) beside training without mixing.

accelerate launch recipes/recursivemix.py
accelerate launch recipes/recursivemix.py --preset paper-cifar100-resnet18 --data-root data
"""

from pathlib import Path

from hybridgen.configuration import launch
from hybridgen.methods import mixing, recursivemix
from hybridgen.methods.labelled import TrainingSettings
from hybridgen.settings import settings
from hybridgen.tables.compare import CompareSettings, Comparison
from hybridgen.training.context import Context
from hybridgen.training.train import Result, train


@settings
class Config(CompareSettings):
    """Train on images mixed with those of the step before, and without mixing, and compare."""

    out = Path("runs/recursivemix")
    labels = None
    evaluate_every = 200
    baseline: bool = True
    """Train without mixing too."""
    training: TrainingSettings = TrainingSettings()
    method: recursivemix.Settings = recursivemix.Settings()


PRESETS = recursivemix.PRESETS


def main(config: Config) -> Result:
    context = Context.of(config)
    variants = {"No mixing": lambda seed: mixing.plan("none", config.training, context, seed)}
    if not config.baseline:
        variants = {}
    variants["RecursiveMix"] = lambda seed: recursivemix.plan(config.method, config.training, context, seed)

    # Every variant from every seed
    comparison = Comparison(config, context, variants)
    for run in comparison.unfinished():
        comparison.add(run, train(variants[run.variant](run.seed), config, run.folder, run.seed))
    return comparison.conclude()


if __name__ == "__main__":
    launch(main, Config, PRESETS)
