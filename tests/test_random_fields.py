"""Random numbers by key: the published generator, independent of who else draws, and of the right
distributions.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from undegrade.utils import random_fields
from undegrade.utils.random_fields import RandomFields, scaled

KEYS = [f"cat/{i:05d}@3" for i in range(400)]


def fields(*parts: object, keys: list[str] = KEYS) -> RandomFields:
    return RandomFields(0, *(parts or ("noise",)), keys=keys)


def test_words_are_those_of_splitmix64() -> None:
    """The first three of the published C code from the states 0 and 1234567."""
    some = fields(keys=["a", "b"])
    some._start = np.array([0, 1234567], dtype=np.uint64)
    first = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert some.words(3).tolist() == [first, [6457827717110365317, 3203168211198807973, 9817491932198370423]]


def test_numbers_depend_on_purpose_and_key_only() -> None:
    whole, part = fields().random((5,)), fields(keys=KEYS[7:9]).random((5,))
    assert np.array_equal(whole[7:9], part)
    assert np.array_equal(whole[:, :3], fields().random((3,)))
    assert not np.array_equal(whole, fields("blur").random((5,)))
    assert not np.array_equal(whole, RandomFields(1, "noise", keys=KEYS).random((5,)))
    assert len(np.unique(fields().words(4))) == 4 * len(KEYS)


def test_a_second_call_goes_on_with_the_stream() -> None:
    once, twice = fields().words(10), fields()
    assert np.array_equal(once, np.concatenate([twice.words(4), twice.words(6)], axis=1))


@pytest.mark.parametrize("shape", [(3, 4, 4), (5,), (3, 3, 3)])
def test_shapes_and_types(shape: tuple[int, ...]) -> None:
    for draw in ("random", "standard_normal"):
        for keys in (KEYS[:2], []):
            numbers = getattr(fields(keys=keys), draw)(shape)
            assert (numbers.shape, numbers.dtype) == ((len(keys), *shape), np.float32)


@pytest.mark.parametrize("bits", [0, 16, 40, 63])
def test_every_bit_is_set_for_half_of_the_keys_and_of_the_words(bits: int) -> None:
    ones = (fields().words(1000) >> np.uint64(bits)) & np.uint64(1)
    for axis, count in ((0, 400), (1, 1000)):
        deviations = (ones.mean(axis) - 0.5) / (0.5 / count**0.5)
        assert abs(deviations.std() - 1) < 0.15 and np.abs(deviations).max() < 5


@pytest.mark.parametrize(("draw", "law"), [("random", "uniform"), ("standard_normal", "norm")])
def test_numbers_follow_their_law_within_a_key_and_across_keys(draw: str, law: str) -> None:
    numbers = getattr(fields(), draw)((1000,)).astype(float)
    assert stats.kstest(numbers.ravel(), law).pvalue > 1e-3
    for lines in (numbers, numbers.T):
        values = stats.kstest(lines, law, axis=1).pvalue
        assert stats.kstest(values, "uniform").pvalue > 1e-4  # p-values are themselves uniform


def test_moments() -> None:
    normal = fields().standard_normal((2500,)).astype(float)  # a million: standard errors 0.001, 0.0014, 0.0024, 0.005
    assert [normal.mean(), normal.var(), stats.skew(normal.ravel()), stats.kurtosis(normal.ravel())] == pytest.approx(
        [0, 1, 0, 0], abs=0.01
    )
    assert 4 < np.abs(normal).max() < 4.5
    uniform = fields().random((2500,)).astype(float)
    assert [uniform.mean(), uniform.var()] == pytest.approx([0.5, 1 / 12], abs=0.0015)
    assert uniform.min() >= 0 and uniform.max() < 1


@pytest.mark.parametrize("draw", ["random", "standard_normal"])
def test_neighbouring_keys_purposes_and_numbers_are_uncorrelated(draw: str) -> None:
    numbers = getattr(fields(), draw)((1000,)).astype(float)
    other = getattr(fields("blur"), draw)((1000,)).astype(float)
    pairs = [(numbers[1:], numbers[:-1]), (numbers, other)]
    pairs += [(numbers[:, lag:], numbers[:, :-lag]) for lag in (1, 2, 3, 4, 32)]
    for a, b in pairs:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / a.size**0.5
    between = np.corrcoef(numbers)[np.triu_indices(len(KEYS), 1)]
    assert abs(between.std() * 1000**0.5 - 1) < 0.02 and np.abs(between).max() < 6 / 1000**0.5


def test_whole_numbers_are_even_over_the_span_and_independent() -> None:
    keys = [str(i) for i in range(20000)]
    numbers = RandomFields(0, "crop", keys=keys).integers([0, -2], [8, 2])
    for column, span in zip(numbers.T, (range(9), range(-2, 3)), strict=True):
        counts = [(column == value).sum() for value in span]
        assert sum(counts) == len(keys)
        assert stats.chisquare(counts).pvalue > 1e-3
    table = np.histogram2d(*numbers.T, bins=(9, 5))[0]
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_scaled_numbers_have_their_hand_computed_values() -> None:
    ends = np.array([[0.0], [0.5], [np.nextafter(1, 0)]])
    assert scaled(ends, [1, 0], [101, 50]).tolist() == [[1, 0], [51, 25], [101, 50]]


def test_words_of_keys_are_their_blake2b_digests() -> None:
    """From `printf '%s' a | b2sum -l 64`: its bytes as a little-endian number."""
    assert random_fields._words_of(("a",)).tolist() == [int.from_bytes(bytes.fromhex("40f89e395b66422f"), "little")]
