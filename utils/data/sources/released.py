"""Corrupted test sets as they are released, and their keys and labels where the clean images are
not there.

CIFAR-10-C and CIFAR-100-C are `<corruption>.npy` beside `labels.npy`, ImageNet-C is a tree
`<corruption>/<severity>/<wnid>/*`. A *listing* is an `ImageSource` that has all of the clean test
set but its images: views of the released images are paired with it.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from undegrade.utils.data.perturbations.registry import with_severities
from undegrade.utils.data.sources.image_source import ImageSource, array_source
from undegrade.utils.paths import escaped

log = logging.getLogger(__name__)

LABELS = "labels.npy"  # beside the published arrays

# what the arrays do not say themselves; labels number the classes in alphabetical order
_TEN = "airplane automobile bird cat deer dog frog horse ship truck"
_HUNDRED = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish "
    "forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle "
    "mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine "
    "possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar "
    "sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale "
    "willow_tree wolf woman worm"
)


class _Cifar(NamedTuple):
    classes: tuple[str, ...]
    rgb_mean: tuple[float, ...]  # of the training images
    rgb_std: tuple[float, ...]


CIFAR = {
    "CIFAR10": _Cifar(tuple(_TEN.split()), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR100": _Cifar(tuple(_HUNDRED.split()), (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def is_released(dataset: str, folder: Path) -> bool:
    """Whether `folder` holds the corrupted test images of a data set, so that keys and labels can
    be taken from it.

    For Imagenet that is ImageNet-C, or `val/<class>/*` as ImageNet-W is kept.
    """
    if dataset == "Imagenet":
        return first_cell(folder) is not None or next(folder.glob("val/*/*"), None) is not None
    return dataset in CIFAR and _first_array(folder) is not None


def first_cell(root: Path) -> Path | None:
    """The first `<root>/<corruption>/<severity>` in sorted order that holds `<class>/*`; None where
    nothing is of this layout.
    """
    return next((cell for cell in sorted(root.glob("*/[1-5]")) if next(cell.glob("*/*"), None) is not None), None)


def _first_array(root: Path) -> str | None:
    """The first corruption, in sorted order, whose array lies beside `labels.npy`."""
    if not (root / LABELS).is_file():
        return None
    return next((name for name in sorted(with_severities()) if (root / f"{name}.npy").is_file()), None)


def dataset_of_arrays(root: Path) -> str:
    """Of which data set the labels in a folder of arrays are: CIFAR10, or CIFAR100 where they go
    beyond its ten classes.
    """
    return "CIFAR10" if int(class_numbers(root / LABELS).max(initial=0)) < 10 else "CIFAR100"


def class_numbers(path: Path) -> np.ndarray:
    """The labels in a `.npy` file, [N].

    Raises:
        FileNotFoundError: there is none.
        ValueError: no array file, or no line of whole numbers from 0.
    """
    found = np.array(stored_array(path))
    if found.ndim != 1 or found.dtype.kind not in "iu" or (found < 0).any():
        raise ValueError(f"{path}: expected a line of class numbers from 0, found {found.dtype} {found.shape}")
    return found


def stored_array(path: Path) -> np.ndarray:
    """The array in a `.npy` file, memory-mapped.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged, or holds no single array of numbers.
    """
    try:
        found = np.load(path, mmap_mode="r")
    except FileNotFoundError:
        raise
    except Exception as error:  # cut, of Python objects, or no array file at all: numpy raises almost any of them
        raise ValueError(f"{path} is no whole array file ({escaped(error)}): get it again") from error
    if not isinstance(found, np.ndarray):
        raise ValueError(f"{path} holds several arrays (.npz), one is needed: get the .npy file")
    return found


def array_cell(root: Path, corruption: str, severity: int, classes: Sequence[str]) -> ImageSource:
    """One cell of CIFAR-10-C / CIFAR-100-C as published: uint8 [5 N, 32, 32, 3], severity s at rows
    (s - 1) N; memory-mapped.

    Keys are `<class>/test_<row>`, as those of the clean test set.

    Raises:
        FileNotFoundError: no array of this corruption, or no labels.
        ValueError: another shape or type, another number of labels, labels beyond the classes.
    """
    path, labels_path = root / f"{corruption}.npy", root / LABELS
    for needed in (path, labels_path):
        if not needed.is_file():
            raise FileNotFoundError(
                f"{needed} does not exist; CIFAR-10-C is record 2535967 and CIFAR-100-C record 3555552 on zenodo.org: unpack "
                f"the archive so that {root}/<corruption>.npy and labels.npy lie there"
            )
    stored = stored_array(path)
    if stored.ndim != 4 or stored.shape[1:] != (32, 32, 3) or stored.dtype != np.uint8 or len(stored) % 5:
        raise ValueError(f"{path}: expected uint8 [5 x N, 32, 32, 3], found {stored.dtype} {stored.shape}")
    n, every_label = len(stored) // 5, class_numbers(labels_path)
    if every_label.shape != (5 * n,):
        raise ValueError(f"{labels_path}: expected [{5 * n}] labels as {path.name} has images, found {every_label.shape}")
    if int(every_label.max(initial=0)) >= len(classes):
        raise ValueError(f"{labels_path}: labels go up to {every_label.max()}, the data set has {len(classes)} classes")
    rows = slice((severity - 1) * n, severity * n)
    names = [f"test_{i:05d}" for i in range(n)]
    return array_source(
        f"{root.name}/{corruption}/{severity}", stored[rows].transpose(0, 3, 1, 2), every_label[rows], classes, names
    )


def array_listing(dataset: str, root: Path) -> ImageSource | None:
    """The test set of CIFAR10 or CIFAR100 without its images, from the arrays in `root`; None where
    there are none.

    Raises:
        ValueError: labels of the other of the two, or arrays that are damaged (see `array_cell`).
    """
    corruption = _first_array(root)
    if corruption is None:
        return None
    if (found := dataset_of_arrays(root)) != dataset:
        raise ValueError(f"{root / LABELS} has the labels of {found}, not of {dataset}: --dataset {found}, or another folder")
    known = CIFAR[dataset]
    cell = array_cell(root, corruption, 1, known.classes)
    source = dataclasses.replace(cell, name=f"{dataset}/test", rgb_mean=known.rgb_mean, rgb_std=known.rgb_std)
    return listing(source, root, f"{corruption}.npy")


def listing(source: ImageSource, root: Path, where: str) -> ImageSource:
    """`source` without its images, which are the corrupted ones at `where` below `root`."""
    log.info("no clean images of %s: keys and labels are those of the %d images in %s/%s", source.name, len(source), root, where)
    return dataclasses.replace(source, listing_of=root, read=functools.partial(refuse_to_read, root))


def refuse_to_read(root: Path, rows: np.ndarray | None = None) -> NoReturn:
    """Raise the ValueError of who asks a listing for images."""
    raise ValueError(
        f"{root} holds corrupted images only: name corruptions and the view that shows them (test.py --view {root}, "
        f"test_ensemble.py --data_prefix1 {root}, or `view` of a member), or point data.root at the clean data set"
    )
