"""Every perturbation by its name.

A name is all that a caller needs: `find_perturbation("fog").apply(images, 3, keys, seed)`. Whatever
differs between degradations, sequences, corruptions and the watermark is asked of the object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from undegrade.utils.data.perturbations.degradation_functions import DegradationCompat
from undegrade.utils.data.perturbations.degradations import sequence_of
from undegrade.utils.data.perturbations.passages import SIGN, passage_of
from undegrade.utils.data.perturbations.perturbation import PERTURBATIONS, Perturbation, PerturbationOptions

CLEAN = "clean"


def find_perturbation(name: str) -> Perturbation:
    """The perturbation of a name, the sequence of those that are joined by `+` in it, or the
    passage from one to the other of two that `~` joins.

    Raises:
        ValueError: an unknown name (with the closest), or a sequence "a+b" or passage "a~b" with a
            stage that cannot be one.
    """
    if SIGN in name:
        return passage_of(name)
    return sequence_of(name) if "+" in name else PERTURBATIONS.get_row(name)


def with_severities() -> list[str]:
    """Names of the perturbations whose levels are severities: the ImageNet-C family and its
    like.
    """
    return [name for name, row in PERTURBATIONS.items() if row.by_severity]


def options_without_effect(names: Sequence[str], place: str) -> dict[str, str]:
    """For `utils.command_line.check_effect`: the keys of `PerturbationOptions` that none of these
    perturbations reads.

    Args:
        names: of the perturbations, sequences among them.
        place: dotted place of the options.
    """
    own = [f"perturbations.{name}" for name, row in PERTURBATIONS.items() if row.options is not None]
    every = ["constants", *(f"compat.{field.name}" for field in fields(DegradationCompat)), *own]
    read = {key for name in names for key in find_perturbation(name).reads}
    shown = ", ".join(dict.fromkeys(names)) or "clean images"
    return {f"{place}.{key}": f"it is not for {shown}, leave it out" for key in every if key not in read}


@dataclass(frozen=True, kw_only=True)
class _Clean(Perturbation):
    """The images as they are."""

    def perturbed(self, images: Tensor, levels: Tensor, keys: Sequence[str], seed: int, options: PerturbationOptions) -> Tensor:
        return images

    def unit(self, level: Tensor | float) -> Tensor:
        return torch.zeros_like(torch.as_tensor(level, dtype=torch.float32))


PERTURBATIONS.add(CLEAN, _Clean(name=CLEAN, description="nothing is done", sweep=(0,)))
