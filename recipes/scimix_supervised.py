"""Stage 2 on labels alone: supervised training with and without SciMix hybrids (thesis 2.5.4, table 2.7).

accelerate launch recipes/scimix_supervised.py

On images of one's own, IMAGES/train/<class>/ and IMAGES/test/<class>/, with all labels: stage 1, then stage 2. The
same --labels, --validation and --split-seed give both the same split; --labels is the number of training images less
--validation.

accelerate launch recipes/scimix.py --preset paper-cifar10-500 --guide supervised --data folder:data/CUB_200 \
    --image-size 64 --labels 3000 --out runs/scimix_cub
accelerate launch recipes/scimix_supervised.py --preset paper-cub-64 --hybridizer runs/scimix_cub/hybridizer
"""

from pathlib import Path

from hybridgen.configuration import launch
from hybridgen.evaluation.oracle import OracleSettings, judge_of
from hybridgen.methods import supervised
from hybridgen.methods.hybrids import Settings as HybridSettings
from hybridgen.methods.hybrids import load_hybridizer, presets, start_of, title_of, with_hybrids
from hybridgen.settings import settings
from hybridgen.tables.compare import CompareSettings, Comparison
from hybridgen.training.context import Context
from hybridgen.training.plan import Plan
from hybridgen.training.train import Result, train


@settings
class Config(CompareSettings):
    """Train on labelled images with and without the hybrids of a frozen SciMix hybridizer, and compare."""

    out = Path("runs/scimix_supervised")
    method: supervised.Settings = supervised.Settings()
    hybrids: HybridSettings = HybridSettings()
    oracle: OracleSettings = OracleSettings()


PRESETS = presets(supervised.PRESETS, supervised.WINDOW)


def main(config: Config) -> Result:
    # Data, hybrids and their judge
    context = Context.of(config)
    hybridizer = load_hybridizer(config.hybrids, context, method="scimix")
    judge = judge_of(config.oracle, context.dataset)

    # What is trained, from any seed
    alone = lambda seed: supervised.plan(config.method, context, seed)
    variants = {"Supervised": alone} if config.hybrids.baseline else {}
    if hybridizer is not None:

        def together(seed: int) -> Plan:
            start = start_of(config.hybrids, hybridizer, config.method, context)
            base = supervised.plan(config.method, context, seed, classifier=start)
            return with_hybrids(base, hybridizer, config.hybrids)

        variants[f"Supervised + {title_of(hybridizer)}"] = together

    # Every variant from every seed
    comparison = Comparison(config, context, variants)
    for run in comparison.unfinished():
        comparison.add(run, train(variants[run.variant](run.seed), config, run.folder, run.seed))
    transfer = comparison.judged(hybridizer, judge)
    return comparison.conclude(transfer=transfer, allow_other_split=config.hybrids.allow_other_split)


if __name__ == "__main__":
    launch(main, Config, PRESETS)
