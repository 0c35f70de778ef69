"""Stage 2 on labels alone: supervised training with and without SciMix hybrids (thesis 2.5.4, table 2.7).

accelerate launch recipes/scimix_supervised.py

On images of one's own, IMAGES/train/<class>/ and IMAGES/test/<class>/, with all labels: stage 1, then stage 2. The
same --labels, --validation and --split-seed give both the same split; --labels is the number of training images less
--validation.

accelerate launch recipes/scimix.py --preset paper-cifar10-500 --guide supervised --data folder:data/CUB_200 \
    --image-size 64 --labels 3000 --out runs/scimix_cub
accelerate launch recipes/scimix_supervised.py --preset paper-cub-64 --hybridizer runs/scimix_cub/hybridizer
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridgen.configuration import launch
from hybridgen.experiments.backbones import SUPERVISED, SUPERVISED_PRESETS
from hybridgen.experiments.comparison import compare
from hybridgen.experiments.settings import ClassifierSettings, HybridSettings


@dataclass(frozen=True)
class Config(HybridSettings, ClassifierSettings):
    """Train on labelled images with and without the hybrids of a frozen SciMix hybridizer, and compare."""

    out: Path = Path("runs/scimix_supervised")


def main(config: Config) -> dict[str, Any]:
    return compare(config, SUPERVISED, hybrids_of="scimix")


if __name__ == "__main__":
    launch(main, Config, SUPERVISED_PRESETS)
