"""What gates decide, as a figure."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from undegrade.evaluation.report.plots import bar_style
from undegrade.evaluation.results import MEAN, Result
from undegrade.utils.figures import new_figure, style_of, tidy


def gated(rows: Sequence[Result]) -> bool:
    """Whether some system has a gate."""
    return any("restored" in row.metrics for row in rows)


def restored_plot(rows: Sequence[Result]) -> Figure:
    """Share of the images of each corruption, in percent, that each gate restores; severities
    averaged.
    """
    shares: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if "restored" in row.metrics and row.corruption != MEAN:
            shares.setdefault(row.system, {}).setdefault(row.corruption, []).append(100 * float(row.metrics["restored"]))
    names = list(dict.fromkeys(name for found in shares.values() for name in found))
    height = 0.8 / len(shares)
    figure = new_figure(8.5, 1.2 + 0.13 * len(names) * (1 + len(shares)))
    axes = figure.subplots()
    for index, (system, found) in enumerate(shares.items()):
        places = [names.index(name) + (index - (len(shares) - 1) / 2) * height for name in found]
        values = [sum(each) / len(each) for each in found.values()]
        axes.barh(places, values, height, label=system, **bar_style(style_of(index)))
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the images that is restored, %", fontsize=10)
    axes.set_ylabel("corruption", fontsize=10)
    axes.grid(axis="x", color="#E4E4E4", linewidth=0.8)
    tidy(axes)
    figure.legend(loc="outside upper left", frameon=False, fontsize=8.5, ncols=3)
    return figure
