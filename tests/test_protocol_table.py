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
            files = ResultFiles(
                tmp_path / column / f"seed{seed}", {"split": "test", "members": {"source": f"of {seed}"}, "classes": 10}
            )
            for system, shares in SHARES.items():
                for corruption in ("clean", "fog", "snow"):
                    right = np.arange(COUNT) < COUNT * shares[column] + seed * (corruption == "fog")
                    severity = 0 if corruption == "clean" else 5
                    metrics = {"effective_classes": 2.0 + 6 * (corruption != "fog" or system != "BN"), "calibration_error": 0.125}
                    files.add(cell_result(system, "Toy", corruption, severity, "first", right, metrics), right)
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
    assert "| BN | 12.5 | 12.5 |  | 0 |" in text, "nobody knows the milliseconds"
    assert "- BN: 1 33 %, 16 33 %" in text, "of the test sets"
    assert (results / "out/curves.png").is_file() and "curves.png" in done.out


def test_columns_that_are_no_numbers_have_no_curves_and_a_lone_path_is_refused(results: Path) -> None:
    (results / "1").rename(results / "mixed")
    words = ("--columns", "mixed,16", "--seeds", "1", "--dataset", "Toy", "--against", "source", "--out", results / "out")
    run_script("evaluation/protocol_table.py", "--results", results / "{column}/seed{seed}/results.json", *words).check()
    assert not (results / "out/curves.png").exists()
    done = run_script("evaluation/protocol_table.py", "--results", results / "16/seed1/results.json", *words)
    assert done.status == 2 and "put `{column}` where the name of each protocol stands" in done.err


def test_some_corruptions_and_streams_are_chosen_by_name(results: Path) -> None:
    words = ("--columns", "16", "--streams", "1,2", "--dataset", "Toy", "--against", '["source", "BN"]', "--out", results / "out")
    path = ("--results", results / "{column}/seed{stream}/results.json")
    run_script("evaluation/protocol_table.py", *path, *words, "--corruption", "snow").check()
    assert "| BN + DDA | **80.0 ±0.0** |" in (results / "out/table.md").read_text()
    assert "BN + DDA minus BN: +5.0 points" in (results / "out/gains.md").read_text()
    done = run_script("evaluation/protocol_table.py", *path, *words, "--corruption", "snw")
    assert done.status == 2 and "unknown corruption of the results 'snw' in --corruption: did you mean 'snow'" in done.err
    done = run_script("evaluation/protocol_table.py", *path, *[word for word in words if word not in ("--streams", "1,2")])
    assert done.status == 2 and "`{stream}` in the path and --streams 1,2 go together" in done.err
