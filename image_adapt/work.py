"""Adaptation as a list of images to be done: what is missing is shared out over ranks, written, and listed in a manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from image_adapt.config import LAYOUTS, AdaptConfig
from image_adapt.mpi import Progress, World
from utils.data.cells import MANIFEST, Cell, OnTheFly
from utils.data.folders import plain_source
from utils.data.image_source import ImageSource
from utils.data.images import BrokenImageError
from utils.data.pixels import from_signed, to_signed
from utils.data.sources import open_source
from utils.files import write_atomic
from utils.seeding import torch_generator

log = logging.getLogger(__name__)

SETTINGS = "settings.json"


class Adapter(Protocol):
    """Pure function of images and their random streams."""

    def adapt(self, x: Tensor, generators: list[torch.Generator]) -> Tensor:
        """x [B, 3, H, W] in [-1, 1] -> same shape; an image's result depends on it and its generator only."""


@dataclasses.dataclass(frozen=True)
class Job:
    """The images of one cell and where their adapted versions go."""

    cell: Cell
    source: ImageSource
    folder: Path
    levels: list[Any]  # degradation level of each image, None where it has none

    def path(self, i: int) -> Path:
        """Output file of image i.

        Raises:
            ValueError: its key would leave the output folder.
        """
        path = self.folder / f"{self.source.keys[i]}.png"
        if ".." in Path(self.source.keys[i]).parts or Path(self.source.keys[i]).is_absolute():
            raise ValueError(f"image key {self.source.keys[i]!r} would leave the output folder {self.folder}")
        return path


def plan_jobs(config: AdaptConfig, image_size: int) -> list[Job]:
    """One job a cell.

    Args:
        config: what is adapted.
        image_size: side that the diffusion model was trained on, pixels.

    Raises:
        ValueError, FileNotFoundError: data set or folder missing or empty, image side of the data set other than the model's.
    """
    save_dir = Path(config.fill(config.save_dir))
    if config.num_samples is not None and config.num_samples < 1:
        raise ValueError(f"num_samples {config.num_samples}: use at least 1, or leave it out for all images")
    jobs: list[Job] = []
    if config.input.folder:
        _check_apart(Path(config.input.folder), save_dir)
        jobs = [_folder_job(config, cell, save_dir, image_size) for cell in config.input.cells()]
    else:
        given = config.input
        clean = open_source(given.dataset, given.split, given.root, image_size, given.limit).limited(config.num_samples)
        if clean.image_size != image_size:
            raise ValueError(
                f"{given.dataset} has {clean.image_size} px images, the diffusion model was trained on {image_size} px"
            )
        view = OnTheFly(clean, given.seed, given.constants)
        for cell in given.cells():
            drawn = cell.severity is None
            levels = view.levels(cell, clean.keys).tolist() if drawn else [None] * len(clean)
            jobs.append(Job(cell, view.source(cell), save_dir / cell.folder, levels))
    return jobs


def _check_apart(folder: Path, save_dir: Path) -> None:
    """Outputs among the inputs would be read as inputs by the next call, or take their place."""
    inside, outside = folder.resolve(), save_dir.resolve()
    if inside == outside or inside in outside.parents or outside in inside.parents:
        raise ValueError(f"--save_dir {save_dir} and the input folder {folder} lie in one another: choose folders apart")


def _folder_job(config: AdaptConfig, cell: Cell, save_dir: Path, image_size: int) -> Job:
    pattern, parts = LAYOUTS[config.input.layout]
    below = pattern.format(corruption=cell.corruption, severity=cell.severity or 0, part=parts.get(config.input.train, ""))
    source = plain_source(Path(str(config.input.folder)) / below, image_size, below or "images")
    source = source.limited(config.num_samples)
    return Job(cell, source, save_dir / below, [None] * len(source))


def settings_of(config: AdaptConfig, model: str, job: Job) -> dict[str, Any]:
    """Everything that the images of a job depend on besides their own pixels and keys."""
    data = dataclasses.asdict(config.input)
    given = {k: data[k] for k in ("folder", "layout") if config.input.folder}
    if not config.input.folder:
        given = {k: data[k] for k in ("dataset", "split", "constants", "seed")}
    return {
        "adapter": "dda",
        "parameters": dataclasses.asdict(config.dda),
        "model": model,
        "seed": config.seed,
        "bfloat16": config.use_fp16,
        "corruption": job.cell.corruption,
        "severity": job.cell.severity,
        "input": given,
    }


def check_settings(job: Job, settings: dict[str, Any], overwrite: bool = False) -> None:
    """Store the settings beside the images; never mix images of two settings in one folder.

    Raises:
        ValueError: the folder holds images made with other settings; names what differs.
    """
    path = job.folder / SETTINGS
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        differing = [k for k in settings if stored.get(k) != json.loads(json.dumps(settings[k]))]
        if differing and overwrite:
            _clear(job)
        elif differing:
            shown = "; ".join(f"{k}: {stored.get(k)} there, {settings[k]} now" for k in differing)
            raise ValueError(
                f"{job.folder} holds images adapted with other settings ({shown}): choose another "
                "--save_dir, or replace them with --overwrite true"
            )
        else:
            return
    job.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(settings, indent=1, sort_keys=True) + "\n")


def _clear(job: Job) -> None:
    """Remove adapted images, those of the manifest and those about to be written, and nothing else that lies in the folder."""
    manifest = job.folder / MANIFEST
    lines = manifest.read_text(encoding="utf-8").splitlines() if manifest.is_file() else []
    listed = [job.folder / json.loads(line)["file"] for line in lines]
    for path in [*listed, *(job.path(i) for i in range(len(job.source))), manifest, job.folder / SETTINGS]:
        path.unlink(missing_ok=True)


def write_manifest(job: Job, settings: dict[str, Any], broken: Sequence[str]) -> None:
    """`manifest.jsonl`: a line an image with key, file, class index, level, seed and a digest of the settings; sorted by key."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    lines = []
    for i in sorted(range(len(job.source)), key=job.source.keys.__getitem__):
        key = job.source.keys[i]
        if key not in broken:
            row = {"key": key, "file": f"{key}.png", "label": int(job.source.labels[i]), "level": job.levels[i]}
            lines.append(json.dumps({**row, "seed": settings["seed"], "settings": digest}))
    write_atomic(job.folder / MANIFEST, "\n".join(lines) + "\n")


def adapt_batch(adapter: Adapter, images: Tensor, keys: Sequence[str], seed: int, batch_size: int, device: torch.device) -> Tensor:
    """uint8 [n, 3, H, W] -> uint8 [n, 3, H, W], n <= batch_size, run at the shape of a full batch (kernels differ by shape).

    The stream of an image is named by (seed, key) alone.
    """
    fill = [min(i, len(keys) - 1) for i in range(batch_size)]
    generators = [torch_generator(seed, "adapt", keys[i]) for i in fill]
    adapted = adapter.adapt(to_signed(images[fill]).to(device), generators)
    return from_signed(adapted[: len(keys)].cpu())


def _read(job: Job, rows: list[int]) -> tuple[list[int], Tensor, list[str]]:
    """Readable rows, their images, and what is wrong with the others."""
    try:
        return rows, job.source.images(rows), []
    except BrokenImageError as error:
        if len(rows) == 1:
            return [], torch.empty(0), [f"{job.source.keys[rows[0]]}\t{error}"]
    parts = [_read(job, [row]) for row in rows]
    good = [images for found, images, _ in parts if found]
    return sum((p[0] for p in parts), []), torch.cat(good) if good else torch.empty(0), sum((p[2] for p in parts), [])


def _save_png(path: Path, image: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, format="png", compress_level=1)
    write_atomic(path, buffer.getvalue())


@dataclasses.dataclass
class Outcome:
    """What a launch did: images found finished, adapted now, broken (key, reason), and seconds."""

    found: int
    adapted: int
    broken: list[str]
    seconds: float


def run_jobs(jobs: Sequence[Job], adapter: Adapter, config: AdaptConfig, model: str, world: World, device: torch.device) -> Outcome:
    """Adapt every image that has no output yet. The same call again goes on where the last one was stopped."""
    if world.rank == 0:
        for job in jobs:
            check_settings(job, settings_of(config, model, job), config.overwrite)
    # rank 0 looks once, so that all ranks share out the same list while files appear
    pending = world.broadcast([(j, i) for j, job in enumerate(jobs) for i in range(len(job.source)) if not job.path(i).is_file()])
    total = sum(len(job.source) for job in jobs)
    batches = _batches(pending, config.batch_size)
    progress = Progress(world, total, total - len(pending), "adapting")
    broken: list[tuple[int, str]] = []
    start = time.perf_counter()
    for j, rows in batches[world.rank :: world.size]:
        job = jobs[j]
        readable, images, bad = _read(job, rows)
        broken += [(j, line) for line in bad]
        if readable:
            keys = [job.source.keys[i] for i in readable]
            adapted = adapt_batch(adapter, images, keys, config.seed, config.batch_size, device)
            for i, image in zip(readable, adapted.numpy(), strict=True):
                _save_png(job.path(i), image)
        progress.add(len(rows))
    progress.finish()
    seconds = time.perf_counter() - start
    everyone = [entry for part in world.gather(broken) or [] for entry in part]
    if world.rank == 0:
        for j, job in enumerate(jobs):
            write_manifest(job, settings_of(config, model, job), [line.split("\t")[0] for k, line in everyone if k == j])
    return Outcome(total - len(pending), len(pending) - len(everyone), sorted(line for _, line in everyone), seconds)


def _batches(pending: Sequence[tuple[int, int]], size: int) -> list[tuple[int, list[int]]]:
    """(job, rows) pieces of at most `size` rows, none across two jobs."""
    pieces: list[tuple[int, list[int]]] = []
    for j, i in pending:
        if pieces and pieces[-1][0] == j and len(pieces[-1][1]) < size:
            pieces[-1][1].append(i)
        else:
            pieces.append((j, [i]))
    return pieces
