"""The blur and digital corruptions of a batch.

Every function takes (images uint8 [n, 3, H, W], n random generators, *constants of one severity)
and returns either uint8 of that shape or grey levels as floats, which
`utils.data.perturbations.corruptions` clips to 0..255 and truncates, as the released sets were
made. The constants and their order are those of `utils.data.perturbations.corruption_constants`.

Random numbers are drawn on the CPU, image by image, and what follows is numpy and OpenCV there,
which take less time a call than torch (for one image of 32 pixels the calls are what counts);
interpolation and matrix products alone are torch's. Images of another device are taken to the CPU
and back. An image's bytes must not depend on the others of its batch: sums are exact, element by
element, or image by image. Filters run in double precision: a mean of few levels is often a whole
number, and the last bit decides whether it is truncated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from undegrade.utils.data.perturbations.image_batch import Image, map_images, map_planes, through_jpeg
from undegrade.utils.data.perturbations.opencv import cv2

Array = NDArray[Any]
Generator = np.random.Generator
Generators = Iterable[Generator]


def smooth(plane: Array, sigma: float) -> Array:
    """Gaussian filter of a float array [H, W] with the defaults of scikit-image: 4 sigma wide, edge
    pixels repeated.
    """
    radius = int(4 * sigma + 0.5)
    if radius == 0:
        return plane
    return cv2.GaussianBlur(plane, (2 * radius + 1, 2 * radius + 1), sigma, borderType=cv2.BORDER_REPLICATE)


def gaussian_blur(images: Tensor, generators: Generators, sigma: float) -> Tensor:
    return map_planes(images, lambda plane: smooth(plane, sigma))


@lru_cache(maxsize=32)
def _disk(radius: float, alias_sigma: float) -> NDArray[np.float32]:
    """Anti-aliased disk, the kernel of a camera out of focus. Below radius 1 it is one pixel, only
    smoothed.
    """
    half, side = (8, 3) if radius <= 8 else (math.floor(radius), 5)
    axis = np.arange(-half, half + 1)
    disk = (axis**2 + axis[:, None] ** 2 <= radius**2).astype(np.float32)
    kernel = cv2.GaussianBlur(disk / disk.sum(), (side, side), alias_sigma)
    empty = int(np.argmax(kernel.any(axis=0)))  # columns on either side
    return np.ascontiguousarray(kernel[empty : len(kernel) - empty, empty : len(kernel) - empty])


def defocus_blur(images: Tensor, generators: Generators, radius: float, alias_sigma: float) -> Tensor:
    kernel = _disk(radius, alias_sigma)
    return map_planes(images, lambda plane: cv2.filter2D(plane, -1, kernel))


@lru_cache(maxsize=16)
def _visited(count: int, height: int, width: int, margin: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Numbers of the pixels [count, height, width], and which of them are visited."""
    pixels = np.arange(count * height * width).reshape(count, height, width)
    inside = np.zeros(pixels.shape, dtype=bool)
    inside[:, margin + 1 : height - margin + 1, margin + 1 : width - margin + 1] = True
    return pixels, inside


def copy_neighbours(images: Tensor, row_offset: Array, column_offset: Array, margin: int) -> Tensor:
    """Visit rows, and columns within a row, from size - margin down to margin + 1; each pixel
    copies a neighbour.

    Of images [n, C, H, W], the neighbour stands at the given offset (int [n, rows visited, columns
    visited], in the order of the visit, each in -margin .. margin - 1). A neighbour that was
    visited before hands on its new value. The published code reads like a swap, but its numpy views
    make it this one-way copy, and the released sets are made with it.
    """
    count, channels, height, width = images.shape
    pixels, inside = _visited(count, height, width, margin)
    visited = np.s_[:, margin + 1 : height - margin + 1, margin + 1 : width - margin + 1]
    here = pixels[visited]
    there = (row_offset * width + column_offset)[:, ::-1, ::-1] + here

    # Visited earlier: `there` has a new value, to be followed to where it came from. Else its old
    # value is taken. Following the pointers, twice as far at each round, gives the sequential
    # result without a loop over pixels.
    pointer, source = pixels.copy(), pixels.copy()
    pointer[visited] = np.where(inside.take(there) & (there > here), there, here)
    pointer = pointer.ravel()
    while not np.array_equal(followed := pointer.take(pointer), pointer):
        pointer = followed
    source[visited] = there
    places = source.ravel().take(pointer).reshape(count, -1) - height * width * np.arange(count)[:, None]
    planes = images.cpu().contiguous().numpy().reshape(count, channels, -1)
    copied = np.stack([image.take(place, axis=1) for image, place in zip(planes, places, strict=True)])
    return torch.from_numpy(copied.reshape(images.shape)).to(images.device)


def glass_blur(images: Tensor, generators: Generators, sigma: float, offset: float, iterations: float) -> Tensor:
    largest_offset, times = max(1, round(offset)), round(iterations)  # between two severities they are no whole numbers
    visited = [max(0, side - 2 * largest_offset) for side in images.shape[-2:]]  # none of an image that is smaller
    size = (times, 2, *visited)
    offsets = np.stack([generator.integers(-largest_offset, largest_offset, size=size, dtype=np.int8) for generator in generators])
    shuffled = gaussian_blur(images, generators, sigma)
    for rows, columns in offsets.astype(np.int64).transpose(1, 2, 0, 3, 4):
        shuffled = copy_neighbours(shuffled, rows, columns, largest_offset)
    return gaussian_blur(shuffled, generators, sigma)


@lru_cache(maxsize=64)
def _half_gaussian(radius: float, sigma: float) -> tuple[NDArray[np.int64], list[float]]:
    """Steps along a smear, and the weight of each."""
    steps = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    return steps, (weights / weights.sum()).tolist()


def motion_smear(image: Array, radius: float, sigma: float, angle: float) -> Image:
    """ImageMagick's motion blur of a uint8 image [H, W] or [H, W, C]: half a Gaussian along `angle`
    degrees.

    Edge pixels are repeated. ImageMagick rounds its result to 8 bits, so this one corruption does
    not truncate.
    """
    height, width = image.shape[:2]
    steps, weights = _half_gaussian(radius, sigma)
    columns = np.ceil(steps * math.cos(math.radians(angle)) - 0.5).astype(int)
    rows = np.ceil(steps * math.sin(math.radians(angle)) - 0.5).astype(int)
    top, left = max(0, -rows.min()), max(0, -columns.min())
    border = (top, max(0, rows.max()), left, max(0, columns.max()))
    padded = cv2.copyMakeBorder(image, *border, cv2.BORDER_REPLICATE).astype(np.float32)
    total: Array = np.zeros(image.shape, dtype=np.float32)
    for row, column, weight in zip((rows + top).tolist(), (columns + left).tolist(), weights, strict=True):
        total = cv2.scaleAdd(padded[row : row + height, column : column + width], weight, total, total)
    return np.asarray(cv2.convertScaleAbs(total), dtype=np.uint8)


def motion_blur(images: Tensor, generators: Generators, radius: float, sigma: float) -> Tensor:
    angles = [generator.uniform(-45, 45) for generator in generators]
    return map_images(images, lambda image, index: motion_smear(image, radius, sigma, angles[index]))


def zoom_crop(size: int, factor: float) -> tuple[int, int]:
    """First index and length of the centre that is magnified to `size`."""
    crop = math.ceil(size / factor)
    return (size - crop) // 2, crop


def magnify(crop: Tensor, factor: float, height: int, width: int) -> Tensor:
    """The centre [..., height, width] of a float tensor [n, C, h, w] that is magnified with linear
    interpolation.
    """
    zoomed = [round(size * factor) for size in crop.shape[-2:]]
    top, left = (zoomed[0] - height) // 2, (zoomed[1] - width) // 2
    result = functional.interpolate(crop, size=zoomed, mode="bilinear", align_corners=True)
    return result[..., top : top + height, left : left + width]


def zoom(stack: Tensor, factor: float) -> Tensor:
    """Magnify the centre of a float tensor [n, C, H, W] in channels-last order by `factor`, keeping
    its size.
    """
    height, width = stack.shape[-2:]
    (top, rows), (left, columns) = zoom_crop(height, factor), zoom_crop(width, factor)
    crop = stack[..., top : top + rows, left : left + columns].contiguous(memory_format=torch.channels_last)
    return magnify(crop, factor, height, width)


def zoom_blur(images: Tensor, generators: Generators, stop: float, step: float) -> Tensor:
    batch, channels, height, width = images.shape
    stack = images.float().contiguous()
    if height * width < 1 << 14:
        # All images' channels side by side fill the vector registers. 16 is the widest: no channel
        # is left to other instructions, which would round in another way.
        channels *= batch
        stack = functional.pad(stack.view(1, channels, height, width), (0, 0, 0, 0, 0, -channels % 16))
    stack = stack.contiguous(memory_format=torch.channels_last)
    factors = _zoom_factors(stop, step, height, width)
    total = stack * 2  # the first factor is 1, so the image itself counts twice
    for factor, times in factors:
        zoomed = zoom(stack, factor)
        for _ in range(times):
            total += zoomed
    return (total[:, :channels] / (2 + sum(times for _, times in factors))).reshape(images.shape)


@lru_cache(maxsize=64)
def _zoom_factors(stop: float, step: float, height: int, width: int) -> list[tuple[float, int]]:
    """Factors above 1 in their order, and how many in a row give the same image, as they do for
    small ones.
    """
    found: dict[tuple[int, ...], list[float]] = {}
    for factor in np.arange(1, stop, step).tolist()[1:]:
        crops = [zoom_crop(side, factor)[1] for side in (height, width)]
        found.setdefault((*crops, *(round(crop * factor) for crop in crops)), []).append(factor)
    return [(factors[0], len(factors)) for factors in found.values()]


def contrast(images: Tensor, generators: Generators, factor: float) -> Tensor:
    height, width = images.shape[-2:]
    clean = images.cpu().numpy()
    mean = (clean.sum(axis=(2, 3), keepdims=True, dtype=np.int64) / (height * width)).astype(np.float32)
    grey = clean - mean
    grey *= factor
    grey += mean
    return torch.from_numpy(grey).to(images.device)


@lru_cache(maxsize=32)
def _smoothing_matrix(size: int, sigma: float) -> Tensor:
    """[size, size], Gaussian filter 3 sigma wide along an axis that is reflected at its ends."""
    return torch.from_numpy(ndimage.gaussian_filter1d(np.eye(size), sigma, axis=0, mode="reflect", truncate=3)).float()


def _sample(images: Tensor, rows: Array, columns: Array, *, repeat_edge: bool) -> Tensor:
    """Linear interpolation of float images [n, C, H, W] at pixel positions [n, H, W]; beyond its
    edges an image is mirrored.

    The mirror stands at the outer edge of the last pixels (so they repeat), or at their centres.
    """
    grid = np.empty((*rows.shape, 2), dtype=np.float32)
    for places, at, size in ((columns, grid[..., 0], images.shape[-1]), (rows, grid[..., 1], images.shape[-2])):
        np.multiply(places, 2, out=at)
        if repeat_edge:
            at += 1
        at /= size if repeat_edge else max(1, size - 1)
        at -= 1
    where = torch.from_numpy(grid).to(images.device)
    return functional.grid_sample(images, where, mode="bilinear", padding_mode="reflection", align_corners=not repeat_edge)


def elastic_transform(images: Tensor, generators: Generators, displacement: float, sigma: float, shift: float) -> Tensor:
    height, width = images.shape[-2:]
    centre, reach = np.array([height // 2, width // 2]), max(1, min(height, width) // 3)
    corners = (centre + reach * np.array([[1, 1], [1, -1], [-1, -1]])).astype(np.float32)
    affine, fields = [], []
    for generator in generators:
        moved = corners + generator.uniform(-shift, shift, size=corners.shape).astype(np.float32)
        affine.append(cv2.getAffineTransform(moved, corners))
        if displacement:
            fields.append(generator.random((2, height, width), dtype=np.float32))
    rows, columns = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    x, y = (a * columns + b * rows + c for a, b, c in np.stack(affine).astype(np.float32)[..., None, None].transpose(1, 2, 0, 3, 4))
    warped = _sample(images.float(), y, x, repeat_edge=False)
    if not displacement:
        return warped
    down, across = (_smoothing_matrix(size, sigma) for size in (height, width))
    moves = [(down @ torch.from_numpy(field * 2 - 1) @ across.T).numpy() for field in fields]  # each of one shape
    dx, dy = np.float32(displacement) * np.stack(moves, axis=1)
    return _sample(warped, rows + dy, columns + dx, repeat_edge=True)


@lru_cache(maxsize=64)
def _box(size: int, small: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """[small, size] of 0 and 1, which pixels Pillow's box filter averages to one of `small`; how
    many these are; and [size], which of the small ones is repeated at each place.
    """
    scale = size / small
    offset = (np.arange(size) + 0.5 - (np.arange(small)[:, None] + 0.5) * scale) / scale
    box = ((offset > -0.5) & (offset <= 0.5)).astype(np.float32)
    return box, box.sum(1), ((np.arange(size) + 0.5) * (small / size)).astype(np.int64)


def pixelate(images: Tensor, generators: Generators, factor: float) -> Tensor:
    (down, rows, row), (across, columns, column) = (_box(size, max(1, int(size * factor))) for size in images.shape[-2:])
    # Sums of whole numbers, exact in any order. Pillow rounds after each axis, then repeats the
    # pixel below each centre.
    small = images.cpu().numpy().astype(np.float32) @ across.T
    small /= columns
    small += 0.5
    small = down @ np.floor(small, out=small)
    small /= rows[:, None]
    small += 0.5
    pixels = small.astype(np.uint8).take(column, axis=3).take(row, axis=2)
    return torch.from_numpy(pixels).to(images.device)


def jpeg_compression(images: Tensor, generators: Generators, quality: float) -> Tensor:
    return through_jpeg(images, [round(quality)] * len(images))


def saturate(images: Tensor, generators: Generators, factor: float, offset: float) -> Tensor:
    """In HSV a channel is V (1 - S t), t in [0, 1] from the hue: a new S needs no conversion. Grey
    has the red hue.
    """
    clean = images.double() / 255
    value = clean.amax(dim=1, keepdim=True)
    below = value - clean
    spread = below.amax(dim=1, keepdim=True)
    red = torch.tensor([0.0, 1.0, 1.0], device=images.device, dtype=clean.dtype).view(1, 3, 1, 1)
    hue_term = torch.where(spread > 0, below / spread.clamp(min=1e-12), red)
    saturation = spread / value.clamp(min=1e-12)
    return value * (1 - (saturation * factor + offset).clamp(0, 1) * hue_term) * 255
