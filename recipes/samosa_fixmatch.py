"""SAMOSA with FixMatch, against FixMatch alone: its third backbone (Pattern Recognition 2024), by algorithm A.1.

accelerate launch recipes/samosa_fixmatch.py
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridgen.configuration import launch
from hybridgen.experiments.backbones import FIXMATCH, FixMatchSettings
from hybridgen.experiments.samosa import SamosaSettings, compare_samosa


@dataclass(frozen=True)
class Config(SamosaSettings, FixMatchSettings):
    """Train FixMatch with SAMOSA's auto-encoder and hybrids, and alone, and compare."""

    out: Path = Path("runs/samosa_fixmatch")
    clip: float | None = 1.0


# The thesis has no settings of SAMOSA with FixMatch: these are its FixMatch's (A.1.2.3) with SAMOSA's weights (A.1.1)
PAPER: dict[str, Any] = dict(
    validation=0, cycles=3, epochs=1000, rate_epochs=1050, reconstruction_rate=0.2, reconstruction_rate_epochs=1050,
    unlabelled_batch=224, threshold=0.95, ema_decay=0.999, depth=28, width=2, momentum=0.001, hybrids_from=500,
    hybrids_until=800, record_every=100, evaluate_every=2230, save_every=2230,
)  # fmt: skip

PRESETS: dict[str, Mapping[str, Any]] = {
    "smoke": dict(epochs=0.5, hybrids_from=0.1, hybrids_until=0.4, evaluate_every=20, oracle_steps=20),
    **{f"paper-cifar10-{n}": PAPER | dict(data="cifar10", rate=0.015, labels=n) for n in (100, 250, 500)},
    **{f"paper-svhn-{n}": PAPER | dict(data="svhn", rate=0.03, weight_regularizer=0.1, labels=n) for n in (60, 100)},
}


def main(config: Config) -> dict[str, Any]:
    return compare_samosa(config, FIXMATCH)


if __name__ == "__main__":
    launch(main, Config, PRESETS)
