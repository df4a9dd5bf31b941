"""Image folders as data sets: `<root>/<class>/*`, `<root>/<split>/<class>/*`, or any images below a
folder.

Generated images lie in numbered folders, `<root>[/train]/<0000>/*`, and a class map, classes.txt,
names their classes: a line `<0000> <class>` for each. The data set then has those names, in the
order of the numbers, as classes and in its keys, like the data set that the generator was trained
on. Without class map the folders' numbers are places in the class list, if one is given.

Folders that are all called by numbers are in the order of these, others in that of their names.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from undegrade.utils.data.sources.image_files import find_images, keys_of, list_images, say_left_out
from undegrade.utils.data.sources.image_source import ImageSource, array_reader
from undegrade.utils.data.sources.images import (
    IMAGE_SUFFIXES,
    BrokenImageError,
    FileSlice,
    Resize,
    image_size,
    read_image,
)
from undegrade.utils.data.sources.splits import TEST_SHARE, VALIDATION_SHARE, concatenated, cut, one_split, train_validation_test
from undegrade.utils.files import read_lines
from undegrade.utils.paths import few, utf8

log = logging.getLogger(__name__)

PRELOAD_BYTES = 2 << 30  # folders that fit are decoded once and kept in memory
CLASS_MAP = "classes.txt"  # in the folder of the images, in its train folder, or beside that
# parts of a data set, and what their folders may be called
_SPLITS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}


def image_folder(
    root: Path, split: str, image_size: int | None, resize: Resize | None = None, classes: Sequence[str] | None = None
) -> ImageSource:
    """`<root>/<split>/<class>/*` as it is, or `<root>/<class>/*` cut into train, validation and
    test by a fixed draw.

    The split trainval is all but the test part; behind the training images come those of a
    validation folder. With `classes` (see `folder_source`) a folder that has a held-out part only
    is a test set; it has no training images for the channel statistics. With a class map (or
    numbered folders and `classes`) and without held-out parts the images are generated ones: a
    tenth is for validation, none for testing.
    """
    folders = {s: next((root / a for a in names if (root / a).is_dir()), None) for s, names in _SPLITS.items()}
    name, named = utf8(root.resolve().name), read_class_map(root) or _numbered(folders["train"] or root, classes)
    if folders["train"] is None:
        below = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        if below and set(below) <= {alias for names in _SPLITS.values() for alias in names}:
            held_out = folders["test"] or folders["validation"]
            if classes is None or split != "test" or held_out is None:
                raise ValueError(
                    f"{root} holds {', '.join(below)} but no train folder: add {root}/train/<class>/*, or, to evaluate only, name "
                    "the classes (data.classes)"
                )
            return dataclasses.replace(folder_source(held_out, image_size, name, classes, resize), name=f"{name}/test")
        source = folder_source(root, image_size, name, classes, resize, named)
        if named:
            return _generated(root, source, split)
        test, validation, train = cut(source, [TEST_SHARE, VALIDATION_SHARE * (1 - TEST_SHARE)], name)
        trainval = cut(source, [TEST_SHARE], name)[1]  # one draw for both: the test parts are the same
        return one_split({"train": train, "validation": validation, "test": test, "trainval": trainval}, split, name)
    train = folder_source(folders["train"], image_size, name, classes, resize, named)
    size, order = train.image_size, train.classes
    given = {s: folder_source(f, size, name, order, resize, named) for s, f in folders.items() if f is not None and s != "train"}
    if named and not given:
        return _generated(root, train, split)
    if len(given) == 2:
        return one_split({"train": train, "trainval": concatenated(train, given["validation"], "validation"), **given}, split, name)
    # a lone held-out part is the test part
    test, rest = (*given.values(), train) if given else cut(train, [TEST_SHARE], f"{name}/test")
    return train_validation_test(rest, test, split, name)


def _generated(root: Path, source: ImageSource, split: str) -> ImageSource:
    if split == "test":
        raise ValueError(f"{root} holds generated images to train on, none to test on: name the real data set (--data.dataset)")
    if split != "validation":
        _warn_of_few(root, source)
    validation, train = cut(source, [VALIDATION_SHARE], f"{source.name}/validation")
    return one_split({"train": train, "validation": validation, "trainval": source}, split, source.name)


def _numbered(folder: Path, classes: Sequence[str] | None) -> dict[str, str]:
    """Class by number if all class folders are numbers that are no names of `classes` themselves,
    else nothing.
    """
    below = [p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
    if not below or not all(re.fullmatch(r"\d{4,}", name) and name not in (classes or ()) for name in below):
        return {}
    return {f"{number:04d}": name for number, name in enumerate(classes or ())}


def _in_order(folders: Iterable[str]) -> list[str]:
    """Names of class folders, by their numbers where all are numbers."""
    numbers = all(re.fullmatch(r"[0-9]+", name) for name in folders)
    return sorted(folders, key=lambda name: (int(name) if numbers else 0, name))


def class_order(root: Path, classes: Sequence[str]) -> str | None:
    """How `classes`, the sorted folders of an image folder, are numbered, if that is by more than
    their names.
    """
    if read_class_map(root):
        return f"by {CLASS_MAP}"
    if all(re.fullmatch(r"[0-9]+", name) for name in classes) and [int(name) for name in classes] == list(range(len(classes))):
        return "by the numbers of their folders"
    return "by WordNet ids, sorted" if all(re.fullmatch(r"n\d{8}", name) for name in classes) else None


def _warn_of_few(root: Path, source: ImageSource) -> None:
    counts = collections.Counter(source.labels.tolist())
    most = max(counts.values())
    few = [f"{name}: {counts[label]}" for label, name in enumerate(source.classes) if counts[label] < most]
    if few:
        log.warning(
            "%s: %d of %d classes have fewer than %d images: %s; the command that generated them makes what is missing",
            root, len(few), len(source.classes), most, ", ".join(few[:5]) + ", ..." * (len(few) > 5),
        )  # fmt: skip


def class_map_file(folder: Path) -> Path | None:
    """The class map of the images below `folder`, which may be a data set or its train folder; None
    where there is none.
    """
    places = [folder, folder / "train", *([folder.parent] if folder.name in _SPLITS["train"] else [])]
    return next((place / CLASS_MAP for place in places if (place / CLASS_MAP).is_file()), None)


def read_class_map(folder: Path) -> dict[str, str]:
    """Class by name of its folder, in the order of the numbers; empty where no class map is there,
    or one of another kind.

    Raises:
        ValueError: lines that are not all of the form `<0000> <class>`, a number or class given
            twice, a class that is no name of a folder, bytes that are not UTF-8.
    """
    path = class_map_file(folder)
    lines = read_lines(path) if path else []
    rows = [re.fullmatch(r"(\d{4,})\s+(\S.*)", line) for line in lines]
    if not any(rows):  # such as the list of all classes beside ImageNet's folders
        return {}
    named = {row[1]: row[2] for row in rows if row}
    wrong = [line for line, row in zip(lines, rows, strict=True) if row is None or "/" in row[2] or row[2] in (".", "..")]
    if wrong or not len(lines) == len(named) == len(set(named.values())):
        mistake = f"{wrong[0]!r} is no such line" if wrong else "a number or a class is given twice"
        raise ValueError(f"{path}: {mistake}: expected `<0000> <class>` a line, each once, the class without /")
    return {number: named[number] for number in sorted(named, key=int)}


def folder_source(
    folder: Path,
    image_size: int | None,
    name: str,
    classes: Sequence[str] | None = None,
    resize: Resize | None = None,
    named: Mapping[str, str] | None = None,
) -> ImageSource:
    """A source over `<folder>/<class>/*`.

    Sets that fit into 2 GiB of memory are decoded at once; files that cannot be decoded are listed
    by name, counted and left out. Larger sets are decoded as they are read, and a broken file
    raises then.

    Args:
        folder: holds one folder a class.
        image_size: side in pixels (default: the shorter side of the first readable image).
        name: for messages.
        classes: class order to use (default: that of `named`, else of the folders).
        resize: see `ImageSource`.
        named: class by name of the folder (`read_class_map`), for folders that are not called as
            their class.

    Raises:
        ValueError: no images, images outside a class folder only, one class only, or a class that
            is not in `classes`.
    """
    paths, left_out = find_images(folder)
    outside = [p for p in paths if p.parent == folder]
    if outside:
        paths = [p for p in paths if p.parent != folder]
        left_out["outside the class folders"] += len(outside)
    say_left_out(folder, left_out)
    if not paths:
        raise ValueError(f"no images under {folder}: expected {folder}/<class>/<name> with a suffix such as .png, .jpg, .jpeg")
    relative, named = [utf8(p.relative_to(folder).as_posix()) for p in paths], named or {}
    folders = [name.split("/", 1)[0] for name in relative]
    found = _in_order(set(folders))
    usual = list(named.values()) or found
    if classes is None and len(usual) < 2:
        raise ValueError(f"{folder} holds one class folder only, {found[0]!r}: at least 2 are needed, {folder}/<class>/<name>")
    order = {c: label for label, c in enumerate(usual if classes is None else classes)}
    unknown = [c for c in found if named.get(c, c) not in order]
    if unknown:
        known = CLASS_MAP if named else "the training part"
        raise ValueError(
            f"{folder} has class folders {unknown[:5]} that are not among the classes of {known} or of data.classes "
            f"({list(order)[:10]})"
        )
    source = plain_source(folder, image_size or min(first_size(paths)), name, paths, resize)
    keys = keys_of([named.get(first, first) + name.removeprefix(first) for first, name in zip(folders, relative, strict=True)])
    labels = torch.tensor([order[named.get(first, first)] for first in folders])
    return preloaded(dataclasses.replace(source, classes=tuple(order), labels=labels, keys=keys))


def plain_source(
    folder: Path, image_size: int, name: str, paths: Sequence[Path] | None = None, resize: Resize | None = None
) -> ImageSource:
    """Every image below `folder` (or `paths` of it), unlabelled, decoded as it is read; keys are
    relative paths without suffix.

    Raises:
        FileNotFoundError, ValueError: the folder does not exist, or holds no image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"image folder {folder} does not exist")
    files = list(list_images(folder) if paths is None else paths)
    if not files:
        raise ValueError(f"no images under {folder} (by suffix: {', '.join(IMAGE_SUFFIXES)})")
    read = functools.partial(read_files, files, image_size, resize)
    keys = keys_of([p.relative_to(folder).as_posix() for p in files])
    return ImageSource(name, (), torch.full((len(files),), -1), keys, image_size, read, files, resize=resize)


def read_files(
    files: Sequence[str | Path | FileSlice], size: int, resize: Resize | None, rows: Iterable[int], *, smallest: int = 0
) -> torch.Tensor:
    """uint8 [B, 3, size, size] of the files at `rows`; see `read_image`."""
    images = [read_image(files[i], size, resize, smallest=smallest) for i in rows]
    return torch.from_numpy(np.stack(images) if images else np.empty((0, 3, size, size), np.uint8))


def preloaded(source: ImageSource) -> ImageSource:
    """The source with its images in memory if they are there and fit into 2 GiB, else as it is
    (decoded whenever they are read). Files that cannot be decoded are named and left out.

    Raises:
        ValueError: none can be decoded.
    """
    size = source.image_size
    if source.listing_of is not None or len(source) * 3 * size * size > PRELOAD_BYTES:
        return source
    images = np.empty((len(source), 3, size, size), np.uint8)
    good: list[int] = []
    broken: list[str] = []
    for row in range(len(source)):
        found, image, bad = source.readable([row])
        if found:
            images[len(good)] = image[0].numpy()
        good += found
        broken += [entry.reason for entry in bad]
    say_broken(broken, len(source))
    return dataclasses.replace(source.subset(good), read=array_reader(images[: len(good)]), in_memory=True)


def say_broken(reasons: Sequence[str], count: int) -> None:
    """Name what of `count` files cannot be decoded.

    Raises:
        ValueError: all of them.
    """
    if reasons and len(reasons) == count:
        raise ValueError(f"none of the {count} files can be decoded, e.g. {reasons[0]}")
    if reasons:
        log.warning("left out %d of %d files that cannot be decoded:\n  %s", len(reasons), count, few(reasons))


def first_size(paths: Sequence[Path]) -> tuple[int, int]:
    """Width and height of the first file that is an image.

    Raises:
        ValueError: none is.
    """
    for path in paths:
        with contextlib.suppress(BrokenImageError):
            return image_size(path)
    raise ValueError(f"none of the {len(paths)} files under {paths[0].parent.parent} can be read as an image, e.g. {paths[0]}")
