"""Training batches: what they hold, and that they depend on (seed, epoch, step) only."""

from __future__ import annotations

import dataclasses
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch

from tests.perturbing import degrade, draw
from tests.photo_like import photo_like
from undegrade.utils.data.batch_loader import BatchLoader
from undegrade.utils.data.batches import AugmentConfig, Batch, BatchSet
from undegrade.utils.data.perturbations.registry import find_perturbation
from undegrade.utils.data.sources.image_source import ImageSource, array_source

COUNT, SIDE = 23, 16
NAMES = ["jpeg", "noise", "blur+noise"]
TRAINING = AugmentConfig(flip=True, crop_padding=2, cutout=5)


def make_source(count: int = COUNT, side: int = SIDE) -> ImageSource:
    images = photo_like(count, side).numpy()
    return array_source("Toy/train", images, np.arange(count) % 3, ["a", "b", "c"], [f"{i:02d}" for i in range(count)])


SOURCE = make_source()


def assert_equal(one: Batch, other: Batch) -> None:
    assert one.keys() == other.keys()
    assert one["key"] == other["key"]
    for name in one.keys() - {"key"}:
        assert torch.equal(one[name], other[name]), name


def by_key(batches: list[Batch]) -> dict[tuple[str, int], tuple[torch.Tensor, ...]]:
    """Images and level by (key, degradation)."""
    return {
        (key, int(batch["deg"][i])): (batch["clean"][i], batch["degraded"][i], batch["level"][i])
        for batch in batches
        for i, key in enumerate(batch["key"])
    }


def assert_same_images(one: list[Batch], other: list[Batch]) -> None:
    first, second = by_key(one), by_key(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(a, b) for place in first for a, b in zip(first[place], second[place], strict=True))


# --- contract


@pytest.mark.parametrize("augment", [None, TRAINING])
def test_a_batch_holds_its_images_once_for_each_degradation(augment: AugmentConfig | None) -> None:
    batch = BatchSet(SOURCE, NAMES, 4, seed=0, augment=augment)[0, 1]
    assert batch.keys() == {"clean", "degraded", "label", "deg", "level", "key"}
    for name in ("clean", "degraded"):
        assert (batch[name].shape, batch[name].dtype) == ((12, 3, SIDE, SIDE), torch.float32)
        assert batch[name].min() >= 0
        assert 0.5 < batch[name].max() <= 1
    assert (batch["label"].dtype, batch["deg"].dtype, batch["level"].dtype) == (torch.int64, torch.int64, torch.float32)
    assert batch["deg"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert batch["key"] == batch["key"][:4] * 3
    assert [f"{'abc'[label]}/{key[2:]}" for label, key in zip(batch["label"], batch["key"], strict=True)] == batch["key"]
    assert ((batch["level"] >= 0) & (batch["level"] <= 1)).all()
    assert len(set(batch["level"].tolist())) > 6  # drawn image by image
    for index in (1, 2):
        assert torch.equal(batch["clean"][batch["deg"] == 0], batch["clean"][batch["deg"] == index])
        assert not torch.equal(batch["degraded"][batch["deg"] == 0], batch["degraded"][batch["deg"] == index])


def test_without_degradation_the_degraded_image_is_the_clean_one() -> None:
    batch = BatchSet(SOURCE, [], 4, seed=0, augment=AugmentConfig(flip=True, crop_padding=2))[0, 0]
    assert torch.equal(batch["clean"], batch["degraded"])
    assert (batch["deg"].tolist(), batch["level"].tolist()) == ([0] * 4, [0.0] * 4)


def test_without_augmentation_images_are_degraded_by_key_at_drawn_levels() -> None:
    batch = BatchSet(SOURCE, ["noise"], 5, seed=7)[0, 2]
    rows = list(range(10, 15))
    keys = [SOURCE.keys[i] for i in rows]
    level = draw("noise", keys, 7)
    assert batch["key"] == keys
    assert torch.equal(batch["level"], find_perturbation("noise").unit(level))
    assert torch.equal(batch["clean"] * 255, SOURCE.images(rows).float())
    assert torch.equal(batch["degraded"] * 255, degrade(SOURCE.images(rows), "noise", level, keys=keys, seed=7).float())


def test_a_training_epoch_shows_every_image_once_in_another_order() -> None:
    batches = BatchSet(SOURCE, [], 5, seed=0, augment=TRAINING)
    keys = [[key for step in range(len(batches)) for key in batches[epoch, step]["key"]] for epoch in (0, 1)]
    assert sorted(keys[0]) == sorted(keys[1]) == sorted(SOURCE.keys)
    assert len({tuple(keys[0]), tuple(keys[1]), tuple(SOURCE.keys)}) == 3


# --- determinism


@pytest.mark.parametrize("augment", [None, TRAINING])
def test_batches_are_the_same_whatever_the_workers(augment: AugmentConfig | None) -> None:
    batches = BatchSet(SOURCE, ["jpeg", "noise"], 5, seed=3, augment=augment)
    alone, helped = BatchLoader(batches), BatchLoader(batches, workers=2)
    for epoch in (0, 4):
        made = [list(loader.epoch(epoch)) for loader in (alone, helped)]
        assert len(made[0]) == len(made[1]) == len(alone) == 5
        for one, other in zip(*made, strict=True):
            assert_equal(one, other)
        assert_equal(made[0][3], batches[epoch, 3])


def test_batches_can_be_made_by_a_freshly_started_worker() -> None:
    batches = BatchSet(SOURCE, ["noise"], 5, seed=3, augment=TRAINING, adapted={"jpeg": SOURCE.limited(9)})
    assert_equal(pickle.loads(pickle.dumps(batches))[1, 2], batches[1, 2])


@pytest.mark.parametrize("change", [{"epoch": 1}, {"seed": 1}])
def test_another_epoch_or_seed_gives_other_degradations_and_augmentation(change: dict[str, int]) -> None:
    def images(seed: int = 0, epoch: int = 0) -> dict[tuple[str, int], tuple[torch.Tensor, ...]]:
        return by_key([BatchSet(SOURCE, ["noise"], COUNT, seed, TRAINING)[epoch, 0]])

    before, after = images(), images(**change)
    assert before.keys() == after.keys()
    for part in range(3):  # clean (flip, crop), degraded, level
        differ = [not torch.equal(before[place][part], after[place][part]) for place in before]
        assert sum(differ) > 0.7 * len(differ)


def test_evaluation_batches_do_not_change_with_the_epoch() -> None:
    batches = BatchSet(SOURCE, NAMES, 5, seed=0)
    assert_equal(batches[0, 1], batches[9, 1])


def test_an_image_is_augmented_alike_in_batches_of_every_size() -> None:
    made = [[batches[2, step] for step in range(len(batches))] for batches in
            (BatchSet(SOURCE, ["noise"], size, 0, TRAINING) for size in (4, 23))]  # fmt: skip
    assert_same_images(*made)


# --- several processes


@pytest.mark.parametrize("augment", [None, TRAINING])
@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_batch_that_one_process_would_make(augment: AugmentConfig | None, world: int) -> None:
    alone = BatchSet(SOURCE, ["noise"], 2 * world, 0, augment)
    parts = [BatchSet(SOURCE, ["noise"], 2, 0, augment, rank=rank, world=world) for rank in range(world)]
    for step in range(len(SOURCE) // (2 * world)):
        made = [part[1, step] for part in parts]
        assert [len(batch["key"]) for batch in made] == [2] * world
        assert_same_images([alone[1, step]], made)


@pytest.mark.parametrize(("size", "world", "training", "evaluation"), [(5, 1, 5, 5), (5, 2, 3, 3), (2, 11, 1, 2), (1, 22, 1, 2)])
def test_a_last_training_step_is_dropped_where_some_process_would_get_no_image(
    size: int, world: int, training: int, evaluation: int
) -> None:
    assert len(BatchSet(SOURCE, [], size, 0, AugmentConfig(), world=world)) == training
    assert len(BatchSet(SOURCE, [], size, 0, None, world=world)) == evaluation


def test_evaluation_batches_of_all_processes_hold_every_image_once() -> None:
    parts = [BatchSet(SOURCE, [], 4, 0, rank=rank, world=2) for rank in range(2)]
    keys = [key for part in parts for step in range(len(part)) for key in part[0, step]["key"]]
    assert sorted(keys) == sorted(SOURCE.keys)


@pytest.mark.parametrize("names", [[], ["noise"], ["blur+noise", "weak_seq"]])
def test_a_process_left_without_images_in_the_last_evaluation_step_gets_an_empty_batch(names: list[str]) -> None:
    batch = BatchSet(SOURCE, names, 11, 0, rank=1, world=2)[0, 1]  # the last of 23 images goes to process 0
    assert batch["key"] == []
    assert batch["degraded"].shape == (0, 3, SIDE, SIDE)
    assert batch["level"].shape == batch["label"].shape == (0,)


# --- augmentation


def windows(image: torch.Tensor, result: torch.Tensor, padding: int) -> list[tuple[int, int, bool]]:
    """All (top, left, flipped) at which `result` is the window of the black-padded image."""
    found = []
    for flipped in (False, True):
        padded = torch.nn.functional.pad(image.flip(-1) if flipped else image, (padding,) * 4)
        for top in range(2 * padding + 1):
            for left in range(2 * padding + 1):
                if torch.equal(padded[:, top : top + SIDE, left : left + SIDE], result):
                    found.append((top, left, flipped))
    return found


def test_images_are_flipped_for_half_and_cropped_at_every_place() -> None:
    batches = BatchSet(SOURCE, [], COUNT, 0, AugmentConfig(flip=True, crop_padding=2))
    places = []
    for epoch in range(8):
        batch = batches[epoch, 0]
        for key, result in zip(batch["key"], batch["clean"], strict=True):
            (place,) = windows(SOURCE.images([SOURCE.keys.index(key)])[0] / 255, result, 2)
            places.append(place)
    tops, lefts, flips = zip(*places, strict=True)
    assert set(tops) == set(lefts) == set(range(5))
    assert abs(sum(flips) / len(flips) - 0.5) < 4 * 0.5 / len(flips) ** 0.5  # four standard deviations


def test_clean_and_degraded_are_flipped_and_cropped_alike() -> None:
    as_it_is = {"noise": SOURCE}  # "adapted" images that are the clean ones
    augment = AugmentConfig(flip=True, crop_padding=3)
    batch = BatchSet(SOURCE, ["noise", "jpeg"], COUNT, 0, augment, as_it_is)[5, 0]
    assert torch.equal(batch["clean"][batch["deg"] == 0], batch["degraded"][batch["deg"] == 0])
    difference = (batch["clean"] - batch["degraded"])[batch["deg"] == 1].abs().flatten(1).mean(1)
    assert difference.max() < 0.2  # JPEG of quality 1 differs, but nothing is shifted or mirrored


def test_flip_happens_before_the_degradation() -> None:
    batch = BatchSet(SOURCE, ["noise"], COUNT, 0, AugmentConfig(flip=True))[0, 0]
    streams = [f"{key}@0" for key in batch["key"]]
    clean = (batch["clean"] * 255).round().to(torch.uint8)
    level = draw("noise", streams, 0)
    assert torch.equal(batch["degraded"] * 255, degrade(clean, "noise", level, keys=streams, seed=0).float())


def holes(image: torch.Tensor, mean: tuple[float, ...]) -> torch.Tensor:
    """Where an image has the colour `mean`: bool [H, W]."""
    return (image == torch.tensor(mean)[:, None, None]).all(0)


@pytest.mark.parametrize("on_clean", [False, True])
def test_cutout_fills_one_square_with_the_mean_where_it_is_told_to(on_clean: bool) -> None:
    augment = AugmentConfig(cutout=5, cutout_clean=on_clean)
    batch = BatchSet(SOURCE, ["noise", "jpeg"], COUNT, 0, augment, {"noise": SOURCE})[0, 0]
    sides = []
    for i, key in enumerate(batch["key"]):
        hole = holes(batch["degraded"][i], SOURCE.rgb_mean)
        rows, columns = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
        height, width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        assert hole.sum() == height * width  # one rectangle, clipped at the borders
        sides.append((height, width))
        twin = holes(batch["degraded"][(i + COUNT) % (2 * COUNT)], SOURCE.rgb_mean)
        assert torch.equal(hole, twin)  # the same hole for each degradation
        assert torch.equal(holes(batch["clean"][i], SOURCE.rgb_mean), hole & on_clean)
        if batch["deg"][i] == 0:
            untouched = SOURCE.images([SOURCE.keys.index(key)])[0] / 255
            assert torch.equal(batch["degraded"][i][:, ~hole], untouched[:, ~hole])
    assert max(sides) == (5, 5)
    assert min(min(side) for side in sides) >= 3  # the centre lies inside the image


def test_there_is_no_cutout_unless_told() -> None:
    batch = BatchSet(SOURCE, ["noise"], COUNT, 0, AugmentConfig(), {"noise": SOURCE})[0, 0]
    assert torch.equal(batch["degraded"], batch["clean"])


# --- adapted images


def test_adapted_images_stand_in_for_degrading_and_have_no_level() -> None:
    inverted = array_source("adapted", 255 - photo_like(COUNT, SIDE).numpy(), SOURCE.labels.numpy(), SOURCE.classes,
                            [key[2:] for key in SOURCE.keys])  # fmt: skip
    batch = BatchSet(SOURCE, ["jpeg", "noise"], 6, 0, adapted={"noise": inverted})[0, 1]
    adapted, made = batch["deg"] == 1, batch["deg"] == 0
    assert torch.allclose(batch["degraded"][adapted], 1 - batch["clean"][adapted])
    assert batch["level"][adapted].isnan().all()
    assert not batch["level"][made].isnan().any()
    assert (batch["degraded"] - batch["clean"])[made].abs().mean() < 0.2


# --- mistakes


@pytest.mark.parametrize("size", [0, -4])
def test_a_batch_size_that_leaves_nothing_is_reported(size: int) -> None:
    with pytest.raises(ValueError, match=rf"batch_size {size}: use at least 1"):
        BatchSet(SOURCE, [], size, 0)


def test_more_processes_than_training_images_are_reported() -> None:
    with pytest.raises(ValueError, match="23 training images cannot be dealt out to 24 processes"):
        BatchSet(SOURCE, [], 1, 0, AugmentConfig(), world=24)


def test_an_unknown_degradation_is_reported_with_the_closest() -> None:
    message: Any = re.escape("unknown perturbation 'nois': did you mean 'noise'?")
    with pytest.raises(ValueError, match=message):
        BatchSet(SOURCE, ["nois"], 4, 0)[0, 0]


# --- what workers send


@pytest.mark.parametrize("augment", [None, TRAINING, dataclasses.replace(TRAINING, cutout_clean=True)])
@pytest.mark.parametrize("pairing", ["paired", "independent"])
def test_workers_send_bytes_that_are_finished_on_the_device(augment: AugmentConfig | None, pairing: str) -> None:
    batches = BatchSet(SOURCE, NAMES, 4, 0, augment, pairing=pairing)
    made = batches.made((1, 2))
    assert made["clean"].dtype == made["degraded"].dtype == torch.uint8
    assert len(made["clean"]) == (12 if augment and pairing == "independent" else 4)  # paired: shared by all degradations
    assert len(made["degraded"]) == 12
    assert_equal(batches.finished(made), batches[1, 2])
    loader = BatchLoader(batches, device="meta")
    (first, *_) = loader.epoch(1)
    assert {value.device.type for name, value in first.items() if name != "key"} == {"meta"}
    assert {name: value.shape for name, value in first.items() if name != "key"} == {
        name: value.shape for name, value in batches[1, 0].items() if name != "key"
    }


def test_an_epoch_that_is_asked_for_is_the_one_that_comes() -> None:
    loader = BatchLoader(BatchSet(SOURCE, ["noise"], 5, 3, TRAINING))
    early, late = loader.epoch(4), loader.epoch(5)
    assert_equal(next(early), BatchSet(SOURCE, ["noise"], 5, 3, TRAINING)[4, 0])
    assert_equal(next(late), BatchSet(SOURCE, ["noise"], 5, 3, TRAINING)[5, 0])


def test_clean_images_may_stand_among_the_degradations() -> None:
    batch = BatchSet(SOURCE, ["clean", "noise"], 4, 0)[0, 0]
    assert torch.equal(batch["degraded"][:4], batch["clean"][:4]) and batch["level"][:4].tolist() == [0] * 4
    assert not torch.equal(batch["degraded"][4:], batch["clean"][4:])
