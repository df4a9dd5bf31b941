"""Data sets with masks and points: the digits', CelebAMask-HQ and WFLW as published."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from undegrade.utils.data.sources import celebamask_hq, wflw
from undegrade.utils.data.sources.digits import POINTS, digits
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.data.targets import IGNORED, Mask, Points

SPLITS = ("train", "validation", "test")

# --- digits


def test_scenes_have_the_ink_of_their_digits_as_masks() -> None:
    source = open_source("DigitScenes", "validation")
    images, masks = source.images(range(20)), source.targets(range(20))
    assert isinstance(source.target, Mask) and source.target.classes == ("background", *map(str, range(10)))
    assert images.shape == (20, 3, 48, 48) and masks.shape == (20, 48, 48) and masks.dtype == torch.int64
    assert set(masks.unique().tolist()) == set(range(11))
    grey = images.float().mean(1)
    assert grey[masks > 0].mean() > 1.8 * grey[masks == 0].mean()
    assert all(2 <= len(mask.unique()) <= 6 for mask in masks)  # up to five digits and the background


def test_scenes_are_the_same_each_time_and_differ_between_the_parts() -> None:
    parts = [open_source("DigitScenes", split) for split in ("validation", "test")]
    assert [len(part) for part in parts] == [100, 250]
    again = open_source("DigitScenes", "validation", limit=90)
    assert torch.equal(parts[0].aligned(again.keys, "").images([3]), again.images([3]))
    assert not torch.equal(parts[0].images([3]), parts[1].images([3]))
    both = open_source("DigitScenes", "trainval")
    assert len(both) == 1100 and torch.equal(both.targets([1003]), parts[0].targets([3]))


def test_points_are_the_ends_of_the_ink() -> None:
    source = open_source("DigitPoints", "test")
    assert source.keys == digits("test", Path()).keys
    images, points = source.images(range(40))[:, 0].numpy() / 255, source.targets(range(40)).numpy()
    for image, places in zip(images, points, strict=True):
        rows, columns = np.nonzero(image >= 0.35)
        found = dict(zip(POINTS, places.tolist(), strict=True))
        ends = (found["top"][1], found["bottom"][1], found["left"][0], found["right"][0])
        assert ends == (rows.min(), rows.max(), columns.min(), columns.max())
        assert all(image[round(found[name][1]), round(found[name][0])] >= 0.35 for name in POINTS[:4])


def test_in_a_mirrored_digit_left_and_right_change_places() -> None:
    source = open_source("DigitPoints", "test")
    assert isinstance(source.target, Points)
    values = source.targets([0])
    mirrored = source.target.flip(values, torch.tensor([True]), 32)[0]
    left, right = POINTS.index("left"), POINTS.index("right")
    assert mirrored[left, 0] == 31 - values[0, right, 0] and mirrored[left, 0] < mirrored[right, 0]


# --- CelebAMask-HQ


def write_faces(root: Path, count: int = 12) -> Path:
    folder = root / celebamask_hq.FOLDER
    (folder / celebamask_hq.IMAGES).mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (16, 16), (i, 0, 0)).save(folder / celebamask_hq.IMAGES / f"{i}.jpg")
        write_part(folder, i, "skin", (0, 0, 8, 6))
        write_part(folder, i, "l_eye", (0, 0, 4, 4))
    return folder


def write_part(folder: Path, number: int, part: str, box: tuple[int, int, int, int], side: int = 8, level: int = 255) -> None:
    """A mask of the corners (left, top, right, bottom)."""
    image = Image.new("L", (side, side), 127)
    image.paste(level, box)
    place = folder / celebamask_hq.MASKS / f"{number // 2000}"
    place.mkdir(parents=True, exist_ok=True)
    image.convert("RGB").save(place / f"{number:05d}_{part}.png")


def test_a_label_map_has_later_parts_over_earlier_ones_and_the_rest_is_background(tmp_path: Path) -> None:
    folder = write_faces(tmp_path, 12)
    write_part(folder, 3, "hat", (4, 4, 8, 8), level=128)
    source = open_source("CelebAMaskHQ", "train", tmp_path, image_size=8)
    everything = torch.cat([open_source("CelebAMaskHQ", split, tmp_path, image_size=8).targets(range(1)) for split in SPLITS])
    expected = torch.zeros(8, 8, dtype=torch.int64)
    expected[:6] = celebamask_hq.CLASSES.index("skin")
    expected[:4, :4] = celebamask_hq.CLASSES.index("l_eye")
    with_hat = expected.clone()
    with_hat[4:, 4:] = celebamask_hq.CLASSES.index("hat")
    assert all(torch.equal(mask, expected) or torch.equal(mask, with_hat) for mask in everything)
    files = {celebamask_hq.CLASSES.index(part): next(folder.rglob(f"00003_{part}.png")) for part in ("skin", "l_eye", "hat")}
    assert np.array_equal(celebamask_hq.label_map(files), with_hat.numpy())
    assert len(source.target.classes) == 19 and source.target.outside == IGNORED  # type: ignore[union-attr]
    assert source.images([0]).shape == (1, 3, 8, 8)


def test_sides_of_a_face_change_places_in_a_mirrored_one() -> None:
    names = {celebamask_hq.CLASSES[a]: celebamask_hq.CLASSES[b] for a, b in celebamask_hq.SWAP}
    assert names == {"l_brow": "r_brow", "l_eye": "r_eye", "l_ear": "r_ear"}
    mask = torch.full((1, 4, 4), celebamask_hq.CLASSES.index("l_eye"))
    flipped = Mask(celebamask_hq.SWAP).flip(mask, torch.tensor([True]), 4)
    assert (flipped == celebamask_hq.CLASSES.index("r_eye")).all()


def test_parts_of_the_faces_are_by_the_published_lists_or_by_a_fixed_draw(tmp_path: Path) -> None:
    folder = write_faces(tmp_path)
    drawn = {split: open_source("CelebAMaskHQ", split, tmp_path, image_size=8).keys for split in (*SPLITS, "trainval")}
    assert sorted(drawn["train"] + drawn["validation"]) == sorted(drawn["trainval"])
    assert len(set(drawn["trainval"]) | set(drawn["test"])) == 12 and not set(drawn["trainval"]) & set(drawn["test"])
    lines = [f"{i}  {100 + i}  {100 + i:06d}.jpg" for i in range(12)]
    (folder / celebamask_hq.MAPPING).write_text("\n".join(["idx orig_idx orig_file", *lines]))
    (folder / celebamask_hq.PARTITION).write_text("\n".join(f"{100 + i:06d}.jpg {i % 3}" for i in range(12)))
    for kind, split in enumerate(SPLITS):
        keys = open_source("CelebAMaskHQ", split, tmp_path, image_size=8).keys
        assert keys == [f"face/{i}" for i in range(12) if i % 3 == kind]


# --- WFLW


def face_line(name: str, box: tuple[int, int, int, int] = (10, 20, 26, 36), attributes: str = "0 0 0 0 0 0") -> str:
    points = np.stack([np.linspace(box[0], box[2], wflw.COUNT), np.linspace(box[1], box[3], wflw.COUNT)], 1).flatten()
    return " ".join([*(f"{value:.3f}" for value in points), *map(str, box), attributes, name])


def write_wflw(root: Path, faces: int = 12) -> Path:
    folder = root / wflw.FOLDER
    (folder / wflw.LISTS).mkdir(parents=True)
    (folder / wflw.IMAGES / "a").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(faces):
        Image.fromarray(rng.integers(0, 255, (64, 48, 3), np.uint8)).save(folder / wflw.IMAGES / "a" / f"{i}.png")
    lines = [face_line(f"a/{i}.png", attributes="1 0 0 0 0 1" if i == 3 else "0 0 1 0 0 0") for i in range(faces)]
    for part, own in (("train", lines[:8] + lines[:8]), ("test", lines[8:] + [lines[3]])):
        (folder / wflw.LISTS / f"list_98pt_rect_attr_{part}.txt").write_text("\n".join(own) + "\n")
    return folder


def test_a_face_is_cut_out_with_a_margin_and_its_points_move_along(tmp_path: Path) -> None:
    folder = write_wflw(tmp_path)
    source = open_source("WFLW", "test", tmp_path, image_size=20)
    assert source.images([0]).shape == (1, 3, 20, 20) and source.targets([0]).shape == (1, 98, 2)
    whole = np.asarray(Image.open(folder / wflw.IMAGES / "a" / "8.png"))
    assert np.array_equal(
        source.images([0])[0].permute(1, 2, 0).numpy(), whole[18:38, 8:28]
    )  # 16 px and a quarter more, around (18, 28)
    assert torch.allclose(source.targets([0])[0, [0, -1]], torch.tensor([[2.0, 2.0], [18.0, 18.0]]))
    twice = open_source("WFLW", "test", tmp_path, image_size=40).targets([0])
    assert torch.allclose((twice + 0.5) / 2, source.targets([0]) + 0.5, atol=1e-4)


def test_photographs_of_validation_faces_are_not_trained_on_and_subsets_are_by_attributes(tmp_path: Path) -> None:
    write_wflw(tmp_path)
    keys = {split: open_source("WFLW", split, tmp_path, image_size=20).keys for split in (*SPLITS, "trainval")}
    photographs = {split: {key.rpartition("_")[0] for key in own} for split, own in keys.items()}
    assert not photographs["train"] & photographs["validation"] and len(keys["validation"]) == 2
    assert sorted(keys["train"] + keys["validation"]) == sorted(keys["trainval"])
    groups = open_source("WFLW", "test", tmp_path, image_size=20).groups
    assert {name: members.tolist() for name, members in groups.items() if members.any()} == {
        "largepose": [False] * 4 + [True], "illumination": [True] * 4 + [False], "blur": [False] * 4 + [True],
    }  # fmt: skip
    assert tuple(groups) == wflw.SUBSETS


def test_mirrored_points_of_a_face_are_pairs() -> None:
    swapped = [i for pair in wflw.TARGET.swap for i in pair]
    on_the_axis = {16, 51, 52, 53, 54, 57, 79, 85, 90, 94}
    assert len(swapped) == len(set(swapped)) and set(range(98)) - set(swapped) == on_the_axis
    assert wflw.TARGET.unit == (60, 72) and (60, 72) in wflw.TARGET.swap


# --- errors


def _other_size(root: Path) -> None:
    write_part(write_faces(root), 0, "nose", (0, 0, 2, 2), side=6)


def _unknown_part(root: Path) -> None:
    write_part(write_faces(root), 0, "beard", (0, 0, 2, 2))


def _no_masks(root: Path) -> None:
    folder = write_faces(root)
    for path in folder.rglob("00002_*.png"):
        path.unlink()


def _bad_partition(root: Path) -> None:
    folder = write_faces(root)
    (folder / celebamask_hq.MAPPING).write_text("idx orig_idx orig_file\n0 1 000001.jpg\n")
    (folder / celebamask_hq.PARTITION).write_text("000001.jpg 3\n")


def _with_line(line: Callable[[str], str]) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        path = write_wflw(root) / wflw.LISTS / "list_98pt_rect_attr_test.txt"
        path.write_text(line(face_line("a/1.png")) + "\n")

    return write


@pytest.mark.parametrize(
    ("dataset", "write", "error", "message"),
    [
        ("CelebAMaskHQ", lambda root: None, FileNotFoundError, "CelebA-HQ-img not found; expected"),
        ("CelebAMaskHQ", _other_size, ValueError, "00000_nose.png has 6 x 6 pixels"),
        ("CelebAMaskHQ", _unknown_part, ValueError, "'beard' is no part of a face, allowed: skin, "),
        ("CelebAMaskHQ", _no_masks, ValueError, "no mask of 1 of 12 images, e.g. 2.jpg"),
        ("CelebAMaskHQ", _bad_partition, ValueError, "line '000001.jpg 3' is not of the form"),
        ("WFLW", lambda root: None, FileNotFoundError, "WFLW_images not found; expected"),
        ("WFLW", _with_line(lambda line: line.partition(" ")[2]), ValueError, "line 1: 206 words, expected 207"),
        ("WFLW", _with_line(lambda line: line.replace(" 0 a", " 2 a")), ValueError, "attributes 0 0 0 0 0 2, each must be 0 or 1"),
        ("WFLW", _with_line(lambda line: "x" + line), ValueError, "that is no number"),
        ("WFLW", _with_line(lambda line: line.replace("a/1", "../1")), ValueError, "../1.png lies outside of"),
    ],
)  # fmt: skip
def test_what_is_not_as_published_is_reported(
    dataset: str, write: Callable[[Path], None], error: type[Exception], message: str, tmp_path: Path
) -> None:
    write(tmp_path)
    with pytest.raises(error, match=re.escape(message)):
        source = open_source(dataset, "test", tmp_path, image_size=8)
        for split in SPLITS:
            source = open_source(dataset, split, tmp_path, image_size=8)
            source.targets(range(len(source)))
