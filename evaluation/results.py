"""Accuracies with their intervals: rows of an evaluation, their files and their tables.

A *cell* is one test set: (corruption, severity), for example ("gaussian_noise", 5), ("clean", 0) or
a level ("jpeg", 30). Every cell holds the same images, so the hits of two cells, or of two systems,
are correlated: intervals of means and differences follow the images, never the predictions.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from undegrade.utils.files import write_atomic

Cell = tuple[str, float]
Hits = Mapping[Cell, np.ndarray]

CARTON_FIELDS = ("p_carton", "carton_n", "carton_accuracy", "carton_p_carton")
Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution
CLEAN, MEAN = "clean", "mean"


@dataclass(frozen=True)
class Result:
    """One row: a system's accuracy on one cell, or (`corruption="mean"`) over cells.

    `accuracy`, `ci95_low`, `ci95_high`, `top5` (accuracy among the five best) and
    `calibration_error` (expected, 15 bins) lie in [0, 1], the last two None where they were not
    measured; `n` and `correct` count predictions; `severity` is the level of the cell (0 for clean
    images and for a mean over several severities); `rule` is the ensemble rule ("single" or any
    other name). Further ones are known where ImageNet-W is evaluated on, see
    `evaluation.robustness.carton_metrics`.

    Raises:
        ValueError: not 0 <= correct <= n with n >= 1.
    """

    system: str
    dataset: str
    corruption: str
    severity: float
    rule: str
    n: int
    correct: int
    accuracy: float
    ci95_low: float
    ci95_high: float
    top5: float | None = None
    calibration_error: float | None = None
    p_carton: float | None = None
    carton_n: int | None = None
    carton_accuracy: float | None = None
    carton_p_carton: float | None = None

    def __post_init__(self) -> None:
        _check_counts(self.correct, self.n)
        severity = float(self.severity)
        # 5 and 5.0 are the same level: both must give the same bytes in a file.
        object.__setattr__(self, "severity", int(severity) if severity.is_integer() else severity)


def wilson_interval(correct: float, n: float) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927), right also for few images and for
    accuracies near 0 or 1.

    Args:
        correct: successes, 0 <= correct <= n.
        n: independent trials, above 0.

    Raises:
        ValueError: counts out of range.
    """
    _check_counts(correct, n)
    p = correct / n
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def cell_result(
    system: str,
    dataset: str,
    corruption: str,
    severity: float,
    rule: str,
    hits: np.ndarray,
    **further: Any,
) -> Result:
    """Row of one cell, with Wilson's interval.

    Args:
        hits: bool [n], whether each image was classified correctly.
        further: `top5` and the metrics after it, see `Result`.

    Raises:
        ValueError: `hits` is empty, not one-dimensional or not bool.
    """
    hits = _checked_hits(hits)
    n, correct = len(hits), int(hits.sum())
    low, high = wilson_interval(correct, n)
    return Result(system, dataset, corruption, severity, rule, n, correct, correct / n, low, high, **further)


def mean_result(system: str, dataset: str, rule: str, hits: Hits) -> Result:
    """Row of the mean over cells, each cell counting the same (`corruption="mean"`).

    Cells share their images: an image that is hard under one corruption is hard under the next, so
    the predictions are not independent and an interval from all of them would be far too narrow.
    The images are independent. With m_i the share of cells in which image i is right, accuracy =
    mean_i m_i and the interval is accuracy +- 1.96 sd(m) / sqrt(images) (one cluster an image).
    Where every m_i is equal, sd(m) = 0 says nothing, and Wilson's interval for that many images
    stands in.

    Cells of different length (unreadable images left out) cannot be aligned by image: then low and
    high are the means of the cells' Wilson bounds. The standard error of a mean is at most the mean
    of the standard errors, so this is never too narrow.

    Args:
        hits: bool [n] for each cell; position i is the same image in every cell.

    Returns:
        `severity` is the cells' common severity, 0 when they differ; `n` and `correct` count
        predictions over all cells.

    Raises:
        ValueError: no cell, or the hits of a cell are empty, not one-dimensional or not bool.
    """
    if not hits:
        raise ValueError("mean over no cells: give the hits of at least one (corruption, severity)")
    arrays = [_checked_hits(array) for array in hits.values()]
    severities = {severity for _, severity in hits}
    severity = severities.pop() if len(severities) == 1 else 0
    mean = average_rows(
        [cell_result(system, dataset, cell[0], cell[1], rule, array) for cell, array in hits.items()], MEAN, severity
    )
    if len({len(array) for array in arrays}) > 1:
        return mean
    shares = np.mean(arrays, axis=0)
    if np.ptp(shares) == 0:
        low, high = wilson_interval(mean.accuracy * len(shares), len(shares))
    else:
        _, low, high = _normal_interval(shares)
    return Result(**asdict(mean) | {"ci95_low": max(0.0, low), "ci95_high": min(1.0, high)})


def paired_difference(hits_a: Hits, hits_b: Hits) -> tuple[float, float, float]:
    """Mean accuracy of system a minus that of system b on the same cells and images, with its 95 %
    interval.

    Per image the difference of the two shares of right cells, d_i, is formed first; the interval is
    mean(d) +- 1.96 sd(d) / sqrt(n). It is narrower than two separate intervals suggest, since both
    systems see the same images. Where all d_i are equal its width is 0.

    Args:
        hits_a, hits_b: bool [n] for each cell, the same cells and the same order of images in both.

    Returns:
        (difference, low, high), each in [-1, 1].

    Raises:
        ValueError: the cells differ, the arrays differ in length, or there are fewer than two
            images.
    """
    if set(hits_a) != set(hits_b):
        odd = sorted(set(hits_a) ^ set(hits_b))
        raise ValueError(f"cells of only one system: {odd}; compare both systems on the same cells")
    arrays_a = [_checked_hits(array) for array in hits_a.values()]
    arrays_b = [_checked_hits(array) for array in hits_b.values()]
    lengths = sorted({len(array) for array in arrays_a + arrays_b})
    if len(lengths) != 1 or lengths[0] < 2:
        raise ValueError(f"numbers of images {lengths}: a paired difference needs one number, at least 2, in all cells")
    difference, low, high = _normal_interval(np.mean(arrays_a, axis=0) - np.mean(arrays_b, axis=0))
    return difference, max(-1.0, low), min(1.0, high)


def average_rows(rows: Sequence[Result], corruption: str, severity: float) -> Result:
    """Mean of rows of one system, each row counting the same.

    The bounds are the means of the bounds: rows do not say which image was right, and this interval
    is wide enough for every correlation (see `mean_result`).
    """
    first = rows[0]
    accuracy, low, high = np.mean([(row.accuracy, row.ci95_low, row.ci95_high) for row in rows], axis=0).tolist()
    n, correct = sum(row.n for row in rows), sum(row.correct for row in rows)
    top5, calibration = (_mean_of_known([getattr(row, name) for row in rows]) for name in ("top5", "calibration_error"))
    return Result(first.system, first.dataset, corruption, severity, first.rule, n, correct, accuracy, low, high, top5, calibration)


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    """The mean, None where any value is unknown."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def write_json(path: str | os.PathLike[str], rows: Sequence[Result], meta: Mapping[str, Any]) -> None:
    """Write rows and `meta` atomically, one row a line. The same rows and meta give the same bytes:
    keep dates and durations out.

    Raises:
        ValueError: a number is not finite.
        TypeError: `meta` holds what JSON cannot.
    """
    names = _names(rows)
    values = ({name: getattr(row, name) for name in names} for row in rows)
    lines = ",\n  ".join(json.dumps(line, ensure_ascii=False, allow_nan=False) for line in values)
    head = json.dumps(dict(meta), ensure_ascii=False, allow_nan=False, sort_keys=True)
    write_atomic(path, f'{{\n "meta": {head},\n "rows": [\n  {lines}\n ]\n}}\n')


def read_json(path: str | os.PathLike[str]) -> tuple[list[Result], dict[str, Any]]:
    """(rows, meta) of a file of `write_json`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the content is not what `write_json` writes.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return [Result(**row) for row in content["rows"]], content["meta"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{Path(path).name} is no results file ({error!r}): write it again with the evaluation") from error


def write_csv(path: str | os.PathLike[str], rows: Sequence[Result]) -> None:
    """Write the rows atomically as CSV: the field names, then one line a row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _names(rows), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_atomic(path, text.getvalue())


def _names(rows: Sequence[Result]) -> list[str]:
    """The fields that a file has: those of ImageNet-W only where a row knows one, so that other
    files stay free of them.
    """
    carton = any(row.p_carton is not None for row in rows)
    return [field.name for field in fields(Result) if carton or field.name not in CARTON_FIELDS]


def _check_counts(correct: float, n: float) -> None:
    if not (n > 0 and 0 <= correct <= n):
        raise ValueError(f"{correct} correct of {n}: needs 0 <= correct <= n and n > 0")


def _checked_hits(hits: np.ndarray) -> np.ndarray:
    array = np.asarray(hits)
    if array.dtype != np.bool_ or array.ndim != 1 or not len(array):
        raise ValueError(f"hits of type {array.dtype} and shape {array.shape}: needs bool [n] with n >= 1, e.g. predicted == label")
    return array


def _normal_interval(values: np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high) of independent values [n], n >= 2."""
    mean, half = float(values.mean()), Z95 * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half
