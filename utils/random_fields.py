"""Random numbers for many images at once: as in utils/seeding.py, what an image receives depends on
names only.

Each image has a SplitMix64 stream (Steele, Lea & Flood, OOPSLA 2014) of its own: word i is a mixing
function of start + i gamma, so that the words of all images come from a few operations on whole
arrays. Integer arithmetic and one table give the same numbers on every machine.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from undegrade.utils.seeding import derive_seed, name_bytes

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


class RandomFields:
    """One stream for each key, read by all of them in step: a call takes the numbers that follow
    those of the call before.

    Args:
        parts: what the numbers are for, such as `(seed, "noise")`.
        keys: one string for each image; its numbers depend on `parts` and its key only.
    """

    def __init__(self, *parts: object, keys: Sequence[str]) -> None:
        purpose = np.array([derive_seed(*parts)], dtype=np.uint64)
        self._start = _mixed(_words_of(tuple(keys)) + _mixed(purpose))
        self._used = 0

    def words(self, count: int) -> NDArray[np.uint64]:
        """[B, count], uniform over all numbers of 64 bits."""
        places = np.arange(self._used + 1, self._used + count + 1, dtype=np.uint64)
        self._used += count
        return _mixed(self._start[:, None] + places * _GAMMA)

    def random64(self, count: int) -> NDArray[np.float64]:
        """[B, count], uniform over the multiples of 2^-53 in [0, 1)."""
        return (self.words(count) >> np.uint64(11)) * 2.0**-53

    def random(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """[B, *shape], uniform over the multiples of 2^-24 in [0, 1)."""
        halves = self.words(-(-math.prod(shape) // 2)).view(np.uint32)[:, : math.prod(shape)]
        fractions = (halves >> np.uint32(8)).astype(np.float32)
        fractions *= np.float32(2**-24)
        return fractions.reshape(len(fractions), *shape)

    def standard_normal(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """[B, *shape] of mean 0 and variance 1: uniform over 65,536 quantiles of the normal
        distribution, up to 4.3 deviations.
        """
        quarters = self.words(-(-math.prod(shape) // 4)).view(np.uint16)[:, : math.prod(shape)]
        return np.take(_quantiles(), quarters, mode="wrap").reshape(len(quarters), *shape)

    def integers(self, first: Sequence[int], last: Sequence[int]) -> NDArray[np.int64]:
        """[B, n], column i uniform from first[i] to last[i], both included."""
        return scaled(self.random64(len(first)), first, last)


def scaled(u: NDArray[np.float64], first: Sequence[int], last: Sequence[int]) -> NDArray[np.int64]:
    """Numbers in [0, 1), [B, n] or [B, 1], to whole ones [B, n]: first + floor(u (last - first +
    1)).
    """
    lowest = np.asarray(first, dtype=np.int64)
    return lowest + np.floor(u * (np.asarray(last) - lowest + 1)).astype(np.int64)


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's mixing function, in place."""
    shifted = np.empty_like(words)
    for shift, factor in _ROUNDS:
        words ^= np.right_shift(words, np.uint64(shift), out=shifted)
        words *= np.uint64(factor)
    words ^= np.right_shift(words, np.uint64(31), out=shifted)
    return words


@functools.lru_cache(maxsize=16)  # a batch asks for the same keys again and again
def _words_of(keys: tuple[str, ...]) -> NDArray[np.uint64]:
    digests = b"".join(hashlib.blake2b(name_bytes(key), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, dtype="<u8")


@functools.cache
def _quantiles() -> NDArray[np.float32]:
    values = ndtri((np.arange(2**16) + 0.5) / 2**16)
    return (values / values.std()).astype(np.float32)
