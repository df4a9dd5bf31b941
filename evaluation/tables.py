"""Result rows as a table: one line a corruption, one column a system."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from undegrade.evaluation.results import CLEAN, MEAN, Result, average_rows, percent
from undegrade.utils.data.cells import level_text
from undegrade.utils.data.perturbations.perturbation import PERTURBATIONS


@dataclass(frozen=True)
class Pivot:
    """Rows arranged for a table or a plot.

    Attributes:
        systems: column names in order of first appearance ("system (rule)" where a system has
            several rules).
        lines: line names in order of first appearance, means last ("dataset: corruption" where
            there are several data sets; "corruption, random levels" where it has fixed ones, too).
        cells: (line, system) -> the row shown there; severities of one line are averaged
            (`average_rows`). Cells may be missing.
        scope: which severities the numbers stand for, in words; "" when there are only clean
            images.
        best: line -> the systems of highest accuracy, empty with a single system.
    """

    systems: list[str]
    lines: list[str]
    cells: dict[tuple[str, str], Result]
    scope: str
    best: dict[str, set[str]]

    def is_mean(self, line: str) -> bool:
        """Whether `line` is a mean over corruptions."""
        return any(row.corruption == MEAN for (name, _), row in self.cells.items() if name == line)


def column_names(rows: Sequence[Result]) -> dict[tuple[str, str], str]:
    """(system, rule) -> column name, in order of first appearance."""
    keys = list(dict.fromkeys((row.system, row.rule) for row in rows))
    systems = [system for system, _ in keys]
    return {key: key[0] if systems.count(key[0]) == 1 else f"{key[0]} ({key[1]})" for key in keys}


def levels_by_corruption(rows: Sequence[Result]) -> dict[str, list[float]]:
    """Severities of each corruption in ascending order, none where its only level is drawn for each
    image; clean images and means are not among them.
    """
    corruptions = dict.fromkeys(row.corruption for row in rows if row.corruption not in (CLEAN, MEAN))
    levels = {name: {row.severity for row in rows if row.corruption == name} for name in corruptions}
    return {name: sorted(level for level in values if level is not None) for name, values in levels.items()}


def pivot(rows: Sequence[Result]) -> Pivot:
    """Arrange rows by corruption and system.

    Raises:
        ValueError: no rows, or two rows for the same system, rule, data set, corruption and
            severity.
    """
    if not rows:
        raise ValueError("no result rows: evaluate at least one system on one cell")
    columns = column_names(rows)
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    levels = levels_by_corruption(rows)
    # Stable sort: by data set, within it the means last, otherwise in the order given.
    ordered = sorted(rows, key=lambda row: (datasets.index(row.dataset), row.corruption == MEAN))
    groups: dict[tuple[str, str], dict[float | None, Result]] = {}
    for row in ordered:
        line = row.corruption if len(datasets) == 1 else f"{row.dataset}: {row.corruption}"
        line += ", random levels" if row.severity is None and levels.get(row.corruption) else ""
        group = groups.setdefault((line, columns[row.system, row.rule]), {})
        if row.severity in group:
            raise ValueError(f"two rows for {row.system!r}, {line!r}, severity {level_text(row.severity)}: keep one")
        group[row.severity] = row
    cells = {key: _shown(group) for key, group in groups.items()}
    lines, systems = list(dict.fromkeys(line for line, _ in cells)), list(columns.values())
    return Pivot(systems, lines, cells, _scope(levels), {line: _best(cells, line, systems) for line in lines})


def table(rows: Sequence[Result]) -> str:
    """Text for the terminal: percent; half of the 95 % interval on mean lines; `*` marks the best
    of a line.

    Raises:
        ValueError: see `pivot`.
    """
    grid = _grid(pivot(rows), lambda text, best: text + ("*" if best else " "))
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in grid
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join([caption(rows), lines[0], rule, *lines[1:]]) + "\n"


def markdown_table(rows: Sequence[Result]) -> str:
    """The same table in Markdown; the best of a line is bold.

    Raises:
        ValueError: see `pivot`.
    """
    grid = _grid(pivot(rows), lambda text, best: f"**{text}**" if best else text)
    return markdown_grid(caption(rows), grid)


def markdown_grid(above: str, grid: Sequence[Sequence[str]]) -> str:
    """A caption and a table in Markdown, of which the first line is the heading and the first
    column is text, all others are numbers.
    """
    lines = [grid[0], ["---", *("---:" for _ in grid[0][1:])], *grid[1:]]
    body = ["| " + " | ".join(text.strip().replace("|", "\\|") for text in line) + " |" for line in lines]
    return "\n".join([above, "", *body]) + "\n"


def caption(rows: Sequence[Result]) -> str:
    """What the numbers of a table are, for example "Accuracy in %, severity 5, 1000 images per
    cell".
    """
    counts = sorted({row.n for row in rows if row.corruption != MEAN})
    images = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}" if counts else ""
    parts = ["Accuracy in %", _scope(levels_by_corruption(rows)), f"{images} images per cell" if images else ""]
    return ", ".join(filter(None, parts))


def _shown(group: dict[float | None, Result]) -> Result:
    """The row that stands for all severities of one line and system."""
    first = next(iter(group.values()))
    if first.corruption == MEAN and None in group:  # it spans all severities and has the sharper interval
        return group[None]
    return first if len(group) == 1 else average_rows(list(group.values()), first.corruption, None)


def _scope(levels: dict[str, list[float]]) -> str:
    """In words."""
    of_one_level = {name for name, row in PERTURBATIONS.items() if row.drawn is not None}
    named = _named({tuple(values) for name, values in levels.items() if values and name not in of_one_level})
    drawn = ", ".join(name for name, values in levels.items() if not values)
    if not drawn:
        return named
    return f"{named} ({drawn}: random levels)" if named else "random levels"


def _named(sweeps: set[tuple[float, ...]]) -> str:
    if not sweeps:
        return ""
    if len(sweeps) > 1:
        return "mean over the levels of each corruption"
    values = [f"{value:g}" for value in sweeps.pop()]
    if len(values) > 5:
        return f"mean of {len(values)} levels from {values[0]} to {values[-1]}"
    return f"severity {values[0]}" if len(values) == 1 else f"mean of severities {', '.join(values)}"


def _best(cells: dict[tuple[str, str], Result], line: str, systems: list[str]) -> set[str]:
    accuracies = {system: cells[line, system].accuracy for system in systems if (line, system) in cells}
    highest = max(accuracies.values())
    # Equal accuracies may differ by rounding when they are means.
    return {name for name, value in accuracies.items() if value > highest - 1e-9} if len(systems) > 1 else set()


def _grid(arranged: Pivot, mark: Callable[[str, bool], str]) -> list[list[str]]:
    """Texts of the table, heading first; `mark(text, is_best)` finishes each number."""
    grid = [["corruption", *(mark(name, False) for name in arranged.systems)]]
    for line in arranged.lines:
        texts = [line]
        for system in arranged.systems:
            row = arranged.cells.get((line, system))
            text = "-" if row is None else accuracy(row, arranged.is_mean(line))
            texts.append(mark(text, system in arranged.best[line]))
        grid.append(texts)
    return grid


def accuracy(row: Result, with_interval: bool) -> str:
    """Accuracy in percent, e.g. "86.4" or "86.4 ±0.9"."""
    interval = f" ±{percent(50 * (row.ci95_high - row.ci95_low))}" if with_interval else ""
    return percent(100 * row.accuracy) + interval
