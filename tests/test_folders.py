"""Image folders: layouts, broken files, and how a file becomes pixels."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from undegrade.utils.data.sources import folders
from undegrade.utils.data.sources.folders import folder_source, plain_source
from undegrade.utils.data.sources.image_files import list_images
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.sources.images import BrokenImageError
from undegrade.utils.data.sources.registry import open_source


def write_images(folder: Path, classes: Sequence[str], count: int, size: tuple[int, int] = (8, 8), suffix: str = ".png") -> None:
    """`count` images a class, all pixels (10 * class, number, 7)."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", size, (10 * label, i, 7)).save(folder / name / f"im{i:02d}{suffix}")


def open_all(root: Path) -> dict[str, ImageSource]:
    return {split: open_source(str(root), split) for split in ("train", "validation", "test")}


def assert_reads_its_own_images(source: ImageSource) -> None:
    """Every image shows its class and its number."""
    images = source.images(range(len(source)))
    assert images[:, 0, 0, 0].tolist() == [10 * int(label) for label in source.labels]
    assert images[:, 1, 0, 0].tolist() == [int(key[-2:]) for key in source.keys]


# --- layouts


def test_class_folders_alone_are_cut_into_three_parts_class_by_class(tmp_path: Path) -> None:
    write_images(tmp_path, ["cat", "dog"], 25)
    sources = open_all(tmp_path)
    assert {s: source.labels.bincount().tolist() for s, source in sources.items()} == {
        "train": [18, 18], "validation": [2, 2], "test": [5, 5],
    }  # fmt: skip
    assert len({key for source in sources.values() for key in source.keys}) == 50
    for source in sources.values():
        assert source.classes == ("cat", "dog")
        assert_reads_its_own_images(source)


@pytest.mark.parametrize("held_out", ["test", "val", "valid", "validation"])
def test_a_lone_held_out_folder_is_the_test_part_and_validation_is_cut_from_training(tmp_path: Path, held_out: str) -> None:
    write_images(tmp_path / "train", ["cat", "dog"], 20)
    write_images(tmp_path / held_out, ["cat", "dog"], 4)
    sources = open_all(tmp_path)
    assert {split: len(source) for split, source in sources.items()} == {"train": 36, "validation": 4, "test": 8}
    assert sources["test"].keys == [f"{name}/im{i:02d}" for name in ("cat", "dog") for i in range(4)]
    assert not set(sources["train"].keys) & set(sources["validation"].keys)
    assert_reads_its_own_images(sources["validation"])


def test_three_split_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    for split, count in (("train", 5), ("val", 3), ("test", 2)):
        write_images(tmp_path / split, ["cat", "dog"], count)
    assert {split: len(source) for split, source in open_all(tmp_path).items()} == {"train": 10, "validation": 6, "test": 4}


def test_training_images_alone_are_cut_into_three_parts(tmp_path: Path) -> None:
    write_images(tmp_path / "train", ["cat", "dog"], 20)
    sources = open_all(tmp_path)
    assert {split: len(source) for split, source in sources.items()} == {"train": 28, "validation": 4, "test": 8}
    assert len({key for source in sources.values() for key in source.keys}) == 40


def test_split_folders_without_training_images_are_reported(tmp_path: Path) -> None:
    for split in ("test", "val"):
        write_images(tmp_path / split, ["cat", "dog"], 2)
    with pytest.raises(ValueError, match=rf"holds test, val but no train folder: add {re.escape(str(tmp_path))}/train/<class>/\*"):
        open_source(str(tmp_path), "test")


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    write_images(tmp_path, ["invalid", "valid"], 10)
    assert open_source(str(tmp_path), "train").classes == ("invalid", "valid")


def test_a_class_that_training_lacks_is_reported(tmp_path: Path) -> None:
    write_images(tmp_path / "train", ["cat", "dog"], 2)
    write_images(tmp_path / "test", ["cat", "horse"], 2)
    with pytest.raises(
        ValueError, match=r"test has class folders \['horse'\] that are not among the classes of the .* \(\['cat', 'dog'\]\)"
    ):
        open_source(str(tmp_path), "test")


def test_a_test_part_without_some_class_keeps_the_label_numbers_of_training(tmp_path: Path) -> None:
    write_images(tmp_path / "train", ["cat", "dog"], 4)
    write_images(tmp_path / "test", ["dog"], 2)
    source = open_source(str(tmp_path), "test")
    assert (source.classes, source.labels.tolist()) == (("cat", "dog"), [1, 1])


def test_images_lie_at_any_depth_below_their_class_folder(tmp_path: Path) -> None:
    write_images(tmp_path, ["cat/old/blurred", "dog"], 2)
    source = folder_source(tmp_path, None, "pets")
    assert source.classes == ("cat", "dog")
    assert source.keys == ["cat/old/blurred/im00", "cat/old/blurred/im01", "dog/im00", "dog/im01"]


def test_hidden_files_and_folders_are_no_data(tmp_path: Path) -> None:
    write_images(tmp_path, ["cat", "dog", ".thumbnails"], 2)
    (tmp_path / "cat" / "._im00.png").write_bytes(b"resource fork")
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    assert [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path)] == [
        "cat/im00.png", "cat/im01.png", "dog/im00.png", "dog/im01.png",
    ]  # fmt: skip


def test_files_that_differ_by_suffix_alone_keep_it_in_their_keys(tmp_path: Path) -> None:
    write_images(tmp_path, ["cat", "dog"], 1)
    write_images(tmp_path, ["cat"], 2, suffix=".bmp")
    assert folder_source(tmp_path, None, "pets").keys == ["cat/im00.bmp", "cat/im00.png", "cat/im01", "dog/im00"]


def test_a_dot_inside_a_name_is_no_suffix(tmp_path: Path) -> None:
    write_images(tmp_path, ["cat", "dog"], 1)
    (tmp_path / "cat" / "im00.png").rename(tmp_path / "cat" / "v1.2.png")
    assert folder_source(tmp_path, None, "pets").keys == ["cat/v1.2", "dog/im00"]


# --- what cannot be read


def test_broken_files_are_named_counted_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path, ["cat", "dog"], 3, size=(32, 32))
    whole = (tmp_path / "dog" / "im01.png").read_bytes()
    (tmp_path / "dog" / "im01.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cat" / "im00.png").write_text("text that is called an image")
    (tmp_path / "cat" / "zero.jpg").touch()
    with caplog.at_level(logging.WARNING):
        source = folder_source(tmp_path, None, "pets")
    assert source.keys == ["cat/im01", "cat/im02", "dog/im00", "dog/im02"]
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert_reads_its_own_images(source)
    (message,) = caplog.messages
    assert message.startswith("left out 3 of 7 files that cannot be decoded:")
    assert f"{tmp_path}/cat/im00.png: none of the image formats that are read" in message
    assert f"{tmp_path}/cat/zero.jpg: " in message
    assert re.search(re.escape(f"{tmp_path}/dog/im01.png: ") + ".*truncated", message)


def test_a_set_too_large_for_memory_is_read_lazily_and_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, ["cat", "dog"], 3)
    at_once = folder_source(tmp_path, None, "pets")
    monkeypatch.setattr(folders, "PRELOAD_BYTES", 0)
    lazy = folder_source(tmp_path, None, "pets")
    assert (lazy.keys, lazy.classes, lazy.labels.tolist()) == (at_once.keys, at_once.classes, at_once.labels.tolist())
    assert torch.equal(lazy.images([4, 1]), at_once.images([4, 1]))
    assert lazy.images([]).shape == at_once.images([]).shape == (0, 3, 8, 8)
    assert torch.equal(pickle.loads(pickle.dumps(lazy)).images([4]), at_once.images([4]))
    (tmp_path / "dog" / "im01.png").write_text("broken later")
    with pytest.raises(BrokenImageError, match=r"dog/im01\.png: none of the image formats that are read"):
        lazy.images([4])


def test_a_folder_without_images_is_reported_with_the_layout(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "loose.png").write_bytes(b"")  # in no class folder
    message = f"no images under {tmp_path}: expected {tmp_path}/<class>/<name> with a suffix such as .png, .jpg, .jpeg"
    with pytest.raises(ValueError, match=re.escape(message)):
        open_source(str(tmp_path), "train")


def test_a_folder_with_one_class_is_reported(tmp_path: Path) -> None:
    write_images(tmp_path, ["cat"], 3)
    with pytest.raises(ValueError, match=r"holds one class folder only, 'cat': at least 2 are needed, .*/<class>/<name>"):
        open_source(str(tmp_path), "train")


@pytest.mark.parametrize(
    ("image_size", "message"),
    [
        (None, "none of the 2 files under .* can be read as an image, e.g. .*a.png"),
        (8, "none of the 2 files can be decoded, e.g. .*a.png: none of the image formats"),
    ],
)
def test_a_folder_of_broken_files_alone_is_reported(tmp_path: Path, image_size: int | None, message: str) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_text("no image")
    with pytest.raises(ValueError, match=message):
        open_source(str(tmp_path), "train", image_size=image_size)


def test_plain_images_need_no_class_folder(tmp_path: Path) -> None:
    write_images(tmp_path, ["."], 2)
    source = plain_source(tmp_path, 4, "photos")
    assert (source.keys, source.classes, source.labels.tolist()) == (["im00", "im01"], (), [-1, -1])
    assert source.images([1]).shape == (1, 3, 4, 4)


def test_a_missing_or_empty_plain_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="image folder .*gone does not exist"):
        plain_source(tmp_path / "gone", 8, "photos")
    with pytest.raises(ValueError, match=r"no images under .* \(by suffix: \.png, \.jpg"):
        plain_source(tmp_path, 8, "photos")
