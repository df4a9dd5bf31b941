"""JPEG, noise, blur, salt-and-pepper and their sequences, on uint8 images, at levels in the
degradation's own unit.

The operators are those of the `imagedegrade` package. What an image receives depends on (pixels,
name, level, key, seed) only. The level is no part of the random stream: noise at sigma 20 is
exactly twice the noise at sigma 10 (before clipping), so a sweep over levels follows one draw for
each image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from undegrade.utils.choices import check_choice
from undegrade.utils.data.perturbations.degradation_functions import DegradationCompat, Random, blur, jpeg, noise, saltpepper
from undegrade.utils.data.perturbations.image_batch import check_images
from undegrade.utils.random_fields import RandomFields, scaled

CHUNK = 2**20  # channel values that are degraded at once: memory for a few numbers each

CORRECT = DegradationCompat()
REFERENCE = DegradationCompat(rounding="truncate", salt_value=1, blur_intermediate="uint8")
"""Bit for bit what the public FusionDistill and DiffAUD code computes from the same random numbers.
"""


@dataclass(frozen=True)
class Degradation:
    """One degradation.

    Attributes:
        name: as in configs and file names.
        function: of a whole batch, see utils/data/perturbations/degradation_functions.py.
        levels: first and last whole number of the sweep; both are used.
        scale: a sweep number k stands for level k / scale in the own unit.
        clean: the level, in own unit, at which the image is untouched.
        description: own unit and meaning, for messages and tables.
    """

    name: str
    function: Callable[[Tensor, Tensor, Random, DegradationCompat], Tensor]
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
        Degradation("jpeg", jpeg, (1, 101), 1, 101.0, "JPEG quality, 4:2:0 chroma; 101 is untouched"),
        Degradation("noise", noise, (0, 50), 1, 0.0, "standard deviation of Gaussian noise in grey levels"),
        Degradation("blur", blur, (0, 50), 10, 0.0, "standard deviation of the Gaussian in pixels"),
        Degradation("saltpepper", saltpepper, (0, 25), 100, 0.0, "probability that a channel value is hit"),
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
    """The rows of "blur" or of a sequence such as "blur+noise+jpeg"; ValueError with the closest
    name for an unknown one.
    """
    if "+" not in name:
        check_choice(name, [*DEGRADATIONS, *NAMED_SEQUENCES], "degradation")
    parts = name.split("+")
    where = f"sequence {name!r}" if len(parts) > 1 else ""
    return [DEGRADATIONS[check_choice(part, DEGRADATIONS, "degradation", where)] for part in parts]


def _stages(name: str, level: Tensor | float, images: Tensor) -> tuple[list[Degradation], Tensor]:
    """The n rows to apply, in order, and their checked levels, float64 [B, n]."""
    if name in NAMED_SEQUENCES:
        stages = NAMED_SEQUENCES[name].stages(min(images.shape[-2:]))
        fixed = torch.tensor([value for _, value in stages], dtype=torch.float64)
        return [row for row, _ in stages], fixed.expand(len(images), -1)
    rows = rows_of(name)
    levels = torch.as_tensor(level)
    shape = [len(images)] if len(rows) == 1 else [len(images), len(rows)]
    if len(rows) == 1 and levels.ndim == 0:
        levels = levels.expand(shape)
    if list(levels.shape) != shape:
        raise ValueError(f"level of {name!r} has shape {list(levels.shape)}: expected {shape}, one for each image and stage")
    table = _decimals(levels).reshape(len(images), len(rows))
    for row, column in zip(rows, table.T.tolist(), strict=True):
        for value in set(column):
            row.check(value)
    return rows, table


def _decimals(level: Tensor | float) -> Tensor:
    """Float64 on the CPU. A float32 level stands for the decimal it was written as: 0.3, not
    0.30000001.
    """
    return torch.as_tensor(level).cpu().double().round(decimals=6)


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
        images: uint8 [B, 3, H, W], on any device (random numbers and JPEG are made on the CPU).
        name: a row of `DEGRADATIONS`, a sequence of them ("blur+noise+jpeg", applied from left to
            right) or one of `NAMED_SEQUENCES`.
        level: in the own unit of the degradation (JPEG quality, sigma in grey levels, sigma in
            pixels, probability): [B] or one number. For a sequence of n: [B, n]. Ignored for a
            named sequence (pass 0).
        keys: one string for each image; with `seed` and `name` it selects the image's random
            stream.
        seed: of the run.
        compat: None for the right operations, `REFERENCE` to reproduce the published code.

    Returns:
        uint8 [B, 3, H, W] on the same device.

    Raises:
        ValueError: an unknown name, a level outside the allowed range, a wrong shape or dtype.
    """
    check_images(images, keys)
    rows, levels = _stages(name, level, images)
    result = torch.empty_like(images)
    count = max(1, CHUNK // max(1, images[:1].numel()))
    for first in range(0, len(images), count):
        chunk = slice(first, first + count)
        random, degraded = RandomFields(seed, name, keys=keys[chunk]), images[chunk]
        for row, column in zip(rows, levels[chunk].T, strict=True):
            degraded = row.function(degraded, column, random, compat or CORRECT)
        result[chunk] = degraded
    return result


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
        float32 of the shape of `level`; for a sequence [...], the mean over its stages; ones for a
        named sequence.
    """
    levels = _decimals(level)
    if name in NAMED_SEQUENCES:
        return torch.ones_like(levels, dtype=torch.float32)
    rows = rows_of(name)
    clean, worst = (torch.tensor(ends, dtype=torch.float64) for ends in zip(*((row.clean, row.worst) for row in rows), strict=True))
    if len(rows) == 1:
        return ((levels - clean[0]) / (worst[0] - clean[0])).float()
    return ((levels - clean) / (worst - clean)).mean(-1).float()


def draw_numbers(
    name: str, spans: Sequence[tuple[int, int]], keys: Sequence[str], seed: int, shared: bool = False
) -> NDArray[np.int64]:
    """One whole number [B, n] for each key and each of n spans, uniform from the first to the last
    of the span, both included.

    Args:
        name: of the perturbation.
        spans: (first, last) of each stage.
        keys: one string for each image.
        seed: of the run.
        shared: False: drawn by (seed, name, key), stage by stage. True: by (seed, key) alone, one u
            in [0, 1) for whatever name and all stages, whose numbers are first + floor(u (last -
            first + 1)).
    """
    first, last = zip(*spans, strict=True)
    if shared:
        return scaled(RandomFields(seed, "shared level", keys=keys).random64(1), first, last)
    return RandomFields(seed, "level", name, keys=keys).integers(first, last)


def sample_levels(name: str, keys: Sequence[str], seed: int, shared: bool = False) -> Tensor:
    """One level for each key, uniform over the whole numbers of the sweep.

    Args:
        name: as for `degrade`.
        keys: one string for each image.
        seed: of the run.
        shared: every degradation at the same place of its sweep (see `draw_numbers`).

    Returns:
        float32 [B] in own unit; [B, n] for a sequence of n; zeros [B] for a named sequence. An
        image's level depends on (seed, name, key) only; if shared, on (seed, key) and the sweep's
        range.
    """
    if name in NAMED_SEQUENCES:
        return torch.zeros(len(keys))
    rows = rows_of(name)
    numbers = draw_numbers(name, [row.levels for row in rows], keys, seed, shared)
    levels = torch.from_numpy(numbers).float() / torch.tensor([row.scale for row in rows])
    return levels if len(rows) > 1 else levels.squeeze(1)
