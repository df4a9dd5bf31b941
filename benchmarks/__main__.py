"""Every part against the reference way, in one run: `python -m benchmarks` (benchmarks/README.md
says what each row is).

python -m benchmarks --only epoch,rules
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.measure import Row, peaks
from benchmarks.report import describe, plot, table, write
from undegrade.utils.choices import check_choice
from undegrade.utils.device import keep_freed_memory
from undegrade.utils.errors import run_main
from undegrade.utils.figures import save
from undegrade.utils.progress import progress_bar

# name -> module with `rows(quick)`; a module is imported when its rows are asked for
ROWS = {
    "batches": "benchmarks.batches",
    "corruptions": "benchmarks.corruptions",
    "dda": "benchmarks.dda",
    "epoch": "benchmarks.epoch",
    "rules": "benchmarks.rules",
    "memory": "benchmarks.memory",
}


def rows_of(name: str) -> Callable[[bool], list[Row]]:
    """`rows(quick)` of a name of `ROWS`.

    Raises:
        ValueError: another name.
    """
    function: Callable[[bool], list[Row]] = importlib.import_module(ROWS[check_choice(name, ROWS, "benchmark")]).rows
    return function


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the command line; prints the table and writes `<out>/results.json`, `results.md` and
    `ratios.png`.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(ROWS), help=f"names joined by commas: {', '.join(ROWS)}")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether everything runs, not how fast")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch, for both ways")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    args = parser.parse_args(argv)
    functions = {name: rows_of(name) for name in args.only.split(",")}
    torch.set_num_threads(args.threads)
    measured = peaks()
    print(describe(measured))
    keep_freed_memory()  # as every entry of the project does
    rows: list[Row] = []
    with progress_bar(functions.items(), unit="part") as bar:
        for name, function in bar:
            bar.set_postfix_str(name)
            rows += function(args.quick)
    print(table(rows), end="")
    write(rows, measured, args.out)
    save(plot(rows), args.out / "ratios.png")
    print(f"written: {args.out}/results.json, results.md, ratios.png")
    return rows


if __name__ == "__main__":
    run_main(main)
