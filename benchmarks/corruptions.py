"""Time of the 15 corruptions against the PyPI package imagecorruptions-imaug: one thread, both ways
in turn, the same constants.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial

import imagecorruptions
import numpy as np
import torch

from benchmarks.measure import Row, core_seconds, timed_row
from undegrade.utils.data.perturbations.corruptions import CORRUPTIONS, SEVERITIES
from undegrade.utils.data.perturbations.opencv import cv2
from undegrade.utils.data.perturbations.perturbation import PERTURBATIONS, PerturbationOptions

OPTIONS = PerturbationOptions(constants="imagenet")


def _images(count: int, size: int) -> torch.Tensor:
    """uint8 [count, 3, size, size]: smooth colours with some noise, the same for every call."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)
    return (255 * smooth + 10 * torch.randn(smooth.shape, generator=generator)).clamp(0, 255).to(torch.uint8)


def _measured(name: str, images: torch.Tensor, severities: Sequence[int], repeats: int) -> tuple[list[float], list[float]]:
    """Milliseconds for all `severities` of an image by the reference and by ours, `repeats` of
    each, in turn.
    """
    keys = [str(index) for index in range(len(images))]
    arrays = [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in images]
    ours: list[float] = []
    reference: list[float] = []
    for repeat in range(repeats + 1):
        array, ours_of = arrays[repeat % len(arrays)], PERTURBATIONS[name].apply
        mine = sum(core_seconds(partial(ours_of, images, severity, keys, repeat, OPTIONS)) for severity in severities)
        with redirect_stdout(io.StringIO()):  # zoom_blur prints where its crop does not fit
            theirs = sum(core_seconds(partial(imagecorruptions.corrupt, array, severity, name)) for severity in severities)
        if repeat > 0:  # the first warms caches and compilers
            ours.append(1000 * mine / len(images))
            reference.append(1000 * theirs)
    return reference, ours


def by_name(size: int, batch: int, quick: bool = False) -> dict[str, tuple[list[float], list[float]]]:
    """corruption -> milliseconds of its five severities, by the reference and by ours (see
    `_measured`).

    Args:
        size: side of the images in pixels.
        batch: images in a call of ours, whose time is divided by it. The reference takes one image
            a call.
        quick: a few of them, once.
    """
    cv2.setNumThreads(1)
    images = _images(batch, size)
    names, severities, repeats = (CORRUPTIONS[-4:], SEVERITIES[:1], 1) if quick else (CORRUPTIONS, SEVERITIES, 5)
    return {name: _measured(name, images, severities, repeats) for name in names}


def rows(quick: bool = False) -> list[Row]:
    """All 15 corruptions x 5 severities of an image, in batches and one at a time."""
    settings = ((32, 2, 10.0),) if quick else ((32, 64, 10.0), (32, 1, None), (224, 8, 5.0), (224, 1, 5.0))
    found = []
    for size, batch, required in settings:
        taken = by_name(size, batch, quick).values()
        reference, ours = (np.sum([ways[i] for ways in taken], axis=0).tolist() for i in range(2))
        name = f"15 x 5 corruptions of an image of {size} px, {batch} a call"
        found.append(timed_row(name, reference, ours, unit="ms", required=required))
    return found


if __name__ == "__main__":
    for size, batch in ((32, 64), (32, 1), (224, 8), (224, 1)):
        print(f"{size} px, {batch} images a call: name, reference ms, ours ms, ratio")
        for name, (reference, ours) in by_name(size, batch).items():
            first, second = statistics.median(reference), statistics.median(ours)
            print(f"{name:18s} {first:9.3f} {second:9.3f} {first / second:7.1f}")
