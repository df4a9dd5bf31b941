"""Views: which images an ensemble member, or a training run, sees of a test cell.

A view gives one `ImageSource` a cell. `OnTheFly` corrupts or degrades a clean source as it is read,
`ReleasedArrays` reads the published CIFAR-10-C layout (`<corruption>.npy`, `labels.npy`),
`FolderTree` reads `<root>/<corruption>/<severity>/<class>/*` as the adapter writes it. Images of
two views are paired by key, never by position.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from undegrade.utils.choices import check_choice
from undegrade.utils.data.cells import CLEAN, Cell
from undegrade.utils.data.manifest import MANIFEST, read_manifest, read_settings
from undegrade.utils.data.perturbations.perturbation import PerturbationOptions
from undegrade.utils.data.perturbations.registry import find_perturbation, with_severities
from undegrade.utils.data.sources.folders import first_size, folder_source
from undegrade.utils.data.sources.image_files import list_images
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.sources.images import Resize
from undegrade.utils.data.sources.released import LABELS, array_cell, refuse_to_read
from undegrade.utils.data.sources.shards import SHARDS, shard_source

RAW = "raw"  # the view that corrupts clean images as they are read


class View(Protocol):
    """What an ensemble member looks at."""

    @property
    def name(self) -> str:
        """Short name for caches and tables."""

    def source(self, cell: Cell) -> ImageSource:
        """The images of a cell; the same keys for every cell."""

    def identity(self, cell: Cell) -> str:
        """Digest of all that the images of a cell depend on, to name them in caches."""


@dataclasses.dataclass(frozen=True)
class OnTheFly:
    """Perturbs a clean source as it is read; an image depends on (pixels, cell, key, seed, options)
    only.

    Attributes:
        clean: the clean images.
        seed: of all random streams.
        options: of perturbations.
    """

    clean: ImageSource
    seed: int = 0
    options: PerturbationOptions = dataclasses.field(default_factory=PerturbationOptions)

    @property
    def name(self) -> str:
        return RAW

    def source(self, cell: Cell) -> ImageSource:
        return dataclasses.replace(self.clean, name=f"{self.clean.name}/{cell.folder}", read=functools.partial(self._read, cell))

    def _read(self, cell: Cell, rows: np.ndarray) -> Tensor:
        keys = [self.clean.keys[i] for i in rows]
        images, level = self.clean.images(rows), self.levels(cell, keys)
        return find_perturbation(cell.corruption).apply(images, level, keys, self.seed, self.options)

    def identity(self, cell: Cell) -> str:
        options = find_perturbation(cell.corruption).identity(self.options, self.clean.image_size)
        return _digest(self.clean.name, self.clean.frame, self.clean.keys, cell, self.seed, " ".join(map(str, options.values())))

    def settings(self, cell: Cell) -> dict[str, Any]:
        """What the corruption of the images of a cell depends on besides pixels and keys."""
        return {"seed": self.seed, **find_perturbation(cell.corruption).identity(self.options, self.clean.image_size)}

    def levels(self, cell: Cell, keys: list[str]) -> Tensor:
        """Level of each image in the perturbation's own unit, [B] (or [B, stages] for a
        sequence).
        """
        if cell.severity is None:
            return find_perturbation(cell.corruption).draw(keys, self.seed)
        return torch.full((len(keys),), float(cell.severity))


@dataclasses.dataclass(frozen=True)
class ReleasedArrays:
    """CIFAR-10-C / CIFAR-100-C as published: `<corruption>.npy` uint8 [50000, 32, 32, 3], severity
    s at rows (s-1) * 10000.

    Attributes:
        root: folder with the `.npy` files.
        clean: the clean test set in its published order (gives classes, keys and the check of the
            labels).
    """

    root: Path
    clean: ImageSource

    @property
    def name(self) -> str:
        return "released"

    def source(self, cell: Cell) -> ImageSource:
        if cell.corruption == CLEAN:
            return self.clean
        check_choice(cell.corruption, with_severities(), "corruption", "the released arrays")
        every = array_cell(self.root, cell.corruption, int(cell.severity or 1), self.clean.classes)
        source = every.aligned(self.clean.keys, str(self.root / f"{cell.corruption}.npy"))
        return dataclasses.replace(source, rgb_mean=self.clean.rgb_mean, rgb_std=self.clean.rgb_std)

    def identity(self, cell: Cell) -> str:
        path = self.root / f"{cell.corruption}.npy"
        files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns)] if path.is_file() else []  # none for clean images
        return _digest(self.clean.name, self.clean.keys, cell, files)


@dataclasses.dataclass(frozen=True)
class FolderTree:
    """`<root>/<corruption>/<severity>/<class>/*`: adapted images (files or shards:
    utils/data/sources/shards.py), or a corrupted set.

    Its images show the part that the clean ones show. Where that is the S x S centre of a shorter
    side `resize` (ImageNet: 224 of 256), files are cut in the same way, as are images adapted from
    whole photographs. Two kinds were cut before: files of S x S pixels, such as ImageNet-C as
    released, are taken as they are, and what was adapted from S x S pixels (of such files, or of
    the data set as evaluation reads it), enlarged to the size of the diffusion model, is brought
    back to S whole. The first file of a cell, or the first line of the adapter's manifest, decides
    for all of the cell. A cell may also lie where its released set has it
    (`Perturbation.released_as`): the watermark's in `<root>/val/<class>/*`, as ImageNet-W is kept.

    Attributes:
        root: the folder.
        clean: source whose keys, labels and classes the images must match; images without partner
            are an error that names them.
        raw: how raw images are corrupted here. Images that were adapted from others, by their
            settings, are an error; None: they are taken.
    """

    root: Path
    clean: ImageSource
    raw: OnTheFly | None = None

    @property
    def name(self) -> str:
        return f"{self.root.parent.name}/{self.root.name}"

    def source(self, cell: Cell) -> ImageSource:
        folder = self.folder(cell)
        if not folder.is_dir():
            if cell.corruption == CLEAN and self.clean.listing_of is not None:
                refuse_to_read(self.clean.listing_of)
            have = sorted(str(p.relative_to(self.root)) for p in self.root.glob("*/*") if p.is_dir())
            raise FileNotFoundError(
                f"no images for {cell.folder} under {self.root}"
                + (f" (there: {', '.join(have[:20])})" if have else "")
                + "; make them with: mpiexec -n 2 python image_adapt/scripts/image_sample.py -c <config> "
                f"--corruption {cell.corruption} --save_dir {self.root}, or unpack them there if they are of a released set"
            )
        self._check_settings(cell)
        clean, name, rows, resize = self.clean, f"{self.root.name}/{cell.folder}", self._manifest(cell), self._resize(cell)
        if not rows and any(folder.glob(SHARDS)):
            raise ValueError(f"{folder} holds shards but no {MANIFEST}: the launch that writes them did not end, start it again")
        if rows and "offset" in rows[0]:
            found = shard_source(folder, rows, clean, name, resize)
        else:
            found = folder_source(folder, clean.image_size, name, clean.classes, resize)
        return dataclasses.replace(found.aligned(self.clean.keys, str(folder)), level=self._levels(cell))

    def folder(self, cell: Cell) -> Path:
        """Where the images of a cell lie."""
        usual, released = self.root / cell.folder, find_perturbation(cell.corruption).released_as
        return self.root / released if released and not usual.is_dir() and (self.root / released).is_dir() else usual

    def _check_settings(self, cell: Cell) -> None:
        given = read_settings(self.folder(cell)).get("input")
        if self.raw is None or not isinstance(given, dict) or "dataset" not in given:
            return  # nobody knows, or they were adapted from files
        there = {name: value for name, value in given.items() if name not in ("dataset", "split")}
        now = json.loads(json.dumps(self.raw.settings(cell)))
        if cell.corruption == CLEAN:
            now["seed"] = there.get("seed")
        differing = [f"{k}: {there.get(k)} there, {now.get(k)} here" for k in sorted({*there, *now}) if there.get(k) != now.get(k)]
        if differing:
            raise ValueError(
                f"{self.folder(cell)} was adapted from images that were corrupted otherwise ({'; '.join(differing)}): corrupt "
                "them so here, too (data.seed, data.constants, ...), or adapt them anew"
            )

    def _manifest(self, cell: Cell) -> list[dict[str, Any]]:
        """What the adapter noted of its images; nothing where none was there."""
        return read_manifest(self.folder(cell))

    def _resize(self, cell: Cell) -> Resize | None:
        """How the files of a cell are resized: as the clean images, or None (see above)."""
        size, resize = self.clean.image_size, self.clean.resize
        if resize is None:
            return None
        if rows := self._manifest(cell):
            return None if rows[0].get("input_side") == size else resize
        paths = list_images(self.folder(cell))
        return None if paths and first_size(paths) == (size, size) else resize

    def _levels(self, cell: Cell) -> Tensor | None:
        """Level of each image in [0, 1] from the manifest that the adapter leaves beside the
        images.
        """
        level = {row["key"]: row["level"] for row in self._manifest(cell) if row.get("level") is not None}
        if not all(key in level for key in self.clean.keys):
            return None
        return find_perturbation(cell.corruption).unit(torch.tensor([level[key] for key in self.clean.keys]))

    def identity(self, cell: Cell) -> str:
        self._check_settings(cell)
        folder = self.folder(cell)
        paths = sorted(folder.glob(SHARDS)) or list_images(folder)
        files = [(str(p.relative_to(self.root)), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
        frame = dataclasses.replace(self.clean, resize=self._resize(cell)).frame
        return _digest(self.clean.keys, frame, cell, files)


def _digest(*parts: object) -> str:
    return hashlib.sha256("\x1f".join(str(p) for p in parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def open_view(text: str, clean: ImageSource, seed: int, options: PerturbationOptions | None = None) -> View:
    """The view named by `text`: `raw` (corrupted on the fly), a folder of `.npy` files, or a folder
    tree of images.

    Raises:
        FileNotFoundError: neither `raw` nor an existing folder.
    """
    check_view(text)
    raw = OnTheFly(clean, seed, options or PerturbationOptions())
    if text == RAW:
        return raw
    root = Path(text)
    return ReleasedArrays(root, clean) if (root / LABELS).is_file() else FolderTree(root, clean, raw)


def check_view(text: str) -> None:
    """Raise FileNotFoundError unless `text` is `raw` or an existing folder."""
    if text != RAW and not Path(text).is_dir():
        raise FileNotFoundError(f"view {text!r} is neither `raw` nor an existing folder of images or .npy files")
