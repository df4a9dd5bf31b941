"""Networks, images and batches small enough for unit tests of losses and of the training loop."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from undegrade.models.classification.classifier import Classifier
from undegrade.trainers.config import TrainConfig
from undegrade.trainers.method import Context
from undegrade.trainers.supervised import Supervised, SupervisedConfig
from undegrade.utils.data.batches import Batch
from undegrade.utils.data.sources.image_source import ImageSource, array_source
from undegrade.utils.data.training import DataConfig
from undegrade.utils.seeding import seed_everything

CLASSES = ("circle", "line", "square")
SIDE = 8


class TinyNet(nn.Module):
    """One map of the image's size (`stage1`), averaged (`pooled`) and classified."""

    feature_info = [{"module": "stage"}]  # noqa: RUF012

    def __init__(self, channels: int = 4, norm: bool = False, dropout: float = 0.0, bias: bool = False) -> None:
        super().__init__()
        self.stage = nn.Conv2d(3, channels, 1, bias=bias)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, len(CLASSES))

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.norm(self.stage(x)).mean((2, 3))))


def tiny_classifier(**options: object) -> Classifier:
    """A TinyNet whose input is the image itself (mean 0, deviation 1)."""
    return Classifier(TinyNet(**options), "TinyNet", len(CLASSES), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def tiny_source(count: int = 24) -> ImageSource:
    """Noise whose colour tells the class."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % len(CLASSES)
    images = rng.integers(0, 150, (count, 3, SIDE, SIDE))
    images[np.arange(count), labels] += 100
    names = [f"{i:02d}" for i in range(count)]
    return array_source("tiny", images.astype(np.uint8), labels, CLASSES, names)


def tiny_batch(degradations: int = 1, images: int = 4, seed: int = 0) -> Batch:
    """A batch with random images: `images` of each degradation, degraded unlike clean."""
    generator = torch.Generator().manual_seed(seed)
    total = degradations * images
    return {
        "clean": torch.rand(images, 3, SIDE, SIDE, generator=generator).repeat(degradations, 1, 1, 1),
        "degraded": torch.rand(total, 3, SIDE, SIDE, generator=generator),
        "label": torch.arange(total) % len(CLASSES),
        "deg": torch.arange(degradations).repeat_interleave(images),
        "level": torch.full((total,), 0.5),
        "key": [f"image{i}" for i in range(images)] * degradations,
    }


def tiny_context(*degradations: str) -> Context:
    """What a method is told of a run on the tiny images."""
    return Context(tiny_source(), list(degradations), TrainConfig("tiny", data=DataConfig(degradations=list(degradations))))


def supervised(seed: int = 0, view: str = "clean", kind: type[Supervised] = Supervised, **options: object) -> Supervised:
    """A tiny classifier under cross-entropy, weights by `seed`."""
    seed_everything(seed)
    return kind(tiny_classifier(**options), tiny_context(), SupervisedConfig(view=view))


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Mean of -log softmax(logits)[label], in plain Python."""
    rows = []
    for values, label in zip(logits.tolist(), labels.tolist(), strict=True):
        rows.append(math.log(sum(math.exp(v) for v in values)) - values[label])
    return sum(rows) / len(rows)
