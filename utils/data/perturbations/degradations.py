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
from typing import Any

import torch
from torch import Tensor

from undegrade.utils.choices import check_choice
from undegrade.utils.data.perturbations.degradation_functions import DegradationCompat, Random, blur, jpeg, noise, saltpepper
from undegrade.utils.data.perturbations.perturbation import PERTURBATIONS, Perturbation, PerturbationOptions, changed_fields
from undegrade.utils.random_fields import RandomFields

COMBINED = "combined_deg"  # --dt of the published commands: all degradations of the configuration, or of the run
CHUNK = 2**20  # channel values that are degraded at once: memory for a few numbers each

REFERENCE = DegradationCompat(rounding="truncate", salt_value=1, blur_intermediate="uint8")
"""Bit for bit what the public FusionDistill and DiffAUD code computes from the same random numbers.
"""


@dataclass(frozen=True, kw_only=True)
class Degradation(Perturbation):
    """A function of whole batches, which may be a stage of sequences.

    Attributes:
        function: (images uint8 [B, 3, H, W], levels float64 [B] on the CPU, random, own options) ->
            uint8 [B, 3, H, W]. `random` has one stream for each image, all of which are read in
            step (`utils.random_fields.RandomFields`). An image's result depends on its pixels,
            level and random numbers only.
    """

    function: Callable[[Tensor, Tensor, Random, Any], Tensor]

    @property
    def as_stage(self) -> Degradation:
        return self

    def perturbed(self, images: Tensor, levels: Tensor, keys: Sequence[str], seed: int, options: PerturbationOptions) -> Tensor:
        return in_turn(self.name, [self], images, levels[:, None], keys, seed, options)


@dataclass(frozen=True, kw_only=True)
class Composed(Perturbation):
    """Perturbations one after the other, each at a level of its own: "blur+noise+jpeg",
    "gaussian_noise+fog".

    Attributes:
        rows: from the first that is applied to the last.
    """

    rows: tuple[Perturbation, ...]

    @property
    def stages(self) -> tuple[Perturbation, ...]:
        return self.rows

    def perturbed(self, images: Tensor, levels: Tensor, keys: Sequence[str], seed: int, options: PerturbationOptions) -> Tensor:
        return in_turn(self.name, self.rows, images, levels, keys, seed, options)

    def identity(self, options: PerturbationOptions, image_size: int) -> dict[str, Any]:
        return {key: value for row in self.rows for key, value in row.identity(options, image_size).items()}

    @property
    def reads(self) -> set[str]:
        return {key for row in self.rows for key in row.reads}


def sequence_of(name: str) -> Composed:
    """The sequence "a+b+...".

    Raises:
        ValueError: a stage that is unknown or can be none, with the closest that can; a corruption
            twice.
    """
    allowed = {key: row.as_stage for key, row in PERTURBATIONS.items() if row.as_stage is not None}
    rows = tuple(allowed[check_choice(part, allowed, "stage", f"sequence {name!r}")] for part in name.split("+"))
    once = [row.name for row in rows if not isinstance(row, Degradation)]
    if twice := [part for part in dict.fromkeys(once) if once.count(part) > 1]:
        raise ValueError(
            f"sequence {name!r} has {twice[0]} twice, which would draw the same random numbers: name another corruption"
        )
    return Composed(name=name, description="levels of its stages", sweep=(), rows=rows)


@dataclass(frozen=True, kw_only=True)
class _OfImagedegrade(Perturbation):
    """What is computed as `data.compat` says."""

    def own(self, options: PerturbationOptions) -> DegradationCompat:
        return options.compat

    def identity(self, options: PerturbationOptions, image_size: int) -> dict[str, Any]:
        changed = changed_fields(options.compat)
        return {"compat": changed} if changed else {}


@dataclass(frozen=True, kw_only=True)
class _One(_OfImagedegrade, Degradation):
    """One of the four operators.

    Attributes:
        compat: the keys of `DegradationCompat` that it looks at.
    """

    compat: tuple[str, ...] = ()

    @property
    def reads(self) -> set[str]:
        return {f"compat.{key}" for key in self.compat}


@dataclass(frozen=True, kw_only=True)
class NamedSequence(_OfImagedegrade):
    """Blur, then noise, then JPEG at fixed levels (DiffAUD's evaluation sequences, as documented).

    Attributes:
        blur_fraction: standard deviation of the blur as a fraction of the image's shorter side.
        noise: standard deviation of the noise in grey levels.
        quality: JPEG quality.
    """

    description: str = "levels are fixed"
    sweep: tuple[float, ...] = (0,)
    blur_fraction: float
    noise: float
    quality: float

    def levels(self, side: int) -> dict[str, float]:
        """Degradation -> level, in order, for an image whose shorter side has `side` pixels."""
        return {"blur": self.blur_fraction * side, "noise": self.noise, "jpeg": self.quality}

    @property
    def reads(self) -> set[str]:
        return {key for name in self.levels(1) for key in DEGRADATIONS[name].reads}

    def perturbed(self, images: Tensor, levels: Tensor, keys: Sequence[str], seed: int, options: PerturbationOptions) -> Tensor:
        fixed = self.levels(min(images.shape[-2:]))
        table = torch.tensor(list(fixed.values()), dtype=torch.float64).expand(len(images), -1)
        return in_turn(self.name, [DEGRADATIONS[name] for name in fixed], images, table, keys, seed, options)


def in_turn(
    name: str, rows: Sequence[Perturbation], images: Tensor, levels: Tensor, keys: Sequence[str], seed: int,
    options: PerturbationOptions,
) -> Tensor:  # fmt: skip
    """The images after `rows`, at `levels` [B, n], in pieces of `CHUNK`."""
    result = torch.empty_like(images)
    count = max(1, CHUNK // max(1, images[:1].numel()))
    for first in range(0, len(images), count):
        chunk = slice(first, first + count)
        random, degraded = RandomFields(seed, name, keys=keys[chunk]), images[chunk]
        for row, column in zip(rows, levels[chunk].T, strict=True):
            if not isinstance(row, Degradation):  # a corruption, which has random streams of its own
                degraded = row.perturbed(degraded, column, keys[chunk], seed, options)
                continue
            degraded = row.function(degraded, column, random, row.own(options))
            if degraded.dtype != torch.uint8 or degraded.shape != images[chunk].shape:
                given = f"{degraded.dtype} {list(degraded.shape)}"
                raise ValueError(f"the function of {row.name!r} gave {given}: expected torch.uint8 {list(images[chunk].shape)}")
        result[chunk] = degraded
    return result


def steps(first: int, last: int, scale: int = 1) -> tuple[float, ...]:
    """Levels first / scale, (first + 1) / scale, ... last / scale."""
    return tuple(number / scale for number in range(first, last + 1))


DEGRADATIONS: dict[str, Degradation] = {
    row.name: row
    for row in (
        _One(
            name="jpeg", function=jpeg, sweep=steps(1, 101), clean=101.0,
            description="JPEG quality, 4:2:0 chroma; 101 is untouched",
        ),
        _One(
            name="noise", function=noise, sweep=steps(0, 50), description="standard deviation of Gaussian noise in grey levels",
            compat=("rounding",),
        ),
        _One(
            name="blur", function=blur, sweep=steps(0, 50, 10), description="standard deviation of the Gaussian in pixels",
            compat=("rounding", "blur_intermediate"),
        ),
        _One(
            name="saltpepper", function=saltpepper, sweep=steps(0, 25, 100),
            description="probability that a channel value is hit", compat=("salt_value",),
        ),
    )
}  # fmt: skip

NAMED_SEQUENCES: dict[str, NamedSequence] = {
    name: NamedSequence(name=name, blur_fraction=blur_fraction, noise=grey_levels, quality=quality)
    for name, blur_fraction, grey_levels, quality in (
        ("weak_seq", 0.02, 10, 80),
        ("medium_seq", 0.04, 20, 60),
        ("strong_seq", 0.08, 30, 40),
    )
}

for _row in (*DEGRADATIONS.values(), *NAMED_SEQUENCES.values()):
    PERTURBATIONS.add(_row.name, _row)
