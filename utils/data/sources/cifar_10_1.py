"""CIFAR-10.1: further images of CIFAR-10's classes, collected years later as CIFAR-10 was, to test
its networks on (Recht, Roelofs, Schmidt and Shankar, arXiv:1806.00451).

Two versions are released: v6 with 2,000 images, as many of each class, which its authors recommend,
and v4 with 2,021.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from undegrade.utils.data.sources.image_files import found_at
from undegrade.utils.data.sources.image_source import ImageSource, array_source
from undegrade.utils.data.sources.released import CIFAR, class_numbers, stored_array

_FOLDERS = ("CIFAR-10.1/datasets", "CIFAR-10.1", ".")  # below the root; the first is that of the repository
_URL = "https://github.com/modestyachts/CIFAR-10.1"


def _cifar_10_1(name: str, version: str, split: str, root: Path) -> ImageSource:
    """`cifar10.1_<version>_data.npy` beside `cifar10.1_<version>_labels.npy`; classes are those of
    CIFAR10, keys `<class>/<version>_<row>`.

    Raises:
        FileNotFoundError: one of the two is not there.
        ValueError: another split than test; arrays of another shape or type, or labels beyond the
            ten classes.
    """
    if split != "test":
        raise ValueError(
            f"{name} has a test part only, there is no {split} part: train and tune on CIFAR10, and ask for data.split test here"
        )
    data, labels = (f"cifar10.1_{version}_{what}.npy" for what in ("data", "labels"))
    folder = next((root / f for f in _FOLDERS if (root / f / data).is_file() and (root / f / labels).is_file()), None)
    if folder is None:
        raise FileNotFoundError(
            f"{name}: {data} and {labels} are not in {', '.join(_FOLDERS)} below {root.resolve()}, "
            f"found: {found_at(root / _FOLDERS[0])}; get them from the folder datasets of {_URL}, or point data.root at them"
        )
    images, numbers, known = stored_array(folder / data), class_numbers(folder / labels), CIFAR["CIFAR10"]
    if images.ndim != 4 or images.shape[1:] != (32, 32, 3) or images.dtype != np.uint8:
        raise ValueError(f"{folder / data}: expected uint8 [N, 32, 32, 3], found {images.dtype} {images.shape}: get it again")
    if len(numbers) != len(images) or int(numbers.max(initial=0)) >= len(known.classes):
        raise ValueError(
            f"{folder / labels}: expected {len(images)} numbers below {len(known.classes)}, one an image of {data}, found "
            f"{len(numbers)} up to {numbers.max(initial=0)}: get both again"
        )
    names = [f"{version}_{row:04d}" for row in range(len(images))]
    source = array_source(f"{name}/test", images.transpose(0, 3, 1, 2), numbers, known.classes, names)
    return dataclasses.replace(source, rgb_mean=known.rgb_mean, rgb_std=known.rgb_std)


CIFAR_10_1: dict[str, Callable[..., ImageSource]] = {
    "CIFAR10.1": functools.partial(_cifar_10_1, "CIFAR10.1", "v6"),
    "CIFAR10.1-v4": functools.partial(_cifar_10_1, "CIFAR10.1-v4", "v4"),
}
