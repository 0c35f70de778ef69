"""PreActResNet-18-w (He et al. 2016b): the networks of the thesis's Tiny ImageNet experiments.

Source: thesis, table 3.5 and the details of its implementation ("w times more filters"); the order of operations,
stride and initialisation are those of the authors' code for MixMo.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hybridgen.networks.wide_resnet import Stemmed
from hybridgen.types import InputError


class PreActBlock(nn.Module):
    """BN, ReLU, 3×3 conv, BN, ReLU, 3×3 conv, added to the input.

    Where the stride or the number of channels changes, a 1×1 convolution of the activated input takes its place.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        activated = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(activated)), inplace=True))


class PreActResNet18(nn.Module):
    """3×3 stem of 64w filters, four groups of two blocks of 64w, 128w, 256w and 512w with strides 1, 2, 2, 2, global
    average and a linear layer: standardised images to logits.

    The stem's stride is 2 for the 64×64 pixels of Tiny ImageNet; 1 suits 32×32. MixMo's code keeps its stem at 64
    filters; the thesis's 44.9 M parameters for w = 2 need 64w. That code ends without the batch-norm and ReLU that
    He et al. put after the last block; `final_norm` adds them. Its initialisation: convolutions from a normal cut at
    two deviations, of variance 2 / fan-in after the cut; the linear layer normal with deviation 0.01, no bias at
    first. Raises `InputError` for a number of classes, a width or a stride that leaves nothing.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, classes: int, *, width: float = 1, stem_stride: int = 2, final_norm: bool = False):
        super().__init__()
        for field, value in (("classes", classes), ("stem_stride", stem_stride)):
            if value < 1:
                raise InputError(f"{field}: {value} is below 1")
        if not 64 * width >= 1:
            raise InputError(f"width: {width} leaves less than one filter; at least 1/64 is needed")

        channels = stem = round(64 * width)
        self.conv1 = nn.Conv2d(3, channels, 3, stem_stride, padding=1, bias=False)
        self.feature_info = []
        for group, stride in ((1, 1), (2, 2), (3, 2), (4, 2)):
            filters = stem * 2 ** (group - 1)
            layer = nn.Sequential(PreActBlock(channels, filters, stride), PreActBlock(filters, filters))
            self.add_module(f"layer{group}", layer)
            reduction = stem_stride * 2 ** (group - 1)
            self.feature_info.append({"num_chs": filters, "reduction": reduction, "module": f"layer{group}"})
            channels = filters
        self.bn_final = nn.BatchNorm2d(channels) if final_norm else None
        self.num_features, self.num_classes = channels, classes
        self.fc = nn.Linear(channels, classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # 0.8796 is the deviation of a standard normal truncated at two deviations
                deviation = (2 / module.weight[0].numel()) ** 0.5 / 0.87962566
                nn.init.trunc_normal_(module.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward_features(self, images: Stemmed) -> Float[Tensor, "batch channels rows columns"]:
        """The last block's output (normalised and activated with `final_norm`)."""
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(images)))))
        return x if self.bn_final is None else F.relu(self.bn_final(x), inplace=True)

    def forward_head(
        self, features: Float[Tensor, "batch channels rows columns"], pre_logits: bool = False
    ) -> Float[Tensor, "batch outputs"]:
        """Logits, or with `pre_logits` the features' mean over the map."""
        pooled = features.mean((2, 3))
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        return self.forward_head(self.forward_features(images))
