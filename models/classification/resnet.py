"""Networks for small images.

ResNet20, ResNet56, ResNet110: the CIFAR networks of He et al. 2016, section 4.2, with the
2x2-pooled head that FusionDistill uses. State-dict names and their order are those of the
FusionDistill checkpoints, so that either side loads the other's weights strictly.

ResNet18_CIFAR, ResNet50_CIFAR: ImageNet's ResNets with a 3x3 stem of stride 1 and no max-pool
(mm-classification's ResNet_CIFAR), which DiffAUD uses; built of timm's ResNet, with its names.

WRN28_10, WRN40_2: wide ResNets (wide_resnet.py).

MobileNetV2_CIFAR: timm's MobileNetV2, with its names, but stride 1 in its stem and in the second of
its stages, so that 32 pixels become 4 and not 1.

swinT_CIFAR, convnextT_CIFAR: timm's Swin-T and ConvNeXt-T, with their names, for images of 32
pixels: patches of 2 in place of 4, so that the last stage has 2 x 2 places, and windows of 4 in
place of Swin's 7.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from undegrade.models.classification.wide_resnet import SIZES, WideResNet
from undegrade.utils.choices import check_choice

BLOCKS_PER_STAGE = {"ResNet20": 3, "ResNet56": 9, "ResNet110": 18}
_WIDTHS = (16, 32, 64)
_WIDE = {
    "ResNet18_CIFAR": ("BasicBlock", (2, 2, 2, 2)),
    "ResNet50_CIFAR": ("Bottleneck", (3, 4, 6, 3)),
}  # timm's block, blocks a stage
_MOBILE = "MobileNetV2_CIFAR"
_PATCHES: dict[str, dict[str, Any]] = {
    "swinT_CIFAR": {"model_name": "swin_tiny_patch4_window7_224", "img_size": 32, "patch_size": 2, "window_size": 4},
    "convnextT_CIFAR": {"model_name": "convnext_tiny", "patch_size": 2},
}  # timm's name and its options
ARCHS = (*BLOCKS_PER_STAGE, *_WIDE, _MOBILE, *_PATCHES, *SIZES)


class BasicBlock(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)); the shortcut is a 1x1 convolution with
    BN where the width changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        # The checkpoints list the shortcut between conv1 and bn1, hence its place here.
        self.ds: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.ds = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.ds(x))


class CifarResNet(nn.Module):
    """Three stages of `blocks` basic blocks, 16 / 32 / 64 wide; stages 2 and 3 halve the map.

    Args:
        blocks: basic blocks per stage (depth = 6 * blocks + 2).
        num_classes: number of logits K.
    """

    # The same description that timm networks carry: which module's output ends each stage.
    feature_info = [{"module": "res1"}, {"module": "res2"}, {"module": "res3"}]  # noqa: RUF012

    def __init__(self, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, _WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        self.res1 = _stage(_WIDTHS[0], _WIDTHS[0], blocks, stride=1)
        self.res2 = _stage(_WIDTHS[0], _WIDTHS[1], blocks, stride=2)
        self.res3 = _stage(_WIDTHS[1], _WIDTHS[2], blocks, stride=2)
        self.fc = nn.Linear(4 * _WIDTHS[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.fc.weight, 0.0, 0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [B,3,H,W] (H and W at least 5; 32 or 64 in the papers) -> logits
        [B,K].
        """
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.res3(self.res2(self.res1(out)))
        return self.fc(F.adaptive_avg_pool2d(out, 2).flatten(1))

    def get_classifier(self) -> nn.Module:
        """The final linear layer (timm's name for it)."""
        return self.fc


def build_small_network(arch: str, num_classes: int) -> nn.Module:
    """A network of `ARCHS` with weights from torch's global generator.

    Raises:
        ValueError: another `arch`.
    """
    check_choice(arch, ARCHS, "network for small images")
    network: Any
    if arch in BLOCKS_PER_STAGE:
        return CifarResNet(BLOCKS_PER_STAGE[arch], num_classes)
    if arch in SIZES:
        return WideResNet(*SIZES[arch], num_classes)
    if arch in _PATCHES:
        import timm  # noqa: PLC0415  as below

        network = timm.create_model(**_PATCHES[arch], num_classes=num_classes)
        if arch == "convnextT_CIFAR":
            network.stages[0].downsample = nn.Identity()  # timm halves the map there when patches are 2
        return network
    if arch == _MOBILE:
        import timm  # noqa: PLC0415  as below

        network = timm.create_model("mobilenetv2_100", num_classes=num_classes)
        network.conv_stem.stride = network.blocks[1][0].conv_dw.stride = (1, 1)
        return network
    from timm.models import resnet  # here, since it takes seconds and the other networks do without

    block, layers = _WIDE[arch]
    network = resnet.ResNet(getattr(resnet, block), layers, num_classes)
    stem = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")  # as timm's other convolutions
    network.conv1, network.maxpool = stem, nn.Identity()
    return network


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))
