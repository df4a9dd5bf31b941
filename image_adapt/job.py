"""The images of one cell and where their adapted versions go."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from utils.data.cells import Cell
from utils.data.image_source import ImageSource


@dataclasses.dataclass(frozen=True)
class Job:
    """The images of one cell and where their adapted versions go.

    Attributes:
        cell: the cell.
        source: its images.
        folder: of the adapted images.
        levels: degradation level of each image, None where it has none.
        suffix: of the adapted images.
        input_side: side of the input files where they are squares (by the first), pixels; evaluation reads the adapted images by it
            (`utils.data.cells.FolderTree`).
    """

    cell: Cell
    source: ImageSource
    folder: Path
    levels: list[Any]
    suffix: str = ".png"
    input_side: int | None = None

    def file(self, i: int) -> str:
        """Name of the output of image i, relative to `folder`."""
        return f"{self.source.keys[i]}{self.suffix}"

    def path(self, i: int) -> Path:
        """Output file of image i.

        Raises:
            ValueError: its key would leave the output folder.
        """
        key = Path(self.source.keys[i])
        if ".." in key.parts or key.is_absolute():
            raise ValueError(f"image key {self.source.keys[i]!r} would leave the output folder {self.folder}")
        return self.folder / self.file(i)
