"""What every perturbation of images says of itself: its levels, how one is drawn for each image,
its options, and what it does.

A row of `PERTURBATIONS` is all that training, evaluation and adaptation know of one. A level is in
the perturbation's own unit (JPEG quality, sigma in pixels, ...) or, for the ImageNet-C family, a
severity; it is 0 for what has one level only.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from undegrade.utils.config import build
from undegrade.utils.data.perturbations.degradation_functions import DegradationCompat
from undegrade.utils.data.perturbations.image_batch import check_images
from undegrade.utils.random_fields import RandomFields, scaled
from undegrade.utils.registry import Registry

PERTURBATIONS: Registry[Perturbation] = Registry("perturbation", "undegrade.perturbations")
"""All single names; those that may be stages can also be joined by `+`."""


@dataclass(frozen=True, kw_only=True)
class PerturbationOptions:
    """How perturbations are computed.

    Attributes:
        constants: set of the corruption constants: cifar | tiny | imagenet (null: by image size).
        compat: how degradations are computed (utils/data/perturbations/degradations.py); the
            defaults are the right operations.
        perturbations: options of other perturbations, by name (docs/extending/perturbation.md).

    Raises:
        ValueError: `perturbations` has an unknown name, or an unknown option or wrong type of one.
    """

    constants: Literal["cifar", "tiny", "imagenet"] | None = None
    compat: DegradationCompat = field(default_factory=DegradationCompat)
    perturbations: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _ = self.own  # a mistake is one of the configuration, not of the first batch

    @functools.cached_property
    def own(self) -> dict[str, Any]:
        """The instances of `Perturbation.options` that `perturbations` gives, by name."""
        found: dict[str, Any] = {}
        for name, tree in self.perturbations.items():
            schema = PERTURBATIONS.get_row(name, "section 'perturbations'").options
            if schema is None:
                raise ValueError(f"perturbation {name!r} has no options of its own: leave perturbations.{name} out")
            found[name] = build(schema, tree, f"perturbations.{name}")
        return found

    def changed(self) -> dict[str, dict[str, Any]]:
        """Of `compat` and `perturbations` what is not the default, for the record of results."""
        own = {name: differing for name, options in self.own.items() if (differing := changed_fields(options))}
        return {key: value for key, value in (("compat", changed_fields(self.compat)), ("perturbations", own)) if value}


def changed_fields(options: Any) -> dict[str, Any]:
    """The fields of a dataclass, all of which have defaults, that are not the default."""
    usual = type(options)()
    values = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    return {name: value for name, value in values.items() if value != getattr(usual, name)}


@dataclass(frozen=True, kw_only=True)
class Perturbation(abc.ABC):
    """One thing that can be done to images.

    Attributes:
        name: as in configurations, folders and tables.
        description: unit of the level; after a semicolon its meaning. For messages, and the unit
            for axes of plots.
        sweep: all levels of an evaluation sweep, from the first to the last of which any may be
            given; levels are drawn from them. Empty for a sequence, whose sweep would be a product.
        clean: the level at which the image is untouched.
        by_severity: whether `--severity` chooses from the sweep, nothing between its levels exists,
            and a test cell is one of them. Else a cell has a level drawn for each image.
        options: dataclass of the perturbation's own options, the keys below
            `data.perturbations.<name>`; all of its fields have defaults. None where there are none.
        released_as: folder below the root of a released set that holds its images, where that is
            not `<name>/<level>`.
    """

    name: str
    description: str
    sweep: tuple[float, ...]
    clean: float = 0.0
    by_severity: bool = False
    options: type | None = None
    released_as: str | None = None

    @abc.abstractmethod
    def perturbed(self, images: Tensor, levels: Tensor, keys: Sequence[str], seed: int, options: PerturbationOptions) -> Tensor:
        """`apply` after its checks; `levels` is float64 on the CPU, [B] (or [B, n]), in range."""

    def apply(
        self, images: Tensor, level: Tensor | float, keys: Sequence[str], seed: int, options: PerturbationOptions | None = None
    ) -> Tensor:
        """Perturb each image; what it receives depends on (pixels, level, key, seed, options) only.

        Args:
            images: uint8 [B, 3, H, W], on any device (random numbers are made on the CPU).
            level: [B] or one number; [B, n] for a sequence of n.
            keys: one string for each image; with `seed` and the name it selects the image's random
                stream.
            seed: of the run.
            options: None for the defaults.

        Returns:
            uint8 [B, 3, H, W] on the same device.

        Raises:
            ValueError: a level outside the allowed range, a wrong shape or dtype.
        """
        check_images(images, keys)
        return self.perturbed(images, self._checked(level, len(images)), keys, seed, options or PerturbationOptions())

    def draw(self, keys: Sequence[str], seed: int, shared: bool = False) -> Tensor:
        """One level for each key, uniform over the sweep.

        Args:
            keys: one string for each image.
            seed: of the run.
            shared: False: levels are drawn by (seed, name, key). True: by (seed, key), for every
                perturbation at the same place of its sweep.

        Returns:
            float32 [B] in own unit; [B, n] for a sequence of n.
        """
        sweeps = [row.sweep for row in self.stages]
        first, last = [0] * len(sweeps), [len(sweep) - 1 for sweep in sweeps]
        if shared:  # one u in [0, 1) for all stages, whose places in a sweep of m levels are floor(u m)
            places = scaled(RandomFields(seed, "shared level", keys=keys).random64(1), first, last)
        else:
            places = RandomFields(seed, "level", self.name, keys=keys).integers(first, last)
        columns = [torch.tensor(sweep, dtype=torch.float32)[place] for sweep, place in zip(sweeps, places.T, strict=True)]
        return columns[0] if len(columns) == 1 else torch.stack(columns, 1)

    def unit(self, level: Tensor | float) -> Tensor:
        """Levels on one scale for all perturbations: 0 is clean, 1 the worst of the sweep.

        Args:
            level: own unit, any shape; for a sequence of n: [..., n].

        Returns:
            float32 of the shape of `level`; for a sequence [...], the mean over its stages; ones
            for what has one level only.
        """
        levels, several = decimals(level), len(self.stages) > 1
        units = [row._share(levels[..., i] if several else levels) for i, row in enumerate(self.stages)]
        return torch.stack(units).mean(0).float()

    def _share(self, levels: Tensor) -> Tensor:
        if self.drawn is not None:
            return torch.ones_like(levels)
        worst = max(self.sweep[0], self.sweep[-1], key=lambda end: abs(end - self.clean))
        return (levels - self.clean) / (worst - self.clean)

    def cells(self, severities: Sequence[int] | None) -> list[float | None]:
        """The levels of the test cells asked for.

        Args:
            severities: of what is `by_severity`; None: drawn for each image.

        Returns:
            The severities; of all else, one: None (drawn for each image), or the only level.

        Raises:
            ValueError: no severity, or one that does not exist.
        """
        if not self.by_severity or severities is None:
            return [self.drawn]
        if not severities:
            raise ValueError(f"{self.name} without a severity: choose from {self._choices}")
        return [int(self.check(severity)) for severity in severities]

    def identity(self, options: PerturbationOptions, image_size: int) -> dict[str, Any]:
        """What the result depends on besides pixels, name, level, key and seed, as plain values to
        be compared: nothing for the defaults of own options.

        Args:
            options: see `apply`.
            image_size: shorter side of the images in pixels.
        """
        changed = changed_fields(self.own(options)) if self.options is not None else {}
        return {self.name: changed} if changed else {}

    def own(self, options: PerturbationOptions) -> Any:
        """The own options, an instance of `self.options`."""
        return options.own.get(self.name) or (self.options() if self.options is not None else None)

    def check(self, level: float) -> float:
        """Return `level`, or raise ValueError with the allowed ones."""
        if self.by_severity and level not in self.sweep:
            raise ValueError(f"{self.name} severity {level:g} is out of range: allowed: {self._choices}")
        low, high = self.sweep[0], self.sweep[-1]
        if not low <= level <= high:
            raise ValueError(f"{self.name} level {level:g} is out of range: allowed: {low:g} to {high:g} ({self.description})")
        return level

    @property
    def drawn(self) -> float | None:
        """The level of a cell without a chosen one: None, drawn for each image; or the only
        level.
        """
        return self.sweep[0] if len(self.sweep) == 1 else None

    @property
    def axis(self) -> str:
        """Unit of the level, for axes of plots."""
        return self.description.split(";")[0]

    @property
    def _choices(self) -> str:
        return ", ".join(f"{level:g}" for level in self.sweep)

    @property
    def reads(self) -> set[str]:
        """The keys of `PerturbationOptions` that make a difference: `constants`,
        `compat.<key>`, or `perturbations.<name>`.
        """
        return set() if self.options is None else {f"perturbations.{self.name}"}

    @property
    def as_stage(self) -> Perturbation | None:
        """The perturbation as a stage of sequences such as "a+b"; None where it can be none."""
        return None

    @property
    def stages(self) -> Sequence[Perturbation]:
        """What has a level each: the perturbation itself, or those that make up a sequence."""
        return (self,)

    def _checked(self, level: Tensor | float, count: int) -> Tensor:
        """Float64 [B], or [B, n] for n stages, each level checked."""
        several = len(self.stages) > 1
        if isinstance(level, (int, float)) and not several:  # the usual case, and the quickest
            return torch.from_numpy(np.full(count, self.check(round(float(level), 6))))  # float64
        levels = decimals(level)
        shape = [count, len(self.stages)] if several else [count]
        if levels.ndim == 0 and not several:
            levels = levels.expand(shape)
        if list(levels.shape) != shape:
            raise ValueError(
                f"level of {self.name!r} has shape {list(levels.shape)}: expected {shape}, one for each image and stage"
            )
        for row, column in zip(self.stages, levels.reshape(count, len(self.stages)).T.tolist(), strict=True):
            for value in set(column):
                row.check(value)
        return levels


def decimals(level: Tensor | float) -> Tensor:
    """Float64 on the CPU. A float32 level stands for the decimal it was written as: 0.3, not
    0.30000001.
    """
    return torch.as_tensor(level).cpu().double().round(decimals=6)
