"""The table of adapters by gain and cost, on made results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.scripts import run_script
from undegrade.evaluation.adapter_table import Entry, frontier
from undegrade.evaluation.costs import Cost
from undegrade.evaluation.result_files import ResultFiles
from undegrade.evaluation.results import cell_result

COUNT = 40
ADAPTERS = {"slow": (0.8, 100.0, 50, 2_000_000), "once": (0.75, 2.0, 1, 100_000), "filter": (0.4, 0.5, 0, 0)}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """`<adapter>/results.json`; two systems, of which one looks at the adapter's images."""
    for adapter, (share, ms, passes, weights) in ADAPTERS.items():
        view = tmp_path / "images" / adapter
        for corruption in ("fog", "snow"):
            (view / corruption / "5").mkdir(parents=True)
            note = {
                "passes": {"forward": passes, "backward": 0},
                "ms_an_image_and_rank": ms,
                "parameters": weights,
                "peak_mb": 512.0,
            }
            (view / corruption / "5/provenance.jsonl").write_text(json.dumps(note) + "\n")
        meta = {
            "split": "test", "members": {"source": "one", "adapted": "one"}, "classes": 10,
            "views": {"source": "raw", "adapted": str(view)},
            "systems": {"source": {"members": ["source"]}, "sum": {"members": ["source", "adapted"]}},
        }  # fmt: skip
        files = ResultFiles(tmp_path / adapter, meta)
        for system, shares in {"source": 0.5, "sum": share}.items():
            for corruption, more in (("clean", 4), ("fog", 0), ("snow", 2)):
                right = np.arange(COUNT) < COUNT * shares + more
                files.add(cell_result(system, "Toy", corruption, 0 if corruption == "clean" else 5, "sum", right), right)
        files.write(finished=True)
    return tmp_path


def test_a_table_has_accuracy_and_cost_of_every_adapter(results: Path) -> None:
    words = ("--results", results / "{adapter}/results.json", "--adapters", ",".join(ADAPTERS), "--dataset", "Toy")
    done = run_script("evaluation/adapter_table.py", *words, "--against", "once", "--out", results / "out").check()
    table = pd.read_csv(results / "out/table.csv").set_index(["adapter", "system"])
    assert list(table.index) == [("no adapter", "source"), *((adapter, "sum") for adapter in ADAPTERS)]
    for adapter, (share, ms, passes, weights) in ADAPTERS.items():
        row = table.loc[adapter, "sum"]
        assert row["corrupted"] == pytest.approx(100 * (share + 1 / COUNT)) and row["clean"] == pytest.approx(
            100 * (share + 4 / COUNT)
        )
        assert tuple(row[["passes", "ms", "parameters", "peak MB"]]) == (passes, ms, weights, 512)
    assert table.loc["no adapter", "source"]["ms"] == 0
    text, gains = ((results / "out" / name).read_text() for name in ("table.md", "gains.md"))
    assert "| slow | 50 | 100.0 | 2,000,000 | 512 |  | **82.5" in text and "on clean images" in text
    assert "- slow: +5.0 [" in gains and "- filter: -35.0 [" in gains and "sum:" in gains and "source:" not in gains
    page = (results / "out/report.html").read_text()
    assert "On the frontier, by rising cost: source, no adapter (52.5 %, 0.0 ms); sum, once (77.5 %, 2.0 ms)" in page
    assert (results / "out/frontier.png").is_file() and "frontier.png" in done.out


def test_the_frontier_is_what_nothing_cheaper_reaches() -> None:
    def entry(name: str, corrupted: float, ms: float) -> Entry:
        return Entry(name, "s", corrupted, 0.0, 0.0, Cost(1, ms), {})

    given = [
        entry("a", 50, 0),
        entry("b", 40, 1),
        entry("c", 60, 5),
        entry("d", 60, 9),
        entry("e", 61, 5),
        entry("f", 99, float("nan")),
    ]
    assert [found.adapter for found in frontier(given)] == ["a", "e"]


def test_paths_without_adapter_and_unknown_adapters_are_refused(results: Path) -> None:
    words = ("--adapters", "slow,once", "--dataset", "Toy", "--out", results / "out")
    done = run_script("evaluation/adapter_table.py", "--results", results / "slow/results.json", *words, "--against", "once")
    assert done.status == 2 and "put `{adapter}` where the name of each adapter stands" in done.err
    done = run_script("evaluation/adapter_table.py", "--results", results / "{adapter}/results.json", *words, "--against", "twice")
    assert done.status == 2 and "unknown adapter 'twice' in --against" in done.err
