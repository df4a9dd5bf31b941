"""Teachers of features: a diffusion model at a time step, or a classifier."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate.state import PartialState
from torch import Tensor, nn

from undegrade.models.classification.classifier import Classifier, as_map
from undegrade.models.classification.loading import load_classifier
from undegrade.models.diffusion.features import DiffusionFeatures, Standardised
from undegrade.models.diffusion.loading import diffusers_folder, load_denoiser, open_denoiser
from undegrade.trainers.classification import View
from undegrade.trainers.config import fill
from undegrade.trainers.method import Context
from undegrade.trainers.time_steps import TimeStepConfig, check_time_steps, possible_steps
from undegrade.utils.data.augmentation import AugmentConfig
from undegrade.utils.data.batches import Batch
from undegrade.utils.data.pixels import to_unit, unit_to_signed
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.seeding import numpy_generator, torch_generator

_STATISTICS_OF, _CHUNK = 2048, 64  # training images, and how many at once


@dataclasses.dataclass(frozen=True)
class FeatureTeacherConfig:
    """The network whose features are learnt.

    Attributes:
        kind: diffusion | classifier.
        checkpoint: file, run folder or run name; of a diffusion model also a folder of diffusers or
            a file of OpenAI's (with `flags`).
        flags: model flags of such a file, as text.
        layers: of a diffusion model see `models.diffusion.features.DiffusionFeatures`; of a
            classifier names of its features.
        noised: show the diffusion model noised images.
        standardise: maps of a diffusion model with mean 0 and deviation 1: channel | step (of each
            time step apart) | none, as published.
        labelled: tell a conditional diffusion model the labels, as published for Tiny-ImageNet,
            which makes the training supervised; else it has its null label.
        cache: keep maps on disk, where images are shown unchanged at a fixed time step.
    """

    kind: Literal["diffusion", "classifier"] = "diffusion"
    checkpoint: str = "diffusion/{dataset}/ddpm"
    flags: dict[str, str] = field(default_factory=dict)
    layers: list[str] = field(default_factory=lambda: ["branch"])
    noised: bool = False
    standardise: Literal["none", "channel", "step"] = "channel"
    labelled: bool = False
    cache: bool = True


class FeatureTeacher(nn.Module):
    """A frozen network that gives maps.

    Attributes:
        shapes: [C,h,w] of each map.
    """

    shapes: list[torch.Size]

    def forward(self, images: Tensor, t: Tensor, batch: Batch) -> list[Tensor]:
        """A map [B,C,h,w] of each layer.

        Args:
            images: [B,3,S,S] in [0, 1].
            t: time steps [B]; without meaning for a classifier.
            batch: that they are of.
        """
        raise NotImplementedError


class ClassifierTeacher(FeatureTeacher):
    """Features of a classifier by name (`Classifier.feature_names`).

    Attributes:
        logits: [B,K] of the last batch.
    """

    logits: Tensor

    def __init__(self, classifier: Classifier, layers: Sequence[str], size: int) -> None:
        super().__init__()
        self.classifier, self.layers = classifier.eval().requires_grad_(False), list(layers)
        self.shapes = [m.shape[1:] for m in self(torch.zeros(1, 3, size, size), torch.zeros(1), {})]

    @torch.no_grad()
    def forward(self, images: Tensor, t: Tensor, batch: Batch) -> list[Tensor]:
        self.logits, features = self.classifier(images, self.layers)
        return [as_map(self.classifier, name, features[name]) for name in self.layers]


class DiffusionTeacher(FeatureTeacher):
    """Features of a diffusion model.

    Args:
        features: its maps.
        source: training images, of some of which the statistics of the channels are taken before
            the first batch.
        standardise: `none`, by `channel`, or of each time `step` apart.
        pooled: whether means over the places are compared, whose statistics then count.
        steps: time steps that may be asked for.
        labelled: a conditional network is told the label of each image, as published, instead of
            its null label.
        cache: what keeps maps of images that are shown unchanged in every epoch.
    """

    def __init__(
        self,
        features: DiffusionFeatures,
        source: ImageSource,
        standardise: str,
        pooled: bool,
        steps: Sequence[int],
        labelled: bool = False,
        cache: FeatureCache | None = None,
    ) -> None:
        super().__init__()
        self.features, self.source, self.steps, self.labelled, self.cache = features, source, list(steps), labelled, cache
        size = features.denoiser.image_size
        label = torch.zeros(1, dtype=torch.int64) if labelled else None
        noise = torch.zeros(1, 3, size, size)
        self.shapes = [m.shape[1:] for m in features(noise, torch.tensor(self.steps[:1]), noise, label)]
        self.pooled, own = pooled, self.steps if standardise == "step" else None
        self.standardised = None if standardise == "none" else [Standardised(shape[0], own) for shape in self.shapes]
        self._measured = self.standardised is None

    def forward(self, images: Tensor, t: Tensor, batch: Batch) -> list[Tensor]:
        if not self._measured:
            self._measure(images.device)
        if self.cache is None:
            maps = self._maps(images, t, batch)
        else:
            maps = self.cache.read(batch["key"], images.device)
            missing = torch.tensor(
                [i for i, first in enumerate(maps[0].flatten(1)[:, 0].tolist()) if first != first], dtype=torch.int64
            )
            if len(missing):
                some = {"key": [batch["key"][i] for i in missing.tolist()], "label": batch["label"][missing]}
                found = self._maps(images[missing], t[missing], some)
                self.cache.write(some["key"], found)
                for whole, part in zip(maps, found, strict=True):
                    whole[missing] = part
        if self.standardised is None:
            return maps
        return [statistics(m, t) for statistics, m in zip(self.standardised, maps, strict=True)]

    def _maps(self, images: Tensor, t: Tensor, batch: Batch) -> list[Tensor]:
        noise = None
        if self.features.noised:
            shape = images.shape[1:]
            noise = torch.stack([torch.randn(shape, generator=torch_generator("teacher", key, int(s)))
                                 for key, s in zip(batch["key"], t, strict=True)]).to(images)  # fmt: skip
        return self.features(unit_to_signed(images), t, noise, batch["label"] if self.labelled else None)

    def _measure(self, device: torch.device) -> None:
        """Statistics of the channels over training images, at time steps that go through all."""
        assert self.standardised is not None
        order = numpy_generator("statistics", self.source.name).permutation(len(self.source))[:_STATISTICS_OF]
        places = np.arange(max(len(order), len(self.steps))) % len(self.steps)
        rows = np.resize(order, len(places))
        for start in range(0, len(rows), _CHUNK):
            chosen, t = rows[start : start + _CHUNK], torch.tensor(self.steps)[places[start : start + _CHUNK]].to(device)
            batch = {"key": [self.source.keys[i] for i in chosen], "label": self.source.labels[chosen].to(device)}
            images = to_unit(self.source.images(chosen)).to(device)
            for statistics, found in zip(self.standardised, self._maps(images, t, batch), strict=True):
                statistics.to(device).add(found.mean((2, 3), keepdim=True) if self.pooled else found, t)
        self._measured = True


class FeatureCache:
    """Maps on disk, float32, of a fixed time step, by the keys of the images.

    Args:
        folder: where the files lie; each process has its own.
        facts: what the maps depend on.
        keys: of all images.
        shapes: of the maps.
        rank: of the process.
    """

    def __init__(self, folder: Path, facts: Any, keys: Sequence[str], shapes: Sequence[Sequence[int]], rank: int = 0) -> None:
        self.rows = {key: row for row, key in enumerate(keys)}
        told = json.dumps([facts, list(keys)], sort_keys=True, default=str).encode()
        digest = hashlib.sha256(told).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        self.paths = [folder / f"{digest}-{layer}-{rank}.npy" for layer in range(len(shapes))]
        self.files = []
        for path, shape in zip(self.paths, shapes, strict=True):
            size = (len(keys), *shape)
            if not path.is_file():
                file = np.lib.format.open_memmap(path, "w+", np.float32, size)
                file.reshape(len(keys), -1)[:, 0] = np.nan  # what marks that an image is not there
            self.files.append(np.lib.format.open_memmap(path, "r+"))

    def read(self, keys: Sequence[str], device: torch.device) -> list[Tensor]:
        """Maps [B, ...] of each layer; those of images that are not there begin with NaN."""
        rows = [self.rows[key] for key in keys]
        return [torch.from_numpy(file[rows]).to(device) for file in self.files]

    def write(self, keys: Sequence[str], maps: Sequence[Tensor]) -> None:
        """Keep the maps of images; the mark goes last."""
        rows = [self.rows[key] for key in keys]
        for file, found in zip(self.files, maps, strict=True):
            file[rows] = found.float().cpu().numpy()


def open_teacher(
    given: FeatureTeacherConfig, time: TimeStepConfig, pooled: bool, view: View, context: Context
) -> tuple[FeatureTeacher, list[int]]:
    """The teacher, and the time steps that it may be asked for.

    Raises:
        FileNotFoundError, ValueError: not there, of images of another size or of other classes, or
            keys of `time` that do not fit.
    """
    source = context.source
    if given.kind == "classifier":
        if time != TimeStepConfig():
            raise ValueError("method.time has no meaning with a classifier as teacher: leave it out")
        classifier = load_classifier(context.find_checkpoint(given.checkpoint), context.config.save_dir, source.classes)
        return ClassifierTeacher(classifier, given.layers, source.image_size), [0]
    reference = fill(given.checkpoint, context.config)
    folder = diffusers_folder(reference)
    if folder is not None or given.flags:
        denoiser = open_denoiser(folder or reference, given.flags)
    else:
        denoiser = load_denoiser(context.find_checkpoint(given.checkpoint))
    if denoiser.image_size != source.image_size:
        raise ValueError(
            f"method.teacher.checkpoint {given.checkpoint} is of images of {denoiser.image_size} px, the training images have "
            f"{source.image_size}: set data.image_size"
        )
    if denoiser.num_classes is not None and not denoiser.null_label and not given.labelled:
        raise ValueError(
            f"method.teacher.checkpoint {given.checkpoint} has classes and no null label: take an unconditional diffusion model, "
            "or set method.teacher.labelled true, with which the features hold the labels"
        )
    check_time_steps(time, denoiser.diffusion_steps, len(given.layers))
    steps = possible_steps(time, denoiser.diffusion_steps)
    features = DiffusionFeatures(denoiser, given.layers, given.noised)
    teacher = DiffusionTeacher(features, source, given.standardise, pooled, steps, given.labelled)
    if given.cache and time.strategy == "fixed" and not given.noised and view == "clean" and _shown_unchanged(context):
        facts = [context.weights, reference, given.flags, given.layers, given.labelled, steps, source.name, source.frame]
        data = context.config.data
        keys = [*source.keys, *data.open(data.splits()["validation"]).keys]
        rank = PartialState().process_index
        teacher.cache = FeatureCache(Path(context.config.save_dir) / "cache", facts, keys, teacher.shapes, rank)
    return teacher, steps


def _shown_unchanged(context: Context) -> bool:
    return dataclasses.replace(context.config.data.augment, cutout_clean=False) == AugmentConfig()
