"""MixMatch (Berthelot et al. 2019; thesis A.1.1), with anyone's hybrids or none.

accelerate launch recipes/mixmatch.py
accelerate launch recipes/mixmatch.py --hybridizer runs/samosa_mixmatch/samosa-seed0/hybridizer
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
    """Train MixMatch; given a hybridizer of any method, without and with its hybrids."""

    hybridizer: str = "none"
    out: Path = Path("runs/mixmatch")
    hybrids_from: float = 1
    hybrids_until: float = 7


def main(config: Config) -> dict[str, Any]:
    return compare(config, MIXMATCH)


if __name__ == "__main__":
    launch(main, Config, MIXMATCH_PRESETS)
