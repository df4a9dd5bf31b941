"""Apply a numpy function to each image, or each channel, of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from undegrade.utils.data.perturbations.opencv import cv2

Image = NDArray[np.uint8]  # [H, W, 3], RGB, 0..255
Plane = NDArray[Any]  # [H, W], one channel


def check_images(images: Tensor, keys: Sequence[str]) -> None:
    """Raise unless `images` is a uint8 tensor [B, 3, H, W] and `keys` holds B strings.

    Raises:
        ValueError: names what was given and what is expected.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        given = f"{images.dtype} {list(images.shape)}"
        raise ValueError(f"images are {given}: expected a torch.uint8 tensor [B, 3, H, W], values 0..255")
    if isinstance(keys, str) or len(keys) != len(images):
        first = f", the first {keys[0]!r}" if len(keys) else ""
        given = f"the key {keys!r}" if isinstance(keys, str) else f"{len(keys)} keys{first}"
        raise ValueError(f"got {len(images)} images and {given}: pass a list with one string for each image")


def through_jpeg(images: Tensor, qualities: Sequence[int | None]) -> Tensor:
    """uint8 [B, 3, H, W] to JPEG and back at the quality of each (None: untouched), computed on the
    CPU.

    Byte for byte as Pillow does it: both use libjpeg-turbo with 4:2:0 chroma.
    """
    pixels = images.cpu().numpy().copy()
    blue_first = np.empty((len(pixels), *pixels.shape[2:], 3), dtype=np.uint8)  # OpenCV's order
    for channel in range(3):  # one at a time: faster than one transposition
        blue_first[..., 2 - channel] = pixels[:, channel]
    for image, quality in zip(blue_first, qualities, strict=True):
        if quality is not None:
            code = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
            image[...] = cv2.imdecode(code, cv2.IMREAD_COLOR)
    for channel in range(3):
        pixels[:, channel] = blue_first[..., 2 - channel]
    return torch.from_numpy(pixels).to(images.device)


def map_images(images: Tensor, function: Callable[[Image, int], Image]) -> Tensor:
    """New [B, 3, H, W] with `function(image [H, W, 3] uint8, index in the batch)` of each image,
    computed on the CPU.
    """
    result = np.empty(images.shape, dtype=np.uint8)
    for index, channels in enumerate(images.cpu().contiguous().numpy()):
        result[index] = cv2.split(function(np.asarray(cv2.merge(list(channels)), dtype=np.uint8), index))
    return torch.from_numpy(result).to(images.device)


def map_planes(images: Tensor, function: Callable[[Plane], Plane]) -> Tensor:
    """New uint8 [B, C, H, W] with `function(float64 [H, W])` of each channel, clipped and
    truncated, computed on the CPU.
    """
    planes = images.cpu().contiguous().numpy()
    result = np.empty_like(planes)
    for index in np.ndindex(planes.shape[:2]):
        plane = function(planes[index].astype(np.float64))
        result[index] = plane.clip(0, 255, out=plane)
    return torch.from_numpy(result).to(images.device)
