"""Adaptation: which images are made of which, and by whom."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undegrade.image_adapt.adapter import Adapter
from undegrade.image_adapt.arrays import check_arrays, write_arrays
from undegrade.image_adapt.config import DATATYPES, AdaptConfig
from undegrade.image_adapt.inputs import open_inputs
from undegrade.image_adapt.job import Job
from undegrade.image_adapt.launch import LaunchOptions, sole_writer
from undegrade.image_adapt.mpi import World
from undegrade.image_adapt.output import ENCODINGS, Stored, write_manifest
from undegrade.image_adapt.settings import copy_class_map, note_cost, note_launch, prepare, settings_of
from undegrade.image_adapt.sharing import BatchResult, Outcome, conclude, finished, share_out, sift
from undegrade.utils.data.pixels import to_signed
from undegrade.utils.data.sources.image_source import Broken
from undegrade.utils.paths import escaped
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
        return [], [], [*broken, Broken(keys[0], f"{type(error).__name__}: {escaped(error)}")]
    made, pixels, failed = finished(job, readable, adapted, f"the adapter {config.adapter}", config.batch_size, config.rounding)
    return made, pixels, broken + failed


def run_jobs(
    jobs: Sequence[Job],
    adapter: Adapter,
    config: AdaptConfig,
    world: World,
    device: torch.device,
    options: LaunchOptions | None = None,
) -> Outcome:
    """Adapt every image that has no output yet. The same call again goes on where the last one was
    stopped.

    Raises:
        ValueError: another launch writes into one of the folders; images of other settings.
        Interrupted: it was asked for; what is done is written.
        Stopped: a rank hangs; what others could do is done and written.
    """
    options = options or LaunchOptions()
    adapt = functools.partial(adapt_rows, adapter=adapter, config=config, device=device)
    with sole_writer(world, jobs, "adaptation"):
        settings: list[dict[str, Any]] = []
        there: list[dict[int, Stored]] = []
        begun: list[Job] = []
        if world.rank == 0:
            settings = [settings_of(config, adapter, job) for job in jobs]
            for job, wanted in zip(jobs, settings, strict=True):
                prepare(job, wanted, config.overwrite)
                there.append(sift(job, wanted, options.verify))
                if missing := len(job.source) - len(there[-1]):
                    note_launch(job, wanted, missing, world.size, config)
                    begun.append(job)
            copy_class_map(config)
        outcome = share_out(jobs, there, adapt, world, config.batch_size, config.output, "adapting", options)
        if world.rank == 0:
            for j, job in enumerate(jobs):
                write_manifest(job, settings[j], outcome.there[j], [entry for k, entry in outcome.broken if k == j])
            for job in begun if outcome.written else []:
                note_cost(job, adapter, outcome.written, outcome.seconds, world.size)
            if config.output == "npy":
                _write_arrays(jobs, outcome, Path(config.fill(config.save_dir)))
    conclude(outcome, world)
    return outcome


def _write_arrays(jobs: Sequence[Job], outcome: Outcome, save_dir: Path) -> None:
    if all(len(there) == len(job.source) for job, there in zip(jobs, outcome.there, strict=True)):
        write_arrays(jobs, save_dir)
    else:
        log.warning("the arrays are not written: they hold every image of a test set")
