"""Mixing of training images in pairs: mixup (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV
2019), by timm.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from undegrade.utils.seeding import global_streams


def mixed(
    images: Tensor, labels: Tensor, classes: int, mixup: float, cutmix: float, stream: tuple[object, ...]
) -> tuple[Tensor, Tensor]:
    """The images, mixed first with last, second with last but one, ..., and their soft labels.

    One weight, drawn from Beta(alpha, alpha), is for the whole batch; with both kinds a fair draw
    decides between them. Of an odd number of images the last one stays as it is.

    Args:
        images: float [B, 3, H, W]; not changed.
        labels: int64 [B].
        classes: K.
        mixup, cutmix: alpha of each kind; 0 leaves it out.
        stream: names the random stream.

    Returns:
        float [B, 3, H, W], and the weights of the classes, float [B, K], which add up to 1.
    """
    from timm.data.mixup import Mixup  # here, since it takes seconds

    even = len(images) // 2 * 2
    target = F.one_hot(labels, classes).to(images.dtype)
    if not even:
        return images, target
    mix = Mixup(mixup, cutmix, label_smoothing=0.0, num_classes=classes)
    with global_streams(*stream):
        pairs, weights = mix(images[:even].clone(), labels[:even])  # it writes into what it is given
    return torch.cat([pairs, images[even:]]), torch.cat([weights.to(images.dtype), target[even:]])
