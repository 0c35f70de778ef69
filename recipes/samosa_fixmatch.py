"""SAMOSA with FixMatch, against FixMatch alone: its third backbone (Pattern Recognition 2024), by algorithm A.1.

accelerate launch recipes/samosa_fixmatch.py
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybridgen.configuration import launch
from hybridgen.evaluation.oracle import OracleSettings, judge_of
from hybridgen.hybridizer import Hybridizer
from hybridgen.methods import fixmatch
from hybridgen.methods.samosa import PAPER, SMOKE, alone, networks, with_samosa
from hybridgen.methods.samosa import Settings as SamosaSettings
from hybridgen.settings import merged, settings
from hybridgen.tables.compare import CompareSettings, Comparison
from hybridgen.training.context import Context
from hybridgen.training.plan import Plan
from hybridgen.training.train import Result, train
from hybridgen.types import InputError


@settings
class Config(CompareSettings):
    """Train FixMatch with SAMOSA's auto-encoder and hybrids, and alone, and compare."""

    out = Path("runs/samosa_fixmatch")
    method: fixmatch.Settings = fixmatch.Settings(clip=1.0)
    samosa: SamosaSettings = SamosaSettings()
    oracle: OracleSettings = OracleSettings()


CIFAR10: dict[str, Any] = merged(
    fixmatch.PAPER,
    dict(
        data="cifar10", method=dict(rate=0.015, clip=1.0),
        samosa=PAPER | dict(cycles=3, rate_epochs=1050.0, start=500.0, stop=800.0),
    ),
)  # fmt: skip
SVHN: dict[str, Any] = merged(CIFAR10, dict(data="svhn", method=dict(rate=0.03), samosa=dict(weight_regularizer=0.1)))

PRESETS: dict[str, Mapping[str, Any]] = {
    "smoke": SMOKE,
    **{f"paper-cifar10-{n}": merged(CIFAR10, dict(labels=n)) for n in (100, 250, 500)},
    **{f"paper-svhn-{n}": merged(SVHN, dict(labels=n)) for n in (60, 100)},
}
"""The thesis has none: these are its FixMatch's (A.1.2.3) with SAMOSA's weights (A.1.1)."""


def main(config: Config) -> Result:
    if config.method.targets != "joint":
        raise InputError(
            f"method.targets: {config.method.targets!r}, but SAMOSA needs 'joint': it reconstructs what the classifier "
            "learns from, of the unlabelled images the weak views"
        )
    if config.method.strong_labelled:
        raise InputError("method.strong_labelled: SAMOSA reconstructs weak views, and the classifier would see others")
    context = Context.of(config)
    judge = judge_of(config.oracle, context.dataset)

    # What is trained, from any seed
    def together(seed: int) -> Plan:
        made = networks(config.method, context, seed, heads=1)
        base = fixmatch.plan(config.method, context, seed, classifier=made.watched)
        return with_samosa(base, made, config.samosa, seed, clean_only=True)

    both = "FixMatch + SAMOSA"
    variants = {
        "FixMatch": lambda seed: alone(fixmatch.plan(config.method, context, seed), config.samosa),
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
