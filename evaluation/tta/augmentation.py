"""Random changes of images that are compared with the images themselves (CoTTA, RoTTA, RMT, ROID).

One draw for a batch, as in the authors' programs: colours in a random order, an affine map, blur, a
flip, noise. torchvision does the work.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


class Colours(torch.nn.Module):
    """Brightness, contrast, saturation, hue and gamma by random factors, in a random order."""

    def forward(self, x: Tensor) -> Tensor:
        """Images [B,3,H,W] in [0,1]."""
        from torchvision.transforms.v2 import functional as F  # noqa: PLC0415  a second

        changes = (
            (F.adjust_brightness, 0.6, 1.4), (F.adjust_contrast, 0.7, 1.3), (F.adjust_saturation, 0.5, 1.5),
            (F.adjust_hue, -0.06, 0.06), (F.adjust_gamma, 0.7, 1.3),
        )  # fmt: skip
        for place in torch.randperm(len(changes)).tolist():
            change, low, high = changes[place]
            factor = torch.empty(()).uniform_(low, high).item()
            x = change(x.clamp(1e-8, 1) if change is F.adjust_gamma else x, factor)
        return x


class Noise(torch.nn.Module):
    """Gaussian noise of deviation 0.005."""

    def forward(self, x: Tensor) -> Tensor:
        """Images of any shape."""
        return x + 0.005 * torch.randn(x.shape).to(x)


def strong_augmentation(size: int, padding: Literal["edge", "reflect"] = "edge", blurred: bool = True) -> torch.nn.Module:
    """CoTTA's changes (Wang et al. 2022) of images [B,3,size,size] in [0,1]; ROID's are without
    blur and noise, with mirrored margins.
    """
    from torchvision.transforms import v2  # noqa: PLC0415  a second

    affine = v2.RandomAffine(15, (1 / 16, 1 / 16), (0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR)
    crop, flip, clip = v2.CenterCrop(size), v2.RandomHorizontalFlip(), v2.Lambda(lambda x: x.clamp(0, 1))
    blur = [v2.GaussianBlur(5, (0.001, 0.5))] if blurred else []
    noise = [Noise()] if blurred else []
    return v2.Compose([clip, Colours(), v2.Pad(size // 2, padding_mode=padding), affine, *blur, crop, flip, *noise, clip])
