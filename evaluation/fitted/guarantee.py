"""Thresholds with a finite-sample guarantee: learn, then test (Angelopoulos et al., "Learn then
Test", 2021).

Thresholds are tested one after the other, from the most careful on, until the first that cannot be
shown to be harmless ("fixed sequence testing"): with the confidence that is asked
for, all that passed are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import binom

CONFIDENCE = 0.95


def images_needed(max_loss: float, confidence: float = CONFIDENCE) -> int:
    """How many images without a single loss are needed to show that at most a share `max_loss`
    loses.
    """
    return math.ceil(math.log(1 - confidence) / math.log1p(-max_loss))


def smallest_loss(images: int, confidence: float = CONFIDENCE) -> float:
    """The smallest share that so many images can show."""
    return 1 - (1 - confidence) ** (1 / images)


def loss_p_value(lost: np.ndarray, max_loss: float) -> float:
    """Of "an image is lost with a probability of `max_loss` or more" (Clopper and Pearson 1934, one
    side).

    Args:
        lost: bool [n], of independent images.
        max_loss: share.
    """
    return float(binom.cdf(int(lost.sum()), len(lost), max_loss))


def mean_p_value(losses: np.ndarray, max_loss: float) -> float:
    """Of "the mean loss is `max_loss` or more", by betting against it (Waudby-Smith and Ramdas,
    JRSS B 2024: a capital that grows to k has a p-value of 1/k, whatever the distribution).

    Args:
        losses: in [-1, 1], of independent images in random order; gains are negative.
        max_loss: in [0, 1).
    """
    largest = 0.99 / (1 - max_loss)
    capital = best = 1.0
    total, squares, count = 0.0, 0.25, 1  # as if one image had been seen, with a variance of 1/4
    for loss in losses.tolist():
        mean = total / count
        room, variance = max_loss - mean, squares / count
        bet = min(max(room / (variance + room * room), 0.0), largest)
        capital *= 1 + bet * (max_loss - loss)
        best = max(best, capital)
        total, count = total + loss, count + 1
        squares += (loss - mean) ** 2
    return 1 / best


def harmless(thresholds: Sequence[float], p_value: Callable[[float], float], confidence: float = CONFIDENCE) -> list[float]:
    """Those of `thresholds`, in their order, before the first that cannot be shown to be."""
    passed: list[float] = []
    for threshold in thresholds:
        if p_value(threshold) > 1 - confidence:
            break
        passed.append(threshold)
    return passed
