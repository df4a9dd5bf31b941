"""Time of the 15 corruptions against the PyPI package imagecorruptions-imaug: one thread, both ways in turn, the same constants."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from contextlib import redirect_stdout

import imagecorruptions
import numpy as np
import torch

from utils.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from utils.data.opencv import cv2


def _milliseconds(call: Callable[..., object], *arguments: object, **options: object) -> float:
    """Processor time of one call: on one thread of an idle machine the time that passes, and other processes do not add to it."""
    start = time.process_time()
    call(*arguments, **options)
    return 1000 * (time.process_time() - start)


def _images(count: int, size: int) -> torch.Tensor:
    """uint8 [count, 3, size, size]: smooth colours with some noise, the same for every call."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)
    return (255 * smooth + 10 * torch.randn(smooth.shape, generator=generator)).clamp(0, 255).to(torch.uint8)


def _row(name: str, images: torch.Tensor, repeats: int) -> dict[str, float | str]:
    keys = [str(index) for index in range(len(images))]
    arrays = [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in images]
    ours: list[float] = []
    reference: list[float] = []
    for repeat in range(repeats + 1):
        array, options = arrays[repeat % len(arrays)], {"keys": keys, "seed": repeat, "constants": "imagenet"}
        mine = sum(_milliseconds(corrupt, images, name, severity, **options) for severity in SEVERITIES)
        with redirect_stdout(io.StringIO()):  # zoom_blur prints where its crop does not fit
            theirs = sum(_milliseconds(imagecorruptions.corrupt, array, severity, name) for severity in SEVERITIES)
        if repeat > 0:  # the first warms caches and compilers
            ours.append(mine / len(images))
            reference.append(theirs)
    first, second = statistics.median(ours), statistics.median(reference)
    return {"name": name, "ours_ms": first, "reference_ms": second, "ratio": second / first}


def rows(size: int, batch: int = 1, repeats: int = 5) -> list[dict[str, float | str]]:
    """Milliseconds for the five severities of one image, for each corruption and, last, for all 15 ("total").

    Args:
        size: side of the images in pixels.
        batch: images in a call of ours; its time is divided by it. The reference takes one image a call.
        repeats: measurements of which the median counts.

    Returns:
        [{"name", "ours_ms", "reference_ms", "ratio"}], ratio = reference / ours.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    images = _images(batch, size)
    found = [_row(name, images, repeats) for name in CORRUPTIONS]
    ours, reference = (sum(float(row[way]) for row in found) for way in ("ours_ms", "reference_ms"))
    return [*found, {"name": "total", "ours_ms": ours, "reference_ms": reference, "ratio": reference / ours}]


if __name__ == "__main__":
    for size, batch in ((32, 1), (32, 64), (224, 1), (224, 8)):
        print(f"{size} px, {batch} images a call: name, ours ms, reference ms, ratio")
        for row in rows(size, batch):
            print(f"{row['name']:18s} {row['ours_ms']:9.3f} {row['reference_ms']:9.3f} {row['ratio']:7.1f}")
