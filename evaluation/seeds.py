"""Results of the same systems trained from several seeds: read, checked against each other, and
their mean and deviation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from undegrade.evaluation.published import AVERAGE, CLEAN_HEADING, UNSEEN
from undegrade.evaluation.result_files import CORRECT, read_correct, read_json
from undegrade.evaluation.results import CLEAN, MEAN, Result, difference_words, paired_difference, percent
from undegrade.evaluation.tables import column_names, levels_by_corruption
from undegrade.utils.choices import check_choice
from undegrade.utils.data.cells import Cell, level_text
from undegrade.utils.data.perturbations.perturbation import PERTURBATIONS
from undegrade.utils.data.perturbations.registry import with_severities

# of the evaluation (`meta`): the same for all seeds
_SETTINGS = ("split", "constants", "compat", "perturbations", "batch_size")


@dataclasses.dataclass(frozen=True)
class Statistic:
    """Mean over seeds in percent, and what is known about its spread.

    Attributes:
        mean: see above.
        deviation: sample standard deviation over seeds (divisor n - 1), None for one seed.
        interval: half of the 95 % interval over images, for one seed and a mean over all of its
            cells; else None.
    """

    mean: float
    deviation: float | None = None
    interval: float | None = None

    def __str__(self) -> str:
        spread = self.interval if self.deviation is None else self.deviation
        return percent(self.mean) + ("" if spread is None else f" ±{percent(spread)}")


@dataclasses.dataclass(frozen=True)
class Seeds:
    """Results of several seeds.

    Attributes:
        runs: the rows of each seed without their means: the same systems, cells and image counts.
        split: of the data set, "" where the files do not say.
        trained: degradations that the evaluation's configuration lists.
        means: of a single seed, the rows that hold the means.
        correct: system -> which images it has right, bool [n] for each (seed, cell); empty where a
            results file stands alone, without `correct.npz`.
        metas: what the file of each seed says of all its rows.
    """

    runs: list[list[Result]]
    split: str = ""
    trained: list[str] = dataclasses.field(default_factory=list)
    means: list[Result] = dataclasses.field(default_factory=list)
    correct: dict[str, dict[tuple[int, Cell], np.ndarray]] = dataclasses.field(default_factory=dict)
    metas: list[dict[str, Any]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which cells a column is the mean of.

    Attributes:
        columns: heading -> cells of one corruption, all its levels.
        extra: the same of clean images and of the unseen corruptions, where there are any.
        left_out: corruptions that no column shows.
    """

    columns: dict[str, list[Cell]]
    extra: dict[str, list[Cell]]
    left_out: list[str]


def read_seeds(paths: Sequence[str | Path], dataset: str, made_by: str = "") -> Seeds:
    """Read one results file a seed.

    Args:
        paths: files of `evaluation.result_files.write_json`, at least one.
        dataset: that all rows must be of.
        made_by: command that writes such a file, for the message when one is missing.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is given twice, is no results file, is unfinished or of another data set;
            or its systems, cells, image counts or settings differ from the first file's, or its
            networks do not.
    """
    runs, metas = [], []
    for index, path in enumerate(paths):
        if not Path(path).is_file():
            raise FileNotFoundError(f"results file {path} does not exist; it is written by: {made_by or 'test_ensemble.py'}")
        if Path(path).resolve() in [Path(other).resolve() for other in paths[:index]]:
            raise ValueError(f"{path} is given twice: each seed has a file of its own")
        rows, meta = read_json(path)
        runs.append(_checked_rows(path, rows, dataset))
        metas.append(meta)
        for other, rows_there, meta_there in zip(paths[:index], runs, metas, strict=False):
            _check_same(path, runs[-1], meta, other, rows_there, meta_there)
    means = [row for row in rows if row.corruption == MEAN] if len(paths) == 1 else []
    return Seeds(
        runs, str(metas[0].get("split") or ""), list(metas[0].get("degradations", [])), means, _correct(paths, runs), metas
    )


def _correct(paths: Sequence[str | Path], runs: Sequence[Sequence[Result]]) -> dict[str, dict[tuple[int, Cell], np.ndarray]]:
    files = [Path(path).with_name(CORRECT) for path in paths]
    found: dict[str, dict[tuple[int, Cell], np.ndarray]] = {}
    if all(file.is_file() for file in files):
        for seed, (file, rows) in enumerate(zip(files, runs, strict=True)):
            for (system, corruption, severity), right in read_correct(file, rows).items():
                found.setdefault(system, {})[seed, Cell(corruption, severity)] = right
    return found


def gains(seeds: Seeds, against: str, clean: bool = False) -> list[str]:
    """`A minus B: +x points [low, high]` for every system A, best first, against the system B, over
    the degraded cells of all seeds, or over the clean ones: per image the mean over cells and
    seeds, the interval over the images. With several seeds the difference of each follows.

    Raises:
        ValueError: no system of that name, or which images are right is not known.
    """
    check_choice(against, seeds.correct or column_names(seeds.runs[0]).values(), "system", "against")
    if not seeds.correct:
        raise ValueError(f"against {against}: there is no {CORRECT} beside each of the results, which says what images are right")
    base, lines = seeds.correct[against], {}
    for system, right in seeds.correct.items():
        cells = [place for place in base if place in right and (place[1].corruption == CLEAN) == clean]
        if system == against or not cells:
            continue
        ours, theirs = ({c: found[c] for c in cells} for found in (right, base))
        each = [np.mean([right[c].mean() - base[c].mean() for c in cells if c[0] == seed]) for seed in range(len(seeds.runs))]
        told = f" (by seed {', '.join(percent(100 * float(v), '+') for v in each)})" if len(each) > 1 else ""
        lines[f"{system} minus {against}: {difference_words(ours, theirs)}{told}"] = paired_difference(ours, theirs)[0]
    return sorted(lines, key=lambda line: -lines[line])


def layout(rows: Sequence[Result], headings: Mapping[str, str], trained: Sequence[str] = ()) -> Layout:
    """Columns for a table of `rows`.

    A corruption of `headings` is a column, in that order; so is, after them, everything that was
    `trained` on and every other perturbation at several levels of its own unit. Corruptions with
    severities that are no column are the unseen ones, every pair of corruption and severity
    counting the same.

    Raises:
        ValueError: two columns of one heading, or nothing to show.
    """
    levels = levels_by_corruption(rows)
    corruptions = with_severities()
    own_unit = set(PERTURBATIONS) - set(corruptions)
    several = [name for name, values in levels.items() if name in trained or (name in own_unit and len(values) > 1)]
    swept = [name for name in several if name not in headings]
    if doubled := set(swept) & set(headings.values()):
        raise ValueError(f"heading {doubled.pop()!r} stands for another corruption, and is a swept degradation itself: rename it")
    shown = {name: heading for name, heading in headings.items() if name in levels} | {name: name for name in swept}
    cells = {name: [Cell(name, level) for level in values] or [Cell(name)] for name, values in levels.items()}
    columns = {heading: cells[name] for name, heading in shown.items()}
    unseen = [name for name in levels if name in corruptions and name not in shown]
    clean = sorted({Cell(row.corruption, row.severity) for row in rows if row.corruption == CLEAN})
    extra = {CLEAN_HEADING: clean, UNSEEN: [cell for name in unseen for cell in cells[name]]}
    extra = {heading: cells for heading, cells in extra.items() if cells}
    if not columns and not extra:
        raise ValueError(f"no column to show: the results hold {', '.join(levels) or 'no cells'}, the table {', '.join(headings)}")
    drawn = dict.fromkeys(row.corruption for row in rows if row.severity is None and levels.get(row.corruption))
    left_out = [name for name in levels if name not in shown and name not in unseen]
    return Layout(columns, extra, left_out + [f"{name} (random levels)" for name in drawn])


def average(values: Mapping[str, float], headings: Sequence[str]) -> float | None:
    """Plain mean over `headings`; None when one of them is missing (or there are none), since it
    would not compare.
    """
    return float(np.mean([values[h] for h in headings])) if headings and set(headings) <= set(values) else None


def statistics(seeds: Seeds, plan: Layout) -> dict[str, dict[str, Statistic]]:
    """System -> heading -> accuracy in percent over seeds, systems in order of first appearance.

    A cell's accuracy is averaged over a column's cells first, then the columns (`Avg`), the seeds
    last. Only a system that has all cells of a column has a value there.
    """
    names = column_names(seeds.runs[0])
    cells = pd.DataFrame(
        [
            (seed, names[r.system, r.rule], Cell(r.corruption, r.severity).folder, 100 * r.accuracy)
            for seed, run in enumerate(seeds.runs)
            for r in run
        ],
        columns=["seed", "system", "cell", "accuracy"],
    ).pivot(index=["seed", "system"], columns="cell", values="accuracy")
    shown = {heading: [cell.folder for cell in group] for heading, group in (plan.columns | plan.extra).items()}
    values = pd.DataFrame({heading: cells[group].mean(axis=1, skipna=False) for heading, group in shown.items()})
    if plan.columns:
        values[AVERAGE] = values[list(plan.columns)].mean(axis=1, skipna=False)
    by_system = values.groupby("system")
    mean, deviation = by_system.mean(), by_system.std()  # of one seed the latter is nan
    out = {
        system: {
            heading: Statistic(float(value), float(deviation[heading][system]) if len(seeds.runs) > 1 else None)
            for heading, value in mean.loc[system].dropna().items()
        }
        for system in names.values()
    }
    means = {(row.system, row.rule): row for row in seeds.means}
    for key, name in names.items():
        ours, row = out[name].get(AVERAGE), means.get(key)
        if ours is not None and row is not None and abs(ours.mean - 100 * row.accuracy) < 1e-6:  # over the same cells
            out[name][AVERAGE] = dataclasses.replace(ours, interval=50 * (row.ci95_high - row.ci95_low))
    return out


def _checked_rows(path: str | Path, rows: Sequence[Result], dataset: str) -> list[Result]:
    """The rows of cells."""
    others = sorted({row.dataset for row in rows} - {dataset})
    if others:
        raise ValueError(f"{path} holds results of {', '.join(others)}, not of {dataset}: name the data set with --dataset")
    cells = [row for row in rows if row.corruption != MEAN]
    keys = [_cell(row) for row in cells]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{path} has two rows for {twice}: evaluate with one name a system, and each level once")
    # The evaluation writes rows as it goes and the means at its end.
    degraded = [row.system for row in cells if row.corruption != CLEAN]
    if not cells or (len(cells) == len(rows) and len(set(degraded)) < len(degraded)):
        raise ValueError(f"{path} is of an evaluation that did not finish (it has no mean): run its command again")
    return cells


def _check_same(
    path: str | Path, rows: Sequence[Result], meta: Mapping[str, Any],
    other: str | Path, rows_there: Sequence[Result], meta_there: Mapping[str, Any],
) -> None:  # fmt: skip
    found = {
        "systems": ({row.system for row in rows}, {row.system for row in rows_there}),
        "cells": ({_cell(row) for row in rows}, {_cell(row) for row in rows_there}),
        "image counts": ({f"{row.n} ({_cell(row)})" for row in rows}, {f"{row.n} ({_cell(row)})" for row in rows_there}),
        "settings": ({f"{k} {meta.get(k)}" for k in _SETTINGS}, {f"{k} {meta_there.get(k)}" for k in _SETTINGS}),
    }
    for what, (here, there) in found.items():
        if here != there:
            odd = {"first": here - there, "second": there - here}
            named = ", ".join(f"only the {which} has {_some(items)}" for which, items in odd.items() if items)
            raise ValueError(f"{path} and {other} differ in their {what}: {named}; evaluate every seed with the same configuration")
    if meta.get("members") and all(meta.get(key) == meta_there.get(key) for key in ("members", "protocol")):
        raise ValueError(f"{path} and {other} are of the same networks: give one file a seed")


def _cell(row: Result) -> str:
    return f"{row.system} ({row.rule}) on {row.corruption} {level_text(row.severity)}"


def _some(items: set[str]) -> str:
    named = sorted(items)
    return ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "")
