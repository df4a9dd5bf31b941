"""Images with what a system says of them, as one HTML file that needs nothing else: pictures and a
short script for filters are inside. The page is prediction_page.html.j2 beside this file.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence

from undegrade.evaluation.report.html import environment
from undegrade.utils.files import write_atomic

BINS = 20  # of the histogram
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 360, 190, 44, 40, 12  # of the histogram, in units of its drawing


@dataclasses.dataclass(frozen=True)
class PageRow:
    """An image of the page.

    Attributes:
        file: its name.
        pictures: data URI and the lines below it, in each view.
        classes: word, number ("" where there is none) and share in [0, 1], best first.
        way: which way it went, or who says so.
        agrees: whether every member says what the system says.
        restored: of a system with a gate.
    """

    file: str
    pictures: Sequence[tuple[str, Sequence[str]]]
    classes: Sequence[tuple[str, str, float]]
    way: str = ""
    agrees: bool = True
    restored: bool | None = None


@dataclasses.dataclass(frozen=True)
class Page:
    """What is shown.

    Attributes:
        title: heading.
        summary: one sentence below it.
        views: of the pictures: heading -> the members that look at it.
        rows: the images.
        confidences: of all images, those that are not shown, too; in [0, 1].
        disagreeing: of the same, whether members disagree.
        way: heading of that column; None: there is none.
        several: whether the system has several members.
        gated: whether it has a gate.
        classes: word, number, images and mean confidence.
        numbered: whether classes have numbers.
        notes: paragraphs on how to read the page.
        provenance: name -> value.
    """

    title: str
    summary: str
    views: Mapping[str, str]
    rows: Sequence[PageRow]
    confidences: Sequence[float]
    disagreeing: Sequence[bool]
    way: str | None
    several: bool
    gated: bool
    classes: Sequence[tuple[str, str, int, float]]
    numbered: bool
    notes: Sequence[str]
    provenance: Mapping[str, object]


@dataclasses.dataclass(frozen=True)
class Bar:
    """A bin of the histogram: its lower end in percent, images in which members agree and disagree,
    and its place in the drawing: x, width, and for both parts y and height.
    """

    low: int
    agree: int
    disagree: int
    x: float
    width: float
    parts: tuple[tuple[float, float], tuple[float, float]]


def write_page(path: str | os.PathLike[str], page: Page) -> None:
    """Write the page atomically. All text is escaped, and nothing can be loaded from elsewhere."""
    bars, ticks = histogram(page.confidences, page.disagreeing)
    drawing = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "floor": HEIGHT - BOTTOM, "top": TOP}
    text = environment().get_template("prediction_page.html.j2").render(page=page, bars=bars, ticks=ticks, drawing=drawing)
    write_atomic(path, text)


def histogram(confidences: Sequence[float], disagreeing: Sequence[bool]) -> tuple[list[Bar], list[tuple[int, float]]]:
    """Bars, and the ticks of the vertical axis: images and their y.

    Args:
        confidences: in [0, 1].
        disagreeing: of the same images.
    """
    counts = [[0, 0] for _ in range(BINS)]
    for confidence, disagrees in zip(confidences, disagreeing, strict=True):
        counts[min(BINS - 1, int(confidence * BINS))][disagrees] += 1
    step = _round_step(max(map(sum, counts)) / 4)
    highest = step * max(1, math.ceil(max(map(sum, counts)) / step))
    floor, scale, pitch = HEIGHT - BOTTOM, (HEIGHT - BOTTOM - TOP) / highest, (WIDTH - LEFT - 8) / BINS
    bars = []
    for place, (agree, disagree) in enumerate(counts):
        lower, upper = agree * scale, disagree * scale
        parts = (floor - lower, lower), (floor - lower - upper, upper)
        bars.append(Bar(100 * place // BINS, agree, disagree, LEFT + place * pitch + 0.5, pitch - 1, parts))
    return bars, [(count, floor - count * scale) for count in range(0, highest + 1, step)]


def _round_step(least: float) -> int:
    """1, 2 or 5 times a power of ten, not below `least`."""
    power = 10 ** max(0, math.floor(math.log10(max(least, 1))))
    return next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= least)
