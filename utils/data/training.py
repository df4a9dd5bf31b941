"""The `data:` section of a training YAML."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Literal

from undegrade.utils.data.batches import AugmentConfig, BatchSet
from undegrade.utils.data.label_budget import label_count
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.sources.registry import SourceConfig
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
        adapted: folder of adapted images (`<adapted>/<degradation>/random/<class>/*`) to train on
            in place of degrading on the fly.
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
        adapted: dict[str, ImageSource] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> BatchSet:
        """Batches of `source` as this section describes them; `seed` is the run's, `train` switches
        augmentation on.
        """
        return BatchSet(
            source, self.degradations, self.batch_size, seed if self.seed is None else self.seed, self.augment if train else None,
            adapted, rank, world, pairing=self.pairing, levels=self.levels, options=self,
            degrade_at=self.degrade_at,
        )  # fmt: skip
