"""The methods that mix two images of a batch, AugMix, and RecursiveMix, on one network, schedule and seed.

accelerate launch recipes/mixing_baselines.py
accelerate launch recipes/mixing_baselines.py --methods cutmix resizemix recursivemix --seeds 3
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridgen.configuration import launch
from hybridgen.experiments.mixing import TITLES, Alphas, method_of
from hybridgen.experiments.supervised import CIFAR, SupervisedSettings, compare_methods
from hybridgen.types import InputError


@dataclass(frozen=True)
class Config(SupervisedSettings):
    """Train one network by many methods and set them side by side."""

    out: Path = Path("runs/mixing_baselines")
    methods: tuple[str, ...] = tuple(TITLES)
    """Which ones; all unless given."""
    alphas: Alphas = "own"
    """Parameters of the beta distributions: of each method's own paper, or those with which AutoMix's authors compare
    them on CIFAR (AutoMix, A.1)."""


def main(config: Config) -> dict[str, Any]:
    if not config.methods or len(set(config.methods)) < len(config.methods):
        raise InputError(f"methods: {' '.join(config.methods) or 'none'}; one or more are needed, each once")
    methods = {name: method_of(config, name, alphas=config.alphas) for name in config.methods}
    return compare_methods(config, {TITLES[name]: method for name, method in methods.items()})


AUTOMIX = CIFAR | dict(batch=100, warmup=0, weight_decay=1e-4, alphas="automix", evaluate_every=500, save_every=500)
"""AutoMix, A.1 to A.2, table 14 at 200 epochs; its text gives neither batch nor rate: those of its code."""

PRESETS = {
    "smoke": dict(epochs=0.5, evaluate_every=20),
    **{f"paper-{data}": CIFAR | dict(data=data) for data in ("cifar10", "cifar100")},
    **{f"automix-{data}": AUTOMIX | dict(data=data) for data in ("cifar10", "cifar100")},
}

if __name__ == "__main__":
    launch(main, Config, PRESETS)
