"""Image folders: layouts, broken files, and how a file becomes pixels."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from utils.data import folders
from utils.data.folders import folder_source, plain_source
from utils.data.image_source import ImageSource
from utils.data.images import BrokenImageError, center_crop, list_images, read_image
from utils.data.sources import open_source


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
    assert f"{tmp_path}/cat/im00.png: no image format that Pillow knows" in message
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
    with pytest.raises(BrokenImageError, match=r"dog/im01\.png: no image format that Pillow knows"):
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
        (8, "none of the 2 files can be decoded, e.g. .*a.png: no image format"),
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


# --- from a file to pixels


def test_the_size_is_the_shorter_side_of_the_first_image_unless_given(tmp_path: Path) -> None:
    write_images(tmp_path, ["cat", "dog"], 1, size=(12, 10))
    assert folder_source(tmp_path, None, "pets").image_size == 10
    assert folder_source(tmp_path, 6, "pets").images([0, 1]).shape == (2, 3, 6, 6)


def test_a_photograph_is_turned_upright_by_its_exif_tag(tmp_path: Path) -> None:
    stored = np.zeros((8, 8, 3), np.uint8)
    stored[0, 0] = 255  # upper left as stored
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn clockwise by 90 degrees to view, so that it is upper right
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    assert np.argwhere(read_image(tmp_path / "a.png", 8)[0]).tolist() == [[0, 7]]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [("L", 90, (90, 90, 90)), ("LA", (90, 10), (90, 90, 90)), ("RGBA", (1, 2, 3, 0), (1, 2, 3)), ("1", 1, (255, 255, 255)),
     ("RGB", (1, 2, 3), (1, 2, 3))],
)  # fmt: skip
def test_every_mode_becomes_rgb_and_alpha_is_dropped(
    tmp_path: Path, mode: str, colour: int | tuple[int, ...], expected: tuple[int, ...]
) -> None:
    Image.new(mode, (4, 4), colour).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png", 4)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (3, 4, 4))
    assert (pixels == np.array(expected)[:, None, None]).all()


def test_a_palette_becomes_its_colours(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 9, 8, 7])
    image.save(tmp_path / "a.gif")
    assert read_image(tmp_path / "a.gif", 4)[:, 0, 0].tolist() == [9, 8, 7]


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    levels = np.array([[0, 257], [128, 65535]], np.uint16)  # 128 / 257 rounds down
    for name in ("a.png", "a.tif"):
        Image.fromarray(levels).save(tmp_path / name)
        assert read_image(tmp_path / name, 2)[1].tolist() == [[0, 1], [0, 255]]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_of_unknown_range_are_refused_by_name(tmp_path: Path, dtype: type) -> None:
    Image.fromarray(np.full((4, 4), 7, dtype)).save(tmp_path / "a.tif")
    with pytest.raises(BrokenImageError, match=r"a\.tif: its pixels \([IF]\) are 32-bit numbers of unknown range"):
        read_image(tmp_path / "a.tif", 4)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif", 4)[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_an_animation_is_its_first_frame(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / name, 8) > 250).all()


def test_an_image_smaller_than_allowed_is_refused_by_name(tmp_path: Path) -> None:
    Image.new("RGB", (4, 9)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", 8, smallest=4).shape == (3, 8, 8)
    with pytest.raises(BrokenImageError, match=r"a\.png: 4 x 9 px is too small to be enlarged to 8"):
        read_image(tmp_path / "a.png", 8, smallest=5)


def grid(width: int, height: int) -> Image.Image:
    """Grey image whose pixel at (x, y) is 10 x + y."""
    return Image.fromarray((10 * np.arange(width) + np.arange(height)[:, None]).astype(np.uint8))


def test_an_image_of_the_right_height_is_cropped_in_the_middle() -> None:
    # width 9, size 4: the window starts at column (9 - 4) // 2 = 2
    assert np.array_equal(np.asarray(center_crop(grid(9, 4), 4)), np.asarray(grid(9, 4))[:, 2:6])


def test_an_upright_image_is_cropped_in_the_middle() -> None:
    assert np.array_equal(np.asarray(center_crop(grid(4, 7), 4)), np.asarray(grid(4, 7))[1:5])


def test_an_image_twice_too_large_is_halved_by_block_means() -> None:
    # each 2 x 2 block of 10 x + y: its corner plus (0 + 10 + 1 + 11) / 4 = 5.5, which Pillow rounds up to 6
    expected = np.array([[20 * x + 2 * y + 6 for x in range(2)] for y in range(2)])
    assert np.array_equal(np.asarray(center_crop(grid(4, 4), 2)), expected)


def test_an_image_four_times_too_large_is_halved_twice() -> None:
    # 8 x 8 blocks of 0 and 200 of side 4: two halvings give them back as single pixels
    pixels = np.kron(np.array([[0, 200], [200, 0]]), np.ones((4, 4))).astype(np.uint8)
    assert np.asarray(center_crop(Image.fromarray(pixels), 2)).tolist() == [[0, 200], [200, 0]]


def test_a_smaller_image_is_enlarged_with_its_proportions() -> None:
    # 2 x 4 to size 4: factor 2, 4 x 8, the middle 4 rows; a constant row stays constant
    pixels = np.repeat(np.array([[0], [100], [100], [0]], np.uint8), 2, axis=1)
    result = np.asarray(center_crop(Image.fromarray(pixels), 4))
    assert result.shape == (4, 4)
    assert (result == result[:, :1]).all()
    assert np.array_equal(result, result[::-1])


def test_a_size_between_once_and_twice_is_reached_in_one_bicubic_step() -> None:
    image = grid(12, 9)  # 9 / 6 = 1.5 < 2: no halving; 12 * 6 / 9 = 8 wide, then columns 1..6
    expected = np.asarray(image.resize((8, 6), Image.Resampling.BICUBIC))[:, 1:7]
    assert np.array_equal(np.asarray(center_crop(image, 6)), expected)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.gif", "a.webp", "a.tif", "a.ppm"])
def test_a_truncated_file_is_reported_by_its_name_in_every_format(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path = tmp_path / name
    Image.fromarray(noise).save(path)
    assert read_image(path, 40).shape == (3, 40, 40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(BrokenImageError, match=re.escape(f"{path}: ")):
        read_image(path, 40)
