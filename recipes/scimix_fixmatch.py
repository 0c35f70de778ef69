"""Stage 2: train FixMatch with and without SciMix hybrids, from the same seed, split and steps (thesis 2.4.2, A.1.2.3).

accelerate launch recipes/scimix_fixmatch.py
accelerate launch recipes/scimix_fixmatch.py --preset paper-cifar10-100 --hybridizer runs/scimix/hybridizer
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridgen.configuration import launch
from hybridgen.experiments.backbones import FIXMATCH, FIXMATCH_PRESETS, FixMatchSettings
from hybridgen.experiments.comparison import compare
from hybridgen.experiments.settings import HybridSettings


@dataclass(frozen=True)
class Config(HybridSettings, FixMatchSettings):
    """Train FixMatch with and without the hybrids of a frozen SciMix hybridizer, and compare."""

    out: Path = Path("runs/scimix_fixmatch")


def main(config: Config) -> dict[str, Any]:
    return compare(config, FIXMATCH, hybrids_of="scimix")


if __name__ == "__main__":
    launch(main, Config, FIXMATCH_PRESETS)
