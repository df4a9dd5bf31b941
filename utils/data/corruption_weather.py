"""The weather corruptions and spatter: layers laid over one image at a time.

Signatures and units as in `utils.data.corruption_functions`.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from utils.data.corruption_functions import Array, Generator, motion_smear, smooth, unit, zoom
from utils.data.image_batch import Image
from utils.data.opencv import cv2

# The published generators list six photographs and draw from the first five.
FROST_PHOTOGRAPHS = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")

WATER = np.array([175, 238, 238]) / 255
MUD = np.array([63, 42, 20]) / 255


def snow(
    image: Image,
    generator: Generator,
    mean: float,
    std: float,
    factor: float,
    threshold: float,
    radius: int,
    sigma: float,
    weight: float,
) -> Array:
    clean = unit(image)
    flakes = zoom(generator.normal(mean, std, size=image.shape[:2]), factor)
    flakes = np.where(flakes < threshold, 0, np.clip(flakes, 0, 1))
    layer = unit(motion_smear((flakes * 255).astype(np.uint8), radius, sigma, generator.uniform(-135, -45)))[..., None]
    grey = clean @ np.array([0.299, 0.587, 0.114])
    whitened = weight * clean + (1 - weight) * np.maximum(clean, grey[..., None] * 1.5 + 0.5)
    return (whitened + layer + np.rot90(layer, k=2)) * 255


@lru_cache(maxsize=16)
def _frost_photograph(index: int, scale: float, height: int, width: int) -> Image:
    """RGB photograph [> height, > width, 3], resized by `scale`, or by more where it would not cover the image."""
    package = importlib.util.find_spec("imagecorruptions")
    if package is None or not package.submodule_search_locations:
        raise ValueError("frost needs photographs that are not installed: pip install imagecorruptions-imaug")
    path = Path(package.submodule_search_locations[0]) / "frost" / FROST_PHOTOGRAPHS[index]
    photograph = cv2.imread(str(path))
    if photograph is None:
        raise ValueError(f"frost photograph {path} cannot be read: pip install --force-reinstall imagecorruptions-imaug")
    photograph = cv2.cvtColor(photograph, cv2.COLOR_BGR2RGB)
    scale = max(scale, (height + 1) / photograph.shape[0], (width + 1) / photograph.shape[1])
    return np.asarray(cv2.resize(photograph, None, fx=scale, fy=scale), dtype=np.uint8)


def frost(image: Image, generator: Generator, image_weight: float, frost_weight: float, scale: float) -> Array:
    height, width = image.shape[:2]
    photograph = _frost_photograph(int(generator.integers(len(FROST_PHOTOGRAPHS))), scale, height, width)
    top = generator.integers(photograph.shape[0] - height)
    left = generator.integers(photograph.shape[1] - width)
    return image_weight * image + frost_weight * photograph[top : top + height, left : left + width]


def height_map(side: int, decay: float, generator: Generator) -> NDArray[np.float64]:
    """Fractal landscape [side, side] in [0, 1]: diamond-square algorithm on a torus; `side` is a power of two.

    At each scale the new points are the mean of four neighbours plus uniform noise of amplitude w^2, with w = 100 at
    the coarsest scale and divided by `decay` at each finer one.
    """
    heights = np.zeros((side, side))
    step, wobble = side, 100.0

    def rough(sum_of_four: NDArray[np.float64]) -> NDArray[np.float64]:
        return sum_of_four / 4 + wobble * generator.uniform(-wobble, wobble, size=sum_of_four.shape)

    while step >= 2:
        half = step // 2
        corner = heights[::step, ::step]
        pair = corner + np.roll(corner, -1, axis=0)
        centre = rough(pair + np.roll(pair, -1, axis=1))
        heights[half::step, half::step] = centre
        heights[::step, half::step] = rough(centre + np.roll(centre, 1, axis=0) + corner + np.roll(corner, -1, axis=1))
        heights[half::step, ::step] = rough(centre + np.roll(centre, 1, axis=1) + corner + np.roll(corner, -1, axis=0))
        step, wobble = half, wobble / decay
    heights -= heights.min()
    return heights / heights.max()


def fog(image: Image, generator: Generator, amount: float, decay: float) -> Array:
    height, width = image.shape[:2]
    side = 1 << (max(height, width) - 1).bit_length()
    clean = unit(image)
    brightest = clean.max()
    foggy = clean + amount * height_map(side, decay, generator)[:height, :width, None]
    return foggy * brightest / (brightest + amount) * 255


def brightness(image: Image, generator: Generator, offset: float) -> Array:
    """HSV value plus `offset`; hue and saturation stay, so the three channels keep their ratios."""
    clean = unit(image)
    value = clean.max(axis=2, keepdims=True)
    raised = np.minimum(value + offset, 1)
    # Multiplied first: the brightest channel of a saturated pixel is then 1 exactly and survives the truncation as 255.
    return np.where(value > 0, clean * raised / np.maximum(value, 1e-12), raised) * 255


def _water(drops: Array, strength: float) -> Array:
    """Opacity [H, W] of water drops: the layer weighted by a relief that its edges cast."""
    layer = (np.clip(drops, 0, 1) * 255).astype(np.uint8)
    distance = cv2.distanceTransform(255 - cv2.Canny(layer, 50, 150), cv2.DIST_L2, 5)
    relief = cv2.equalizeHist(cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8))
    relief = cv2.filter2D(relief, cv2.CV_8U, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], dtype=np.float32))
    opacity = layer * cv2.blur(relief, (3, 3)).astype(np.float32)
    # On a small image no drop may pass the threshold; the published code then divides 0 by 0.
    return strength * opacity / max(float(opacity.max()), 1.0)


def spatter(
    image: Image,
    generator: Generator,
    mean: float,
    std: float,
    sigma: float,
    threshold: float,
    strength: float,
    mud: bool,
) -> Array:
    clean = unit(image)
    drops = smooth(generator.normal(mean, std, size=image.shape[:2]), sigma)
    if not mud:
        opacity = _water(np.where(drops < threshold, 0, drops), strength)[..., None]
        return (clean + opacity * WATER) * 255
    cover = smooth((drops > threshold).astype(np.float64), strength)[..., None]
    cover = np.where(cover < 0.8, 0, cover)
    return (clean * (1 - cover) + cover * MUD) * 255
