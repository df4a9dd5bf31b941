"""Pictures as files: matplotlib figures and uint8 arrays, each written in one step."""

from __future__ import annotations

import dataclasses
import io
import math
import os

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from undegrade.utils.files import write_atomic

# Okabe and Ito (2008), "Color universal design": told apart by colour-blind readers. Its yellow is
# too pale on white. The last two are of Tol's muted scheme.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#333333", "#882255", "#999933")
MARKERS = "osD^vPX<"  # one fewer than the colours: curves stay distinct when the colours begin again
_DASHES, _HATCHES = ("-", "--", ":", "-."), ("", "////", "....", "xxxx")  # when they have begun again so often
INK, QUIET, RIGHT, WRONG = "#222222", "#777777", "#00734F", "#C03A00"
DPI = 160


@dataclasses.dataclass(frozen=True)
class Style:
    """How something is drawn: colour, marker, line style, and hatching of bars."""

    colour: str
    marker: str
    dashes: str
    hatch: str


def style_of(index: int) -> Style:
    """A look for each of many things in one figure: where the nine colours begin again, lines and
    areas change, too.
    """
    turn = index // len(PALETTE)
    colour, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
    return Style(colour, marker, _DASHES[turn % len(_DASHES)], _HATCHES[turn % len(_HATCHES)])


def sample_grid(images: np.ndarray, columns: int | None = None, scale: int = 1) -> np.ndarray:
    """Tile images row by row on white with a gap of two pixels.

    Args:
        images: uint8 [N,H,W,3], N >= 1.
        columns: pictures in a row; by default the grid is as square as possible.
        scale: whole factor by which every pixel is enlarged.

    Returns:
        uint8 [rows, columns, 3] pixels.

    Raises:
        ValueError: `images` has another shape or type.
    """
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images of shape {images.shape}: needs [N,H,W,3] with N >= 1")
    enlarged = [checked_image(image).repeat(scale, axis=0).repeat(scale, axis=1) for image in images]
    across = columns or math.ceil(math.sqrt(len(images)))
    height, width = enlarged[0].shape[0] + 2, enlarged[0].shape[1] + 2
    canvas = np.full((math.ceil(len(images) / across) * height + 2, across * width + 2, 3), 255, np.uint8)
    for index, image in enumerate(enlarged):
        y, x = index // across * height + 2, index % across * width + 2
        canvas[y : y + height - 2, x : x + width - 2] = image
    return canvas


def png_bytes(picture: Figure | np.ndarray, texts: dict[str, str] | None = None) -> bytes:
    """PNG of a figure, or of an image uint8 [H,W,3]; `texts` are kept in the file of a figure."""
    buffer = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(buffer, format="png", dpi=picture.dpi, metadata=texts)
    else:
        Image.fromarray(checked_image(picture)).save(buffer, format="png")
    return buffer.getvalue()


def save(picture: Figure | np.ndarray, path: str | os.PathLike[str]) -> None:
    """Write a figure, or an image uint8 [H,W,3], as PNG, atomically."""
    write_atomic(path, png_bytes(picture))


def new_figure(width: float, height: float) -> Figure:
    """A blank figure of its own, in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes) -> None:
    """Quiet axes: no frame at the top and right, pale lines across."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, colors=INK)


def checked_image(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image of type {image.dtype} and shape {image.shape}: needs uint8 [H,W,3]")
    return image
