"""timm's ResNets in any width (He et al. 2016)."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn


def resnet(
    block: Literal["basic", "bottleneck"],
    layers: Sequence[int],
    classes: int,
    *,
    width: float = 1,
    kernel: int = 7,
    stride: int = 2,
    zero_init_last: bool = True,
) -> nn.Module:
    """timm's ResNet of `layers` blocks a stage and 64w to 512w filters, whose stem has this kernel and stride.

    Initialisation is timm's: convolutions normal with variance 2 / fan-out, and with `zero_init_last` weights of 0 in
    the batch-norms at the ends of the branches.
    """
    from timm.models.resnet import BasicBlock, Bottleneck, ResNet

    filters = round(64 * width)
    # timm fixes its plain stem at 64 filters, but takes twice stem_width for a deep one
    kinds: dict[str, Any] = {"basic": BasicBlock, "bottleneck": Bottleneck}
    network = ResNet(
        kinds[block],
        tuple(layers),
        num_classes=classes,
        channels=tuple(filters * 2**stage for stage in range(4)),
        stem_type="deep",
        stem_width=filters // 2,
        zero_init_last=zero_init_last,
    )
    network.conv1 = nn.Conv2d(3, filters, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network
