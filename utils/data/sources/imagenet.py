"""ImageNet (ILSVRC 2012): photographs of any size, decoded as they are read; and the class lists
that number the labels.

A label is the place of the class in a list that is always complete (by default the 1,000 WordNet
ids in sorted order, in which published networks number their outputs). A folder that holds some of
the classes only therefore keeps their numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from undegrade.utils.data.sources.folders import read_files
from undegrade.utils.data.sources.image_files import Kinds, entries_of, found_at, keys_of, say_left_out
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.sources.images import Resize
from undegrade.utils.data.sources.released import first_cell, listing
from undegrade.utils.data.sources.splits import VALIDATION_SHARE, cut
from undegrade.utils.files import read_lines

FOLDERS = ("imagenet", "ILSVRC/Data/CLS-LOC", "ILSVRC", ".")  # below the root, the first that has a train or val folder
IMAGENET_1K = "imagenet-1k"
IMAGE_SIZE, RESIZE = 224, 256  # the usual centre, and the shorter side that it is cut from
_RESIZE = Resize(RESIZE)
RGB_MEAN, RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_LABEL_FILES = ("val_labels.txt", "LOC_val_solution.csv")
_DEVKIT_LABELS = "ILSVRC2012_validation_ground_truth.txt"


def imagenet(
    split: str,
    root: Path,
    image_size: int = IMAGE_SIZE,
    resize: Resize | None = _RESIZE,
    classes: Sequence[str] | None = None,
) -> ImageSource:
    """One split of `<root>/{imagenet,ILSVRC,.}`; keys are `<class>/<file name without suffix>`.

    The val folder is the test part; validation images are cut from train. Labels of val come from
    class folders, or for a flat folder from val_labels.txt (`<file> <class or its number>` a line)
    or LOC_val_solution.csv beside it. Without val folder the test part of a root that is
    ImageNet-C, `<corruption>/<severity>/<wnid>/*`, is a listing (utils/data/sources/released.py).

    Args:
        split: train | validation | test | trainval.
        root: holds the data set's folder, or is it.
        image_size: side in pixels.
        resize: before the centre of `image_size` is cut (None: the whole shorter side is brought to
            it, as diffusion models want it).
        classes: the class list (default: `<folder>/classes.txt`, else the 1,000 classes of the
            challenge).

    Raises:
        FileNotFoundError: no train or val folder where it is needed, or a flat val folder without
            labels.
        ValueError: a class outside the list, files without label, or labels in the order of the
            challenge's development kit.
    """
    folder = next((root / f for f in FOLDERS if any((root / f / part).is_dir() for part in ("train", "val"))), None)
    part = "val" if split == "test" else "train"
    images = folder / part if folder is not None and (folder / part).is_dir() else None
    cell = first_cell(root) if images is None and split == "test" else None
    if cell is not None:
        folder, images = root, cell
    if folder is None or images is None:
        raise FileNotFoundError(
            f"Imagenet: no {part} folder under {root.resolve()}; expected {part}/<wnid>/*.JPEG in one of "
            f"{', '.join(FOLDERS)}, found: {found_at(folder or root)}; unpack ILSVRC 2012 there, or point data.root at it"
            + (", or at ImageNet-C, <corruption>/<severity>/<wnid>/*" if split == "test" else "")
        )
    own_list = folder / "classes.txt"
    order = tuple(classes) if classes is not None else read_classes(str(own_list) if own_list.is_file() else IMAGENET_1K)
    files, labels = labelled_files(images, (images, folder, root), {c: i for i, c in enumerate(order)})
    keys = keys_of([f"{order[label]}/{os.path.basename(file)}" for file, label in zip(files, labels, strict=True)])
    read = functools.partial(read_files, files, image_size, resize)
    source = ImageSource("Imagenet", order, torch.tensor(labels), keys, image_size, read, files, RGB_MEAN, RGB_STD, resize=resize)
    if split in ("train", "validation"):
        source = cut(source, [VALIDATION_SHARE], "Imagenet/validation")[split == "train"]
    source = dataclasses.replace(source, name=f"Imagenet/{split}")
    return source if cell is None else listing(source, root, str(cell.relative_to(root)))


def read_classes(text: str) -> tuple[str, ...]:
    """A class list: `imagenet-1k`, or a file with one class a line, or `<class> <number>` a line
    with all numbers from 0.

    Raises:
        FileNotFoundError: neither.
        ValueError: a class or number given twice, or numbers that leave gaps.
    """
    if text == IMAGENET_1K:
        from timm.data import ImageNetInfo  # here, since it takes seconds

        return tuple(ImageNetInfo(IMAGENET_1K).label_names())
    if not Path(text).is_file():
        raise FileNotFoundError(f"class list {text!r} is neither a file nor {IMAGENET_1K!r}")
    lines = read_lines(text)
    numbered = [re.fullmatch(r"(.+?)[\s,]+(\d+)", line) for line in lines]
    names = dict(enumerate(lines))
    if lines and all(numbered):
        names = {int(match[2]): match[1] for match in numbered if match}
    if not lines or sorted(names) != list(range(len(lines))) or len(set(names.values())) < len(lines):
        raise ValueError(
            f"class list {text}: {len(lines)} lines with {len(set(names.values()))} classes; expected every class once, one a "
            "line, with the numbers 0, 1, ... behind all of them or behind none"
        )
    return tuple(names[label] for label in range(len(lines)))


def labelled_files(part: Path, places: Sequence[Path], numbers: dict[str, int]) -> tuple[list[str], list[int]]:
    """Files of a part, in the order of classes and names, and their labels.

    Args:
        part: folder of class folders, or of images.
        places: where the labels of images without class folders may lie.
        numbers: label of a class by the name of its folder.

    Raises:
        FileNotFoundError: no images, or no labels.
        ValueError: folders that are no classes, images without label.
    """
    left_out = Kinds()
    here = list(entries_of(str(part), left_out))
    folders = sorted(entry.name for entry in here if entry.is_dir())
    unknown = [name for name in folders if name not in numbers]
    if unknown:
        raise ValueError(
            f"{part} has class folders that are not in the class list ({len(numbers)} classes, {', '.join(list(numbers)[:3])}, "
            f"...): {', '.join(unknown[:5])}; name all classes with data.classes"
        )
    if folders:
        left_out["outside the class folders"] += len(here) - len(folders)
        pairs = [(file, numbers[name]) for name in folders for file in _images(part / name, left_out)]
    else:
        labels = _flat_labels(part, places, numbers)
        files = sorted(entry.path for entry in here)
        missing = [file for file in files if Path(file).stem not in labels]
        if missing:
            raise ValueError(f"{len(missing)} of {len(files)} images in {part} have no label, e.g. {', '.join(missing[:3])}")
        pairs = sorted(((file, labels[Path(file).stem]) for file in files), key=lambda pair: (pair[1], pair[0]))
    say_left_out(part, +left_out)
    if not pairs:
        raise FileNotFoundError(f"no images under {part}; expected {part}/<class>/*")
    return [file for file, _ in pairs], [label for _, label in pairs]


def _images(folder: Path, left_out: Kinds) -> list[str]:
    """Paths of the images in a folder, sorted (text: a million Path objects take seconds and
    gigabytes).
    """
    found = list(entries_of(str(folder), left_out))
    left_out["folders in a class folder"] += sum(entry.is_dir() for entry in found)
    return sorted(entry.path for entry in found if entry.is_file())


def _flat_labels(part: Path, places: Sequence[Path], numbers: dict[str, int]) -> dict[str, int]:
    """Label by file name without suffix."""
    found = next((place / name for place in places for name in _LABEL_FILES if (place / name).is_file()), None)
    if found is None:
        devkit = next((place / _DEVKIT_LABELS for place in places if (place / _DEVKIT_LABELS).is_file()), None)
        mend = f"write {part.parent / _LABEL_FILES[0]} with `<file> <wnid>` a line, or sort the images into {part}/<wnid>/ folders"
        if devkit is not None:
            raise ValueError(
                f"{devkit} numbers the classes in the order of the development kit, which is not the sorted order of their wnids "
                f"that networks use: {mend}"
            )
        raise FileNotFoundError(f"{part} has no class folders, and no labels lie beside it: {mend}")
    labels = {}
    for line in read_lines(found):
        name, which = [*re.split(r"[,\s]+", line.strip()), "", ""][:2]  # behind them LOC_val_solution.csv has boxes
        if not name or which == "PredictionString":
            continue
        label = numbers.get(which, int(which) if which.isdecimal() else -1)
        if not 0 <= label < len(numbers):
            raise ValueError(f"{found}: {name} has the class {which!r}, which is not in the class list of {len(numbers)} classes")
        labels[Path(name).stem] = label
    return labels
