"""Training batches with four degradations: ours against one loader of images for each degradation.

`python -m benchmarks --only batches` prints images/s of both, side by side on the same two cores.

The other way is that of the public FusionDistill code: one data set and one loader for each
degradation, two workers each, zipped; an image is flipped, degraded by `imagedegrade`, padded,
cropped, normalised and cut by torchvision and Pillow on its own.
"""

from __future__ import annotations

import multiprocessing
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import imagedegrade.im
import imagedegrade.np
import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as F

from benchmarks.measure import Row
from benchmarks.networks import images as random_images
from undegrade.utils.data.augmentation import AugmentConfig
from undegrade.utils.data.batch_loader import BatchLoader
from undegrade.utils.data.batches import BatchSet
from undegrade.utils.data.perturbations.degradations import DEGRADATIONS, REFERENCE
from undegrade.utils.data.perturbations.perturbation import PerturbationOptions
from undegrade.utils.data.sources.image_source import array_source

NAMES = list(DEGRADATIONS)
BATCH, SIDE, PADDING, HOLE = 128, 32, 4, 16
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


class OneByOne(Dataset):
    """Items ((clean, degraded), (label, level)) of one degradation."""

    def __init__(self, images: np.ndarray, name: str) -> None:
        self.images, self.row = images, DEGRADATIONS[name]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, Tensor], tuple[int, np.ndarray]]:
        clean = Image.fromarray(self.images[index])
        if torch.rand(1) < 0.5:
            clean = clean.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        level = random.choice(self.row.sweep)
        pair = [F.pad(image, [PADDING] * 4) for image in (clean, self._degraded(clean, level))]
        top, left = (int(torch.randint(0, 2 * PADDING + 1, (1,))) for _ in range(2))
        views = [F.normalize(F.to_tensor(F.crop(image, top, left, SIDE, SIDE)), MEAN, STD) for image in pair]
        return (views[0], _cut(views[1])), (index % 10, np.array([level]))

    def _degraded(self, image: Image.Image, level: float) -> Image.Image:
        if self.row.name == "jpeg":
            return image if level > 100 else imagedegrade.im.jpeg(image, int(level))
        function = getattr(imagedegrade.np, self.row.name)
        return Image.fromarray(np.clip(function(np.array(image), level), 0, 255).astype(np.uint8))


def _cut(image: Tensor) -> Tensor:
    row, column = np.random.randint(SIDE, size=2)  # noqa: NPY002  as there
    mask = np.ones((SIDE, SIDE), np.float32)
    mask[max(row - HOLE // 2, 0) : row + HOLE // 2, max(column - HOLE // 2, 0) : column + HOLE // 2] = 0
    return image * torch.from_numpy(mask)


def _one_by_one(images: np.ndarray, workers: int) -> Callable[[], int]:
    loaders = [
        DataLoader(OneByOne(images, name), BATCH, shuffle=True, num_workers=workers, persistent_workers=True) for name in NAMES
    ]

    def epoch() -> int:
        degraded = [torch.cat([views[1] for views, _ in parts]) for parts in zip(*loaders, strict=True)]
        return sum(map(len, degraded))

    return epoch


def _ours(images: np.ndarray, workers: int, **options: Any) -> Callable[[], int]:
    names = [str(i) for i in range(len(images))]
    source = array_source("random", images.transpose(0, 3, 1, 2), np.arange(len(images)) % 10, list("0123456789"), names)
    augment = AugmentConfig(flip=True, crop_padding=PADDING, cutout=HOLE)
    loader = BatchLoader(BatchSet(source, NAMES, BATCH, 0, augment, **options), workers)
    epochs = iter(range(1_000_000))
    return lambda: sum(len(batch["degraded"]) for batch in loader.epoch(next(epochs)))


def _core_seconds() -> float:
    """Processor time of this process and of its workers."""
    workers = [psutil.Process(child.pid).cpu_times() for child in multiprocessing.active_children()]
    return time.process_time() + sum(times.user + times.system for times in workers)


def _rates(epoch: Callable[[], int]) -> tuple[float, float]:
    """Images of an epoch for each second, and for each second of a core."""
    start, cores = time.perf_counter(), _core_seconds()
    count = epoch()
    return count / (time.perf_counter() - start), count / (_core_seconds() - cores)


def rows(quick: bool = False) -> list[Row]:
    """Images a second of the clock (`Row.required` is meant so, on cores that are free), and of a
    core, the steadier measure.

    Ours has ten times as many steps in an epoch as the other way: starting one costs both the same.
    """
    repeats, steps, workers = (1, 1, 1) if quick else (5, 8, 2)
    images = random_images(10 * steps * BATCH, SIDE)
    reference = _one_by_one(images[: steps * BATCH], workers)
    variants = {
        "": _ours(images, workers),
        ", published bytes": _ours(images, workers, options=PerturbationOptions(compat=REFERENCE)),
    }
    for epoch in (reference, *variants.values()):
        epoch()  # starts the workers
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ("reference", *variants)}
    for _ in range(repeats):
        for name, epoch in (("reference", reference), *variants.items()):
            taken[name].append(_rates(epoch))
    return [_row(taken, name, column) for name in variants for column in range(2)]


def _row(taken: dict[str, list[tuple[float, float]]], name: str, column: int) -> Row:
    ours, reference = ([rates[column] for rates in taken[way]] for way in (name, "reference"))
    return Row(
        f"training batches, 4 x {BATCH} of {SIDE} px{name}",
        ("images/s", "images/core s")[column],
        statistics.median(reference),
        statistics.median(ours),
        statistics.median(a / b for a, b in zip(ours, reference, strict=True)),
        required=10.0,
        note="jpeg, blur, noise, salt-and-pepper; flip, crop, cutout, to float; 2 workers against 4 loaders of 2"
        if not name
        else "",
        repeats={"reference": reference, "ours": ours},
    )
