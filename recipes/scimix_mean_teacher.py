"""Stage 2: train Mean Teacher with and without SciMix hybrids (thesis 2.4.2, A.1.2.3, table 2.2a).

accelerate launch recipes/scimix_mean_teacher.py
accelerate launch recipes/scimix_mean_teacher.py --preset paper-cifar10-250 --hybridizer runs/scimix/hybridizer
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridgen.configuration import launch
from hybridgen.experiments.backbones import MEAN_TEACHER, MEAN_TEACHER_PRESETS, MeanTeacherSettings
from hybridgen.experiments.comparison import compare
from hybridgen.experiments.settings import HybridSettings


@dataclass(frozen=True)
class Config(HybridSettings, MeanTeacherSettings):
    """Train Mean Teacher with and without the hybrids of a frozen SciMix hybridizer, and compare."""

    out: Path = Path("runs/scimix_mean_teacher")


def main(config: Config) -> dict[str, Any]:
    return compare(config, MEAN_TEACHER, hybrids_of="scimix")


if __name__ == "__main__":
    launch(main, Config, MEAN_TEACHER_PRESETS)
