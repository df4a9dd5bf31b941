"""Mean accuracy of systems under several protocols, or at several batch sizes, over seeds.

    python evaluation/protocol_table.py --results runs/seed{seed}/tta/{column}/results.json \
        --columns reset,mixed,by_class --seeds 1,2,3 --against source --dataset Digits

Reads the results.json of one evaluation for each column and seed. table.md and table.csv have the
mean over the degraded test sets, and what every system gains over `--against`, paired by image.
Where all columns are numbers, such as batch sizes, curves.png shows accuracy against them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from undegrade.evaluation.approach_table import result_paths
from undegrade.evaluation.results import CLEAN, percent
from undegrade.evaluation.seeds import Seeds, gains, read_seeds
from undegrade.utils.command_line import ScriptParser
from undegrade.utils.errors import run_main
from undegrade.utils.figures import PALETTE, new_figure, save, tidy
from undegrade.utils.files import write_atomic

_DASHES = ("-", "--", ":", "-.")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    p = ScriptParser(__doc__, [])
    p.add_argument("--results", required=True, help="path of a results.json with `{column}` and, for several seeds, `{seed}` in it")
    p.add_argument("--columns", required=True, help="for `{column}`, joined by commas")
    p.add_argument("--seeds", default="", help="for `{seed}`, joined by commas: 1,2,3")
    p.add_argument("--dataset", required=True, help="data set of the results")
    p.add_argument("--against", required=True, help="system that the others are compared with")
    p.add_argument("--out", default="runs/table", help="folder of what is written")
    args, _ = p.parse(argv)
    if "{column}" not in args.results:
        raise ValueError(f"--results {args.results}: put `{{column}}` where the name of each protocol stands")
    columns = list(dict.fromkeys(args.columns.split(",")))
    paths = {name: result_paths([args.results.replace("{column}", name)], args.seeds) for name in columns}
    found = {name: read_seeds(files, Path(args.dataset).name) for name, files in paths.items()}
    means = accuracies(found)
    text = markdown(means, found, args.against)
    print(text)
    out = Path(args.out)
    write_atomic(out / "table.md", text)
    write_atomic(out / "table.csv", means.to_csv(float_format=lambda value: percent(value, digits=4)))
    written = ["table.md", "table.csv"]
    if all(name.isdecimal() for name in columns) and len(columns) > 1:
        save(curves(means), out / "curves.png")
        written.append("curves.png")
    print(f"written: {', '.join(f'{out}/{name}' for name in written)}")


def accuracies(found: Mapping[str, Seeds]) -> pd.DataFrame:
    """Mean accuracy over degraded test sets in percent: a line for each system, in order of first
    appearance, columns (name, `mean` or `deviation` over seeds); nan where a column lacks it.
    """
    rows = [
        (name, seed, row.system, 100 * row.accuracy)
        for name, seeds in found.items()
        for seed, run in enumerate(seeds.runs)
        for row in run
        if row.corruption != CLEAN
    ]
    cells = pd.DataFrame(rows, columns=["column", "seed", "system", "accuracy"])
    by_seed = cells.groupby(["system", "column", "seed"])["accuracy"].mean()
    table = by_seed.groupby(["system", "column"]).agg(["mean", "std"]).unstack("column").swaplevel(axis=1)
    order = [(name, kind) for name in found for kind in ("mean", "std")]
    return table[order].loc[list(dict.fromkeys(cells["system"]))].rename(columns={"std": "deviation"})


def markdown(means: pd.DataFrame, found: Mapping[str, Seeds], against: str) -> str:
    """Caption, table, and the gains by column."""
    first = next(iter(found.values()))
    count, several = len(first.runs), len(first.runs) > 1
    images = first.runs[0][0].n
    spread = ", mean ± sample standard deviation" if several else ""
    lines = [
        f"Accuracy in %, mean over the degraded test sets of {images} images, {count} seed{'s' if several else ''}{spread}; "
        "the best of a column in bold.", "",
        "| system | " + " | ".join(found) + " |", "| --- |" + " ---: |" * len(found),
    ]  # fmt: skip
    best = {name: means[name, "mean"].max() for name in found}
    for system, row in means.iterrows():
        texts = []
        for name in found:
            mean, deviation = row[name, "mean"], row[name, "deviation"]
            text = "" if pd.isna(mean) else percent(mean) + ("" if pd.isna(deviation) else f" ±{percent(deviation)}")
            texts.append(f"**{text}**" if mean == best[name] else text)
        lines.append(f"| {system} | " + " | ".join(texts) + " |")
    for name, seeds in found.items():
        lines += ["", f"{name}, paired by image, 95 % intervals:", "", *(f"- {line}" for line in gains(seeds, against))]
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
