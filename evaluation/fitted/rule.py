"""Rules with numbers that were fitted on labelled validation images: `gate`, which decides image by
image whether adaptation is worth it, and `fitted`, a weighted vote. A file of JSON holds one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undegrade.evaluation.fitted.pool import Pool
from undegrade.evaluation.fitted.signals import member_signals
from undegrade.utils.config import build
from undegrade.utils.data.manifest import read_settings
from undegrade.utils.files import read_object, write_atomic

log = logging.getLogger(__name__)

_OF_IMAGES = ("corruption", "severity", "input", "seed", "output", "shard_size", "images", "batch_size")  # not of the adapter
_SHARED = 0.01  # of the images that are evaluated: more must not have been fitted on


@dataclass(frozen=True)
class Gate:
    """Restore where w . (s - mean) / scale + b is above the threshold; s are the signals of an
    image (`evaluation.fitted.signals`).

    Attributes:
        signals: their names.
        means, scales: of each signal on the images that it was fitted on.
        weights: w, for signals in units of their scale: a logistic regression's.
        intercept: b.
        threshold: of the sum, in log odds; None: nothing is restored.
    """

    signals: list[str]
    means: list[float]
    scales: list[float]
    weights: list[float]
    intercept: float
    threshold: float | None = 0.0

    def __post_init__(self) -> None:
        if not len(self.signals) == len(self.means) == len(self.scales) == len(self.weights):
            raise ValueError("a gate has a mean, a scale and a weight for each signal")

    def odds(self, signals: Tensor) -> Tensor:
        """Float64 [B] of signals [B, S]."""
        mean, scale, weight = (torch.tensor(v, dtype=torch.float64) for v in (self.means, self.scales, self.weights))
        return ((signals.double() - mean) / scale) @ weight + self.intercept

    def restores(self, signals: Tensor) -> Tensor:
        """Bool [B] of signals [B, S]."""
        return torch.zeros(len(signals), dtype=torch.bool) if self.threshold is None else self.odds(signals) > self.threshold


@dataclass(frozen=True)
class FittedMember:
    """A member that a rule was fitted with.

    Attributes:
        digest: of checkpoint and predictor.
        view: what made its images: {} as they are, else the adapter's settings.
        kept: of a gate: whether it sees the image as it is, and is asked where nothing is restored.
    """

    digest: str
    view: dict[str, Any] = field(default_factory=dict)
    kept: bool = False


@dataclass(frozen=True)
class FittedRule:
    """What a file holds.

    Attributes:
        rule: gate | fitted.
        members: by their name in the evaluation, in their order.
        classes: digest of the names of the classes.
        frame: how images are cut, as `ImageSource.frame` says it.
        pool: temperatures and weights.
        gate: of the rule gate.
        guarantee: what is promised, and how it was shown; None: nothing.
        fitted_on: data set, split, images, cells, and digests of the clean images' pixels.
        provenance: command, versions, machine.
    """

    rule: str
    members: dict[str, FittedMember]
    classes: str
    frame: str
    fitted_on: dict[str, Any]
    pool: Pool
    gate: Gate | None = None
    guarantee: dict[str, Any] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if {"gate": True, "fitted": False}.get(self.rule) is not (self.gate is not None):
            raise ValueError(f"rule {self.rule!r} with{'' if self.gate else 'out'} a gate")
        if len(self.pool.weights) != len(self.members):
            raise ValueError(f"{len(self.members)} members and {len(self.pool.weights)} weights")

    @property
    def signals(self) -> list[str]:
        """Names of the signals that it looks at."""
        return [] if self.gate is None else self.gate.signals

    def restored(self, logits: Tensor, pixels: Tensor) -> Tensor | None:
        """Of a gate: bool [B], whether an image is restored.

        Args:
            logits: [M, B, K].
            pixels: [B, S] of `signals.pixel_signals`.
        """
        if self.gate is None:
            return None
        kept, other = two_sides(self.members, self.pool, logits)
        return self.gate.restores(torch.cat([pixels, member_signals(self.gate.signals, kept, other)], 1))

    def scores(self, logits: Tensor, restored: Tensor | None) -> Tensor:
        """Float64 [B, K] of logits [M, B, K]; `restored` as that function gives it."""
        if restored is None:
            return self.pool.probabilities(logits)
        kept, other = two_sides(self.members, self.pool, logits)
        return torch.where(restored[:, None], other, kept)

    @property
    def digest(self) -> str:
        """Of all that scores depend on."""
        return _digest(json.dumps([dataclasses.asdict(v) if v else None for v in (self.gate, self.pool)]), self.rule)

    def check(self, where: str, members: Mapping[str, FittedMember], classes: Sequence[str], frame: str) -> None:
        """Raise ValueError, which names the difference, where the rule meets other members, images
        or classes than those that it was fitted for.
        """
        if len(self.members) != len(members):
            raise ValueError(f"{where} was fitted for {len(self.members)} members, the system has {len(members)}: {_MEND}")
        for (name, here), there in zip(members.items(), self.members.values(), strict=True):
            if there.digest != here.digest:
                raise ValueError(
                    f"{where} was fitted for another member {name!r} (checkpoint and predictor {there.digest} there, "
                    f"{here.digest} here): {_MEND}"
                )
            if there.view != here.view:
                raise ValueError(
                    f"{where} was fitted for member {name!r} on {_view_words(there.view)}, which looks at "
                    f"{_view_words(here.view)} here: {_MEND}"
                )
        if self.classes != class_digest(classes):
            raise ValueError(f"{where} was fitted for other classes ({len(classes)} here, of other names or order): {_MEND}")
        if self.frame != frame:
            raise ValueError(f"{where} was fitted for images of another size ({self.frame} there, {frame} here): {_MEND}")

    def check_unseen(self, where: str, digests: Sequence[str]) -> None:
        """Raise ValueError where images that are evaluated were fitted on, whose labels it knows.

        Args:
            where: for the message.
            digests: of the images' pixels (`pixel_digests`).
        """
        shared = len(set(self.fitted_on.get("pixels", [])) & set(digests))
        if shared > _SHARED * len(digests):
            raise ValueError(
                f"{where} was fitted on the labels of {shared} of the {len(digests)} images that are evaluated: fit it on "
                "validation images, and evaluate it on others"
            )
        if shared:
            log.warning("%s was fitted on %d of the %d images that are evaluated", where, shared, len(digests))


_MEND = "fit the rule anew (evaluation/fit_command.py)"


def two_sides(members: Mapping[str, FittedMember], pool: Pool, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities [B, K], of logits [M, B, K], of the members that see the image as it is, and
    of the others.
    """
    kept = [member.kept for member in members.values()]
    return pool.probabilities(logits, kept), pool.probabilities(logits, [not own for own in kept])


def first_other(members: Mapping[str, FittedMember]) -> int:
    """Place of the first member that a gate does not keep, whose image is the adapted one."""
    return next((i for i, member in enumerate(members.values()) if not member.kept), 0)


def read_rule(path: Path) -> FittedRule:
    """The rule in a file.

    Raises:
        FileNotFoundError: none there; says how to make it.
        ValueError: damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: fit the rule on validation images by python evaluation/fit_command.py -c <config> with the "
            "same members (docs/systems/restoration.md)"
        )
    tree = read_object(path, _MEND)
    try:
        return build(FittedRule, tree)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): {_MEND}") from error


def write_rule(path: Path, rule: FittedRule) -> None:
    """Write a rule for `read_rule`."""
    write_atomic(path, json.dumps(dataclasses.asdict(rule), indent=1) + "\n")


def view_facts(folder: Path | None) -> dict[str, Any]:
    """What made the images of a folder, as the adapter noted it; {} for images as they are."""
    return adapter_facts({} if folder is None else read_settings(folder))


def adapter_facts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of the settings of adapted images what is about the adapter, not about the images."""
    return {key: value for key, value in settings.items() if key not in _OF_IMAGES}


def _view_words(facts: Mapping[str, Any]) -> str:
    return f"images of {facts.get('adapter')} ({_digest(json.dumps(facts, sort_keys=True))[:6]})" if facts else "images as they are"


def class_digest(classes: Sequence[str]) -> str:
    """Of the names of classes in their order."""
    return _digest(*classes)


def pixel_digests(images: Tensor) -> list[str]:
    """Of the pixels of each of uint8 [B, 3, H, W]."""
    return [hashlib.sha256(image.numpy().tobytes()).hexdigest()[:12] for image in images.contiguous()]


def _digest(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]
