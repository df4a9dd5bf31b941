"""Tiny ImageNet: 200 classes of ImageNet, 500 training and 50 labelled held-out images each, 64 x
64 pixels.

The published test part has no labels, so its val part is the test part here and validation images
are cut from training. Each part is decoded once into `<part>-<digest>.npy` beside the images (1.2
GB and 123 MB), which is memory-mapped from then on. The digest is over names and sizes of the
files: when they change, the array is made again. Processes that start together each
make it, and the last one wins.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from undegrade.utils.data.sources.image_files import Kinds, entries_of, found_at, keys_of, say_left_out
from undegrade.utils.data.sources.image_source import ImageSource, MappedReader, array_reader, train_validation_test
from undegrade.utils.data.sources.images import read_image
from undegrade.utils.files import replacing

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
        ValueError: wnids.txt, the folders and val_annotations.txt contradict each other, or an
            image cannot be decoded.
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
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


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
    return ImageSource(f"TinyImagenet/{name}", tuple(wnids), labels, keys, SIDE, _reader(folder, name, files))


def _reader(folder: Path, name: str, files: Sequence[_File]) -> Callable[[np.ndarray], Tensor]:
    """Over the array file of a part, made first where it is missing; over an array in memory where
    it cannot be written.
    """
    listing = "\n".join(f"{file.path} {file.size}" for file in files)
    path = folder / f"{name}-{hashlib.sha256(listing.encode()).hexdigest()[:16]}.npy"
    shape = (len(files), 3, SIDE, SIDE)
    if not path.is_file() or path.stat().st_size < np.prod(shape):
        try:
            _write(path, _decoded(folder, name, files), shape)
        except OSError as error:
            log.warning("cannot write %s (%s): the images are decoded into memory, at every start again", path, error)
            images = np.empty(shape, np.uint8)
            for i, image in enumerate(_decoded(folder, name, files)):
                images[i] = image
            return array_reader(images)
        for old in folder.glob(f"{name}-{'?' * 16}.npy"):
            if old != path:
                old.unlink(missing_ok=True)
    return MappedReader(path)


def _decoded(folder: Path, name: str, files: Sequence[_File]) -> Iterator[np.ndarray]:
    """uint8 [3, 64, 64] of each file; BrokenImageError, a ValueError, names one that cannot be
    decoded.
    """
    for file in tqdm(files, desc=f"decoding TinyImagenet/{name}", unit="img", dynamic_ncols=True, mininterval=1.0):
        yield read_image(folder / file.path, SIDE)


def _write(path: Path, images: Iterator[np.ndarray], shape: tuple[int, ...]) -> None:
    """Write a uint8 array of `shape` to the `.npy` file `path`, image by image; `path` never holds
    a part of it.
    """
    # Written in order, not through a memory map, where a full disk ends the process by a signal
    # instead of an OSError.
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for image in images:
            file.write(image.tobytes())
