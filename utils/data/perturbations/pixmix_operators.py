"""The operators that PixMix and SimSiam augment images with, each with a parameter an image.

All take uint8 [n, 3, H, W] on any device and parameters [n], and return new images of that kind.
They are Pillow's, grey level for grey level, but for `shifted_hue`, which Pillow computes in HSV of
8 bits and torchvision, as here, in floats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image as PILImage
from PIL import ImageFilter
from torch import Tensor

from undegrade.utils.data.perturbations.image_batch import map_images

_LEVELS = 256


def _looked_up(images: Tensor, table: Tensor) -> Tensor:
    """Each level replaced by its entry in `table`, of any type [n or 1, 3 or 1, 256]."""
    levels = table.clamp(0, 255).to(torch.uint8).expand(*images.shape[:2], -1)
    return levels.gather(2, images.flatten(2).long()).view(images.shape)


def _levels(images: Tensor) -> Tensor:
    return torch.arange(_LEVELS, device=images.device)


def autocontrast(images: Tensor) -> Tensor:
    """Each channel stretched from its darkest and brightest level to 0..255."""
    low, high = (end.double()[..., None] for end in images.flatten(2).aminmax(dim=2))
    scale = torch.full_like(low, 255) / (high - low).clamp(min=1)  # 255 / tensor is rounded twice
    stretched = (_levels(images) * scale + -low * scale).clamp(0, 255)
    return _looked_up(images, torch.where(high > low, stretched, _levels(images).double()))


def equalize(images: Tensor) -> Tensor:
    """Each channel with all levels about as often."""
    channels = images.flatten(0, 1).flatten(1).long()
    offsets = torch.arange(0, len(channels) * _LEVELS, _LEVELS, device=images.device)[:, None]
    counts = (channels + offsets).flatten().bincount(minlength=len(channels) * _LEVELS).view(-1, _LEVELS)
    brightest = counts.gather(1, channels.amax(1, keepdim=True))
    step = (counts.sum(1, keepdim=True) - brightest) // (_LEVELS - 1)
    below = counts.cumsum(1) - counts
    spread = (step // 2 + below) // step.clamp(min=1)
    return _looked_up(images, torch.where(step > 0, spread, _levels(images)).view(*images.shape[:2], -1))


def posterize(images: Tensor, bits: int) -> Tensor:
    """The highest `bits` of each level, the others 0."""
    return images & (_LEVELS - (1 << (8 - bits)))


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Levels from the threshold on inverted."""
    return torch.where(images < threshold[:, None, None, None], images, 255 - images)


def affine(images: Tensor, matrix: Sequence[Tensor | float]) -> Tensor:
    """Each pixel (x, y) from (a x + b y + c, d x + e y + f), interpolated linearly, black outside.

    Args:
        images: see above.
        matrix: (a, b, c, d, e, f), each [n] in double precision or a number for all; x and y are
            centres of pixels, 0.5 for the first.
    """
    count, channels, height, width = images.shape
    parts = [torch.as_tensor(part, dtype=torch.float64, device=images.device).expand(count)[:, None, None] for part in matrix]
    y, x = (torch.arange(size, dtype=torch.float64, device=images.device) + 0.5 for size in (height, width))
    x, y = (a * x + b * y[:, None] + c for a, b, c in (parts[:3], parts[3:]))
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = x - 0.5, y - 0.5
    left, top = x.floor(), y.floor()
    across, down = (x - left)[:, None], (y - top)[:, None]
    columns = [(left + step).long().clamp(0, width - 1) for step in (0, 1)]
    rows = [(top + step).long().clamp(0, height - 1) * width for step in (0, 1)]
    pixels, shape = images.flatten(2), (count, channels, height, width)

    def at(row: Tensor, column: Tensor) -> Tensor:
        return pixels.gather(2, (row + column).flatten(1)[:, None].expand(-1, channels, -1)).view(shape).double()

    upper, lower = ((first := at(row, columns[0])) + (at(row, columns[1]) - first) * across for row in rows)
    return ((upper + (lower - upper) * down) * inside[:, None]).to(torch.uint8)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turned to the left about the middle."""
    angle = -degrees.double() * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    x, y = images.shape[-1] / 2, images.shape[-2] / 2
    return affine(images, (cos, sin, -cos * x + sin * -y + x, -sin, cos, sin * x + cos * -y + y))


def _grey(images: Tensor) -> Tensor:
    """[n, 1, H, W] int32, Pillow's luma."""
    red, green, blue = images.int().split(1, 1)
    return (red * 19595 + green * 38470 + blue * 7471 + (1 << 15)) >> 16


def greyscale(images: Tensor) -> Tensor:
    return _grey(images).to(torch.uint8).expand(images.shape).clone()


def _blended(images: Tensor, other: Tensor | int, factor: Tensor) -> Tensor:
    """`other` at factor 0, the images at 1, beyond that the opposite of `other`; truncated."""
    mixed = (images.int() - other).float().mul_(factor.float()[:, None, None, None])
    return mixed.add_(other).clamp_(0, 255).to(torch.uint8)


def color(images: Tensor, factor: Tensor) -> Tensor:
    """Between grey (0) and the image (1)."""
    return _blended(images, _grey(images), factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Between the mean grey level (0) and the image (1)."""
    mean = (_grey(images).double().mean(dim=(1, 2, 3), keepdim=True) + 0.5).int()
    return _blended(images, mean, factor)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Between black (0) and the image (1)."""
    return _blended(images, 0, factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Between the mean with its neighbours (0), a pixel weighing 5 of 13, and the image (1)."""
    smooth = images.int()
    if min(images.shape[-2:]) > 2:
        rows = smooth[:, :, :-2] + smooth[:, :, 1:-1] + smooth[:, :, 2:]
        total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * smooth[:, :, 1:-1, 1:-1]
        smooth[:, :, 1:-1, 1:-1] = (2 * total + 13) // 26  # rounded; the border stays
    return _blended(images, smooth, factor)


def shifted_hue(images: Tensor, turn: Tensor) -> Tensor:
    """The hue moved by `turn` of its circle; value and saturation stay."""
    unit = images.float() / 255
    value, place = unit.max(1, keepdim=True)
    spread = value - unit.amin(1, keepdim=True)
    below = (value - unit) / spread.clamp(min=1e-12)
    red, green, blue = below.split(1, 1)
    sixth = torch.cat([blue - green, 2 + red - blue, 4 + green - red], 1).gather(1, place) + 6 * turn.float()[:, None, None, None]
    # a channel is V minus the spread, V, or on the way from one to the other, by its distance from
    # its own hue
    own = torch.tensor([0.0, 2.0, 4.0], device=images.device)[:, None, None]
    distance = ((sixth - own + 3).remainder(6) - 3).abs()
    shifted = value - spread * (distance - 1).clamp(0, 1)
    return shifted.mul_(255).round_().to(torch.uint8)


def gaussian_blur(images: Tensor, radius: Tensor) -> Tensor:
    """Pillow's approximation of a Gaussian of deviation `radius` in pixels, computed on the CPU."""
    radii = radius.tolist()

    def blurred(image: np.ndarray, index: int) -> np.ndarray:
        return np.asarray(PILImage.fromarray(image).filter(ImageFilter.GaussianBlur(radii[index])))

    return map_images(images, blurred)
