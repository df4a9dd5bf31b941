"""ImageNet: layouts, labels by a complete class list, the centre crop, lazy decoding; class lists
and subsets of any folder.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.photo_like import photo_like
from undegrade.utils.data.batch_loader import BatchLoader
from undegrade.utils.data.batches import AugmentConfig, BatchSet
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.sources import folders
from undegrade.utils.data.sources.imagenet import read_classes
from undegrade.utils.data.sources.images import BrokenImageError
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.data.views import FolderTree, OnTheFly

FIRST, THIRD, LAST = "n01440764", "n01484850", "n15075141"  # of the sorted list: 0, 2 and 999
TEN = [f"n0000000{i}" for i in range(10)]


def write(folder: Path, count: int = 1, side: int = 8, first: int = 0) -> None:
    """`count` images; red is the number."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        Image.new("RGB", (side, side), (i, 9, 9)).save(folder / f"ILSVRC2012_val_{i:08d}.JPEG", format="PNG")


def write_ten(root: Path, part: str, count: int = 1) -> None:
    """Images of ten classes, with the list that names them."""
    for i, name in enumerate(TEN):
        write(root / part / name, count, first=count * i)
    (root / "classes.txt").write_text("\n".join(TEN) + "\n")


def name_of(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}"


# --- labels


@pytest.mark.parametrize("place", ["imagenet", "ILSVRC", "ILSVRC/Data/CLS-LOC", "."])
def test_a_part_of_the_classes_keeps_the_numbers_of_all_thousand(tmp_path: Path, place: str) -> None:
    for number, wnid in enumerate((LAST, FIRST, THIRD)):
        write(tmp_path / place / "val" / wnid, first=number)
    source = open_source("Imagenet", "test", tmp_path, image_size=8)
    assert source.labels.tolist() == [0, 2, 999]
    assert source.keys == [f"{FIRST}/{name_of(1)}", f"{THIRD}/{name_of(2)}", f"{LAST}/{name_of(0)}"]
    assert source.images(range(3))[:, 0, 0, 0].tolist() == [1, 2, 0]
    assert len(source.classes) == 1000 and source.name == "Imagenet/test"


def test_a_list_of_classes_beside_the_images_or_on_request_numbers_them(tmp_path: Path) -> None:
    write(tmp_path / "val" / "cat")
    write(tmp_path / "val" / "dog")
    (tmp_path / "classes.txt").write_text("eel\ncat\ndog\n")
    assert open_source("Imagenet", "test", tmp_path).labels.tolist() == [1, 2]
    (tmp_path / "other.txt").write_text("dog 0\ncat 2\na cow, 1\n")
    source = open_source("Imagenet", "test", tmp_path, classes=str(tmp_path / "other.txt"))
    assert (source.labels.tolist(), source.classes) == ([2, 0], ("dog", "a cow", "cat"))


def test_a_class_outside_the_list_is_reported(tmp_path: Path) -> None:
    write(tmp_path / "val" / "cat")
    with pytest.raises(
        ValueError, match=r"val has class folders .* \(1000 classes, n01440764, .*\): cat; name all classes with data"
    ):
        open_source("Imagenet", "test", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a\nb\na\n", "3 lines with 2 classes"), ("", "0 lines"), ("a 0\nb 2\n", "2 lines"), ("a 1\nb 1\n", "2 lines with 1 classes")],
)
def test_a_class_list_with_gaps_or_repetitions_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=rf"class list .*list\.txt: {message}.*; expected every class once"):
        read_classes(str(tmp_path / "list.txt"))


def test_a_class_list_may_hold_words_and_numbers(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("boeing 747\ntraffic light\n")  # a number behind some lines only is part of the name
    assert read_classes(str(tmp_path / "list.txt")) == ("boeing 747", "traffic light")
    with pytest.raises(FileNotFoundError, match="class list 'imagenet-2k' is neither a file nor 'imagenet-1k'"):
        read_classes("imagenet-2k")


# --- a flat val folder


@pytest.mark.parametrize(
    ("file", "lines"),
    [
        ("val_labels.txt", [f"{name_of(0)}.JPEG {LAST}", f"{name_of(1)}.JPEG {FIRST}", f"{name_of(2)}.JPEG {FIRST}"]),
        ("val_labels.txt", [f"{name_of(0)}.JPEG 999", f"{name_of(1)}.JPEG 0", "", f"{name_of(2)}.JPEG 0"]),
        ("LOC_val_solution.csv", ["ImageId,PredictionString", f"{name_of(0)},{LAST} 1 2 3 4 {LAST} 5 6 7 8 ",
                                  f"{name_of(1)},{FIRST} 1 2 3 4 ", f"{name_of(2)},{FIRST} 1 2 3 4"]),
    ],
)  # fmt: skip
def test_a_flat_folder_is_labelled_by_the_file_beside_it(tmp_path: Path, file: str, lines: list[str]) -> None:
    write(tmp_path / "ILSVRC/Data/CLS-LOC/val", 3)
    (tmp_path / file).write_text("\n".join(lines))
    source = open_source("Imagenet", "test", tmp_path, image_size=8)
    assert source.keys == [f"{FIRST}/{name_of(1)}", f"{FIRST}/{name_of(2)}", f"{LAST}/{name_of(0)}"]
    assert source.labels.tolist() == [0, 0, 999]
    assert source.images(range(3))[:, 0, 0, 0].tolist() == [1, 2, 0]


def test_labels_in_the_order_of_the_development_kit_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "val", 2)
    (tmp_path / "ILSVRC2012_validation_ground_truth.txt").write_text("490\n361\n")
    with pytest.raises(ValueError, match=r"in the order of the development kit, which is not .*: write .*val_labels\.txt with"):
        open_source("Imagenet", "test", tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, r"val has no class folders, and no labels lie beside it: write .*val_labels\.txt with `<file> <wnid>` a line"),
        ([f"{name_of(0)}.JPEG 1"], rf"1 of 2 images in .*val have no label, e\.g\. .*{name_of(1)}\.JPEG"),
        ([f"{name_of(0)}.JPEG 1000"], r"the class '1000', which is not in the class list of 1000 classes"),
        ([f"{name_of(0)}.JPEG n99"], r"the class 'n99', which is not in the class list"),
    ],
)
def test_images_without_label_are_reported(tmp_path: Path, lines: list[str] | None, message: str) -> None:
    write(tmp_path / "val", 2)
    if lines is not None:
        (tmp_path / "val_labels.txt").write_text("\n".join(lines))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_source("Imagenet", "test", tmp_path)


# --- splits


def test_validation_images_are_cut_from_training_and_the_val_folder_is_the_test_part(tmp_path: Path) -> None:
    write_ten(tmp_path, "train", 10)
    write_ten(tmp_path, "val")
    sources = {s: open_source("Imagenet", s, tmp_path, image_size=8) for s in ("train", "validation", "test", "trainval")}
    assert {s: len(source) for s, source in sources.items()} == {"train": 90, "validation": 10, "test": 10, "trainval": 100}
    assert set(sources["train"].keys) | set(sources["validation"].keys) == set(sources["trainval"].keys)
    assert sources["validation"].labels.tolist() == list(range(10))
    numbers = [int(key[-8:]) for key in sources["train"].keys]
    assert sources["train"].images(range(90))[:, 0, 0, 0].tolist() == numbers
    assert {source.rgb_mean for source in sources.values()} == {(0.485, 0.456, 0.406)}


def test_only_the_part_that_is_asked_for_is_needed(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"Imagenet: no val folder under .*; expected val/<wnid>/\*\.JPEG in one of imagenet,"
    ):
        open_source("Imagenet", "test", tmp_path)
    write_ten(tmp_path, "val")
    assert len(open_source("Imagenet", "test", tmp_path)) == 10
    with pytest.raises(FileNotFoundError, match=r"no train folder .* found: .* holds classes\.txt, val/; unpack ILSVRC 2012 there"):
        open_source("Imagenet", "train", tmp_path)
    (tmp_path / "train" / TEN[0]).mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no images under .*train"):
        open_source("Imagenet", "train", tmp_path)


# --- pixels


@pytest.fixture
def photo(tmp_path: Path) -> Image.Image:
    """One photograph, 400 x 300, in a val folder."""
    pixels = photo_like(1, 400)[0, :, :300].permute(1, 2, 0).numpy()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    write(tmp_path / "val" / FIRST, 0)
    image.save(tmp_path / "val" / FIRST / "a.png")
    return image


def test_the_default_is_the_centre_224_of_a_shorter_side_of_256(tmp_path: Path, photo: Image.Image) -> None:
    source = open_source("Imagenet", "test", tmp_path)
    expected = photo.resize((341, 256), Image.Resampling.BILINEAR).crop((58, 16, 282, 240))
    assert np.array_equal(source.images([0])[0].permute(1, 2, 0).numpy(), np.asarray(expected))
    assert (source.image_size, source.resize, source.frame) == (224, (256, "bilinear"), "224 of 256, bilinear")


def test_a_size_alone_takes_the_whole_shorter_side(tmp_path: Path, photo: Image.Image) -> None:
    source = open_source("Imagenet", "test", tmp_path, image_size=300)
    assert np.array_equal(source.images([0])[0].permute(1, 2, 0).numpy(), np.asarray(photo.crop((50, 0, 350, 300))))
    assert (source.resize, source.frame) == (None, "300")


def test_an_image_folder_can_be_cut_in_the_same_way(tmp_path: Path, photo: Image.Image) -> None:
    mine = open_source(str(tmp_path), "test", image_size=224, resize=256, classes="imagenet-1k")
    theirs = open_source("Imagenet", "test", tmp_path)
    assert torch.equal(mine.images([0]), theirs.images([0]))
    assert mine.labels.tolist() == theirs.labels.tolist() and mine.frame == theirs.frame


def test_the_default_size_given_by_name_is_the_default(tmp_path: Path, photo: Image.Image) -> None:
    sources = [open_source("Imagenet", "test", tmp_path, image_size=size) for size in (None, 224)]
    assert sources[0].frame == sources[1].frame and torch.equal(sources[0].images([0]), sources[1].images([0]))


def test_an_interpolation_without_resize_is_refused(tmp_path: Path, photo: Image.Image) -> None:
    with pytest.raises(ValueError, match=r"data\.interpolation bicubic is how the files are brought to data\.resize"):
        open_source("Imagenet", "test", tmp_path, image_size=300, interpolation="bicubic")


def test_a_centre_larger_than_the_resized_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.resize 200 is smaller than data\.image_size 224"):
        open_source("Imagenet", "test", tmp_path, image_size=224, resize=200)


def test_adapted_images_of_256_pixels_show_the_same_part_as_the_raw_ones(tmp_path: Path, photo: Image.Image) -> None:
    source = open_source("Imagenet", "test", tmp_path)
    adapted = photo.resize((341, 256), Image.Resampling.BILINEAR).crop((42, 0, 298, 256))  # what the diffusion model sees
    path = tmp_path / "adapted" / "jpeg" / "random" / FIRST
    path.mkdir(parents=True)
    adapted.save(path / "a.png")
    assert torch.equal(FolderTree(tmp_path / "adapted", source).source(Cell("jpeg")).images([0]), source.images([0]))


def test_logits_of_another_cut_are_not_taken_from_the_cache(tmp_path: Path, photo: Image.Image) -> None:
    views = [OnTheFly(open_source("Imagenet", "test", tmp_path, 224, resize=resize)) for resize in (None, 256, 300)]
    views.append(OnTheFly(open_source("Imagenet", "test", tmp_path, 224, resize=300, interpolation="bicubic")))
    assert len({view.identity(Cell("jpeg", 50)) for view in views}) == 3  # 224 alone is 224 of 256


# --- decoding


def test_large_sets_are_decoded_as_they_are_read_also_by_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_ten(tmp_path, "val", 2)
    (tmp_path / "val" / TEN[9] / f"{name_of(19)}.JPEG").write_bytes(b"broken")
    assert len(open_source("Imagenet", "test", tmp_path, image_size=8)) == 19
    assert f"left out 1 of 20 files that cannot be decoded:\n  {tmp_path}/val/{TEN[9]}/{name_of(19)}.JPEG: none" in caplog.text
    monkeypatch.setattr(folders, "PRELOAD_BYTES", 3 * 8 * 8 * 19)
    source = pickle.loads(pickle.dumps(open_source("Imagenet", "test", tmp_path, image_size=8)))
    assert source.images([18, 0])[:, 0, 0, 0].tolist() == [18, 0]
    with pytest.raises(BrokenImageError):
        source.images([19])
    loader = BatchLoader(BatchSet(source.subset(range(19)), ["jpeg"], 4, 0, AugmentConfig(flip=True, resized_crop=0.5)), workers=1)
    reds = {key: round(255 * float(red)) for batch in loader.epoch(0) for key, red in zip(batch["key"], batch["clean"][:, 0, 0, 0])}  # noqa: B905
    assert reds == {key: i for i, key in enumerate(source.keys[:19])}


def test_a_limit_comes_before_decoding(tmp_path: Path) -> None:
    write_ten(tmp_path, "val", 2)
    names = [key.split("/")[1] for key in open_source("Imagenet", "test", tmp_path, image_size=8, limit=10).keys]
    for path in (tmp_path / "val").rglob("*.JPEG"):
        if path.stem not in names:
            path.write_bytes(b"broken")
    assert len(open_source("Imagenet", "test", tmp_path, image_size=8, limit=10)) == 10


# --- subsets and classes of other sets


def test_a_subset_is_named_by_keys_or_paths(tmp_path: Path) -> None:
    write_ten(tmp_path, "val", 2)
    chosen = tmp_path / "subset.txt"
    chosen.write_text(f"val/{TEN[3]}/{name_of(7)}.JPEG\n\n{TEN[0]}/{name_of(1)}\n./val/{TEN[0]}/{name_of(0)}.JPEG\n")
    source = open_source("Imagenet", "test", tmp_path, image_size=8, subset=str(chosen))
    assert source.keys == [f"{TEN[0]}/{name_of(0)}", f"{TEN[0]}/{name_of(1)}", f"{TEN[3]}/{name_of(7)}"]
    assert source.images(range(3))[:, 0, 0, 0].tolist() == [0, 1, 7]


def test_a_test_set_must_hold_its_whole_subset_and_training_the_part_that_fell_to_it(tmp_path: Path) -> None:
    write_ten(tmp_path, "train", 10)
    write_ten(tmp_path, "val", 1)
    keys = {s: open_source("Imagenet", s, tmp_path, image_size=8).keys for s in ("train", "validation", "test")}
    chosen = tmp_path / "subset.txt"
    chosen.write_text("\n".join([*keys["train"][:5], *keys["validation"][:2]]))
    for split, count in (("train", 5), ("validation", 2), ("trainval", 7)):
        assert len(open_source("Imagenet", split, tmp_path, image_size=8, subset=str(chosen))) == count
    with pytest.raises(ValueError, match=rf"subset\.txt: 6 of 7 images are not in Imagenet/test, .* look like {TEN[0]}/"):
        open_source("Imagenet", "test", tmp_path, image_size=8, subset=str(chosen))
    chosen.write_text("cat/1\n")
    with pytest.raises(ValueError, match=r"1 of 1 images are not in Imagenet/train, e\.g\. cat/1"):
        open_source("Imagenet", "train", tmp_path, image_size=8, subset=str(chosen))
    with pytest.raises(FileNotFoundError, match=r"data\.subset nowhere\.txt does not exist; expected a file with one image key"):
        open_source("Digits", "test", subset="nowhere.txt")


def test_every_data_set_has_subsets(tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text("2/0002\n1/0001\n")
    assert open_source("Digits", "test", subset=str(tmp_path / "two.txt")).keys == ["1/0001", "2/0002"]


@pytest.mark.parametrize("option", [{"image_size": 64}, {"resize": 40}, {"classes": "imagenet-1k"}])
def test_options_that_a_data_set_does_not_have_are_refused(option: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=rf"data\.{next(iter(option))} is for Imagenet and image folders, Digits has its own"):
        open_source("Digits", "test", **option)  # type: ignore[arg-type]


def test_a_class_list_numbers_the_folders_of_any_set(tmp_path: Path) -> None:
    for name in ("automobile", "airplane"):
        write(tmp_path / "photos" / name, 10)
    (tmp_path / "order.txt").write_text("automobile\nbird\nairplane\n")
    options = {"classes": str(tmp_path / "order.txt")}
    source = open_source(str(tmp_path / "photos"), "train", **options)  # type: ignore[arg-type]
    assert source.classes == ("automobile", "bird", "airplane")
    assert {key.split("/")[0]: int(label) for key, label in zip(source.keys, source.labels, strict=True)} == {
        "airplane": 2, "automobile": 0,
    }  # fmt: skip
    (tmp_path / "order.txt").write_text("automobile\nbird\n")
    with pytest.raises(
        ValueError, match=r"has class folders \['airplane'\] that are not among the classes .* \(\['automobile', 'bird"
    ):
        open_source(str(tmp_path / "photos"), "train", **options)  # type: ignore[arg-type]


def test_a_folder_without_training_images_is_a_test_set_once_its_classes_are_named(tmp_path: Path) -> None:
    write(tmp_path / "photos" / "val" / "cat", 2)
    with pytest.raises(
        ValueError, match=r"holds val but no train folder: .*, or, to evaluate only, name the classes \(data\.classes\)"
    ):
        open_source(str(tmp_path / "photos"), "test")
    (tmp_path / "order.txt").write_text("dog\ncat\n")
    source = open_source(str(tmp_path / "photos"), "test", classes=str(tmp_path / "order.txt"))
    assert (source.labels.tolist(), source.name) == ([1, 1], "photos/test")
    with pytest.raises(ValueError, match="no train folder"):
        open_source(str(tmp_path / "photos"), "train", classes=str(tmp_path / "order.txt"))
