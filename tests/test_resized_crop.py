"""Random windows that are enlarged to the old size: ImageNet's augmentation, after the
degradation.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.test_batches import COUNT, SIDE, SOURCE
from undegrade.utils.data.augmentation import AugmentConfig, random_window, resized_crop
from undegrade.utils.data.batches import BatchSet


def test_a_window_is_enlarged_alike_in_the_clean_and_the_degraded_version() -> None:
    augment = AugmentConfig(flip=True, resized_crop=0.1)
    batch = BatchSet(SOURCE, ["jpeg"], COUNT, seed=0, augment=augment, adapted={"jpeg": SOURCE})[0, 0]
    assert torch.equal(batch["clean"], batch["degraded"])
    assert batch["clean"].shape == (COUNT, 3, SIDE, SIDE) and batch["clean"].min() >= 0 and batch["clean"].max() <= 1
    both = BatchSet(SOURCE, ["jpeg", "noise"], COUNT, seed=0, augment=augment)[0, 0]
    assert torch.equal(both["clean"][:COUNT], batch["clean"]) and torch.equal(both["clean"][COUNT:], batch["clean"])
    assert not torch.equal(BatchSet(SOURCE, [], COUNT, seed=0, augment=augment)[1, 0]["clean"], batch["clean"])


def test_the_degradation_of_a_window_is_that_of_the_whole_image() -> None:
    """Degraded before it is enlarged: a constant degraded image stays constant, wherever the window
    lies.
    """
    grey = torch.full((COUNT, 3, SIDE, SIDE), 100, dtype=torch.uint8)
    degraded = dataclasses.replace(SOURCE, read=lambda rows: grey[rows])
    augment = AugmentConfig(resized_crop=0.1)
    batch = BatchSet(SOURCE, ["blur"], COUNT, seed=0, augment=augment, adapted={"blur": degraded})[0, 0]
    torch.testing.assert_close(batch["degraded"], grey / 255)
    assert batch["clean"].std() > 0.05


def test_windows_have_the_usual_areas_and_shapes_and_lie_anywhere() -> None:
    rng = np.random.default_rng(0)
    windows = np.array([random_window(rng, 224, 0.08) for _ in range(4000)])
    top, left, height, width = windows.T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 224).all() and (left + width <= 224).all()
    area, ratio = height * width / 224**2, width / height
    assert area.min() == pytest.approx(0.08, abs=0.005) and np.median(area) == pytest.approx(0.5, abs=0.05) and area.max() > 0.9
    assert ratio.min() == pytest.approx(3 / 4, abs=0.02) and ratio.max() == pytest.approx(4 / 3, abs=0.03)
    assert np.log(ratio).mean() == pytest.approx(0, abs=0.02)
    free = (height < 160) & (width < 160)
    down, right = (top / (224 - height).clip(1))[free], (left / (224 - width).clip(1))[free]
    assert [down.mean(), right.mean()] == pytest.approx([0.5, 0.5], abs=0.03)
    assert [down.std(), right.std()] == pytest.approx([12**-0.5] * 2, abs=0.02)
    assert np.corrcoef(down, right)[0, 1] == pytest.approx(0, abs=0.06)
    assert all(random_window(rng, 224, 1.0) == (0, 0, 224, 224) for _ in range(20))


def test_a_window_is_enlarged_as_torchvision_enlarges_it() -> None:
    from torchvision.transforms.functional import resized_crop as torchvisions

    images, windows = SOURCE.images([0, 1]), np.array([[2, 5, 6, 4], [0, 0, SIDE, SIDE]])
    found = resized_crop(images, windows)
    for image, window, mine in zip(images, windows, found, strict=True):
        torch.testing.assert_close(mine, torchvisions(image / 255, *window.tolist(), [SIDE, SIDE], antialias=True))
    assert torch.equal(found[1], images[1] / 255)


def test_two_ways_to_cut_are_refused() -> None:
    with pytest.raises(ValueError, match=r"resized_crop 0\.08 and crop_padding 4 both cut: leave one out"):
        AugmentConfig(resized_crop=0.08, crop_padding=4)
