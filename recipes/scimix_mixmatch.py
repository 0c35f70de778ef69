"""Stage 2: train MixMatch with and without SciMix hybrids (thesis 2.4.2).

accelerate launch recipes/scimix_mixmatch.py
accelerate launch recipes/scimix_mixmatch.py --preset paper-cifar10-250 --hybridizer runs/scimix/hybridizer
"""

from pathlib import Path

from hybridgen.configuration import launch
from hybridgen.evaluation.oracle import OracleSettings, judge_of
from hybridgen.methods import mixmatch
from hybridgen.methods.hybrids import Settings as HybridSettings
from hybridgen.methods.hybrids import load_hybridizer, presets, start_of, title_of, with_hybrids
from hybridgen.settings import merged, settings
from hybridgen.tables.compare import CompareSettings, Comparison
from hybridgen.training.context import Context
from hybridgen.training.plan import Plan
from hybridgen.training.train import Result, train


@settings
class Config(CompareSettings):
    """Train MixMatch with and without the hybrids of a frozen SciMix hybridizer, and compare."""

    out = Path("runs/scimix_mixmatch")
    method: mixmatch.Settings = mixmatch.Settings()
    hybrids: HybridSettings = HybridSettings()
    oracle: OracleSettings = OracleSettings()


PRESETS = presets(
    {name: merged(preset, dict(method=dict(network="leaky-wrn-28-2"))) for name, preset in mixmatch.PRESETS.items()},
    mixmatch.WINDOW,
)
"""On the network of the hybridizer's own classifier (A.1.2.4), which has no further batch-norm."""


def main(config: Config) -> Result:
    # Data, hybrids and their judge
    context = Context.of(config)
    hybridizer = load_hybridizer(config.hybrids, context, method="scimix")
    judge = judge_of(config.oracle, context.dataset)

    # What is trained, from any seed
    alone = lambda seed: mixmatch.plan(config.method, context, seed)
    variants = {"MixMatch": alone} if config.hybrids.baseline else {}
    if hybridizer is not None:

        def together(seed: int) -> Plan:
            start = start_of(config.hybrids, hybridizer, config.method, context)
            base = mixmatch.plan(config.method, context, seed, classifier=start)
            return with_hybrids(base, hybridizer, config.hybrids, window=mixmatch.SMALL_WINDOW)

        variants[f"MixMatch + {title_of(hybridizer)}"] = together

    # Every variant from every seed
    comparison = Comparison(config, context, variants)
    for run in comparison.unfinished():
        comparison.add(run, train(variants[run.variant](run.seed), config, run.folder, run.seed))
    transfer = comparison.judged(hybridizer, judge)
    return comparison.conclude(transfer=transfer, allow_other_split=config.hybrids.allow_other_split)


if __name__ == "__main__":
    launch(main, Config, PRESETS)
