"""Wide ResNets for small images (Zagoruyko & Komodakis, BMVC 2016): pre-activation blocks.

State-dict names are those of RobustBench's checkpoints for CIFAR-10-C, `Standard` (WRN-28-10) among
them, which test-time adaptation is measured on. These take images in [0,1] as they are: mean 0, std
1.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

SIZES = {"WRN28_10": (28, 10), "WRN40_2": (40, 2)}
"""Depth and width factor."""


class WideBlock(nn.Module):
    """x + conv2(relu(bn2(conv1(relu(bn1(x)))))); where the width changes, x is relu(bn1(x)) put
    through a 1x1 convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.convShortcut = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.convShortcut is None else self.convShortcut(active))


class WideGroup(nn.Module):
    """Blocks of one width."""

    def __init__(self, blocks: int, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        rest = (WideBlock(out_channels, out_channels, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(WideBlock(in_channels, out_channels, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """Three groups, 16 / 32 / 64 x `widen` wide; the second and third halve the map.

    Args:
        depth: 6 n + 4.
        widen: factor.
        num_classes: number of logits K.
    """

    feature_info = [{"module": f"block{i}"} for i in (1, 2, 3)]  # noqa: RUF012

    def __init__(self, depth: int, widen: int, num_classes: int) -> None:
        super().__init__()
        blocks, widths = (depth - 4) // 6, [16, *(width * widen for width in (16, 32, 64))]
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.block1, self.block2, self.block3 = (
            WideGroup(blocks, before, after, stride) for before, after, stride in zip(widths, widths[1:], (1, 2, 2), strict=False)
        )
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [B,3,H,W] -> logits [B,K]."""
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.adaptive_avg_pool2d(F.relu(self.bn1(out)), 1).flatten(1))  # type: ignore[no-any-return]

    def get_classifier(self) -> nn.Module:
        """The final linear layer (timm's name for it)."""
        return self.fc
