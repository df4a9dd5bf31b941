"""What an image alone says of its degradation: noise, sharpness and blocks of JPEG."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_NORMAL = 0.6744897501960817  # the median of |z|, z standard normal
_BLOCK = 8  # pixels, of JPEG


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


def sharpness(x: Tensor) -> Tensor:
    """Standard deviation of the Laplacian (4 neighbours) of each grey image [B], in the unit of x
    [B,3,H,W]; its square is the focus measure of Pech-Pacheco et al. (ICPR 2000). 0 where a side
    has fewer than 3 pixels.
    """
    grey = x.mean(1, keepdim=True)
    if min(x.shape[-2:]) < 3:
        return x.new_zeros(len(x))
    kernel = grey.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    return F.conv2d(grey, kernel).flatten(1).std(1)


def blockiness(x: Tensor) -> Tensor:
    """How much more neighbours differ across the borders of 8 x 8 blocks than within them, of each
    grey image [B], in the unit of x [B,3,H,W] (after Wang, Sheikh and Bovik, ICIP 2002). 0 where no
    side has more than 8 pixels.
    """
    grey = x.mean(1)
    found = []
    for steps in (grey.diff(dim=2).abs().mean(1), grey.diff(dim=1).abs().mean(2)):
        border = torch.arange(steps.shape[1], device=x.device) % _BLOCK == _BLOCK - 1
        if border.any():
            found.append(steps[:, border].mean(1) - steps[:, ~border].mean(1))
    return torch.stack(found).mean(0) if found else x.new_zeros(len(x))
