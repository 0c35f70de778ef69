"""Stage 2: train MixMatch with and without SciMix hybrids (thesis 2.4.2).

accelerate launch recipes/scimix_mixmatch.py
accelerate launch recipes/scimix_mixmatch.py --preset paper-cifar10-250 --hybridizer runs/scimix/hybridizer
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridgen.configuration import launch
from hybridgen.experiments.backbones import MIXMATCH, MIXMATCH_PRESETS, MixMatchSettings
from hybridgen.experiments.comparison import compare
from hybridgen.experiments.settings import HybridSettings


@dataclass(frozen=True)
class Config(HybridSettings, MixMatchSettings):
    """Train MixMatch with and without the hybrids of a frozen SciMix hybridizer, and compare."""

    out: Path = Path("runs/scimix_mixmatch")
    hybrids_from: float = 1
    hybrids_until: float = 7


def main(config: Config) -> dict[str, Any]:
    return compare(config, MIXMATCH, hybrids_of="scimix")


if __name__ == "__main__":
    launch(main, Config, MIXMATCH_PRESETS)
