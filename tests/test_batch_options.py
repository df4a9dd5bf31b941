"""Options of training batches: pairing, shared levels, corruptions, compatibility; and that the
defaults stay what they were.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from typing import Any

import numpy as np
import pytest
import torch

from tests.perturbing import corrupt, degrade, draw, perturb
from tests.test_batches import COUNT, SIDE, SOURCE, TRAINING, assert_equal, assert_same_images, by_key, holes
from undegrade.utils.data.batch_loader import BatchLoader
from undegrade.utils.data.batches import AugmentConfig, Batch, BatchSet
from undegrade.utils.data.perturbations.corruptions import CORRUPTIONS
from undegrade.utils.data.perturbations.degradations import DEGRADATIONS, REFERENCE
from undegrade.utils.data.perturbations.perturbation import PerturbationOptions
from undegrade.utils.data.sources.image_source import array_source
from undegrade.utils.random_fields import RandomFields
from undegrade.utils.seeding import numpy_generator

FOUR = list(DEGRADATIONS)
APART: dict[str, Any] = {"pairing": "independent", "levels": "shared"}
SHIFTED = AugmentConfig(flip=True, crop_padding=2)


def keys_of(batches: BatchSet, epoch: int, index: int) -> list[str]:
    """Keys that a degradation shows in an epoch, in order."""
    made = [batches[epoch, step] for step in range(len(batches))]
    return [key for b in made for key, deg in zip(b["key"], b["deg"].tolist(), strict=True) if deg == index]


def block(batch: Batch, index: int) -> Batch:
    """The rows of one degradation, as if it were the only one."""
    chosen = batch["deg"] == index
    rows = {name: batch[name][chosen] for name in ("clean", "degraded", "label", "level")}
    keys = [key for key, here in zip(batch["key"], chosen.tolist(), strict=True) if here]
    return {**rows, "deg": torch.zeros(len(keys), dtype=torch.int64), "key": keys}


# --- defaults


@pytest.mark.parametrize(
    ("augment", "place", "digest"),
    [
        (None, (0, 1), "4455371459d64fa2"),
        (AugmentConfig(flip=True, crop_padding=4, cutout=16, cutout_clean=True), (3, 0), "cce315d15b4bffb6"),
        (AugmentConfig(crop_padding=1, cutout=5), (1, 2), "dff38cb56c33bb23"),
    ],
)
def test_seeds_give_the_recorded_bytes(augment: AugmentConfig | None, place: tuple[int, int], digest: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 3, SIDE, SIDE), dtype=np.uint8)
    source = array_source("Toy/train", images, np.arange(COUNT) % 3, ["a", "b", "c"], [str(i) for i in range(COUNT)])
    batch = BatchSet(source, ["noise", "noise+saltpepper"], 4, 11, augment, rank=1, world=2)[place]
    found = hashlib.sha256(repr(batch["key"]).encode())
    for name in ("clean", "degraded", "label", "deg", "level"):
        found.update(batch[name].contiguous().numpy().tobytes())
    assert found.hexdigest()[:16] == digest


# --- independent pairing


def test_each_degradation_has_its_own_order_of_all_images() -> None:
    batches = BatchSet(SOURCE, FOUR, 5, 2, TRAINING, pairing="independent")
    for epoch in (0, 3):
        orders = [keys_of(batches, epoch, index) for index in range(4)]
        assert all(sorted(order) == sorted(SOURCE.keys) for order in orders)
        assert len({tuple(order) for order in orders}) == 4
        expected = numpy_generator(2, "order", epoch, "blur").permutation(COUNT)
        assert orders[FOUR.index("blur")] == [SOURCE.keys[i] for i in expected]


def test_the_rows_of_independent_degradations_are_of_one_image_each() -> None:
    as_it_is = dict.fromkeys(FOUR, SOURCE)  # "adapted" images that are the clean ones
    batch = BatchSet(SOURCE, FOUR, COUNT, 0, SHIFTED, as_it_is, pairing="independent")[1, 0]
    assert torch.equal(batch["clean"], batch["degraded"])
    assert batch["clean"].shape == (4 * COUNT, 3, SIDE, SIDE) and batch["clean"].is_contiguous()
    assert batch["deg"].tolist() == [index for index in range(4) for _ in range(COUNT)]
    assert [f"{'abc'[label]}/{key[2:]}" for label, key in zip(batch["label"], batch["key"], strict=True)] == batch["key"]
    clean = {place: images[0] for place, images in by_key([batch]).items()}
    differ = [not torch.equal(clean[key, 0], clean[key, index]) for key in SOURCE.keys for index in (1, 2, 3)]
    assert sum(differ) > 0.9 * len(differ)  # other flips and crops: 1 of 50 agree


def test_independent_degradations_have_their_own_flips_and_holes() -> None:
    as_it_is = dict.fromkeys(FOUR, SOURCE)
    flips = BatchSet(SOURCE, FOUR, COUNT, 0, AugmentConfig(flip=True), as_it_is, pairing="independent")[0, 0]
    same = by_key([flips])
    agree = [torch.equal(same[key, 0][0], same[key, index][0]) for key in SOURCE.keys for index in (1, 2, 3)]
    assert 0.2 < sum(agree) / len(agree) < 0.8  # half of 69
    cut = by_key([BatchSet(SOURCE, FOUR, COUNT, 0, AugmentConfig(cutout=5), as_it_is, pairing="independent")[0, 0]])
    hole = {place: holes(images[1], SOURCE.rgb_mean) for place, images in cut.items()}
    differ = [not torch.equal(hole[key, 0], hole[key, index]) for key in SOURCE.keys for index in (1, 2, 3)]
    assert sum(differ) > 0.9 * len(differ)


def test_an_independent_degradation_does_not_depend_on_the_others() -> None:
    together = BatchSet(SOURCE, ["jpeg", "noise", "fog"], 5, 0, TRAINING, **APART)[2, 1]
    for index, name in enumerate(("jpeg", "noise", "fog")):
        assert_equal(block(together, index), BatchSet(SOURCE, [name], 5, 0, TRAINING, **APART)[2, 1])


def test_levels_and_noise_of_an_image_are_the_same_under_both_pairings() -> None:
    paired, independent = (by_key([BatchSet(SOURCE, FOUR, COUNT, 0, AugmentConfig(), pairing=pairing)[1, 0]])
                           for pairing in ("paired", "independent"))  # fmt: skip
    assert paired.keys() == independent.keys()
    assert all(torch.equal(a, b) for place in paired for a, b in zip(paired[place], independent[place], strict=True))


@pytest.mark.parametrize("names", [FOUR, []])
def test_evaluation_and_clean_batches_are_the_same_under_both_pairings(names: list[str]) -> None:
    augment = None if names else TRAINING
    paired, independent = (BatchSet(SOURCE, names, 5, 3, augment, pairing=pairing) for pairing in ("paired", "independent"))
    for step in range(len(paired)):
        assert_equal(paired[1, step], independent[1, step])


def test_adapted_images_are_paired_with_their_clean_ones_in_independent_batches() -> None:
    inverted = array_source("adapted", 255 - SOURCE.images(range(COUNT)).numpy(), SOURCE.labels.numpy(), SOURCE.classes,
                            [key[2:] for key in SOURCE.keys])  # fmt: skip
    levels = torch.arange(COUNT) / COUNT
    adapted = {"noise": dataclasses.replace(inverted, level=levels)}
    augment = AugmentConfig(flip=True)
    batch = block(BatchSet(SOURCE, ["jpeg", "noise"], 6, 0, augment, adapted, pairing="independent")[0, 1], 1)
    assert torch.allclose(batch["degraded"], 1 - batch["clean"])
    assert batch["level"].tolist() == [levels[SOURCE.keys.index(key)] for key in batch["key"]]


def test_independent_batches_are_the_same_whatever_the_workers_and_their_sizes() -> None:
    batches = BatchSet(SOURCE, ["noise", "fog"], 5, 3, TRAINING, **APART)
    alone, helped = ([*BatchLoader(batches, workers).epoch(4)] for workers in (0, 2))
    assert len(alone) == len(helped) == 5
    for one, other in zip(alone, helped, strict=True):
        assert_equal(one, other)
    assert_same_images(alone, [*BatchLoader(BatchSet(SOURCE, ["noise", "fog"], 23, 3, TRAINING, **APART)).epoch(4)])


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_independent_batch_that_one_would_make(world: int) -> None:
    alone = BatchSet(SOURCE, FOUR, 2 * world, 0, TRAINING, **APART)
    parts = [BatchSet(SOURCE, FOUR, 2, 0, TRAINING, rank=rank, world=world, **APART) for rank in range(world)]
    for step in range(len(SOURCE) // (2 * world)):
        assert_same_images([alone[1, step]], [part[1, step] for part in parts])


# --- shared levels


@pytest.mark.parametrize("pairing", ["paired", "independent"])
def test_shared_levels_are_at_one_place_of_every_sweep(pairing: str) -> None:
    names = [*FOUR, "noise+jpeg", "fog"]
    batches = BatchSet(SOURCE, names, COUNT, 5, TRAINING, pairing=pairing, levels="shared")
    for epoch in (0, 2):
        level = {place: float(parts[2]) for place, parts in by_key([batches[epoch, 0]]).items()}
        for key in SOURCE.keys:
            u = float(RandomFields(5, "shared level", keys=[f"{key}@{epoch}"]).random64(1)[0, 0])
            quality, number, percent = 1 + int(u * 101), int(u * 51), int(u * 26)
            jpeg, noise, saltpepper = (101 - quality) / 100, number / 50, percent / 25
            expected = [jpeg, noise, noise, saltpepper, (noise + jpeg) / 2, (1 + int(u * 5)) / 5]
            assert [level[key, index] for index in range(6)] == pytest.approx(expected, abs=1e-6)


def test_shared_levels_change_nothing_but_the_levels() -> None:
    batch = BatchSet(SOURCE, ["noise", "blur"], COUNT, 5, AugmentConfig(), levels="shared")[1, 0]
    independent = BatchSet(SOURCE, ["noise", "blur"], COUNT, 5, AugmentConfig())[1, 0]
    assert torch.equal(batch["clean"], independent["clean"])
    assert batch["key"] == independent["key"]
    streams = [f"{key}@1" for key in batch["key"][:COUNT]]
    level = draw("noise", streams, 5, shared=True)
    expected = degrade((batch["clean"][:COUNT] * 255).to(torch.uint8), "noise", level, keys=streams, seed=5)
    assert torch.equal(batch["degraded"][:COUNT] * 255, expected.float())
    assert not torch.equal(batch["level"], independent["level"])
    assert not torch.equal(independent["level"][:COUNT], independent["level"][COUNT:])


def test_shared_levels_of_evaluation_batches_do_not_change_with_the_epoch() -> None:
    batches = BatchSet(SOURCE, ["noise", "blur"], 6, 5, levels="shared")
    assert_equal(batches[0, 1], batches[4, 1])
    assert torch.equal(batches[0, 1]["level"][:6], batches[0, 1]["level"][6:])


# --- what images are degraded by


def test_corruptions_and_degradations_may_be_trained_on_together() -> None:
    names = ["jpeg", "fog", "gaussian_noise"]
    batch = BatchSet(SOURCE, names, COUNT, 4, AugmentConfig())[2, 0]
    streams, clean = [f"{key}@2" for key in batch["key"][:COUNT]], (batch["clean"][:COUNT] * 255).to(torch.uint8)
    for index, name in enumerate(names):
        level = draw(name, streams, 4)
        expected = perturb(clean, name, level, keys=streams, seed=4)
        assert torch.equal(block(batch, index)["degraded"] * 255, expected.float())
    assert torch.equal(block(batch, 1)["level"], draw("fog", streams, 4) / 5)


def test_a_batch_may_hold_all_fifteen_corruptions() -> None:
    batch = BatchSet(SOURCE, CORRUPTIONS, 1, 0, TRAINING)[0, 0]
    assert batch["deg"].tolist() == list(range(15))
    assert len(batch["degraded"].flatten(1).unique(dim=0)) == 15


def test_compat_and_constants_reach_the_images() -> None:
    keys, clean = SOURCE.keys[:6], SOURCE.images(range(6))
    options = PerturbationOptions(compat=REFERENCE, constants="imagenet")
    batches = BatchSet(SOURCE, ["blur", "gaussian_noise"], 6, 0, options=options)
    batch = batches[0, 0]
    blurred = degrade(clean, "blur", draw("blur", keys, 0), keys=keys, seed=0, compat=REFERENCE)
    severity = draw("gaussian_noise", keys, 0).long()
    noisy = corrupt(clean, "gaussian_noise", severity, keys=keys, seed=0, constants="imagenet")
    assert torch.equal(batch["degraded"] * 255, torch.cat([blurred, noisy]).float())
    default = BatchSet(SOURCE, ["blur", "gaussian_noise"], 6, 0)[0, 0]
    assert all(not torch.equal(block(batch, i)["degraded"], block(default, i)["degraded"]) for i in (0, 1))


# --- uneven steps


@pytest.mark.parametrize("augment", [None, TRAINING])
@pytest.mark.parametrize(("size", "world"), [(5, 1), (5, 2), (2, 11), (23, 1), (4, 3)])
def test_global_images_are_those_of_all_processes_together(augment: AugmentConfig | None, size: int, world: int) -> None:
    parts = [BatchSet(SOURCE, FOUR, size, 0, augment, rank=rank, world=world, **APART) for rank in range(world)]
    for step in range(len(parts[0])):
        rows = [key for part in parts for key in block(part[0, step], 2)["key"]]
        assert len(set(rows)) == len(rows)
        assert {part.global_images(step) for part in parts} == {len(rows)}
        assert BatchLoader(parts[0]).global_images(step) == len(rows)


# --- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairing": "indepedent"}, "unknown pairing 'indepedent': did you mean 'independent'? allowed: paired, independent"),
        ({"levels": "share"}, "unknown levels 'share': did you mean 'shared'? allowed: independent, shared"),
        ({"degradations": ["fogg"]}, "unknown perturbation 'fogg': did you mean 'fog'? allowed: "),
        ({"degradations": ["jpeg", "blur+spatter"]}, "unknown stage 'spatter' in sequence 'blur+spatter'"),
    ],
)
def test_unknown_options_are_reported_before_a_batch_is_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        BatchSet(**{"source": SOURCE, "degradations": ["noise"], "batch_size": 4, "seed": 0, **options})
