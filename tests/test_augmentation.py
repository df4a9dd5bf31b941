"""RandAugment, random erasing and interpolation of training images: timm's, drawn by image and
epoch.
"""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tests.photo_like import photo_like
from tests.test_batches import COUNT, SIDE, SOURCE, assert_equal, assert_same_images
from undegrade.utils.data.augmentation import (
    Augmentation,
    AugmentConfig,
    _randaugment,
    crop,
    erased,
    fill_holes,
    resized_crop,
)
from undegrade.utils.data.batch_loader import BatchLoader
from undegrade.utils.data.batches import BatchSet
from undegrade.utils.seeding import global_streams

RECIPE = AugmentConfig(
    flip=True, resized_crop=0.08, interpolation="bicubic", randaugment="rand-m9-mstd0.5-inc1", erasing=0.5
)  # fmt: skip


def everything(augment: AugmentConfig, *degradations: str, size: int = COUNT, epoch: int = 0, **options: object) -> list[dict]:
    return [*BatchLoader(BatchSet(SOURCE, degradations, size, 7, augment, **options)).epoch(epoch)]  # type: ignore[arg-type]


# --- streams


def test_global_generators_are_at_the_named_stream_within_and_as_before_afterwards() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002, B018
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002, B018
    with global_streams("a", 1):
        first = draw()
    assert draw() == expected != first
    with global_streams("a", 1):
        assert draw() == first
    with global_streams("a", 2):
        assert draw() != first
    with pytest.raises(KeyError), global_streams("a"):
        raise KeyError
    with global_streams("a", 1):
        assert draw() == first


def test_what_an_image_receives_depends_on_seed_epoch_and_key_only() -> None:
    whole = everything(RECIPE, "noise")
    torch.manual_seed(99)
    assert_same_images(whole, everything(RECIPE, "noise", size=5))
    assert_equal(whole[0], everything(RECIPE, "noise")[0])
    assert not torch.equal(whole[0]["clean"], everything(RECIPE, "noise", epoch=1)[0]["clean"])
    ranks = [everything(RECIPE, "noise", size=4, rank=rank, world=2) for rank in (0, 1)]
    assert_same_images(everything(RECIPE, "noise", size=8)[:2], [batch for part in ranks for batch in part[:2]])


def test_workers_make_the_same_batches() -> None:
    batches = BatchSet(SOURCE, ["noise"], 6, 7, RECIPE)
    for alone, helped in zip(BatchLoader(batches).epoch(2), BatchLoader(batches, workers=2).epoch(2), strict=True):
        assert_equal(alone, helped)


def test_augmented_images_are_in_range_and_none_is_left_out() -> None:
    batch = everything(RECIPE, "noise", "blur")[0]
    for view in ("clean", "degraded"):
        assert batch[view].min() >= 0 and batch[view].max() <= 1 and batch[view].isfinite().all()
    assert batch["degraded"].shape == (2 * COUNT, 3, SIDE, SIDE)


# --- RandAugment


def test_randaugment_is_that_of_timm_after_the_crop() -> None:
    from timm.data.auto_augment import rand_augment_transform

    config = AugmentConfig(randaugment="rand-m9-mstd0.5-inc1", interpolation="bicubic")
    mean = tuple(round(255 * value) for value in SOURCE.rgb_mean)
    transform = rand_augment_transform("rand-m9-mstd0.5-inc1", {"img_mean": mean, "interpolation": Image.Resampling.BICUBIC})
    batch = everything(config)[0]
    changed = 0
    for key, found in zip(batch["key"], batch["clean"], strict=True):
        original = SOURCE.images([SOURCE.keys.index(key)])[0].permute(1, 2, 0).numpy()
        with global_streams(7, "randaugment", f"{key}@0"):
            expected = np.asarray(transform(Image.fromarray(original)))
        assert torch.equal((found * 255).round().to(torch.uint8), torch.from_numpy(expected.transpose(2, 0, 1).copy()))
        changed += int((expected != original).any())
    assert changed > COUNT / 2


def test_versions_of_an_image_are_changed_alike() -> None:
    """As "adapted" images of themselves, all versions stay equal through crop, RandAugment and
    erasing.
    """
    augment = AugmentConfig(flip=True, resized_crop=0.3, randaugment="rand-m9-n3-inc1", erasing=1.0, cutout_clean=True)
    batch = everything(augment, "jpeg", "noise", adapted={"jpeg": SOURCE, "noise": SOURCE})[0]
    assert torch.equal(batch["clean"], batch["degraded"])
    assert torch.equal(batch["clean"][:COUNT], batch["clean"][COUNT:])


def test_without_degradations_clean_and_degraded_are_the_same_image() -> None:
    batch = everything(AugmentConfig(resized_crop=0.3, randaugment="rand-m9-inc1"))[0]
    assert torch.equal(batch["clean"], batch["degraded"])


def test_evaluation_is_not_augmented() -> None:
    batch = next(BatchLoader(BatchSet(SOURCE, (), COUNT, 7)).epoch(0))
    assert torch.equal(batch["clean"], SOURCE.images(range(COUNT)) / 255)


# --- erasing


def test_a_rectangle_of_the_probability_and_area_is_erased() -> None:
    images = torch.zeros(400, 3, 40, 40)
    noise = erased(images, 0.25, (0.1, 0.2), [("erase", i) for i in range(400)])
    hit = ~noise.isnan()
    assert (hit.any(1) == hit.all(1)).all()  # all channels or none
    share = hit[:, 0].double().mean((1, 2))
    assert 0.15 < (share > 0).double().mean() < 0.35  # five deviations: 5 sqrt(3 / 16 / 400) = 0.11
    assert share[share > 0].min() > 0.08 and share.max() < 0.22
    for one in hit[share > 0][:, 0]:
        rows, columns = one.any(1).sum(), one.any(0).sum()
        assert one.sum() == rows * columns
    assert noise[hit].mean().abs() < 0.05 and noise[hit].std() == pytest.approx(1, abs=0.05)


def test_erased_pixels_have_the_colours_of_the_data_set_and_the_others_stay() -> None:
    mean, std = (0.2, 0.5, 0.8), (0.01, 0.02, 0.03)
    images = torch.rand(60, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = Augmentation(AugmentConfig(erasing=1.0), mean, std, 0).cut(images, [str(i) for i in range(60)])
    hit = (found != images).any(1)
    assert torch.equal(found.permute(0, 2, 3, 1)[~hit], images.permute(0, 2, 3, 1)[~hit])
    erased_pixels = found.permute(0, 2, 3, 1)[hit]
    assert erased_pixels.mean(0).tolist() == pytest.approx(mean, abs=0.005)
    assert erased_pixels.std(0).tolist() == pytest.approx(std, abs=0.005)


def test_the_clean_version_is_erased_only_when_it_is_cut_too() -> None:
    for both in (False, True):
        batch = everything(AugmentConfig(erasing=1.0, cutout_clean=both))[0]
        plain = torch.cat([SOURCE.images([SOURCE.keys.index(key)]) for key in batch["key"]]) / 255
        assert torch.equal(batch["clean"], plain) != both and not torch.equal(batch["degraded"], plain)


# --- holes


def test_holes_are_filled_with_the_colour_in_all_versions() -> None:
    images = torch.rand(6, 3, 20, 20, generator=torch.Generator().manual_seed(0))  # two versions of three images
    expected, colour = images.clone(), (0.1, 0.2, 0.7)
    found = fill_holes(images, torch.tensor([[0, 0], [10, 5], [19, 19]]), 6, colour)
    for version in (0, 3):
        for index, (rows, columns) in enumerate([(slice(0, 3), slice(0, 3)), (slice(7, 13), slice(2, 8)), (slice(16, 20),) * 2]):
            expected[version + index, :, rows, columns] = torch.tensor(colour)[:, None, None]
    assert torch.equal(found, expected)


def test_a_hole_in_the_degraded_version_leaves_the_clean_one_alone() -> None:
    """Without degradations both are one image, which is enlarged and cut."""
    plain, cut = (everything(AugmentConfig(resized_crop=0.3, cutout=side))[0] for side in (0, 5))
    assert torch.equal(plain["clean"], cut["clean"]) and torch.equal(plain["degraded"], cut["clean"])
    assert not torch.equal(cut["degraded"], cut["clean"])


def test_a_window_of_the_padded_image_is_cut_out() -> None:
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).reshape(2, 3, 4, 4) + 1
    found = crop(images, torch.tensor([[0, 0], [3, 4]]), 2)
    assert torch.equal(found[0, :, 2:, 2:], images[0, :, :2, :2]) and not found[0, :, :2].any() and not found[0, :, :, :2].any()
    assert torch.equal(found[1, :, :3, :2], images[1, :, 1:, 2:]) and not found[1, :, 3:].any() and not found[1, :, :, 2:].any()


# --- interpolation


def test_a_window_is_enlarged_bicubically_as_pillow_does_it() -> None:
    images, windows = SOURCE.images([0, 1, 2]), np.array([[2, 5, 6, 4], [0, 0, SIDE, SIDE], [1, 1, 9, 12]])
    found = resized_crop(images, windows, "bicubic")
    for image, (top, left, height, width), mine in zip(images, windows.tolist(), found, strict=True):
        whole = Image.fromarray(image.permute(1, 2, 0).numpy())
        pillow = whole.crop((left, top, left + width, top + height)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        assert np.abs(mine.permute(1, 2, 0).numpy() * 255 - np.asarray(pillow)).max() < 1.6  # Pillow rounds twice
    assert not torch.equal(found, resized_crop(images, windows))


# --- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"randaugment": "rand-x9"}, "augment.randaugment 'rand-x9': write it as timm does, e.g. rand-m9-mstd0.5-inc1"),
        ({"randaugment": "m9"}, "augment.randaugment 'm9': write it as timm does"),
        ({"erasing_area": [0.5, 0.2]}, "erasing_area [0.5, 0.2] must be two shares of the image, the smaller one first"),
        ({"erasing_area": [0.5]}, "erasing_area [0.5] must be two shares"),
    ],
)
def test_unfit_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        AugmentConfig(**options)


def test_randaugment_takes_the_bits_that_pillow_refuses() -> None:
    """The magnitude 10 of 10, which rand-m9-mstd0.5-inc1 draws now and then, leaves none."""
    images = photo_like(1, 16)
    transform = _randaugment("rand-m10-inc1", "bilinear", (0.5, 0.5, 0.5))
    picture = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    (posterize,) = [operation for operation in transform.ops if operation.name == "PosterizeIncreasing"]  # type: ignore[attr-defined]
    posterize.prob = 1.0
    assert not np.asarray(posterize(picture)).any()
    for bits in range(1, 9):
        assert np.array_equal(posterize.aug_fn(picture, bits), ImageOps.posterize(picture, bits))
