"""The operators of the `imagedegrade` package on whole batches: (images, levels, random, compat) ->
images.

Images are uint8 [B, 3, H, W] on any device, levels float64 [B] on the CPU in the degradation's own
unit. An image's result depends on its pixels, level and random numbers only: neither on the rest of
the batch nor, for these exact sums, on the device.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from undegrade.utils.data.perturbations.image_batch import through_jpeg

TILE = 64  # pixels of a line that are blurred by one matrix
WEIGHT = 2**22  # blur's weights are multiples of 1 / WEIGHT: 8 bits of a pixel and 2 x 22 fit into the 53 of a double


@dataclass(frozen=True)
class DegradationCompat:
    """Where published results were made with something else than the right operation.

    Attributes:
        rounding: how float grey levels become uint8. Truncation darkens by about half a grey level.
        salt_value: the grey level of salt. `imagedegrade` on arrays in 0..255 uses 1, so its salt
            is black.
        blur_intermediate: "uint8" truncates after each of the two passes, which darkens by about
            one grey level.
        watermark_font: font file of the watermark (None: the first that is installed, see
            utils/data/perturbations/watermark.py).
    """

    rounding: Literal["round", "truncate"] = "round"
    salt_value: Literal[255, 1] = 255
    blur_intermediate: Literal["float", "uint8"] = "float"
    watermark_font: str | None = None


class Random(Protocol):
    """What the operators draw from: `utils.random_fields.RandomFields`."""

    def random(self, shape: Sequence[int]) -> NDArray:
        """[B, *shape] uniform in [0, 1)."""

    def standard_normal(self, shape: Sequence[int]) -> NDArray:
        """[B, *shape] of mean 0 and variance 1."""


def jpeg(images: Tensor, levels: Tensor, random: Random, compat: DegradationCompat) -> Tensor:
    """To JPEG and back; quality 101 leaves an image as it is.

    Raises:
        ValueError: a quality that is not a whole number.
    """
    qualities = levels.tolist()
    for quality in qualities:
        if not quality.is_integer():
            raise ValueError(f"jpeg quality {quality} is not a whole number: pass 1, 2, ..., 100 or 101 (untouched)")
    return through_jpeg(images, [int(quality) if quality <= 100 else None for quality in qualities])


def noise(images: Tensor, levels: Tensor, random: Random, compat: DegradationCompat) -> Tensor:
    """Gaussian noise, each channel value on its own."""
    field = torch.from_numpy(random.standard_normal(images.shape[1:])).to(images.device)
    return _to_uint8(field.mul_(levels.to(field)[:, None, None, None]).add_(images), compat)


def saltpepper(images: Tensor, levels: Tensor, random: Random, compat: DegradationCompat) -> Tensor:
    """Salt is written after pepper: P(salt) = p/2, P(pepper) = p/2 (1 - p/2), for each channel
    value on its own.
    """
    fields = [torch.from_numpy(random.random(images.shape[1:])).to(images.device) for _ in range(2)]
    rarest = (1 - levels / 2).to(fields[0])[:, None, None, None]
    # products of bytes: many times faster than masked writing
    unpeppered, salted = fields[0] <= rarest, fields[1] > rarest
    return (images * unpeppered).mul_(~salted).add_(salted.byte().mul_(compat.salt_value))


def blur(images: Tensor, levels: Tensor, random: Random, compat: DegradationCompat) -> Tensor:
    """Gaussian blur, cut at three deviations, borders repeated."""
    if compat.blur_intermediate == "uint8":  # on uint8 arrays scipy stores each of its two passes as truncated uint8
        pixels = images.cpu().numpy().copy()
        for sigma in np.unique(levels):
            of_sigma = levels.numpy() == sigma
            pixels[of_sigma] = ndimage.gaussian_filter(pixels[of_sigma], (0, 0, sigma, sigma), truncate=3.0, mode="nearest")
        return torch.from_numpy(pixels).to(images.device)
    return _blurred(images, levels.tolist(), compat)


def _blurred(images: Tensor, sigmas: Sequence[float], compat: DegradationCompat) -> Tensor:
    """Along the columns, then along the rows. Products and sums are exact, in whatever order a
    library forms them.
    """
    count, channels, height, width = images.shape
    if not count:
        return images
    grey = images.permute(0, 2, 1, 3).to(torch.float64, memory_format=torch.contiguous_format).view(count, height, -1)
    down, along = (torch.stack([_blur_matrix(sigma, size) for sigma in sigmas]).to(grey.device) for size in (height, width))
    radius = _radius(max(sigmas))
    grey = torch.cat([down[:, near, here].transpose(1, 2).bmm(grey[:, near]) for here, near in _tiles(height, radius)], 1)
    grey = grey.view(count, -1, width)
    grey = torch.cat([grey[:, :, near].bmm(along[:, near, here]) for here, near in _tiles(width, radius)], 2)
    return _to_uint8(grey, compat).view(count, height, channels, width).permute(0, 2, 1, 3)


def _tiles(size: int, radius: int) -> list[tuple[slice, slice]]:
    """Stretches of a line, and the pixels that weigh there."""
    return [(slice(i, i + TILE), slice(max(0, i - radius), i + TILE + radius)) for i in range(0, size, TILE)]


def _radius(sigma: float) -> int:
    return int(3 * sigma + 0.5)


@functools.lru_cache(maxsize=128)
def _blur_matrix(sigma: float, size: int) -> Tensor:
    """Double [size, size]: a row of pixels times this is the row blurred; weights beyond the border
    go to the border's pixel.
    """
    offsets = np.arange(-_radius(sigma), _radius(sigma) + 1)
    weights = np.exp(-0.5 * (offsets / max(sigma, 1e-9)) ** 2)
    weights = np.rint(weights / weights.sum() * WEIGHT)
    weights[len(weights) // 2] += WEIGHT - weights.sum()
    columns = np.arange(size)[:, None]
    matrix = np.zeros((size, size))
    np.add.at(matrix, ((columns + offsets).clip(0, size - 1), columns), weights / WEIGHT)
    return torch.from_numpy(matrix)


def _to_uint8(grey: Tensor, compat: DegradationCompat) -> Tensor:
    if compat.rounding == "round":
        grey = grey.round_()
    return grey.clamp_(0, 255).to(torch.uint8)
