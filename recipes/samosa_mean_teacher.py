"""SAMOSA with Mean Teacher, against Mean Teacher alone (thesis 2.3, A.1.1, algorithm A.1, table 2.1).

accelerate launch recipes/samosa_mean_teacher.py
accelerate launch recipes/samosa_mean_teacher.py --preset paper-cifar10-250 --download
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybridgen.configuration import launch
from hybridgen.evaluation.oracle import OracleSettings, judge_of
from hybridgen.hybridizer import Hybridizer
from hybridgen.methods import mean_teacher
from hybridgen.methods.samosa import PAPER, SMOKE, alone, networks, with_samosa
from hybridgen.methods.samosa import Settings as SamosaSettings
from hybridgen.settings import merged, settings
from hybridgen.tables.compare import CompareSettings, Comparison
from hybridgen.training.context import Context
from hybridgen.training.plan import Plan
from hybridgen.training.train import Result, train


@settings
class Config(CompareSettings):
    """Train Mean Teacher with SAMOSA's auto-encoder and hybrids, and alone, and compare."""

    out = Path("runs/samosa_mean_teacher")
    method: mean_teacher.Settings = mean_teacher.Settings(clip=1.0)
    samosa: SamosaSettings = SamosaSettings()
    oracle: OracleSettings = OracleSettings()


CIFAR10: dict[str, Any] = merged(mean_teacher.PAPER, dict(
    data="cifar10", evaluate_every=1280, save_every=1280,
    method=dict(rate=0.2, labelled_batch=124, unlabelled_batch=388, clip=1.0),
    samosa=PAPER | dict(cycles=3, rate_epochs=350.0, start=150.0, stop=250.0),
))  # fmt: skip
SVHN: dict[str, Any] = merged(CIFAR10, dict(
    data="svhn", method=dict(epochs=150, rate_epochs=200, labelled_batch=30, unlabelled_batch=500),
    samosa=dict(rate_epochs=200.0, start=50.0, stop=100.0, weight_regularizer=0.1),
))  # fmt: skip
MNIST_M: dict[str, Any] = merged(CIFAR10, dict(
    data="mnist-m:data/photographs", labels=100, validation=10_000,
    method=dict(labelled_batch=30, unlabelled_batch=500), samosa=dict(weight_regularizer=0.1),
))  # fmt: skip
"""50,000 of MNIST's training images; the others are set aside."""

PRESETS: dict[str, Mapping[str, Any]] = {
    "smoke": SMOKE,
    **{f"paper-cifar10-{n}": merged(CIFAR10, dict(labels=n)) for n in (250, 500, 1000)},
    **{f"paper-svhn-{n}": merged(SVHN, dict(labels=n)) for n in (100, 250)},
    "paper-mnist-m-100": MNIST_M,
}
"""Thesis A.1.1."""


def main(config: Config) -> Result:
    context = Context.of(config)
    judge = judge_of(config.oracle, context.dataset)

    # What is trained, from any seed
    def together(seed: int) -> Plan:
        made = networks(config.method, context, seed, heads=2)
        base = mean_teacher.plan(config.method, context, seed, classifier=made.watched)
        return with_samosa(base, made, config.samosa, seed)

    both = "Mean Teacher + SAMOSA"
    variants = {
        "Mean Teacher": lambda seed: alone(mean_teacher.plan(config.method, context, seed), config.samosa),
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
