"""SAMOSA with MixMatch, against MixMatch alone (thesis 2.3, A.1.1, algorithm A.2, table 2.1).

accelerate launch recipes/samosa_mixmatch.py
accelerate launch recipes/samosa_mixmatch.py --preset paper-cifar10-250 --download
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridgen.configuration import launch
from hybridgen.experiments.backbones import MIXMATCH, MIXMATCH_PRESETS, MixMatchSettings
from hybridgen.experiments.samosa import SamosaSettings, compare_samosa


@dataclass(frozen=True)
class Config(SamosaSettings, MixMatchSettings):
    """Train MixMatch with SAMOSA's auto-encoder and hybrids in the place of some MixUp, and alone, and compare."""

    probability: float = 0.2
    """Of a step in which hybrids take the place of MixUp."""
    cycles: int = 1
    normalized_resampling: bool = True
    out: Path = Path("runs/samosa_mixmatch")
    hybrids_from: float = 1
    hybrids_until: float = 7
    clip: float | None = 1.0


PRESETS: dict[str, Mapping[str, Any]] = {
    "smoke": dict(epochs=0.5, hybrids_from=0.1, hybrids_until=0.4, evaluate_every=20, oracle_steps=20),
    **{
        f"paper-cifar10-{n}": MIXMATCH_PRESETS[f"paper-cifar10-{n}"]
        | dict(reconstruction_rate=0.2, reconstruction_rate_epochs=950, hybrids_from=100, hybrids_until=800)
        for n in (250, 500, 1000)
    },
}


def main(config: Config) -> dict[str, Any]:
    return compare_samosa(config, MIXMATCH, replacing=config.probability)


if __name__ == "__main__":
    launch(main, Config, PRESETS)
