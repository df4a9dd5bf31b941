"""Fitting a gate: a logistic regression that says of an image whether its adapted version is
classified better.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from undegrade.evaluation.fitted.guarantee import CONFIDENCE, harmless, images_needed, loss_p_value, mean_p_value, smallest_loss
from undegrade.evaluation.fitted.rule import Gate
from undegrade.evaluation.results import percent

_CANDIDATES = 100  # thresholds that are tested
_FIRST = 0.95  # share of the images that the first of them leaves as they are: of fewer nothing could be shown
_ALWAYS = 50.0  # log odds


@dataclasses.dataclass(frozen=True)
class Observed:
    """What is known of the images of a cell.

    Attributes:
        signals: [N, S].
        kept, other: probabilities [N, K] of the members that see the image as it is, and of the
            others.
        labels: int64 [N].
    """

    signals: Tensor
    kept: Tensor
    other: Tensor
    labels: Tensor

    def rows(self, rows: np.ndarray) -> Observed:
        """Of some of the images."""
        chosen = torch.from_numpy(rows)
        return Observed(*(value[chosen] for value in (self.signals, self.kept, self.other, self.labels)))

    @property
    def gain(self) -> Tensor:
        """[N]: by how much adaptation raises the probability of the true class."""
        at = self.labels[:, None]
        return (self.other.gather(1, at) - self.kept.gather(1, at))[:, 0]

    @property
    def right(self) -> tuple[np.ndarray, np.ndarray]:
        """Bool [N] of each: whether the image as it is, and the adapted one, are seen right."""
        kept, other = ((p.argmax(1) == self.labels).numpy() for p in (self.kept, self.other))
        return kept, other


def fit_gate(cells: Sequence[Observed], names: Sequence[str]) -> Gate:
    """A gate by logistic regression of "the true class gains", where an image counts as much as its
    class gains or loses.

    Args:
        cells: what was observed, of the same images in each.
        names: of the signals.
    """
    signals = torch.cat([cell.signals for cell in cells]).double().numpy()
    gains = torch.cat([cell.gain for cell in cells]).double().numpy()
    weights = np.abs(gains)
    weights *= len(gains) / max(weights.sum(), 1e-12)  # so that the strength of the penalty is that of n images
    means, scales = signals.mean(0), signals.std(0)
    scales[scales < 1e-6] = 1.0  # a signal that is the same everywhere
    if gains.max() <= 0 or gains.min() >= 0:
        coefficients, intercept = np.zeros(len(names)), -_ALWAYS if gains.max() <= 0 else _ALWAYS
    else:
        model = LogisticRegression(max_iter=1000).fit((signals - means) / scales, gains > 0, sample_weight=weights)
        coefficients, intercept = model.coef_[0], float(model.intercept_[0])
    m, s, w = ([float(f"{v:.6g}") for v in values] for values in (means, scales, coefficients))
    return Gate(list(names), m, s, w, round(intercept, 6))


def guaranteed(
    gate: Gate, clean: Observed, degraded: Sequence[Observed], max_loss: float, confidence: float = CONFIDENCE
) -> tuple[Gate, dict[str, Any]]:
    """The gate with the lowest threshold that is shown to be harmless, if its own is not: with the
    confidence that is asked for, at most a share `max_loss` of clean images is lost (right as they
    are, wrong as the gate has it), and the accuracy on degraded ones, mean over cells, falls by
    less than that.

    Args:
        gate: fitted on other images.
        clean: what was observed of clean images.
        degraded: of the same images in the same order, degraded.
        max_loss: share of the images.
        confidence: of the promise.

    Returns:
        The gate, and what is promised and was seen.

    Raises:
        ValueError: too few images to show it, whatever the gate; says how many are needed.
    """
    count, needed = len(clean.labels), images_needed(max_loss, confidence)
    if count < needed:
        raise ValueError(
            f"--max_loss {percent(100 * max_loss)}: {count} images, half of the validation images, cannot show it with "
            f"{percent(100 * confidence, digits=0)} % confidence, even without a single loss: give {2 * needed} validation images, "
            f"or a --max_loss of {percent(100 * smallest_loss(count, confidence) + 0.05)} or more"
        )
    kept, other = clean.right
    odds = gate.odds(clean.signals).numpy()
    rows = [(gate.odds(cell.signals).numpy(), *cell.right) for cell in degraded]

    def lost(threshold: float) -> np.ndarray:
        return kept & ~other & (odds > threshold)

    def mean_losses(threshold: float) -> np.ndarray:
        values = [np.where(o > threshold, k.astype(float) - a, 0.0) for o, k, a in rows]
        return np.mean(values, 0) if values else np.zeros(count)

    def p_value(threshold: float) -> float:
        return max(loss_p_value(lost(threshold), max_loss), mean_p_value(mean_losses(threshold), max_loss) if rows else 0.0)

    every = np.concatenate([odds, *(o for o, _, _ in rows)])
    tested = sorted({0.0, *np.quantile(every, np.linspace(0, _FIRST, _CANDIDATES)).round(6).tolist()}, reverse=True)
    passed = [threshold for threshold in harmless(tested, p_value, confidence) if threshold >= 0]
    threshold = min(passed) if passed else None
    promise: dict[str, Any] = {"max_loss": max_loss, "confidence": confidence, "images": count}
    if threshold is not None:
        degraded_loss = round(float(mean_losses(threshold).mean()), 6)
        promise |= {"clean_lost": int(lost(threshold).sum()), "degraded_loss": degraded_loss}
    return dataclasses.replace(gate, threshold=threshold), promise


def accuracies(gate: Gate, cell: Observed) -> Mapping[str, float]:
    """Shares of the images of a cell: classified right as they are, adapted, and as the gate has
    it, and restored.
    """
    kept, other = cell.right
    restored = gate.restores(cell.signals).numpy()
    gated = np.where(restored, other, kept)
    return {"kept": kept.mean(), "adapted": other.mean(), "gated": gated.mean(), "restored": restored.mean()}
