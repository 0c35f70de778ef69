"""Stage 1: train a SciMix hybridizer on a split and save it (thesis 2.4.1 and A.1.2.2).

accelerate launch recipes/scimix.py --preset paper-cifar10-250 --download
accelerate launch recipes/scimix.py --classifier runs/fixmatch/fixmatch-seed0
"""

from dataclasses import replace
from pathlib import Path

from hybridgen.configuration import launch
from hybridgen.evaluation.grid import sample_grid
from hybridgen.evaluation.oracle import OracleSettings, judge_of
from hybridgen.methods import scimix
from hybridgen.methods.classifiers import finished_classifier
from hybridgen.settings import settings
from hybridgen.tables.ending import conclude_hybridizer
from hybridgen.training.context import Context, RunSettings
from hybridgen.training.train import Result, train


@settings
class Config(RunSettings):
    """Train a SciMix hybridizer: two encoders, a classifier that guides them, a StyleGAN2 generator."""

    out = Path("runs/scimix")
    evaluate_every = 500
    save_every = 500
    classifier: Path | None = None
    """Folder of a finished run of a classifier on the same split (FixMatch, Mean Teacher or MixMatch, without or with
    hybrids), from which E_c and C start; --method.classifier-rate tells how far they go on learning."""
    method: scimix.Settings = scimix.Settings()
    oracle: OracleSettings = OracleSettings()


PRESETS = scimix.PRESETS


def main(config: Config) -> Result:
    context, guide = Context.of(config), None
    judge = judge_of(config.oracle, context.dataset)
    if config.classifier is not None:
        guide = finished_classifier(config.classifier, context.network(config.method.network), context)
    plan, hybridizer = scimix.plan(config.method, context, config.seed, classifier=guide)

    # A picture at every evaluation; one now, which refuses too few test images before a folder is made
    grid = lambda: sample_grid(hybridizer, context.dataset.test, config.seed)
    grid()
    result = train(replace(plan, pictures=lambda: {"grid": grid()}), config, config.out, config.seed)
    return conclude_hybridizer(config, plan, hybridizer, judge, result)


if __name__ == "__main__":
    launch(main, Config, PRESETS)
