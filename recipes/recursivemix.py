"""RecursiveMix (Yang et al. 2022) beside training without mixing.

accelerate launch recipes/recursivemix.py
accelerate launch recipes/recursivemix.py --preset paper-cifar100-resnet18 --data-root data
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridgen.configuration import launch
from hybridgen.experiments.mixing import RecursiveMixSettings, mixed, recursivemix
from hybridgen.experiments.supervised import CIFAR, SupervisedSettings, compare_methods


@dataclass(frozen=True)
class Config(RecursiveMixSettings, SupervisedSettings):
    """Train on images mixed with those of the step before, and without mixing, and compare."""

    out: Path = Path("runs/recursivemix")
    baseline: bool = True
    """Train without mixing too."""


def main(config: Config) -> dict[str, Any]:
    methods = {"No mixing": mixed(config)} if config.baseline else {}
    return compare_methods(config, methods | {"RecursiveMix": recursivemix(config, config)})


CUTMIX = CIFAR | dict(
    epochs=300, batch=64, rate=0.25, warmup=0, decay_at=(150, 225), weight_decay=1e-4, network="pyramidnet200-240"
)
"""300 epochs: the hyper-parameters of CutMix's code."""

IMAGENET = dict(
    data="folder:data/imagenet", image_size=256, crop=224, validation=0, width=1, epochs=300, batch=512, warmup=5,
    weight_consistency=0.5, workers=8, record_every=100, evaluate_every=2502, save_every=2502,
)  # fmt: skip
"""Section 4.2; eight GPUs with 64 images each."""

PRESETS = {
    "smoke": dict(epochs=1, evaluate_every=20),
    **{
        f"paper-{data}-{network}": CIFAR | dict(data=data, network=f"cifar-{network}")
        for data in ("cifar10", "cifar100")
        for network in ("resnet18", "resnet34", "densenet121", "densenet161")
    },
    "paper-cifar100-pyramidnet164": CIFAR | dict(data="cifar100", network="pyramidnet164-270"),
    "paper-cifar10-pyramidnet200": CUTMIX | dict(data="cifar10"),
    "paper-cifar100-pyramidnet200": CUTMIX | dict(data="cifar100"),
    "paper-imagenet-resnet50": IMAGENET | dict(network="resnet50", rate=0.2, weight_decay=1e-4),
    "paper-imagenet-pvtv2": IMAGENET | dict(
        network="pvt_v2_b1", optimizer="adamw", rate=5e-4, weight_decay=0.05, label_smoothing=0.1, erasing=0.25
    ),
}  # fmt: skip

if __name__ == "__main__":
    launch(main, Config, PRESETS)
