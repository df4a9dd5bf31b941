"""Degradations, their sequences, the ImageNet-C corruptions and ImageNet-W's watermark behind one
interface.

A name is all that a caller needs. A perturbation's level is the degradation's own unit, or the
corruption's severity; 0 for those that have one level only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from undegrade.utils.choices import check_choice
from undegrade.utils.data.perturbations import degradations
from undegrade.utils.data.perturbations.corruptions import ALL_CORRUPTIONS, SEVERITIES, corrupt, default_constants
from undegrade.utils.data.perturbations.degradations import CORRECT, DEGRADATIONS, NAMED_SEQUENCES, DegradationCompat, degrade
from undegrade.utils.data.perturbations.watermark import WATERMARK, watermark

ONE_LEVEL: tuple[str, ...] = (*NAMED_SEQUENCES, WATERMARK)
PERTURBATIONS: tuple[str, ...] = (*ALL_CORRUPTIONS, *DEGRADATIONS, *ONE_LEVEL)
"""All single names; degradations can also be joined by `+`."""


def check_perturbation(name: str) -> str:
    """Return `name` if `perturb` knows it, else raise ValueError with the closest name.

    Raises:
        ValueError: an unknown name, or a sequence "a+b" with a stage that is no degradation.
    """
    if "+" not in name:
        return check_choice(name, PERTURBATIONS, "degradation")
    degradations.rows_of(name)
    return name


def perturb(
    images: Tensor,
    name: str,
    level: Tensor | float,
    *,
    keys: Sequence[str],
    seed: int,
    compat: DegradationCompat | None = None,
    constants: str | None = None,
) -> Tensor:
    """Degrade, corrupt or mark each image, by `degrade`, `corrupt` or `watermark`.

    Args:
        images: uint8 [B, 3, H, W].
        name: one of `PERTURBATIONS`, or degradations joined by `+`.
        level: [B] or one number, in the degradation's own unit ([B, n] for a sequence of n) or a
            severity 1..5.
        keys: one string for each image; with `seed`, `name` (and the severity) it selects the
            image's random stream.
        seed: of the run.
        compat: of degradations, and the font of the watermark; None for the right operations.
        constants: of corruptions: "cifar", "tiny" or "imagenet"; None for those of the image size
            (`default_constants`).

    Returns:
        uint8 [B, 3, H, W].

    Raises:
        ValueError: an unknown name, a level outside the allowed range, a wrong shape or dtype.
        FileNotFoundError: no font for the watermark.
    """
    check_perturbation(name)
    if name == WATERMARK:
        return watermark(images, keys, (compat or CORRECT).watermark_font)
    if name not in ALL_CORRUPTIONS:
        return degrade(images, name, level, keys=keys, seed=seed, compat=compat)
    severity = torch.as_tensor(level).cpu()
    unknown = severity[~torch.isin(severity, torch.tensor(SEVERITIES))]
    if len(unknown):
        raise ValueError(f"{name} severity {unknown[0]:g} is out of range: allowed: 1, 2, 3, 4, 5")
    chosen = constants or default_constants(min(images.shape[-2:]))
    return corrupt(images, name, severity.long(), keys=keys, seed=seed, constants=chosen)


def draw_levels(name: str, keys: Sequence[str], seed: int, shared: bool = False) -> Tensor:
    """One level for each key: `sample_levels` for degradations, a severity uniform over 1..5 for
    corruptions.

    Args:
        name: as for `perturb`.
        keys: one string for each image.
        seed: of the run.
        shared: False: levels are drawn by (seed, name, key). True: by (seed, key), for every name
            at the same place of its range.

    Returns:
        float32 [B]; [B, n] for a sequence of n; zeros [B] for what has one level only.
    """
    check_perturbation(name)
    if name in ONE_LEVEL:
        return torch.zeros(len(keys))
    if name not in ALL_CORRUPTIONS:
        return degradations.sample_levels(name, keys, seed, shared)
    numbers = degradations.draw_numbers(name, [(SEVERITIES[0], SEVERITIES[-1])], keys, seed, shared)
    return torch.from_numpy(numbers).float().squeeze(1)


def unit_level(name: str, level: Tensor | float) -> Tensor:
    """Levels on one scale from 0 (clean) to 1: the share of the way to the worst level, a fifth for
    each step of severity.

    Args:
        name: as for `perturb`.
        level: own unit or severity, any shape; for a sequence of n: [..., n].

    Returns:
        float32 of the shape of `level`; for a sequence [...], the mean over its stages; ones for
        what has one level only.
    """
    check_perturbation(name)
    if name in ONE_LEVEL:
        return torch.ones_like(torch.as_tensor(level, dtype=torch.float32))
    if name not in ALL_CORRUPTIONS:
        return degradations.unit_level(name, level)
    return torch.as_tensor(level, dtype=torch.float32) / SEVERITIES[-1]
