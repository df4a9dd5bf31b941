"""10,050 images through adaptation, with kills in between, and 75 cells of evaluation: memory does
not grow.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from tests.chaos.launches import ADAPT, Launch, needs_mpiexec, ranks, wait_until

pytestmark = [pytest.mark.slow, needs_mpiexec]

IMAGES, CELLS = 134, 75  # of each cell: 10,050 in all
GROWTH = 16 << 20  # bytes a process may gain after the first third of the work


class Watch:
    """Memory of a launch by how much it had done."""

    def __init__(self, launch: Launch, done: Path, pattern: str) -> None:
        self.launch, self.folder, self.pattern = launch, done, pattern
        self.seen: list[tuple[int, int]] = []

    def until(self, goal: int, limit: float) -> bool:
        """Look twice a second; whether the launch still works when so much is done."""
        until = time.monotonic() + limit
        while self.launch.running and time.monotonic() < until:
            count = sum(1 for _ in self.folder.rglob(self.pattern))
            if memory := self.launch.memory():
                self.seen.append((count, memory))
            if count >= goal:
                break
            wait_until(lambda: not self.launch.running, 0.5)
        assert time.monotonic() < until, f"{count} of {goal} after {limit} s"
        return self.launch.running

    def growth(self, processes: int) -> float:
        """Bytes a process gained after the first third of what this launch did, at the most; the
        tables and pictures at the end not counted.
        """
        first, last = self.seen[0][0], self.seen[-1][0]
        assert last > first, "nothing was seen"
        early = [memory for count, memory in self.seen if first < count <= first + (last - first) / 3]
        late = [memory for count, memory in self.seen if first + (last - first) / 3 < count < last]
        return (max(late) - max(early)) / processes


def test_ten_thousand_images_and_75_cells_need_no_more_memory_than_the_first(classifier: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapted"
    words = ("--include", "tests.chaos.toys", "--adapter", "mirror", "--save_dir", out, "--dataset", "Digits")
    words += ("--corruption", "all", "--severity", "1-5", "--limit", IMAGES, "--batch_size", 16)
    total = IMAGES * CELLS
    for goal in (1500, 3000):  # and killed
        launch = ranks(2, ADAPT, *words)
        assert Watch(launch, out, "*.png").until(goal, 300)
        launch.kill()
    launch = ranks(2, ADAPT, *words)
    watch = Watch(launch, out, "*.png")
    watch.until(total, 600)
    launch.finish(120).check()
    assert sum(1 for _ in out.rglob("*.png")) == total and len(list(out.rglob("manifest.jsonl"))) == CELLS
    assert watch.growth(2) < GROWTH
    members = {name: {"checkpoint": str(classifier), "view": view} for name, view in (("raw", "raw"), ("shown", str(out)))}
    data = {"dataset": "Digits", "limit": IMAGES, "corruptions": ["all"], "severities": [1, 2, 3, 4, 5]}
    systems = {"both": {"members": ["raw", "shown"], "rule": "sum"}}
    (tmp_path / "e.yaml").write_text(json.dumps({"members": members, "systems": systems, "data": data}))
    given = (sys.executable, "test_ensemble.py", "-c", tmp_path / "e.yaml", "--out", tmp_path / "results")
    evaluation = Launch(*given)
    assert Watch(evaluation, tmp_path / "results", "*.npz").until(CELLS // 2, 300)
    evaluation.kill()
    evaluation = Launch(*given)
    watch = Watch(evaluation, tmp_path / "results", "*.npz")
    watch.until(10**9, 600)
    evaluation.finish(120).check()
    rows = json.loads((tmp_path / "results/results.json").read_text())["rows"]
    assert sum(row["n"] == IMAGES for row in rows if row["corruption"] != "mean") == CELLS
    assert watch.growth(1) < GROWTH
