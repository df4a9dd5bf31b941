"""Which images a configuration asks for: one source a cell, from a data set, a folder tree or the
arrays of CIFAR-10-C.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from undegrade.image_adapt.config import LAYOUTS, ONE_CELL, AdaptConfig
from undegrade.image_adapt.job import Job
from undegrade.utils.data.cells import CLEAN, Cell, drawn_cell
from undegrade.utils.data.sources.folders import first_size, plain_source, read_files
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.sources.images import center_crop, list_images
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.data.sources.released import LABELS, dataset_of_arrays
from undegrade.utils.data.views import OnTheFly, ReleasedArrays

log = logging.getLogger(__name__)


def open_inputs(config: AdaptConfig, image_size: int) -> list[Job]:
    """One job a cell, its folder relative to `save_dir`; a subset (`list_file`, `limit`,
    `num_samples`) has the same keys in each.

    Args:
        config: what is adapted.
        image_size: side that the diffusion model was trained on, pixels.

    Raises:
        ValueError, FileNotFoundError: data set, folder, array or listed image missing, nothing
            there, cells that lack images of the subset, image side of the data set other than the
            model's, options that have no meaning for the kind of input.
    """
    given = config.input
    if given.folder is None:
        return list(_generated(config, image_size))
    for key in given.changed():
        raise ValueError(f"input.{key} is about degrading clean images, those of a folder are taken as they are: leave it out")
    folder = Path(given.folder)
    return list(_arrays(folder, config, image_size) if (folder / LABELS).is_file() else _folders(folder, config, image_size))


def _chosen(source: ImageSource, config: AdaptConfig) -> ImageSource:
    """The subset of a source that the configuration asks for."""
    given = config.input
    if given.list_file is not None:
        source = source.listed(given.list_file, "--list")
    return source.limited(given.limit).limited(config.num_samples)


def _check_size(source: ImageSource, image_size: int, name: str) -> None:
    if source.image_size != image_size:
        raise ValueError(f"{name} has {source.image_size} px images, the diffusion model was trained on {image_size} px")


def _generated(config: AdaptConfig, image_size: int) -> Iterator[Job]:
    """Clean images of a data set, corrupted as they are read."""
    given = config.input
    clean = _chosen(_with_images(given.open(given.split)), config)
    if not given.enlarge and clean.image_size < (image_size + 1) // 2:
        raise ValueError(
            f"{given.dataset} has {clean.image_size} px images, too small to be enlarged to the {image_size} px of the diffusion "
            "model (--enlarge true does it anyway)"
        )
    view = OnTheFly(clean, given.seed, given)
    for cell in given.cells():
        drawn = cell.severity is None
        levels = view.levels(cell, clean.keys).tolist() if drawn else [None] * len(clean)
        yield Job(cell, _resized(view.source(cell), image_size), Path(cell.folder), levels, input_side=clean.image_size)


def _with_images(source: ImageSource) -> ImageSource:
    if source.listing_of is not None:
        raise ValueError(
            f"{source.listing_of} holds corrupted images only: adapt those with --base_samples {source.listing_of}, or point "
            "input.root at the clean data set"
        )
    return source


def _resized(source: ImageSource, size: int) -> ImageSource:
    """The images as they are corrupted, then brought to the size of the diffusion model as files of
    that size are.
    """
    if source.image_size == size:
        return source
    return dataclasses.replace(source, image_size=size, read=functools.partial(_read_resized, source, size))


def _read_resized(source: ImageSource, size: int, rows: np.ndarray) -> Tensor:
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in source.images(rows)]
    return torch.from_numpy(np.stack([np.asarray(center_crop(image, size)).transpose(2, 0, 1) for image in images]))


def _arrays(folder: Path, config: AdaptConfig, image_size: int) -> Iterator[Job]:
    """The published arrays; keys are those of the clean test set, `<class>/test_<row>`."""
    given = config.input
    cells = given.cells()
    random = [cell.folder for cell in cells if cell.severity is None]
    if random or cells == [Cell("", 0)]:
        raise ValueError(
            f"{folder} holds arrays of the severities 1..5: name corruptions and severities, not {random or 'nothing'}"
        )
    read = CLEAN in given.corruptions
    clean = open_source(dataset_of_arrays(folder), "test", given.root if read else folder)
    view = ReleasedArrays(folder, _chosen(_with_images(clean) if read else clean, config))
    _check_size(view.clean, image_size, str(folder))
    for cell in cells:
        source = view.source(cell)
        yield Job(cell, source, Path(cell.folder), [None] * len(source))


def _folders(folder: Path, config: AdaptConfig, image_size: int) -> Iterator[Job]:
    """Images on disk, in one of the `LAYOUTS`."""
    given = config.input
    pattern, parts = LAYOUTS[given.layout]
    if given.layout in ONE_CELL and given.corruptions:
        kind = "a plain folder" if given.layout == "plain" else f"a folder of the layout {given.layout}"
        raise ValueError(
            f"--corruption {','.join(given.corruptions)} has no meaning for {kind}: give its layout with --dataset "
            f"({', '.join(name for name in LAYOUTS if name not in ONE_CELL)}; imagenetw without --corruption), or corrupt clean "
            "images by --dataset <folder> instead of --base_samples"
        )
    cells = {pattern.format(cell=cell, part=parts.get(given.train, "")): cell for cell in given.cells()}
    if "{cell.folder}" not in pattern and given.layout not in ONE_CELL:  # all severities are one folder
        cells = {below: drawn_cell(cell.corruption) for below, cell in cells.items()}
    smallest = 0 if given.enlarge else (image_size + 1) // 2
    chosen: list[str] | None = None
    for below, cell in cells.items():
        paths = list_images(folder / below)
        found = plain_source(folder / below, image_size, below or "images", paths)
        found = dataclasses.replace(found, read=functools.partial(read_files, paths, image_size, None, smallest=smallest))
        if chosen is None:
            chosen, origin = _chosen(_by_folder(found, given.layout), config).keys, found
        if len(chosen) < len(origin):
            _check_subset(chosen, origin, found)
            found = found.aligned(chosen, below)
        else:
            _compare(origin, found)
        yield Job(cell, found, Path(below), [None] * len(found), input_side=_side(paths))


def _side(paths: Sequence[Path]) -> int | None:
    """Side of the first picture if it is a square."""
    try:
        width, height = first_size(paths)
    except ValueError:  # none can be read: each will be named
        return None
    return width if width == height else None


def _by_folder(source: ImageSource, name: str) -> ImageSource:
    """Folders as classes, so that a subset is drawn evenly from them, and the same from every cell."""
    folders = [key.rpartition("/")[0] for key in source.keys]
    number = {folder: i for i, folder in enumerate(sorted(set(folders)))}
    return dataclasses.replace(source, name=name, labels=torch.tensor([number[folder] for folder in folders]))


def _check_subset(chosen: Sequence[str], origin: ImageSource, other: ImageSource) -> None:
    lacking = set(chosen) - set(other.keys)
    if lacking:
        raise ValueError(
            f"{other.name} lacks {len(lacking)} of the {len(chosen)} images that were chosen from {origin.name}, e.g. "
            f"{min(lacking)}: choose some that every cell has, by --list"
        )


def _compare(origin: ImageSource, other: ImageSource) -> None:
    """Trees that differ are adapted as they are, but said: images are paired by key later."""
    for few, many in ((origin, other), (other, origin)):
        lacking = set(many.keys) - set(few.keys)
        if lacking:
            log.warning("%s lacks %d images that %s has, e.g. %s", few.name, len(lacking), many.name, min(lacking))
