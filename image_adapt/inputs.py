"""Which images a configuration asks for: one source a cell, from a data set, a folder tree or the
arrays of CIFAR-10-C.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from undegrade.image_adapt.config import LAYOUTS, ONE_CELL, AdaptConfig
from undegrade.image_adapt.job import Job
from undegrade.utils.data.cells import CLEAN, Cell, drawn_cell
from undegrade.utils.data.sources.folders import first_size, plain_source, read_files
from undegrade.utils.data.sources.image_files import list_images
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.sources.images import center_crop, read_image
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.data.sources.released import LABELS, dataset_of_arrays
from undegrade.utils.data.views import OnTheFly, ReleasedArrays

log = logging.getLogger(__name__)


def open_inputs(config: AdaptConfig, image_size: int | None) -> list[Job]:
    """One job a cell, its folder relative to `save_dir`; a subset (`list_file`, `limit`,
    `num_samples`) has the same keys in each.

    Args:
        config: what is adapted.
        image_size: side of the images that the adapter takes, pixels; None: any size. Images of a
            folder then stay whole, and those of a data set as large as they are there.

    Raises:
        ValueError, FileNotFoundError: data set, folder, array or listed image missing, nothing
            there, cells that lack images of the subset, image side of the data set other than the
            adapter's, options that have no meaning for the kind of input.
    """
    given = config.input
    if given.enlarge and image_size is None:
        raise ValueError(f"--enlarge has no meaning for the adapter {config.adapter}, which takes images of any size: leave it out")
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


def _generated(config: AdaptConfig, image_size: int | None) -> Iterator[Job]:
    """Clean images of a data set, corrupted as they are read."""
    given = config.input
    clean = _chosen(_with_images(given.open(given.split)), config)
    size = image_size or clean.image_size
    if not given.enlarge and clean.image_size < (size + 1) // 2:
        raise ValueError(
            f"{given.dataset} has {clean.image_size} px images, too small to be enlarged to the {size} px of the adapter "
            f"{config.adapter} (--enlarge true does it anyway)"
        )
    view = OnTheFly(clean, given.seed, given)
    for cell in given.cells():
        drawn = cell.severity is None
        levels = view.levels(cell, clean.keys).tolist() if drawn else [None] * len(clean)
        yield Job(cell, _resized(view.source(cell), size), Path(cell.folder), levels, input_size=(clean.image_size,) * 2)


def _with_images(source: ImageSource) -> ImageSource:
    if source.listing_of is not None:
        raise ValueError(
            f"{source.listing_of} holds corrupted images only: adapt those with --base_samples {source.listing_of}, or point "
            "input.root at the clean data set"
        )
    return source


def _resized(source: ImageSource, size: int) -> ImageSource:
    """The images as they are corrupted, then brought to the size of the adapter as files of that
    size are.
    """
    if source.image_size == size:
        return source
    return dataclasses.replace(source, image_size=size, read=functools.partial(_read_resized, source, size))


def _read_resized(source: ImageSource, size: int, rows: np.ndarray) -> Tensor:
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in source.images(rows)]
    return torch.from_numpy(np.stack([np.asarray(center_crop(image, size)).transpose(2, 0, 1) for image in images]))


def _arrays(folder: Path, config: AdaptConfig, image_size: int | None) -> Iterator[Job]:
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
    if image_size not in (None, view.clean.image_size):
        raise ValueError(f"{folder} has {view.clean.image_size} px images, the adapter {config.adapter} takes {image_size} px")
    for cell in cells:
        source = view.source(cell)
        yield Job(cell, source, Path(cell.folder), [None] * len(source))


def _folders(folder: Path, config: AdaptConfig, image_size: int | None) -> Iterator[Job]:
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
    chosen: list[str] | None = None
    for below, cell in cells.items():
        paths = list_images(folder / below)
        found = plain_source(folder / below, image_size or 0, below or "images", paths)
        found = dataclasses.replace(found, read=_reader(paths, image_size, given.enlarge))
        if chosen is None:
            chosen, origin = _chosen(_by_folder(found, given.layout), config).keys, found
        if len(chosen) < len(origin):
            _check_subset(chosen, origin, found)
            found = found.aligned(chosen, below)
        else:
            _compare(origin, found)
        yield Job(cell, found, Path(below), [None] * len(found), input_size=_first_size(paths), whole=image_size is None)


def _reader(paths: Sequence[Path], image_size: int | None, enlarge: bool) -> Callable[[np.ndarray], Tensor]:
    """`read` of squares of `image_size`, or of whole pictures, one at a time."""
    if image_size is None:
        return functools.partial(_read_whole, paths)
    return functools.partial(read_files, paths, image_size, None, smallest=0 if enlarge else (image_size + 1) // 2)


def _read_whole(paths: Sequence[Path], rows: np.ndarray) -> Tensor:
    (row,) = rows
    return torch.from_numpy(read_image(paths[row], None)[None].copy())


def _first_size(paths: Sequence[Path]) -> tuple[int, int] | None:
    try:
        return first_size(paths)
    except ValueError:  # none can be read: each will be named
        return None


def _by_folder(source: ImageSource, name: str) -> ImageSource:
    """Folders as classes, so that a subset is drawn evenly from them, and the same from every
    cell.
    """
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
