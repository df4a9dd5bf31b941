"""One corruption that passes into another, as streams of CCC do (Press et al., NeurIPS 2023):
"gaussian_noise~fog" is noise at first, then less noise and some fog, fog at the end.

CCC walks between two corruptions where a classifier's accuracy stays the same, which it finds by
trying; here both severities change in a straight line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from undegrade.utils.data.perturbations.corruptions import CORRUPTIONS, SEVERITIES
from undegrade.utils.data.perturbations.degradations import Composed, in_turn, sequence_of
from undegrade.utils.data.perturbations.perturbation import Perturbation, PerturbationOptions
from undegrade.utils.random_fields import RandomFields

SIGN = "~"
PASSAGES: tuple[str, ...] = tuple(SIGN.join(pair) for pair in zip(CORRUPTIONS, CORRUPTIONS[1:] + CORRUPTIONS[:1], strict=True))
"""A walk through the 15 corruptions of ImageNet-C, from each into the next, back to the first."""


@dataclass(frozen=True, kw_only=True)
class Passage(Composed):
    """Two corruptions, of which an image at place u of the way, in [0, 1), has the first at
    severity s (1 - u) and the second at s u, both to a quarter as CCC has them. Where an image
    stands is drawn by its key; streams bring images in that order (`--protocol smooth`).
    """

    description: str = "severity at both ends"
    sweep: tuple[float, ...] = SEVERITIES
    by_severity: bool = True

    @property
    def stages(self) -> tuple[Perturbation, ...]:
        return (self,)

    def places(self, keys: Sequence[str]) -> np.ndarray:
        """float64 [B] in [0, 1): how far the change has come at each image."""
        return np.asarray(RandomFields(0, "passage", self.name, keys=keys).random64(1)[:, 0])

    def perturbed(self, images: Tensor, levels: Tensor, keys: Sequence[str], seed: int, options: PerturbationOptions) -> Tensor:
        share = torch.from_numpy(self.places(keys))
        table = torch.stack([levels * (1 - share), levels * share], 1).mul(4).round() / 4
        return in_turn(self.name, self.rows, images, table, keys, seed, options)


def passage_of(name: str) -> Passage:
    """The passage "a~b".

    Raises:
        ValueError: not two different corruptions (with the closest).
    """
    parts = name.split(SIGN)
    rows = sequence_of("+".join(parts)).rows
    if len(rows) != 2 or not set(parts) <= set(CORRUPTIONS):
        raise ValueError(f"passage {name!r}: name two of the corruptions {', '.join(CORRUPTIONS)} with {SIGN} between them")
    return Passage(name=name, rows=rows)
