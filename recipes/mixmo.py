"""MIMO (Havasi et al. 2021) and MixMo (Ramé et al. 2021), whose one network answers for several images at once and is
an ensemble in one forward, beside the plain network.

accelerate launch recipes/mixmo.py
accelerate launch recipes/mixmo.py --methods plain cut-mixmo --method.mask cowmix --seeds 3
accelerate launch recipes/mixmo.py --labels 100 --hybridizer bundled --method.cutmix 1
accelerate launch recipes/mixmo.py --preset paper-cifar100 --data-root data
"""

from functools import partial
from pathlib import Path

from hybridgen.configuration import launch
from hybridgen.evaluation.ensembles import judged_by
from hybridgen.methods import mixmo
from hybridgen.methods.hybrids import InClass, with_hybrid_inputs
from hybridgen.methods.labelled import TrainingSettings
from hybridgen.settings import settings
from hybridgen.tables.compare import OF_ENSEMBLES, CompareSettings, Comparison, check_taken, some_of
from hybridgen.training.context import Context
from hybridgen.training.plan import Plan
from hybridgen.training.train import Result, train


@settings
class Config(CompareSettings):
    """Train one network with one input and with several, and set them side by side."""

    out = Path("runs/mixmo")
    labels = None
    evaluate_every = 200
    methods: some_of(mixmo.TITLES) = tuple(mixmo.TITLES)  # pyrefly: ignore[invalid-annotation]
    """Which ones; all unless given."""
    training: TrainingSettings = TrainingSettings(network="wrn-10-2", epochs=6)
    method: mixmo.Settings = mixmo.Settings()
    hybrids: InClass = InClass()


PRESETS = mixmo.PRESETS


def main(config: Config) -> Result:
    of = {name: mixmo.variant(name, config.method) for name in config.methods}
    check_taken(config, PRESETS, of.values())
    context = Context.of(config)
    measure = judged_by(config.method.ensemble)

    def plan(own: mixmo.Settings, seed: int) -> Plan:
        made = mixmo.plan(own, config.training, context, seed, measure=measure)
        return with_hybrid_inputs(made, config.hybrids, context, crop=config.training.crop)

    variants = {mixmo.TITLES[name]: partial(plan, own) for name, own in of.items()}

    # Every method from every seed
    comparison = Comparison(config, context, variants)
    for run in comparison.unfinished():
        comparison.add(run, train(variants[run.variant](run.seed), config, run.folder, run.seed))
    return comparison.conclude(columns=OF_ENSEMBLES)


if __name__ == "__main__":
    launch(main, Config, PRESETS)
