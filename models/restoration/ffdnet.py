"""FFDNet (Zhang, Zuo and Zhang, IEEE TIP 2018): a denoiser that is told the noise level, on images
of half the sides.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FFDNet(nn.Module):
    """Convolutions of 3 x 3 with ReLU between them over the four pixels of each 2 x 2 block and a
    map of the noise level; tensors are named as in the authors' files.

    Args:
        channels: of the layers between; the published file for colours has 96.
        layers: of convolutions; there 12.
    """

    def __init__(self, channels: int = 96, layers: int = 12) -> None:
        super().__init__()
        widths = [3 * 4 + 1, *[channels] * (layers - 1), 3 * 4]
        modules = [m for a, b in pairwise(widths) for m in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU(inplace=True))]
        self.model = nn.Sequential(*modules[:-1])

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """Restored images.

        Args:
            x: [B,3,H,W] in [0,1], sides of 1 pixel or more.
            noise: [B], standard deviation of the noise in the unit of x.
        """
        height, width = x.shape[-2:]
        blocks = F.pixel_unshuffle(F.pad(x, (0, width % 2, 0, height % 2), mode="replicate"), 2)
        level = noise.to(blocks).view(-1, 1, 1, 1).expand(-1, 1, *blocks.shape[-2:])
        out: Tensor = F.pixel_shuffle(self.model(torch.cat([blocks, level], 1)), 2)
        return out[..., :height, :width]
