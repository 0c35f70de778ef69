"""MixMatch (Berthelot et al. 2019; thesis A.1.1), with anyone's hybrids or none.

accelerate launch recipes/mixmatch.py
accelerate launch recipes/mixmatch.py --hybridizer runs/samosa_mixmatch/samosa-seed0/hybridizer
"""

from pathlib import Path

from hybridgen.configuration import launch
from hybridgen.evaluation.oracle import OracleSettings, judge_of
from hybridgen.methods import mixmatch
from hybridgen.methods.hybrids import Settings as HybridSettings
from hybridgen.methods.hybrids import load_hybridizer, presets, start_of, title_of, with_hybrids
from hybridgen.settings import settings
from hybridgen.tables.compare import CompareSettings, Comparison
from hybridgen.training.context import Context
from hybridgen.training.plan import Plan
from hybridgen.training.train import Result, train


@settings
class Config(CompareSettings):
    """Train MixMatch; given a hybridizer of any method, without and with its hybrids."""

    out = Path("runs/mixmatch")
    method: mixmatch.Settings = mixmatch.Settings()
    hybrids: HybridSettings = HybridSettings(hybridizer="none")
    oracle: OracleSettings = OracleSettings()


PRESETS = presets(mixmatch.PRESETS, mixmatch.WINDOW)


def main(config: Config) -> Result:
    # Data, hybrids and their judge
    context = Context.of(config)
    hybridizer = load_hybridizer(config.hybrids, context)
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
