"""The weather corruptions and spatter: layers laid over the images of a batch.

Signatures and units as in `utils.data.perturbations.corruption_functions`.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from undegrade.utils.data.perturbations.corruption_functions import (
    Array,
    Generators,
    magnify,
    motion_smear,
    smooth,
    zoom_crop,
)
from undegrade.utils.data.perturbations.opencv import cv2
from undegrade.utils.extras import how_to_install
from undegrade.utils.weights import located, registry

# The published generators list six photographs and draw from the first five.
_FROST = "frost_photographs"  # of the published files
FROST_PHOTOGRAPHS = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")

WATER = np.array([175, 238, 238], dtype=np.float32)[:, None, None]
MUD = np.array([63, 42, 20], dtype=np.float32)[:, None, None]


def snow(
    images: Tensor,
    generators: Generators,
    mean: float,
    std: float,
    factor: float,
    threshold: float,
    radius: float,
    sigma: float,
    weight: float,
) -> Tensor:
    height, width = images.shape[-2:]
    shape = (1, zoom_crop(height, factor)[1], zoom_crop(width, factor)[1])  # noise outside the magnified centre is not seen
    noise, angles = [], []
    for generator in generators:
        noise.append(generator.standard_normal(shape, dtype=np.float32))
        angles.append(generator.uniform(-135, -45))
    field = magnify(torch.from_numpy(np.stack(noise) * np.float32(std) + np.float32(mean)), factor, height, width).numpy()
    flakes = (field.clip(0, 1) * 255 * (field >= threshold)).astype(np.uint8)
    smeared = [motion_smear(one[0], radius, sigma, angle) for one, angle in zip(flakes, angles, strict=True)]
    layer = np.stack(smeared)[:, None].astype(np.float32)
    clean = images.cpu().numpy().astype(np.float32)
    grey = clean[:, :1] * 0.299
    grey += clean[:, 1:2] * 0.587
    grey += clean[:, 2:] * 0.114
    grey *= 1.5
    grey += 127.5
    white = np.maximum(clean, grey)
    white *= 1 - weight
    clean *= weight
    clean += white
    clean += layer + layer[..., ::-1, ::-1]
    return torch.from_numpy(clean).to(images.device)


def frost_folder() -> Path:
    """The folder of the photographs: that of the package imagecorruptions, where it is installed,
    else the downloaded one; downloads it (2 MB), once, where there is neither.

    Raises:
        ValueError: it cannot be downloaded; says how to bring it.
    """
    package = importlib.util.find_spec("imagecorruptions")  # which does not import it
    if package is not None and package.submodule_search_locations:
        return Path(package.submodule_search_locations[0]) / "frost"
    folder = located(_FROST)
    if folder.is_dir():
        return folder
    from undegrade.utils.downloads import download  # here, since it is seldom needed

    try:
        return download(registry()[_FROST])
    except (ValueError, OSError) as error:
        raise ValueError(f"frost needs photographs ({error}); or {how_to_install('frost')}") from error


@lru_cache(maxsize=16)
def _frost_photograph(index: int, scale: float, height: int, width: int) -> Tensor:
    """RGB photograph, uint8 [3, > height, > width], resized by `scale`, or by more where it would
    not cover the image.
    """
    path = frost_folder() / FROST_PHOTOGRAPHS[index]
    photograph = cv2.imread(str(path))
    if photograph is None:
        raise ValueError(f"frost photograph {path} cannot be read: remove its folder, then {how_to_install('frost')}")
    scale = max(scale, (height + 1) / photograph.shape[0], (width + 1) / photograph.shape[1])
    resized = cv2.resize(cv2.cvtColor(photograph, cv2.COLOR_BGR2RGB), None, fx=scale, fy=scale)
    return torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))


def frost(images: Tensor, generators: Generators, image_weight: float, frost_weight: float, scale: float) -> Tensor:
    height, width = images.shape[-2:]
    layers = []
    for generator in generators:
        photograph = _frost_photograph(int(generator.integers(len(FROST_PHOTOGRAPHS))), scale, height, width)
        top = generator.integers(photograph.shape[-2] - height)
        left = generator.integers(photograph.shape[-1] - width)
        layers.append(photograph[:, top : top + height, left : left + width])
    return images.float().mul_(image_weight).add_(torch.stack(layers).to(images.device).float(), alpha=frost_weight)


def height_map(uniform: Array, side: int, decay: float) -> Array:
    """Fractal landscapes [n, side, side] in [0, 1]: diamond-square algorithm on a torus; `side` is
    a power of two.

    At each scale the new points are the mean of four neighbours plus uniform noise of amplitude
    w^2, with w = 100 at the coarsest scale and divided by `decay` at each finer one. `uniform`
    holds the noise, float32 [n, side^2 - 1] in [-1, 1].
    """
    corner, wobble = np.zeros((len(uniform), 1, 1), dtype=np.float32), 100.0
    while corner.shape[1] < side:
        here = corner.shape[1]
        noise, uniform = uniform[:, : 3 * here**2] * np.float32(wobble**2), uniform[:, 3 * here**2 :]
        rough = noise.reshape(-1, 3, here, here)
        around = np.empty((len(corner), here + 1, here + 1), dtype=np.float32)  # with the first row and column at the end
        around[:, :-1, :-1], around[:, -1, :-1], around[:, :, -1] = corner, corner[:, 0], around[:, :, 0]
        below = around[:, :-1] + around[:, 1:]  # [n, here, here + 1], the last column the first one
        beside = around[:, :-1, :-1] + around[:, :-1, 1:]
        centres = np.empty_like(around)  # with the last row and column at the beginning
        centre = centres[:, 1:, 1:]
        np.add(below[..., :-1], below[..., 1:], out=centre)
        centre /= 4
        centre += rough[:, 0]
        centres[:, 0, 1:], centres[:, 1:, 0] = centre[:, -1], centre[:, :, -1]
        finer = np.empty((len(corner), 2 * here, 2 * here), dtype=np.float32)
        finer[:, ::2, ::2], finer[:, 1::2, 1::2] = corner, centre
        for place, before, edges, offset in (
            (finer[:, ::2, 1::2], centres[:, :-1, 1:], beside, rough[:, 1]),
            (finer[:, 1::2, ::2], centres[:, 1:, :-1], below[..., :-1], rough[:, 2]),
        ):
            mean = centre + before
            mean += edges
            mean /= 4
            np.add(mean, offset, out=place)
        corner, wobble = finer, wobble / decay
    corner -= corner.min(axis=(1, 2), keepdims=True)
    corner /= corner.max(axis=(1, 2), keepdims=True)
    return corner


def fog(images: Tensor, generators: Generators, amount: float, decay: float) -> Tensor:
    height, width = images.shape[-2:]
    side = max(2, 1 << (max(height, width) - 1).bit_length())
    uniform = np.stack([generator.random(side**2 - 1, dtype=np.float32) for generator in generators])
    uniform *= 2
    uniform -= 1
    layer = height_map(uniform, side, decay)[:, None, :height, :width] * np.float32(255 * amount)
    clean = images.cpu().numpy()
    brightest = clean.max(axis=(1, 2, 3), keepdims=True) / np.float32(255)
    foggy = clean + layer
    foggy *= brightest / (brightest + np.float32(amount))
    return torch.from_numpy(foggy).to(images.device)


def brightness(images: Tensor, generators: Generators, offset: float) -> Tensor:
    """HSV value plus `offset`; hue and saturation stay, so the three channels keep their ratios.
    Black becomes grey.
    """
    clean = images.cpu().numpy() / 255
    value = clean.max(axis=1, keepdims=True)
    black = value == 0
    # Multiplied first: the brightest channel of a saturated pixel is then 1 exactly and survives
    # the truncation as 255.
    clean += black
    clean *= np.minimum(value + offset, 1)
    clean /= value + black
    clean *= 255
    return torch.from_numpy(clean).to(images.device)


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
    images: Tensor,
    generators: Generators,
    mean: float,
    std: float,
    sigma: float,
    threshold: float,
    strength: float,
    mud: bool,
) -> Tensor:
    layers = []
    for clean, generator in zip(images.cpu().numpy(), generators, strict=True):
        drops = smooth(generator.normal(mean, std, size=images.shape[-2:]), sigma)
        if mud:
            cover = smooth((drops > threshold).astype(np.float64), strength)
            cover = np.where(cover < 0.8, 0, cover)
            layers.append(clean * (1 - cover) + cover * MUD)
        else:
            layers.append(clean + _water(np.where(drops < threshold, 0, drops), strength) * WATER)
    return torch.from_numpy(np.stack(layers)).to(images.device)
