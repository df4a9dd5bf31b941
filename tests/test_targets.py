"""Targets move with their images."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resized_crop as torchvisions

from tests.test_batches import COUNT, SIDE, SOURCE, assert_equal
from tests.tiny import tiny_classifier, tiny_context
from undegrade.trainers.supervised import Supervised, SupervisedConfig
from undegrade.utils.data.augmentation import AugmentConfig, random_window, resized_crop
from undegrade.utils.data.batch_loader import BatchLoader
from undegrade.utils.data.batches import Batch, BatchSet
from undegrade.utils.data.sources.image_source import ImageSource, array_reader
from undegrade.utils.data.sources.splits import concatenated
from undegrade.utils.data.targets import Mask, Points, Target

EVERY = list(range(COUNT))
CROPS = AugmentConfig(flip=True, crop_padding=3)
WINDOWS = AugmentConfig(flip=True, resized_crop=0.2)


def with_target(target: Target, values: np.ndarray) -> ImageSource:
    return dataclasses.replace(SOURCE, target=target, read_target=array_reader(values))


# the mask of an image is its red channel, the points are two places in it
RED = with_target(Mask(), SOURCE.images(EVERY)[:, 0].long().numpy())
PLACES = np.random.default_rng(0).integers(2, SIDE - 2, (COUNT, 2, 2)).astype(np.float32)


def epoch_of(source: ImageSource, augment: AugmentConfig | None, *names: str, workers: int = 0, **options: object) -> list[Batch]:
    return [*BatchLoader(BatchSet(source, names, 7, 3, augment, **options), workers).epoch(1)]  # type: ignore[arg-type]


def red_of(batch: Batch) -> Tensor:
    return (batch["clean"][:, 0] * 255).round().long()


# --- masks


@pytest.mark.parametrize("augment", [None, CROPS, dataclasses.replace(CROPS, cutout=5)])
@pytest.mark.parametrize("pairing", ["paired", "independent"])
@pytest.mark.parametrize("names", [(), ("noise", "jpeg")])
def test_a_mask_is_flipped_and_cropped_with_its_image(augment: AugmentConfig | None, pairing: str, names: tuple[str, ...]) -> None:
    batches = epoch_of(RED, augment, *names, pairing=pairing)
    plain = epoch_of(SOURCE, augment, *names, pairing=pairing)
    for batch, other in zip(batches, plain, strict=True):
        assert batch["target"].dtype == torch.int64
        assert torch.equal(batch["target"], red_of(batch))  # beyond the image both are 0
        assert_equal({k: v for k, v in batch.items() if k != "target"}, other)  # nothing else has changed


def test_a_mask_is_the_same_whatever_the_workers_and_processes() -> None:
    for one, other in zip(epoch_of(RED, WINDOWS, "noise"), epoch_of(RED, WINDOWS, "noise", workers=2), strict=True):
        assert_equal(one, other)
    whole = {key: mask for b in epoch_of(RED, WINDOWS) for key, mask in zip(b["key"], b["target"], strict=True)}
    for rank in (0, 1):
        for batch in epoch_of(RED, WINDOWS, rank=rank, world=2):
            assert all(torch.equal(mask, whole[key]) for key, mask in zip(batch["key"], batch["target"], strict=True))


def test_a_window_of_a_mask_is_enlarged_as_torchvision_does_with_the_nearest_pixel() -> None:
    rng = np.random.default_rng(1)
    windows = np.array([random_window(rng, SIDE, 0.1) for _ in EVERY])
    masks = RED.targets(EVERY)
    found = Mask().cut(masks, torch.from_numpy(windows), SIDE)
    for mask, window, mine in zip(masks, windows.tolist(), found, strict=True):
        assert torch.equal(mine, torchvisions(mask[None].float(), *window, [SIDE, SIDE], InterpolationMode.NEAREST_EXACT)[0].long())


def test_windows_of_batches_show_the_same_part_in_mask_and_image() -> None:
    blocks = np.arange(COUNT)[:, None, None, None] % 2 * 100 + np.zeros((1, 3, SIDE, SIDE), np.uint8)
    blocks[:, :, : SIDE // 2] += 50
    blocks[:, :, :, SIDE // 3 :] += 20
    source = dataclasses.replace(with_target(Mask(), blocks[:, 0].astype(np.int64)), read=array_reader(blocks.astype(np.uint8)))
    for batch in epoch_of(source, WINDOWS):
        assert (batch["target"] == red_of(batch)).float().mean() > 0.75  # all but the blurred edges


def test_left_and_right_classes_change_places_in_mirrored_masks_only() -> None:
    mask = torch.tensor([[[1, 0, 2], [3, 3, 7]]]).repeat(2, 1, 1)
    found = Mask(swap=((1, 2), (7, 8))).flip(mask, torch.tensor([True, False]), 3)
    assert found.tolist() == [[[1, 0, 2], [8, 3, 3]], mask[1].tolist()]


def test_what_a_window_holds_beyond_the_image_gets_the_class_outside() -> None:
    mask = torch.ones(1, 4, 4, dtype=torch.int64)
    found = Mask(outside=255).cut(mask, torch.tensor([[-1, 2, 4, 4]]), 4)
    assert found[0].tolist() == [[255] * 4] + [[1, 1, 255, 255]] * 3


# --- points


def test_points_stay_on_what_they_mark() -> None:
    """Each image is black but for a pixel in red and one in green."""
    pixels = np.zeros((COUNT, 3, SIDE, SIDE), np.uint8)
    for i, places in enumerate(PLACES.astype(int)):
        for channel, (x, y) in enumerate(places):
            pixels[i, channel, y, x] = 255
    source = dataclasses.replace(with_target(Points(), PLACES), read=array_reader(pixels))
    flipped = 0
    for batch in epoch_of(source, AugmentConfig(flip=True, crop_padding=2)):
        for key, image, points in zip(batch["key"], batch["clean"], batch["target"], strict=True):
            for channel, (x, y) in enumerate(points.tolist()):
                assert image[channel, int(y), int(x)] == 1
            flipped += bool(abs(points[0, 0] - PLACES[SOURCE.keys.index(key), 0, 0]) > 2)
    assert flipped > 3


def test_points_follow_a_window_to_a_fraction_of_a_pixel() -> None:
    """The centre of mass of a blob in an enlarged window is where its point has gone."""
    place, size = (13.0, 17.0), 32
    along = torch.arange(size, dtype=torch.float32)
    blob = torch.exp(-((along - place[0])[None] ** 2 + (along - place[1])[:, None] ** 2) / 8) * 255
    window = [8, 3, 20, 24]
    (x, y) = Points().cut(torch.tensor([[place]]), torch.tensor([window]), size)[0, 0].tolist()
    enlarged = resized_crop(blob.round().to(torch.uint8).expand(1, 3, -1, -1), np.array([window]))[0, 0]
    mass = enlarged / enlarged.sum()
    assert (x, y) == pytest.approx(((mass.sum(0) * along).sum().item(), (mass.sum(1) * along).sum().item()), abs=0.05)
    assert (x, y) == pytest.approx(((13.5 - 3) * 32 / 24 - 0.5, (17.5 - 8) * 32 / 20 - 0.5))


def test_left_and_right_points_change_places_and_missing_ones_stay_missing() -> None:
    points = torch.tensor([[[0.0, 1.0], [5.0, 2.0], [float("nan"), float("nan")]]]).repeat(2, 1, 1)
    found = Points(swap=((0, 1),)).flip(points, torch.tensor([True, False]), 8)
    assert found[0, :2].tolist() == [[2.0, 2.0], [7.0, 1.0]] and found[0, 2].isnan().all()
    assert torch.equal(found[1, :2], points[1, :2])


# --- sources


def test_targets_go_with_the_images_that_are_chosen() -> None:
    part = RED.subset([5, 2, 9]).limited(2)
    for source in (part, concatenated(part, RED, "more"), pickle.loads(pickle.dumps(part))):
        rows = list(range(len(source)))
        assert torch.equal(source.targets(rows), source.images(rows)[:, 0].long())


# --- what no target follows


def test_randaugment_is_refused_for_images_with_a_target() -> None:
    augment = AugmentConfig(randaugment="rand-m9-mstd0.5-inc1")
    with pytest.raises(ValueError, match=r"augment\.randaugment turns and shifts images, and their targets cannot follow"):
        BatchSet(RED, [], 4, 0, augment)
    BatchSet(SOURCE, [], 4, 0, augment)


def test_mixing_is_refused_for_images_with_a_target() -> None:
    context = dataclasses.replace(tiny_context(), source=RED)
    with pytest.raises(ValueError, match=r"method\.mixup and method\.cutmix mix labels, not the targets"):
        Supervised(tiny_classifier(), context, SupervisedConfig(mixup=0.2))
