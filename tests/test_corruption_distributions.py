"""Every stochastic corruption against the published algorithm, by distribution, with the constants
of all three sets.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from tests.perturbing import corrupt
from tests.photo_like import photo_like, to_array
from tests.published_corruptions import elastic, published
from undegrade.utils.data.perturbations import corruption_noise
from undegrade.utils.data.perturbations.corruption_constants import CONSTANTS
from undegrade.utils.data.perturbations.corruptions import FUNCTIONS

STOCHASTIC = ("gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog")
STOCHASTIC += ("elastic_transform", "speckle_noise", "spatter")
SHARED_DRAWS = ("motion_blur", "snow", "frost", "fog", "elastic_transform", "spatter")
NOISES = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise")


def _draws(name: str, constants: str, severity: int, size: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image [H, W, 3], and `count` corrupted versions of it by ours and by the published algorithm,
    float [count, H, W, 3].
    """
    image = photo_like(1, size)
    ours = corrupt(
        image.expand(count, -1, -1, -1), name, severity, keys=[str(i) for i in range(count)], seed=0, constants=constants
    )
    reference = published(name, constants, severity)
    np.random.seed(severity)  # noqa: NPY002
    array = to_array(image[0])
    theirs = np.stack([reference(array, number) for number in range(count)])
    return array.astype(float), ours.permute(0, 2, 3, 1).numpy().astype(float), theirs.astype(float)


def spectrum(changes: np.ndarray, bands: int = 6) -> np.ndarray:
    """Power of [count, H, W, 3] in rings of spatial frequency, without the mean."""
    power = (np.abs(np.fft.fft2(changes, axes=(1, 2))) ** 2).mean(axis=(0, 3))
    frequency = np.hypot(*np.meshgrid(*(np.fft.fftfreq(size) for size in power.shape), indexing="ij"))
    ring = np.minimum((frequency * 2 * bands).astype(int), bands - 1)
    ring[0, 0] = bands
    return np.bincount(ring.ravel(), power.ravel())[:bands]


def _compare(name: str, constants: str, severity: int, size: int) -> None:
    count = 100 if name in NOISES else 300
    image, ours, theirs = _draws(name, constants, severity, size, count)
    if name == "motion_blur":
        theirs += 0.5  # truncated; ImageMagick, and so ours, rounds
    changes = [np.abs(draws - image).mean(axis=(1, 2, 3)) for draws in (ours, theirs)]
    scale = changes[1].mean()
    standard_error = np.sqrt(sum(change.var() for change in changes) / count) / scale
    assert abs(changes[0].mean() / scale - 1) < max(0.03, 4 * standard_error)

    means, variances = [draws.mean(axis=0) for draws in (ours, theirs)], [draws.var(axis=0) for draws in (ours, theirs)]
    z = (means[0] - means[1]) / np.sqrt((variances[0] + variances[1]) / count + 0.01)  # of each pixel, in standard errors
    powers = [spectrum(draws - mean) for draws, mean in zip((ours, theirs), means, strict=True)]
    # Where one number changes the whole image (an angle, a crop, a landscape), pixels are no
    # independent draws.
    of_mean, of_variance, of_spectrum = (3, 0.2, 0.25) if name in SHARED_DRAWS else (1.25, 0.05, 0.08)
    assert np.sqrt((z**2).mean()) < of_mean
    assert abs(variances[0].mean() / variances[1].mean() - 1) < of_variance
    assert np.abs(powers[0] / powers[1] - 1).max() < of_spectrum


@pytest.mark.parametrize("severity", [1, 3, 5])
@pytest.mark.parametrize("name", STOCHASTIC)
def test_distribution_is_the_published_one_cifar(name: str, severity: int) -> None:
    _compare(name, "cifar", severity, 32)


@pytest.mark.slow
@pytest.mark.parametrize(("constants", "size"), [("tiny", 64), ("imagenet", 96)])
@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", STOCHASTIC)
def test_distribution_is_the_published_one(name: str, severity: int, constants: str, size: int) -> None:
    _compare(name, constants, severity, size)


class _Stream:
    """The global generator behind the methods that elastic is drawn with."""

    def __init__(self, seed: int) -> None:
        self.stream = np.random.RandomState(seed)  # noqa: NPY002

    def uniform(self, low: float, high: float, size: tuple[int, ...]) -> np.ndarray:
        return self.stream.uniform(low, high, size)

    def random(self, size: tuple[int, ...], dtype: type) -> np.ndarray:
        return self.stream.random_sample(size).astype(dtype)[::-1].copy()  # which of the two fields moves along rows is free


@pytest.mark.parametrize(("constants", "size"), [("cifar", 32), ("tiny", 64), ("imagenet", 96)])
def test_elastic_is_the_published_algorithm_given_the_same_stream(constants: str, size: int) -> None:
    image = photo_like(1, size)
    for severity, row in enumerate(CONSTANTS["elastic_transform"][constants], start=1):
        np.random.seed(severity)  # noqa: NPY002
        expected = elastic(*row)(to_array(image[0]), 0)
        out = FUNCTIONS["elastic_transform"](image, [_Stream(severity)], *row)[0]
        difference = np.abs(to_array(out.clamp(0, 255).to(torch.uint8)).astype(int) - expected)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01, severity


def _exact(name: str, constant: float) -> np.ndarray:
    """[256, 256] probability of level w from level v, by scipy's distributions."""
    levels = np.arange(256.0)
    clean = levels[:, None]
    if name == "impulse_noise":
        ends = np.isin(levels, (0, 255)) / 2
        return constant * np.tile(ends, (256, 1)) + (1 - constant) * np.eye(256)
    if name == "shot_noise":
        exact = np.zeros((256, 256))
        photons = np.arange(int(2 * constant) + 100)
        shares = stats.poisson.pmf(photons[:, None], levels / 255 * constant)
        for count, share in zip(photons, shares, strict=True):
            exact[:, int(min(count / constant, 1) * 255)] += share
        return exact
    std = 255 * constant * (np.ones_like(clean) if name == "gaussian_noise" else np.maximum(clean, 1e-9) / 255)
    below = stats.norm.cdf(levels[None, 1:], clean, std)
    return np.diff(below, prepend=0, append=1)


@pytest.mark.parametrize("constants", ["cifar", "tiny", "imagenet"])
@pytest.mark.parametrize("name", NOISES)
def test_noise_tables_hold_the_exact_probabilities(name: str, constants: str) -> None:
    table = getattr(corruption_noise, name.replace("noise", "table"))
    for (constant,) in CONSTANTS[name][constants]:
        share, alias = (part.reshape(256, 256) for part in corruption_noise.alias_table(table, constant))
        kept = share / 2.0**32 + 0.5
        drawn = kept / 256
        rows = np.broadcast_to(np.arange(256)[:, None], alias.shape)
        np.add.at(drawn, (rows, alias), (1 - kept) / 256)
        assert np.abs(drawn - _exact(name, constant)).max() < 2e-8, constant


def test_noise_draws_follow_its_table() -> None:
    image = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, -1, -1)
    count = 2000
    keys = [str(i) for i in range(count)]
    out = corrupt(image.expand(count, -1, -1, -1), "gaussian_noise", 5, keys=keys, seed=0, constants="cifar")
    drawn = out.permute(2, 3, 0, 1).reshape(256, -1).numpy()
    for level in (0, 3, 100, 250, 255):
        expected = _exact("gaussian_noise", 0.1)[level] * drawn.shape[1]
        often = expected > 10
        found = np.bincount(drawn[level], minlength=256)
        chi_square = ((found - expected)[often] ** 2 / expected[often]).sum()
        assert stats.chi2.sf(chi_square, often.sum() - 1) > 1e-4, level
