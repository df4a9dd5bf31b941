"""The errors that corruptions and degradations cause a classifier: ours against those of the
published packages.

Both are drawn anew from the same images, so in each cell (perturbation x strength) an image may be
right under one and wrong under the other; the difference of the two errors has to be within its own
interval, widened for the number of questions that are asked: one of them alone is outside of its
95 % interval one time in twenty, by chance. The draws of several seeds are pooled, which are fixed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import imagedegrade.im
import imagedegrade.np
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor, nn

from tests.perturbing import corrupt, degrade
from tests.photo_like import to_array
from tests.published_corruptions import published
from undegrade.evaluation.results import paired_difference
from undegrade.models.classification.resnet import build_small_network
from undegrade.utils.data.perturbations.corruptions import ALL_CORRUPTIONS
from undegrade.utils.data.perturbations.degradations import REFERENCE
from undegrade.utils.data.sources.registry import open_source

Hits = dict[tuple[str, float, int], np.ndarray]  # which images are right, by perturbation, strength and seed

pytestmark = pytest.mark.slow

IMAGES, SEEDS = 100, (0, 1, 2, 3)
QUESTIONS = 4  # tests below: three sets of corruptions, the degradations
LEVELS = {"jpeg": (5, 10, 20, 50), "blur": (0.5, 1, 2, 4), "noise": (5, 15, 30, 50), "saltpepper": (0.05, 0.1, 0.15, 0.25)}


@pytest.fixture(scope="module")
def tested() -> tuple[Tensor, Tensor]:
    """uint8 [N, 3, 32, 32] and their labels."""
    source = open_source("Digits", "test", limit=IMAGES)
    return source.images(range(IMAGES)), source.labels


@pytest.fixture(scope="module")
def classify() -> Callable[[Tensor], Tensor]:
    """A ResNet20 after 100 steps on clean digits: uint8 [n, 3, 32, 32] to labels [n]."""
    source = open_source("Digits", "train")
    images, labels = source.images(range(len(source))), source.labels
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_small_network("ResNet20", 10)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        for _ in range(100):
            drawn = torch.randint(len(images), (64,))
            loss = nn.functional.cross_entropy(network(images[drawn] / 255), labels[drawn])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.eval()

    @torch.no_grad()
    def classified(batch: Tensor) -> Tensor:
        return network(batch / 255).argmax(1)

    return classified


def stacked(images: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def as_trained_on(image: np.ndarray, name: str, level: float) -> np.ndarray:
    """Clipped, then truncated, as published: imagedegrade's own noise of PIL images wraps round
    below 0 and above 255.
    """
    if name == "jpeg":
        return np.asarray(imagedegrade.im.jpeg(Image.fromarray(image), level))
    return np.clip(getattr(imagedegrade.np, name)(image, level), 0, 255).astype(np.uint8)


def assert_same_errors(hits: Hits, others: Hits) -> None:
    """Over all cells and seeds within the interval of one of `QUESTIONS`, in each of n cells (all
    seeds together) within that of one of n.
    """
    cells = {place[:2] for place in hits}
    for cell in cells:
        ours, theirs = ({place: found for place, found in of.items() if place[:2] == cell} for of in (hits, others))
        difference, low, high = paired_difference(ours, theirs)
        assert abs(difference) <= _wider(len(cells)) * (high - low) / 2, (cell, difference, low, high)
    difference, low, high = paired_difference(hits, others)
    assert abs(difference) <= _wider(QUESTIONS) * (high - low) / 2, (difference, low, high)


def _wider(questions: int) -> float:
    """By what an interval of 95 % is widened so that of so many all hold in 95 % of the cases."""
    return float(stats.norm.isf(0.025 / questions) / stats.norm.isf(0.025))


@pytest.mark.parametrize("constants", ["cifar", "tiny", "imagenet"])
def test_errors_under_corruptions_are_those_of_the_published_ones(
    constants: str, tested: tuple[Tensor, Tensor], classify: Callable[[Tensor], Tensor]
) -> None:
    images, labels = tested
    keys = [str(i) for i in range(len(images))]
    np.random.seed(0)  # noqa: NPY002  the published ones draw from the global generator
    hits, others = Hits(), Hits()
    for seed, name, severity in itertools.product(SEEDS, ALL_CORRUPTIONS, (1, 2, 3, 4, 5)):
        reference, cell = published(name, constants, severity), (name, float(severity), seed)
        ours = corrupt(images, name, severity, keys=keys, seed=seed, constants=constants)
        theirs = stacked([reference(to_array(image), seed * IMAGES + place) for place, image in enumerate(images)])
        hits[cell], others[cell] = ((classify(drawn) == labels).numpy() for drawn in (ours, theirs))
    assert_same_errors(hits, others)


def test_errors_under_degradations_are_those_of_imagedegrade(
    tested: tuple[Tensor, Tensor], classify: Callable[[Tensor], Tensor]
) -> None:
    images, labels = tested
    keys = [str(i) for i in range(len(images))]
    np.random.seed(0)  # noqa: NPY002
    hits, others = Hits(), Hits()
    for seed, (name, levels) in itertools.product(SEEDS, LEVELS.items()):
        for level in levels:
            cell = (name, float(level), seed)
            ours = degrade(images, name, float(level), keys=keys, seed=seed, compat=REFERENCE)
            theirs = stacked([as_trained_on(to_array(image), name, level) for image in images])
            hits[cell], others[cell] = ((classify(drawn) == labels).numpy() for drawn in (ours, theirs))
    assert_same_errors(hits, others)
