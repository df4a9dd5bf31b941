"""Image folders as data sets: `<root>/<class>/*`, `<root>/<split>/<class>/*`, or any images below a folder."""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from utils.data.image_source import (
    TEST_SHARE,
    VALIDATION_SHARE,
    ImageSource,
    array_reader,
    concatenated,
    cut,
    one_split,
    train_validation_test,
)
from utils.data.images import IMAGE_SUFFIXES, BrokenImageError, list_images, read_image

log = logging.getLogger(__name__)

PRELOAD_BYTES = 2 << 30  # folders that fit are decoded once and kept in memory


def image_folder(
    root: Path, split: str, image_size: int | None, resize: int | None = None, classes: Sequence[str] | None = None
) -> ImageSource:
    """`<root>/<split>/<class>/*` as it is, or `<root>/<class>/*` cut into train, validation and test by a fixed draw.

    The split trainval is all but the test part; behind the training images come those of a validation folder. With `classes` (see
    `folder_source`) a folder that has a held-out part only is a test set; it has no training images for the channel statistics.
    """
    aliases = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}
    folders = {s: next((root / a for a in names if (root / a).is_dir()), None) for s, names in aliases.items()}
    name = root.resolve().name
    if folders["train"] is None:
        below = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        if below and set(below) <= {alias for names in aliases.values() for alias in names}:
            held_out = folders["test"] or folders["validation"]
            if classes is None or split != "test" or held_out is None:
                raise ValueError(
                    f"{root} holds {', '.join(below)} but no train folder: add {root}/train/<class>/*, or, to evaluate only, name "
                    "the classes (data.classes)"
                )
            return dataclasses.replace(folder_source(held_out, image_size, name, classes, resize), name=f"{name}/test")
        source = folder_source(root, image_size, name, classes, resize)
        test, validation, train = cut(source, [TEST_SHARE, VALIDATION_SHARE * (1 - TEST_SHARE)], name)
        trainval = cut(source, [TEST_SHARE], name)[1]  # one draw for both: the test parts are the same
        return one_split({"train": train, "validation": validation, "test": test, "trainval": trainval}, split, name)
    train = folder_source(folders["train"], image_size, name, classes, resize)
    size, order = train.image_size, train.classes
    given = {s: folder_source(f, size, name, order, resize) for s, f in folders.items() if f is not None and s != "train"}
    if len(given) == 2:
        return one_split({"train": train, "trainval": concatenated(train, given["validation"], "validation"), **given}, split, name)
    # a lone held-out part is the test part
    test, rest = (*given.values(), train) if given else cut(train, [TEST_SHARE], f"{name}/test")
    return train_validation_test(rest, test, split, name)


def folder_source(
    folder: Path, image_size: int | None, name: str, classes: Sequence[str] | None = None, resize: int | None = None
) -> ImageSource:
    """A source over `<folder>/<class>/*`.

    Sets that fit into 2 GiB of memory are decoded at once; files that cannot be decoded are listed by name, counted and left out.
    Larger sets are decoded as they are read, and a broken file raises then.

    Args:
        folder: holds one folder a class.
        image_size: side in pixels (default: the shorter side of the first readable image).
        name: for messages.
        classes: class order to use (default: the sorted folder names).
        resize: see `ImageSource`.

    Raises:
        ValueError: no images, images outside a class folder only, one class only, or a class that is not in `classes`.
    """
    paths = [p for p in list_images(folder) if len(p.relative_to(folder).parts) >= 2]
    if not paths:
        raise ValueError(f"no images under {folder}: expected {folder}/<class>/<name> with a suffix such as .png, .jpg, .jpeg")
    found = sorted({p.relative_to(folder).parts[0] for p in paths})
    if classes is None and len(found) < 2:
        raise ValueError(f"{folder} holds one class folder only, {found[0]!r}: at least 2 are needed, {folder}/<class>/<name>")
    order = {c: label for label, c in enumerate(found if classes is None else classes)}
    unknown = [c for c in found if c not in order]
    if unknown:
        raise ValueError(
            f"{folder} has class folders {unknown[:5]} that are not among the classes of the training part or of data.classes "
            f"({list(order)[:10]})"
        )
    size = image_size or min(first_size(paths))
    if len(paths) * 3 * size * size > PRELOAD_BYTES:
        source = plain_source(folder, size, name, paths, resize)
    else:
        paths, images = _decode_all(paths, size, resize)
        source = dataclasses.replace(plain_source(folder, size, name, paths, resize), read=array_reader(images))
    labels = [order[p.relative_to(folder).parts[0]] for p in paths]
    return dataclasses.replace(source, classes=tuple(order), labels=torch.tensor(labels))


def plain_source(
    folder: Path, image_size: int, name: str, paths: Sequence[Path] | None = None, resize: int | None = None
) -> ImageSource:
    """Every image below `folder` (or `paths` of it), unlabelled, decoded as it is read; keys are relative paths without suffix.

    Raises:
        FileNotFoundError, ValueError: the folder does not exist, or holds no image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"image folder {folder} does not exist")
    files = list(list_images(folder) if paths is None else paths)
    if not files:
        raise ValueError(f"no images under {folder} (by suffix: {', '.join(IMAGE_SUFFIXES)})")
    read = functools.partial(read_files, files, image_size, resize)
    keys = _unique_names([p.relative_to(folder) for p in files])
    return ImageSource(name, (), torch.full((len(files),), -1), keys, image_size, read, resize=resize)


def read_files(files: Sequence[str | Path], size: int, resize: int | None, rows: np.ndarray, *, smallest: int = 0) -> torch.Tensor:
    """uint8 [B, 3, size, size] of the files at `rows`; see `read_image`."""
    images = [read_image(files[i], size, resize, smallest=smallest) for i in rows]
    return torch.from_numpy(np.stack(images) if images else np.empty((0, 3, size, size), np.uint8))


def first_size(paths: Sequence[Path]) -> tuple[int, int]:
    """Width and height of the first file that is an image.

    Raises:
        ValueError: none is.
    """
    for path in paths:
        try:
            with Image.open(path) as image:
                return image.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue
    raise ValueError(f"none of the {len(paths)} files under {paths[0].parent.parent} can be read as an image, e.g. {paths[0]}")


def _decode_all(paths: list[Path], size: int, resize: int | None) -> tuple[list[Path], np.ndarray]:
    good, arrays, broken = [], [], []
    for path in paths:
        try:
            arrays.append(read_image(path, size, resize))
            good.append(path)
        except BrokenImageError as error:
            broken.append(str(error))
    if broken:
        log.warning("left out %d of %d files that cannot be decoded:\n  %s", len(broken), len(paths), "\n  ".join(broken[:20]))
    if not good:
        raise ValueError(f"none of the {len(paths)} files can be decoded, e.g. {broken[0]}")
    return good, np.stack(arrays)


def _unique_names(relative: Sequence[Path]) -> list[str]:
    """Paths without suffix; with it where two files differ by the suffix alone."""
    count = collections.Counter(p.with_suffix("") for p in relative)
    return [(p if count[p.with_suffix("")] > 1 else p.with_suffix("")).as_posix() for p in relative]
