"""Means of ratios of sums over images, and their intervals.

The images are drawn with replacement 1,000 times, and 95 % of the values lie within the interval
(percentile bootstrap; Efron and Tibshirani 1993, section 13.3).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from undegrade.utils.seeding import numpy_generator

DRAWS = 1000
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
