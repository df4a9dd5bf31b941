"""Apply a numpy function to each image of a uint8 batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Image = NDArray[np.uint8]  # [H, W, 3], RGB, 0..255


def check_images(images: Tensor, keys: Sequence[str]) -> None:
    """Raise unless `images` is a uint8 tensor [B, 3, H, W] and `keys` holds B strings.

    Raises:
        ValueError: names what was given and what is expected.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images are {images.dtype} {list(images.shape)}: expected a torch.uint8 tensor [B, 3, H, W], values 0..255"
        )
    if isinstance(keys, str) or len(keys) != len(images):
        raise ValueError(f"got {len(images)} images and keys {keys!r}: pass a list with one string for each image")


def map_images(images: Tensor, function: Callable[[Image, int], Image]) -> Tensor:
    """New [B, 3, H, W] with `function(image [H, W, 3] uint8, index in the batch)` of each image, on the device of `images`."""
    pixels = np.ascontiguousarray(images.permute(0, 2, 3, 1).cpu().numpy())
    result = np.empty_like(pixels)
    for index, image in enumerate(pixels):
        result[index] = function(image, index)
    return torch.from_numpy(np.ascontiguousarray(result.transpose(0, 3, 1, 2))).to(images.device)
