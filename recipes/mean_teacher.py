"""Mean Teacher with two heads (Tarvainen and Valpola 2017; thesis 2.2.1.1 and A.1.2.3), with anyone's hybrids or none.

accelerate launch recipes/mean_teacher.py
accelerate launch recipes/mean_teacher.py --hybridizer runs/samosa_mean_teacher/samosa-seed0/hybridizer
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
    """Train Mean Teacher; given a hybridizer of any method, without and with its hybrids."""

    hybridizer: str = "none"
    out: Path = Path("runs/mean_teacher")


def main(config: Config) -> dict[str, Any]:
    return compare(config, MEAN_TEACHER)


if __name__ == "__main__":
    launch(main, Config, MEAN_TEACHER_PRESETS)
