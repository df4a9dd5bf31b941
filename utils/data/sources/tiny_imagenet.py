"""Tiny ImageNet: 200 classes of ImageNet, 500 training and 50 labelled held-out images each, 64 x
64 pixels.

The published test part has no labels, so its val part is the test part here and validation images
are cut from training. Each part is decoded once into `<part>-<digest>.npy` beside the images (1.2
GB and 123 MB), which is memory-mapped from then on, and images that cannot be decoded are noted in
`<part>-<digest>.json`. The digest is over names and sizes of the files: when they change, the array
is made again. Processes that start together each make it, and the last one wins.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from undegrade.utils.data.sources.folders import say_broken
from undegrade.utils.data.sources.image_files import Kinds, entries_of, found_at, keys_of, say_left_out
from undegrade.utils.data.sources.image_source import ImageSource, MappedReader, array_reader
from undegrade.utils.data.sources.images import BrokenImageError, read_image
from undegrade.utils.data.sources.splits import train_validation_test
from undegrade.utils.files import read_lines, read_texts, replacing, write_atomic
from undegrade.utils.progress import progress_bar

log = logging.getLogger(__name__)

FOLDER = "tiny-imagenet-200"
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
SUFFIX = ".JPEG"
SIDE = 64


class _File(NamedTuple):
    path: str  # relative to the data set's folder (text: 110,000 Path objects take a second)
    size: int  # bytes
    label: int


def tiny_imagenet(split: str, root: Path) -> ImageSource:
    """One split of `<root>/tiny-imagenet-200`; a label is a line of wnids.txt, a key `<wnid>/<file
    name without suffix>`.

    Raises:
        FileNotFoundError: a file or folder of the published layout is missing.
        ValueError: wnids.txt, the folders and val_annotations.txt contradict each other, or none of
            the images can be decoded.
    """
    folder = root.resolve() / FOLDER
    wnids = _lines(folder, folder / "wnids.txt")
    if not wnids or len(set(wnids)) < len(wnids):
        raise ValueError(f"{folder / 'wnids.txt'}: expected one class a line, each once; found {len(wnids)} lines{_again(folder)}")
    train, val = _train_files(folder, wnids), _val_files(folder, wnids)
    return train_validation_test(_part(folder, "train", wnids, train), _part(folder, "val", wnids, val), split, "TinyImagenet")


def _again(folder: Path) -> str:
    return f"; unpack {URL} under {folder.parent} again"


def _missing(folder: Path, what: Path) -> FileNotFoundError:
    return FileNotFoundError(
        f"TinyImagenet: {what} not found; expected {folder}/ with wnids.txt, train/<wnid>/images/*.JPEG, val/images/*.JPEG and "
        f"val/val_annotations.txt, found: {found_at(what.parent)}; get {URL} and unpack it under {folder.parent}, or point "
        f"data.root at the folder that holds {FOLDER}"
    )


def _lines(folder: Path, path: Path) -> list[str]:
    if not path.is_file():
        raise _missing(folder, path)
    return read_lines(path)


def _images(folder: Path, place: Path, left_out: Kinds) -> list[tuple[str, int]]:
    """Sorted names and sizes of the images that lie in `place`."""
    found = []
    if place.is_dir():
        found = [(e.name, e.stat().st_size) for e in entries_of(str(place), left_out) if not e.is_dir()]
    if not found:
        raise _missing(folder, place / f"*{SUFFIX}")
    return sorted(found)


def _train_files(folder: Path, wnids: Sequence[str]) -> list[_File]:
    train = folder / "train"
    if train.is_dir():
        unknown = sorted(p.name for p in train.iterdir() if p.is_dir() and p.name not in wnids and not p.name.startswith("."))
        if unknown:
            raise ValueError(f"{train} holds folders that wnids.txt does not name: {', '.join(unknown[:5])}{_again(folder)}")
    files, left_out = [], Kinds()
    for label, wnid in enumerate(wnids):
        images = train / wnid / "images"
        place = images if images.is_dir() else images.parent  # some copies lack the level in between
        below = place.relative_to(folder).as_posix()
        files += [_File(f"{below}/{name}", size, label) for name, size in _images(folder, place, left_out)]
    say_left_out(train, left_out)
    return files


def _val_files(folder: Path, wnids: Sequence[str]) -> list[_File]:
    images, annotations = folder / "val" / "images", folder / "val" / "val_annotations.txt"
    labels = {}
    for line in _lines(folder, annotations):  # file name, wnid, box: x0 y0 x1 y1
        name, wnid = [*line.split(), "", ""][:2]
        if wnid not in wnids:
            raise ValueError(f"{annotations}: {name} has class {wnid!r}, which is not in wnids.txt{_again(folder)}")
        labels[name] = wnids.index(wnid)
    left_out = Kinds()
    sizes = dict(_images(folder, images, left_out))
    say_left_out(images, left_out)
    for names, what in (
        (labels.keys() - sizes.keys(), f"named in {annotations} are not in {images}"),
        (sizes.keys() - labels.keys(), f"in {images} are not named in {annotations}"),
    ):
        if names:
            raise ValueError(f"{len(names)} images {what}, e.g. {', '.join(sorted(names)[:3])}{_again(folder)}")
    return [_File(f"val/images/{name}", sizes[name], labels[name]) for name in sorted(sizes)]


def _part(folder: Path, name: str, wnids: Sequence[str], files: Sequence[_File]) -> ImageSource:
    labels = torch.tensor([file.label for file in files])
    keys = keys_of([f"{wnids[file.label]}/{file.path.rsplit('/', 1)[1]}" for file in files])
    read, broken = _reader(folder, name, files)
    source = ImageSource(f"TinyImagenet/{name}", tuple(wnids), labels, keys, SIDE, read)
    say_broken(list(broken.values()), len(source))
    return source.subset([row for row in range(len(source)) if row not in broken]) if broken else source


def _reader(folder: Path, name: str, files: Sequence[_File]) -> tuple[Callable[[np.ndarray], Tensor], dict[int, str]]:
    """`read` over the array file of a part, made first where it is missing; over an array in memory
    where it cannot be written. And what is wrong with the images that cannot be decoded, by their
    rows, which are black; `<part>-<digest>.json` has it beside the array.
    """
    listing = "\n".join(f"{file.path} {file.size}" for file in files).encode("utf-8", "surrogateescape")
    path = folder / f"{name}-{hashlib.sha256(listing).hexdigest()[:16]}.npy"
    noted, broken = path.with_suffix(".json"), dict[int, str]()
    shape = (len(files), 3, SIDE, SIDE)
    if path.is_file() and path.stat().st_size >= np.prod(shape):
        if noted.is_file():
            found = read_texts(noted, f"remove it and {path.name} beside it, and the images are decoded anew")
            broken = {row: found[str(row)] for row in range(len(files)) if str(row) in found}
        return MappedReader(path), broken
    try:
        _write(path, _decoded(folder, name, files, broken), shape, lambda: write_atomic(noted, json.dumps(broken)))
    except OSError as error:
        log.warning("cannot write %s (%s): the images are decoded into memory, at every start again", path, error)
        images = np.empty(shape, np.uint8)
        for i, image in enumerate(_decoded(folder, name, files, broken)):
            images[i] = image
        return array_reader(images), broken
    for old in folder.glob(f"{name}-{'?' * 16}.*"):
        if old.stem != path.stem:
            old.unlink(missing_ok=True)
    return MappedReader(path), broken


def _decoded(folder: Path, name: str, files: Sequence[_File], broken: dict[int, str]) -> Iterator[np.ndarray]:
    """uint8 [3, 64, 64] of each file; black where it cannot be decoded, which is noted in
    `broken`.
    """
    for row, file in enumerate(progress_bar(files, desc=f"decoding TinyImagenet/{name}", unit="img")):
        try:
            yield read_image(folder / file.path, SIDE)
        except BrokenImageError as error:
            broken[row] = str(error)
            yield np.zeros((3, SIDE, SIDE), np.uint8)


def _write(path: Path, images: Iterator[np.ndarray], shape: tuple[int, ...], note: Callable[[], None]) -> None:
    """Write a uint8 array of `shape` to the `.npy` file `path`, image by image; `path` never holds
    a part of it, and is there after `note` was called.
    """
    # Written in order, not through a memory map, where a full disk ends the process by a signal
    # instead of an OSError.
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for image in images:
                file.write(image.tobytes())
        note()
