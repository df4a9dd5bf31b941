"""Tables of systems under several protocols, on made results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.scripts import run_script
from undegrade.evaluation.result_files import ResultFiles
from undegrade.evaluation.results import cell_result

COUNT = 40
SHARES = {"source": {"1": 0.5, "16": 0.5}, "BN": {"1": 0.2, "16": 0.75}, "BN + DDA": {"1": 0.4, "16": 0.8}}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """`<column>/seed<seed>/results.json`; the shares of each system are met up to the seed."""
    for column in ("1", "16"):
        for seed in (1, 2):
            files = ResultFiles(tmp_path / column / f"seed{seed}", {"split": "test", "members": {"source": f"of {seed}"}})
            for system, shares in SHARES.items():
                for corruption in ("clean", "fog", "snow"):
                    right = np.arange(COUNT) < COUNT * shares[column] + seed * (corruption == "fog")
                    severity = 0 if corruption == "clean" else 5
                    files.add(cell_result(system, "Toy", corruption, severity, "first", right), right)
            files.write(finished=True)
    return tmp_path


def test_a_table_has_means_over_degraded_sets_and_paired_gains(results: Path) -> None:
    words = ("--results", results / "{column}/seed{seed}/results.json", "--columns", "1,16", "--seeds", "1,2")
    more = ("--dataset", "Toy", "--against", "source", "--out", results / "out")
    done = run_script("evaluation/protocol_table.py", *words, *more)
    done.check()
    table = pd.read_csv(results / "out/table.csv", header=[0, 1], index_col=0)
    assert list(table.index) == list(SHARES)
    for system, shares in SHARES.items():
        for column, share in shares.items():
            by_seed = [100 * (share + seed / COUNT / 2) for seed in (1, 2)]
            assert table.loc[system, (column, "mean")] == pytest.approx(np.mean(by_seed), abs=1e-3)
            assert table.loc[system, (column, "deviation")] == pytest.approx(np.std(by_seed, ddof=1), abs=1e-3)
    text, gains = ((results / "out" / name).read_text() for name in ("table.md", "gains.md"))
    assert "| BN | 21.9 ±0.9 | 76.9 ±0.9 |" in text and "**81.9 ±0.9**" in text and "**51.9 ±0.9**" in text
    assert "1, against source:" in gains and "BN + DDA minus source: +30.0 points" in gains
    assert (results / "out/curves.png").is_file() and "curves.png" in done.out


def test_columns_that_are_no_numbers_have_no_curves_and_a_lone_path_is_refused(results: Path) -> None:
    (results / "1").rename(results / "mixed")
    words = ("--columns", "mixed,16", "--seeds", "1", "--dataset", "Toy", "--against", "source", "--out", results / "out")
    run_script("evaluation/protocol_table.py", "--results", results / "{column}/seed{seed}/results.json", *words).check()
    assert not (results / "out/curves.png").exists()
    done = run_script("evaluation/protocol_table.py", "--results", results / "16/seed1/results.json", *words)
    assert done.status == 2 and "put `{column}` where the name of each protocol stands" in done.err
