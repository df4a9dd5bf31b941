"""Generated images in numbered folders: their class names, from the folder through adaptation to
the fine-tuned classifier.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.adapting import save_images
from tests.checkpoints import DIGITS, finished_run
from tests.scripts import run_script
from tests.test_folders import assert_reads_its_own_images, write_images
from undegrade.image_adapt.adapters import Adapter
from undegrade.image_adapt.config import AdaptConfig, InputConfig
from undegrade.image_adapt.mpi import World
from undegrade.image_adapt.work import plan_jobs, run_jobs
from undegrade.utils.checkpoint import file_digest, read_description
from undegrade.utils.data.sources import folders
from undegrade.utils.data.sources.folders import class_map_file, folder_source, read_class_map
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.runs import BEST

NAMES = {"0000": "zebra", "0001": "red fox", "0003": "ant"}
LINES = "0001 red fox\n\n0000   zebra\n0003\tant\n"
PLACES = ["train/classes.txt", "classes.txt"]


def generated(root: Path, place: str = "train/classes.txt", count: int = 20, lines: str = LINES) -> Path:
    """`count` images of each class below `root`, and the class map at `place`."""
    write_images(root / "train", list(NAMES), count)
    (root / place).write_text(lines)
    return root


# --- names


@pytest.mark.parametrize("place", PLACES)
def test_classes_and_keys_have_the_names_in_the_order_of_the_numbers(tmp_path: Path, place: str) -> None:
    source = open_source(str(generated(tmp_path, place)), "trainval")
    assert source.classes == ("zebra", "red fox", "ant")
    assert source.keys == [f"{name}/im{i:02d}" for name in source.classes for i in range(20)]
    assert source.labels.tolist() == [0] * 20 + [1] * 20 + [2] * 20
    assert_reads_its_own_images(source)


def test_a_tenth_is_for_validation_and_nothing_for_testing(tmp_path: Path) -> None:
    root = str(generated(tmp_path))
    train, validation = (open_source(root, split) for split in ("train", "validation"))
    assert [len(train), len(validation)] == [54, 6] and not set(train.keys) & set(validation.keys)
    assert validation.labels.bincount().tolist() == [2, 2, 2]
    assert_reads_its_own_images(validation)
    with pytest.raises(ValueError, match=r"holds generated images to train on, none to test on: name the real data set"):
        open_source(root, "test")


def test_held_out_folders_are_taken_as_they_are_under_numbers_or_names(tmp_path: Path) -> None:
    generated(tmp_path)
    write_images(tmp_path / "test", ["0003"], 2)
    write_images(tmp_path / "val", ["ant", "zebra"], 3)
    validation, test = (open_source(str(tmp_path), split) for split in ("validation", "test"))
    assert (test.keys, test.labels.tolist()) == (["ant/im00", "ant/im01"], [2, 2])
    assert (validation.keys[0], validation.labels.tolist()) == ("ant/im00", [2, 2, 2, 0, 0, 0])
    assert test.classes == validation.classes == ("zebra", "red fox", "ant")


def test_a_class_without_images_keeps_its_number(tmp_path: Path) -> None:
    write_images(tmp_path / "train", ["0003"], 20)
    (tmp_path / "classes.txt").write_text(LINES)
    source = open_source(str(tmp_path), "train")
    assert source.classes == ("zebra", "red fox", "ant") and set(source.labels.tolist()) == {2}


def test_a_given_list_orders_the_named_classes(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("ant\nbee\nred fox\nzebra\n")
    source = open_source(str(generated(tmp_path / "images")), "train", classes=str(tmp_path / "list.txt"))
    assert source.classes == ("ant", "bee", "red fox", "zebra") and set(source.labels.tolist()) == {0, 2, 3}


def test_class_folders_alone_may_be_numbered_too(tmp_path: Path) -> None:
    write_images(tmp_path, list(NAMES), 20)
    (tmp_path / "classes.txt").write_text(LINES)
    train, validation = (open_source(str(tmp_path), split) for split in ("train", "validation"))
    assert train.classes == validation.classes == ("zebra", "red fox", "ant") and [len(train), len(validation)] == [54, 6]
    with pytest.raises(ValueError, match="holds generated images"):
        open_source(str(tmp_path), "test")


def test_a_train_folder_opened_by_itself_finds_its_names_beside_it(tmp_path: Path) -> None:
    generated(tmp_path, "classes.txt")
    assert class_map_file(tmp_path / "train") == tmp_path / "classes.txt"
    assert open_source(str(tmp_path / "train"), "train").classes == ("zebra", "red fox", "ant")
    (tmp_path / "other").mkdir()
    assert class_map_file(tmp_path / "other") is None


def test_large_sets_that_are_read_lazily_have_the_same_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = open_source(str(generated(tmp_path)), "train")
    monkeypatch.setattr(folders, "PRELOAD_BYTES", 0)
    lazy = open_source(str(tmp_path), "train")
    assert (lazy.keys, lazy.classes, lazy.labels.tolist()) == (at_once.keys, at_once.classes, at_once.labels.tolist())
    assert_reads_its_own_images(lazy)


# --- no class map, and wrong ones


@pytest.mark.parametrize("lines", [None, "", "0000\n0001\n0003\n", "zebra\nfox\nant\n", "n01440764 0\nn01443537 1\n"])
def test_without_a_class_map_folder_names_are_the_classes(tmp_path: Path, lines: str | None) -> None:
    write_images(tmp_path / "train", list(NAMES), 20)
    if lines is not None:
        (tmp_path / "train" / "classes.txt").write_text(lines)
    sources = [open_source(str(tmp_path), split) for split in ("train", "validation", "test")]
    assert sources[0].classes == ("0000", "0001", "0003")
    assert [len(source) for source in sources] == [42, 6, 12]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (LINES + "4 bee\n", "'4 bee' is no such line: expected `<0000> <class>` a line, each once"),
        (LINES + "0004 a/b\n", "'0004 a/b' is no such line"),
        (LINES + "0004 ..\n", "'0004 ..' is no such line"),
        (LINES + "0000 bee\n", "a number or a class is given twice: expected"),
        (LINES + "0004 ant\n", "a number or a class is given twice: expected"),
    ],
)
def test_a_class_map_with_mistakes_is_refused(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "classes.txt").write_text(lines)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}/classes.txt: {message}")):
        read_class_map(tmp_path)


def test_a_folder_that_the_class_map_lacks_is_reported(tmp_path: Path) -> None:
    generated(tmp_path, lines="0000 zebra\n0003 ant\n")
    message = "has class folders ['0001'] that are not among the classes of classes.txt or of data.classes (['zebra', 'ant'])"
    with pytest.raises(ValueError, match=re.escape(message)):
        open_source(str(tmp_path), "train")
    with pytest.raises(ValueError, match="one class folder only"):
        folder_source(tmp_path / "train", None, "x", named={"0000": "zebra"})


# --- from adaptation to the classifier


class Unchanged(Adapter):
    """An adapter that changes nothing."""

    def adapt(self, x: torch.Tensor, generators: list[torch.Generator]) -> torch.Tensor:
        return x


@pytest.mark.parametrize(("place", "below"), [("train/classes.txt", ""), ("classes.txt", ""), ("classes.txt", "train")])
def test_adapted_images_keep_their_class_map(tmp_path: Path, place: str, below: str) -> None:
    save_images(tmp_path / "in", [f"train/{number}/{i}.png" for number in NAMES for i in range(2)])
    (tmp_path / "in" / place).write_text(LINES)
    given = InputConfig(folder=str(tmp_path / "in" / below))
    config = AdaptConfig(str(tmp_path / "out" / below), input=given)
    run_jobs(plan_jobs(config, 32), Unchanged(), config, World(), torch.device("cpu"))
    source = open_source(str(tmp_path / "out"), "trainval")
    assert source.classes == ("zebra", "red fox", "ant") and source.keys[:2] == ["zebra/0", "zebra/1"]


def test_other_folders_get_no_class_map(tmp_path: Path) -> None:
    save_images(tmp_path / "in", ["cat/0.png", "dog/0.png"])
    config = AdaptConfig(str(tmp_path / "out"), input=InputConfig(folder=str(tmp_path / "in")))
    run_jobs(plan_jobs(config, 32), Unchanged(), config, World(), torch.device("cpu"))
    assert not [*(tmp_path / "out").rglob("*.txt")]


def digits_of(root: Path, lines: str) -> Path:
    """Five digits of each class as if they were generated, in `<root>/Digits/train`."""
    source = open_source("Digits", "train")
    for label in range(10):
        folder = root / "Digits" / "train" / f"{label:04d}"
        folder.mkdir(parents=True)
        for i, row in enumerate(np.flatnonzero(source.labels.numpy() == label)[:5]):
            Image.fromarray(source.images([row])[0].permute(1, 2, 0).numpy()).save(folder / f"{i:06d}.png")
    (root / "Digits" / "train" / "classes.txt").write_text(lines)
    return root / "Digits"


def fine_tune(tmp_path: Path, lines: str) -> tuple[Path, object]:
    data = digits_of(tmp_path / "images", lines)
    parent = finished_run(tmp_path / "runs", "ind/Digits/ResNet20_clean", classes=DIGITS)
    words = ("-c", "configs/sda/Digits/ResNet20.yaml", "--data.dataset", data, "--save_dir", tmp_path / "runs", "--run_id", "a")
    options = ("--loop.epochs", 1, "--bs", 16, "--method.mixup", 0.2, "--method.label_smoothing", 0.1)
    augment = ("--data.augment.randaugment", "rand-m9-mstd0.5-inc1", "--data.augment.erasing", 0.25)
    groups = ("--optimizer.decay_norm_and_bias", "false")
    return parent, run_script("train.py", *words, *options, *augment, *groups)


def test_a_classifier_is_fine_tuned_on_generated_images_and_keeps_its_classes(tmp_path: Path) -> None:
    parent, done = fine_tune(tmp_path, "".join(f"{k:04d} {k}\n" for k in range(10)))
    assert "40 training and 10 validation images" in done.check().err  # of each class one for validation
    description = read_description(tmp_path / "runs/sda/Digits/ResNet20/a" / BEST)
    assert (description["classes"], description["initial_weights"]) == (list(DIGITS), file_digest(parent))
    assert description["degradations"] == []


DIFFERENT = ": choose a checkpoint of this data set"
NUMBERED = f"{DIFFERENT}, or name the classes of its numbered folders in classes.txt (`0000 <class>` a line)"
REVERSED = "".join(f"{k:04d} {9 - k}\n" for k in range(10))


@pytest.mark.parametrize(
    ("lines", "message"),
    [("", f"(class 0 is '0' there, '0000' here){NUMBERED}"), (REVERSED, f"(class 0 is '0' there, '9' here){DIFFERENT}\n")],
)
def test_a_classifier_of_other_classes_is_refused_with_the_first_that_differs(tmp_path: Path, lines: str, message: str) -> None:
    _, done = fine_tune(tmp_path, lines)
    assert done.status == 2 and message in done.err
