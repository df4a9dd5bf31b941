"""The 15 common corruptions and 4 held-out ones (Hendrycks and Dietterich, ICLR 2019,
arXiv:1903.12261).

What an image receives depends on (pixels, name, severity, key, seed) and the set of constants only.
The released CIFAR-10-C and ImageNet-C were made without a seed, so they can be met in distribution,
not bit for bit; the released ImageNet-C files are also saved as JPEG of quality 85, which is not
done here.

As stages of a sequence, "gaussian_noise+fog", the 15 have severities between the whole ones, too:
the pairs under severities that change smoothly of CCC (Press et al., NeurIPS 2023,
arXiv:2306.05401).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undegrade.utils.choices import check_choice
from undegrade.utils.data.perturbations import corruption_functions as functions
from undegrade.utils.data.perturbations import corruption_noise as noise
from undegrade.utils.data.perturbations import corruption_weather as weather
from undegrade.utils.data.perturbations.corruption_constants import BETWEEN, CONSTANT_SETS, CONSTANTS, Between, Severities
from undegrade.utils.data.perturbations.perturbation import PERTURBATIONS, Perturbation, PerturbationOptions
from undegrade.utils.seeding import numpy_generator

SEVERITIES: tuple[int, ...] = (1, 2, 3, 4, 5)

_VALUES_AT_ONCE = 3 << 16  # that stay in a processor's caches: 64 images of 32 px, 1 of 224 px


@functools.lru_cache(maxsize=64)
def default_constants(size: int, sets: Sequence[str] = tuple(CONSTANT_SETS)) -> str:
    """The set whose own image side is nearest in ratio to `size` pixels: of all, "cifar" to 45,
    "tiny" to 119, "imagenet".
    """
    return min(sets, key=lambda name: abs(math.log(size / CONSTANT_SETS[name])))


@dataclass(frozen=True, kw_only=True)
class Corruption(Perturbation):
    """A function with constants for five severities and one or several image sizes.

    Attributes:
        function: (images uint8 [B, 3, H, W], a generator for each image, *constants) -> uint8, or
            grey levels as float, which are clipped and truncated, not rounded, as in the released
            files. The seed, the name, the severity and the key select an image's random stream.
        constants: set of constants -> of severity s, at place s - 1, the arguments of the function;
            the sets are some of `CONSTANT_SETS`.
        between: how the constants between two severities are found; None: there are none, and the
            corruption can be no stage of a sequence.
    """

    description: str = "severity"
    sweep: tuple[float, ...] = SEVERITIES
    by_severity: bool = True
    function: Callable[..., Tensor]
    constants: Mapping[str, Severities]
    between: Between | None = None

    @functools.cached_property
    def as_stage(self) -> Corruption | None:
        """The corruption with all severities from 0, untouched, to 5; quarters of them are drawn,
        as CCC has them.
        """
        if self.between is None:
            return None
        return dataclasses.replace(self, by_severity=False, sweep=tuple(quarter / 4 for quarter in range(21)))

    def identity(self, options: PerturbationOptions, image_size: int) -> dict[str, Any]:
        return {"constants": self._set(options, image_size)}

    @property
    def reads(self) -> set[str]:
        return {"constants"}

    def _set(self, options: PerturbationOptions, image_size: int) -> str:
        if options.constants is None:
            return default_constants(image_size, tuple(self.constants))
        return check_choice(options.constants, self.constants, "set of corruption constants", self.name)

    def _constants(self, rows: Severities, severity: float) -> tuple[Any, ...]:
        if isinstance(severity, int):
            return rows[severity - 1]
        assert self.between is not None
        return self.between.constants(rows, severity)

    def perturbed(self, images: Tensor, levels: Tensor, keys: Sequence[str], seed: int, options: PerturbationOptions) -> Tensor:
        rows = self.constants[self._set(options, min(images.shape[-2:]))]
        severities = [int(level) if level.is_integer() else level for level in levels.tolist()]

        def corrupt_part(part: Tensor, severity: float, part_keys: Sequence[str]) -> Tensor:
            if severity == 0:
                return part
            generators = (numpy_generator(seed, self.name, severity, key) for key in part_keys)  # made only if they are asked for
            out = self.function(part, generators, *self._constants(rows, severity))
            return out if out.dtype == torch.uint8 else _levels(out)  # noise, filters, JPEG, pixelate give grey levels already

        at_once = max(1, _VALUES_AT_ONCE // max(1, math.prod(images.shape[1:])))
        if len(images) <= at_once and len(set(severities)) == 1:
            return corrupt_part(images, severities[0], keys)
        result = torch.empty_like(images, memory_format=torch.contiguous_format)
        for severity in sorted(set(severities)):
            chosen = [index for index, value in enumerate(severities) if value == severity]
            for part in (chosen[start : start + at_once] for start in range(0, len(chosen), at_once)):
                place = torch.tensor(part, device=images.device)
                result[place] = corrupt_part(images[place], severity, [keys[index] for index in part])
        return result


def _levels(values: Tensor) -> Tensor:
    """Clipped to 0..255 and truncated."""
    if values.device.type != "cpu":
        return values.clamp_(0, 255).to(torch.uint8)
    array = values.numpy()  # which converts several times faster
    return torch.from_numpy(array.clip(0, 255, out=array).astype(np.uint8))


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

for _name, _function in FUNCTIONS.items():
    PERTURBATIONS.add(_name, Corruption(name=_name, function=_function, constants=CONSTANTS[_name], between=BETWEEN.get(_name)))

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
