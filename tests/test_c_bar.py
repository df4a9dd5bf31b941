"""ImageNet-C-bar: the public generator's values and distributions, and what a result depends on."""

from __future__ import annotations

import base64

import numpy as np
import pytest
import torch

from tests.perturbing import corrupt
from tests.photo_like import photo_like, to_array
from tests.published_c_bar import DRAWS, MEASURED, VALUES
from tests.test_corruption_distributions import spectrum
from undegrade.evaluation.results import cell_result
from undegrade.evaluation.robustness import summary
from undegrade.utils.data.cells import Cell, parse_cells
from undegrade.utils.data.perturbations.c_bar import IMAGENET_C_BAR

TEN = (
    "blue_noise_sample", "brownish_noise", "caustic_refraction", "checkerboard_cutout", "cocentric_sine_waves",
    "inverse_sparkles", "perlin_noise", "plasma_noise", "single_frequency_greyscale", "sparkles",
)  # fmt: skip


class _Stream:
    """The numbers that `VALUES` were made from."""

    def __init__(self) -> None:
        self.stream = np.random.RandomState(7)  # noqa: NPY002

    def random(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.stream.random_sample(shape)


@pytest.mark.parametrize("name", TEN)
def test_values_are_those_of_the_public_generator_given_its_numbers(name: str) -> None:
    row = IMAGENET_C_BAR[name]
    out = row.function(photo_like(1, 32), [_Stream()], *row.constants["cifar"][2])[0]
    found = to_array(out.clamp(0, 255).to(torch.uint8))[3::6, 3::6].astype(int)
    expected = np.frombuffer(base64.b85decode(VALUES[name]), dtype=np.uint8).reshape(found.shape)
    assert np.abs(found - expected).max() <= 1 and (found != expected).mean() < 0.01


def _statistics(image: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Mean change and mean of the channels, [4, count]; mean variance of a pixel; power in rings of
    spatial frequency.
    """
    means = np.stack([np.abs(draws - image).mean((1, 2, 3)), *draws.mean((1, 2)).T])
    return means, draws.var(0).mean(), spectrum(draws - draws.mean(0))


@pytest.mark.parametrize("constants", ["cifar", pytest.param("imagenet", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", TEN)
def test_distribution_is_the_public_generators(name: str, constants: str) -> None:
    image, count = photo_like(1, 32), 200
    for severity, row in zip((1, 3, 5), MEASURED[constants][name], strict=True):
        keys = [str(i) for i in range(count)]
        ours = corrupt(image.expand(count, -1, -1, -1), name, severity, keys=keys, seed=0, constants=constants)
        means, variance, power = _statistics(to_array(image[0]).astype(float), ours.permute(0, 2, 3, 1).numpy().astype(float))
        measured = np.array(row.split(), dtype=float)
        expected, deviation = measured[[0, 2, 3, 4]], measured[[1, 5, 6, 7]]
        error = np.hypot(means.std(1) / count**0.5, deviation / DRAWS[constants] ** 0.5)
        assert (np.abs(means.mean(1) - expected) < 4 * error).all()
        assert variance == pytest.approx(measured[8], rel=0.1)
        # a plane wave is in one ring, so that a ring's power counts a few dozen waves
        assert np.abs(power / measured[9:] - 1).max() < (1 if name == "single_frequency_greyscale" else 0.25)


# --- what the result depends on


@pytest.mark.parametrize("constants", ["cifar", "imagenet"])
@pytest.mark.parametrize("name", TEN)
def test_bytes_of_an_image_are_the_same_in_every_batch(name: str, constants: str) -> None:
    images, keys, severities = photo_like(70, 32)[..., :24, :], [str(i) for i in range(70)], torch.arange(70) % 5 + 1
    whole = corrupt(images, name, severities, keys=keys, seed=1, constants=constants)
    assert torch.equal(corrupt(images.contiguous(), name, severities, keys=keys, seed=1, constants=constants), whole)
    for i in (0, 3, 69):
        alone = corrupt(images[i : i + 1], name, severities[i : i + 1], keys=[keys[i]], seed=1, constants=constants)
        assert torch.equal(alone[0], whole[i])
    assert whole.dtype == torch.uint8 and not torch.equal(whole[0], whole[5])
    other = corrupt(images, name, severities, keys=keys, seed=2, constants=constants)
    assert (other != whole).flatten(1).any(1).float().mean() > 0.9


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 7), (64, 48), (33, 32)])
@pytest.mark.parametrize("name", TEN)
def test_images_of_any_size_are_corrupted(name: str, height: int, width: int) -> None:
    images = photo_like(2, 64)[:, :, :height, :width]
    for constants in ("cifar", "imagenet"):
        out = corrupt(images, name, torch.tensor([1, 5]), keys=["a", "b"], seed=0, constants=constants)
        assert out.shape == images.shape and (height < 8 or not torch.equal(out, images))


# --- tables


def test_levels_are_the_published_ones() -> None:
    assert tuple(IMAGENET_C_BAR) == TEN
    published = {  # levels of the release: CIFAR-10-C-bar, ImageNet-C-bar
        "blue_noise_sample": ((0.7, 1.4, 2.1, 3.5, 4.2), (0.8, 1.6, 2.4, 4.0, 5.6)),
        "sparkles": ((0.7, 3.5, 5.6, 6.3, 7.0), (1.0, 2.0, 3.0, 5.0, 6.0)),
        "caustic_refraction": (None, (2.35, 3.2, 4.9, 6.6, 9.15)),
    }
    for name, sets in published.items():
        for constants, levels in zip(("cifar", "imagenet"), sets, strict=True):
            assert levels is None or IMAGENET_C_BAR[name].constants[constants] == tuple((level,) for level in levels)
    for row in IMAGENET_C_BAR.values():
        assert all(len(levels) == 5 and sorted(levels) == list(levels) for levels in row.constants.values())


def test_the_ten_are_one_word_of_command_lines() -> None:
    assert parse_cells(["imagenet-c-bar"], [2, 5]) == [Cell(name, severity) for name in TEN for severity in (2, 5)]


def test_their_mean_error_stands_apart_and_has_no_mce() -> None:
    rows = [cell_result("s", "d", name, 5, "first", np.array([True, False, False, False])) for name in TEN]
    assert summary(rows, outside="") == {"C-bar error": 75.0}
    assert summary(rows[1:], outside="") == {}
