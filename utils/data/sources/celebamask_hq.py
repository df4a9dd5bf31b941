"""CelebAMask-HQ (Lee et al. 2020): 30,000 faces of 1024 x 1024 pixels, each part of a face a mask
of 512 x 512.

`<root>/CelebAMask-HQ` as its archive unpacks: `CelebA-HQ-img/<i>.jpg` and
`CelebAMask-HQ-mask-anno/<i // 2000>/<00000>_<part>.png`. The mask of an image is put together from
those of its parts in the order of `CLASSES`, later ones over earlier ones, when it is read.

The parts of the data set are those of CelebA, 24,183 training, 2,993 validation and 2,824 test
images, where both lists are there: `CelebA-HQ-to-CelebA-mapping.txt`, which the archive has, and
CelebA's `list_eval_partition.txt`, to be put beside it. Without them a tenth each is for validation
and for testing, by a fixed draw.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from undegrade.utils.data.sources.folders import plain_source
from undegrade.utils.data.sources.image_files import found_at
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.sources.images import opened
from undegrade.utils.data.sources.splits import cut, one_split
from undegrade.utils.data.targets import IGNORED, Mask
from undegrade.utils.files import read_lines

log = logging.getLogger(__name__)

FOLDER, IMAGES, MASKS = "CelebAMask-HQ", "CelebA-HQ-img", "CelebAMask-HQ-mask-anno"
MAPPING, PARTITION = "CelebA-HQ-to-CelebA-mapping.txt", "list_eval_partition.txt"
SIDE = 512
CLASSES = (
    "background", "skin", "l_brow", "r_brow", "l_eye", "r_eye", "eye_g", "l_ear", "r_ear", "ear_r", "nose", "mouth", "u_lip",
    "l_lip", "neck", "neck_l", "cloth", "hair", "hat",
)  # fmt: skip
SWAP = tuple((CLASSES.index(f"l_{part}"), CLASSES.index(f"r_{part}")) for part in ("brow", "eye", "ear"))
_SHARE = 0.1  # for validation and for testing, without the lists


def celebamask_hq(split: str, root: Path, image_size: int = SIDE) -> ImageSource:
    """One split of `<root>/CelebAMask-HQ`, `image_size` pixels a side; keys are `face/<i>`.

    Raises:
        FileNotFoundError: a folder of the published layout is missing.
        ValueError: a mask of a part that is none of the 18, images without any mask, a list that
            lacks an image.
    """
    folder = root.resolve() / FOLDER
    for place in (folder / IMAGES, folder / MASKS):
        if not place.is_dir():
            raise FileNotFoundError(
                f"CelebAMaskHQ: {place} not found; expected {folder}/ with {IMAGES}/<i>.jpg and {MASKS}/<0..14>/<00000>_<part>.png,"
                f" found: {found_at(place)}; unpack CelebAMask-HQ.zip under {folder.parent}, or point data.root at the folder that "
                f"holds {FOLDER}"
            )
    paths = sorted((folder / IMAGES).glob("*.jpg"), key=lambda path: (len(path.stem), path.stem))
    source = plain_source(folder / IMAGES, image_size, "CelebAMaskHQ", paths)
    masks = _masks(folder / MASKS)
    numbers = [path.stem.zfill(5) for path in paths]
    without = [path.name for path, number in zip(paths, numbers, strict=True) if number not in masks]
    if without:
        raise ValueError(
            f"{folder / MASKS} has no mask of {len(without)} of {len(paths)} images, e.g. {without[0]}: unpack the archive again"
        )
    read = functools.partial(read_masks, [masks[number] for number in numbers], image_size)
    faces = dataclasses.replace(
        source, classes=("face",), labels=torch.zeros(len(paths), dtype=torch.int64), keys=[f"face/{key}" for key in source.keys],
        target=Mask(SWAP, IGNORED, CLASSES), read_target=read,
    )  # fmt: skip
    return one_split(_parts(folder, faces), split, "CelebAMaskHQ")


def _masks(folder: Path) -> dict[str, dict[int, Path]]:
    """Files of the masks of each image, class by class."""
    found: dict[str, dict[int, Path]] = {}
    known = {part: label for label, part in enumerate(CLASSES) if label}
    for place, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".png") and not name.startswith("."):
                number, _, part = name.removesuffix(".png").partition("_")
                if part not in known:
                    raise ValueError(
                        f"{place}/{name}: {part!r} is no part of a face, allowed: {', '.join(known)}; rename or remove it"
                    )
                found.setdefault(number, {})[known[part]] = Path(place, name)
    return found


def read_masks(files: Sequence[dict[int, Path]], size: int, rows: np.ndarray) -> Tensor:
    """int64 [B, size, size] of the images at `rows`; each pixel has the class of the nearest one.

    Args:
        files: of each image, a mask for each class that it has.
        size: side in pixels.
        rows: of the images.

    Raises:
        BrokenImageError: a file that cannot be decoded.
        ValueError: masks of one image differ in size.
    """
    masks = [np.asarray(Image.fromarray(label_map(files[row])).resize((size, size), Image.Resampling.NEAREST)) for row in rows]
    return torch.from_numpy(np.stack(masks).astype(np.int64)) if masks else torch.empty((0, size, size), dtype=torch.int64)


def label_map(files: dict[int, Path]) -> np.ndarray:
    """uint8 [H, W]: the classes of one image, from a mask for each class that it has (a pixel is of
    it where its grey is above 127).
    """
    classes: np.ndarray | None = None
    for label, path in sorted(files.items()):
        with opened(path) as image:
            inside = np.asarray(image.convert("L")) > 127
        if classes is None:
            classes = np.zeros(inside.shape, np.uint8)
        if inside.shape != classes.shape:
            raise ValueError(
                f"{path} has {inside.shape[1]} x {inside.shape[0]} pixels, the masks before it of the same image have "
                f"{classes.shape[1]} x {classes.shape[0]}: masks of one image must be of one size, unpack the archive again"
            )
        classes[inside] = label
    assert classes is not None
    return classes


def _parts(folder: Path, source: ImageSource) -> dict[str, ImageSource]:
    """Train, validation, test and trainval."""
    if (folder / MAPPING).is_file() and (folder / PARTITION).is_file():
        kinds = _partition(folder, source)
        rows = {name: np.flatnonzero(kinds == kind) for kind, name in enumerate(("train", "validation", "test"))}
        empty = [name for name, members in rows.items() if not len(members)]
        if empty:
            raise ValueError(f"{folder / PARTITION} has no image of {folder / IMAGES} for {empty[0]}: complete the images")
        return {name: source.subset(members) for name, members in {**rows, "trainval": np.flatnonzero(kinds < 2)}.items()}
    log.info("%s: %s and %s are not both there, a fixed draw cuts it: 8 : 1 : 1", folder, MAPPING, PARTITION)
    test, validation, train = cut(source, [_SHARE, _SHARE], "CelebAMaskHQ")
    trainval = cut(source, [_SHARE], "CelebAMaskHQ")[1]  # one draw for both: the test parts are the same
    return {"train": train, "validation": validation, "test": test, "trainval": trainval}


def _partition(folder: Path, source: ImageSource) -> np.ndarray:
    """0 (train), 1 (validation) or 2 (test) for each image, as CelebA has it."""
    kinds = {}
    for line in read_lines(folder / PARTITION):
        name, kind = [*line.split(), "", ""][:2]
        if kind not in ("0", "1", "2"):
            raise ValueError(
                f"{folder / PARTITION}: line {line!r} is not of the form `000001.jpg 0`, 0, 1 or 2: take CelebA's file"
            )
        kinds[name] = int(kind)
    originals = {words[0]: words[-1] for line in read_lines(folder / MAPPING)[1:] if (words := line.split())}
    numbers = [key.partition("/")[2] for key in source.keys]
    unknown = [number for number in numbers if originals.get(number) not in kinds]
    if unknown:
        raise ValueError(
            f"{folder / MAPPING} and {PARTITION} do not say of which part {unknown[0]}.jpg is ({len(unknown)} such images): take "
            "both files as published, or remove them for a fixed draw"
        )
    return np.array([kinds[originals[number]] for number in numbers])
