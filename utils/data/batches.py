"""Training batches: every batch is a pure function of (seed, epoch, step), whatever the worker or
process that makes it.

A batch is a dict: `clean`, `degraded` float [B, 3, H, W] in [0, 1], `label` int64 [B], `deg` int64
[B] (index into the run's list of degradations), `level` float [B] in [0, 1] (0 = clean; NaN for
adapted images of unknown level), `key` list of B strings. With k degradations and n images a step,
B = k n, and `batch["deg"] == i` selects the n images of one, which follow one another. Row by row,
`clean`, `degraded`, `label` and `key` belong to one image, and so do `target` [B, ...] of a source
that has one (utils/data/targets.py), and `adapted`, what an adapter made of the degraded image,
where that is asked for (`data.adapted_view`).

In place of an image that cannot be decoded the next one of the source that can stands in, so that
training batches keep their size; from batches without augmentation it is left out.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from undegrade.utils.choices import check_choice
from undegrade.utils.data.augmentation import Augmentation, AugmentConfig, as_unit, fill_holes, flipped
from undegrade.utils.data.native import check_native, degraded_whole
from undegrade.utils.data.perturbations.perturbation import PerturbationOptions
from undegrade.utils.data.perturbations.registry import find_perturbation
from undegrade.utils.data.sources.image_source import Broken, ImageSource
from undegrade.utils.data.sources.images import BrokenImageError
from undegrade.utils.seeding import numpy_generator

log = logging.getLogger(__name__)

Batch = dict[str, Any]

PAIRINGS = ("paired", "independent")
LEVELS = ("independent", "shared")
DEGRADE_AT = ("crop", "native")


class BatchSet(Dataset):
    """Batches by `(epoch, step)`; feed it through `batch_loader`.

    Args:
        source: clean images.
        degradations: names known to `find_perturbation`; empty for clean batches, where `degraded`
            is `clean`.
        batch_size: images a step and process (each appears once for every degradation).
        seed: of order, levels, degradation and augmentation.
        augment: None for evaluation: fixed order, no augmentation, levels and noise that do not
            change with the epoch.
        adapted: for each degradation, a source with the images of the same keys that stand in for
            degrading on the fly.
        beside: for each degradation, a source with a third version of the same keys, the view
            `adapted` of the batch: flipped and cut like the others.
        rank, world: this process and their number; a step's images are dealt out to the processes
            in turn.
        pairing: of training batches. "paired": the images of a step appear once for every
            degradation, with the same flip, crop and hole. "independent": each degradation has its
            own order, flips, crops and holes. Evaluation is always paired.
        levels: "independent": each degradation has its own levels. "shared": one draw for each
            image and epoch gives every degradation the level at the same place of its sweep, so
            that the numbers of noise and blur are equal, as in the public FusionDistill code.
        options: of perturbations (None: the defaults).
        degrade_at: what is degraded. "crop": the S x S centre that the source shows, as in
            evaluation. "native": the whole image of a file; the random window of `resized_crop` is
            then cut from all of it, and without one the centre is.

    Raises:
        ValueError: an unknown name, a batch size below 1, fewer training images than processes, an
            augmentation that the images' target cannot follow; `native` without files, with a
            target or with adapted images.
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
        options: PerturbationOptions | None = None,
        degrade_at: str = "crop",
        beside: dict[str, ImageSource] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}: use at least 1")
        if augment is not None and len(source) < world:
            raise ValueError(f"{len(source)} training images cannot be dealt out to {world} processes")
        if augment is not None and augment.randaugment is not None and source.target is not None:
            raise ValueError(
                "augment.randaugment turns and shifts images, and their targets cannot follow: leave it out, and take flip with "
                "crop_padding or resized_crop"
            )
        check_choice(pairing, PAIRINGS, "pairing")
        check_choice(levels, LEVELS, "levels")
        self._native = check_choice(degrade_at, DEGRADE_AT, "data.degrade_at") == "native"
        if self._native:
            check_native(source, bool(adapted or beside))
        self.source, self.degradations, self.batch_size, self.seed = source, list(degradations), batch_size, seed
        self.augment, self.adapted, self.rank, self.world = augment, adapted or {}, rank, world
        self.beside = beside or {}
        self.options, self._shared_levels = options or PerturbationOptions(), levels == "shared"
        self._perturbations = {name: find_perturbation(name) for name in degradations}  # as objects: workers may lack the rows
        self._apart = pairing == "independent" and augment is not None and len(degradations) > 0

    def __len__(self) -> int:
        """Steps in an epoch; a last step with fewer images than processes is dropped when
        training.
        """
        per_step = self.batch_size * self.world
        steps, rest = divmod(len(self.source), per_step)
        return steps + (rest > 0 and (self.augment is None or rest >= self.world))

    def global_images(self, step: int) -> int:
        """Images that all processes together see at a step, for each degradation: batch_size x
        world, or what the last step has.
        """
        per_step = self.batch_size * self.world
        return min(per_step, len(self.source) - step * per_step)

    def indices(self, epoch: int, step: int, own: tuple[str, ...] = ()) -> np.ndarray:
        """Rows of the source that this process sees at a step; `own`: see `_block`."""
        order = np.arange(len(self.source)) if self.augment is None else _order(len(self.source), self.seed, epoch, *own)
        per_step = self.batch_size * self.world
        return order[step * per_step : (step + 1) * per_step][self.rank :: self.world]

    def __getitem__(self, place: tuple[int, int]) -> Batch:
        return self.finished(self.made(place))

    def made(self, place: tuple[int, int]) -> Batch:
        """What workers make of a batch: as few bytes as possible, for they are sent from process to
        process.

        Returns:
            `clean` and `degraded`, uint8 unless something is interpolated or erased; `hole`,
            centres of holes that are yet to be cut; `label`, `level`, `key`, `target`. Of images,
            labels, keys and targets that all degradations share there is one copy. `broken`, what
            is wrong with images that are not there.
        """
        if not self._apart:
            return self._block(*place, self.degradations)
        blocks = [self._block(*place, [name], (name,)) for name in self.degradations]
        lists = {name: [entry for block in blocks for entry in block[name]] for name in ("key", "broken")}
        return lists | {name: torch.cat([block[name] for block in blocks]) for name in blocks[0] if name not in lists}

    def finished(self, made: Batch) -> Batch:
        """The batch, on the device of the tensors in `made`."""
        blocks = max(1, len(self.degradations))
        copies = 1 if self._apart else blocks
        clean, degraded = as_unit(made["clean"]), as_unit(made["degraded"])
        if "hole" in made:
            assert self.augment is not None
            cut = functools.partial(fill_holes, centres=made["hole"], side=self.augment.cutout, colour=self.source.rgb_mean)
            clean, degraded = cut(clean) if self.augment.cutout_clean else clean, cut(degraded)
        further = {"target": torch.cat([made["target"]] * copies)} if "target" in made else {}
        if self.beside:
            versions = degraded.unflatten(0, (blocks, 2, -1)).transpose(0, 1)
            degraded, further["adapted"] = versions[0].flatten(0, 1), versions[1].flatten(0, 1)
        return {
            "clean": clean.repeat(copies, 1, 1, 1),
            "degraded": degraded,
            "label": made["label"].repeat(copies),
            "deg": torch.arange(blocks, device=degraded.device).repeat_interleave(len(degraded) // blocks),
            "level": made["level"],
            "key": made["key"] * copies,
            **further,
        }

    def _block(self, epoch: int, step: int, names: Sequence[str], own: tuple[str, ...] = ()) -> Batch:
        """The images of a step, once for each of `names`, all with the same flip, crop and hole.

        `own` is appended to the names of the streams of order, flips, crops and holes: a
        degradation that has its own.
        """
        rows = self.indices(epoch, step, own)
        try:
            return self._block_of(rows, epoch, names, own)
        except BrokenImageError:
            rows, broken = self._readable(rows, names)
        return {**self._block_of(rows, epoch, names, own), "broken": broken}

    def _readable(self, rows: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, list[Broken]]:
        """The rows that can be read, or those that stand in for them, and what is wrong with the
        others.
        """
        sources = [self.source, *(read[name] for read in (self.adapted, self.beside) for name in names if name in read)]
        chosen: list[int] = []
        broken: dict[str, Broken] = {}
        for row in rows.tolist():
            for candidate in ((row + further) % len(self.source) for further in range(len(self.source))):
                wrong = [entry for source in sources for entry in source.readable([candidate])[2]]
                broken |= {entry.key: entry for entry in wrong}
                if not wrong:
                    chosen.append(candidate)
                if not wrong or self.augment is None:
                    break
            else:
                raise ValueError(f"none of the {len(self.source)} images of {self.source.name} can be read, e.g. {wrong[0].reason}")
        return np.array(chosen, dtype=np.int64), list(broken.values())

    def _block_of(self, rows: np.ndarray, epoch: int, names: Sequence[str], own: tuple[str, ...]) -> Batch:
        keys = [self.source.keys[i] for i in rows]
        streams, flips, augmentation = keys, None, None
        if self.augment is not None:
            streams = [f"{key}@{epoch}" for key in keys]
            augmentation = Augmentation(self.augment, self.source.rgb_mean, self.source.rgb_std, self.seed, own)
            flips = augmentation.flips(streams)
        if self._native:
            kinds = [self._perturbations[name] for name in names]
            drawn = [(kind, kind.draw(streams, self.seed, self._shared_levels)) for kind in kinds]
            clean, *versions = degraded_whole(self.source, rows, drawn, streams, self.seed, self.options, flips, augmentation)
            parts = [(images, p.unit(level)) for images, (p, level) in zip(versions, drawn, strict=True)]
        else:
            clean = flipped(self.source.images(rows), flips)
            parts = [self._degraded(name, rows, clean, streams, flips) for name in names]
        if self.beside:  # of each degradation, what it gave, then what an adapter made of it
            beside = [flipped(self.beside[name].images(rows), flips) for name in names]
            parts = [(torch.cat([images, other]), level) for (images, level), other in zip(parts, beside, strict=True)]
        degraded = torch.cat([p[0] for p in parts]) if parts else clean
        level = torch.cat([p[1] for p in parts]) if parts else torch.zeros(len(rows))
        views = {"clean": clean, "degraded": degraded}
        if augmentation is not None:
            views = augmentation.views(clean, degraded, streams, self._native)
        made = {**views, "label": self.source.labels[rows], "level": level, "key": keys, "broken": []}
        if self.source.target is None:
            return made
        target = self.source.targets(rows)
        if augmentation is not None:
            target = augmentation.moved(target, self.source.target, flips, streams, self.source.image_size)
        return {**made, "target": target}

    def _degraded(
        self, name: str, rows: np.ndarray, clean: Tensor, streams: list[str], flips: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if name in self.adapted:
            source = self.adapted[name]
            level = torch.full((len(rows),), float("nan")) if source.level is None else source.level[rows]
            return flipped(source.images(rows), flips), level
        perturbation = self._perturbations[name]
        level = perturbation.draw(streams, self.seed, self._shared_levels)
        return perturbation.apply(clean, level, streams, self.seed, self.options), perturbation.unit(level)


def _order(count: int, seed: int, epoch: int, *own: str) -> np.ndarray:
    orders = _orders(count, seed, epoch)
    if own not in orders:
        orders[own] = numpy_generator(seed, "order", epoch, *own).permutation(count)
    return orders[own]


@functools.lru_cache(maxsize=1)  # every step of an epoch asks for them, for each degradation that has its own; 10 MB on ImageNet
def _orders(count: int, seed: int, epoch: int) -> dict[tuple[str, ...], np.ndarray]:
    return {}
