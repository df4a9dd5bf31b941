"""New images of given classes: which, from which noise, and into which files.

Image j of class c among the K classes of the generator has the number g = j K + c. Its class and
its noise follow from (seed, g), so that more images a class, other classes and other numbers of
ranks give the same files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undegrade.image_adapt.generator import GenerateConfig, ImageGenerator, Opened
from undegrade.image_adapt.job import Job
from undegrade.image_adapt.launch import LaunchOptions, sole_writer
from undegrade.image_adapt.mpi import World
from undegrade.image_adapt.output import Stored, find_outputs, write_manifest
from undegrade.image_adapt.settings import check_settings, note_launch, prepare
from undegrade.image_adapt.sharing import BatchResult, Outcome, conclude, cut_pieces, finished, share_out, sift
from undegrade.utils.costs import BYTES_A_PIXEL
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.sources.folders import CLASS_MAP
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.files import write_atomic
from undegrade.utils.seeding import torch_generator


def parse_classes(text: str | int, num_classes: int) -> list[int]:
    """Class numbers that `all`, or a list of numbers and ranges such as `0-9,17` names, ascending.

    Raises:
        ValueError: not understood; a class that the generator does not have.
    """
    if text == "all":
        return list(range(num_classes))
    chosen: set[int] = set()
    for part in str(text).split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise ValueError(f"--classes {text}: {part!r} is not understood: give all, or numbers and ranges such as 0-9,17")
        if last >= num_classes:
            raise ValueError(f"--classes {text}: the generator has the classes 0..{num_classes - 1}")
        chosen |= set(range(first, last + 1))
    return sorted(chosen)


def job_of(numbers: Iterable[int], num_classes: int, image_size: int, folder: Path) -> Job:
    """The images with these numbers g: keys, files and labels."""
    numbers = sorted(numbers)
    labels = [g % num_classes for g in numbers]
    keys = [f"{c:04d}/{g:06d}" for c, g in zip(labels, numbers, strict=True)]
    names = tuple(f"{c:04d}" for c in range(num_classes))
    source = ImageSource("generated", names, torch.tensor(labels, dtype=torch.int64), keys, image_size, _no_pixels)
    return Job(Cell("", 0), source, folder, [None] * len(numbers))


def _no_pixels(rows: np.ndarray) -> Tensor:
    raise AssertionError("generated images are computed, not read")


def number_of(key: str) -> int:
    """g of an image by its key."""
    return int(key.rpartition("/")[2])


def _asked(config: GenerateConfig, generator: ImageGenerator) -> list[int]:
    count = generator.num_classes
    classes = parse_classes(config.classes, count)
    return [j * count + c for j in range(config.num_per_class) for c in classes]


def _present(folder: Path, num_classes: int) -> list[int]:
    """Numbers of the images that lie in the folder, whichever command made them."""
    found = [p for p in folder.glob("*/*.png") if re.fullmatch(r"\d{4,}/\d{6,}", f"{p.parent.name}/{p.stem}")]
    return [int(p.stem) for p in found if int(p.stem) % num_classes == int(p.parent.name)]


def settings_of(opened: Opened, config: GenerateConfig) -> dict[str, Any]:
    """Everything that a generated image depends on besides its number."""
    return {
        "generator": "pixels" if opened.vae is None else "latents",
        "model": opened.digest(),
        "classes": opened.generator.num_classes,
        "parameters": opened.generator.parameters,
        "seed": config.seed,
        "precision": config.precision,
    }


def generate(opened: Opened, config: GenerateConfig, world: World, options: LaunchOptions | None = None) -> Outcome:
    """Make every image that has no file yet. The same call again goes on where the last one was
    stopped.

    Raises:
        ValueError: images of other settings in the folder; another launch that writes there; a
            class that the generator does not have.
        Interrupted, Stopped: see `image_adapt.work.run_jobs`.
    """
    options = options or LaunchOptions()
    generator, folder = opened.generator, Path(config.fill(config.save_dir))
    numbers = _asked(config, generator)

    def compute(job: Job, rows: list[int]) -> BatchResult:
        keys = [job.source.keys[i] for i in rows]
        filled = [keys[min(i, len(keys) - 1)] for i in range(config.batch_size)]  # kernels differ by shape
        streams = [torch_generator(config.seed, "generate", number_of(key)) for key in filled]
        images = generator.generate([number_of(key) % generator.num_classes for key in filled], streams)
        return finished(job, rows, images[: len(rows)].cpu(), "the generator", config.batch_size)

    job = _job(numbers, opened, folder)
    with sole_writer(world, [job], "generation"):
        there: list[dict[int, Stored]] = []
        if world.rank == 0:
            settings = settings_of(opened, config)
            prepare(_job({*numbers, *_present(folder, generator.num_classes)}, opened, folder), settings, config.overwrite)
            everything = _job({*numbers, *_present(folder, generator.num_classes)}, opened, folder)  # without those of others
            before = _by_key(everything, sift(everything, settings, options.verify))
            there.append({i: before[key] for i, key in enumerate(job.source.keys) if key in before})
            if missing := len(numbers) - len(there[0]):
                note_launch(job, settings, missing, world.size, config)
            if opened.class_names:
                lines = [f"{c:04d} {name}\n" for c, name in enumerate(opened.class_names)]
                write_atomic(folder / CLASS_MAP, "".join(lines))
        outcome = share_out([job], there, compute, world, config.batch_size, "png", "generating", options)
        if world.rank == 0:
            now = before | _by_key(job, outcome.there[0])
            rows = {i: now[key] for i, key in enumerate(everything.source.keys) if key in now}
            write_manifest(everything, settings, rows, [entry for _, entry in outcome.broken])
    conclude(outcome, world)
    return outcome


def _by_key(job: Job, rows: Mapping[int, Stored]) -> dict[str, Stored]:
    return {job.source.keys[i]: stored for i, stored in rows.items()}


def _job(numbers: Iterable[int], opened: Opened, folder: Path) -> Job:
    return job_of(numbers, opened.generator.num_classes, opened.generator.image_size, folder)


def describe_generation(opened: Opened, config: GenerateConfig, ranks: int, verify: bool = False) -> str:
    """What a launch would do, as text; nothing is written.

    Raises:
        ValueError: as the launch would.
    """
    generator, folder = opened.generator, Path(config.fill(config.save_dir))
    job = _job(_asked(config, generator), opened, folder)
    stale = check_settings(job, settings_of(opened, config), config.overwrite)
    pieces = cut_pieces([job], [{} if stale else find_outputs(job, verify).there], config.batch_size)
    rounds, pending = -(-len(pieces) // ranks), sum(len(rows) for _, rows in pieces)
    classes, images = len(parse_classes(config.classes, generator.num_classes)), len(job.source)
    mib = pending * generator.image_size**2 * BYTES_A_PIXEL["png"] / 2**20
    return (
        f"classes: {classes} of {generator.num_classes}, {config.num_per_class} images each, {generator.image_size} px\n"
        f"images: {images}, {images - pending} there, {pending} to do\n"
        f"ranks: {ranks}, at most {rounds} batches of {config.batch_size} each\n"
        f"steps: {generator.steps}; passes of the network: {generator.passes} an image, {generator.passes * pending} in all\n"
        f"disk: at most about {mib:.1f} MiB in {folder}\n"
    )
