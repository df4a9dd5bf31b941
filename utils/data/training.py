"""The `data:` section of a training YAML."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Literal

from undegrade.utils.data.batches import AugmentConfig, BatchSet
from undegrade.utils.data.cells import drawn_cell
from undegrade.utils.data.label_budget import label_count
from undegrade.utils.data.manifest import read_settings
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.sources.registry import SourceConfig
from undegrade.utils.data.views import FolderTree, OnTheFly
from undegrade.utils.ranges import Count, Seed, Whole


@dataclasses.dataclass(frozen=True)
class DataConfig(SourceConfig):
    """What is trained on; further keys: see SourceConfig.

    Attributes:
        degradations: any number of degradations, sequences such as `blur+noise` and ImageNet-C
            corruptions; each image of a step appears once for every one. Empty: clean training.
        pairing: paired (the same images, flips and crops for every degradation) | independent (each
            has its own).
        levels: independent (a level for each image and degradation) | shared (one draw an image, as
            the reference program does by accident: blur and noise then have the same number).
        validation: held_out (a tenth of the training images) | test (train on all, choose the best
            epoch on the test images, as the reference program does; its accuracy is then too high).
        seed: of order, levels, degradation and augmentation (null: the run's seed).
        degrade_at: crop (the S x S centre that evaluation sees) | native (the whole image of a
            file, of which a random window is cut afterwards, as DiffAUD's published loader does for
            ImageNet).
        adapted: folder of adapted images (`<adapted>/<degradation>/random/<class>/*`) to train on.
        adapted_view: degraded (adapted images stand in for degrading on the fly) | adapted (a view
            of their own beside the degraded images, which are those that they were made of).
        labels: class-balanced subset of the training part alone, whose labels there shall be: a
            number of images, a share such as 10%, or 5 a class (null: all).
        batch_size: images a step and process, before they are multiplied by the degradations.
        workers: processes that make batches (0: the training process itself).
        augment: see AugmentConfig.
    """

    degradations: list[str] = field(default_factory=list)
    pairing: Literal["paired", "independent"] = "paired"
    levels: Literal["independent", "shared"] = "independent"
    validation: Literal["held_out", "test"] = "held_out"
    seed: Seed | None = None
    degrade_at: Literal["crop", "native"] = "crop"
    adapted: str | None = None
    adapted_view: Literal["degraded", "adapted"] = "degraded"
    labels: Count | str | None = None
    batch_size: Count = 128
    workers: Whole = 0
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def open(self, split: str) -> ImageSource:
        """The images of a split; of a training split those that `labels` leaves."""
        source = super().open(split)
        if self.labels is None or not split.startswith("train"):
            return source
        return source.limited(label_count(self.labels, len(source), len(source.classes)))

    def splits(self) -> dict[str, str]:
        """Splits of the training and of the validation images, under `train` and `validation`."""
        if self.validation == "test":
            return {"train": "trainval", "validation": "test"}
        return {"train": "train", "validation": "validation"}

    def batches(
        self,
        source: ImageSource,
        seed: int,
        train: bool,
        adapted: Path | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> BatchSet:
        """Batches of `source` as this section describes them.

        Args:
            source: clean images.
            seed: of the run.
            train: with augmentation.
            adapted: the folder that `adapted` means for this split.
            rank, world: see `BatchSet`.

        Raises:
            ValueError, FileNotFoundError: see `FolderTree.source`; adapted images that do not say
                what they were made of, for `adapted_view: adapted`.
        """
        degraded, beside = self._versions(source, adapted)
        return BatchSet(
            source, self.degradations, self.batch_size, seed if self.seed is None else self.seed, self.augment if train else None,
            degraded, rank, world, pairing=self.pairing, levels=self.levels, options=self,
            degrade_at=self.degrade_at, beside=beside,
        )  # fmt: skip

    def _versions(self, source: ImageSource, folder: Path | None) -> tuple[dict[str, ImageSource], dict[str, ImageSource]]:
        """(what stands in for degrading on the fly, what is beside it), by degradation."""
        cells = {name: drawn_cell(name) for name in self.degradations}
        if folder is None:
            return {}, {}
        if self.adapted_view == "degraded":
            return {name: FolderTree(folder, source).source(cell) for name, cell in cells.items()}, {}
        made_of = {name: OnTheFly(source, _seed_of(folder / cell.folder), self) for name, cell in cells.items()}
        beside = {name: FolderTree(folder, source, made_of[name]).source(cell) for name, cell in cells.items()}
        return {name: made_of[name].source(cell) for name, cell in cells.items()}, beside


def _seed_of(folder: Path) -> int:
    """Of the degraded images that those in a folder were adapted from."""
    if not folder.is_dir():
        return 0  # the tree says so
    seed = read_settings(folder).get("input", {}).get("seed")
    if not isinstance(seed, int):
        raise ValueError(
            f"{folder} does not say which degraded images its images were made of, for data.adapted_view: adapted: adapt those of "
            "a data set (image_sample.py --dataset ... --split ... --corruption ...)"
        )
    return seed
