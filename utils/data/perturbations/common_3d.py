"""The corruptions of 3D Common Corruptions (Kar, Yeo, Atanov and Zamir, CVPR 2022,
arXiv:2203.01441) that need no more than the image: iso_noise, low_light and color_quant.

The others of ImageNet-3DCC are not made here: near_focus, far_focus, fog_3d, flash, xy_motion_blur
and z_motion_blur need depth; bit_error, h265_crf and h265_abr need a video encoder and are made
from videos that need depth, too. Constants are those of the public generator, the same for images
of all sizes.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from scipy import special
from torch import Tensor

from undegrade.utils.data.perturbations.corruption_functions import Array, Generators
from undegrade.utils.data.perturbations.corruption_noise import LEVELS, Table, redraw
from undegrade.utils.data.perturbations.corruptions import Corruption
from undegrade.utils.data.perturbations.perturbation import PERTURBATIONS

ISO_PHOTONS = 25  # at white, at every severity: the sensitivity changes the electronic noise only
LOW_LIGHT_PHOTONS, LOW_LIGHT_STD = 120, 0.018


def iso_table(std: float) -> Table:
    """P(w | v), [256, 256]: 255 (k / 25 + std z) truncated, k of the Poisson distribution with mean
    25 v / 255, at most 25, z standard normal.
    """
    counts, level = np.arange(ISO_PHOTONS + 1), np.arange(LEVELS)
    photons = np.diff(special.pdtr(counts, level[:, None] / 255 * ISO_PHOTONS), prepend=0)
    photons[:, -1] += 1 - photons.sum(1)  # more are as white
    below = special.ndtr(((level + 1) / 255 - counts[:, None] / ISO_PHOTONS) / std)  # P(result < w + 1 | k)
    below[:, -1] = 1
    return photons @ np.diff(below, prepend=0)


iso_noise = partial(redraw, table=iso_table)
"""(images, generators, standard deviation of the electronic noise, white being 1)."""


def low_light(images: Tensor, generators: Generators, brightest: float) -> Tensor:
    """Grey levels, squared and stretched so that the darkest of an image is 0 and the lightest
    255 `brightest`, under the noise of 120 photons at white and of a deviation of 0.018 of white.
    An image of one grey level becomes black.
    """
    results = []
    for image, generator in zip(images.cpu().numpy(), generators, strict=True):
        darkest, lightest = int(image.min()), int(image.max())
        light = ((image - float(darkest)) / max(1, lightest - darkest)) ** 2 * brightest
        results.append(_noisy(light, generator))
    return torch.from_numpy(np.stack(results)).to(images.device)


def _noisy(light: Array, generator: np.random.Generator) -> Array:
    photons = np.minimum(generator.poisson(light * LOW_LIGHT_PHOTONS) / LOW_LIGHT_PHOTONS, 1)
    return (photons + LOW_LIGHT_STD * generator.standard_normal(light.shape)) * 255


def color_quant(images: Tensor, generators: Generators, bits: int) -> Tensor:
    """The upper `bits` of each channel value."""
    return images & (256 - (1 << (8 - bits)))


COMMON_3D: dict[str, Corruption] = {
    name: Corruption(name=name, function=function, constants={"imagenet": tuple((value,) for value in values)})
    for name, function, values in (
        ("iso_noise", iso_noise, (0.056, 0.084, 0.126, 0.182, 0.266)),
        ("low_light", low_light, (0.6, 0.5, 0.4, 0.3, 0.2)),
        ("color_quant", color_quant, (5, 4, 3, 2, 1)),
    )
}
"""The part of ImageNet-3DCC that is made here."""

for _name, _row in COMMON_3D.items():
    PERTURBATIONS.add(_name, _row)
