"""Means of ratios of sums over images, and their intervals.

The images are drawn with replacement 1,000 times, and 95 % of the values lie within the interval
(percentile bootstrap; Efron and Tibshirani 1993, section 13.3).
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from undegrade.utils.data.cells import Cell
from undegrade.utils.files import write_atomic
from undegrade.utils.seeding import numpy_generator

RATIOS, DRAWS = "ratios.npz", 1000
INTERVAL = f"percentile bootstrap over images, {DRAWS} draws, 95 %"


@dataclasses.dataclass(frozen=True)
class Ratios:
    """Parts above and below the bar, [N, K] of N images and K ratios, in double precision."""

    above: np.ndarray
    below: np.ndarray

    def value(self, weights: np.ndarray | None = None) -> np.ndarray:
        """The mean of those ratios that have something below the bar, NaN where none has.

        Args:
            weights: [D, N], how often each image is drawn (None: each once).

        Returns:
            [D], D = 1 without weights.
        """
        drawn = np.ones((1, len(self.above))) if weights is None else weights
        return _mean_of_ratios(drawn @ self.above, drawn @ self.below)

    def each(self) -> list[float | None]:
        """Every ratio; None where nothing is below the bar."""
        sums = zip(self.above.sum(0).tolist(), self.below.sum(0).tolist(), strict=True)
        return [above / below if below else None for above, below in sums]


def _mean_of_ratios(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    there = below > 0
    shares = np.where(there, above / np.where(there, below, 1), 0).sum(1)
    return np.where(there.any(1), shares / there.sum(1).clip(min=1), np.nan)


def draws(count: int) -> np.ndarray:
    """[1000, N]: how often each of N images is in each of the bootstrap's samples."""
    return numpy_generator("bootstrap", count).multinomial(count, np.full(count, 1 / count), DRAWS).astype(float)


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % of the bootstrap's values lie within; samples in which nothing can be judged are left
    out.
    """
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def write_ratios(path: Path, found: Mapping[Cell, Ratios]) -> None:
    """Write the parts of every cell atomically, for comparisons that are paired by image."""
    content = io.BytesIO()
    parts = {f"{cell.folder}/{side}": getattr(ratios, side) for cell, ratios in found.items() for side in ("above", "below")}
    np.savez_compressed(content, allow_pickle=False, **parts)
    write_atomic(path, content.getvalue())


def read_ratios(path: Path) -> dict[str, Ratios]:
    """The folder of each cell -> its ratios, of a file of `write_ratios`.

    Raises:
        ValueError: missing or damaged.
    """
    try:
        with np.load(path) as stored:
            folders = dict.fromkeys(name.rpartition("/")[0] for name in stored)
            return {folder: Ratios(stored[f"{folder}/above"], stored[f"{folder}/below"]) for folder in folders}
    except Exception as error:  # a damaged archive raises almost any of them
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {error}): run test.py again") from error
