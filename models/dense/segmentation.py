"""BiSeNetV1 (Yu et al. 2018, "Bilateral segmentation network for real-time semantic segmentation").

A spatial path of few convolutions keeps the detail, a context path on a backbone sees the whole;
both are fused at a stride of 8. Widths follow those of OpenMMLab's segmentation toolbox, whose
configurations RepFusion used: all of them are multiples of one, the context path's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undegrade.models.dense.backbone import Backbone
from undegrade.models.normalisation import NormalisedNetwork

SEGMENTER = "segmenter"


def unit(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class _Pooled(nn.Module):
    """Global mean, 1x1 convolution, BatchNorm, activation: [B,C,H,W] -> [B,D,1,1].

    A lone training image has one value a channel, of which there are no statistics: it is
    normalised by the running ones.
    """

    def __init__(self, inputs: int, outputs: int, activation: nn.Module) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm, self.activation = nn.BatchNorm2d(outputs), activation

    def forward(self, x: Tensor) -> Tensor:
        out, norm = self.convolution(x.mean((2, 3), keepdim=True)), self.norm
        if len(out) == 1 and type(norm) is nn.BatchNorm2d:  # those of several processes have their images together
            out = F.batch_norm(out, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        else:
            out = norm(out)
        return self.activation(out)


class _Refinement(nn.Module):
    """Attention refinement: a 3x3 unit times a sigmoid weight for each of its channels (section
    3.2).
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.unit, self.attention = unit(inputs, width, 3), _Pooled(width, width, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        out = self.unit(x)
        return out * self.attention(out)


class _Head(nn.Module):
    """3x3 unit, dropout of channels, 1x1 convolution to logits."""

    def __init__(self, inputs: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(unit(inputs, width, 3), nn.Dropout2d(0.1), nn.Conv2d(width, num_classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class BiSeNet(NormalisedNetwork):
    """Logits of each pixel of images in [0,1].

    Args:
        backbone: whose last two maps the context path takes.
        arch: name under which `build_backbone` builds it.
        classes: names of the K classes.
        mean, std: input normalisation per channel, on the scale of [0,1].
        width: W, of the context path; the spatial path has W/2 and W, fusion and head 2 W,
            auxiliary heads W/2 channels. 128 goes with ResNet-18, 512 with ResNet-50.
        stride: of the spatial path and of the logits, a power of 2, at most that of the last but
            one map; 8 as published.

    Raises:
        ValueError: fewer than two classes or maps, an unfit width or stride.
    """

    def __init__(
        self, backbone: Backbone, arch: str, classes: Sequence[str], mean: Sequence[float], std: Sequence[float],
        width: int = 128, stride: int = 8,
    ) -> None:  # fmt: skip
        super().__init__(mean, std)
        if len(classes) < 2 or len(backbone.strides) < 2:
            raise ValueError(f"{len(classes)} classes and {len(backbone.strides)} maps of {arch}: at least 2 of each are needed")
        allowed = [2**k for k in range(1, 7) if 2**k <= backbone.strides[-2]]
        if stride not in allowed:
            raise ValueError(f"stride {stride}: with {arch} it can be {', '.join(map(str, allowed))} (model.stride)")
        if width < 2 or width % 2:
            raise ValueError(f"width {width}: must be even and at least 2 (model.width)")
        self.backbone, self.arch, self.classes, self.width, self.stride = backbone, arch, tuple(classes), width, stride
        fine, coarse = backbone.channels[-2:]
        self.spatial = _spatial_path(width, stride)
        self.refine_fine, self.refine_coarse = _Refinement(fine, width), _Refinement(coarse, width)
        self.whole = _Pooled(coarse, width, nn.ReLU(inplace=True))
        self.smooth_fine, self.smooth_coarse = unit(width, width, 3), unit(width, width, 3)
        self.fuse = unit(2 * width, 2 * width)
        self.weigh = nn.Sequential(nn.Conv2d(2 * width, 2 * width, 1, bias=False), nn.Sigmoid())
        self.head = _Head(2 * width, 2 * width, len(classes))
        self.auxiliary = nn.ModuleList(_Head(width, width // 2, len(classes)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Images in [0,1] [B,3,H,W] -> logits [B,K,H,W]; in training (logits, those of the two
        auxiliary heads).
        """
        size = x.shape[-2:]
        x = self.normalise(x)
        fine, coarse = self.backbone(x)[-2:]
        spatial = self.spatial(x)
        context_coarse = self.smooth_coarse(F.interpolate(self.refine_coarse(coarse) + self.whole(coarse), fine.shape[-2:]))
        context = self.smooth_fine(F.interpolate(self.refine_fine(fine) + context_coarse, spatial.shape[-2:]))
        fused = self.fuse(torch.cat([spatial, context], 1))
        fused = fused + fused * self.weigh(fused.mean((2, 3), keepdim=True))
        heads = [(self.head, fused)]
        if self.training:
            heads += list(zip(self.auxiliary, (context, context_coarse), strict=True))  # type: ignore[arg-type]
        out = tuple(F.interpolate(head(found), size, mode="bilinear", align_corners=False) for head, found in heads)
        return out if self.training else out[0]

    def describe(self) -> dict[str, Any]:
        """JSON-able entries from which `loading.load_dense` builds the network again."""
        sizes = {"width": self.width, "stride": self.stride}
        return {"kind": SEGMENTER, "arch": self.arch, "classes": list(self.classes), "sizes": sizes, **self.normalisation}


def _spatial_path(width: int, stride: int) -> nn.Sequential:
    """A 7x7 and then 3x3 units of stride 2 down to `stride`, and a 1x1 unit."""
    halvings = stride.bit_length() - 1
    layers = [unit(3, width // 2, 7, 2), *(unit(width // 2, width // 2, 3, 2) for _ in range(halvings - 1))]
    return nn.Sequential(*layers, unit(width // 2, width))
