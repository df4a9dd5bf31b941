"""Data sets by name: Digits, CIFAR, the four splits, and what every source does."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.test_folders import assert_reads_its_own_images, write_images
from undegrade.utils.data.sources.image_source import ImageSource, array_source
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.data.sources.splits import concatenated, cut


@pytest.fixture(scope="module")
def digits() -> dict[str, ImageSource]:
    return {split: open_source("Digits", split) for split in ("train", "validation", "test")}


# --- Digits


def test_digits_splits_have_their_documented_sizes_and_share_no_image(digits: dict[str, ImageSource]) -> None:
    assert {split: len(source) for split, source in digits.items()} == {"train": 1295, "validation": 143, "test": 359}
    everything = [key for source in digits.values() for key in source.keys]
    assert sorted(key.split("/")[1] for key in everything) == [f"{i:04d}" for i in range(1797)]


def test_digits_splits_are_stratified(digits: dict[str, ImageSource]) -> None:
    total = torch.tensor([178, 182, 177, 183, 181, 182, 181, 179, 174, 180])  # of scikit-learn's data set
    shares = {"test": 0.2, "validation": 0.8 * 0.1, "train": 0.8 * 0.9}
    for split, share in shares.items():
        assert ((digits[split].labels.bincount() - share * total).abs() <= 1).all()


def test_digits_splits_never_change(digits: dict[str, ImageSource]) -> None:
    ends = {split: (*source.keys[:3], source.keys[-1]) for split, source in digits.items()}
    assert ends == {
        "train": ("0/0000", "3/0003", "4/0004", "8/1796"),
        "validation": ("5/0035", "9/0039", "1/0056", "8/1790"),
        "test": ("1/0001", "2/0002", "5/0005", "8/1763"),
    }


def test_digits_keys_name_the_class_of_their_image(digits: dict[str, ImageSource]) -> None:
    source = digits["test"]
    assert source.classes == tuple("0123456789")
    assert [int(key.split("/")[0]) for key in source.keys] == source.labels.tolist()


def test_digits_images_are_the_scans_enlarged_four_times(digits: dict[str, ImageSource]) -> None:
    from sklearn.datasets import load_digits

    images = digits["train"].images([0, 1])
    assert (images.dtype, images.shape, digits["train"].image_size) == (torch.uint8, (2, 3, 32, 32), 32)
    assert torch.equal(images[:, 0], images[:, 1])
    scans = (torch.from_numpy(load_digits().images[[0, 3]]) * (255 / 16)).round()[:, None]
    for size in ((8, 32), (32, 32)):  # Pillow goes along rows first and rounds after each pass
        scans = torch.nn.functional.interpolate(scans, size, mode="bicubic", antialias=True).round().clamp(0, 255)
    assert (images[:, :1] - scans).abs().max() <= 1


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_statistics_are_those_of_the_training_images(digits: dict[str, ImageSource], split: str) -> None:
    pixels = digits["train"].images(range(1295)).double() / 255
    assert digits[split].rgb_mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=5e-5)
    assert digits[split].rgb_std == pytest.approx(pixels.std((0, 2, 3)).tolist(), abs=5e-5)


# --- subsets


@pytest.mark.parametrize("count", [30, 25, 7])
def test_a_limit_takes_equally_many_images_of_every_class(digits: dict[str, ImageSource], count: int) -> None:
    counts = digits["train"].limited(count).labels.bincount(minlength=10)
    assert counts.sum() == count
    assert counts.max() - counts.min() <= 1


def test_a_limit_is_a_fixed_draw_in_the_order_of_the_source() -> None:
    assert open_source("Digits", "train", limit=12).keys == [
        "8/0123", "8/0224", "9/0417", "6/0451", "7/1269", "2/1289", "0/1342", "3/1602", "5/1614", "1/1621", "6/1629", "4/1651",
    ]  # fmt: skip


def test_a_smaller_limit_is_part_of_a_larger_one(digits: dict[str, ImageSource]) -> None:
    assert set(digits["train"].limited(30).keys) < set(digits["train"].limited(90).keys)


def test_a_limited_source_reads_its_own_images(digits: dict[str, ImageSource]) -> None:
    source = digits["train"]
    few = source.limited(20)
    places = [source.keys.index(key) for key in few.keys]
    assert torch.equal(few.images(range(20)), source.images(places))
    assert torch.equal(few.labels, source.labels[places])
    assert few.rgb_mean == source.rgb_mean


@pytest.mark.parametrize("count", [None, 359, 1000])
def test_no_limit_and_one_beyond_the_end_leave_the_source_as_it_is(digits: dict[str, ImageSource], count: int | None) -> None:
    assert digits["test"].limited(count).keys == digits["test"].keys


@pytest.mark.parametrize("count", [0, -5])
def test_a_limit_that_leaves_nothing_is_reported(digits: dict[str, ImageSource], count: int) -> None:
    with pytest.raises(ValueError, match=rf"a limit of {count} images leaves nothing; use at least 1, or null for all 359"):
        digits["test"].limited(count)


def test_a_subset_of_a_subset_reads_the_right_images(digits: dict[str, ImageSource]) -> None:
    source = digits["test"]
    part = source.subset([5, 3, 1]).subset([2, 0])
    assert part.keys == [source.keys[1], source.keys[5]]
    assert torch.equal(part.images([0, 1]), source.images([1, 5]))


def test_a_source_can_be_sent_to_a_freshly_started_worker(digits: dict[str, ImageSource]) -> None:
    source = digits["test"].limited(10)
    assert torch.equal(pickle.loads(pickle.dumps(source)).images([7]), source.images([7]))


def test_images_are_paired_by_key(digits: dict[str, ImageSource]) -> None:
    source = digits["test"]
    wanted = [source.keys[9], source.keys[2]]
    assert torch.equal(source.aligned(wanted, "folder").images([0, 1]), source.images([9, 2]))


def test_images_without_partner_are_named(digits: dict[str, ImageSource]) -> None:
    with pytest.raises(ValueError, match=r"adapted/blur: 2 of 3 images are missing, e\.g\. 1/9999, x/1; adapt all of them"):
        digits["test"].aligned(["1/9999", digits["test"].keys[0], "x/1"], "adapted/blur")


@pytest.mark.parametrize(("members", "sizes"), [(1, (0, 0, 1)), (2, (1, 0, 1)), (3, (1, 1, 1)), (20, (4, 2, 14))])
def test_a_cut_leaves_an_image_of_every_class_for_the_last_part(members: int, sizes: tuple[int, int, int]) -> None:
    labels = np.repeat([0, 1], members)
    names = [str(i) for i in range(2 * members)]
    source = array_source("x", np.zeros((2 * members, 3, 4, 4), np.uint8), labels, ["a", "b"], names)
    parts = cut(source, [0.2, 0.1], "stream")
    for part, size in zip(parts, sizes, strict=True):
        assert part.labels.bincount(minlength=2).tolist() == [size, size]
    assert sorted(key for part in parts for key in part.keys) == sorted(source.keys)


# --- CIFAR

COARSE = {"CIFAR10": ("cifar-10-batches-py", "batches.meta", "label_names", "labels"),
          "CIFAR100": ("cifar-100-python", "meta", "fine_label_names", "fine_labels")}  # fmt: skip
FILES = {"CIFAR10": ([f"data_batch_{i}" for i in range(1, 6)], "test_batch"), "CIFAR100": (["train"], "test")}


def write_cifar(root: Path, name: str) -> None:
    """Files of torchvision's layout: 10 training and 2 test images a class; red is the number in
    the file, green the label.
    """
    folder, meta, names_key, labels_key = COARSE[name]
    classes = 10 if name == "CIFAR10" else 100
    (root / folder).mkdir(parents=True)
    train, test = FILES[name]
    for file, count in [*((file, 10 * classes // len(train)) for file in train), (test, 2 * classes)]:
        labels = [i % classes for i in range(count)]
        planes = np.zeros((count, 3, 32, 32), np.uint8)
        planes[:, 0], planes[:, 1] = (np.arange(count) % 256)[:, None, None], np.array(labels)[:, None, None]
        planes[:, 2, 0, 31] = 255  # the upper right corner is blue
        (root / folder / file).write_bytes(pickle.dumps({"data": planes.reshape(count, -1), labels_key: labels}))
    (root / folder / meta).write_bytes(pickle.dumps({names_key: [f"c{i}" for i in range(classes)]}))


@pytest.fixture
def any_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as whole when they exist."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: os.path.isfile(path))


@pytest.mark.usefixtures("any_checksum")
@pytest.mark.parametrize(("name", "sizes"), [("CIFAR10", (90, 10, 20)), ("CIFAR100", (900, 100, 200))])
def test_cifar_is_read_from_the_published_files(tmp_path: Path, name: str, sizes: tuple[int, int, int]) -> None:
    write_cifar(tmp_path, name)
    sources = [open_source(name, split, tmp_path) for split in ("train", "validation", "test")]
    assert tuple(len(source) for source in sources) == sizes
    assert not set(sources[0].keys) & set(sources[1].keys)
    test = sources[2]
    assert test.keys[11] == f"c{11 % len(test.classes)}/test_00011"
    image = test.images([11])[0]
    assert (image[0] == 11).all()
    assert (image[1] == test.labels[11]).all()
    assert image[2].nonzero().tolist() == [[0, 31]]


@pytest.mark.usefixtures("any_checksum")
def test_cifar_training_images_are_numbered_over_all_files(tmp_path: Path) -> None:
    write_cifar(tmp_path, "CIFAR10")
    parts = [open_source("CIFAR10", split, tmp_path) for split in ("train", "validation")]
    keys = sorted((key for part in parts for key in part.keys), key=lambda key: key[-5:])
    assert keys == [f"c{i % 10}/train_{i:05d}" for i in range(100)]


def test_missing_cifar_is_reported_with_what_is_there_and_the_command_that_gets_it(tmp_path: Path) -> None:
    (tmp_path / "cifar-100-python.tar.gz").touch()
    message = (
        f"CIFAR100 is not, or not intact, under {tmp_path.resolve()}: expected {tmp_path.resolve()}/cifar-100-python/ with train, "
        f"test, meta as published (MD5 is checked), found: {tmp_path.resolve()} holds cifar-100-python.tar.gz; get it with: "
        f"python -c \"from torchvision.datasets import CIFAR100; CIFAR100('{tmp_path}', download=True)\", or point data.root at "
        "the folder that holds cifar-100-python"
    )
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        open_source("CIFAR100", "train", tmp_path)


def test_damaged_cifar_files_are_not_read(tmp_path: Path) -> None:
    write_cifar(tmp_path, "CIFAR10")  # files of another content than the published
    with pytest.raises(FileNotFoundError, match=r"cifar-10-batches-py holds batches\.meta, data_batch_1, .*, test_batch; get it"):
        open_source("CIFAR10", "test", tmp_path)


# --- trainval: all that is not the test part


def assert_trainval(dataset: str, root: str | Path = "data") -> ImageSource:
    """It holds the training and the validation images, and no image of the test part; all are
    normalised the same way.
    """
    parts = {split: open_source(dataset, split, root) for split in ("train", "validation", "test", "trainval")}
    together = parts["trainval"]
    assert len(together) == len(parts["train"]) + len(parts["validation"])
    for split in ("train", "validation"):
        part = parts[split]
        mine = together.aligned(part.keys, "trainval")
        assert torch.equal(mine.images(range(len(mine))), part.images(range(len(part))))
        assert torch.equal(mine.labels, part.labels)
    assert together.name.endswith("/trainval")
    assert len({(source.rgb_mean, source.rgb_std) for source in parts.values()}) == 1
    return together


def test_trainval_of_digits_is_in_the_order_of_the_scans(digits: dict[str, ImageSource]) -> None:
    together = assert_trainval("Digits")
    assert len(together) == 1438
    assert not set(together.keys) & set(digits["test"].keys)
    numbers = [key.split("/")[1] for key in together.keys]
    assert numbers == sorted(numbers)


@pytest.mark.usefixtures("any_checksum")
def test_trainval_of_cifar_is_the_published_training_part(tmp_path: Path) -> None:
    write_cifar(tmp_path, "CIFAR10")
    assert assert_trainval("CIFAR10", tmp_path).keys == [f"c{i % 10}/train_{i:05d}" for i in range(100)]


@pytest.mark.parametrize("layout", ["", "train"])
def test_trainval_of_a_folder_without_test_part_is_all_but_the_images_cut_for_it(tmp_path: Path, layout: str) -> None:
    write_images(tmp_path / layout, ["cat", "dog"], 20)
    together = assert_trainval(str(tmp_path))
    everything = [f"{name}/im{i:02d}" for name in ("cat", "dog") for i in range(20)]
    test = open_source(str(tmp_path), "test").keys
    assert len(test) == 8
    assert together.keys == [key for key in everything if key not in test]
    assert_reads_its_own_images(together)


def test_trainval_beside_a_test_folder_is_the_training_folder(tmp_path: Path) -> None:
    write_images(tmp_path / "train", ["cat", "dog"], 20)
    write_images(tmp_path / "test", ["cat", "dog"], 2)
    assert assert_trainval(str(tmp_path)).keys == [f"{name}/im{i:02d}" for name in ("cat", "dog") for i in range(20)]


def test_trainval_of_three_folders_is_training_then_validation_images_under_keys_of_their_own(tmp_path: Path) -> None:
    for split, count in (("train", 2), ("val", 3), ("test", 1)):
        write_images(tmp_path / split, ["cat", "dog"], count)
    together = open_source(str(tmp_path), "trainval")
    assert together.keys == [
        "cat/im00", "cat/im01", "dog/im00", "dog/im01",
        "cat/validation/im00", "cat/validation/im01", "cat/im02", "dog/validation/im00", "dog/validation/im01", "dog/im02",
    ]  # fmt: skip
    assert together.labels.tolist() == [0, 0, 1, 1, 0, 0, 0, 1, 1, 1]
    assert_reads_its_own_images(together)
    train = open_source(str(tmp_path), "train")
    assert (together.rgb_mean, together.rgb_std) == (train.rgb_mean, train.rgb_std)


def test_concatenated_sources_are_read_in_any_order_and_can_be_pickled() -> None:
    def numbered(first: int, names: list[str]) -> ImageSource:
        images = np.arange(first, first + len(names), dtype=np.uint8)[:, None, None, None].repeat(3, 1)
        return array_source("x", images, np.zeros(len(names), int), ["a"], names)

    both = pickle.loads(pickle.dumps(concatenated(numbered(0, ["p", "v/q"]), numbered(2, ["p", "q", "r"]), "v")))
    assert both.keys == ["a/p", "a/v/q", "a/v/p", "a/q", "a/r"]
    for rows in ([4, 0, 2, 1], [0, 1], [3, 2], []):
        assert both.images(rows)[:, 2, 0, 0].tolist() == rows
    assert concatenated(numbered(0, ["p", "v/p"]), numbered(2, ["p"]), "v").keys == ["a/p", "a/v/p", "a/v/v/p"]


# --- names


def test_an_unknown_data_set_is_reported_with_the_closest() -> None:
    message = (
        "unknown dataset 'CIFAR-10': did you mean 'CIFAR10'? allowed: Digits, DigitScenes, DigitPoints, CIFAR10, "
        "CIFAR100, TinyImagenet, Imagenet, CelebAMaskHQ, WFLW, CIFAR10.1, CIFAR10.1-v4, ImagenetR, ImagenetA, ImagenetV2, "
        "ImagenetSketch, <path of an image folder>"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        open_source("CIFAR-10", "train")


def test_an_unknown_split_is_reported_with_the_closest() -> None:
    with pytest.raises(
        ValueError, match=r"unknown split 'valid': did you mean 'validation'\? allowed: train, validation, test, trainval"
    ):
        open_source("Digits", "valid")


def test_a_missing_image_folder_is_reported_with_the_layouts() -> None:
    message = "image folder photos/cats does not exist; expected photos/cats/<class>/* or photos/cats/<split>/<class>/*"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        open_source("photos/cats", "train")
