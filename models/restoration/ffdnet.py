"""FFDNet (Zhang, Zuo and Zhang, IEEE TIP 2018): a denoiser that is told the noise level, on images
of half the sides; and a blind estimate of that level.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_NORMAL = 0.6744897501960817  # the median of |z|, z standard normal


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


def noise_level(x: Tensor) -> Tensor:
    """Standard deviation of the noise of each image [B], in the unit of x [B,3,H,W], from the image
    alone: median |d| / 0.6745 over the finest diagonal details d of its Haar wavelets (Donoho and
    Johnstone 1994), the mean over colours. Of an image without noise it is what its finest texture
    has, and 0 of one whose sides are a single pixel.
    """
    height, width = (side - side % 2 for side in x.shape[-2:])
    if not height or not width:
        return x.new_zeros(len(x))
    a, b, c, d = F.pixel_unshuffle(x[..., :height, :width], 2).unflatten(1, (3, 4)).unbind(2)
    return ((a - b - c + d) / 2).abs().flatten(2).median(2).values.mean(1) / _NORMAL
