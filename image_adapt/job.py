"""The images of one cell and where their adapted versions go."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from undegrade.utils.data.cells import Cell
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.sources.shards import shard_name
from undegrade.utils.paths import inside


@dataclasses.dataclass(frozen=True)
class Job:
    """The images of one cell and where their adapted versions go.

    Attributes:
        cell: the cell.
        source: its images.
        folder: of the adapted images.
        levels: degradation level of each image, None where it has none.
        suffix: of the adapted images.
        input_size: width and height of the input files, pixels (by the first; None: not known).
        whole: each image is adapted at its own size, alone; else all are squares of
            `source.image_size`.
        shard_size: images of a tar file, None for a file an image.
    """

    cell: Cell
    source: ImageSource
    folder: Path
    levels: list[Any]
    suffix: str = ".png"
    input_size: tuple[int, int] | None = None
    whole: bool = False
    shard_size: int | None = None

    @property
    def input_side(self) -> int | None:
        """Side of the input files where they are squares; evaluation reads the adapted images by it
        (`utils.data.views.FolderTree`).
        """
        width, height = self.input_size or (0, 1)
        return width if width == height else None

    @property
    def pixels(self) -> int:
        """Pixels of an adapted image, about."""
        width, height = self.input_size if self.whole and self.input_size else (self.source.image_size,) * 2
        return width * height

    @functools.cached_property
    def by_key(self) -> list[int]:
        """All images in the order of their keys."""
        return sorted(range(len(self.source)), key=self.source.keys.__getitem__)

    @functools.cached_property
    def _inside(self) -> set[Path]:
        """Folders of outputs that are known to lie inside: each is looked at once."""
        return {self.folder}

    @functools.cached_property
    def _place(self) -> dict[int, int]:
        return {i: place for place, i in enumerate(self.by_key)}

    def shard(self, i: int) -> int | None:
        """Number of the shard that holds image i: they are cut in the order of the keys; None where
        it has a file of its own.
        """
        return None if self.shard_size is None else self._place[i] // self.shard_size

    def shard_rows(self, number: int) -> list[int]:
        """Images of a shard in the order of their keys."""
        assert self.shard_size is not None
        return self.by_key[number * self.shard_size : (number + 1) * self.shard_size]

    def batches(self, rows: list[int], size: int) -> Iterator[list[int]]:
        """`rows` in batches of at most `size` images, of one where each keeps its own size."""
        size = 1 if self.whole else size
        return (rows[k : k + size] for k in range(0, len(rows), size))

    def file(self, i: int) -> str:
        """Name of the output of image i, relative to `folder`."""
        number = self.shard(i)
        return f"{self.source.keys[i]}{self.suffix}" if number is None else shard_name(number)

    def path(self, i: int) -> Path:
        """Output file of image i.

        Raises:
            ValueError: its key would leave the output folder, by itself or by a link.
        """
        path = self.folder / self.file(i)
        if path.parent not in self._inside:
            inside(self.folder, Path(self.file(i)).parent, f"image key {self.source.keys[i]!r}")
            self._inside.add(path.parent)
        return path
