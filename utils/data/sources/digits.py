"""Data sets made of scikit-learn's handwritten digits, which need no download.

`Digits` are the digits themselves, `DigitScenes` scenes of several of them with a mask of their
classes, `DigitPoints` the digits with points of their strokes. The parts of all three are made of
the same digits: what is tested on was never seen in training.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from undegrade.utils.data.sources.image_source import ImageSource, array_reader, array_source
from undegrade.utils.data.sources.splits import TEST_SHARE, concatenated, cut, one_split, train_validation_test
from undegrade.utils.data.targets import Mask, Points
from undegrade.utils.seeding import numpy_generator

SCENE = 48  # side of a scene in pixels
SCENES = {"train": 1000, "validation": 100, "test": 250}
_INK = 0.35  # share of full ink from which on a pixel belongs to a digit
POINTS = ("top", "bottom", "left", "right", "centroid")


def digits(split: str, root: Path) -> ImageSource:
    """scikit-learn's copy of the UCI optical digits: 1,797 scans of 8 x 8 pixels, 17 grey levels,
    enlarged to 32 x 32 (bicubic).
    """
    found = importlib.util.find_spec("sklearn")  # to import it takes a second
    assert found is not None and found.origin is not None
    table = np.loadtxt(Path(found.origin).parent / "datasets/data/digits.csv.gz", delimiter=",")
    grey = np.round(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    large = np.stack([np.asarray(Image.fromarray(g).resize((32, 32), Image.Resampling.BICUBIC)) for g in grey])
    images = np.repeat(large[:, None], 3, axis=1)
    names = [f"{i:04d}" for i in range(len(images))]
    everything = array_source("Digits", images, table[:, -1].astype(int), [str(c) for c in range(10)], names)
    test, rest = cut(everything, [TEST_SHARE], "Digits/test")
    return train_validation_test(rest, test, split, "Digits")


def digit_scenes(split: str, root: Path) -> ImageSource:
    """Scenes of 48 x 48 pixels: three to five digits of 14 to 22 pixels, in colours of their own,
    at random places that hardly overlap, on a dim coloured background; 1,000 training, 100
    validation, 250 test scenes. The mask has the classes background, 0, ..., 9; pixels with at
    least 35 % ink are of a digit.
    """
    wanted = ("train", "validation") if split == "trainval" else ("train", split)
    parts = {name: _scenes(name, root) for name in wanted}
    if split == "trainval":
        parts["trainval"] = concatenated(parts["train"], parts["validation"], "validation")
    return one_split(parts, split, "DigitScenes")


def digit_points(split: str, root: Path) -> ImageSource:
    """`Digits` with five points: the top, bottom, left and right end of the ink (of several pixels
    in the outermost row or column the middle one) and the centroid of the ink. In a mirrored image
    left and right change places; errors are in units of the image's diagonal.
    """
    source = digits(split, root)
    values = np.stack([_points(image) for image in source.images(range(len(source)))[:, 0].numpy() / 255])
    target = Points(swap=((POINTS.index("left"), POINTS.index("right")),), names=POINTS)
    return dataclasses.replace(source, name=f"DigitPoints/{split}", target=target, read_target=array_reader(values))


def _points(ink: np.ndarray) -> np.ndarray:
    """float32 [5, 2] of (x, y) for ink [H, W] in [0, 1]."""
    rows, columns = np.nonzero(ink >= _INK)
    edges = ((rows, rows.min()), (rows, rows.max()), (columns, columns.min()), (columns, columns.max()))
    ends = [np.flatnonzero(axis == edge) for axis, edge in edges]
    found = [(columns[at[len(at) // 2]], rows[at[len(at) // 2]]) for at in ends]
    weight = ink[rows, columns]
    return np.array([*found, (np.average(columns, weights=weight), np.average(rows, weights=weight))], np.float32)


@functools.lru_cache(maxsize=3)  # the training part is asked for with each of the others, for its statistics
def _scenes(part: str, root: Path) -> ImageSource:
    source = digits(part, root)
    glyphs = source.images(range(len(source)))[:, 0].numpy()
    made = [_scene(glyphs, source.labels, numpy_generator("DigitScenes", part, index)) for index in range(SCENES[part])]
    images, masks = (np.stack(arrays) for arrays in zip(*made, strict=True))
    names = [f"{part}_{index:04d}" for index in range(len(images))]
    scenes = array_source("DigitScenes", images, np.zeros(len(images), int), ["scene"], names)
    target = Mask(classes=("background", *source.classes))
    return dataclasses.replace(scenes, target=target, read_target=functools.partial(_read_masks, masks))


def _read_masks(masks: np.ndarray, rows: np.ndarray) -> Tensor:
    return torch.from_numpy(masks[rows].astype(np.int64))


def _scene(glyphs: np.ndarray, labels: Tensor, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(image uint8 [3, S, S], mask uint8 [S, S]) of digits drawn from `glyphs`, uint8 [N, s, s]."""
    shades = rng.integers(20, 100, (2, 2, 3), dtype=np.uint8)  # of the corners, with smooth transitions between them
    ground = Image.fromarray(shades).resize((SCENE, SCENE), Image.Resampling.BICUBIC)
    image = np.asarray(ground).transpose(2, 0, 1) / 255 + rng.normal(0, 0.02, (3, SCENE, SCENE))
    mask, taken = np.zeros((SCENE, SCENE), np.uint8), np.zeros((SCENE, SCENE), bool)
    for row in rng.choice(len(glyphs), rng.integers(3, 6), replace=False):
        side = int(rng.integers(14, 23))
        ink = np.asarray(Image.fromarray(glyphs[row]).resize((side, side), Image.Resampling.BICUBIC)) / 255
        colour = rng.uniform(0.55, 1.0, 3)
        for top, left in rng.integers(0, SCENE - side + 1, (20, 2)):  # until a free place is found; else the digit is left out
            window = (slice(top, top + side), slice(left, left + side))
            if (taken[window] & (ink > 0.05)).any():
                continue
            patch = image[:, top : top + side, left : left + side]
            patch += (colour[:, None, None] - patch) * ink
            mask[window][ink >= _INK] = int(labels[row]) + 1
            taken[window] |= ink > 0.05
            break
    return (image.clip(0, 1) * 255).round().astype(np.uint8), mask
