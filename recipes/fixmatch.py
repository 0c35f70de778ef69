"""FixMatch (Sohn et al. 2020; thesis 2.2.1.2 and A.1.2.3), with anyone's hybrids or none.

accelerate launch recipes/fixmatch.py
accelerate launch recipes/fixmatch.py --hybridizer runs/samosa_fixmatch/samosa-seed0/hybridizer
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
    """Train FixMatch; given a hybridizer of any method, without and with its hybrids."""

    hybridizer: str = "none"
    out: Path = Path("runs/fixmatch")


def main(config: Config) -> dict[str, Any]:
    return compare(config, FIXMATCH)


if __name__ == "__main__":
    launch(main, Config, FIXMATCH_PRESETS)
