"""What a predictor may look at besides the test images: clean training images, and what was worked
out from them before.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undegrade.utils.checkpoint import load_checkpoint, save_checkpoint
from undegrade.utils.data.pixels import to_unit
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.provenance import listing_digest
from undegrade.utils.seeding import numpy_generator

log = logging.getLogger(__name__)


class TrainingImages:
    """Clean training images in a fixed random order.

    Args:
        source: of them.
    """

    def __init__(self, source: ImageSource) -> None:
        self.source = source.subset(numpy_generator("training images", len(source)).permutation(len(source)))
        self.digest = listing_digest(self.source.keys, self.source.labels)

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, number: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """(images [B,3,H,W] in [0,1], labels [B]) of the batch `number`, from 0 on, B at most
        `size`; after the last one comes the first.
        """
        start = number % -(-len(self) // size) * size
        rows = np.arange(start, min(start + size, len(self)))
        return to_unit(self.source.images(rows)).to(device), self.source.labels[rows].to(device)


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """Of one member.

    Attributes:
        open_training: opens the clean training images.
        cache: folder of what is worked out; None: nothing is kept.
        network: digest of the checkpoint.
        find: path of a further checkpoint by its name; `{dataset}` and `{arch}` are replaced.
    """

    open_training: Callable[[], ImageSource]
    cache: Path | None = None
    network: str = ""
    find: Callable[[str], Path] = Path

    def training_images(self, count: int, why: str) -> TrainingImages:
        """At most `count` of them, class-balanced.

        Args:
            count: at most.
            why: what they are for and how to do without, for the message.

        Raises:
            ValueError: there are none.
        """
        try:
            return TrainingImages(self.open_training().limited(count))
        except (OSError, ValueError) as error:
            raise ValueError(f"clean training images are needed for {why}, and there are none: {error}") from error

    def worked_out(
        self, what: str, images: TrainingImages, work: Callable[[TrainingImages], dict[str, Tensor]], **facts: Any
    ) -> dict[str, Tensor]:
        """What `work` gives for the images, from the cache if it is there.

        Args:
            what: it is; part of the file's name.
            images: clean ones.
            work: gives tensors by name.
            facts: what the result depends on besides the network and the images.
        """
        parts = [what, self.network, images.digest, *(f"{key}={value}" for key, value in facts.items())]
        digest = hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]
        path = self.cache and self.cache / f"{what.replace(' ', '-')}-{digest}.safetensors"
        if path is not None and path.is_file():
            return load_checkpoint(path, kind=what)[0]
        log.info("working out the %s from %d training images, once", what, len(images))
        found = {name: value.detach().cpu().contiguous() for name, value in work(images).items()}
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_checkpoint(path, found, {"kind": what})
        return found
