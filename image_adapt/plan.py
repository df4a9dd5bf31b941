"""What a launch would do, as a table: cells, images, batches, passes of the network, disk, and time
if a batch was timed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from undegrade.image_adapt.adapter import Adapter
from undegrade.image_adapt.config import AdaptConfig
from undegrade.image_adapt.job import Job
from undegrade.image_adapt.output import find_outputs
from undegrade.image_adapt.settings import check_settings, settings_of
from undegrade.image_adapt.work import Piece, adapt_rows, cut_pieces
from undegrade.utils.costs import BYTES_A_PIXEL


def describe_plan(
    jobs: Sequence[Job], adapter: Adapter, config: AdaptConfig, ranks: int, seconds: float | None = None, verify: bool = False
) -> str:
    """The table as text; nothing is written.

    Args:
        jobs, adapter, config: of the launch.
        ranks: number of processes.
        seconds: that one batch takes, None if that was not measured.
        verify: see `image_adapt.output.find_outputs`.

    Raises:
        ValueError: as the launch would (images of other settings in an output folder).
    """
    stale = {j for j, job in enumerate(jobs) if check_settings(job, settings_of(config, adapter, job), config.overwrite)}
    there = [{} if j in stale else find_outputs(job, verify).there for j, job in enumerate(jobs)]
    pieces = cut_pieces(jobs, there, config.batch_size)
    lines = [["cell", "images", "there", "to do", "batches"]]
    for j, job in enumerate(jobs):
        left = [rows for k, rows in pieces if k == j]
        images, batches = sum(map(len, left)), sum(_batches(rows, config) for rows in left)
        counts = (len(job.source), len(there[j]), images, batches)
        lines.append([job.cell.folder if job.cell.corruption else "images", *map(str, counts)])
    totals = [sum(int(line[column]) for line in lines[1:]) for column in range(1, 5)]
    lines.append(["total", *map(str, totals)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join([line[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(line[1:], widths[1:], strict=True))]) for line in lines
    ]
    return "\n".join([*table, *_summary(jobs, adapter, config, ranks, pieces, seconds)]) + "\n"


def _batches(rows: Sequence[int], config: AdaptConfig) -> int:
    return -(-len(rows) // config.batch_size)


def _summary(
    jobs: Sequence[Job], adapter: Adapter, config: AdaptConfig, ranks: int, pieces: Sequence[Piece], seconds: float | None
) -> list[str]:
    images, longest = sum(len(rows) for _, rows in pieces), max((_batches(rows, config) for _, rows in pieces), default=0)
    rounds, (forward, backward) = -(-len(pieces) // ranks) * longest, adapter.passes
    mib = sum(len(rows) * jobs[j].pixels for j, rows in pieces) * BYTES_A_PIXEL[config.output] / 2**20
    lines = [
        f"ranks: {ranks}, at most {rounds} batches of {config.batch_size} each",
        adapter.describe(),
        f"network passes an image: {forward} forward, {backward} backward; in all {images * forward} and {images * backward}",
        f"disk: at most about {mib:.1f} MiB ({config.output}) in {config.fill(config.save_dir)}",
    ]
    if seconds is not None:
        lines.append(f"time: {_duration(rounds * seconds)} ({seconds:.2f} s for a batch on this machine)")
    return [line for line in lines if line]


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def time_batch(jobs: Sequence[Job], adapter: Adapter, config: AdaptConfig, device: torch.device) -> float:
    """Seconds for the first batch of the first cell, reading and the network's first call included;
    nothing is written.

    Raises:
        ValueError: none of its images can be read.
    """
    start = time.perf_counter()
    first = list(range(min(config.batch_size, len(jobs[0].source))))
    results = [adapt_rows(jobs[0], rows, adapter, config, device) for rows in jobs[0].batches(first, config.batch_size)]
    if not any(adapted for adapted, _, _ in results):
        raise ValueError(f"none of the images of the first batch can be read, e.g. {results[0][2][0]}")
    return time.perf_counter() - start
