"""Training batches: every batch is a pure function of (seed, epoch, step), whatever the worker or process that makes it.

A batch is a dict: `clean`, `degraded` float [B, 3, H, W] in [0, 1], `label` int64 [B], `deg` int64 [B] (index into the run's
list of degradations), `level` float [B] in [0, 1] (0 = clean; NaN for adapted images of unknown level), `key` list of B strings.
With k degradations and n images a step, B = k n: the same n images appear once for each degradation, and `batch["deg"] == i`
selects one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from utils.data.degradations import degrade, sample_levels, unit_level
from utils.data.image_source import ImageSource
from utils.data.pixels import to_unit
from utils.seeding import numpy_generator

Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training images, the same flip and crop for the clean and the degraded version of an image.

    Attributes:
        flip: mirror left-right with probability 1/2 (before the degradation).
        crop_padding: pad by so many black pixels after the degradation and crop a random window of the old size.
        cutout: side of a square hole in pixels, filled with the data set's mean, centre uniform over the image (DeVries & Taylor
            2017); 0 for none.
        cutout_clean: also cut the clean version (same hole).
    """

    flip: bool = False
    crop_padding: int = 0
    cutout: int = 0
    cutout_clean: bool = False


class BatchSet(Dataset):
    """Batches by `(epoch, step)`; feed it through `batch_loader`.

    Args:
        source: clean images.
        degradations: names; empty for clean batches, where `degraded` is `clean`.
        batch_size: images a step and process (each appears once for every degradation).
        seed: of order, levels, degradation and augmentation.
        augment: None for evaluation: fixed order, no augmentation, levels and noise that do not change with the epoch.
        adapted: for each degradation, a source with the adapted images of the same keys, to stand in for degrading on the fly.
        rank, world: this process and their number; a step's images are dealt out to the processes in turn.
    """

    def __init__(
        self,
        source: ImageSource,
        degradations: Sequence[str],
        batch_size: int,
        seed: int,
        augment: AugmentConfig | None = None,
        adapted: dict[str, ImageSource] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}: use at least 1")
        if augment is not None and len(source) < world:
            raise ValueError(f"{len(source)} training images cannot be dealt out to {world} processes")
        self.source, self.degradations, self.batch_size, self.seed = source, list(degradations), batch_size, seed
        self.augment, self.adapted, self.rank, self.world = augment, adapted or {}, rank, world

    def __len__(self) -> int:
        """Steps in an epoch; a last step with fewer images than processes is dropped when training."""
        per_step = self.batch_size * self.world
        steps, rest = divmod(len(self.source), per_step)
        return steps + (rest > 0 and (self.augment is None or rest >= self.world))

    def indices(self, epoch: int, step: int) -> np.ndarray:
        """Rows of the source that this process sees at a step."""
        order = np.arange(len(self.source))
        if self.augment is not None:
            order = numpy_generator(self.seed, "order", epoch).permutation(order)
        per_step = self.batch_size * self.world
        return order[step * per_step : (step + 1) * per_step][self.rank :: self.world]

    def __getitem__(self, place: tuple[int, int]) -> Batch:
        epoch, step = place
        rows = self.indices(epoch, step)
        keys = [self.source.keys[i] for i in rows]
        streams = keys if self.augment is None else [f"{key}@{epoch}" for key in keys]
        clean = self.source.images(rows)
        flips = self._flips(streams)
        clean = _flip(clean, flips)
        parts = [self._degraded(name, rows, clean, streams, flips) for name in self.degradations]
        degraded = torch.cat([p[0] for p in parts]) if parts else clean
        level = torch.cat([p[1] for p in parts]) if parts else torch.zeros(len(rows))
        copies = max(1, len(parts))
        clean, degraded = self._crop_and_cut(clean, degraded, streams, copies)
        return {
            "clean": clean.repeat(copies, 1, 1, 1),
            "degraded": degraded,
            "label": self.source.labels[rows].repeat(copies),
            "deg": torch.arange(copies).repeat_interleave(len(rows)),
            "level": level,
            "key": keys * copies,
        }

    def _degraded(
        self, name: str, rows: np.ndarray, clean: Tensor, streams: list[str], flips: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if name in self.adapted:
            source = self.adapted[name]
            level = torch.full((len(rows),), float("nan")) if source.level is None else source.level[rows]
            return _flip(source.images(rows), flips), level
        level = sample_levels(name, streams, self.seed)
        return degrade(clean, name, level, keys=streams, seed=self.seed), unit_level(name, level)

    def _flips(self, streams: list[str]) -> Tensor | None:
        if self.augment is None or not self.augment.flip:
            return None
        return torch.tensor([bool(numpy_generator(self.seed, "flip", s).integers(2)) for s in streams])

    def _crop_and_cut(self, clean: Tensor, degraded: Tensor, streams: list[str], copies: int) -> tuple[Tensor, Tensor]:
        """uint8 to float [0, 1], cropped and cut with one window and one hole an image."""
        images = [to_unit(clean), to_unit(degraded)]
        augment = self.augment
        if augment is None:
            return images[0], images[1]
        size = clean.shape[-1]
        for i, stream in enumerate(streams):
            rng = numpy_generator(self.seed, "crop", stream)
            top, left = rng.integers(0, 2 * augment.crop_padding + 1, 2)
            centre = rng.integers(0, size, 2)
            for batch, cut in ((images[0], augment.cutout_clean), (images[1], True)):
                where = slice(i, None, len(streams))  # the copies of image i, one a degradation
                if augment.crop_padding:
                    padded = torch.nn.functional.pad(batch[where], (augment.crop_padding,) * 4)
                    batch[where] = padded[..., top : top + size, left : left + size]
                if augment.cutout and cut:
                    _cut_hole(batch[where], centre, augment.cutout, self.source.rgb_mean)
        return images[0], images[1]


def _flip(images: Tensor, flips: Tensor | None) -> Tensor:
    return images if flips is None else torch.where(flips[:, None, None, None], images.flip(-1), images)


def _cut_hole(images: Tensor, centre: np.ndarray, side: int, fill: Sequence[float]) -> None:
    """Fill a square around `centre` (clipped at the borders) of [n, 3, H, W] in place."""
    (y0, x0), size = np.maximum(centre - side // 2, 0), images.shape[-1]
    y1, x1 = np.minimum(centre + side - side // 2, size)
    images[..., y0:y1, x0:x1] = torch.tensor(fill, dtype=images.dtype)[:, None, None]


class _Places(Sampler):
    """(epoch, step) pairs of the current epoch."""

    def __init__(self, steps: int) -> None:
        self.steps, self.epoch = steps, 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter([(self.epoch, step) for step in range(self.steps)])

    def __len__(self) -> int:
        return self.steps


class BatchLoader:
    """`for batch in loader.epoch(e)`: the batches of epoch e, made by `workers` processes (0: by this one)."""

    def __init__(self, batches: BatchSet, workers: int = 0) -> None:
        self._places = _Places(len(batches))
        self._loader = DataLoader(
            batches, batch_size=None, sampler=self._places, num_workers=workers, persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._places)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Batches of one epoch in step order."""
        self._places.epoch = epoch
        return iter(self._loader)
