"""SAMOSA with Mean Teacher, against Mean Teacher alone (thesis 2.3, A.1.1, algorithm A.1, table 2.1).

accelerate launch recipes/samosa_mean_teacher.py
accelerate launch recipes/samosa_mean_teacher.py --preset paper-cifar10-250 --download
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridgen.configuration import launch
from hybridgen.experiments.backbones import MEAN_TEACHER, MeanTeacherSettings
from hybridgen.experiments.samosa import SamosaSettings, compare_samosa


@dataclass(frozen=True)
class Config(SamosaSettings, MeanTeacherSettings):
    """Train Mean Teacher with SAMOSA's auto-encoder and hybrids, and alone, and compare."""

    out: Path = Path("runs/samosa_mean_teacher")
    clip: float | None = 1.0


PAPER: dict[str, Any] = dict(
    validation=0, cycles=3, epochs=300, rate=0.2, rate_epochs=350, reconstruction_rate=0.2,
    reconstruction_rate_epochs=350, labelled_batch=124, unlabelled_batch=388, depth=28, width=2, momentum=0.1,
    ema_decay=0.999, hybrids_from=150, hybrids_until=250, weight_supervised=1.0, weight_consistency=300.0,
    record_every=100, evaluate_every=1280, save_every=1280,
)  # fmt: skip
SVHN: dict[str, Any] = PAPER | dict(
    data="svhn", epochs=150, rate_epochs=200, reconstruction_rate_epochs=200, labelled_batch=30, unlabelled_batch=500,
    hybrids_from=50, hybrids_until=100, weight_regularizer=0.1,
)  # fmt: skip

PRESETS: dict[str, Mapping[str, Any]] = {
    "smoke": dict(epochs=0.5, hybrids_from=0.1, hybrids_until=0.4, evaluate_every=20, oracle_steps=20),
    **{f"paper-cifar10-{n}": PAPER | dict(data="cifar10", labels=n) for n in (250, 500, 1000)},
    **{f"paper-svhn-{n}": SVHN | dict(labels=n) for n in (100, 250)},
    "paper-mnist-m-100": PAPER | dict(labelled_batch=30, unlabelled_batch=500, labels=100, weight_regularizer=0.1),
}


def main(config: Config) -> dict[str, Any]:
    return compare_samosa(config, MEAN_TEACHER)


if __name__ == "__main__":
    launch(main, Config, PRESETS)
