"""An evaluation as one HTML file that needs nothing else: no script, no link, pictures inside. The
page is report.html.j2 beside this file.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import numpy as np
from matplotlib.figure import Figure

from undegrade.evaluation.report.plots import system_colours
from undegrade.evaluation.results import Result, percent
from undegrade.evaluation.tables import caption, pivot
from undegrade.utils.figures import png_bytes
from undegrade.utils.files import write_atomic


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    summary: str,
    rows: Sequence[Result],
    figures: Mapping[str, Figure | np.ndarray | bytes],
    configs: Mapping[str, str],
    provenance: Mapping[str, object],
    notes: Sequence[str] = (),
    lines: str = "corruption",
    about: str = "",
) -> None:
    """Write the report atomically.

    All text is escaped; nothing is loaded from elsewhere. The file holds no date unless
    `provenance` does.

    Args:
        path: the HTML file.
        title: heading of the page.
        summary: one sentence with the key figure, below the heading.
        rows: results; cells and means as `evaluation.tables.pivot` arranges them.
        figures: caption -> figure, image uint8 [H,W,3] or the bytes of a PNG, shown in this order.
        configs: name -> YAML text, folded.
        provenance: name -> value (command, commit, seed, ...); a mapping or list fills one line,
            None is a dash.
        notes: paragraphs on what to keep in mind when reading the numbers.
        lines: what the lines of the table are.
        about: what its numbers are ("": as the rows say it).

    Raises:
        ValueError: no or doubled rows, or bytes that are not a PNG.
    """
    table = pivot(rows)
    means = [line for line in table.lines if table.is_mean(line)]
    tiles = {system: row for (line, system), row in table.cells.items() if [line] == means}  # none of several means
    page = environment().get_template("report.html.j2").render(
        title=title, summary=summary, table=table, colours=system_colours(rows), caption=about or caption(rows),
        heading=lines, tiles=tiles,
        mean=means[0] if tiles else None, figures={text: _png(text, picture) for text, picture in figures.items()},
        notes=notes, configs=configs, provenance=provenance,
    )  # fmt: skip
    write_atomic(path, page)


def environment() -> jinja2.Environment:
    """For the templates beside this file: all text is escaped, an unknown name is an error."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    made.filters["percent"] = lambda share: percent(100 * share)
    made.filters["interval"] = lambda row: f"{percent(100 * row.ci95_low)} – {percent(100 * row.ci95_high)}"
    made.filters["words"] = _words
    return made


def _png(text: str, picture: Figure | np.ndarray | bytes) -> str:
    data = picture if isinstance(picture, bytes) else png_bytes(picture)
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError(f"picture of figure {text!r} starts with {data[:8]!r}: give a figure, an array or a PNG")
    return base64.b64encode(data).decode()


def _words(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(part)}" for name, part in value.items())
    return ", ".join(map(_words, value)) if isinstance(value, list | tuple) else str(value)
