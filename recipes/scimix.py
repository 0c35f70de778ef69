"""Stage 1: train a SciMix hybridizer on a split and save it (thesis 2.4.1 and A.1.2.2).

accelerate launch recipes/scimix.py --preset paper-cifar10-250 --download
"""

from dataclasses import replace
from pathlib import Path

from hybridgen.configuration import launch
from hybridgen.evaluation.grid import sample_grid
from hybridgen.methods import scimix
from hybridgen.settings import settings
from hybridgen.training.context import Context, RunSettings
from hybridgen.training.train import Result, train


@settings
class Config(RunSettings):
    """Train a SciMix hybridizer: two encoders, a classifier that guides them, a StyleGAN2 generator."""

    out = Path("runs/scimix")
    evaluate_every = 500
    save_every = 500
    method: scimix.Settings = scimix.Settings()


PRESETS = scimix.PRESETS


def main(config: Config) -> Result:
    context = Context.of(config)
    plan, hybridizer = scimix.plan(config.method, context, config.seed)

    # A picture at every evaluation; one now, which refuses too few test images before a folder is made
    grid = lambda: sample_grid(hybridizer, context.dataset.test, config.seed)
    grid()
    return train(replace(plan, pictures=lambda: {"grid": grid()}), config, config.out, config.seed)


if __name__ == "__main__":
    launch(main, Config, PRESETS)
