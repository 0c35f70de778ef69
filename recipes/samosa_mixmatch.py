"""SAMOSA with MixMatch, against MixMatch alone (thesis 2.3, A.1.1, algorithm A.2, table 2.1).

accelerate launch recipes/samosa_mixmatch.py
accelerate launch recipes/samosa_mixmatch.py --preset paper-cifar10-250 --download
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hybridgen.configuration import launch
from hybridgen.evaluation.oracle import OracleSettings, judge_of
from hybridgen.hybridizer import Hybridizer
from hybridgen.methods import mixmatch
from hybridgen.methods.samosa import PAPER, SMOKE, alone, networks, with_samosa
from hybridgen.methods.samosa import Settings as SamosaSettings
from hybridgen.settings import Share, merged, settings
from hybridgen.tables.compare import CompareSettings, Comparison
from hybridgen.training.context import Context
from hybridgen.training.plan import Plan
from hybridgen.training.train import Result, train


@settings
class Config(CompareSettings):
    """Train MixMatch with SAMOSA's auto-encoder and hybrids in the place of some MixUp, and alone, and compare.

    Images of 16 pixels or fewer have leaky-wrn-10-1-normalized, unless a network is given (A.1.1).
    """

    out = Path("runs/samosa_mixmatch")
    method: mixmatch.Settings = mixmatch.Settings(clip=1.0)
    samosa: SamosaSettings = SamosaSettings(cycles=1, start=1.0, stop=7.0)
    oracle: OracleSettings = OracleSettings()
    probability: Share = 0.2
    """Of a step in which hybrids take the place of MixUp."""


CIFAR10: dict[str, Any] = dict(
    probability=0.2,
    samosa=PAPER | dict(cycles=1, rate_epochs=950.0, start=100.0, stop=800.0),
)  # fmt: skip

PRESETS: Mapping[str, Mapping[str, Any]] = {"smoke": SMOKE} | {
    name: merged(preset, CIFAR10) for name, preset in mixmatch.PRESETS.items()
}
"""Thesis A.1.1."""


def main(config: Config) -> Result:
    context = Context.of(config)
    judge = judge_of(config.oracle, context.dataset)
    network = context.network(config.method.network, small="leaky-wrn-10-1-normalized")
    method = replace(config.method, network=network)

    # What is trained, from any seed
    def together(seed: int) -> Plan:
        made = networks(method, context, seed, heads=1)
        replacement = mixmatch.Replacement(made.hybridize, config.probability, config.samosa.window)
        base = mixmatch.plan(method, context, seed, classifier=made.watched, replacement=replacement)
        return with_samosa(base, made, config.samosa, seed, drawn=False)

    both = "MixMatch + SAMOSA"
    variants = {
        "MixMatch": lambda seed: alone(mixmatch.plan(method, context, seed), config.samosa),
        both: together,
    }

    # Both from every seed
    comparison = Comparison(config, context, variants)
    for run in comparison.unfinished():
        comparison.add(run, train(variants[run.variant](run.seed), config, run.folder, run.seed))
    hybridizer = Hybridizer.from_pretrained(comparison.folder(both, config.seed) / "hybridizer")
    transfer = comparison.judged(hybridizer.to(context.accelerator.device), judge)
    return comparison.conclude(transfer=transfer)


if __name__ == "__main__":
    launch(main, Config, PRESETS)
