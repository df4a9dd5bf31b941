"""JPEG, noise, blur, salt-and-pepper and their sequences, on uint8 images, at levels in the degradation's own unit.

The operators are those of the `imagedegrade` package. What an image receives depends on (pixels, name, level, key,
seed) only. The level is no part of the random stream: noise at sigma 20 is exactly twice the noise at sigma 10 (before
clipping), so a sweep over levels follows one draw for each image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from scipy import ndimage
from torch import Tensor

from utils.choices import check_choice
from utils.data.image_batch import Image, check_images, map_images
from utils.seeding import numpy_generator


@dataclass(frozen=True)
class DegradationCompat:
    """Where published results were made with something else than the right operation.

    Attributes:
        rounding: how float grey levels become uint8. Truncation darkens by about half a grey level.
        salt_value: the grey level of salt. `imagedegrade` on arrays in 0..255 uses 1, so its salt is black.
        blur_intermediate: "uint8" truncates after each of the two passes, which darkens by about one grey level.
        watermark_font: font file of the watermark (None: the first that is installed, see utils/data/watermark.py).
    """

    rounding: Literal["round", "truncate"] = "round"
    salt_value: Literal[255, 1] = 255
    blur_intermediate: Literal["float", "uint8"] = "float"
    watermark_font: str | None = None

    def __post_init__(self) -> None:
        check_choice(self.rounding, ("round", "truncate"), "rounding")
        check_choice(self.blur_intermediate, ("float", "uint8"), "blur_intermediate")
        if self.salt_value not in (255, 1):
            raise ValueError(f"unknown salt_value {self.salt_value!r}: allowed: 255 (white), 1 (as imagedegrade)")


CORRECT = DegradationCompat()
REFERENCE = DegradationCompat(rounding="truncate", salt_value=1, blur_intermediate="uint8")
"""Bit for bit what the public FusionDistill and DiffAUD code computes from the same random numbers."""


def _to_uint8(grey: NDArray[np.float64], compat: DegradationCompat) -> Image:
    if compat.rounding == "round":
        grey = np.rint(grey)
    return np.clip(grey, 0, 255).astype(np.uint8)


def _jpeg(image: Image, quality: float, generator: np.random.Generator, compat: DegradationCompat) -> Image:
    if not float(quality).is_integer():
        raise ValueError(f"jpeg quality {quality} is not a whole number: pass 1, 2, ..., 100 or 101 (untouched)")
    if quality > 100:
        return image
    buffer = BytesIO()
    PILImage.fromarray(image).save(buffer, "JPEG", quality=int(quality))
    return np.asarray(PILImage.open(buffer))


def _noise(image: Image, sigma: float, generator: np.random.Generator, compat: DegradationCompat) -> Image:
    return _to_uint8(image + sigma * generator.standard_normal(image.shape), compat)


def _blur(image: Image, sigma: float, generator: np.random.Generator, compat: DegradationCompat) -> Image:
    # On a uint8 array scipy stores each of its two passes as truncated uint8.
    source = image if compat.blur_intermediate == "uint8" else image.astype(np.float64)
    blurred = ndimage.gaussian_filter(source, sigma=(sigma, sigma, 0), truncate=3.0, mode="nearest")
    return _to_uint8(blurred, compat)


def _saltpepper(image: Image, p: float, generator: np.random.Generator, compat: DegradationCompat) -> Image:
    # Salt is written after pepper: P(salt) = p/2, P(pepper) = p/2 (1 - p/2), for each channel value on its own.
    pepper = generator.random(image.shape) > 1 - p / 2
    salt = generator.random(image.shape) > 1 - p / 2
    return np.where(salt, np.uint8(compat.salt_value), np.where(pepper, np.uint8(0), image))


@dataclass(frozen=True)
class Degradation:
    """One degradation.

    Attributes:
        name: as in configs and file names.
        function: (image [H, W, 3] uint8, level in own unit, generator, compat) -> image of that shape, uint8.
        levels: first and last whole number of the sweep; both are used.
        scale: a sweep number k stands for level k / scale in the own unit.
        clean: the level, in own unit, at which the image is untouched.
        description: own unit and meaning, for messages and tables.
    """

    name: str
    function: Callable[[Image, float, np.random.Generator, DegradationCompat], Image]
    levels: tuple[int, int]
    scale: int
    clean: float
    description: str

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest level in the own unit."""
        return self.levels[0] / self.scale, self.levels[1] / self.scale

    @property
    def worst(self) -> float:
        """The end of the range that lies away from the clean level."""
        low, high = self.bounds
        return low if self.clean == high else high

    def check(self, level: float) -> float:
        """Return `level`, or raise ValueError with the allowed range."""
        low, high = self.bounds
        if not low <= level <= high:
            raise ValueError(f"{self.name} level {level:g} is out of range: allowed: {low:g} to {high:g} ({self.description})")
        return level


DEGRADATIONS: dict[str, Degradation] = {
    row.name: row
    for row in (
        Degradation("jpeg", _jpeg, (1, 101), 1, 101.0, "JPEG quality, 4:2:0 chroma; 101 is untouched"),
        Degradation("noise", _noise, (0, 50), 1, 0.0, "standard deviation of Gaussian noise in grey levels"),
        Degradation("blur", _blur, (0, 50), 10, 0.0, "standard deviation of the Gaussian in pixels"),
        Degradation("saltpepper", _saltpepper, (0, 25), 100, 0.0, "probability that a channel value is hit"),
    )
}


@dataclass(frozen=True)
class NamedSequence:
    """Blur, then noise, then JPEG at fixed levels (DiffAUD's evaluation sequences, as documented).

    Attributes:
        blur_fraction: standard deviation of the blur as a fraction of the image's shorter side.
        noise: standard deviation of the noise in grey levels.
        quality: JPEG quality.
    """

    blur_fraction: float
    noise: float
    quality: float

    def stages(self, side: int) -> list[tuple[Degradation, float]]:
        """The rows and their levels for an image whose shorter side has `side` pixels."""
        levels = {"blur": self.blur_fraction * side, "noise": self.noise, "jpeg": self.quality}
        return [(DEGRADATIONS[name], level) for name, level in levels.items()]


NAMED_SEQUENCES: dict[str, NamedSequence] = {
    "weak_seq": NamedSequence(0.02, 10, 80),
    "medium_seq": NamedSequence(0.04, 20, 60),
    "strong_seq": NamedSequence(0.08, 30, 40),
}


def rows_of(name: str) -> list[Degradation]:
    """The rows of "blur" or of a sequence such as "blur+noise+jpeg"; ValueError with the closest name for an unknown one."""
    if "+" not in name:
        check_choice(name, [*DEGRADATIONS, *NAMED_SEQUENCES], "degradation")
    parts = name.split("+")
    where = f"sequence {name!r}" if len(parts) > 1 else ""
    return [DEGRADATIONS[check_choice(part, DEGRADATIONS, "degradation", where)] for part in parts]


def _stages(name: str, level: Tensor | float, images: Tensor) -> list[list[tuple[Degradation, float]]]:
    """For each image the rows to apply, in order, with their checked levels."""
    if name in NAMED_SEQUENCES:
        return [NAMED_SEQUENCES[name].stages(min(images.shape[-2:]))] * len(images)
    rows = rows_of(name)
    levels = torch.as_tensor(level)
    shape = [len(images)] if len(rows) == 1 else [len(images), len(rows)]
    if len(rows) == 1 and levels.ndim == 0:
        levels = levels.expand(shape)
    if list(levels.shape) != shape:
        raise ValueError(f"level of {name!r} has shape {list(levels.shape)}: expected {shape}, one for each image and stage")
    # A float32 level stands for the decimal it was written as: 0.3, not 0.30000001.
    table = levels.double().round(decimals=6).reshape(len(images), len(rows)).tolist()
    return [[(row, row.check(value)) for row, value in zip(rows, line, strict=True)] for line in table]


def degrade(
    images: Tensor,
    name: str,
    level: Tensor | float,
    *,
    keys: Sequence[str],
    seed: int,
    compat: DegradationCompat | None = None,
) -> Tensor:
    """Degrade each image.

    Args:
        images: uint8 [B, 3, H, W] on the CPU.
        name: a row of `DEGRADATIONS`, a sequence of them ("blur+noise+jpeg", applied from left to right) or one of
            `NAMED_SEQUENCES`.
        level: in the own unit of the degradation (JPEG quality, sigma in grey levels, sigma in pixels, probability):
            [B] or one number. For a sequence of n: [B, n]. Ignored for a named sequence (pass 0).
        keys: one string for each image; with `seed` and `name` it selects the image's random stream.
        seed: of the run.
        compat: None for the right operations, `REFERENCE` to reproduce the published code.

    Returns:
        uint8 [B, 3, H, W].

    Raises:
        ValueError: an unknown name, a level outside the allowed range, a wrong shape or dtype.
    """
    check_images(images, keys)
    plan = _stages(name, level, images)
    options = compat or CORRECT

    def degrade_one(image: Image, index: int) -> Image:
        generator = numpy_generator(seed, name, keys[index])
        for row, value in plan[index]:
            image = row.function(image, value, generator, options)
        return image

    return map_images(images, degrade_one)


def sweep_levels(name: str) -> list[float]:
    """All levels of an evaluation sweep in own unit: 101 (jpeg), 51 (noise, blur), 26 (saltpepper).

    A named sequence has the one level 0.

    Raises:
        ValueError: an unknown name, or a sequence, whose sweep would be a product of sweeps.
    """
    if name in NAMED_SEQUENCES:
        return [0.0]
    rows = rows_of(name)
    if len(rows) > 1:
        raise ValueError(f"the sequence {name!r} has no sweep: sweep one of {', '.join(DEGRADATIONS)}, or use sample_levels")
    (row,) = rows
    return [number / row.scale for number in range(row.levels[0], row.levels[1] + 1)]


def unit_level(name: str, level: Tensor | float) -> Tensor:
    """Levels on one scale for all degradations: 0 is clean, 1 is the worst of the sweep.

    Args:
        name: as for `degrade`.
        level: own unit, any shape; for a sequence of n: [..., n].

    Returns:
        float32 of the shape of `level`; for a sequence [...], the mean over its stages; ones for a named sequence.
    """
    levels = torch.as_tensor(level, dtype=torch.float32)
    if name in NAMED_SEQUENCES:
        return torch.ones_like(levels)
    rows = rows_of(name)
    clean = torch.tensor([row.clean for row in rows])
    worst = torch.tensor([row.worst for row in rows])
    if len(rows) == 1:
        return (levels - clean[0]) / (worst[0] - clean[0])
    return ((levels - clean) / (worst - clean)).mean(-1)


def draw_numbers(
    name: str, spans: Sequence[tuple[int, int]], keys: Sequence[str], seed: int, shared: bool = False
) -> NDArray[np.int64]:
    """One whole number [B, n] for each key and each of n spans, uniform from the first to the last of the span, both included.

    Args:
        name: of the perturbation.
        spans: (first, last) of each stage.
        keys: one string for each image.
        seed: of the run.
        shared: False: drawn by (seed, name, key), stage by stage. True: by (seed, key) alone, one u in [0, 1) for whatever name
            and all stages, whose numbers are first + floor(u (last - first + 1)).
    """
    first, last = np.array(spans, dtype=np.int64).T
    if shared:
        u = np.array([numpy_generator(seed, "shared level", key).random() for key in keys]).reshape(-1, 1)
        return first + np.floor(u * (last - first + 1)).astype(np.int64)
    draws = [numpy_generator(seed, "level", name, key).integers(first, last + 1) for key in keys]
    return np.array(draws, dtype=np.int64).reshape(len(keys), len(spans))


def sample_levels(name: str, keys: Sequence[str], seed: int, shared: bool = False) -> Tensor:
    """One level for each key, uniform over the whole numbers of the sweep.

    Args:
        name: as for `degrade`.
        keys: one string for each image.
        seed: of the run.
        shared: every degradation at the same place of its sweep (see `draw_numbers`).

    Returns:
        float32 [B] in own unit; [B, n] for a sequence of n; zeros [B] for a named sequence. An image's level depends on
        (seed, name, key) only; if shared, on (seed, key) and the sweep's range.
    """
    if name in NAMED_SEQUENCES:
        return torch.zeros(len(keys))
    rows = rows_of(name)
    numbers = draw_numbers(name, [row.levels for row in rows], keys, seed, shared)
    levels = torch.from_numpy(numbers).float() / torch.tensor([row.scale for row in rows])
    return levels if len(rows) > 1 else levels.squeeze(1)
