"""Adapters of images by what they gain and what they cost.

    python evaluation/adapter_table.py --results runs/adapters/Digits/{adapter}/results.json \
        --adapters dda,distilled,restoration --against restoration --dataset Digits

Reads the results.json of one evaluation for each adapter (and seed), all of the same systems and
images. table.md and table.csv have the mean accuracy over the degraded test sets and on clean
images, passes, milliseconds an image, weights and memory; gains.md what each adapter gains over
that of --against, paired by image; frontier.png accuracy against milliseconds, with the frontier of
what no cheaper system reaches; report.html all of it.
"""

from __future__ import annotations

import undegrade.utils.quick_start  # noqa: F401  before the rest

# isort: split
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from undegrade.evaluation.approach_table import result_paths
from undegrade.evaluation.costs import Cost, evaluation_costs
from undegrade.evaluation.report.html import write_report
from undegrade.evaluation.results import CLEAN, Result, paired_difference, percent
from undegrade.evaluation.seeds import Seeds, read_seeds
from undegrade.evaluation.tables import markdown_grid
from undegrade.utils.choices import check_choice
from undegrade.utils.command_line import ScriptParser
from undegrade.utils.data.cells import Cell
from undegrade.utils.errors import run_main
from undegrade.utils.figures import INK, MARKERS, PALETTE, new_figure, save, tidy
from undegrade.utils.files import write_atomic
from undegrade.utils.provenance import provenance

Right = Mapping[tuple[int, Cell], np.ndarray]
_NONE = "no adapter"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A system with an adapter's images.

    Attributes:
        adapter: its name; `no adapter` of systems that look at images as they are.
        system: name.
        corrupted, clean: accuracy in percent, mean over test sets and seeds; nan where unknown.
        half: of the 95 % interval of `corrupted` over images, in points.
        cost: of the adaptation of an image.
        right: of each seed and degraded test set, which images are classified right.
    """

    adapter: str
    system: str
    corrupted: float
    clean: float
    half: float
    cost: Cost
    right: Right


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    p = ScriptParser(__doc__, [])
    p.add_argument("--results", required=True, help="path of a results.json with `{adapter}` in it, and `{seed}` for several")
    p.add_argument("--adapters", required=True, help="for `{adapter}`, joined by commas")
    p.add_argument("--seeds", default="", help="for `{seed}`, joined by commas: 1,2,3")
    p.add_argument("--dataset", required=True, help="data set of the results")
    p.add_argument("--against", required=True, help="adapter that the others are compared with, such as a denoiser of one pass")
    p.add_argument("--out", default="runs/table", help="folder of what is written")
    args, _ = p.parse(argv)
    if "{adapter}" not in args.results:
        raise ValueError(f"--results {args.results}: put `{{adapter}}` where the name of each adapter stands")
    names = list(dict.fromkeys(args.adapters.split(",")))
    check_choice(args.against, names, "adapter", "--against")
    dataset, found = Path(args.dataset).name, {}
    for name in names:
        files = result_paths([args.results.replace("{adapter}", name)], args.seeds)
        found[name] = files, read_seeds(files, dataset)
    every = entries(found, dataset)
    text, gained = markdown(every, next(iter(found.values()))[1]), gains_text(every, args.against)
    print(text)
    out = Path(args.out)
    write_atomic(out / "table.md", text)
    write_atomic(out / "table.csv", as_table(every).to_csv(index=False))
    write_atomic(out / "gains.md", gained)
    figure = frontier_plot(every)
    save(figure, out / "frontier.png")
    report(out / "report.html", every, dataset, figure, gained)
    print(f"written: {', '.join(f'{out}/{name}' for name in ('table.md', 'table.csv', 'gains.md', 'frontier.png', 'report.html'))}")


def entries(found: Mapping[str, tuple[Sequence[str | Path], Seeds]], dataset: str) -> list[Entry]:
    """Every system with every adapter; those without one once."""
    made: dict[tuple[str, str], Entry] = {}
    for name, (files, seeds) in found.items():
        costs = [evaluation_costs(Path(file), meta)[0] for file, meta in zip(files, seeds.metas, strict=True)]
        for system in dict.fromkeys(row.system for row in seeds.runs[0]):
            known = [every[system] for every in costs if system in every]
            cost = _mean_cost(known) if known else Cost(0, float("nan"))
            adapter = name if cost.passes or cost.ms else _NONE
            if (adapter, system) in made:
                continue
            right = {place: r for place, r in seeds.correct.get(system, {}).items() if place[1].corruption != CLEAN}
            own = [row for run in seeds.runs for row in run if row.system == system]
            clean, corrupted = ([100 * r.accuracy for r in own if (r.corruption == CLEAN) is c] for c in (True, False))
            low, high = _interval(right) if right else (float("nan"),) * 2
            made[adapter, system] = Entry(
                adapter, system, float(np.mean(corrupted)) if corrupted else float("nan"),
                float(np.mean(clean)) if clean else float("nan"), 50 * (high - low), cost, right,
            )  # fmt: skip
    return sorted(made.values(), key=lambda entry: entry.adapter != _NONE)


def _interval(right: Right) -> tuple[float, float]:
    """Ends of the 95 % interval of the mean accuracy over images, as shares."""
    nothing = {place: np.zeros(len(values), bool) for place, values in right.items()}
    _, low, high = paired_difference(right, nothing)
    return low, high


def _mean_cost(costs: Sequence[Cost]) -> Cost:
    return costs[-1]._replace(ms=float(np.mean([cost.ms for cost in costs])), memory=max(cost.memory for cost in costs))


def as_table(every: Sequence[Entry]) -> pd.DataFrame:
    """A line for each entry."""
    lines = [
        {
            "adapter": e.adapter, "system": e.system, "corrupted": e.corrupted, "half interval": e.half, "clean": e.clean,
            "passes": e.cost.passes, "ms": e.cost.ms, "parameters": e.cost.parameters, "peak MB": e.cost.memory,
        }
        for e in every
    ]  # fmt: skip
    return pd.DataFrame(lines).round(4)


def markdown(every: Sequence[Entry], seeds: Seeds) -> str:
    """Accuracies on degraded and on clean images with the costs, a line for each adapter."""
    adapters = list(dict.fromkeys(entry.adapter for entry in every))
    systems = list(dict.fromkeys(entry.system for entry in every))
    at = {(entry.adapter, entry.system): entry for entry in every}
    cells = {(row.corruption, row.severity) for row in seeds.runs[0] if row.corruption != CLEAN}
    images = seeds.runs[0][0].n
    texts = []
    for what, words in (("corrupted", f"mean over {len(cells)} degraded test sets"), ("clean", "on clean images")):
        grid = [["adapter", "passes", "ms", "weights", "peak MB", *systems]]
        best = {s: max((getattr(e, what) for e in every if e.system == s), default=0.0) for s in systems}
        for adapter in adapters:
            cost = next(entry.cost for entry in every if entry.adapter == adapter)
            values = []
            for system in systems:
                entry = at.get((adapter, system))
                value = "" if entry is None or np.isnan(getattr(entry, what)) else percent(getattr(entry, what))
                if value and what == "corrupted" and entry is not None and not np.isnan(entry.half):
                    value += f" ±{percent(entry.half)}"
                values.append(f"**{value}**" if entry is not None and value and getattr(entry, what) == best[system] else value)
            ms = "" if np.isnan(cost.ms) else percent(cost.ms)
            grid.append([adapter, str(cost.passes), ms, f"{cost.parameters:,}", percent(cost.memory, digits=0), *values])
        texts.append(markdown_grid(f"Accuracy in %, {words}, {images} images each; the best of a column in bold.", grid))
    note = (
        "passes: of networks that adapt an image. ms: milliseconds an image of one rank, reading and writing included, on the "
        "machine that adapted it. weights: of those networks. peak MB: what a rank took at most, its libraries included.\n"
    )
    return "\n".join([*texts, note])


def gains_text(every: Sequence[Entry], against: str) -> str:
    """What every adapter gains over that of `against`, system by system, paired by image."""
    base = {entry.system: entry for entry in every if entry.adapter == against}
    lines = [f"Points of accuracy over the adapter {against}, paired by image, with 95 % intervals."]
    for system, other in base.items():
        rows = []
        for entry in every:
            places = [place for place in entry.right if place in other.right]
            if entry.system == system and entry.adapter != against and places:
                pair = ({p: e.right[p] for p in places} for e in (entry, other))
                difference, low, high = (percent(100 * value, "+") for value in paired_difference(*pair))
                rows.append(f"- {entry.adapter}: {difference} [{low}, {high}]")
        lines += ["", f"{system}:", "", *rows] if rows else []
    return "\n".join(lines) + "\n"


def frontier(every: Sequence[Entry]) -> list[Entry]:
    """Those that are better than everything that costs no more, by rising cost."""
    best, found = -np.inf, []
    for entry in sorted((e for e in every if not np.isnan(e.cost.ms)), key=lambda e: (e.cost.ms, -e.corrupted)):
        if entry.corrupted > best:
            best = entry.corrupted
            found.append(entry)
    return found


def frontier_plot(every: Sequence[Entry]) -> Figure:
    """Accuracy against milliseconds an image, a colour for each system, and the frontier."""
    shown = [entry for entry in every if not np.isnan(entry.cost.ms)]
    figure = new_figure(11, 6)
    axes = figure.subplots()
    for index, system in enumerate(dict.fromkeys(entry.system for entry in shown)):
        own = [entry for entry in shown if entry.system == system]
        places = [e.cost.ms for e in own], [e.corrupted for e in own]
        colour, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
        axes.plot(*places, label=system, color=colour, marker=marker, linestyle="", ms=6)
    linear = min((entry.cost.ms for entry in shown if entry.cost.ms > 0), default=1.0)
    best = frontier(shown)
    axes.step([e.cost.ms for e in best], [e.corrupted for e in best], where="post", color=INK, linewidth=1, zorder=0)
    for entry in best:
        place = (entry.cost.ms, entry.corrupted)
        text = entry.system if entry.adapter == _NONE else f"{entry.system}, {entry.adapter}"
        axes.annotate(text, place, xytext=(5, 6), textcoords="offset points", fontsize=8, color=INK)
    axes.set_xscale("symlog", linthresh=linear)
    axes.set_xlim(left=-0.2 * linear, right=3 * max([linear, *(entry.cost.ms for entry in shown)]))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("milliseconds an image for its adaptation, one rank", fontsize=10)
    axes.set_ylabel("accuracy in %, mean over degraded test sets", fontsize=10)
    tidy(axes)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8.5)
    return figure


def report(path: Path, every: Sequence[Entry], dataset: str, figure: Figure, gained: str) -> None:
    """All of it as one HTML file; its table has a line for each adapter."""
    rows = []
    for entry in (entry for entry in every if entry.right):
        every_image = np.concatenate(list(entry.right.values()))
        low, high = _interval(entry.right)
        n, correct = len(every_image), int(every_image.sum())
        rows.append(Result(entry.system, dataset, entry.adapter, None, "", n, correct, correct / n, low, high))
    best = max(every, key=lambda entry: entry.corrupted)
    cheap = frontier(every)
    write_report(
        path,
        title=f"{dataset}: adapters of images, what they gain and what they cost",
        summary=f"{best.system} with {best.adapter} is best, {percent(best.corrupted)} % on degraded images.",
        rows=rows,
        figures={"Accuracy against the milliseconds that an adaptation takes, and the frontier": figure},
        configs={},
        provenance={"command": f"python {Path(sys.argv[0]).name} --dataset {dataset} ...", **provenance()},
        notes=[
            "On the frontier, by rising cost: "
            + "; ".join(f"{e.system}, {e.adapter} ({percent(e.corrupted)} %, {percent(e.cost.ms)} ms)" for e in cheap) + ".",
            *gained.replace(":\n\n- ", ": ").replace("\n- ", "; ").split("\n\n"),
        ],
        lines="adapter",
        about="Accuracy in %, mean over degraded test sets",
    )  # fmt: skip


if __name__ == "__main__":
    run_main(main)
