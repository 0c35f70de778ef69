"""Train FixMatch with and without SciMix hybrids, from the same seed, split and steps (thesis 2.4.2, A.1.2.3); and
before, where there is no hybridizer of these images, train one.

accelerate launch recipes/scimix_fixmatch.py
accelerate launch recipes/scimix_fixmatch.py --data flowers --labels 100
accelerate launch recipes/scimix_fixmatch.py --preset paper-cifar10-100 --hybridizer runs/scimix/hybridizer
"""

from pathlib import Path

from hybridgen.configuration import launch
from hybridgen.evaluation.oracle import judge_of
from hybridgen.methods import fixmatch, scimix
from hybridgen.methods.hybrids import is_trained, load_hybridizer, presets, start_of, title_of, with_hybrids
from hybridgen.settings import merged, settings
from hybridgen.tables.compare import Comparison
from hybridgen.tables.pipeline import PipelineSettings, check_unused, train_in_turn
from hybridgen.training.context import Context
from hybridgen.training.plan import Plan
from hybridgen.training.train import Result, train


@settings
class Config(PipelineSettings):
    """Train FixMatch with and without the hybrids of a SciMix hybridizer, which is trained too if none is there."""

    out = Path("runs/scimix_fixmatch")


PRESETS = {
    name: merged(preset, dict(generator=scimix.PRESETS[name]["method"]))
    for name, preset in presets(fixmatch.PRESETS, fixmatch.WINDOW).items()
}


def main(config: Config) -> Result:
    # Data, hybrids and their judge
    context = Context.of(config)
    if is_trained(config.hybrids, context, rounds=config.rounds):
        return train_in_turn(config, context)
    check_unused(config.generator, PRESETS)
    hybridizer = load_hybridizer(config.hybrids, context, method="scimix")
    judge = judge_of(config.oracle, context.dataset)

    # What is trained, from any seed
    alone = lambda seed: fixmatch.plan(config.method, context, seed)
    variants = {"FixMatch": alone} if config.hybrids.baseline else {}
    if hybridizer is not None:

        def together(seed: int) -> Plan:
            start = start_of(config.hybrids, hybridizer, config.method, context)
            base = fixmatch.plan(config.method, context, seed, classifier=start)
            return with_hybrids(base, hybridizer, config.hybrids)

        variants[f"FixMatch + {title_of(hybridizer)}"] = together

    # Every variant from every seed
    comparison = Comparison(config, context, variants)
    for run in comparison.unfinished():
        comparison.add(run, train(variants[run.variant](run.seed), config, run.folder, run.seed))
    transfer = comparison.judged(hybridizer, judge)
    return comparison.conclude(transfer=transfer, allow_other_split=config.hybrids.allow_other_split)


if __name__ == "__main__":
    launch(main, Config, PRESETS)
