"""Tiny ImageNet: the published layout, what is wrong with it, and the decoded arrays beside it."""

from __future__ import annotations

import logging
import pickle
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from undegrade.utils.data.sources import tiny_imagenet
from undegrade.utils.data.sources.image_source import ImageSource, MappedReader
from undegrade.utils.data.sources.registry import open_source

WNIDS = ["n03", "n01", "n02"]  # not sorted: wnids.txt gives the numbers
VAL = {"val_0": "n02", "val_1": "n03", "val_2": "n01", "val_10": "n03"}
PER_CLASS = 4


def colour(label: int, number: int) -> tuple[int, int, int]:
    return 60 * label + 20, 40 * number + 20, 90


def write_jpeg(path: Path, mode: str, value: int | tuple[int, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (64, 64), value).save(path, quality=100, subsampling=0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """3 classes of 4 training images, whose red is the class and whose green is the number, and 4
    val images.
    """
    folder = tmp_path / "data" / "tiny-imagenet-200"
    for label, wnid in enumerate(WNIDS):
        for i in reversed(range(PER_CLASS)):  # the order of writing is not that of the names
            write_jpeg(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", "RGB", colour(label, i))
    for i, (name, wnid) in enumerate(VAL.items()):
        write_jpeg(folder / "val" / "images" / f"{name}.JPEG", "RGB", colour(WNIDS.index(wnid), i))
    (folder / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(f"{n}.JPEG\t{w}\t0\t32\t44\t62\n" for n, w in VAL.items()))
    return folder.parent


@pytest.fixture
def folder(root: Path) -> Path:
    return root / "tiny-imagenet-200"


def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, size: int) -> np.ndarray:
        raise AssertionError(f"{path} is decoded again")

    monkeypatch.setattr(tiny_imagenet, "read_image", fail)


def arrays(folder: Path) -> list[str]:
    return sorted(p.name.split("-")[0] for p in folder.glob("*.npy"))


def assert_shows(source: ImageSource, number: Callable[[str], int]) -> None:
    """Every image has the colour of its label and number, to the precision of JPEG."""
    images = source.images(range(len(source))).int()
    expected = torch.tensor([colour(int(label), number(key)) for label, key in zip(source.labels, source.keys, strict=True)])
    assert (images - expected[:, :, None, None]).abs().max() <= 3


# --- what is read


def test_classes_are_the_lines_of_wnids_and_images_are_in_the_order_of_their_names(root: Path) -> None:
    source = open_source("TinyImagenet", "trainval", root)
    assert source.classes == tuple(WNIDS)
    assert source.keys == [f"{wnid}/{wnid}_{i}" for wnid in WNIDS for i in range(PER_CLASS)]
    assert source.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert (source.image_size, source.name, source.images([0]).dtype) == (64, "TinyImagenet/trainval", torch.uint8)
    assert_shows(source, lambda key: int(key[-1]))


def test_the_published_val_part_is_the_test_part_and_labelled_by_its_annotations(root: Path) -> None:
    source = open_source("TinyImagenet", "test", root)
    assert source.keys == ["n02/val_0", "n03/val_1", "n03/val_10", "n01/val_2"]
    assert source.labels.tolist() == [2, 0, 0, 1]
    assert_shows(source, lambda key: list(VAL).index(key[4:]))


def test_validation_is_cut_from_training_and_both_make_trainval(root: Path) -> None:
    parts = {split: open_source("TinyImagenet", split, root) for split in ("train", "validation", "trainval", "test")}
    assert {split: source.labels.bincount().tolist() for split, source in parts.items()} == {
        "train": [3, 3, 3], "validation": [1, 1, 1], "trainval": [4, 4, 4], "test": [2, 1, 1],
    }  # fmt: skip
    assert sorted(parts["train"].keys + parts["validation"].keys) == sorted(parts["trainval"].keys)
    assert len({(source.rgb_mean, source.rgb_std) for source in parts.values()}) == 1
    assert_shows(parts["validation"], lambda key: int(key[-1]))


def test_grey_files_become_rgb(root: Path, folder: Path) -> None:
    write_jpeg(folder / "train/n01/images/n01_2.JPEG", "L", 77)
    source = open_source("TinyImagenet", "trainval", root)
    assert (source.images([source.keys.index("n01/n01_2")]).int() - 77).abs().max() <= 1


def test_boxes_words_and_hidden_files_change_nothing(root: Path, folder: Path) -> None:
    keys = open_source("TinyImagenet", "trainval", root).keys
    (folder / "words.txt").write_text("n01\tgoldfish\n")
    (folder / "train/n01/n01_boxes.txt").write_text("n01_0.JPEG\t0\t0\t63\t63\n")
    (folder / "train/n01/images/._n01_0.JPEG").write_bytes(b"resource fork")
    (folder / "test/images").mkdir(parents=True)
    assert open_source("TinyImagenet", "trainval", root).keys == keys


def test_images_may_lie_in_the_class_folder_itself(root: Path, folder: Path) -> None:
    before = open_source("TinyImagenet", "trainval", root)
    for wnid in WNIDS:
        for path in (folder / "train" / wnid / "images").iterdir():
            path.rename(folder / "train" / wnid / path.name)
        (folder / "train" / wnid / "images").rmdir()
    after = open_source("TinyImagenet", "trainval", root)
    assert after.keys == before.keys
    assert torch.equal(after.images(range(12)), before.images(range(12)))


# --- the decoded arrays


def test_the_second_opening_decodes_nothing(root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = {split: open_source("TinyImagenet", split, root) for split in ("train", "test")}
    assert arrays(folder) == ["train", "val"]
    no_decoding(monkeypatch)
    for split, source in first.items():
        again = open_source("TinyImagenet", split, root)
        assert torch.equal(again.images(range(len(again))), source.images(range(len(source))))


def test_arrays_are_made_again_when_a_file_has_another_size_is_new_or_is_gone(root: Path, folder: Path) -> None:
    open_source("TinyImagenet", "train", root)
    path = folder / "train/n01/images/n01_0.JPEG"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    source = open_source("TinyImagenet", "trainval", root)
    assert source.images([source.keys.index("n01/n01_0")])[0, 0].float().std() > 20  # noise, not one colour
    shutil.copy(path, path.with_name("n01_9.JPEG"))
    path.unlink()
    source = open_source("TinyImagenet", "trainval", root)
    assert source.keys[4:8] == ["n01/n01_1", "n01/n01_2", "n01/n01_3", "n01/n01_9"]
    assert source.images([7])[0, 0].float().std() > 20
    assert arrays(folder) == ["train", "val"]  # the outdated ones are gone


def test_an_array_that_lacks_its_end_is_made_again(root: Path, folder: Path) -> None:
    whole = open_source("TinyImagenet", "trainval", root).images(range(12))
    (path,) = folder.glob("train-*.npy")
    path.write_bytes(path.read_bytes()[:-1000])
    assert torch.equal(open_source("TinyImagenet", "trainval", root).images(range(12)), whole)


def test_a_folder_that_cannot_be_written_is_decoded_into_memory(
    root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda size: "x" * 300)  # too long a name: stops root too
    with caplog.at_level(logging.WARNING):
        source = open_source("TinyImagenet", "trainval", root)
    assert_shows(source, lambda key: int(key[-1]))
    assert arrays(folder) == []
    assert re.fullmatch(
        r"cannot write .*/train-\w{16}\.npy \(.*too long.*\): the images are decoded into memory, .*", caplog.messages[0]
    )


def test_pixels_stay_in_the_file_and_a_worker_gets_its_path(root: Path) -> None:
    reader = open_source("TinyImagenet", "trainval", root).subset(range(12)).read.args[0]  # type: ignore[attr-defined]
    assert isinstance(reader, MappedReader)
    assert isinstance(reader.images, np.memmap)
    assert len(pickle.dumps(reader)) < 1000  # 12 images are 147,456 bytes


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_the_same_images(root: Path, start: str) -> None:
    source = open_source("TinyImagenet", "train", root)
    rows = list(range(len(source)))
    loader: DataLoader = DataLoader(rows, batch_size=4, collate_fn=source.images, num_workers=1, multiprocessing_context=start)  # type: ignore[arg-type]
    assert torch.equal(torch.cat(list(loader)), source.images(rows))


# --- what is wrong


def test_a_missing_set_is_reported_with_what_is_there_and_how_to_get_it(tmp_path: Path) -> None:
    for name in ("cifar-10-batches-py", *(f"x{i}" for i in range(9))):
        (tmp_path / name).mkdir()
    message = (
        f"TinyImagenet: {tmp_path}/tiny-imagenet-200/wnids.txt not found; expected {tmp_path}/tiny-imagenet-200/ with wnids.txt, "
        "train/<wnid>/images/*.JPEG, val/images/*.JPEG and val/val_annotations.txt, found: "
        f"{tmp_path} holds cifar-10-batches-py/, x0/, x1/, x2/, x3/, x4/, x5/, x6/, ... (10 in all); get "
        f"http://cs231n.stanford.edu/tiny-imagenet-200.zip and unpack it under {tmp_path}, or point data.root at the folder that "
        "holds tiny-imagenet-200"
    )
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        open_source("TinyImagenet", "train", tmp_path)


@pytest.mark.parametrize(
    ("gone", "missing", "found"),
    [
        ("train", "train/n03/*.JPEG", "tiny-imagenet-200 holds val/, wnids.txt;"),
        ("train/n01", "train/n01/*.JPEG", "/train holds n02/, n03/;"),
        ("val", "val/val_annotations.txt", "tiny-imagenet-200 holds train/, wnids.txt;"),
        ("val/images", "val/images/*.JPEG", "/val holds val_annotations.txt;"),
    ],
)
def test_a_missing_folder_is_reported_with_what_lies_in_its_place(
    root: Path, folder: Path, gone: str, missing: str, found: str
) -> None:
    shutil.rmtree(folder / gone)
    with pytest.raises(FileNotFoundError, match=re.escape(f"{folder}/{missing} not found; expected ") + ".*" + re.escape(found)):
        open_source("TinyImagenet", "test", root)


def test_an_empty_class_is_reported(root: Path, folder: Path) -> None:
    for path in (folder / "train/n02/images").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train/n02/images/\*\.JPEG not found; .*, found: .*/n02/images holds nothing;"):
        open_source("TinyImagenet", "train", root)


AGAIN = "; unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip under {root} again"


@pytest.mark.parametrize(("text", "lines"), [("", 0), ("n03\nn01\nn02\nn01\n", 4)])
def test_wnids_that_name_no_class_or_one_twice_are_reported(root: Path, folder: Path, text: str, lines: int) -> None:
    (folder / "wnids.txt").write_text(text)
    message = f"wnids.txt: expected one class a line, each once; found {lines} lines" + AGAIN.format(root=root)
    with pytest.raises(ValueError, match=re.escape(message)):
        open_source("TinyImagenet", "train", root)


def test_training_folders_that_wnids_does_not_name_are_reported(root: Path, folder: Path) -> None:
    (folder / "wnids.txt").write_text("n03\n")
    message = f"{folder}/train holds folders that wnids.txt does not name: n01, n02" + AGAIN.format(root=root)
    with pytest.raises(ValueError, match=re.escape(message)):
        open_source("TinyImagenet", "train", root)


@pytest.mark.parametrize(("line", "wnid"), [("val_1.JPEG\tn09\t0\t0\t1\t1\n", "n09"), ("val_1.JPEG\n", "")])
def test_an_annotation_of_an_unknown_class_is_reported(root: Path, folder: Path, line: str, wnid: str) -> None:
    path = folder / "val/val_annotations.txt"
    path.write_text(path.read_text() + line)
    message = f"{path}: val_1.JPEG has class {wnid!r}, which is not in wnids.txt" + AGAIN.format(root=root)
    with pytest.raises(ValueError, match=re.escape(message)):
        open_source("TinyImagenet", "test", root)


def test_annotated_images_that_are_missing_are_named(root: Path, folder: Path) -> None:
    for name in ("val_10", "val_2"):
        (folder / f"val/images/{name}.JPEG").unlink()
    message = f"2 images named in {folder}/val/val_annotations.txt are not in {folder}/val/images, e.g. val_10.JPEG, val_2.JPEG"
    with pytest.raises(ValueError, match=re.escape(message + AGAIN.format(root=root))):
        open_source("TinyImagenet", "test", root)


def test_images_without_annotation_are_named(root: Path, folder: Path) -> None:
    write_jpeg(folder / "val/images/val_7.JPEG", "RGB", (1, 2, 3))
    message = f"1 images in {folder}/val/images are not named in {folder}/val/val_annotations.txt, e.g. val_7.JPEG"
    with pytest.raises(ValueError, match=re.escape(message + AGAIN.format(root=root))):
        open_source("TinyImagenet", "test", root)


def test_a_file_that_cannot_be_decoded_is_left_out_and_named_at_every_opening(
    root: Path, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "train/n01/images/n01_1.JPEG"
    path.write_bytes(path.read_bytes()[:300])
    for _ in range(2):
        source = open_source("TinyImagenet", "trainval", root)
        assert "n01/n01_1" not in source.keys and len(source) == 11
        assert (source.images([source.keys.index("n01/n01_2")])[0, :, 0, 0].int() - torch.tensor(colour(1, 2))).abs().max() <= 2
        assert f"left out 1 of 12 files that cannot be decoded:\n  {path}: " in caplog.text
        caplog.clear()
        no_decoding(monkeypatch)
