"""The public ResNets of CIFAR-10 with parameter-free shortcuts (He et al. 2016, section 4.2, option
A) under the names of `models.classification.resnet`.

Such a shortcut takes every second pixel and adds channels of zeros, half of them before and half of
them behind: a convolution of 1 x 1 with stride 2 whose weights are 0 and 1. Their head pools the
whole map, ours its quarters, so that the weights of the last layer are shared out over four.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_EPS = 1e-5  # of BatchNorm
_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # with which these were trained


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of such a network."""
    shortcuts = any(".shortcut." in name or ".downsample." in name for name in state)
    return "linear.weight" in state and "layer3.0.conv1.weight" in state and not shortcuts


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under our names, with the shortcuts as convolutions."""
    out = {re.sub(r"^layer(\d)\.", r"res\1.", name): tensor for name, tensor in state.items() if not name.startswith("linear.")}
    for stage in (2, 3):
        width, narrow = state[f"layer{stage}.0.conv1.weight"].shape[:2]
        kernel = torch.zeros(width, narrow, 1, 1)
        kernel[torch.arange(narrow) + (width - narrow) // 2, torch.arange(narrow)] = 1
        prefix = f"res{stage}.0.ds"
        out |= {f"{prefix}.0.weight": kernel, f"{prefix}.1.weight": torch.ones(width), f"{prefix}.1.bias": torch.zeros(width)}
        out |= {f"{prefix}.1.running_mean": torch.zeros(width), f"{prefix}.1.running_var": torch.full((width,), 1 - _EPS)}
    out |= {"fc.weight": state["linear.weight"].repeat_interleave(4, dim=1) / 4, "fc.bias": state["linear.bias"]}
    return out


def normalisation(state: Mapping[str, Tensor]) -> tuple[list[float], list[float]]:
    """(mean, std) per channel on the scale of [0,1] with which they were trained."""
    return _IMAGENET
