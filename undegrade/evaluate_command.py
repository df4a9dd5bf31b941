"""Accuracies of one system under corruptions, with 95 % intervals.

    undegrade evaluate Digits --system ind/Digits/ResNet20_clean --corruption clean,all --severity 5
    undegrade evaluate Imagenet --root path/to/imagenet --system resnet50.a1_in1k --corruption fog --severity 1-5 --out table.csv

Adapted images are made as they are needed, nothing is stored. (`undegrade test` and `undegrade
ensemble` store images and answers, compare several systems image by image, take stored adapted
images, and write more metrics and a report.)
"""

from __future__ import annotations

import undegrade.utils.quick_start  # noqa: F401  before the rest

# isort: split
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from undegrade.evaluation.results import MEAN, percent
from undegrade.scoring import evaluate
from undegrade.system_flags import open_system, system_parser
from undegrade.utils.command_line import typed
from undegrade.utils.data.cells import CLEAN, level_text, parse_cells, parse_severities
from undegrade.utils.errors import run_main
from undegrade.utils.files import write_atomic
from undegrade.utils.ranges import Count

_FORMATS = (".csv", ".json")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    p = system_parser(__doc__)
    p.add_argument("data", help="data set (Digits, CIFAR10, Imagenet, ...) or image folder, <class>/*")
    p.add_argument("--corruption", default=f"{CLEAN},all", help="names joined by commas; all: the 15 of ImageNet-C (clean,all)")
    p.add_argument("--severity", default="5", help="of the corruptions: 5, or 1,3,5, or 1-5 (5)")
    p.add_argument("--root", default="data", help="folder of downloaded data sets (data)")
    p.add_argument("--split", default="test", choices=["test", "validation", "train"], help="of the data set (test)")
    p.add_argument("--limit", type=typed(Count), help="class-balanced subset of so many images")
    p.add_argument("--seed", type=int, default=0, help="of the corruption (0)")
    p.add_argument("--out", help="also write the table: a file .csv or .json")
    args, keys = p.parse(argv)
    out = None if args.out is None else Path(args.out)
    if out is not None and out.suffix not in _FORMATS:
        raise ValueError(f"--out {out}: name a file that ends with {' or '.join(_FORMATS)}")
    corruptions, severities = args.corruption.split(","), parse_severities(args.severity)
    parse_cells(corruptions, severities)  # mistakes are said before anything is loaded
    table = evaluate(
        open_system(args, keys), args.data, corruptions, severities,
        root=args.root, split=args.split, limit=args.limit, seed=args.seed, progress=True,
    )  # fmt: skip
    print(table_text(table))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        table = table.convert_dtypes()  # severities are whole numbers where they can be
        write_atomic(out, table.to_csv(index=False) if out.suffix == ".csv" else table.to_json(orient="records", indent=1) + "\n")
        print(f"written: {out}")


def table_text(table: pd.DataFrame) -> str:
    """The table of `evaluate` for a terminal: accuracies and intervals in %."""
    lines = [("corruption", "severity", "n", "accuracy", "95 % interval")]
    for row in table.to_dict("records"):
        drawn = "" if row["corruption"] == MEAN else level_text(None)
        severity = drawn if pd.isna(row["severity"]) else level_text(row["severity"])
        low, high = (percent(100 * row[end]) for end in ("low", "high"))
        lines.append((row["corruption"], severity, str(row["n"]), percent(100 * row["accuracy"]), f"[{low}, {high}]"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


if __name__ == "__main__":
    run_main(main)
