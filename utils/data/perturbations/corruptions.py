"""The 15 common corruptions and 4 held-out ones (Hendrycks and Dietterich, ICLR 2019,
arXiv:1903.12261).

What an image receives depends on (pixels, name, severity, key, seed) only. The released CIFAR-10-C
and ImageNet-C were made without a seed, so they can be met in distribution, not bit for bit; the
released ImageNet-C files are also saved as JPEG of quality 85, which is not done here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from undegrade.utils.choices import check_choice
from undegrade.utils.data.perturbations import corruption_functions as functions
from undegrade.utils.data.perturbations import corruption_noise as noise
from undegrade.utils.data.perturbations import corruption_weather as weather
from undegrade.utils.data.perturbations.corruption_constants import CONSTANT_SETS, CONSTANTS
from undegrade.utils.data.perturbations.image_batch import check_images
from undegrade.utils.seeding import numpy_generator

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "defocus_blur": functions.defocus_blur,
    "glass_blur": functions.glass_blur,
    "motion_blur": functions.motion_blur,
    "zoom_blur": functions.zoom_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": weather.brightness,
    "contrast": functions.contrast,
    "elastic_transform": functions.elastic_transform,
    "pixelate": functions.pixelate,
    "jpeg_compression": functions.jpeg_compression,
    "speckle_noise": noise.speckle_noise,
    "gaussian_blur": functions.gaussian_blur,
    "spatter": weather.spatter,
    "saturate": functions.saturate,
}

ALL_CORRUPTIONS: tuple[str, ...] = tuple(FUNCTIONS)
CORRUPTIONS: tuple[str, ...] = ALL_CORRUPTIONS[:15]
"""The benchmark, in the official order; mCE is the mean over these."""
EXTRA_CORRUPTIONS: tuple[str, ...] = ALL_CORRUPTIONS[15:]
"""Held out for tuning; never part of mCE."""

FAMILIES: dict[str, tuple[str, ...]] = {
    "noise": CORRUPTIONS[:3],
    "blur": CORRUPTIONS[3:7],
    "weather": CORRUPTIONS[7:11],
    "digital": CORRUPTIONS[11:],
    "extra": EXTRA_CORRUPTIONS,
}

SEVERITIES: tuple[int, ...] = (1, 2, 3, 4, 5)

_VALUES_AT_ONCE = 3 << 16  # that stay in a processor's caches: 64 images of 32 px, 1 of 224 px


def default_constants(size: int) -> str:
    """The set whose own image side is nearest in ratio to `size` pixels: "cifar" to 45, "tiny" to
    119, "imagenet".
    """
    return min(CONSTANT_SETS, key=lambda name: abs(math.log(size / CONSTANT_SETS[name])))


def _severities(severity: Tensor | int, count: int) -> list[int]:
    values = torch.as_tensor(severity)
    if values.ndim == 0:
        values = values.expand(count)
    if list(values.shape) != [count] or values.is_floating_point():
        raise ValueError(
            f"severity is {values.dtype} {list(values.shape)}: "
            f"expected one whole number, or an int tensor [{count}] with one for each image"
        )
    for value in values.tolist():
        if value not in SEVERITIES:
            raise ValueError(f"severity {value} is out of range: allowed: 1, 2, 3, 4, 5")
    return values.tolist()


def corrupt(
    images: Tensor,
    name: str,
    severity: Tensor | int,
    *,
    keys: Sequence[str],
    seed: int,
    constants: str = "cifar",
) -> Tensor:
    """Corrupt each image.

    Args:
        images: uint8 [B, 3, H, W].
        name: one of `ALL_CORRUPTIONS`.
        severity: 1..5, one for all or an int tensor [B].
        keys: one string for each image; with `seed`, `name` and the severity it selects the image's
            random stream.
        seed: of the run.
        constants: "cifar", "tiny" or "imagenet" (see `default_constants`).

    Returns:
        uint8 [B, 3, H, W] on the device of `images`. Grey levels are truncated, not rounded, as in
        the released files.

    Raises:
        ValueError: an unknown name or set, a severity outside 1..5, a wrong shape or dtype, no
            photographs for frost.
    """
    check_images(images, keys)
    check_choice(name, ALL_CORRUPTIONS, "corruption")
    rows = CONSTANTS[name][check_choice(constants, CONSTANT_SETS, "set of corruption constants")]
    severities = _severities(severity, len(images))
    function = FUNCTIONS[name]

    def corrupt_part(part: Tensor, level: int, part_keys: Sequence[str]) -> Tensor:
        generators = (numpy_generator(seed, name, level, key) for key in part_keys)  # made only if they are asked for
        out = function(part, generators, *rows[level - 1])
        # uint8 results (noise, filters, JPEG, pixelate) are grey levels already
        return out if out.dtype == torch.uint8 else out.clamp_(0, 255).to(torch.uint8)

    at_once = max(1, _VALUES_AT_ONCE // max(1, math.prod(images.shape[1:])))
    if len(images) <= at_once and len(set(severities)) == 1:
        return corrupt_part(images, severities[0], keys)
    result = torch.empty_like(images, memory_format=torch.contiguous_format)
    for level in sorted(set(severities)):
        chosen = [index for index, value in enumerate(severities) if value == level]
        for part in (chosen[start : start + at_once] for start in range(0, len(chosen), at_once)):
            place = torch.tensor(part, device=images.device)
            result[place] = corrupt_part(images[place], level, [keys[index] for index in part])
    return result
