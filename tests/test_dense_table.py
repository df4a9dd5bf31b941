"""Networks for masks or points, compared over seeds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.scripts import Done, run_script
from undegrade.evaluation.ratios import RATIOS, Ratios, write_ratios
from undegrade.utils.data.cells import Cell

SEEDS = {"scratch": [(50, 20), (40, 20)], "hint": [(60, 20), (60, 30)]}  # clean and fog, in percent, by seed


def judged(folder: Path, shares: tuple[int, int], listing: str = "a") -> None:
    """What test.py leaves behind of a network whose every image has these shares."""
    below = np.full((8, 1), 100.0)
    cells = (Cell("clean", 0), Cell("fog", 5))
    write_ratios(folder / RATIOS, {cell: Ratios(np.full((8, 1), share), below) for cell, share in zip(cells, shares, strict=True)})
    meta = {"dataset": "DigitScenes", "split": "test", "images": 8, "listing": listing}
    (folder / "results.json").write_text(json.dumps({"meta": meta, "rows": [{"metric": "miou"}]}))


def tabled(root: Path, *arguments: object) -> Done:
    given = ("--results", root / "seed{seed}/{system}/results.json", "--systems", "scratch,hint", "--seeds", "1,2", "--out", root)
    return run_script("evaluation/dense_table.py", *given, *arguments)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, seeds in SEEDS.items():
        for seed, shares in enumerate(seeds, 1):
            judged(tmp_path / f"seed{seed}" / name, shares)
    return tmp_path


def test_means_over_seeds_and_what_is_gained_over_the_first(root: Path) -> None:
    out = tabled(root).check().out
    assert "DigitScenes (test): Mean intersection over union in %, 8 images, 2 seeds" in out
    assert "| scratch | 45.00 ±7.07 |  | 20.00 ±0.00 |  |" in out
    assert "| hint | 60.00 ±0.00 | +15.00 [+15.00, +15.00] | 25.00 ±7.07 | +5.00 [+5.00, +5.00] |" in out
    assert (root / "table.md").read_text() in out
    assert (root / "table.csv").read_text().splitlines()[2].startswith("hint,60.0000,0.0000,15.0000,")


def test_a_seed_alone_has_no_deviation(root: Path) -> None:
    assert "| hint | 60.00 | +10.00 [+10.00, +10.00] | 20.00 |" in tabled(root, "--seeds", "1").check().out


def test_networks_judged_on_other_images_are_not_compared(root: Path) -> None:
    judged(root / "seed2" / "hint", (60, 30), "b")
    done = tabled(root)
    assert done.status != 0 and "hint was judged on another listing, b and not a: judge all by the same command" in done.err


def test_missing_damaged_and_foreign_results_are_named(root: Path) -> None:
    folder = root / "seed2" / "hint"
    (folder / RATIOS).write_bytes(b"no archive")
    assert f"{folder / RATIOS} cannot be read" in tabled(root).err
    (folder / "results.json").write_text(json.dumps({"meta": {}, "rows": [{"rule": "single"}]}))
    assert "is not of masks or points: evaluation/approach_table.py makes tables of classifiers" in tabled(root).err
    (folder / "results.json").unlink()
    assert f"results file {folder / 'results.json'} does not exist; it is written by test.py" in tabled(root).err
    assert "put `{system}` where the name of each network stands" in tabled(root, "--results", "x/results.json").err
