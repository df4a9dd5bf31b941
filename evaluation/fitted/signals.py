"""Signals of an image that need no label, for a gate: what the image, the adapted one and the
members say of whether adaptation helped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from undegrade.models.restoration.estimates import blockiness, noise_level, sharpness
from undegrade.utils.choices import check_choice

_FLOOR = 1e-3  # added to levels before their logarithm: a quarter of a grey level

GROUPS: dict[str, tuple[str, ...]] = {
    "image": ("noise", "sharpness", "blockiness"),
    "change": ("change",),
    "members": ("entropy", "entropy_adapted", "disagreement"),
    "features": ("feature_distance",),
}
"""Names of the signals, by group: of the image as it is (logarithms of `noise_level` and
`sharpness`, and `blockiness`); of the pair (root mean square of the difference); of the members
(entropies in nats of the two sums, total variation between them); of the first member's pooled
features (1 - cosine between those of the image and of the adapted one; one pass more).
"""


def signal_names(groups: Sequence[str]) -> list[str]:
    """The signals of groups.

    Raises:
        ValueError: an unknown group (with the closest).
    """
    return [name for group in groups for name in GROUPS[check_choice(group, GROUPS, "group of signals", "--signals")]]


def pixel_signals(names: Sequence[str], image: Tensor, adapted: Tensor, predictor: Any) -> Tensor:
    """[B, S] of those of `names` that are about pixels or features, in the order of `GROUPS`.

    Args:
        names: of signals.
        image, adapted: [B,3,H,W] in [0,1], the same images.
        predictor: frozen, of the first member; asked for features only.

    Raises:
        ValueError: features of a predictor that adapts itself.
    """
    columns = [signal(image, adapted, predictor) for name, signal in _OF_PIXELS.items() if name in names]
    return torch.stack(columns, 1).float().cpu() if columns else torch.zeros(len(image), 0)


def member_signals(names: Sequence[str], kept: Tensor, other: Tensor) -> Tensor:
    """[B, S] of those of `names` that are about the members.

    Args:
        names: of signals.
        kept, other: probabilities [B, K] of the members that see the image as it is, and of the
            others.
    """
    columns = [signal(kept, other) for name, signal in _OF_MEMBERS.items() if name in names]
    return torch.stack(columns, 1).float() if columns else torch.zeros(len(kept), 0)


@torch.inference_mode()
def _feature_distance(image: Tensor, adapted: Tensor, predictor: Any) -> Tensor:
    classifier = None if predictor.stateful else getattr(predictor, "classifier", None)
    if classifier is None:
        raise ValueError("--signals features needs a frozen first member, whose features of both images are compared: leave it out")
    first, second = (classifier.features(x.to(predictor.device), ["pooled"])["pooled"] for x in (image, adapted))
    return 1 - F.cosine_similarity(first.flatten(1), second.flatten(1))


_OF_PIXELS: dict[str, Callable[[Tensor, Tensor, Any], Tensor]] = {
    "noise": lambda image, adapted, predictor: (noise_level(image) + _FLOOR).log(),
    "sharpness": lambda image, adapted, predictor: (sharpness(image) + _FLOOR).log(),
    "blockiness": lambda image, adapted, predictor: blockiness(image),
    "change": lambda image, adapted, predictor: (image - adapted).square().flatten(1).mean(1).sqrt(),
    "feature_distance": _feature_distance,
}
_OF_MEMBERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "entropy": lambda kept, other: torch.special.entr(kept).sum(1),
    "entropy_adapted": lambda kept, other: torch.special.entr(other).sum(1),
    "disagreement": lambda kept, other: (kept - other).abs().sum(1) / 2,
}


def columns(names: Sequence[str]) -> list[str]:
    """`names` in the order of the columns of `pixel_signals` and, after them, `member_signals`."""
    return [name for name in (*_OF_PIXELS, *_OF_MEMBERS) if name in names]
