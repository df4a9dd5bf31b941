"""Images that are degraded at the size of their files, before a part of them is cut."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from undegrade.utils.data.augmentation import Augmentation
from undegrade.utils.data.perturbations.perturbation import Perturbation, PerturbationOptions
from undegrade.utils.data.sources.image_source import ImageSource


def check_native(source: ImageSource, adapted: bool) -> None:
    """Raise ValueError where there is nothing that could be degraded before it is cut."""
    about = "data.degrade_at native is about files of any size"
    if adapted:
        raise ValueError(f"{about}, adapted images are made already: leave it out")
    if source.files is None:
        raise ValueError(f"{about}, {source.name} has none: leave it out")
    if source.target is not None:
        raise ValueError(f"{about}, and the targets of {source.name} cannot follow: leave it out")


def degraded_whole(
    source: ImageSource,
    rows: np.ndarray,
    drawn: Sequence[tuple[Perturbation, Tensor]],
    streams: Sequence[str],
    seed: int,
    options: PerturbationOptions,
    flips: Tensor | None,
    augmentation: Augmentation | None,
) -> list[Tensor]:
    """The whole images of files, clean and degraded, of which the same parts are cut: a random
    window where the augmentation has one, else what the source shows.

    Args:
        source: with files.
        rows: of the n images.
        drawn: perturbations, and of each the levels [n].
        streams, seed, options: of the perturbations (`Perturbation.apply`), one stream an image.
        flips: bool [n], which are mirrored left-right first.
        augmentation: of training.

    Returns:
        [n, 3, S, S] of the clean images and then of each of `drawn`: float in [0, 1] if windows are
        enlarged, else uint8.
    """
    whole = [source.whole(row) for row in rows.tolist()]
    if flips is not None:
        whole = [image.flip(-1) if turned else image for image, turned in zip(whole, flips.tolist(), strict=True)]
    versions = [whole]
    for perturbation, levels in drawn:
        each = zip(whole, levels, streams, strict=True)
        versions.append([perturbation.apply(image[None], level[None], [key], seed, options)[0] for image, level, key in each])
    if augmentation is not None and augmentation.config.resized_crop is not None:
        return [augmentation.windows_of(images, streams, source.image_size) for images in versions]
    nothing = torch.empty(0, 3, source.image_size, source.image_size, dtype=torch.uint8)
    return [torch.stack([source.framed(image) for image in images]) if images else nothing for images in versions]
