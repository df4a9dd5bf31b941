"""Which files of a folder are images, in every reader, and what is said of the others."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.test_folders import write_images
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.sources.folders import folder_source
from undegrade.utils.data.sources.image_files import keys_of, list_images
from undegrade.utils.data.sources.image_source import array_source
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.data.views import OnTheFly


def names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in list_images(folder)]


def test_linked_class_folders_and_files_are_followed(tmp_path: Path) -> None:
    write_images(tmp_path, ["part/a", "part/b"], 7)
    (tmp_path / "part/c").symlink_to("a", target_is_directory=True)
    (tmp_path / "part/b/linked.png").symlink_to("../a/im00.png")
    source = folder_source(tmp_path / "part", None, "part")
    assert (source.classes, source.labels.bincount().tolist()) == (("a", "b", "c"), [7, 8, 7])


def test_links_into_a_parent_folder_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path, ["a", "b"], 1)
    (tmp_path / "a/up").symlink_to("..", target_is_directory=True)
    (tmp_path / "b/across").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "a/self").symlink_to("self")
    assert names(tmp_path) == ["a/im00.png", "b/across/im00.png", "b/im00.png"]
    assert "2 dangling link, 2 link to a parent folder" in caplog.text


def test_what_is_no_image_is_counted_by_kinds_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path, ["a", "b"], 2)
    for name in ("a/x", "a/y", "b/x", "a/n.txt", "b/m.TXT", "b/c.svg"):
        (tmp_path / name).write_text("no image")
    for name in ("classes.txt", "a/manifest.jsonl", "a/settings.json", "a/.hidden", "labels.npy"):
        (tmp_path / name).write_text("belongs here")
    (tmp_path / "a/gone.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "b/pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "b/socket.jpg"))
        write_images(tmp_path, ["."], 1)  # beside the class folders
        assert len(folder_source(tmp_path, None, "pets")) == 4
    expected = "3 without suffix, 2 .txt, 2 no regular file, 1 .svg, 1 dangling link, 1 outside the class folders"
    assert [record.getMessage() for record in caplog.records] == [f"left out 10 files below {tmp_path}: {expected}"]


def test_imagenet_counts_them_and_follows_links(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "classes.txt").write_text("n01\nn02\n")
    write_images(tmp_path / "photos", ["first"], 2)
    write_images(tmp_path / "val", ["n01", "n01/deeper", "."], 1)
    (tmp_path / "val/n02").symlink_to(tmp_path / "photos/first")
    (tmp_path / "val/n01/x").write_text("no image")
    os.mkfifo(tmp_path / "val/n01/pipe.JPEG")
    assert len(open_source("Imagenet", "test", tmp_path, image_size=8)) == 3
    assert "left out 4 files" in caplog.text and "1 folders in a class folder, 1 no regular file" in caplog.text


def write_files(folder: Path, *files: str) -> None:
    """PNG files, whatever they are called, of grey levels 0, 1, ..."""
    for grey, name in enumerate(files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (grey,) * 3).save(folder / name, format="PNG")


@pytest.mark.parametrize(
    ("files", "keys"),
    [
        (["a.png", "b.png"], ["a", "b"]),
        (["a.jpg", "a.png", "b.png"], ["a.jpg", "a.png", "b"]),
        (["a.jpg", "a.png", "a.png.gif"], ["a.jpg", "a.png", "a.png.gif"]),
        (["c.jpg", "c.png/x.png"], ["c.jpg", "c.png/x"]),
        (["c.jpg", "c.jpg.png/x.png", "c.png/x.png"], ["c.jpg_", "c.jpg.png/x", "c.png/x"]),
        (["d.jpeg/e.png/f.png", "d.png"], ["d.jpeg/e.png/f", "d.png"]),
        (["a_.jpg", "a_.png", "a.jpg", "a.jpg_.png", "a.png"], ["a_.jpg", "a_.png", "a.jpg", "a.jpg_", "a.png"]),
        (["caf\udce9.png", "caf\\xe9.png", "caf\u00e9.png"], ["caf\\xe9.png", "caf\\xe9.png_", "caf\u00e9"]),
        (["v1.2.png", "v1.png", "..x.png"], ["v1.2", "v1", "..x"]),
    ],
)
def test_keys_are_those_of_one_file_each_and_so_are_files_written_under_them(files: list[str], keys: list[str]) -> None:
    assert keys_of(files) == keys
    for suffix in (".png", ".jpeg"):
        written = [key + suffix for key in keys]
        assert len(set(written)) == len(files)
        assert not {parent.as_posix() for name in written for parent in Path(name).parents} & set(written)
        assert keys_of(written) == keys  # what is read back has the keys of its originals


@given(st.lists(st.text("ab./_", min_size=1, max_size=6), unique=True, max_size=8))
@settings(max_examples=200, deadline=None)
def test_keys_of_any_names_are_apart(stems: list[str]) -> None:
    names = {re.sub("/+", "/", f"{stem}{suffix}").strip("/") for stem in stems for suffix in (".png", ".jpg", ".png.gif")}
    files = sorted(name for name in names if not any(part in (".", "..", "") for part in name.split("/")))
    files = [name for name in files if not any(other.startswith(f"{name}/") for other in files)]  # as on a disk
    written = [f"{key}.png" for key in keys_of(files)]
    assert len(set(written)) == len(files) and not any(a.startswith(f"{b}/") for a in written for b in written)


def test_every_reader_gives_each_image_a_key_of_its_own(tmp_path: Path) -> None:
    write_files(tmp_path / "imagenet/val", "n01/x.JPEG", "n01/x.png", "n02/y.JPEG", "n02/y.png", "n02/z.JPEG")
    (tmp_path / "imagenet/classes.txt").write_text("n01\nn02\n")
    source = open_source("Imagenet", "test", tmp_path, image_size=8)
    assert source.keys == ["n01/x.JPEG", "n01/x.png", "n02/y.JPEG", "n02/y.png", "n02/z"]
    folder = tmp_path / "tiny-imagenet-200"
    write_files(folder, "train/n01/images/a.JPEG", "train/n01/images/a.png", "val/images/c.JPEG")
    (folder / "wnids.txt").write_text("n01\nn02\n")
    (folder / "val/val_annotations.txt").write_text("c.JPEG\tn01\n")
    write_files(folder, "train/n02/b.JPEG")
    assert open_source("TinyImagenet", "trainval", tmp_path).keys == ["n01/a.JPEG", "n01/a.png", "n02/b"]


def test_a_source_with_one_key_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"s: several images have the key a/x"):
        array_source("s", np.zeros((2, 3, 4, 4), np.uint8), np.zeros(2), ["a"], ["x", "x"])


def test_names_that_are_not_utf8_are_classes_keys_and_streams(tmp_path: Path) -> None:
    write_files(tmp_path, "caf\udce9/\udcff.png", "caf\udce9/b.png", "tea/c.png")
    source = folder_source(tmp_path, None, "pets")
    assert source.classes == ("caf\\xe9", "tea") and source.keys == ["caf\\xe9/b", "caf\\xe9/\\xff", "tea/c"]
    json.dumps(source.description).encode()
    assert OnTheFly(source).source(Cell("jpeg", 30)).images([0, 1, 2]).shape == (3, 3, 8, 8)
    (tmp_path / "list.txt").write_bytes(b"caf\xe9/\xff.png\n")
    assert source.listed(tmp_path / "list.txt", "--list").keys == ["caf\\xe9/\\xff"]


def test_tiny_imagenet_counts_them_and_reads_other_suffixes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "tiny-imagenet-200"
    for name in ("train/n01/images/a.JPEG", "train/n02/images/b.png", "val/images/c.JPEG"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / name)
    (folder / "train/n01/n01_boxes.txt").write_text("")
    (folder / "train/n01/images/notes.doc").write_text("")
    (folder / "wnids.txt").write_text("n01\nn02\n")
    (folder / "val/val_annotations.txt").write_text("c.JPEG\tn02\n")
    assert open_source("TinyImagenet", "trainval", tmp_path).keys == ["n01/a", "n02/b"]
    assert f"left out 1 files below {folder}/train: 1 .doc" in caplog.text
