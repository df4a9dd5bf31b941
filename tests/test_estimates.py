"""Blind estimates of what degraded an image, on images whose degradation is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.perturbing import degrade
from tests.photo_like import photo_like
from undegrade.models.restoration.estimates import blockiness, noise_level, sharpness
from undegrade.utils.data.pixels import to_unit


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return photo_like(4, 96)


def test_estimates_follow_their_degradation_and_no_other(photos: Tensor) -> None:
    versions = {
        name: to_unit(degrade(photos, name, level, keys=list("abcd"), seed=0))
        for name, level in (("noise", 30), ("blur", 2), ("jpeg", 8))
    }
    clean = to_unit(photos)
    assert (noise_level(versions["noise"]) - noise_level(clean) > 15 / 255).all()
    assert (noise_level(versions["blur"]) <= noise_level(clean)).all()
    assert (sharpness(versions["blur"]) < 0.5 * sharpness(clean)).all()
    assert (sharpness(versions["noise"]) > sharpness(clean)).all()
    assert (blockiness(versions["jpeg"]) > blockiness(clean) + 0.005).all()
    assert (blockiness(versions["blur"]).abs() < 0.01).all()


def test_blocks_and_edges_by_hand() -> None:
    x = torch.zeros(1, 3, 16, 16)
    x[..., 8:] = 0.6  # one step of 0.6 at the border of two blocks, in every row
    assert blockiness(x).item() == pytest.approx(0.6 / 2, abs=1e-6), "across columns 0.6, across rows 0"
    line = torch.zeros(1, 3, 5, 5)
    line[..., 2, 2] = 1
    laplacian = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    assert sharpness(line).item() == pytest.approx(laplacian.std(ddof=1))


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (5, 3), (8, 8), (9, 1)])
def test_small_images_have_estimates(shape: tuple[int, int]) -> None:
    for estimate in (noise_level, sharpness, blockiness):
        found = estimate(torch.rand(2, 3, *shape))
        assert found.shape == (2,) and found.isfinite().all()
