"""Networks for masks or points, mean over seeds, and what each gains over the first.

    python evaluation/dense_table.py --results runs/seed{seed}/masks/{system}/results.json \
        --systems scratch,hint --seeds 1,2,3

Reads the results.json and ratios.npz of test.py, one folder for each network and seed, and writes
table.md and table.csv.
"""

from __future__ import annotations

import undegrade.utils.quick_start  # noqa: F401  before the rest

# isort: split
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from undegrade.evaluation.approach_table import result_paths
from undegrade.evaluation.dense import METRICS
from undegrade.evaluation.ratios import RATIOS, Ratios, draws, interval, read_ratios
from undegrade.evaluation.results import CLEAN, percent
from undegrade.evaluation.tables import markdown_grid
from undegrade.utils.command_line import ScriptParser
from undegrade.utils.errors import run_main
from undegrade.utils.files import read_object, write_atomic

_SAME = ("dataset", "split", "images", "listing", "view", "seed", "constants")  # of all files: the same images


@dataclasses.dataclass(frozen=True)
class Measured:
    """One network on all of its cells.

    Attributes:
        facts: what it was judged on, and `metric`.
        ratios: by the folder of the cell.
    """

    facts: dict[str, Any]
    ratios: dict[str, Ratios]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    p = ScriptParser(__doc__, [])
    p.add_argument("--results", required=True, help="path of a results.json with `{system}` and, for several seeds, `{seed}` in it")
    p.add_argument("--systems", required=True, help="for `{system}`, joined by commas; the others are compared with the first")
    p.add_argument("--seeds", default="", help="for `{seed}`, joined by commas: 1,2,3")
    p.add_argument("--out", default="runs/table", help="folder of what is written")
    args, _ = p.parse(argv)
    if "{system}" not in args.results:
        raise ValueError(f"--results {args.results}: put `{{system}}` where the name of each network stands")
    found = {
        name: [read(Path(path)) for path in result_paths([args.results.replace("{system}", name)], args.seeds)]
        for name in dict.fromkeys(args.systems.split(","))
    }
    check_same(found)
    table = compared(found)
    text = markdown(table, next(iter(found.values())))
    print(text)
    out = Path(args.out)
    write_atomic(out / "table.md", text)
    write_atomic(out / "table.csv", table.to_csv(index_label="system", float_format=lambda v: percent(v, digits=4)))
    print(f"written: {out}/table.md, {out}/table.csv")


def read(path: Path) -> Measured:
    """The results of test.py.

    Raises:
        FileNotFoundError: there are none.
        ValueError: they are damaged, or of classes of whole images.
    """
    if not path.is_file():
        raise FileNotFoundError(f"results file {path} does not exist; it is written by test.py of a network for masks or points")
    content = read_object(path, "run test.py again")
    meta, rows = content.get("meta"), content.get("rows")
    if not (isinstance(meta, dict) and isinstance(rows, list) and rows and isinstance(rows[0], dict) and "metric" in rows[0]):
        raise ValueError(f"{path} is not of masks or points: evaluation/approach_table.py makes tables of classifiers")
    facts = {key: meta.get(key) for key in _SAME} | {"metric": rows[0]["metric"]}
    return Measured(facts, read_ratios(path.with_name(RATIOS)))


def check_same(found: Mapping[str, Sequence[Measured]]) -> None:
    """Raise ValueError unless all were judged on the same images and cells."""
    first = next(iter(found.values()))[0]
    wanted = first.facts | {"test sets": sorted(first.ratios)}
    for name, seeds in found.items():
        for one in seeds:
            here = one.facts | {"test sets": sorted(one.ratios)}
            if odd := next((key for key in wanted if here[key] != wanted[key]), None):
                raise ValueError(
                    f"{name} was judged on another {odd}, {here[odd]} and not {wanted[odd]}: judge all by the same command"
                )


def compared(found: Mapping[str, Sequence[Measured]]) -> pd.DataFrame:
    """A line for each network, in percent: of clean images and of the mean over the others the mean
    over seeds and its sample standard deviation, and the difference to the first network with its
    95 % interval over images (the images are drawn alike for both, evaluation/ratios.py).
    """
    first = next(iter(found.values()))[0]
    clean = [folder for folder in first.ratios if folder.startswith(f"{CLEAN}/")]
    columns = {"clean": clean, "corrupted": [folder for folder in first.ratios if folder not in clean]}
    weights = draws(len(next(iter(first.ratios.values())).above))
    lines: dict[str, dict[str, float]] = {name: {} for name in found}
    for column, folders in columns.items():
        base: tuple[float, np.ndarray] | None = None
        for name, seeds in found.items() if folders else ():
            values = [100 * float(np.mean([one.ratios[folder].value() for folder in folders])) for one in seeds]
            samples = 100 * np.mean([one.ratios[folder].value(weights) for one in seeds for folder in folders], axis=0)
            mean = float(np.mean(values))
            base = base or (mean, samples)
            low, high = interval(samples - base[1])
            lines[name] |= {column: mean, f"{column} deviation": float(np.std(values, ddof=1)) if len(values) > 1 else np.nan}
            lines[name] |= {f"{column} difference": mean - base[0], f"{column} low": low, f"{column} high": high}
    return pd.DataFrame.from_dict(lines, orient="index")


def markdown(table: pd.DataFrame, seeds: Sequence[Measured]) -> str:
    """Caption and table."""
    facts, first = seeds[0].facts, table.index[0]
    columns = [column for column in ("clean", "corrupted") if column in table]
    head = ["start", *(text for column in columns for text in (column, f"minus {first}"))]
    count = f"{len(seeds)} seeds" if len(seeds) > 1 else "1 seed"
    spread = ", mean ± sample standard deviation over seeds" if len(seeds) > 1 else ""
    caption = (
        f"{facts['dataset']} ({facts['split']}): {METRICS[facts['metric']]}, {facts['images']} images, {count}{spread}. "
        f"Differences with 95 % intervals over images."
    )
    grid = [head]
    for name, row in table.iterrows():
        cells = []
        for column in columns:
            deviation = row[f"{column} deviation"]
            cells.append(percent(row[column], digits=2) + ("" if np.isnan(deviation) else f" ±{percent(deviation, digits=2)}"))
            ends = [percent(row[f"{column} {key}"], "+", digits=2) for key in ("difference", "low", "high")]
            cells.append("" if name == first else "{} [{}, {}]".format(*ends))
        grid.append([str(name), *cells])
    return markdown_grid(caption, grid)


if __name__ == "__main__":
    run_main(main)
