"""Figures of an evaluation. Every function returns a matplotlib Figure of its own; nothing global
is touched.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from undegrade.evaluation.costs import Cost
from undegrade.evaluation.results import CLEAN, MEAN, Result, average_rows, percent
from undegrade.evaluation.tables import caption, column_names, levels_by_corruption, pivot
from undegrade.utils.data.perturbations.perturbation import PERTURBATIONS
from undegrade.utils.figures import INK, PALETTE, QUIET, Style, new_figure, style_of, tidy

_LETTER = 0.075  # inches of a letter of 10 points, of most texts
_APART = 0.1  # inches between systems of one cost


def system_colours(rows: Sequence[Result]) -> dict[str, str]:
    """Column name -> colour, by order of first appearance: the same rows give the same colours in
    every figure.
    """
    return {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(column_names(rows).values())}


def heat_map(rows: Sequence[Result]) -> Figure:
    """Accuracy in percent of every system (down) on every corruption (across), severities averaged.

    Raises:
        ValueError: see `evaluation.tables.pivot`.
    """
    arranged = pivot(rows)
    values = np.full((len(arranged.systems), len(arranged.lines)), np.nan)
    for (line, system), row in arranged.cells.items():
        values[arranged.systems.index(system), arranged.lines.index(line)] = 100 * row.accuracy
    height, width = values.shape
    names = 0.09 * max(len(name) for name in arranged.systems)
    legend = "; best of each column in bold" if height > 1 else ""
    across = max(6.5, 1.7 + names + 0.56 * width)
    title = textwrap.fill(caption(rows) + legend, int(across / _LETTER))
    figure = new_figure(across, 2.4 + 0.42 * height + 0.17 * title.count("\n"))
    axes = figure.add_subplot()
    lowest = min(float(np.nanmin(values)), 50.0)
    dark = lowest + 0.6 * (100 - lowest)
    axes.imshow(values, cmap="YlGnBu", vmin=lowest, vmax=100, aspect="auto")
    axes.set_xticks(range(width), [_label(line) for line in arranged.lines], rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(height), arranged.systems)
    for (y, x), value in np.ndenumerate(values):
        best = arranged.systems[y] in arranged.best[arranged.lines[x]]
        text = "-" if math.isnan(value) else percent(value)
        colour = "white" if value > dark else INK
        axes.text(x, y, text, ha="center", va="center", fontsize=9, color=colour, weight="bold" if best else "normal")
    axes.set_xticks(np.arange(width + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(height + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    for x in (index for index, line in enumerate(arranged.lines) if arranged.is_mean(line)):
        axes.axvline(x - 0.5, color="white", linewidth=6)
    axes.set_xlabel("corruption", fontsize=10)
    axes.set_ylabel("system", fontsize=10)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=QUIET)
    return figure


def severity_plot(
    rows: Sequence[Result], *further: Sequence[Result], titles: Mapping[str, tuple[str, str]] | None = None
) -> Figure:
    """Accuracy with its 95 % interval against severity, one panel a corruption and one for their
    mean.

    When no corruption has more than one severity, a bar chart with error bars is drawn instead. The
    mean panel is drawn when all corruptions have the same severities; it uses the mean rows of
    single severities where given, else averages the corruptions.

    Args:
        rows: results of one run.
        further: the same systems and cells from other seeds: then curves are means over seeds, and
            bands are one sample standard deviation over seeds to either side.
        titles: the corruptions to draw, in order -> (title, what its levels are); by default all,
            titled by their names.

    Raises:
        ValueError: no rows, several data sets (draw one figure for each), or seeds of different
            cells or of one severity.
    """
    datasets = sorted({row.dataset for row in rows})
    if len(datasets) != 1:
        raise ValueError(f"severity plot of {len(datasets)} data sets {datasets}: draw one figure for each")
    several = any(len(values) > 1 for values in levels_by_corruption(rows).values())
    if further and (not several or any(_cells(run) != _cells(rows) for run in further)):
        raise ValueError("severity plot of several seeds: needs the same systems and cells of each, and several severities")
    if not several:
        return _bar_chart(rows)
    panels = _panels([rows, *further], titles)
    across = min(4, len(panels))
    down = math.ceil(len(panels) / across)
    figure = new_figure(2.9 * across + 0.3, (2.15 if down > 1 else 3.7) * down + 0.7)
    grid = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    columns, units = column_names(rows), {name: _unit(name, panels) for name in panels}
    common = None if titles or len(set(units.values())) > 1 else units[next(iter(units))]
    for axes, (name, panel) in zip(grid, panels.items(), strict=False):
        for index, (key, column) in enumerate(columns.items()):
            own = [sorted((r for r in run if (r.system, r.rule) == key), key=_severity) for run in panel]
            _curve(axes, own, column, index)
        title, axis = (titles or {}).get(name, (_label(name), units[name]))
        axes.set_title(title, fontsize=10, weight="bold" if name == MEAN else "normal")
        if len(ticks := sorted({_severity(row) for row in panel[0]})) <= 6:
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        if common is None:
            axes.set_xlabel(textwrap.fill(axis, 40), fontsize=9, color=INK)
        tidy(axes)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    grid[0].set_ylim(top=102)
    if common is not None:
        figure.supxlabel(common, fontsize=10)
    band = f", mean ± standard deviation of {1 + len(further)} seeds" if further else ""
    figure.supylabel(f"accuracy in %{band}", fontsize=10)
    _legend(figure)
    return figure


def cost_plot(rows: Sequence[Result], costs: Mapping[str, Cost]) -> Figure:
    """Mean accuracy with its 95 % interval against what adaptation costs: passes of networks, and
    milliseconds of a rank, both on a logarithmic axis that begins at 0. Systems of one cost stand
    side by side.

    Args:
        rows: with the mean rows of the systems.
        costs: of systems.

    Raises:
        ValueError: no system has a mean and a cost.
    """
    found = [row for row in rows if row.corruption == MEAN and row.system in costs]
    means = {
        row.system: row for row in sorted(found, key=lambda row: row.severity is None)
    }  # that over severities, if there is one
    if not means:
        raise ValueError(f"cost plot: none of the systems {sorted(costs)} has a mean over corruptions")
    columns = column_names(rows)
    figure = new_figure(11.5, max(4.2, 1.2 + 0.19 * len(means)))
    panels = ("passes", "passes of networks an image"), ("ms", "time an image in ms, one rank")
    for axes, (field, title) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        values = {system: getattr(costs[system], field) for system in means}
        for system, row in means.items():
            errors = [[100 * (row.accuracy - row.ci95_low)], [100 * (row.ci95_high - row.accuracy)]]
            look = style_of(list(columns.values()).index(columns[row.system, row.rule]))
            style = {"color": look.colour, "marker": look.marker, "ms": 6, "elinewidth": 0.8, "linestyle": ""}
            alike = [other for other in values if values[other] == values[system]]
            shift = _APART * (alike.index(system) - (len(alike) - 1) / 2)
            place = axes.transData + ScaledTranslation(shift, 0, figure.dpi_scale_trans)
            axes.errorbar([values[system]], [100 * row.accuracy], yerr=errors, label=system, transform=place, **style)
        linear = min((value for value in values.values() if value > 0), default=1)
        axes.set_xscale("symlog", linthresh=linear)
        axes.set_xlim(left=-0.2 * linear, right=2 * max(values.values()))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(title, fontsize=10)
        tidy(axes)
    figure.supylabel("mean accuracy in %, 95 % interval", fontsize=10)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8.5)
    return figure


def _bar_chart(rows: Sequence[Result]) -> Figure:
    """Accuracy of every system as grouped bars, at most nine groups and about 75 bars a panel so
    that both stay readable.
    """
    arranged = pivot(rows)
    down = math.ceil(len(arranged.lines) / min(9, max(1, 75 // len(arranged.systems))))
    across = math.ceil(len(arranged.lines) / down)
    figure = new_figure(11.5, 2.9 * down + 0.6)
    width = 0.84 / len(arranged.systems)
    for index, axes in enumerate(figure.subplots(down, 1, sharey=True, squeeze=False).ravel()):
        lines = arranged.lines[index * across : (index + 1) * across]
        for rank, system in enumerate(arranged.systems):
            shown = [(x, arranged.cells[line, system]) for x, line in enumerate(lines) if (line, system) in arranged.cells]
            places = [x + (rank - (len(arranged.systems) - 1) / 2) * width for x, _ in shown]
            heights = [100 * row.accuracy for _, row in shown]
            errors = [
                [100 * (r.accuracy - r.ci95_low) for _, r in shown],
                [100 * (r.ci95_high - r.accuracy) for _, r in shown],
            ]
            error_style = {"elinewidth": 1, "ecolor": INK}
            axes.bar(places, heights, width * 0.92, yerr=errors, label=system, error_kw=error_style, **bar_style(style_of(rank)))
        axes.set_xticks(range(len(lines)), [_label(line) for line in lines])
        for tick, line in zip(axes.get_xticklabels(), lines, strict=True):
            tick.set_weight("bold" if arranged.is_mean(line) else "normal")
        axes.set_xlim(-0.6, across - 0.4)
        axes.set_ylim(0, 100)
        axes.tick_params(axis="x", length=0)
        tidy(axes)
    _legend(figure)
    figure.supxlabel("corruption", fontsize=10)
    figure.supylabel("accuracy in %, error bars: 95 % interval", fontsize=10)
    return figure


def _means_by_severity(rows: Sequence[Result], severities: Sequence[float]) -> list[Result]:
    means = []
    for system, rule in column_names(rows):
        own = [row for row in rows if (row.system, row.rule) == (system, rule)]
        for severity in severities:
            given = [row for row in own if row.corruption == MEAN and row.severity == severity]
            cells = [row for row in own if row.corruption not in (MEAN, CLEAN) and row.severity == severity]
            if given or cells:
                means.append(average_rows(given or cells, MEAN, severity))
    return means


def _cells(rows: Sequence[Result]) -> set[tuple[str, str, str, float | None]]:
    return {(row.system, row.rule, row.corruption, row.severity) for row in rows}


def _panels(runs: Sequence[Sequence[Result]], names: Iterable[str] | None) -> dict[str, list[list[Result]]]:
    """Corruption -> its rows in each run, but those of levels drawn for each image, which have no
    place on an axis.
    """
    levels = {name: values for name, values in levels_by_corruption(runs[0]).items() if values}
    levels = {name: levels[name] for name in names or levels}
    runs = [[row for row in run if row.severity is not None] for run in runs]
    panels = {name: [[row for row in run if row.corruption == name] for run in runs] for name in levels}
    if len(levels) > 1 and len({tuple(values) for values in levels.values()}) == 1:
        drawn = [[row for row in run if row.corruption in (MEAN, *levels)] for run in runs]
        panels[MEAN] = [_means_by_severity(run, next(iter(levels.values()))) for run in drawn]
    return panels


def _curve(axes: Axes, runs: Sequence[Sequence[Result]], label: str, index: int) -> None:
    style = style_of(index)
    x = [_severity(row) for row in runs[0]]
    accuracy, low, high = (
        100 * np.array([[getattr(row, field) for row in run] for run in runs]) for field in ("accuracy", "ci95_low", "ci95_high")
    )
    y, bottom, top = accuracy.mean(0), low[0], high[0]
    if len(runs) > 1:
        bottom, top = y - accuracy.std(0, ddof=1), y + accuracy.std(0, ddof=1)
    step = max(1, math.ceil(len(x) / 10))  # markers of a long sweep would hide the curves; each system has its own places
    places, width = (index % step, step), 1.6 if step == 1 else 1.2
    look: dict[str, Any] = {"color": style.colour, "marker": style.marker, "linestyle": style.dashes, "linewidth": width}
    axes.plot(x, y, markevery=places, ms=4, label=label, **look)
    axes.fill_between(x, bottom, top, color=style.colour, alpha=0.15, linewidth=0)


def _legend(figure: Figure) -> None:
    """The systems above the panels, in as many columns as their names leave room for; more than two
    lines of them make the figure higher.
    """
    handles, labels = figure.axes[0].get_legend_handles_labels()
    columns = max(1, min(5, int(figure.get_figwidth() / (0.6 + 0.085 * max(len(label) for label in labels)))))
    figure.set_figheight(figure.get_figheight() + 0.2 * max(0, math.ceil(len(labels) / columns) - 2))
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=10)


def bar_style(style: Style) -> dict[str, Any]:
    """Keywords of matplotlib's bars; hatching is drawn in the colour of their edge."""
    return {"color": style.colour, "hatch": style.hatch, "edgecolor": "white", "linewidth": 0}


def _unit(name: str, panels: Iterable[str]) -> str:
    """What the levels of a panel are; the mean's are those of the others."""
    known = [PERTURBATIONS[n].axis if n in PERTURBATIONS else "severity" for n in ([name] if name != MEAN else panels) if n != MEAN]
    return known[0]


def _severity(row: Result) -> float:
    """Of a row that has one."""
    assert row.severity is not None
    return row.severity


def _label(name: str) -> str:
    """Corruption names are long words joined by underscores: shown with spaces."""
    return name.replace("_", " ")
