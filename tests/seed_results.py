"""Hand-made results of several seeds, and the table made of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tests.scripts import Done, run_script
from undegrade.evaluation.result_files import write_json
from undegrade.evaluation.results import MEAN, Result
from undegrade.utils.config import dump_yaml

HEADINGS = {"jpeg": "JPEG", "noise": "AWGN"}
SMALL = {
    "source": "A paper",
    "columns": HEADINGS,
    "rows": {"Digits Net": {"soup": {"jpeg": 50.0, "noise": 61.0}, "single": {"jpeg": 40.0}, "other": {"jpeg": 1.0}}},
    "made_by": "make the-table DATASET={dataset}",
}

# corruption, severity -> accuracy in percent
SOUP = {("jpeg", 10): 40, ("jpeg", 50): 60, ("jpeg", 90): 80, ("noise", 0): 70, ("noise", 50): 20, ("clean", 0): 90}
SOUP |= {("fog", 1): 50, ("fog", 5): 30, ("snow", 5): 10}
ORACLE = {("jpeg", 10): 50, ("jpeg", 50): 50, ("jpeg", 90): 56}


def cell(system: str, corruption: str, severity: float, percent: float, n: int = 1000) -> Result:
    return Result(system, "Digits", corruption, severity, "first", n, round(percent * n / 100), percent / 100, 0.0, 1.0)


def rows_of(shift: float = 0, n: int = 1000) -> list[Result]:
    """Two systems with their means; `shift` points are added to the soup's cells."""
    rows = [cell("oracle", *key, value, n) for key, value in ORACLE.items()] + [cell("oracle", MEAN, 0, 52)]
    return rows + [cell("soup", *key, value + shift, n) for key, value in SOUP.items()] + [cell("soup", MEAN, 0, 45)]


def write_runs(folder: Path, runs: Iterable[list[Result]], **meta: object) -> list[Path]:
    paths = []
    for seed, rows in enumerate(runs, 1):
        paths.append(folder / f"seed{seed}" / "results.json")
        write_json(paths[-1], rows, {"split": "test", "members": {"a": f"digest {seed}"}, **meta})
    return paths


def make(folder: Path, runs: Iterable[list[Result]], *arguments: object, published: dict | None = None) -> Done:
    (folder / "published.yaml").write_text(dump_yaml(published or SMALL))
    given = ["--dataset", "Digits", "--arch", "Net", "--results", *write_runs(folder, runs), "--out", folder / "out"]
    return run_script("evaluation/approach_table.py", "-c", folder / "published.yaml", *given, *arguments)
