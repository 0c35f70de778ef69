"""Deep pyramidal residual networks (Han et al. 2017) in the form for CIFAR, of bottlenecks.

Source: Han et al. 2017, equations 2 and 3 and figures 5d and 6d, with the details of CutMix's code. RecursiveMix trains
PyramidNet-200 with α = 240 (table 1) and PyramidNet-164 with α = 270 (table 3).
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hybridgen.networks.wide_resnet import Stemmed
from hybridgen.types import InputError


class PyramidBottleneck(nn.Module):
    """BN, 1×1 conv, BN, ReLU, 3×3 conv, BN, ReLU, 1×1 conv to four times the channels, BN; added to the input.

    The shortcut has no parameters: a mean of 2×2 pixels where the stride is 2 (at an odd border of what is there), and
    zeros for the channels that the input lacks.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn4 = nn.BatchNorm2d(4 * channels)
        self.stride = stride
        self.missing = 4 * channels - in_channels

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        y = self.conv1(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(y), inplace=True))
        y = self.bn4(self.conv3(F.relu(self.bn3(y), inplace=True)))
        shortcut = F.avg_pool2d(x, 2, ceil_mode=True) if self.stride == 2 else x
        return y + F.pad(shortcut, (0, 0, 0, 0, 0, self.missing))


class PyramidNet(nn.Module):
    """3×3 stem of 16 filters and BN, three groups of `(depth - 2) / 9` bottlenecks with strides 1, 2, 2, BN, ReLU,
    global average and a linear layer: standardised images to logits.

    The k-th of N bottlenecks has round(16 + α·k / N) channels (equation 3). Initialisation: convolutions normal with
    variance 2 / fan-out, the linear layer torch's. Raises `InputError` for a depth that is not 9n + 2, and for an α
    or a number of classes that is not above 0.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self, depth: int, alpha: float, classes: int):
        super().__init__()
        if depth < 11 or depth % 9 != 2:
            below = max(11, depth - (depth - 2) % 9)
            nearest = f"{below} and {below + 9}" if depth > 11 else "11"
            raise InputError(f"depth: {depth} is not 9n + 2 (n ≥ 1); nearest: {nearest}")
        for field, value in (("alpha", alpha), ("classes", classes)):
            if not value > 0:
                raise InputError(f"{field}: {value} is not above 0")

        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        blocks = (depth - 2) // 9
        channels, self.feature_info = 16, []
        for group, stride in ((1, 1), (2, 2), (3, 2)):
            layer = nn.Sequential()
            for block in range((group - 1) * blocks + 1, group * blocks + 1):
                narrow = round(16 + alpha * block / (3 * blocks))
                layer.append(PyramidBottleneck(channels, narrow, stride if len(layer) == 0 else 1))
                channels = 4 * narrow
            self.add_module(f"layer{group}", layer)
            self.feature_info.append({"num_chs": channels, "reduction": 2 ** (group - 1), "module": f"layer{group}"})
        self.bn_final = nn.BatchNorm2d(channels)
        self.num_features, self.num_classes = channels, classes
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_features(self, images: Stemmed) -> Float[Tensor, "batch channels rows columns"]:
        """The map after the last ReLU, of `⌈height/4⌉ × ⌈width/4⌉`."""
        x = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(images)))))
        return F.relu(self.bn_final(x), inplace=True)

    def forward_head(
        self, features: Float[Tensor, "batch channels rows columns"], pre_logits: bool = False
    ) -> Float[Tensor, "batch outputs"]:
        """Logits, or with `pre_logits` the features' mean over the map."""
        pooled = features.mean((2, 3))
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        return self.forward_head(self.forward_features(images))
