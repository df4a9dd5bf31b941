"""Pictures with what is said of them, in a grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from undegrade.utils.figures import DPI, INK, RIGHT, WRONG, checked_image


@dataclass(frozen=True)
class Picture:
    """One cell of `image_grid`: uint8 [H,W,3] (None: a text alone), the text below it, whether the
    prediction is right (None: neither).
    """

    image: np.ndarray | None
    text: str = ""
    right: bool | None = None


def image_grid(columns: Mapping[str, Sequence[Picture]], labels: Sequence[str], side: int = 128) -> Figure:
    """Pictures in a grid: one row an example, one column a view (such as clean, corrupted,
    adapted).

    Pixels are enlarged by a whole factor without smoothing; the text under a picture is green with
    a tick when the prediction is right, red with a cross when wrong.

    Args:
        columns: heading, of one or more lines -> one picture a row.
        labels: the text left of each row, such as the corruption.
        side: pixels of the longer side of a picture at least wanted in the figure.

    Raises:
        ValueError: no images, a column whose length differs from `labels`, or an image that is
            not uint8 [H,W,3].
    """
    counts = {heading: len(pictures) for heading, pictures in columns.items()}
    sides = [max(checked_image(p.image).shape[:2]) for pictures in columns.values() for p in pictures if p.image is not None]
    if not sides or set(counts.values()) != {len(labels)}:
        raise ValueError(f"image grid of {len(labels)} labels and columns of {counts}: needs one picture for each label")
    longest = max(sides)
    cell = longest * math.ceil(side / longest)
    # Pixels throughout, so that every image pixel covers whole figure pixels. 11 pixels hold a
    # letter.
    texts = [*"\n".join(columns).splitlines(), *(picture.text + "✓ " for pictures in columns.values() for picture in pictures)]
    left, under = 24 + 11 * max(len(line) for label in labels for line in label.splitlines()), 30
    top = 36 + 24 * max(heading.count("\n") for heading in columns)
    pitch = max(cell, 11 * max(map(len, texts))) + 14
    width, height = left + len(columns) * pitch, top + len(labels) * (cell + under)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)

    def write(x: float, y: float, text: str, size: float = 8, colour: str = INK, **style: Any) -> None:
        place = {"ha": "center", "va": "center"} | style
        figure.text(x / width, y / height, text, fontsize=size, color=colour, **place)

    for row, label in enumerate(labels):
        write(left - 12, height - top - row * (cell + under) - cell / 2, label.replace("_", " "), ha="right")
    for column, (heading, pictures) in enumerate(columns.items()):
        middle = left + column * pitch + pitch // 2
        write(middle, height - top / 2, heading, weight="bold")
        for row, picture in enumerate(pictures):
            y = height - top - row * (cell + under) - cell
            mark, colour = {None: ("", INK), True: ("✓ ", RIGHT), False: ("✗ ", WRONG)}[picture.right]
            if picture.image is None:
                write(middle, y + cell / 2, mark + picture.text, 9, colour, weight="bold")
                continue
            axes = figure.add_axes(((middle - cell // 2) / width, y / height, cell / width, cell / height))
            axes.imshow(picture.image, interpolation="nearest")
            axes.set_axis_off()
            write(middle, y - under / 2 + 3, mark + picture.text, 7.5, colour)
    return figure
