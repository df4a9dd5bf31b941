"""The noises that hit each channel value alone: gaussian, shot, impulse and speckle.

The published code adds noise to a grey level v and truncates the result to a grey level w, so a
noise is its table of transition probabilities P[v, w], [256, 256]. The table follows from the
distribution functions; a level is then drawn from its row by the alias method (Walker, 1977) with
one 32-bit random number and two look-ups, as exactly as 24 bits allow.

Every function takes (images uint8 [n, 3, H, W], n generators, the constant of one severity) and
returns uint8 of that shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

LEVELS = 256
_LEVEL = np.arange(LEVELS, dtype=np.float64)
_SHARE_BITS = 24  # of the random number; the other 8 choose the column

Table = NDArray[np.float64]


def _from_distribution(cumulative: Table) -> Table:
    """Transition table from P(result < w + 1), [256, 256]: results are clipped to 0..255 and
    truncated.
    """
    cumulative[:, -1] = 1
    return np.diff(cumulative, prepend=0)


def gaussian_table(std: float) -> Table:
    """v + 255 std z, z standard normal."""
    return _from_distribution(special.ndtr((_LEVEL + 1 - _LEVEL[:, None]) / (255 * std)))


def speckle_table(std: float) -> Table:
    """v + v std z, z standard normal."""
    return _from_distribution(special.ndtr((_LEVEL + 1 - _LEVEL[:, None]) / np.maximum(_LEVEL[:, None] * std, 1e-9)))


def impulse_table(amount: float) -> Table:
    """A share `amount` of the values becomes 0 or 255, either as often."""
    table = (1 - amount) * np.eye(LEVELS)
    table[:, [0, -1]] += amount / 2
    return table


def shot_table(photons: float) -> Table:
    """255 k / photons, k of the Poisson distribution with mean photons v / 255."""
    counts = np.arange(np.ceil(photons))  # more are as white
    cumulative = special.pdtr(counts, _LEVEL[:, None] / 255 * photons)
    table = np.zeros((LEVELS, LEVELS))
    for level, share in zip((counts / photons * 255).astype(int), np.diff(cumulative, prepend=0).T, strict=True):
        table[:, level] += share
    table[:, -1] += 1 - cumulative[:, -1]
    return table


@lru_cache(maxsize=64)
def alias_table(table: Callable[[float], Table], constant: float) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Per level v and column c, both [65536] at 256 v + c: the share of the column that stays c,
    and the level for the rest.

    Every column has the probability 1/256. The poorest column is filled up from the richest one,
    which becomes its alias, until all are full. Shares are int32: random numbers below it keep the
    column.
    """
    mass = table(constant) * LEVELS
    share, alias = np.ones_like(mass), np.tile(np.arange(LEVELS), (LEVELS, 1))
    rows, done = np.arange(LEVELS), np.zeros(mass.shape, dtype=bool)
    for _ in range(LEVELS):
        poorest, richest = np.where(done, np.inf, mass).argmin(1), np.where(done, -np.inf, mass).argmax(1)
        share[rows, poorest], alias[rows, poorest] = mass[rows, poorest], richest
        mass[rows, richest] -= 1 - mass[rows, poorest]
        done[rows, poorest] = True
    threshold = np.rint((share.clip(0, 1) - 0.5) * (1 << _SHARE_BITS)).astype(np.int64) << (32 - _SHARE_BITS)
    threshold = threshold.clip(max=2**31 - 1).ravel()
    return threshold.astype(np.int32), alias.astype(np.uint8).ravel()


def _random_words(generator: np.random.Generator, count: int) -> NDArray[np.int32]:
    """32 random bits each."""
    return generator.bit_generator.random_raw((count + 1) // 2).view(np.int32)[:count]


def redraw(images: Tensor, generators: Iterable[np.random.Generator], constant: float, table: Callable[[float], Table]) -> Tensor:
    """Each value v of uint8 [n, 3, H, W] replaced by a draw from the row v of `table(constant)`."""
    share, alias = alias_table(table, constant)
    values = images.cpu().numpy()
    drawn = np.stack([_random_words(generator, images[0].numel()) for generator in generators]).reshape(values.shape)
    place = values.astype(np.int64)
    place *= LEVELS
    place += drawn & (LEVELS - 1)
    column, other = drawn.astype(np.uint8), alias.take(place)
    column -= other  # modulo 256: the column where it is kept
    column *= (drawn < share.take(place)).view(np.uint8)
    column += other
    return torch.from_numpy(column).to(images.device)


gaussian_noise = partial(redraw, table=gaussian_table)
shot_noise = partial(redraw, table=shot_table)
impulse_noise = partial(redraw, table=impulse_table)
speckle_noise = partial(redraw, table=speckle_table)
