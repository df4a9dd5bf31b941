"""Approaches on degradations, mean over seeds, beside published numbers.

    python evaluation/approach_table.py -c configs/published/fusiondistill.yaml --dataset Digits \
        --results runs/fusiondistill/Digits/seed1/results.json

Reads one results.json a seed, as test_ensemble.py writes them, and writes table.md, table.csv,
table.png and, where degradations are swept, levels.png (accuracy at each level).
"""

from __future__ import annotations

import undegrade.utils.quick_start  # noqa: F401  before the rest

# isort: split
import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from scipy.stats import spearmanr

from undegrade.evaluation.published import AVERAGE, UNSEEN, PublishedConfig, check_published, published_rows
from undegrade.evaluation.report.plots import severity_plot, system_colours
from undegrade.evaluation.report.plots_approaches import dot_plot
from undegrade.evaluation.results import percent
from undegrade.evaluation.seeds import Layout, Seeds, Statistic, average, gains, layout, read_seeds, statistics
from undegrade.evaluation.tables import caption
from undegrade.utils.command_line import ScriptParser
from undegrade.utils.config import build, dotted_keys, merge, read_yaml
from undegrade.utils.data.perturbations.perturbation import PERTURBATIONS
from undegrade.utils.errors import run_main
from undegrade.utils.figures import save
from undegrade.utils.files import write_atomic

log = logging.getLogger("approach_table")


@dataclasses.dataclass(frozen=True)
class ApproachTable:
    """What is shown.

    Attributes:
        dataset: name of the data set.
        seeds: the results.
        plan: which cells a column is the mean of.
        ours: approach -> heading -> accuracy.
        published: published accuracies in percent of the same data set, with their average.
    """

    dataset: str
    seeds: Seeds
    plan: Layout
    ours: dict[str, dict[str, Statistic]]
    published: dict[str, dict[str, float]]

    @property
    def headings(self) -> list[str]:
        """Columns in their order, the average after those that it is of."""
        return [*self.plan.columns, *([AVERAGE] if self.plan.columns else []), *self.plan.extra]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    p = ScriptParser(__doc__, dotted_keys(PublishedConfig))
    p.add_argument("-c", "--config", required=True, help="YAML of published numbers")
    p.add_argument("--dataset", required=True, help="that the results are of; its published numbers are shown beside them")
    p.add_argument("--arch", default="", help="network of the results, as the published numbers name it")
    p.add_argument("--results", required=True, nargs="+", help="results.json files, one a seed; or one path with `{seed}` in it")
    p.add_argument("--seeds", default="", help="for `{seed}` in --results, joined by commas: 1,2,3")
    p.add_argument("--out", default="runs/table", help="folder of what is written")
    args, overrides = p.parse(argv)
    config = build(PublishedConfig, merge(read_yaml(args.config), overrides))
    check_published(config)
    dataset = Path(args.dataset).name  # results name an image folder by its last part
    paths = result_paths(args.results, args.seeds)
    table = approach_table(
        config, dataset, args.arch, read_seeds(paths, dataset, config.made_by.replace("{dataset}", args.dataset))
    )
    text = markdown(table, config)
    print(text)
    print("written: " + ", ".join(str(path) for path in write(table, text, Path(args.out))))


def result_paths(patterns: Sequence[str], seeds: str) -> list[str]:
    """The paths, those with `{seed}` once for each of the comma-separated seeds.

    Raises:
        ValueError: `{seed}` without seeds, or several seeds without `{seed}`.
    """
    named = any("{seed}" in pattern for pattern in patterns)
    if named and not seeds or "," in seeds and not named:
        raise ValueError(f"--results {' '.join(patterns)} --seeds {seeds}: `{{seed}}` in a path and --seeds 1,2,3 go together")
    return [path for p in patterns for path in ([p.replace("{seed}", s) for s in seeds.split(",")] if "{seed}" in p else [p])]


def approach_table(config: PublishedConfig, dataset: str, arch: str, seeds: Seeds) -> ApproachTable:
    """The table of one data set and architecture.

    Raises:
        ValueError: see `evaluation.seeds.layout`.
    """
    plan = layout(seeds.runs[0], config.columns, seeds.trained)
    published = {}
    if arch and f"{dataset} {arch}" not in config.rows:
        log.info("nothing was published of %s %s, but of %s", dataset, arch, ", ".join(config.rows))
    if not config.severities or {level for cells in plan.columns.values() for _, level in cells} == set(config.severities):
        for name, cells in published_rows(config, f"{dataset} {arch}").items():
            mean = _published_mean(cells, plan, config)
            shown = {heading: value for heading, value in cells.items() if heading != AVERAGE}
            published[name] = shown if mean is None else shown | {AVERAGE: mean}
    return ApproachTable(dataset, seeds, plan, statistics(seeds, plan), published)


def _published_mean(cells: Mapping[str, float], plan: Layout, config: PublishedConfig) -> float | None:
    """The mean over the columns of a table, as published or computed; None where it would not
    compare.
    """
    every = list(plan.columns) == list(config.columns.values())
    return cells.get(AVERAGE) if every and AVERAGE in cells else average(cells, list(plan.columns))


def markdown(table: ApproachTable, config: PublishedConfig) -> str:
    """Caption, table, what is gained over `config.against` and comparison of the orders, as
    Markdown that also reads well in a terminal.
    """
    grid = [["approach", *table.headings], []]
    for name, values in table.ours.items():
        grid.append([name.replace("|", "\\|"), *(str(values.get(heading, "-")) for heading in table.headings)])
        if name in table.published:
            cells = table.published[name]
            grid.append(["  published", *(percent(cells[h]) if h in cells else "-" for h in table.headings)])
    widths = [max(len(line[column]) for line in grid if line) for column in range(len(grid[0]))]
    grid[1] = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    body = [
        "| " + " | ".join([line[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(line[1:], widths[1:], strict=True))]) + " |"
        for line in grid
    ]
    below = [*notes(table), *differences(table, config.against), *orders(table, config)]
    return "\n".join([description(table, config), "", *body, *below]) + "\n"


def description(table: ApproachTable, config: PublishedConfig) -> str:
    """What the numbers are, in one line."""
    rows, count = table.seeds.runs[0], len(table.seeds.runs)
    parts = [f"{table.dataset}{f' ({table.seeds.split})' if table.seeds.split else ''}: {caption(rows)}"]
    if columns := table.plan.columns:
        counts = {heading: len(cells) for heading, cells in columns.items()}
        if max(counts.values()) > 1:
            parts.append("Number of levels: " + ", ".join(f"{heading} {count}" for heading, count in counts.items()))
        parts.append(f"{AVERAGE} is the mean of these {len(columns)} columns, each counting the same")
    if UNSEEN in table.plan.extra:
        parts.append(f"{UNSEEN} is the mean over {len(table.plan.extra[UNSEEN])} pairs of corruption and severity")
    deviation = "mean ± sample standard deviation over seeds (trained anew from each; not over images)"
    interval = any(values[AVERAGE].interval is not None for values in table.ours.values() if AVERAGE in values)
    one = "1 seed" + f"; ± of {AVERAGE} is half of its 95 % interval over images" * interval
    parts.append(f"{count} seeds: {deviation}" if count > 1 else one)
    if table.published:
        parts.append(f"Published: {config.source}")
    return ". ".join(parts) + "."


def notes(table: ApproachTable) -> list[str]:
    """What the table does not show."""
    missing = [name for name in table.published if name not in table.ours]
    found = {"Evaluated but in no column": table.plan.left_out, "Published but not evaluated": missing}
    return [line for what, names in found.items() if names for line in ("", f"{what}: {', '.join(names)}.")]


def differences(table: ApproachTable, against: Sequence[str]) -> list[str]:
    """What every system gains over those of `against`, see `evaluation.seeds.gains`."""
    lines = []
    for clean, what in ((False, "the degraded cells of all seeds"), (True, "the clean images of all seeds")):
        found = [
            line for other in against if (own := gains(table.seeds, other, clean)) for line in ("", *(f"- {gain}" for gain in own))
        ]
        how = f"Means over {what}, paired by image; 95 % intervals over images, not over trainings:"
        lines += ["", how, *found] if found else []
    return lines


def orders(table: ApproachTable, config: PublishedConfig) -> list[str]:
    """Approaches by their mean over the columns that both have, ours and published, best first, for
    each published data set.

    The published numbers of the same data set; of all data sets where there are none of this one.
    """
    lines = []
    same = [key for key in config.rows if key.split(" ")[0] == table.dataset]
    for dataset in same or config.rows:
        cells = published_rows(config, dataset)
        columns = [h for h in table.plan.columns if h in {heading for values in cells.values() for heading in values}]
        ours, theirs = {}, {}
        for name in table.ours:
            mean = average({heading: value.mean for heading, value in table.ours[name].items()}, columns)
            other = average(cells.get(name, {}), columns)
            if mean is not None and other is not None:
                ours[name], theirs[name] = round(mean, 9), round(other, 9)  # equal means may differ by rounding
        if len(ours) > 1:
            agreement = rank_correlation(list(ours.values()), list(theirs.values()))
            said = "undefined (all are equal)" if math.isnan(agreement) else f"{agreement:.2f}"
            lines += [
                "",
                f"Order by the mean of {', '.join(columns)}, ours on {table.dataset} against published on {dataset}: "
                f"Spearman rank correlation {said} over {len(ours)} approaches.",
                "",
                f"- ours: {_ordered(ours)}",
                f"- published: {_ordered(theirs)}",
            ]
    return lines


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation, equal values sharing their mean rank; nan when all of one are
    equal.
    """
    constant = any(len(set(values)) == 1 for values in (first, second))
    return math.nan if constant else float(spearmanr(first, second).statistic)


def write(table: ApproachTable, text: str, out: Path) -> list[Path]:
    """Write table.md, table.csv, table.png and, where a column has several levels, levels.png, each
    atomically.
    """
    colours = system_colours(table.seeds.runs[0])
    write_atomic(out / "table.md", text)
    write_atomic(out / "table.csv", _csv(table))
    shown = {name: cells for name, cells in table.published.items() if name in table.ours}
    save(dot_plot(table.headings, table.ours, shown, colours, len(table.seeds.runs)), out / "table.png")
    written = [out / "table.md", out / "table.csv", out / "table.png"]
    titles = {cells[0][0]: heading for heading, cells in table.plan.columns.items() if len(cells) > 1}
    if titles:
        axes = {name: PERTURBATIONS[name].axis if name in PERTURBATIONS else "level" for name in titles}
        figure = severity_plot(*table.seeds.runs, titles={name: (title, axes[name]) for name, title in titles.items()})
        save(figure, out / "levels.png")
        written.append(out / "levels.png")
    return written


def _ordered(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {percent(values[name])}" for name in sorted(values, key=lambda name: -values[name]))


def _csv(table: ApproachTable) -> str:
    """A line an approach and source: accuracy in percent, and the deviation over seeds where there
    are several.
    """
    count, lines = len(table.seeds.runs), []
    for name, values in table.ours.items():
        means = {heading: value.mean for heading, value in values.items()}
        spreads = {f"{heading} deviation": value.deviation for heading, value in values.items()}
        lines.append({"approach": name, "source": "ours", "seeds": str(count), **means, **spreads})
        if name in table.published:
            lines.append({"approach": name, "source": "published", **table.published[name]})
    columns = ["approach", "source", "seeds", *table.headings]
    columns += [f"{heading} deviation" for heading in table.headings] if count > 1 else []
    return pd.DataFrame(lines, columns=columns).to_csv(
        index=False, float_format=lambda v: percent(v, digits=4), lineterminator="\n"
    )


if __name__ == "__main__":
    run_main(main)
