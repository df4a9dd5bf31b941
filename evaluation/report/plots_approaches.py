"""Accuracies of several approaches beside the published ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from undegrade.evaluation.published import AVERAGE
from undegrade.evaluation.seeds import Statistic
from undegrade.utils.figures import INK, new_figure, tidy


def dot_plot(
    headings: Sequence[str],
    ours: Mapping[str, Mapping[str, Statistic]],
    published: Mapping[str, Mapping[str, float]],
    colours: Mapping[str, str],
    seeds: int,
) -> Figure:
    """One panel a heading, one line an approach: our accuracy as a dot with its number, the
    published one as a hollow diamond.

    Args:
        headings: panels, in order.
        ours: approach -> heading -> accuracy in percent; error bars are one standard deviation over
            seeds to either side.
        published: the same of published accuracies; approaches and headings may be missing.
        colours: of the approaches.
        seeds: how many, for the legend.
    """
    across = min(4, len(headings))
    down = math.ceil(len(headings) / across)
    names = 0.075 * max(map(len, ours))
    figure = new_figure(2.3 * across + names + 0.3, (0.3 * len(ours) + 0.55) * down + 0.7)
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for index, (axes, heading) in enumerate(zip(grid, headings, strict=False)):
        for y, (name, values) in enumerate(ours.items()):
            if heading in values:
                mean, deviation = values[heading].mean, values[heading].deviation
                axes.errorbar(mean, y, xerr=deviation, fmt="o", color=colours[name], ms=6, ecolor=INK, capsize=2.5)
            if heading in published.get(name, {}):
                axes.plot(published[name][heading], y, "D", mfc="none", mec=INK, ms=8, mew=1.1, zorder=3)
            text = str(values.get(heading, "-"))
            axes.text(1.04, y, text, fontsize=8, va="center", color=INK, transform=axes.get_yaxis_transform())
        axes.set_title(heading, fontsize=10, weight="bold" if heading == AVERAGE else "normal")
        tidy(axes)
        axes.grid(axis="x", color="#E4E4E4", linewidth=0.8)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelbottom=index + across >= len(headings))
    for axes in grid[len(headings) :]:
        axes.set_visible(False)
    shown = [value.mean for values in ours.values() for value in values.values()]
    shown += [cells[heading] for name, cells in published.items() if name in ours for heading in headings if heading in cells]
    room = 0.06 * (max(shown) - min(shown)) + 1  # for half a mark
    grid[0].set_xlim(min(shown) - room, max(shown) + room)
    grid[0].set_yticks(range(len(ours)), list(ours))
    grid[0].set_ylim(len(ours) - 0.5, -0.5)
    figure.supxlabel("accuracy in %", fontsize=10)
    label = f"ours, mean ± standard deviation over {seeds} seeds" if seeds > 1 else "ours, one seed"
    handles = [Line2D([], [], color=INK, marker="o", ms=6, linestyle="none", label=label)]
    if published:
        handles.append(Line2D([], [], marker="D", mfc="none", mec=INK, ms=8, linestyle="none", label="published"))
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False, fontsize=10)
    return figure
