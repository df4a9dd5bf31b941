"""A list of images that are to be there: what is missing is shared out over ranks, computed and
written; what adaptation and generation have in common.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undegrade.image_adapt.job import Job
from undegrade.image_adapt.launch import LaunchOptions
from undegrade.image_adapt.mpi import World
from undegrade.image_adapt.output import Stored, discard, encode, find_outputs, store, write_manifest
from undegrade.image_adapt.work_queue import distribute
from undegrade.utils.data.manifest import MANIFEST
from undegrade.utils.data.pixels import from_signed
from undegrade.utils.data.sources.image_source import Broken
from undegrade.utils.errors import Stopped
from undegrade.utils.interruption import Interrupted
from undegrade.utils.paths import escaped
from undegrade.utils.progress import progress_bar

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Outcome:
    """What a launch did; all but `seconds` is known on the first rank only.

    Attributes:
        found: images that were there.
        written: images made now.
        broken: images that could not be made, with their jobs.
        seconds: of the work.
        there: the images of each job that are there at the end.
        left: images that nobody came to.
        stopped: why, if it was asked for.
        silent: ranks that hang.
    """

    found: int = 0
    written: int = 0
    broken: list[tuple[int, Broken]] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    there: list[dict[int, Stored]] = dataclasses.field(default_factory=list)
    left: int = 0
    stopped: str | None = None
    silent: list[int] = dataclasses.field(default_factory=list)

    @property
    def speed(self) -> float:
        """Images a second."""
        return self.written / self.seconds if self.seconds else 0.0


# rows that could be read, their new images uint8 [3, H, W], what is wrong with the others
BatchResult = tuple[list[int], list[np.ndarray], list[Broken]]


def finished(job: Job, rows: list[int], images: Tensor, by: str, batch_size: int, rounding: str = "round") -> BatchResult:
    """Images [B, 3, H, W], about [-1, 1], as pixels. One with a number that is not finite is no
    image.

    Raises:
        ValueError: a full batch without one image.
    """
    finite = torch.isfinite(images).flatten(1).all(1).tolist()
    failed = [
        Broken(job.source.keys[i], f"{by} made numbers of it that are not finite")
        for i, fine in zip(rows, finite, strict=True)
        if not fine
    ]
    if len(failed) == batch_size > 1:
        raise ValueError(f"{by} makes numbers that are not finite of all {batch_size} images of a batch, e.g. of "
                         f"{escaped(failed[0].key)}: its weights or its options are at fault")  # fmt: skip
    pixels = from_signed(images[finite], rounding).numpy()
    return [i for i, fine in zip(rows, finite, strict=True) if fine], list(pixels), failed


def conclude(outcome: Outcome, world: World) -> None:
    """End a launch that is not done, on all ranks; they call it together once everything is
    written.

    Raises:
        Interrupted, Stopped: see `run_jobs`.
    """
    counts = f"{outcome.written} images were made, {outcome.left} are left"
    if outcome.silent:
        raise Stopped(f"rank {', '.join(map(str, outcome.silent))} hangs; {counts}, the same command goes on from there")
    reason = world.broadcast(outcome.stopped)
    if reason:
        raise Interrupted(f"{reason}; {counts}")


def sift(job: Job, settings: Mapping[str, Any], verify: bool = False) -> dict[int, Stored]:
    """The images that are there. Damaged ones are removed, and the lines of the manifest about
    those that will be made.
    """
    found = find_outputs(job, verify)
    if found.damaged:
        log.warning(
            "%s: %d images are not what was written, they are made again: %s", job.folder, len(found.damaged),
            ", ".join(escaped(job.source.keys[i]) for i in found.damaged[:5]) + ", ..." * (len(found.damaged) > 5),
        )  # fmt: skip
        discard(job, found.damaged)
    if len(found.there) < len(job.source) and (job.folder / MANIFEST).is_file():
        write_manifest(job, settings, found.there)
    return found.there


def share_out(
    jobs: Sequence[Job],
    there: Sequence[dict[int, Stored]],
    compute: Callable[[Job, list[int]], BatchResult],
    world: World,
    batch_size: int,
    output: str,
    doing: str,
    options: LaunchOptions,
) -> Outcome:
    """Compute and save every image that is not there yet, shared out over the ranks in batches or
    shards, under one progress bar.

    Args:
        jobs: images and their files.
        there: on the first rank what is there of each job: it looks once, for all.
        compute: gives the images of a batch of a job, by their rows.
        world: all ranks call this together.
        batch_size: images of a batch, at most.
        output: name in `image_adapt.output.ENCODINGS`.
        doing: what the progress bar says.
        options: of the launch.
    """

    def work(number: int, goes_on: Callable[[int], bool]) -> tuple[dict[int, Stored], list[Broken]]:
        j, rows = pieces[number]
        files: dict[int, bytes] = {}
        broken: list[Broken] = []
        for batch in jobs[j].batches(rows, batch_size):
            computed, images, bad = compute(jobs[j], batch)
            broken += bad
            files |= {i: encode(image, output) for i, image in zip(computed, images, strict=True)}
            if not goes_on(len(batch)):
                break
        written, bad = store(jobs[j], rows, files)
        return written, broken + bad

    pieces = world.broadcast(cut_pieces(jobs, there, batch_size) if world.rank == 0 else None)
    names = [f"{len(rows)} images of {jobs[j].folder}, from {escaped(jobs[j].source.keys[rows[0]])} on" for j, rows in pieces]
    found = sum(map(len, there))
    start = time.perf_counter()
    with progress_bar(total=sum(len(job.source) for job in jobs), initial=found, desc=doing, unit="img", disable=world.rank != 0,
              ) as bar:  # fmt: skip
        board = distribute(world, names, work, options, lambda images: bar.update(found + images - bar.n) and None)
    seconds = time.perf_counter() - start
    if board is None:
        return Outcome(seconds=seconds)
    now = [dict(before) for before in there]
    broken = []
    for number, (written, bad) in board.results.items():
        j = pieces[number][0]
        now[j] |= written
        broken += [(j, entry) for entry in bad]
    made = sum(map(len, now)) - found
    left = sum(len(rows) for _, rows in pieces) - made - len(broken)
    stopped = board.stopped if left else None
    return Outcome(found, made, sorted(broken, key=lambda entry: entry[1]), seconds, now, left, stopped, sorted(board.silent))


Piece = tuple[int, list[int]]  # a job, and images of it that one rank computes and writes


def cut_pieces(jobs: Sequence[Job], there: Sequence[Collection[int]], batch_size: int) -> list[Piece]:
    """What is not there yet of each job: batches of at most `batch_size`, or all that a shard
    lacks.
    """
    pieces: list[Piece] = []
    for j, job in enumerate(jobs):
        rows = [i for i in (range(len(job.source)) if job.shard_size is None else job.by_key) if i not in there[j]]
        for shard, group in ((shard, list(group)) for shard, group in itertools.groupby(rows, job.shard)):
            size = batch_size if shard is None else len(group)
            pieces += [(j, group[k : k + size]) for k in range(0, len(group), size)]
    return pieces
