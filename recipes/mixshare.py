"""MixShare (Sun 2022, section 3.4), whose subnetworks share features, beside the plain network and Cut-MixMo, whose
subnetworks share none.

accelerate launch recipes/mixshare.py
accelerate launch recipes/mixshare.py --methods cut-mixmo unmixing unmixing-aligned mixshare-partial mixshare --seeds 3
accelerate launch recipes/mixshare.py --preset paper-cifar100-w2 --data-root data
"""

from functools import partial
from pathlib import Path

from hybridgen.configuration import launch
from hybridgen.evaluation.ensembles import judged_by
from hybridgen.methods import mixshare
from hybridgen.methods.labelled import TrainingSettings
from hybridgen.settings import settings
from hybridgen.tables.compare import OF_ENSEMBLES, CompareSettings, Comparison, check_taken, some_of
from hybridgen.training.context import Context
from hybridgen.training.train import Result, train

METHODS = ("plain", "cut-mixmo", "mixshare-partial", "mixshare")


@settings
class Config(CompareSettings):
    """Train a network with several inputs that shares its features among them, and set it beside others."""

    out = Path("runs/mixshare")
    labels = None
    evaluate_every = 200
    methods: some_of(mixshare.TITLES) = METHODS  # pyrefly: ignore[invalid-annotation]
    """Which ones: the plain network, and rows of table 3.6."""
    training: TrainingSettings = TrainingSettings(network="wrn-10-2", epochs=6)
    method: mixshare.Settings = mixshare.Settings(fade=2.0)


PRESETS = mixshare.PRESETS


def main(config: Config) -> Result:
    check_taken(config, PRESETS, [mixshare.variant(name, config.method) for name in config.methods])
    context = Context.of(config)
    plan = partial(mixshare.compared, measure=judged_by(config.method.ensemble))
    variants = {
        mixshare.TITLES[name]: partial(plan, name, config.method, config.training, context) for name in config.methods
    }

    # Every method from every seed
    comparison = Comparison(config, context, variants)
    for run in comparison.unfinished():
        comparison.add(run, train(variants[run.variant](run.seed), config, run.folder, run.seed))
    return comparison.conclude(columns=OF_ENSEMBLES)


if __name__ == "__main__":
    launch(main, Config, PRESETS)
