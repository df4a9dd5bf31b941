"""What the adaptation of a system's images took: noted by the launch, read by the evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.adapting import SHORT
from tests.scripts import run_script
from undegrade.evaluation.costs import Cost, cost_lines, shows_costs, system_costs, view_cost
from undegrade.evaluation.report.plots import cost_plot
from undegrade.evaluation.results import Result

ADAPT = "image_adapt/scripts/image_sample.py"


def noted(folder: Path, cell: str, *milliseconds: float) -> None:
    """Launches that made images of a cell in so many milliseconds each."""
    (folder / cell).mkdir(parents=True)
    notes = [{"started": "then", "images": 3}]
    notes += [{"ended": "later", "passes": {"forward": 7, "backward": 2}, "ms_an_image_and_rank": ms} for ms in milliseconds]
    (folder / cell / "provenance.jsonl").write_text("\n".join(map(json.dumps, notes)) + "\n")


def mean(system: str, accuracy: float, severity: float | None = 5) -> Result:
    return Result(system, "Digits", "mean", severity, "sum", 100, 0, accuracy, accuracy - 0.02, accuracy + 0.03)


def test_the_last_launch_of_each_cell_counts(tmp_path: Path) -> None:
    noted(tmp_path / "a", "fog/5", 1.0, 10.0)
    noted(tmp_path / "a", "snow/5", 20.0)
    noted(tmp_path / "b", "fog/5")
    assert view_cost(str(tmp_path / "a")) == Cost(9, 15.0) and view_cost("raw") == Cost(0, 0.0)
    assert view_cost(str(tmp_path / "b")) is None and view_cost(str(tmp_path / "c")) is None
    for damaged in ("{", '{"ms_an_image_and_rank": 1.0}', '{"ms_an_image_and_rank": "x", "passes": {"forward": 1}}'):
        (tmp_path / "a/fog/5/provenance.jsonl").write_text(damaged)
        with pytest.raises(ValueError, match=r"provenance.jsonl is damaged .*: remove it, only what is said of the costs goes"):
            view_cost(str(tmp_path / "a"))


def test_views_of_a_system_add_up_once_each(tmp_path: Path) -> None:
    noted(tmp_path / "a", "fog/5", 10.0)
    noted(tmp_path / "b", "fog/5", 5.0)
    views = {
        "raw": "raw",
        "one": str(tmp_path / "a"),
        "same": str(tmp_path / "a"),
        "two": str(tmp_path / "b"),
        "foreign": str(tmp_path),
    }
    systems = {"source": ["raw"], "vote": ["raw", "one", "same"], "edits": ["raw", "one", "two"], "unknown": ["raw", "foreign"]}
    adapting = system_costs(systems, views, {"raw": 2.0, "same": 3.0})
    assert adapting == {"source": Cost(0, 2.0), "vote": Cost(9, 15.0), "edits": Cost(18, 17.0)}, "of each member once"
    costs = system_costs(systems, views, {})
    assert costs == {"source": Cost(0, 0.0), "vote": Cost(9, 10.0), "edits": Cost(18, 15.0)}
    assert cost_lines(costs)[2].split() == ["vote", "9", "10.0"] and cost_lines({"source": Cost(0, 0.0)}) == []


def test_the_plot_shows_each_system_at_its_costs() -> None:
    rows = [mean("source", 0.4), mean("vote", 0.6, 5), mean("vote", 0.7, None), mean("free", 0.5)]
    costs = {"source": Cost(0, 0.0), "vote": Cost(9, 10.0)}
    figure = cost_plot(rows, costs)
    for axes, x in zip(figure.axes, ([0, 9], [0, 10.0]), strict=True):
        points = [line.lines[0].get_xydata()[0] for line in axes.containers]
        np.testing.assert_allclose(points, [[x[0], 40.0], [x[1], 70.0]])
        np.testing.assert_allclose(axes.containers[1].lines[2][0].get_segments()[0][:, 1], [68.0, 73.0])
        assert axes.get_xlim()[0] < 0 and axes.get_xlim()[1] > x[1]
    assert shows_costs(rows, costs) and not shows_costs(rows, {"source": Cost(0, 0.0)})
    with pytest.raises(ValueError, match=r"none of the systems \['other'\] has a mean"):
        cost_plot(rows, {"other": Cost(1, 1.0)})


def test_costs_of_a_launch_come_to_the_table_and_the_plot(ddpm: Path, classifier: Path, tmp_path: Path) -> None:
    words = ("--corruption", "fog,jpeg_compression", "--severity", 5, "--limit", 6)
    run_script(ADAPT, "--model_path", ddpm, "--save_dir", tmp_path / "a", *SHORT, *words).check()
    members = {"raw": {"checkpoint": str(classifier)}, "adapted": {"checkpoint": str(classifier), "view": str(tmp_path / "a")}}
    systems = {"source": {"members": ["raw"]}, "vote": {"members": ["raw", "adapted"], "rule": "sum"}}
    data = {"dataset": "Digits", "limit": 6, "corruptions": ["fog", "jpeg_compression"], "severities": [5]}
    (tmp_path / "e.yaml").write_text(json.dumps({"members": members, "systems": systems, "data": data}))
    report = tmp_path / "report.html"
    done = run_script("test_ensemble.py", "-c", tmp_path / "e.yaml", "--out", tmp_path / "out", "--report", report).check()
    (line,) = [line.split() for line in done.out.partition("adaptation of an image")[2].splitlines() if line.startswith("vote ")]
    cost = view_cost(str(tmp_path / "a"))
    assert cost is not None and cost.ms > 0
    assert line == ["vote", str(cost.passes), f"{cost.ms:.1f}"]
    assert (tmp_path / "out/costs.png").is_file() and "costs.png" in done.out
    assert "Accuracy against what adaptation costs" in report.read_text(encoding="utf-8")
