"""The low-pass operator against published values and a direct sum over taps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from undegrade.image_adapt.lowpass import LowPass

SIZES = [(32, 1), (32, 2), (32, 4), (30, 3), (32, 16), (32, 32), (36, 6)]
EDGE_SUMS = [0.597, 0.841, 0.975, 1.022, 1.023, 1.012, 1.016, 1.015, 1.008, 1.002, 0.9994, 0.9991, 0.9994, 0.9999]


def kernel(x: float) -> float:
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0


def resize_line(line: list[float], n_out: int) -> list[float]:
    """ResizeRight's definition for one line of pixels: fixed field of view, normalised, then zero
    padding.
    """
    scale = n_out / len(line)
    stretch = min(scale, 1.0)
    support = 4 / stretch
    out = []
    for o in range(n_out):
        centre = o / scale + (len(line) - 1) / 2 - (n_out - 1) / (2 * scale)
        first = math.ceil(centre - support / 2 - float(np.finfo(np.float32).eps))
        taps = range(first, first + math.ceil(support))
        weights = [stretch * kernel(stretch * (centre - t)) for t in taps]
        pairs = zip(weights, taps, strict=True)
        out.append(sum(w * line[t] for w, t in pairs if 0 <= t < len(line)) / sum(weights))
    return out


def test_zero_border_has_the_published_values_on_a_constant_image():
    y = LowPass(256, 4, "zero")(torch.ones(256, 256))
    assert y[0, 0].item() == pytest.approx(0.3566939, abs=5e-7)
    assert y[0, 128].item() == pytest.approx(0.5972385, abs=5e-7)
    assert y[128, 128].item() == pytest.approx(1.0, abs=1e-6)
    assert y.max().item() == pytest.approx(1.0467763, abs=5e-7)


def test_zero_border_has_the_published_row_sums_and_is_not_idempotent():
    matrix = LowPass(256, 4, "zero").matrix
    torch.testing.assert_close(matrix.sum(1)[:14], torch.tensor(EDGE_SUMS).double(), rtol=0, atol=5.1e-4)
    assert (matrix @ matrix - matrix).abs().max().item() == pytest.approx(0.056, abs=5e-4)


@pytest.mark.parametrize(("factor", "corner"), [(2, 0.545), (8, 0.276)])
def test_zero_border_has_the_published_corner_for_other_factors(factor, corner):
    assert LowPass(256, factor, "zero")(torch.ones(256, 256))[0, 0].item() == pytest.approx(corner, abs=5e-4)


@pytest.mark.parametrize(("size", "factor"), SIZES)
def test_zero_border_equals_resizing_line_by_line(size, factor):
    image = torch.rand(size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    down_up = np.array([resize_line(resize_line(row.tolist(), size // factor), size) for row in image])
    expected = np.array([resize_line(resize_line(c.tolist(), size // factor), size) for c in down_up.T]).T
    np.testing.assert_allclose(LowPass(size, factor, "zero")(image).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("border", ["reflect", "zero"])
@pytest.mark.parametrize(("size", "factor"), SIZES)
def test_operator_is_symmetric_with_norm_at_most_one(size, factor, border):
    matrix = LowPass(size, factor, border).matrix
    assert matrix.dtype == torch.float64
    assert (matrix - matrix.T).abs().max() < 1e-14
    assert torch.linalg.matrix_norm(matrix, 2) < 1 + 1e-12


@pytest.mark.parametrize(("size", "factor"), SIZES)
def test_reflecting_border_keeps_a_constant_image_and_commutes_with_flips(size, factor):
    low_pass = LowPass(size, factor)
    torch.testing.assert_close(low_pass(torch.full((size, size), 0.7)), torch.full((size, size), 0.7))
    image = torch.rand(size, size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(low_pass(image.flip(0)), low_pass(image).flip(0))


def test_borders_agree_inside():
    reflect, zero = LowPass(64, 4).matrix, LowPass(64, 4, "zero").matrix
    assert torch.equal(reflect[14:-14], zero[14:-14])
    assert (reflect[:14] - zero[:14]).abs().amax(1).gt(1e-6).all()


def test_factor_one_is_the_identity():
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(LowPass(8, 1)(image), image)


def test_fine_pattern_is_removed_and_slow_pattern_kept():
    low_pass, columns = LowPass(64, 4), torch.arange(64) + 0.5
    checkers = (-1.0) ** (torch.arange(64)[:, None] + torch.arange(64))
    left = low_pass(checkers).abs()  # the mirror breaks the pattern's phase, so a little is left at the border
    assert left[14:-14, 14:-14].max() < 1e-6
    assert left.max() < 0.03
    slow = torch.cos(math.pi * columns / 64).expand(64, 64)
    assert (low_pass(slow) - slow).abs().max() < 0.01


@pytest.mark.parametrize("factor", [50, 0, -4, 64])
def test_factor_that_does_not_divide_the_size_is_refused(factor):
    message = f"downscale_factor {factor} does not divide the image size 32: use one of 1, 2, 4, 8, 16, 32$"
    with pytest.raises(ValueError, match=message):
        LowPass(32, factor)


def test_unknown_border_is_refused():
    with pytest.raises(ValueError, match="unknown border 'zeros'.*did you mean 'zero'"):
        LowPass(32, 4, "zeros")
