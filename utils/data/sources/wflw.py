"""WFLW (Wu et al. 2018, "Look at boundary"): faces in 10,000 photographs with 98 points.

`<root>/WFLW` holds `WFLW_images/` and, in
`WFLW_annotations/list_98pt_rect_attr_train_test/`, `list_98pt_rect_attr_{train,test}.txt`, as
published.
A line is a face: 98 x 2 coordinates, the box (left, top, right, bottom), six attributes (pose,
expression, illumination, make-up, occlusion, blur; each 0 or 1) and the photograph's path.

An image is the square around the middle of the box whose side is 1.25 times the longer one of the
box, black beyond the photograph. A tenth of the training photographs, with all their faces, is held
out for validation; the published program chose its epoch by the test file.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from undegrade.utils.data.sources.image_files import found_at
from undegrade.utils.data.sources.image_source import ImageSource, array_reader
from undegrade.utils.data.sources.images import read_image
from undegrade.utils.data.sources.splits import VALIDATION_SHARE, one_split
from undegrade.utils.data.targets import Points
from undegrade.utils.files import read_lines
from undegrade.utils.seeding import numpy_generator

FOLDER, IMAGES = "WFLW", "WFLW_images"
LISTS = "WFLW_annotations/list_98pt_rect_attr_train_test"
COUNT, SIDE, PADDING = 98, 256, 1.25
SUBSETS = ("largepose", "expression", "illumination", "makeup", "occlusion", "blur")  # in the order of the attributes
_WORDS = 2 * COUNT + 4 + len(SUBSETS) + 1


def _swap() -> tuple[tuple[int, int], ...]:
    """Pairs of points that mirror each other: the contour of the face and, around the axis, brows,
    nostrils, eyes, mouth and pupils.
    """
    brows = [(33, 46), (34, 45), (35, 44), (36, 43), (37, 42), (38, 50), (39, 49), (40, 48), (41, 47)]
    eyes = [(60, 72), (61, 71), (62, 70), (63, 69), (64, 68), (65, 75), (66, 74), (67, 73), (96, 97)]
    outer_mouth = [(76, 82), (77, 81), (78, 80), (87, 83), (86, 84)]
    inner_mouth = [(88, 92), (89, 91), (95, 93)]
    contour = [(i, 32 - i) for i in range(16)]
    return (*contour, *brows, (55, 59), (56, 58), *eyes, *outer_mouth, *inner_mouth)


TARGET = Points(_swap(), tuple(f"{i}" for i in range(COUNT)), unit=(60, 72))


class _Face(NamedTuple):
    path: Path
    key: str
    window: tuple[int, int, int]  # left, top, side in the photograph's pixels
    points: np.ndarray  # float32 [98, 2], in the image
    attributes: tuple[bool, ...]


def wflw(split: str, root: Path, image_size: int = SIDE) -> ImageSource:
    """One split of `<root>/WFLW`, `image_size` pixels a side; keys are `face/<photograph>_<line>`.
    `groups` has the six subsets by their attributes.

    Raises:
        FileNotFoundError: a file or folder of the published layout is missing.
        ValueError: a line that is not of the form above.
    """
    folder = root.resolve() / FOLDER
    lists = {part: folder / LISTS / f"list_98pt_rect_attr_{part}.txt" for part in ("train", "test")}
    for place in (folder / IMAGES, *lists.values()):
        if not place.exists():
            raise FileNotFoundError(
                f"WFLW: {place} not found; expected {folder}/ with {IMAGES}/ and {LISTS}/list_98pt_rect_attr_train.txt and "
                f"..._test.txt, found: {found_at(place.parent)}; unpack WFLW_images.tar.gz and WFLW_annotations.tar.gz into "
                f"{folder}, or point data.root at the folder that holds {FOLDER}"
            )
    faces = {part: _faces(folder / IMAGES, path, image_size) for part, path in lists.items()}
    photographs = sorted({face.path for face in faces["train"]})
    order = numpy_generator("split", "WFLW/validation", len(photographs)).permutation(len(photographs))
    held_out = {photographs[i] for i in order[: max(1, round(VALIDATION_SHARE * len(photographs)))]}
    parts = {
        "train": [face for face in faces["train"] if face.path not in held_out],
        "validation": [face for face in faces["train"] if face.path in held_out],
        "test": faces["test"], "trainval": faces["train"],
    }  # fmt: skip
    return one_split({name: _source(members, image_size) for name, members in parts.items()}, split, "WFLW")


def _source(faces: Sequence[_Face], size: int) -> ImageSource:
    if not faces:
        raise ValueError("WFLW: the lists of faces name fewer than two training photographs or no test one: take them as published")
    files = [face.path for face in faces]
    attributes = torch.tensor([face.attributes for face in faces])
    return ImageSource(
        "WFLW", ("face",), torch.zeros(len(faces), dtype=torch.int64), [face.key for face in faces], size,
        functools.partial(_read, files, [face.window for face in faces], size), files,
        target=TARGET, read_target=array_reader(np.stack([face.points for face in faces])),
        groups={name: attributes[:, i] for i, name in enumerate(SUBSETS)},
    )  # fmt: skip


def _faces(images: Path, path: Path, size: int) -> list[_Face]:
    return [_face(images, f"{path}, line {number}", number, line, size) for number, line in enumerate(read_lines(path), 1)]


def _face(images: Path, where: str, number: int, line: str, size: int) -> _Face:
    words = line.split()
    if len(words) != _WORDS:
        raise ValueError(
            f"{where}: {len(words)} words, expected {_WORDS} (196 coordinates, 4 of the box, 6 attributes, the image's path): take "
            "the list as published"
        )
    try:
        values = np.array([float(word) for word in words[:-1]])
        finite = bool(np.isfinite(values).all())
    except ValueError:
        finite = False
    flags = words[-1 - len(SUBSETS) : -1]
    if not finite or not set(flags) <= {"0", "1"}:
        wrong = f"attributes {' '.join(flags)}, each must be 0 or 1" if finite else "a word among the first 206 that is no number"
        raise ValueError(f"{where}: {wrong}: take the list as published")
    name = Path(words[-1])
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(f"{where}: the image {words[-1]} lies outside of {images}: give a path below it")
    points, (x0, y0, x1, y1) = values[: 2 * COUNT].reshape(COUNT, 2), values[2 * COUNT : 2 * COUNT + 4]
    side = max(1, math.ceil(PADDING * max(x1 - x0, y1 - y0)))
    left, top = round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2)
    moved = (points + 0.5 - (left, top)) * (size / side) - 0.5
    key = f"face/{name.with_suffix('').as_posix()}_{number:05d}"
    return _Face(images / name, key, (left, top, side), moved.astype(np.float32), tuple(flag == "1" for flag in flags))


def _read(files: Sequence[Path], windows: Sequence[tuple[int, int, int]], size: int, rows: np.ndarray) -> Tensor:
    """uint8 [B, 3, size, size] of the faces at `rows`."""
    images = []
    for row in rows:
        left, top, side = windows[row]
        photograph = Image.fromarray(np.ascontiguousarray(read_image(files[row], None).transpose(1, 2, 0)))
        cut = photograph.crop((left, top, left + side, top + side))
        images.append(np.asarray(cut.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(images) if images else np.empty((0, 3, size, size), np.uint8))
