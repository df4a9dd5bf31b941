"""Accuracies with their intervals: the rows of an evaluation.

A *cell* is one test set: (corruption, severity), for example ("gaussian_noise", 5), ("clean", 0), a
level ("jpeg", 30), or a level drawn for each image ("jpeg", None). Every cell holds the same
images, so what is right in two cells, or of two systems, is correlated: intervals of means and
differences follow the images, never the predictions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from undegrade.utils.data.cells import Cell

Correct = Mapping[Cell, np.ndarray]  # of each image of a cell whether it was classified correctly

Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution
CLEAN, MEAN = "clean", "mean"


@dataclass(frozen=True)
class Result:
    """One row: a system's accuracy on one cell, or (`corruption="mean"`) over cells.

    `accuracy`, `ci95_low` and `ci95_high` lie in [0, 1]; `n` and `correct` count predictions;
    `severity` is the level of the cell, 0 for clean images, None where a level is drawn for each
    image and for a mean over several levels; `rule` is the name of the ensemble rule. `metrics`
    holds whatever else was measured by name, see `evaluation.robustness.further_metrics`.

    Raises:
        ValueError: not 0 <= correct <= n with n >= 1.
    """

    system: str
    dataset: str
    corruption: str
    severity: float | None
    rule: str
    n: int
    correct: int
    accuracy: float
    ci95_low: float
    ci95_high: float
    metrics: Mapping[str, int | float] = field(default_factory=dict)
    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # for reading files

    def __post_init__(self) -> None:
        _check_counts(self.correct, self.n)
        if self.severity is not None and float(self.severity).is_integer():
            # 5 and 5.0 are the same level: both must give the same bytes in a file.
            object.__setattr__(self, "severity", int(self.severity))


def percent(points: float, sign: str = "", digits: int = 1) -> str:
    """A number in percent, or in points, as text.

    Halves are rounded away from zero, as papers do, whichever side their binary form lies: 1261 of
    2000 is 63.1 (63.05 in binary is below the half). No other share of fewer than 10^7 images is so
    near a half.

    Args:
        points: the number.
        sign: "+" to write the sign of positive numbers too.
        digits: decimals.
    """
    return f"{points + math.copysign(1e-9, points):{sign}.{digits}f}"


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927), right also for few images and for
    accuracies near 0 or 1.

    Args:
        correct: successes, 0 <= correct <= n.
        n: independent trials, above 0.

    Raises:
        ValueError: counts out of range.
    """
    # by hand: scipy.stats, which the tests compare with, takes half a second to import
    _check_counts(correct, n)
    share, width = correct / n, Z95**2 / n
    middle, half = share + width / 2, math.sqrt(width * (share * (1 - share) + width / 4))
    low, high = (middle - half) / (1 + width), (middle + half) / (1 + width)
    return max(0.0, min(share, low)), min(1.0, max(share, high))


def cell_result(
    system: str,
    dataset: str,
    corruption: str,
    severity: float | None,
    rule: str,
    right: np.ndarray,
    metrics: Mapping[str, float] | None = None,
) -> Result:
    """Row of one cell, with Wilson's interval.

    Args:
        right: bool [n], whether each image was classified correctly.
        metrics: what else was measured.

    Raises:
        ValueError: `right` is empty, not one-dimensional or not bool.
    """
    right = _checked(right)
    n, correct = len(right), int(right.sum())
    low, high = wilson_interval(correct, n)
    return Result(system, dataset, corruption, severity, rule, n, correct, correct / n, low, high, metrics or {})


def mean_result(system: str, dataset: str, rule: str, correct: Correct) -> Result:
    """Row of the mean over cells, each cell counting the same (`corruption="mean"`).

    Cells share their images: an image that is hard under one corruption is hard under the next, so
    the predictions are not independent and an interval from all of them would be far too narrow.
    The images are independent. With m_i the share of cells in which image i is right, accuracy =
    mean_i m_i and the interval is accuracy +- 1.96 sd(m) / sqrt(images) (one cluster an image).

    Where every m_i is equal, sd(m) = 0 says nothing, and cells of different length (unreadable
    images left out) cannot be aligned by image: then low and high are the means of the cells'
    Wilson bounds. The standard error of a mean is at most the mean of the standard errors, so this
    is never too narrow.

    Args:
        correct: bool [n] for each cell; position i is the same image in every cell.

    Returns:
        `severity` is the cells' common one, None when they differ; `n` and `correct` count
        predictions over all cells.

    Raises:
        ValueError: no cell, or the array of a cell is empty, not one-dimensional or not bool.
    """
    if not correct:
        raise ValueError("mean over no cells: give at least one (corruption, severity)")
    severities = {severity for _, severity in correct}
    severity = severities.pop() if len(severities) == 1 else None
    mean = average_rows([cell_result(system, dataset, *cell, rule, right) for cell, right in correct.items()], MEAN, severity)
    if len({len(right) for right in correct.values()}) > 1 or np.ptp(shares := np.mean(list(correct.values()), axis=0)) == 0:
        return mean
    _, low, high = _normal_interval(shares)
    return replace(mean, ci95_low=max(0.0, low), ci95_high=min(1.0, high))


def paired_difference(correct_a: Mapping[Any, np.ndarray], correct_b: Mapping[Any, np.ndarray]) -> tuple[float, float, float]:
    """Mean accuracy of system a minus that of system b on the same cells and images, with its 95 %
    interval.

    Per image the difference of the two shares of right cells, d_i, is formed first; the interval is
    mean(d) +- 1.96 sd(d) / sqrt(n). It is narrower than two separate intervals suggest, since both
    systems see the same images. Where all d_i are equal its width is 0.

    Args:
        correct_a, correct_b: bool [n] for each cell, or what stands for one, the same cells and the
            same order of images in both.

    Returns:
        (difference, low, high), each in [-1, 1].

    Raises:
        ValueError: the cells differ, the arrays differ in length, or there are fewer than two
            images.
    """
    if set(correct_a) != set(correct_b):
        odd = sorted(set(correct_a) ^ set(correct_b), key=str)
        raise ValueError(f"cells of only one system: {odd}; compare both systems on the same cells")
    arrays_a = [_checked(right) for right in correct_a.values()]
    arrays_b = [_checked(correct_b[cell]) for cell in correct_a]
    lengths = sorted({len(array) for array in arrays_a + arrays_b})
    if len(lengths) != 1 or lengths[0] < 2:
        raise ValueError(f"numbers of images {lengths}: a paired difference needs one number, at least 2, in all cells")
    difference, low, high = _normal_interval(np.mean(arrays_a, axis=0) - np.mean(arrays_b, axis=0))
    return difference, max(-1.0, low), min(1.0, high)


def difference_words(correct_a: Mapping[Any, np.ndarray], correct_b: Mapping[Any, np.ndarray], name: str = "") -> str:
    """`paired_difference` in words: `+1.2 points [+0.3, +2.1]`.

    Where d_i is the same for every image, an interval of no width would read as certainty. The
    words then say what n images without an exception show: with 95 % confidence at most a share
    1 - 0.05^(1/n), about 3/n, of all images has another d (the "rule of three", Hanley and
    Lippman-Hand 1983).

    Args:
        correct_a, correct_b: see `paired_difference`.
        name: what stands before the interval, such as `, 95 % interval`.

    Raises:
        ValueError: see `paired_difference`.
    """
    difference, low, high = paired_difference(correct_a, correct_b)
    points = f"{percent(100 * difference, '+')} points"
    if high - low > 1e-9:
        return f"{points}{name} [{percent(100 * low, '+')}, {percent(100 * high, '+')}]"
    n = len(next(iter(correct_a.values())))
    bound = f"{100 * (1 - 0.05 ** (1 / n)):.2g}"
    seen, other = ("no image gains or loses", "do") if abs(difference) < 1e-9 else ("every image changes alike", "do not")
    return f"{points}, {seen}: {n} of them show, with 95 % confidence, that at most {bound} % of all images {other}"


def average_rows(rows: Sequence[Result], corruption: str, severity: float | None) -> Result:
    """Mean of rows of one system, each row counting the same; of the metrics those that all know.

    The bounds are the means of the bounds: rows do not say which image was right, and this interval
    is wide enough for every correlation (see `mean_result`).
    """
    first = rows[0]
    accuracy, low, high = np.mean([(row.accuracy, row.ci95_low, row.ci95_high) for row in rows], axis=0).tolist()
    n, correct = sum(row.n for row in rows), sum(row.correct for row in rows)
    known = [name for name in first.metrics if all(name in row.metrics for row in rows)]
    metrics = {name: sum(row.metrics[name] for row in rows) / len(rows) for name in known}
    return Result(first.system, first.dataset, corruption, severity, first.rule, n, correct, accuracy, low, high, metrics)


def _check_counts(correct: float, n: float) -> None:
    if not (n > 0 and 0 <= correct <= n):
        raise ValueError(f"{correct} correct of {n}: needs 0 <= correct <= n and n > 0")


def _checked(right: np.ndarray) -> np.ndarray:
    array = np.asarray(right)
    if array.dtype != np.bool_ or array.ndim != 1 or not len(array):
        raise ValueError(
            f"array of type {array.dtype} and shape {array.shape}: needs bool [n] with n >= 1, e.g. predicted == label"
        )
    return array


def _normal_interval(values: np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high) of independent values [n], n >= 2."""
    mean, half = float(values.mean()), Z95 * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half
