"""timm's ResNets and DenseNets in their form for CIFAR: a stem that keeps the size of the images.

Source: RecursiveMix (Yang et al. 2022), supplement C.1.
"""

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from hybridgen.networks.resnet import resnet


def _keep_size(network: Any) -> None:
    """Tell `feature_info` that the stem no longer divides the map's sides by 4."""
    for stage in network.feature_info:
        stage["reduction"] = max(1, stage["reduction"] // 4)


def cifar_resnet(
    block: Literal["basic", "bottleneck"], layers: Sequence[int], classes: int, *, width: float = 1
) -> nn.Module:
    """timm's ResNet of `layers` blocks a stage, 64w to 512w filters, a 3×3 stem of stride 1 and no max-pooling.

    Initialisation is the CutMix code's: convolutions normal with variance 2 / fan-out, batch-norm weights 1 (not 0 at
    the ends of the branches, timm's habit), the linear layer torch's.
    """
    network = resnet(block, layers, classes, width=width, kernel=3, stride=1, zero_init_last=False)
    network.maxpool = nn.Identity()
    _keep_size(network)
    return network


def cifar_densenet(growth: int, layers: Sequence[int], classes: int, *, width: float = 1) -> nn.Module:
    """timm's DenseNet of `layers` layers a block and growth·w filters each, a 3×3 stem of stride 1, no max-pooling.

    Initialisation is torchvision's and timm's: convolutions normal with variance 2 / fan-in, the linear layer's bias 0.
    """
    from timm.models.densenet import DenseNet

    growth = round(growth * width)
    network = DenseNet(growth, tuple(layers), num_classes=classes)
    stem = nn.Conv2d(3, 2 * growth, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight)
    network.features.conv0 = stem
    network.features.pool0 = nn.Identity()
    _keep_size(network)
    return network
