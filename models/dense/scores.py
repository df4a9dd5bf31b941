"""How masks and points are judged.

All measures here are ratios of sums over images, so each image has a part above and a part below
the bar: intersection and union of a class, or the error and how often it is counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from undegrade.models.dense.landmarks import visible
from undegrade.utils.data.targets import IGNORED


def overlaps(predicted: Tensor, target: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Pixels of each image and class in both masks, and in at least one of them; pixels without
    class in `target` (`IGNORED`) count nowhere.

    Args:
        predicted, target: int64 [B,H,W].
        num_classes: K.

    Returns:
        (intersection, union), float [B,K].
    """
    kept = target != IGNORED
    pairs = torch.where(kept, target * num_classes + predicted, num_classes**2)
    pairs = pairs.flatten(1) + (num_classes**2 + 1) * torch.arange(len(pairs), device=pairs.device)[:, None]
    counts = pairs.flatten().bincount(minlength=len(pairs) * (num_classes**2 + 1)).view(len(pairs), -1)[:, :-1]
    table = counts.view(len(pairs), num_classes, num_classes).float()
    both = table.diagonal(dim1=1, dim2=2)
    return both, table.sum(1) + table.sum(2) - both


def check_mask(target: Tensor, classes: Sequence[str], keys: Sequence[str]) -> None:
    """Raise ValueError where a mask [B,H,W] has a value that is no class; names the first image by
    `keys`.
    """
    wrong = (target != IGNORED) & ((target < 0) | (target >= len(classes)))
    if wrong.any():
        row = int(wrong.flatten(1).any(1).nonzero()[0])
        raise ValueError(
            f"the mask of {keys[row]} has the value {int(target[row][wrong[row]][0])}, allowed: 0 to {len(classes) - 1} "
            f"({classes[0]}, ..., {classes[-1]}) and {IGNORED} for pixels without class: correct the mask or the list of classes"
        )


def point_errors(predicted: Tensor, target: Tensor, image_size: int, unit: Sequence[int] | None) -> tuple[Tensor, Tensor]:
    """Normalised mean error of each image: the mean distance of its visible points over a length.

    Args:
        predicted, target: float [B,P,2] in pixels of the image.
        image_size: its side.
        unit: two points of `target` whose distance is the length; None: the diagonal of the image.

    Returns:
        (error [B], 0 where it cannot be told; whether it can, bool [B]): an image needs a visible
        point and a length above 0.
    """
    seen = visible(target, image_size)
    distances = (predicted - target).norm(dim=-1).where(seen, torch.zeros(()).to(target))
    if unit is None:
        length = torch.full_like(distances[:, 0], image_size * 2**0.5)
    else:
        length = (target[:, unit[0]] - target[:, unit[1]]).norm(dim=-1)
    judged = seen.any(1) & (length > 0)  # NaN is above nothing
    error = distances.sum(1) / seen.sum(1).clamp_min(1) / length
    return error.where(judged, torch.zeros(()).to(error)), judged
