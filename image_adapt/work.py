"""Adaptation as a list of images to be done: what is missing is shared out over ranks, written, and
listed in a manifest.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undegrade.image_adapt.adapter import Adapter
from undegrade.image_adapt.arrays import check_arrays, write_arrays
from undegrade.image_adapt.config import DATATYPES, AdaptConfig
from undegrade.image_adapt.inputs import open_inputs
from undegrade.image_adapt.job import Job
from undegrade.image_adapt.mpi import Progress, World
from undegrade.image_adapt.output import ENCODINGS, Stored, discard, encode, find_outputs, store, write_manifest
from undegrade.image_adapt.settings import copy_class_map, prepare, settings_of
from undegrade.image_adapt.work_queue import dequeue
from undegrade.utils.data.manifest import MANIFEST
from undegrade.utils.data.pixels import from_signed, to_signed
from undegrade.utils.data.sources.image_source import Broken
from undegrade.utils.seeding import torch_generator

log = logging.getLogger(__name__)


def plan_jobs(config: AdaptConfig, image_size: int | None) -> list[Job]:
    """One job a cell.

    Args:
        config: what is adapted.
        image_size: see `image_adapt.inputs.open_inputs`.

    Raises:
        ValueError, FileNotFoundError: see `image_adapt.inputs.open_inputs`; outputs among the
            inputs; an output that does not fit.
    """
    save_dir = Path(config.fill(config.save_dir))
    if config.input.folder:
        _check_apart(Path(config.input.folder), save_dir)
    suffix, shard_size = ENCODINGS[config.output][0], config.shard_size if config.output == "tar" else None
    jobs = [
        dataclasses.replace(job, folder=save_dir / job.folder, suffix=suffix, shard_size=shard_size)
        for job in open_inputs(config, image_size)
    ]
    if config.output == "npy":
        check_arrays(jobs)
    return jobs


def _check_apart(folder: Path, save_dir: Path) -> None:
    """Outputs among the inputs would be read as inputs by the next call, or take their place."""
    inside, outside = folder.resolve(), save_dir.resolve()
    if inside == outside or inside in outside.parents or outside in inside.parents:
        raise ValueError(
            f"--save_dir {save_dir} and the input folder {folder} lie in one another: choose folders apart, or say what "
            f"is adapted with --datatype ({', '.join(DATATYPES)}), whose images have a folder of their own"
        )


def adapt_batch(adapter: Adapter, images: Tensor, keys: Sequence[str], seed: int, batch_size: int, device: torch.device) -> Tensor:
    """uint8 [n, 3, H, W] -> about [-1, 1], [n, 3, H, W], n <= batch_size, run at the shape of a
    full batch (kernels differ by shape).

    The stream of an image is named by (seed, key) alone.
    """
    fill = [min(i, len(keys) - 1) for i in range(batch_size)]
    generators = [torch_generator(seed, "adapt", keys[i]) for i in fill]
    x = to_signed(images[fill]).to(device)
    adapted = adapter.adapt(x, generators)
    if adapted.shape != x.shape:
        raise ValueError(
            f"{type(adapter).__name__} makes images of shape {list(adapted.shape)} from {list(x.shape)}: the same is needed"
        )
    return adapted[: len(keys)].cpu()


@dataclasses.dataclass
class Outcome:
    """What a launch did: images found finished, written now, broken (with their job), and
    seconds.

    On the first rank also `there`, the images of each job that are there at the end.
    """

    found: int
    written: int
    broken: list[tuple[int, Broken]]
    seconds: float
    there: list[dict[int, Stored]]

    @property
    def speed(self) -> float:
        """Images a second."""
        return self.written / self.seconds if self.seconds else 0.0


# rows that could be read, their new images uint8 [3, H, W], what is wrong with the others
BatchResult = tuple[list[int], list[np.ndarray], list[Broken]]


def adapt_rows(job: Job, rows: list[int], adapter: Adapter, config: AdaptConfig, device: torch.device) -> BatchResult:
    """Read and adapt a batch of a job."""
    readable, images, broken = job.source.readable(rows)
    if not readable:
        return [], [], broken
    keys = [job.source.keys[i] for i in readable]
    size = len(keys) if adapter.batch_matters or job.whole else config.batch_size
    try:
        adapted = adapt_batch(adapter, images, keys, config.seed, size, device)
    except (ValueError, RuntimeError) as error:  # too small for a filter, too large for the memory
        if not job.whole:  # all images of a launch are alike
            raise
        return [], [], [*broken, Broken(keys[0], f"{type(error).__name__}: {error}")]
    made, pixels, failed = finished(job, readable, adapted, f"the adapter {config.adapter}", config.batch_size, config.rounding)
    return made, pixels, broken + failed


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
        raise ValueError(f"{by} makes numbers that are not finite of all {batch_size} images of a batch, e.g. {failed[0].key}: "
                         "its weights or its options are at fault")  # fmt: skip
    pixels = from_signed(images[finite], rounding).numpy()
    return [i for i, fine in zip(rows, finite, strict=True) if fine], list(pixels), failed


def run_jobs(
    jobs: Sequence[Job], adapter: Adapter, config: AdaptConfig, world: World, device: torch.device, verify: bool = False
) -> Outcome:
    """Adapt every image that has no output yet. The same call again goes on where the last one was
    stopped. `verify`: read and decode all that is there, see `find_outputs`.
    """
    settings: list[dict[str, Any]] = []
    there: list[dict[int, Stored]] = []
    if world.rank == 0:
        settings = [settings_of(config, adapter, job) for job in jobs]
        for job, wanted in zip(jobs, settings, strict=True):
            prepare(job, wanted, config.overwrite)
            there.append(sift(job, wanted, verify))
        copy_class_map(config)
    adapt = functools.partial(adapt_rows, adapter=adapter, config=config, device=device)
    outcome = share_out(jobs, there, adapt, world, config.batch_size, config.output, "adapting")
    if world.rank == 0:
        for j, job in enumerate(jobs):
            write_manifest(job, settings[j], outcome.there[j], [entry for k, entry in outcome.broken if k == j])
        if config.output == "npy" and outcome.broken:
            log.warning("the arrays are not written: they hold every image of a test set")
        elif config.output == "npy":
            write_arrays(jobs, Path(config.fill(config.save_dir)))
    return outcome


def sift(job: Job, settings: Mapping[str, Any], verify: bool = False) -> dict[int, Stored]:
    """The images that are there. Damaged ones are removed, and the lines of the manifest about
    those that will be made.
    """
    found = find_outputs(job, verify)
    if found.damaged:
        log.warning(
            "%s: %d images are not what was written, they are made again: %s", job.folder, len(found.damaged),
            ", ".join(job.source.keys[i] for i in found.damaged[:5]) + ", ..." * (len(found.damaged) > 5),
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
    """
    pieces = world.broadcast(cut_pieces(jobs, there, batch_size) if world.rank == 0 else None)
    pending = sum(len(rows) for _, rows in pieces)
    total = sum(len(job.source) for job in jobs)
    progress = Progress(world, total, total - pending, doing)
    broken: list[tuple[int, Broken]] = []
    stored: list[tuple[int, dict[int, Stored]]] = []
    start = time.perf_counter()
    for j, rows in (pieces[p] for p in dequeue(world, len(pieces), progress.take_in)):
        files: dict[int, bytes] = {}
        for batch in jobs[j].batches(rows, batch_size):
            computed, images, bad = compute(jobs[j], batch)
            broken += [(j, entry) for entry in bad]
            files |= {i: encode(image, output) for i, image in zip(computed, images, strict=True)}
            progress.add(len(batch))
        written, bad = store(jobs[j], rows, files)
        broken += [(j, entry) for entry in bad]
        stored.append((j, written))
    progress.finish()
    seconds = time.perf_counter() - start
    everyone = [entry for part in world.gather(broken) or [] for entry in part]
    found = sum(map(len, there))
    now = [dict(before) for before in there]
    for j, written in (entry for part in world.gather(stored) or [] for entry in part):
        now[j] |= written
    return Outcome(found, sum(map(len, now)) - found, sorted(everyone, key=lambda entry: entry[1]), seconds, now)


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
