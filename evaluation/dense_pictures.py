"""Pictures of masks and points: a row an image, with its truth and what a network says."""

from __future__ import annotations

import colorsys

import numpy as np
from torch import Tensor

from undegrade.utils.data.targets import IGNORED
from undegrade.utils.figures import sample_grid

_SIDE = 128  # to which small images are enlarged, about
_TRUTH, _PREDICTED = (0, 220, 60), (255, 60, 40)


def shown(images: Tensor, truth: Tensor, predicted: Tensor) -> np.ndarray:
    """Image, truth and prediction side by side; masks are half transparent, class 0 and pixels
    without class are the image.

    Args:
        images: uint8 [N,3,S,S].
        truth, predicted: int64 [N,S,S].

    Returns:
        uint8 [H,W,3].
    """
    pixels = images.permute(0, 2, 3, 1).numpy()
    tiles = np.stack([pixels, _coloured(pixels, truth.numpy()), _coloured(pixels, predicted.numpy())], axis=1)
    return sample_grid(tiles.reshape(-1, *pixels.shape[1:]), 3, _scale(images))


def points_shown(images: Tensor, truth: Tensor, predicted: Tensor) -> np.ndarray:
    """Image, image with the true points (green), image with the predicted ones (red) side by side.

    Args:
        images: uint8 [N,3,S,S].
        truth, predicted: float [N,P,2] of (x, y) in pixels.

    Returns:
        uint8 [H,W,3].
    """
    scale = _scale(images)
    pixels = images.permute(0, 2, 3, 1).numpy().repeat(scale, 1).repeat(scale, 2)
    both = (_marked(pixels, truth, _TRUTH, scale), _marked(pixels, predicted, _PREDICTED, scale))
    return sample_grid(np.stack([pixels, *both], axis=1).reshape(-1, *pixels.shape[1:]), 3)


def _scale(images: Tensor) -> int:
    return max(1, _SIDE // images.shape[-1])


def _coloured(pixels: np.ndarray, masks: np.ndarray) -> np.ndarray:
    hues = [(index * 0.618034) % 1 for index in range(IGNORED + 1)]  # golden ratio: neighbours are far apart
    palette = np.array([colorsys.hsv_to_rgb(hue, 0.9, 1.0) for hue in hues]) * 255
    bare = ((masks == 0) | (masks == IGNORED))[..., None]
    return np.where(bare, pixels, 0.4 * pixels + 0.6 * palette[masks]).round().astype(np.uint8)


def _marked(pixels: np.ndarray, points: Tensor, colour: tuple[int, int, int], scale: int) -> np.ndarray:
    """The images [N,H,W,3], enlarged by `scale`, with a cross at each point."""
    out = pixels.copy()
    for image, places in zip(out, points.tolist(), strict=True):
        for x, y in places:
            if x == x and y == y:  # not NaN
                column, row = round((x + 0.5) * scale - 0.5), round((y + 0.5) * scale - 0.5)
                for d in range(-2, 3):
                    for r, c in ((row + d, column), (row, column + d)):
                        if 0 <= r < image.shape[0] and 0 <= c < image.shape[1]:
                            image[r, c] = colour
    return out
