"""Training batches: every batch is a pure function of (seed, epoch, step), whatever the worker or process that makes it.

A batch is a dict: `clean`, `degraded` float [B, 3, H, W] in [0, 1], `label` int64 [B], `deg` int64 [B] (index into the run's
list of degradations), `level` float [B] in [0, 1] (0 = clean; NaN for adapted images of unknown level), `key` list of B strings.
With k degradations and n images a step, B = k n, and `batch["deg"] == i` selects the n images of one, which follow one another.
Row by row, `clean`, `degraded`, `label` and `key` belong to one image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from utils.choices import check_choice
from utils.data.degradations import DegradationCompat
from utils.data.image_source import ImageSource
from utils.data.perturbations import check_perturbation, draw_levels, perturb, unit_level
from utils.data.pixels import to_unit
from utils.seeding import numpy_generator

Batch = dict[str, Any]

PAIRINGS = ("paired", "independent")
LEVELS = ("independent", "shared")


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training images, the same flip and crop for the clean and the degraded version of an image.

    Attributes:
        flip: mirror left-right with probability 1/2 (before the degradation).
        crop_padding: pad by so many black pixels after the degradation and crop a random window of the old size.
        resized_crop: smallest share of the area of a random window (aspect ratio 3/4 to 4/3; 0.08 is usual for ImageNet) that is
            cut out after the degradation and enlarged to the old size; null for none. Images are thus degraded as in evaluation.
        cutout: side of a square hole in pixels, filled with the data set's mean, centre uniform over the image (DeVries & Taylor
            2017); 0 for none.
        cutout_clean: also cut the clean version (same hole).
    """

    flip: bool = False
    crop_padding: int = 0
    resized_crop: float | None = None
    cutout: int = 0
    cutout_clean: bool = False

    def __post_init__(self) -> None:
        if self.resized_crop is not None and (self.crop_padding or not 0 < self.resized_crop <= 1):
            raise ValueError(
                f"augment.resized_crop {self.resized_crop} must be a share above 0 and at most 1, with crop_padding 0 "
                f"(it is {self.crop_padding})"
            )


class BatchSet(Dataset):
    """Batches by `(epoch, step)`; feed it through `batch_loader`.

    Args:
        source: clean images.
        degradations: names known to `perturb` (degradations, sequences, ImageNet-C corruptions); empty for clean batches, where
            `degraded` is `clean`.
        batch_size: images a step and process (each appears once for every degradation).
        seed: of order, levels, degradation and augmentation.
        augment: None for evaluation: fixed order, no augmentation, levels and noise that do not change with the epoch.
        adapted: for each degradation, a source with the adapted images of the same keys, to stand in for degrading on the fly.
        rank, world: this process and their number; a step's images are dealt out to the processes in turn.
        pairing: of training batches. "paired": the images of a step appear once for every degradation, with the same flip, crop
            and hole. "independent": each degradation has its own order, flips, crops and holes. Evaluation is always paired.
        levels: "independent": each degradation has its own levels. "shared": one draw for each image and epoch gives every
            degradation the level at the same place of its sweep, so that the numbers of noise and blur are equal, as in the public
            FusionDistill code.
        compat: of the degradations (None: the right operations).
        constants: of the corruptions: cifar | tiny | imagenet (None: by the image size).

    Raises:
        ValueError: an unknown name, a batch size below 1, fewer training images than processes.
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
        *,
        pairing: str = "paired",
        levels: str = "independent",
        compat: DegradationCompat | None = None,
        constants: str | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}: use at least 1")
        if augment is not None and len(source) < world:
            raise ValueError(f"{len(source)} training images cannot be dealt out to {world} processes")
        for name in degradations:
            check_perturbation(name)
        check_choice(pairing, PAIRINGS, "pairing")
        check_choice(levels, LEVELS, "levels")
        self.source, self.degradations, self.batch_size, self.seed = source, list(degradations), batch_size, seed
        self.augment, self.adapted, self.rank, self.world = augment, adapted or {}, rank, world
        self.compat, self.constants, self._shared_levels = compat, constants, levels == "shared"
        self._apart = pairing == "independent" and augment is not None and len(degradations) > 0

    def __len__(self) -> int:
        """Steps in an epoch; a last step with fewer images than processes is dropped when training."""
        per_step = self.batch_size * self.world
        steps, rest = divmod(len(self.source), per_step)
        return steps + (rest > 0 and (self.augment is None or rest >= self.world))

    def global_images(self, step: int) -> int:
        """Images that all processes together see at a step, for each degradation: batch_size x world, or what the last step has."""
        per_step = self.batch_size * self.world
        return min(per_step, len(self.source) - step * per_step)

    def indices(self, epoch: int, step: int, own: tuple[str, ...] = ()) -> np.ndarray:
        """Rows of the source that this process sees at a step; `own`: see `_block`."""
        order = np.arange(len(self.source))
        if self.augment is not None:
            order = numpy_generator(self.seed, "order", epoch, *own).permutation(order)
        per_step = self.batch_size * self.world
        return order[step * per_step : (step + 1) * per_step][self.rank :: self.world]

    def __getitem__(self, place: tuple[int, int]) -> Batch:
        if not self._apart:
            return self._block(*place, self.degradations)
        blocks = [self._block(*place, [name], (name,)) for name in self.degradations]
        batch = {name: torch.cat([block[name] for block in blocks]) for name in ("clean", "degraded", "label", "level")}
        deg = torch.arange(len(blocks)).repeat_interleave(len(blocks[0]["key"]))
        return {**batch, "deg": deg, "key": [key for block in blocks for key in block["key"]]}

    def _block(self, epoch: int, step: int, names: Sequence[str], own: tuple[str, ...] = ()) -> Batch:
        """The images of a step, once for each of `names`, all with the same flip, crop and hole.

        `own` is appended to the names of the streams of order, flips, crops and holes: a degradation that has its own.
        """
        rows = self.indices(epoch, step, own)
        keys = [self.source.keys[i] for i in rows]
        streams = keys if self.augment is None else [f"{key}@{epoch}" for key in keys]
        flips = self._flips(streams, own)
        clean = _flip(self.source.images(rows), flips)
        parts = [self._degraded(name, rows, clean, streams, flips) for name in names]
        degraded = torch.cat([p[0] for p in parts]) if parts else clean
        level = torch.cat([p[1] for p in parts]) if parts else torch.zeros(len(rows))
        copies = max(1, len(parts))
        clean, degraded = self._crop_and_cut(clean, degraded, streams, copies, own)
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
        level = draw_levels(name, streams, self.seed, self._shared_levels)
        images = perturb(clean, name, level, keys=streams, seed=self.seed, compat=self.compat, constants=self.constants)
        return images, unit_level(name, level)

    def _flips(self, streams: list[str], own: tuple[str, ...]) -> Tensor | None:
        if self.augment is None or not self.augment.flip:
            return None
        return torch.tensor([bool(numpy_generator(self.seed, "flip", s, *own).integers(2)) for s in streams])

    def _crop_and_cut(
        self, clean: Tensor, degraded: Tensor, streams: list[str], copies: int, own: tuple[str, ...]
    ) -> tuple[Tensor, Tensor]:
        """uint8 to float [0, 1], cropped and cut with one window and one hole an image."""
        augment, size = self.augment, clean.shape[-1]
        if augment is None:
            return to_unit(clean), to_unit(degraded)
        windows, centres = np.empty((len(streams), 4), dtype=np.int64), np.empty((len(streams), 2), dtype=np.int64)
        for i, stream in enumerate(streams):
            rng = numpy_generator(self.seed, "crop", stream, *own)
            windows[i] = (*rng.integers(0, 2 * augment.crop_padding + 1, 2), size, size)
            centres[i] = rng.integers(0, size, 2)
            if augment.resized_crop is not None:
                windows[i] = _random_window(rng, size, augment.resized_crop)
        results = []
        for images, times, cut in ((clean, 1, augment.cutout_clean), (degraded, copies, True)):
            repeated = np.tile(windows, (times, 1))
            if augment.resized_crop is None:
                cropped = to_unit(_crop(images, repeated, augment.crop_padding))
            else:
                cropped = _resized_crop(images, repeated)
            if augment.cutout and cut:
                hole = _holes(np.tile(centres, (times, 1)), augment.cutout, size)
                cropped = torch.where(hole, torch.tensor(self.source.rgb_mean)[:, None, None], cropped)
            results.append(cropped)
        return results[0], results[1]


def _flip(images: Tensor, flips: Tensor | None) -> Tensor:
    return images if flips is None else torch.where(flips[:, None, None, None], images.flip(-1), images)


def _crop(images: Tensor, windows: np.ndarray, padding: int) -> Tensor:
    """The window (n x (top, left, ...)) of each of [n, 3, S, S], padded by black, of the old size."""
    size = images.shape[-1]
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    views = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(2, 3))
    return torch.from_numpy(views[np.arange(len(images)), :, windows[:, 0], windows[:, 1]])


def _random_window(rng: np.random.Generator, size: int, smallest: float) -> tuple[int, int, int, int]:
    """(top, left, height, width): area uniform in [smallest, 1] of the image's, log of width / height uniform in log [3/4, 4/3].

    The usual rule of ImageNet training: draw again where it does not fit, the whole image after ten times.
    """
    for _ in range(10):
        area, ratio = size**2 * rng.uniform(smallest, 1), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        height, width = round(np.sqrt(area / ratio)), round(np.sqrt(area * ratio))
        if 0 < height <= size and 0 < width <= size:
            return int(rng.integers(size - height + 1)), int(rng.integers(size - width + 1)), height, width
    return 0, 0, size, size


def _resized_crop(images: Tensor, windows: np.ndarray) -> Tensor:
    """The window (n x (top, left, height, width)) of each of uint8 [n, 3, S, S], enlarged to S x S (bilinear); float in [0, 1]."""
    size = images.shape[-1]
    cuts = (to_unit(image[:, t : t + h, left : left + w]) for image, (t, left, h, w) in zip(images, windows, strict=True))
    return torch.cat([F.interpolate(cut[None], (size, size), mode="bilinear", antialias=True) for cut in cuts]).clamp(0, 1)


def _holes(centres: np.ndarray, side: int, size: int) -> Tensor:
    """Where a square around `centres` (n x (row, column)) covers an image: bool [n, 1, size, size]."""
    first = centres[:, :, None] - side // 2
    inside = torch.from_numpy((np.arange(size) >= first) & (np.arange(size) < first + side))
    return (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None]


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
        self._batches = batches
        self._places = _Places(len(batches))
        self._loader = DataLoader(
            batches, batch_size=None, sampler=self._places, num_workers=workers, persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._places)

    def global_images(self, step: int) -> int:
        """Images that all processes together see at a step, for each degradation."""
        return self._batches.global_images(step)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Batches of one epoch in step order."""
        self._places.epoch = epoch
        return iter(self._loader)
