"""Random images and networks that the rows share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from models.classifiers import Classifier, build_classifier, describe
from utils.checkpoint import save_checkpoint
from utils.seeding import seed_everything

CLASSES = tuple("0123456789")


def images(count: int, size: int) -> np.ndarray:
    """uint8 [count, size, size, 3] that vary slowly, as photographs do; the same for every call."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, max(2, size // 8), max(2, size // 8), 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)) for image in coarse])


def classifier(arch: str, seed: int = 0) -> Classifier:
    """Fresh weights by the seed."""
    seed_everything(seed)
    return build_classifier(arch, len(CLASSES), (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))


def save_classifier(arch: str, seed: int, path: Path) -> Path:
    """A checkpoint of it."""
    network = classifier(arch, seed)
    save_checkpoint(path, network.network.state_dict(), {**describe(network), "classes": list(CLASSES)})
    return path


def forward_work(network: torch.nn.Module, size: int, *more: torch.Tensor) -> float:
    """Billions of floating-point operations (a multiplication and an addition are two) of one image's forward pass.

    `more` are the arguments after the image.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, size, size), *more)
    return counter.get_total_flops() / 1e9
