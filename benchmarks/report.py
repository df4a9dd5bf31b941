"""The benchmark's table, JSON and plot."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.measure import Peaks, Row
from undegrade.utils.figures import INK, RIGHT, WRONG, new_figure, tidy
from undegrade.utils.files import write_atomic
from undegrade.utils.provenance import provenance

_HEAD = ("row", "reference", "ours", "unit", "ratio", "required", "floor", "share of peak")


def table(rows: Sequence[Row]) -> str:
    """Text for the terminal; notes below. `<` marks a ratio that is smaller than required."""
    return _aligned([_HEAD, *(_texts(row) for row in rows)]) + _notes(rows)


def markdown_table(rows: Sequence[Row]) -> str:
    """The same table in Markdown."""
    lines = [_HEAD, ("---", *("---:" for _ in _HEAD[1:])), *(_texts(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _texts(row: Row) -> tuple[str, ...]:
    return (
        row.name, _number(row.reference), _number(row.ours), row.unit, f"{row.ratio:.2f}{'' if row.met else ' <'}",
        _number(row.required), _number(row.floor), "-" if row.share is None else f"{100 * row.share:.0f} %",
    )  # fmt: skip


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "  ".join([line[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))]) + "\n"
        for line in lines
    )


def _notes(rows: Sequence[Row]) -> str:
    return "".join(f"{row.name}: {row.note}\n" for row in rows if row.note)


def describe(measured: Peaks) -> str:
    """One line about the machine."""
    return (
        f"{torch.get_num_threads()} thread(s), for each second of a core: matrix products {measured.matmul:.0f} GFLOP/s, "
        f"convolutions {measured.convolution:.0f} (channels_last) and {measured.convolution_contiguous:.0f} (contiguous) GFLOP/s, "
        f"memory {measured.memory:.1f} GB/s"
    )


def write(rows: Sequence[Row], measured: Peaks, folder: Path) -> None:
    """`results.json`, `results.md` and `ratios.png`."""
    machine = {**provenance(), "threads": torch.get_num_threads(), "peaks": dataclasses.asdict(measured)}
    write_json({"machine": machine, "rows": [{**dataclasses.asdict(row), "met": row.met} for row in rows]}, folder / "results.json")
    write_atomic(folder / "results.md", markdown_table(rows))


def write_json(content: Any, path: Path) -> None:
    """Finite numbers only.

    Raises:
        ValueError: a number is not finite.
    """
    write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def plot(rows: Sequence[Row]) -> Figure:
    """Bars of the ratios, on a logarithmic axis; a stroke stands at the required ratio."""
    figure = new_figure(9.0, 1.2 + 0.42 * len(rows))
    axes = figure.add_subplot()
    places = range(len(rows))
    axes.barh(places, [row.ratio - 1 for row in rows], left=1.0, color=[RIGHT if row.met else WRONG for row in rows], height=0.62)
    for place, row in zip(places, rows, strict=True):
        axes.text(max(row.ratio, 1.0) * 1.03, place, f"{row.ratio:.2f}", va="center", fontsize=9, color=INK)
        if row.required is not None:
            axes.plot([row.required] * 2, [place - 0.4, place + 0.4], color=INK, linewidth=2)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(places, [row.name for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("times better than the reference way; stroke: required", fontsize=9)
    tidy(axes)
    axes.grid(axis="y", visible=False)
    return figure
