"""One call for an image batch and a name, with the options as single arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from undegrade.utils.data.perturbations.degradations import DegradationCompat
from undegrade.utils.data.perturbations.perturbation import PerturbationOptions
from undegrade.utils.data.perturbations.registry import find_perturbation


def perturb(images: Tensor, name: str, level: Tensor | float, *, keys: Sequence[str], seed: int, **options: Any) -> Tensor:
    return find_perturbation(name).apply(images, level, keys, seed, PerturbationOptions(**options))


def degrade(
    images: Tensor, name: str, level: Tensor | float, *, keys: Sequence[str], seed: int, compat: DegradationCompat | None = None
) -> Tensor:
    return perturb(images, name, level, keys=keys, seed=seed, compat=compat or DegradationCompat())


def corrupt(
    images: Tensor, name: str, level: Tensor | float, *, keys: Sequence[str], seed: int, constants: Any = "cifar"
) -> Tensor:
    return perturb(images, name, level, keys=keys, seed=seed, constants=constants)


def draw(name: str, keys: Sequence[str], seed: int, shared: bool = False) -> Tensor:
    return find_perturbation(name).draw(keys, seed, shared)
