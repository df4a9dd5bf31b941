"""Small images with the statistics that degradations react to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image


def photo_like(count: int, side: int, seed: int = 0) -> torch.Tensor:
    """uint8 [count, 3, side, side]: colour gradients and texture, patches of grey, black and white
    in a corner.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side] / side
    waves = [128 + 90 * np.sin(6 * rows * a + 5 * columns * b) for a, b in rng.uniform(0.3, 2, (3 * count, 2))]
    images = np.stack(waves).reshape(count, 3, side, side) + rng.normal(0, 15, (count, 3, side, side))
    for place, grey in enumerate((100, 0, 255)):
        images[:, :, : side // 12, place * side // 12 : (place + 1) * side // 12] = grey
    return torch.from_numpy(np.clip(images, 0, 255).astype(np.uint8))


def to_array(image: torch.Tensor) -> np.ndarray:
    """[3, H, W] tensor to a contiguous [H, W, 3] array."""
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def save_all(folder: Path, names: Sequence[str], images: torch.Tensor) -> None:
    """Write uint8 [N, 3, H, W] as `<folder>/<name>`, names with suffix."""
    for name, image in zip(names, images, strict=True):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(to_array(image)).save(path)
