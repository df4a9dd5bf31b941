"""Test-time adaptation from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.scoring import LIMIT, rows_of
from tests.scripts import run_script


def test_a_checkpoint_is_adapted_by_a_name(runs: Path, classifier: Path, tmp_path: Path) -> None:
    words = (
        "-r",
        classifier,
        "--runs",
        runs,
        "--corruption",
        "clean,fog,snow",
        "--severity",
        5,
        "--limit",
        LIMIT,
        "--batch_size",
        5,
    )
    for name, more in (("frozen", ()), ("bn", ("--tta", "bn")), ("mixed", ("--tta", "bn", "--protocol", "mixed+seed=1"))):
        run_script("test.py", *words, *more, "--out", tmp_path / name).check()
    meta = json.loads((tmp_path / "mixed/results.json").read_text())["meta"]
    assert meta["protocol"] == "mixed+shuffled+seed=1" and meta["batch_size"] == 5
    logits = {name: np.load(tmp_path / name / "logits/model/fog-5.npz")["logits"] for name in ("frozen", "bn", "mixed")}
    assert not np.allclose(logits["frozen"], logits["bn"], atol=1e-2) and not np.allclose(logits["bn"], logits["mixed"], atol=1e-3)
    assert {row["corruption"] for row in rows_of(tmp_path / "mixed")} >= {"clean", "fog", "snow"}


def test_a_run_is_not_written_over_by_its_adapted_self(runs: Path, classifier: Path) -> None:
    words = ("-r", classifier, "--runs", runs, "--corruption", "fog", "--severity", 5, "--limit", LIMIT, "--mode", "tta_test")
    for more, folder in (((), "fog"), (("--tta", "tent"), "fog-tent")):
        run_script("test.py", *words, *more).check()
        assert (classifier.parent / "tta_test" / folder / "results.json").is_file()


def test_what_would_change_nothing_is_refused(runs: Path, classifier: Path, tmp_path: Path) -> None:
    words = ("-r", classifier, "--runs", runs, "--corruption", "fog", "--out", tmp_path / "out")
    done = run_script("test.py", *words, "--protocol", "mixed")
    assert done.status == 2 and "all members are frozen" in done.err and "--tta" in done.err
    done = run_script("test.py", *words, "--tta", "tnet")
    assert done.status == 2 and "unknown predictor 'tnet'" in done.err and "did you mean 'tent'" in done.err


def test_what_adapts_tells_its_size_and_time(runs: Path, classifier: Path, tmp_path: Path) -> None:
    words = ("-r", classifier, "--runs", runs, "--corruption", "fog,snow", "--severity", 5, "--limit", LIMIT, "--tta", "tent")
    done = run_script("test.py", *words, "--out", tmp_path / "out")
    done.check()
    (line,) = [line for line in done.out.splitlines() if line.startswith("model: ")]
    assert "1,568 numbers of the classifier move, " in line
    again = run_script("test.py", *words, "--out", tmp_path / "out")
    assert line in again.out.splitlines(), "from the cache"
