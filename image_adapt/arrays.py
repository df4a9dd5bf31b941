"""Arrays of adapted images in the layout of CIFAR-10-C."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from undegrade.image_adapt.job import Job
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.perturbations.corruptions import SEVERITIES
from undegrade.utils.data.sources.released import LABELS
from undegrade.utils.files import write_atomic


def check_arrays(jobs: Sequence[Job]) -> None:
    """Whether arrays can be made of the jobs: whole test sets in their published order, all
    severities of each corruption.

    Raises:
        ValueError: otherwise; says what is needed.
    """
    cells = {job.cell for job in jobs}
    lacking = sorted({Cell(job.cell.corruption, s).folder for job in jobs for s in SEVERITIES} - {cell.folder for cell in cells})
    if lacking or len(cells) != len(SEVERITIES) * len({cell.corruption for cell in cells}):
        raise ValueError(
            "--output npy needs --severity 1-5 of each corruption, and nothing else: the arrays hold all severities"
            + (f" (missing: {', '.join(lacking[:5])})" if lacking else "")
        )
    for job in jobs:
        first = job.source.keys[0]
        if any(key.rpartition("/")[2] != f"test_{i:05d}" for i, key in enumerate(job.source.keys)):
            raise ValueError(
                f"--output npy is for whole test sets with keys <class>/test_00000, ... (CIFAR-10, CIFAR-100 and their corrupted "
                f"arrays), {job.source.name} begins with {first}: use png"
            )


def write_arrays(jobs: Sequence[Job], save_dir: Path) -> None:
    """`<save_dir>/<corruption>.npy` uint8 [5 N, H, W, 3], severity s at rows (s-1) N, and
    `labels.npy`, from the written images.
    """
    for corruption in dict.fromkeys(job.cell.corruption for job in jobs):
        rows = sorted((job for job in jobs if job.cell.corruption == corruption), key=lambda job: job.cell.severity or 0)
        images = [np.asarray(Image.open(job.path(i))) for job in rows for i in range(len(job.source))]
        _save_array(save_dir / f"{corruption}.npy", np.stack(images))
    _save_array(save_dir / LABELS, np.tile(jobs[0].source.labels.numpy().astype(np.uint8), len(SEVERITIES)))


def _save_array(path: Path, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_atomic(path, buffer.getvalue())
