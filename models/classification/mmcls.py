"""Checkpoints of mm-classification (mmcls 0.x, mmpretrain 1.x) under timm's names: ResNet,
ResNet_CIFAR, Swin and ConvNeXt.

DiffAUD (Daultani et al., CVPRW 2024) starts all of its classifiers from such files. They are
recognised by their names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# (pattern, replacement) pairs, applied one after the other
_SWIN = (
    (r"^backbone\.patch_embed\.projection\.", "patch_embed.proj."),
    (r"^backbone\.norm3?\.", "norm."),  # "norm" in the oldest files
    # mmcls merges patches at the end of a stage, timm at the start of the next
    *((rf"^backbone\.stages\.{i}\.downsample\.", f"layers.{i + 1}.downsample.") for i in range(3)),
    (r"^backbone\.stages\.", "layers."),
    (r"\.w_msa\.", "."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    (r"^backbone\.", ""),
)
_CONVNEXT = (
    (r"^backbone\.downsample_layers\.0\.", "stem."),
    (r"^backbone\.downsample_layers\.(\d)\.", r"stages.\1.downsample."),
    (r"^backbone\.stages\.(\d)\.", r"stages.\1.blocks."),
    (r"\.depthwise_conv\.", ".conv_dw."),
    (r"\.pointwise_conv(\d)\.", r".mlp.fc\1."),
    (r"^backbone\.norm3\.", "head.norm."),
    (r"^backbone\.", ""),
)
_RESNET = ((r"^backbone\.", ""), (r"^head\.fc\.", "fc."))
_MARKS = {".w_msa.": _SWIN, ".depthwise_conv.": _CONVNEXT}  # a part of a name that tells the network
# tables that timm computes, and what mmpretrain keeps of its preprocessing
_DERIVED = ("relative_position_index", "attn_mask")
_DERIVED_PREFIX = "data_preprocessor."

_IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
# by the number of classes, for networks whose first convolution is 3 x 3
_CIFAR = {
    10: ((125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255)),
    100: ((129.304, 124.070, 112.434), (68.170, 65.392, 70.418)),
}


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of mm-classification."""
    return any(name.startswith("backbone.") for name in state)


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under timm's names and in timm's order of channels; names that no rule knows stay
    as they are.
    """
    rules = next((rules for mark, rules in _MARKS.items() if any(mark in name for name in state)), _RESNET)
    out = {}
    for name, tensor in state.items():
        if name.endswith(_DERIVED) or name.startswith(_DERIVED_PREFIX):
            continue
        if rules is _SWIN and ".downsample." in name:
            tensor = _timm_order(tensor)
        if ".pointwise_conv" in name:
            tensor = tensor.flatten(1) if name.endswith("weight") else tensor  # some files have 1 x 1 convolutions there
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        out[name] = tensor
    return out


def _timm_order(tensor: Tensor) -> Tensor:
    """Patch merging's last axis, 4 C long, from (channel, row, column) of the 2 x 2 patch to timm's
    (column, row, channel).
    """
    patches = tensor.unflatten(-1, (-1, 2, 2))
    return patches.transpose(-1, -3).flatten(-3).contiguous()


def normalisation(state: Mapping[str, Tensor]) -> tuple[list[float], list[float]]:
    """(mean, std) per channel on the scale of [0,1] with which mm-classification trains such a
    network.
    """
    stem, head = state.get("backbone.conv1.weight"), state.get("head.fc.weight")
    mean, std = _IMAGENET
    if stem is not None and stem.shape[-1] == 3 and head is not None:
        mean, std = _CIFAR.get(len(head), _IMAGENET)
    return [value / 255 for value in mean], [value / 255 for value in std]
