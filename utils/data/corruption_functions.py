"""The noise, blur and digital corruptions, one image at a time.

Every function takes (image uint8 [H, W, 3], generator, *constants of one severity) and returns either uint8 of that
shape or grey levels as floats, which `utils.data.corruptions` clips to 0..255 and truncates, as the released sets were
made. The constants and their order are those of `utils.data.corruption_constants`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from scipy import ndimage

from utils.data.image_batch import Image
from utils.data.opencv import cv2

Array = NDArray[Any]
Generator = np.random.Generator


def unit(image: Image) -> NDArray[np.float64]:
    """Grey levels 0..255 to [0, 1]."""
    return image / 255.0


def smooth(array: Array, sigma: float, *, truncate: float = 4.0, border: int = cv2.BORDER_REPLICATE) -> Array:
    """Gaussian filter of each channel of a float array [H, W] or [H, W, C]; the defaults are those of scikit-image."""
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return array
    return cv2.GaussianBlur(array, (2 * radius + 1, 2 * radius + 1), sigma, borderType=border)


def gaussian_noise(image: Image, generator: Generator, std: float) -> Array:
    return (unit(image) + std * generator.standard_normal(image.shape)) * 255


def shot_noise(image: Image, generator: Generator, photons: float) -> Array:
    return generator.poisson(unit(image) * photons) / photons * 255


def impulse_noise(image: Image, generator: Generator, amount: float) -> Array:
    hit = generator.random(image.shape) <= amount
    salt = generator.random(image.shape) <= 0.5
    return np.where(hit, np.where(salt, np.uint8(255), np.uint8(0)), image)


def speckle_noise(image: Image, generator: Generator, std: float) -> Array:
    clean = unit(image)
    return (clean + clean * std * generator.standard_normal(image.shape)) * 255


def gaussian_blur(image: Image, generator: Generator, sigma: float) -> Array:
    return smooth(unit(image), sigma) * 255


@lru_cache(maxsize=32)
def _disk(radius: float, alias_sigma: float) -> NDArray[np.float32]:
    """Anti-aliased disk, the kernel of a camera out of focus. Below radius 1 it is one pixel, only smoothed."""
    half, side = (8, 3) if radius <= 8 else (math.floor(radius), 5)
    axis = np.arange(-half, half + 1)
    disk = (axis**2 + axis[:, None] ** 2 <= radius**2).astype(np.float32)
    return cv2.GaussianBlur(disk / disk.sum(), (side, side), alias_sigma)


def defocus_blur(image: Image, generator: Generator, radius: float, alias_sigma: float) -> Array:
    return cv2.filter2D(unit(image), -1, _disk(radius, alias_sigma)) * 255


def copy_neighbours(image: Image, row_offset: Array, column_offset: Array, margin: int) -> Image:
    """Visit rows, and columns within a row, from size - margin down to margin + 1; each pixel copies a neighbour.

    The neighbour stands at the given offset ([rows visited, columns visited], in the order of the visit, each in
    -margin .. margin - 1). A neighbour that was visited before hands on its new value. The published code reads like a
    swap, but its numpy views make it this one-way copy, and the released sets are made with it.
    """
    height, width = image.shape[:2]
    pixels = height * width
    rows = np.arange(height - margin, margin, -1)[:, None]
    columns = np.arange(width - margin, margin, -1)
    here = rows * width + columns
    there = (rows + row_offset) * width + columns + column_offset

    # Nodes 0 .. N-1 are "the new value of pixel i", N .. 2N-1 "its old value". Each new value points at what it is
    # copied from; following the pointers to their ends gives the sequential result without a loop over pixels.
    order = np.zeros(pixels, dtype=np.int64)  # 0: never visited, keeps its value
    order[here] = np.arange(here.size, 0, -1).reshape(here.shape)  # higher: visited earlier
    source = np.arange(2 * pixels)
    source[:pixels] += pixels
    source[here] = np.where(order[there] > order[here], there, there + pixels)
    while (followed := source[source]).tobytes() != source.tobytes():
        source = followed
    return image.reshape(pixels, -1)[source[:pixels] - pixels].reshape(image.shape)


def glass_blur(image: Image, generator: Generator, sigma: float, largest_offset: int, iterations: int) -> Array:
    shuffled = (smooth(unit(image), sigma) * 255).astype(np.uint8)
    visited = (image.shape[0] - 2 * largest_offset, image.shape[1] - 2 * largest_offset)
    for _ in range(iterations):
        rows, columns = generator.integers(-largest_offset, largest_offset, size=(2, *visited))
        shuffled = copy_neighbours(shuffled, rows, columns, largest_offset)
    return smooth(unit(shuffled), sigma) * 255


def motion_smear(image: Image, radius: int, sigma: float, angle: float) -> Image:
    """ImageMagick's motion blur of a uint8 image [H, W] or [H, W, C]: half a Gaussian along `angle` degrees.

    Edge pixels are repeated. ImageMagick rounds its result to 8 bits, so this one corruption does not truncate.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    columns = np.ceil(steps * math.cos(math.radians(angle)) - 0.5).astype(int)
    rows = np.ceil(steps * math.sin(math.radians(angle)) - 0.5).astype(int)
    reach = 2 * radius
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), dtype=np.float32)
    np.add.at(kernel, (rows + reach, columns + reach), weights / weights.sum())
    return np.asarray(cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REPLICATE), dtype=np.uint8)


def motion_blur(image: Image, generator: Generator, radius: int, sigma: float) -> Array:
    return motion_smear(image, radius, sigma, generator.uniform(-45, 45))


@lru_cache(maxsize=256)
def _zoom_matrix(size: int, factor: float) -> NDArray[np.float32]:
    """[size, size] matrix of linear interpolation that magnifies the centre of an axis and keeps the axis's length."""
    crop = math.ceil(size / factor)
    zoomed = round(crop * factor)
    position = (np.arange(size) + (zoomed - size) // 2) * ((crop - 1) / (zoomed - 1))
    low = np.minimum(position.astype(int), crop - 2)
    matrix = np.zeros((size, size), dtype=np.float32)
    first = (size - crop) // 2 + low
    matrix[np.arange(size), first] = 1 - (position - low)
    matrix[np.arange(size), first + 1] = position - low
    return matrix


def zoom(array: Array, factor: float) -> Array:
    """Magnify the centre of a float array [..., H, W] by `factor`, keeping its size."""
    height, width = array.shape[-2:]
    return _zoom_matrix(height, factor) @ array @ _zoom_matrix(width, factor).T


def zoom_blur(image: Image, generator: Generator, count: int, step: float) -> Array:
    clean = unit(image).astype(np.float32).transpose(2, 0, 1)
    # The first factor is 1, so the image itself counts twice.
    total = clean + sum(zoom(clean, 1 + step * index) for index in range(count))
    return (total / (count + 1)).transpose(1, 2, 0) * 255


def contrast(image: Image, generator: Generator, factor: float) -> Array:
    clean = unit(image)
    mean = clean.mean(axis=(0, 1), keepdims=True)
    return ((clean - mean) * factor + mean) * 255


def elastic_transform(image: Image, generator: Generator, displacement: float, sigma: float, shift: float) -> Array:
    height, width = image.shape[:2]
    centre, reach = np.array([height // 2, width // 2]), min(height, width) // 3
    corners = (centre + reach * np.array([[1, 1], [1, -1], [-1, -1]])).astype(np.float32)
    moved = corners + generator.uniform(-shift, shift, size=corners.shape).astype(np.float32)
    affine = cv2.getAffineTransform(corners, moved)
    warped = cv2.warpAffine(unit(image).astype(np.float32), affine, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    if displacement == 0:
        return warped * 255
    fields = [generator.uniform(-1, 1, size=(height, width)) for _ in "xy"]
    columns, rows = (displacement * smooth(field, sigma, truncate=3.0, border=cv2.BORDER_REFLECT) for field in fields)
    position = np.stack([np.arange(height)[:, None] + rows, np.arange(width) + columns])
    channels = [ndimage.map_coordinates(warped[..., c], position, order=1, mode="reflect") for c in range(3)]
    return np.stack(channels, axis=-1) * 255


def pixelate(image: Image, generator: Generator, factor: float) -> Array:
    height, width = image.shape[:2]
    small = PILImage.fromarray(image).resize((int(width * factor), int(height * factor)), PILImage.Resampling.BOX)
    return np.asarray(small.resize((width, height), PILImage.Resampling.BOX))


def jpeg_compression(image: Image, generator: Generator, quality: int) -> Array:
    buffer = BytesIO()
    PILImage.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(PILImage.open(buffer))


def saturate(image: Image, generator: Generator, factor: float, offset: float) -> Array:
    """In HSV a channel is V (1 - S t), t in [0, 1] from the hue: a new S needs no conversion. Grey has the red hue."""
    clean = unit(image)
    value = clean.max(axis=2, keepdims=True)
    below = value - clean
    spread = below.max(axis=2, keepdims=True)
    hue_term = np.where(spread > 0, below / np.maximum(spread, 1e-12), np.array([0.0, 1.0, 1.0]))
    saturation = spread / np.maximum(value, 1e-12)
    return value * (1 - np.clip(saturation * factor + offset, 0, 1) * hue_term) * 255
