"""Landmarks by heatmaps: a map for each point, with a Gaussian where the point is.

Deconvolutions on the last map of a backbone are Xiao et al. 2018, "Simple baselines for human pose
estimation"; the concatenation of all maps is Wang et al. 2019, "Deep high-resolution representation
learning" (HRNetV2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undegrade.models.dense.backbone import Backbone
from undegrade.models.dense.segmentation import unit
from undegrade.models.normalisation import NormalisedNetwork

LANDMARKS = "landmarks"
SIGMA = 2.0  # of the Gaussians, in pixels of the heatmap


class LandmarkNetwork(NormalisedNetwork):
    """Heatmaps of P points of images in [0,1].

    Args:
        backbone: gives the maps.
        arch: name under which `build_backbone` builds it.
        points: names of the P points.
        mean, std: input normalisation per channel, on the scale of [0,1].
        deconvolutions: number of 4x4 deconvolutions on the last map, each of which doubles its
            side (published: 3); 0: all maps, enlarged to the finest, one beside the other.
        width: channels of the deconvolutions (published: 256).
        flip_test: in eval mode the mean of the heatmaps of the image and of its mirror image.
        swap: pairs of points that change places in a mirrored image.

    Raises:
        ValueError: unfit sizes or pairs.
    """

    def __init__(
        self, backbone: Backbone, arch: str, points: Sequence[str], mean: Sequence[float], std: Sequence[float],
        deconvolutions: int = 3, width: int = 256, flip_test: bool = True, swap: Sequence[Sequence[int]] = (),
    ) -> None:  # fmt: skip
        super().__init__(mean, std)
        if not points or deconvolutions < 0 or width < 1:
            raise ValueError(
                f"{len(points)} points, {deconvolutions} deconvolutions, width {width}: at least 1, 0 and 1 are needed (model.*)"
            )
        self.backbone, self.arch, self.points, self.flip_test = backbone, arch, tuple(points), flip_test
        self.sizes = {"deconvolutions": deconvolutions, "width": width, "swap": [list(pair) for pair in swap]}
        order = list(range(len(points)))
        for a, b in swap:
            order[a], order[b] = order[b], order[a]
        self._order, self._concatenates = order, deconvolutions == 0
        if self._concatenates:
            inputs = sum(backbone.channels)
            layers: list[nn.Module] = [unit(inputs, inputs)]
        else:
            channels = [backbone.channels[-1], *[width] * deconvolutions]
            layers = [_deconvolution(a, b) for a, b in zip(channels, channels[1:], strict=False)]
            inputs = width
        last = nn.Conv2d(inputs, len(points), 1)
        nn.init.normal_(last.weight, std=0.001)  # as published: heatmaps are nearly 0 everywhere
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(*layers, last)

    def forward(self, x: Tensor) -> Tensor:
        """Images in [0,1] [B,3,H,W] -> heatmaps [B,P,h,w]."""
        x = self.normalise(x)
        if self.training or not self.flip_test:
            return self._heatmaps(x)
        return (self._heatmaps(x) + self._heatmaps(x.flip(-1)).flip(-1)[:, self._order]) / 2

    def _heatmaps(self, x: Tensor) -> Tensor:
        maps = self.backbone(x)
        if not self._concatenates:
            return self.head(maps[-1])
        size = maps[0].shape[-2:]
        return self.head(torch.cat([F.interpolate(found, size, mode="bilinear", align_corners=False) for found in maps], 1))

    def describe(self) -> dict[str, Any]:
        """JSON-able entries from which `loading.load_dense` builds the network again."""
        sizes = {**self.sizes, "flip_test": self.flip_test}
        return {"kind": LANDMARKS, "arch": self.arch, "points": list(self.points), "sizes": sizes, **self.normalisation}


def _deconvolution(inputs: int, outputs: int) -> nn.Sequential:
    deconvolution = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False)
    nn.init.normal_(deconvolution.weight, std=0.001)
    return nn.Sequential(deconvolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def encode(points: Tensor, image_size: int, size: int) -> tuple[Tensor, Tensor]:
    """Heatmaps of points.

    Args:
        points: float [B,P,2] of (x, y) in pixels of the image (`utils.data.targets.Points`).
        image_size: its side.
        size: side of the heatmaps.

    Returns:
        (float [B,P,size,size], exp(-d^2 / (2 SIGMA^2)) at the distance d from the point; bool
        [B,P], whether the point lies in the image: others have a map of zeros).
    """
    seen = visible(points, image_size)
    place = ((points.nan_to_num() + 0.5) * (size / image_size) - 0.5)[..., None]
    squares = (torch.arange(size, device=points.device) - place).square()  # [B,P,2,size]
    maps = torch.exp(-(squares[:, :, 1, :, None] + squares[:, :, 0, None, :]) / (2 * SIGMA**2))
    return maps * seen[..., None, None], seen


def visible(points: Tensor, image_size: int) -> Tensor:
    """bool [B,P]: whether points [B,P,2] lie in the image."""
    return ((points >= -0.5) & (points <= image_size - 0.5)).all(-1)


def decode(heatmaps: Tensor, image_size: int) -> Tensor:
    """Points of heatmaps: the highest pixel, moved by a quarter of one towards the higher of its
    neighbours, along x and along y.

    Args:
        heatmaps: float [B,P,h,h].
        image_size: side of the image in pixels.

    Returns:
        float [B,P,2] of (x, y) in pixels of the image.
    """
    size = heatmaps.shape[-1]
    best = heatmaps.flatten(2).argmax(-1)
    x, y = best % size, best // size

    def at(dx: int, dy: int) -> Tensor:
        column, row = (x + dx).clamp(0, size - 1), (y + dy).clamp(0, size - 1)
        return heatmaps.flatten(2).gather(2, (row * size + column)[..., None])[..., 0]

    right, down = (torch.sign(at(1, 0) - at(-1, 0)), torch.sign(at(0, 1) - at(0, -1)))
    inner = [(place > 0) & (place < size - 1) for place in (x, y)]
    moved = torch.stack([x + 0.25 * right * inner[0], y + 0.25 * down * inner[1]], -1)
    return (moved + 0.5) * (image_size / size) - 0.5
