"""The two-dimensional corruptions of 3D Common Corruptions: constants, distributions, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tests.perturbing import corrupt
from tests.photo_like import photo_like, to_array
from undegrade.utils.data.cells import Cell, parse_cells
from undegrade.utils.data.perturbations.common_3d import COMMON_3D, iso_table

NAMES = ("iso_noise", "low_light", "color_quant")
STD = (0.08, 0.12, 0.18, 0.26, 0.38)  # of ImageNet-C's Gaussian noise


def draws(image: torch.Tensor, name: str, severity: int, count: int) -> np.ndarray:
    """`count` draws of one image, [count, 3, H, W]."""
    keys = [str(i) for i in range(count)]
    return corrupt(image.expand(count, -1, -1, -1), name, severity, keys=keys, seed=0, constants="imagenet").numpy()


# --- as published


def test_the_group_names_the_three() -> None:
    assert tuple(COMMON_3D) == NAMES
    assert parse_cells(["imagenet-3dcc-2d"], [2]) == [Cell(name, 2) for name in NAMES]


def test_constants_are_the_published_ones() -> None:
    rows = {name: [row[0] for row in COMMON_3D[name].constants["imagenet"]] for name in NAMES}
    assert rows["iso_noise"] == pytest.approx([0.7 * std for std in STD])
    assert rows["low_light"] == [0.6, 0.5, 0.4, 0.3, 0.2]
    assert rows["color_quant"] == [5, 4, 3, 2, 1]


@pytest.mark.parametrize("severity", range(1, 6))
def test_colours_are_quantised_as_pillow_posterises(severity: int) -> None:
    image = torch.arange(3 * 16 * 16).remainder(256).view(1, 3, 16, 16).to(torch.uint8)
    expected = ImageOps.posterize(Image.fromarray(to_array(image[0])), 6 - severity)
    assert np.array_equal(to_array(corrupt(image, "color_quant", severity, keys=["a"], seed=0, constants=None)[0]), expected)


@pytest.mark.parametrize(("severity", "std"), [(1, 0.056), (5, 0.266)])
def test_iso_noise_is_the_noise_of_25_photons_under_electronic_noise(severity: int, std: float) -> None:
    table = iso_table(std)
    assert table.min() >= -1e-12 and np.allclose(table.sum(1), 1)
    random = np.random.default_rng(0)
    for level in (0, 40, 128, 255):
        light = (random.poisson(level / 255 * 25, 200_000) / 25).clip(0, 1)
        expected = np.trunc((light + std * random.standard_normal(200_000)).clip(0, 1) * 255)
        mean, power = table[level] @ np.arange(256), table[level] @ np.arange(256) ** 2
        assert mean == pytest.approx(expected.mean(), abs=0.6) and power**0.5 == pytest.approx((expected**2).mean() ** 0.5, abs=0.6)
        found = draws(torch.full((1, 3, 16, 16), level, dtype=torch.uint8), "iso_noise", severity, 20)
        assert found.mean() == pytest.approx(mean, abs=5 * found.std() / found.size**0.5 + 1e-9)


def test_low_light_squares_and_stretches_levels_under_little_noise() -> None:
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    image[:, 0], image[:, 1], image[:, 2] = 50, 100, 250
    random = np.random.default_rng(0)
    for severity, brightest in ((1, 0.6), (5, 0.2)):
        found = draws(image, "low_light", severity, 100)
        for channel, light in enumerate(np.array([0, 1 / 16, 1]) * brightest):
            photons = (random.poisson(light * 120, 200_000) / 120).clip(0, 1)
            expected = np.trunc((photons + 0.018 * random.standard_normal(200_000)).clip(0, 1) * 255)
            assert found[:, channel].mean() == pytest.approx(expected.mean(), abs=0.5)
            assert found[:, channel].std() == pytest.approx(expected.std(), rel=0.05)


def test_an_image_of_one_level_is_black_under_noise_in_low_light() -> None:
    for level in (0, 7, 255):
        found = draws(torch.full((1, 3, 8, 8), level, dtype=torch.uint8), "low_light", 1, 4)
        assert 0 < found.mean() < 2 and found.max() < 30


# --- what the result depends on


@pytest.mark.parametrize("name", NAMES)
def test_an_image_does_not_depend_on_its_batch_but_on_key_and_seed(name: str) -> None:
    images, severities, keys = photo_like(6, 24), torch.tensor([1, 2, 3, 4, 5, 5]), list("abcdef")
    whole = corrupt(images, name, severities, keys=keys, seed=1, constants=None)
    for i in range(6):
        alone = corrupt(images[i : i + 1], name, i + 1 if i < 5 else 5, keys=[keys[i]], seed=1, constants=None)
        assert torch.equal(alone[0], whole[i])
    other = corrupt(images, name, severities, keys=keys, seed=2, constants=None)
    assert torch.equal(other, whole) == (name == "color_quant")


def test_other_sets_of_constants_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown set of corruption constants 'cifar' in iso_noise: allowed: imagenet"):
        corrupt(photo_like(1, 8), "iso_noise", 1, keys=["a"], seed=0, constants="cifar")
