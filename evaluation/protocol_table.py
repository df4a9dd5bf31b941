"""Systems under several protocols, or at several batch sizes, over seeds of networks and streams.

    python evaluation/protocol_table.py --results runs/{column}/{stream}/seed{seed}/results.json \
        --columns reset,mixed,by_class --seeds 1 --streams 1,2,3 --against source --dataset Digits

Reads the results.json of one evaluation for each column, seed and stream. table.md and table.csv
have the mean accuracy over the degraded test sets; table.md also the calibration error, the
milliseconds an image, how many numbers a system moves, and whose predictions run into few classes.
gains.md has what every system gains over those of `--against`, paired by image. Where all columns
are numbers, such as batch sizes, curves.png shows accuracy against them.
"""

from __future__ import annotations

import undegrade.utils.quick_start  # noqa: F401  before the rest

# isort: split
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from undegrade.evaluation.approach_table import result_paths
from undegrade.evaluation.costs import Cost, evaluation_costs
from undegrade.evaluation.results import CLEAN, Result, percent
from undegrade.evaluation.robustness import collapsed_rows
from undegrade.evaluation.seeds import Seeds, gains, read_seeds
from undegrade.evaluation.tables import markdown_grid
from undegrade.utils.choices import check_choice
from undegrade.utils.command_line import ScriptParser
from undegrade.utils.errors import run_main
from undegrade.utils.figures import PALETTE, new_figure, save, tidy
from undegrade.utils.files import write_atomic
from undegrade.utils.yaml_trees import parse_value

_DASHES = ("-", "--", ":", "-.")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    p = ScriptParser(__doc__, [])
    p.add_argument(
        "--results", required=True, help="path of a results.json with `{column}` in it and, for several, `{seed}`, `{stream}`"
    )
    p.add_argument("--columns", required=True, help="for `{column}`, joined by commas")
    p.add_argument("--seeds", default="", help="for `{seed}`, joined by commas: 1,2,3")
    p.add_argument("--streams", default="", help="for `{stream}`, joined by commas: 1,2,3")
    p.add_argument("--corruption", default="", help="test sets that count, joined by commas (default: all degraded ones)")
    p.add_argument("--dataset", required=True, help="data set of the results")
    p.add_argument("--against", required=True, help='system that the others are compared with, or several: ["source", "BN"]')
    p.add_argument("--out", default="runs/table", help="folder of what is written")
    args, _ = p.parse(argv)
    if "{column}" not in args.results:
        raise ValueError(f"--results {args.results}: put `{{column}}` where the name of each protocol stands")
    if ("{stream}" in args.results) != bool(args.streams):
        raise ValueError(
            f"--results {args.results} --streams {args.streams}: `{{stream}}` in the path and --streams 1,2 go together"
        )
    dataset, parsed = Path(args.dataset).name, parse_value(args.against)
    found: dict[str, Seeds] = {}
    costs: list[tuple[dict[str, Cost], dict[str, int]]] = []
    for name in dict.fromkeys(args.columns.split(",")):
        pattern = args.results.replace("{column}", name)
        files = result_paths([pattern.replace("{stream}", stream) for stream in args.streams.split(",")], args.seeds)
        every = read_seeds(files, dataset)
        found[name] = only(every, args.corruption.split(",")) if args.corruption else every
        costs += [evaluation_costs(Path(file), meta) for file, meta in zip(files, every.metas, strict=True)]
    means = accuracies(found)
    text = "\n".join([markdown(means, found), calibration(found, costs), *collapses(found)])
    print(text)
    out = Path(args.out)
    write_atomic(out / "table.md", text)
    write_atomic(out / "table.csv", means.to_csv(float_format=lambda value: percent(value, digits=4)))
    write_atomic(out / "gains.md", gains_text(found, parsed if isinstance(parsed, list) else [args.against]))
    written = ["table.md", "table.csv", "gains.md"]
    if all(name.isdecimal() for name in found) and len(found) > 1:
        save(curves(means), out / "curves.png")
        written.append("curves.png")
    print(f"written: {', '.join(f'{out}/{name}' for name in written)}")


def only(seeds: Seeds, corruptions: Sequence[str]) -> Seeds:
    """What the results say of some corruptions.

    Raises:
        ValueError: they say nothing of one (names those that they have).
    """
    known = dict.fromkeys(row.corruption for run in seeds.runs for row in run)
    for name in corruptions:
        check_choice(name, known, "corruption of the results", "--corruption")
    runs = [[row for row in run if row.corruption in corruptions] for run in seeds.runs]
    correct = {
        system: {place: right for place, right in cells.items() if place[1].corruption in corruptions}
        for system, cells in seeds.correct.items()
    }
    return dataclasses.replace(seeds, runs=runs, correct=correct, means=[])


def accuracies(found: Mapping[str, Seeds]) -> pd.DataFrame:
    """Mean accuracy over degraded test sets in percent: see `by_system`."""
    return by_system(found, lambda row: row.accuracy)


def by_system(found: Mapping[str, Seeds], value: Callable[[Result], float]) -> pd.DataFrame:
    """Means over degraded test sets in percent: a line for each system, in order of first
    appearance, columns (name, `mean` or `deviation` over seeds); nan where a column lacks it.
    """
    rows = [
        (name, seed, row.system, 100 * value(row))
        for name, seeds in found.items()
        for seed, run in enumerate(seeds.runs)
        for row in run
        if row.corruption != CLEAN
    ]
    cells = pd.DataFrame(rows, columns=["column", "seed", "system", "value"])
    by_seed = cells.groupby(["system", "column", "seed"])["value"].mean()
    table = by_seed.groupby(["system", "column"]).agg(["mean", "std"]).unstack("column").swaplevel(axis=1)
    order = [(name, kind) for name in found for kind in ("mean", "std")]
    return table[order].loc[list(dict.fromkeys(cells["system"]))].rename(columns={"std": "deviation"})


def markdown(means: pd.DataFrame, found: Mapping[str, Seeds]) -> str:
    """Caption and table of accuracies."""
    first = next(iter(found.values()))
    count = len(first.runs)
    spread = f", mean over {count} seeds and streams ± sample standard deviation" if count > 1 else ""
    cells = {row.corruption for row in first.runs[0]} - {CLEAN}
    images = first.runs[0][0].n
    caption = f"Accuracy in %, mean over {len(cells)} degraded test sets of {images} images{spread}; the best of a column in bold."
    best = {name: means[name, "mean"].max() for name in found}
    grid = [["system", *found]]
    for system, row in means.iterrows():
        texts = []
        for name in found:
            mean, deviation = row[name, "mean"], row[name, "deviation"]
            text = "" if pd.isna(mean) else percent(mean) + ("" if pd.isna(deviation) else f" ±{percent(deviation)}")
            texts.append(f"**{text}**" if mean == best[name] else text)
        grid.append([str(system), *texts])
    return markdown_grid(caption, grid)


def calibration(found: Mapping[str, Seeds], costs: Sequence[tuple[Mapping[str, Cost], Mapping[str, int]]]) -> str:
    """Table of calibration errors, milliseconds an image, and numbers that move.

    Args:
        found: results by column.
        costs: of each file, see `evaluation_costs`.
    """
    errors = by_system(found, lambda row: row.metrics.get("calibration_error", math.nan))
    grid = [["system", *found, "ms", "moved"]]
    for system, row in errors.iterrows():
        known = [every[system].ms for every, _ in costs if system in every]
        moved = max((every[system] for _, every in costs if system in every), default=0)
        texts = ["" if pd.isna(row[name, "mean"]) else percent(row[name, "mean"]) for name in found]
        grid.append([str(system), *texts, f"{np.mean(known):.1f}" if known else "", f"{moved:,}"])
    return markdown_grid(
        "Expected calibration error in %; milliseconds an image, of the adaptation of classifier and images on the machine that "
        "made the results; numbers of the classifiers that steps change.",
        grid,
    )


def collapses(found: Mapping[str, Seeds]) -> list[str]:
    """Lines that say on what share of its test sets a system's predictions run into few classes, by
    column.
    """
    shares: dict[str, list[str]] = {}
    for name, seeds in found.items():
        counts: Counter[str] = Counter()
        for run, meta in zip(seeds.runs, seeds.metas, strict=True):
            counts.update({system: len(rows) for system, rows in collapsed_rows(run, meta.get("classes", 0)).items()})
        for system, count in counts.items():
            every = sum(row.system == system for run in seeds.runs for row in run)
            shares.setdefault(system, []).append(f"{name} {percent(100 * count / every, digits=0)} %")
    lines = [f"- {system}: {', '.join(told)}" for system, told in shares.items()]
    return ["Test sets on which predictions run into few classes, which is known without labels:", "", *lines, ""] if lines else []


def gains_text(found: Mapping[str, Seeds], against: Sequence[str]) -> str:
    """What every system gains over each of some, by column."""
    lines = ["Points of accuracy, paired by image, with 95 % intervals."]
    for name, seeds in found.items():
        for other in against:
            lines += ["", f"{name}, against {other}:", "", *(f"- {line}" for line in gains(seeds, other))]
    return "\n".join(lines) + "\n"


def curves(means: pd.DataFrame) -> Figure:
    """Accuracy against columns that are numbers, a line for each system; several seeds with their
    deviation.
    """
    figure = new_figure(7.2, 4.2)
    axes = figure.subplots()
    names = sorted(means.columns.get_level_values(0).unique(), key=int)
    places = [int(name) for name in names]
    for number, (system, row) in enumerate(means.iterrows()):
        mean = [row[name, "mean"] for name in names]
        colour, dashes = PALETTE[number % len(PALETTE)], _DASHES[number // len(PALETTE) % len(_DASHES)]
        axes.plot(places, mean, marker="o", markersize=3.5, label=str(system), color=colour, linestyle=dashes)
        deviation = [row[name, "deviation"] for name in names]
        if not any(map(pd.isna, deviation)):
            low, high = ([m + sign * d for m, d in zip(mean, deviation, strict=True)] for sign in (-1, 1))
            axes.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks(places, names)
    axes.minorticks_off()
    axes.set(xlabel="images a batch", ylabel="accuracy, %")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    tidy(axes)
    return figure


if __name__ == "__main__":
    run_main(main)
