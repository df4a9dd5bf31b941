"""Test sets for networks of ImageNet's 1,000 classes: photographs that were taken later, sketches,
renditions, and photographs that networks get wrong.

- ImageNet-V2 (Recht, Roelofs, Schmidt and Shankar, ICML 2019, arXiv:1902.10811), the matched
  frequency set, whose folders are called by the numbers of the classes;
- ImageNet-Sketch (Wang, Ge, Lipton and Xing, NeurIPS 2019, arXiv:1905.13549);
- ImageNet-R (Hendrycks et al., ICCV 2021, arXiv:2006.16241) and ImageNet-A (Hendrycks, Zhao,
  Basart, Steinhardt and Song, CVPR 2021, arXiv:1907.07174), with 200 of the classes each. A network
  answers with these alone, as in the published evaluations. Which they are is read off the folders,
  which are called by WordNet ids: no list of numbers can be in another order than the images.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from undegrade.utils.data.sources.folders import read_files
from undegrade.utils.data.sources.image_files import found_at, keys_of
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.sources.imagenet import IMAGENET_1K, RGB_MEAN, RGB_STD, labelled_files, read_classes
from undegrade.utils.data.sources.images import Resize

log = logging.getLogger(__name__)

_WNID, _NUMBER = r"n\d{8}", r"0|[1-9]\d{0,2}"


class _Variant(NamedTuple):
    """A test set as its archive unpacks.

    Attributes:
        folder: that holds the class folders.
        layout: of the files in it, for messages.
        url: where the archive is.
        named: pattern of the class folders.
        chosen: how many of the classes it has, where networks choose among these only.
    """

    folder: str
    layout: str
    url: str
    named: str = _WNID
    chosen: int | None = None


_HENDRYCKS = "https://people.eecs.berkeley.edu/~hendrycks"
_VARIANTS = {
    "ImagenetR": _Variant("imagenet-r", "<wnid>/*.jpg", f"{_HENDRYCKS}/imagenet-r.tar", chosen=200),
    "ImagenetA": _Variant("imagenet-a", "<wnid>/*.jpg", f"{_HENDRYCKS}/imagenet-a.tar", chosen=200),
    "ImagenetV2": _Variant(
        "imagenetv2-matched-frequency-format-val", "<0..999>/*.jpeg", "https://huggingface.co/datasets/vaishaal/ImageNetV2", _NUMBER
    ),
    "ImagenetSketch": _Variant("sketch", "<wnid>/*.JPEG", "https://github.com/HaohanWang/ImageNet-Sketch"),
}


def _variant(
    name: str, split: str, root: Path, image_size: int, resize: Resize | None, classes: Sequence[str] | None = None
) -> ImageSource:
    """The test images of a data set of `_VARIANTS`, in `<root>/<its folder>` or in `root` itself;
    keys are `<wnid>/<file name without suffix>`.

    Args:
        name: of the data set.
        split: test.
        root: holds the data set's folder, or is it.
        image_size: side in pixels.
        resize: before the centre of `image_size` is cut; see `imagenet`.
        classes: WordNet ids in the order of the networks' outputs (default: sorted, as published
            networks have them).

    Returns:
        ImagenetR and ImagenetA have as `classes` those whose folders are there, in the order of the
        networks' outputs, and all of these as `among`; the others have all of the classes.

    Raises:
        FileNotFoundError: no class folders.
        ValueError: another split; a folder that is no class of the list.
    """
    row = _VARIANTS[name]
    if split != "test":
        raise ValueError(
            f"{name} has a test part only, there is no {split} part: train and tune on Imagenet, and ask for data.split test here"
        )
    folder = next((place for place in (root / row.folder, root) if _has_classes(place, row.named)), None)
    if folder is None:
        raise FileNotFoundError(
            f"{name}: no class folders under {root.resolve()}; expected {row.folder}/{row.layout}, "
            f"found: {found_at(root / row.folder)}; get {row.url} and unpack it there, or point data.root at it"
        )
    order = tuple(classes) if classes is not None else read_classes(IMAGENET_1K)
    numbers = {wnid: label for label, wnid in enumerate(order)}
    if row.named == _NUMBER:
        numbers = {str(place): numbers[wnid] for place, wnid in enumerate(read_classes(IMAGENET_1K)) if wnid in numbers}
    found = sorted(zip(*labelled_files(folder, (folder,), numbers), strict=True), key=lambda pair: pair[1])
    files, labels = [file for file, _ in found], [label for _, label in found]
    keys = keys_of([f"{order[label]}/{os.path.basename(file)}" for file, label in found])
    read = functools.partial(read_files, files, image_size, resize)
    every = ImageSource(
        f"{name}/test", order, torch.tensor(labels), keys, image_size, read, files, RGB_MEAN, RGB_STD, resize=resize
    )
    return every if row.chosen is None else _among_those_there(every, row.chosen, folder)


VARIANTS: dict[str, Callable[..., ImageSource]] = {name: functools.partial(_variant, name) for name in _VARIANTS}
"""Each is called with (split, root, image_size, resize, classes)."""


def _has_classes(folder: Path, named: str) -> bool:
    return folder.is_dir() and any(re.fullmatch(named, entry.name) and entry.is_dir() for entry in folder.iterdir())


def _among_those_there(source: ImageSource, published: int, folder: Path) -> ImageSource:
    """The source whose classes are those of its images."""
    there, labels = source.labels.unique(return_inverse=True)
    if len(there) != published:
        log.warning(
            "%s: %s has %d classes, %d are published: networks choose among those that are there", source.name, folder, len(there),
            published,
        )  # fmt: skip
    chosen = tuple(source.classes[number] for number in there.tolist())
    return dataclasses.replace(source, classes=chosen, labels=labels, among=source.classes)
