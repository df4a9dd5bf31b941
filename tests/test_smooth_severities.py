"""Corruptions in sequence, and passages from one into another, at severities between the whole
ones, as streams of CCC have them.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.perturbing import corrupt
from tests.photo_like import photo_like
from undegrade.utils.data.perturbations.corruption_constants import BETWEEN, CONSTANT_SETS, CONSTANTS
from undegrade.utils.data.perturbations.corruptions import CORRUPTIONS
from undegrade.utils.data.perturbations.passages import Passage
from undegrade.utils.data.perturbations.perturbation import PerturbationOptions
from undegrade.utils.data.perturbations.registry import find_perturbation

IMAGES, KEYS = photo_like(2, 32), ["a", "b"]


def in_sequence(name: str, *levels: float, constants: str = "imagenet") -> torch.Tensor:
    """`IMAGES` after the sequence, each stage of it at one severity."""
    options = PerturbationOptions(constants=constants)  # type: ignore[arg-type]
    return find_perturbation(name).apply(IMAGES, torch.tensor([levels] * len(IMAGES)), KEYS, 3, options)


# --- constants


@pytest.mark.parametrize(
    ("name", "severity", "expected"),
    [
        ("gaussian_noise", 4.25, (0.29,)),
        ("gaussian_noise", 0.5, (0.04,)),
        ("shot_noise", 1.5, (2 / (1 / 60 + 1 / 25),)),  # 1 / photons is linear
        ("shot_noise", 0.25, (240,)),
        ("frost", 0.5, (1, 0.2, 1)),
        ("jpeg_compression", 0.75, (40,)),
        ("snow", 2.5, (0.375, 0.3, 3, 0.7, 12, 6, 0.7)),
        ("elastic_transform", 3.5, (14.64, 2.44, 4.88)),
    ],
)
def test_constants_are_linear_between_the_neighbours(name: str, severity: float, expected: tuple[float, ...]) -> None:
    assert BETWEEN[name].constants(CONSTANTS[name]["imagenet"], severity) == pytest.approx(expected)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_constants_go_over_into_those_of_the_whole_severities(name: str) -> None:
    for rows in (CONSTANTS[name][which] for which in CONSTANT_SETS):
        for severity in range(1, 6):
            sides = [severity - 1e-7] + [severity + 1e-7] * (severity < 5)
            assert all(BETWEEN[name].constants(rows, side) == pytest.approx(rows[severity - 1], abs=1e-3) for side in sides)


# --- images


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("constants", ["cifar", "imagenet"])
def test_a_whole_severity_in_a_sequence_is_the_corruption_itself(name: str, constants: str) -> None:
    other = "contrast" if name != "contrast" else "brightness"
    assert torch.equal(in_sequence(f"{name}+{other}", 0, 0, constants=constants), IMAGES)
    for severity in (1, 4):
        alone = corrupt(IMAGES, name, severity, keys=KEYS, seed=3, constants=constants)
        assert torch.equal(in_sequence(f"{name}+{other}", severity, 0, constants=constants), alone)
        assert torch.equal(in_sequence(f"{other}+{name}", 0, severity, constants=constants), alone)


@pytest.mark.parametrize("constants", ["cifar", "tiny", "imagenet"])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severities_from_the_least_on_give_an_image_each_for_itself(name: str, constants: str) -> None:
    row = find_perturbation(f"{name}+jpeg_compression" if name != "jpeg_compression" else f"{name}+fog")
    levels = torch.tensor([[severity, 0] for severity in (0, 0.25, 0.5, 2.75, 4.1, 5)])
    images = IMAGES[:1].expand(6, -1, -1, -1)
    options = PerturbationOptions(constants=constants)  # type: ignore[arg-type]
    found = row.apply(images, levels, ["a"] * 6, 3, options)
    assert found.dtype == torch.uint8 and found.shape == images.shape
    for place in (1, 3, 4):
        assert torch.equal(row.apply(images[:1], levels[[place]], ["a"], 3, options), found[[place]])


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "defocus_blur", "contrast", "pixelate"])
def test_images_change_the_more_the_higher_the_severity(name: str) -> None:
    other = "brightness+" if name != "brightness" else ""
    changes = [
        (in_sequence(f"{other}{name}", 0, severity).float() - IMAGES.float()).abs().mean().item()
        for severity in (0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5)
    ]
    assert changes == sorted(changes) and changes[0] == 0 < changes[1]


def test_stages_follow_each_other_and_go_with_degradations() -> None:
    noisy = in_sequence("gaussian_noise+contrast", 2.5, 0)
    options = PerturbationOptions(constants="imagenet")
    both = find_perturbation("noise+contrast").apply(noisy, torch.tensor([[0.0, 1.75]] * 2), KEYS, 3, options)
    assert torch.equal(in_sequence("gaussian_noise+contrast", 2.5, 1.75), both)


def test_levels_of_a_sequence_of_corruptions() -> None:
    row = find_perturbation("gaussian_noise+fog")
    levels = row.draw([str(i) for i in range(400)], 0)
    assert levels.shape == (400, 2) and set(levels.flatten().tolist()) == {quarter / 4 for quarter in range(21)}
    assert row.unit(torch.tensor([[5.0, 0.0], [2.5, 5.0]])).tolist() == pytest.approx([0.5, 0.75])
    assert row.identity(PerturbationOptions(), 32) == {"constants": "cifar"} and row.reads == {"constants"}
    for wrong in (-0.25, 5.5, math.nan):
        with pytest.raises(ValueError, match=r"fog level .* is out of range: allowed: 0 to 5"):
            row.apply(IMAGES, torch.tensor([[1.0, wrong]] * 2), KEYS, 0)


# --- passages


def test_a_passage_has_the_first_corruption_at_its_start_and_the_second_at_its_end() -> None:
    keys = [f"{number}" for number in range(200)]
    passage, images = find_perturbation("gaussian_noise~contrast"), photo_like(1, 32).expand(200, -1, -1, -1)
    assert isinstance(passage, Passage)
    got, places = passage.apply(images, 5, keys, 3), passage.places(keys)
    for row in np.argsort(places)[[0, 60, 140, -1]]:
        levels = np.round(20 * np.array([1 - places[row], places[row]])) / 4
        sequence = find_perturbation("gaussian_noise+contrast")
        assert torch.equal(got[row], sequence.apply(images[:1], torch.tensor(levels)[None], [keys[row]], 3)[0])
    first = places.argmin()
    assert torch.equal(got[first], corrupt(images[:1], "gaussian_noise", 5, keys=[keys[first]], seed=3)[0])


@pytest.mark.parametrize("name", ["fog~snow~frost", "blur~noise", "fog~", "fog~fog"])
def test_what_is_no_passage_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="fog"):
        find_perturbation(name)
