"""The benchmark: its rows run on tiny sizes, its arithmetic, its table and files."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as program
from benchmarks import memory, report, rules, scaling
from benchmarks.measure import Apart, Peaks, Row, Step, in_turn, peaks, timed_row
from undegrade.utils.figures import png_bytes

MET = Row("fast", "core s", 2.0, 0.5, 4.0, required=3.0, floor=0.1, share=0.2, note="as it is", repeats={"ours": [0.5]})
MISSED = Row("slow", "MiB", 1234.5, 1300.0, 0.95, required=1.0)
MACHINE = Peaks(90.0, 110.0, 80.0, 20.0)


def check(rows: list[Row]) -> None:
    for row in rows:
        numbers = [row.reference, row.ours, row.ratio, *(value for values in row.repeats.values() for value in values)]
        assert all(math.isfinite(n) and n > 0 for n in numbers), row
        assert row.repeats.keys() == {"reference", "ours"}
        assert (row.floor is None) == (row.share is None)


def test_rules_and_cache_are_measured() -> None:
    rows = rules.rows(quick=True)
    check(rows)
    eight, eleven, second = rows
    assert eight.name.startswith("8 rules") and eleven.name.startswith("11 rules") and second.name.endswith("11 rules x 2 cells")
    assert eight.ratio > 2  # 8 passes against one, whatever else runs


def test_memory_of_both_programs_is_measured() -> None:
    rows = memory.rows(quick=True)
    check(rows)
    assert [row.unit for row in rows] == ["MiB", "MiB"]
    assert all(0.8 < row.ratio < 1.25 for row in rows)  # 20 images weigh nothing


def test_peak_of_a_fresh_process_does_not_count_this_one() -> None:
    held = torch.ones(1 << 27)  # 512 MiB
    assert memory.with_files(memory.adaptation, 10, apart=True) < memory.peak() - 250
    del held


@pytest.mark.usefixtures("fresh_accelerator")
def test_an_epoch_of_both_loops_is_measured() -> None:
    from benchmarks import epoch  # its loading is that of the row of batches

    rows = epoch.rows(quick=True)
    check(rows)
    assert rows[0].required == 1.8


@pytest.mark.slow
def test_dda_of_both_programs_is_measured() -> None:
    from benchmarks import dda  # imports the networks

    check([row for row in dda.rows(quick=True) if row.repeats])


def test_rows_are_found_by_name_and_an_unknown_name_is_refused() -> None:
    assert program.rows_of("rules") is rules.rows
    with pytest.raises(ValueError, match="unknown benchmark 'rule'.*rules"):
        program.rows_of("rule")


def test_the_program_prints_its_table_and_writes_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "rows_of", lambda name: lambda quick: [MET, MISSED])
    assert program.main(["--only", "rules", "--quick", "--out", str(tmp_path)]) == [MET, MISSED]
    out = capsys.readouterr().out
    assert "GFLOP/s" in out and "fast: as it is" in out
    content = json.loads((tmp_path / "results.json").read_text())
    assert [row["met"] for row in content["rows"]] == [True, False]
    assert content["rows"][0]["repeats"] == {"ours": [0.5]}
    assert content["machine"]["threads"] == 1 and content["machine"]["peaks"]["matmul"] > 1
    assert (tmp_path / "ratios.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "results.md").read_text() == report.markdown_table([MET, MISSED])


def test_table_shows_floor_and_share_and_marks_what_is_missed() -> None:
    first, second = report.table([MET, MISSED]).splitlines()[1:3]
    assert first.split() == ["fast", "2", "0.5", "core", "s", "4.00", "3", "0.1", "20", "%"]
    assert second.split() == ["slow", "1,234", "1,300", "MiB", "0.95", "<", "1", "-", "-"]


def test_json_refuses_numbers_that_are_not_finite(tmp_path: Path) -> None:
    broken = Row("broken", "s", 1.0, 1.0, float("nan"))
    with pytest.raises(ValueError, match="JSON compliant"):
        report.write([broken], MACHINE, tmp_path)


def test_plot_has_a_bar_a_row() -> None:
    figure = report.plot([MET, MISSED])
    assert len(figure.axes[0].patches) == 2
    assert png_bytes(figure).startswith(b"\x89PNG")


def test_ratio_is_the_median_of_neighbours_and_work_gives_floor_and_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.measure.peaks", lambda: MACHINE)
    row = timed_row("x", [4.0, 8.0, 100.0], [2.0, 2.0, 10.0], work=110.0, required=4.5)
    assert (row.reference, row.ours, row.ratio) == (8.0, 2.0, 4.0)
    assert (row.floor, row.share, row.met) == (1.0, 0.5, False)


def test_ways_are_taken_in_turn_and_the_first_rounds_are_not_counted() -> None:
    told: list[str] = []
    steps: dict[str, Step] = {"a": lambda: told.append("a"), "b": lambda: told.append("b")}
    taken = in_turn(steps, repeats=2, warm_up=1)
    assert told == ["a", "b"] * 3
    assert [len(values) for values in taken.values()] == [2, 2]


def test_a_step_in_a_process_of_its_own_tells_its_core_seconds_and_a_failure_is_reported() -> None:
    with Apart(functools.partial, sum, range(300_000)) as step, Apart(int, "no number") as failing:
        assert step.seconds() > 1e-4
        with pytest.raises(RuntimeError, match="see its message above"):
            failing.seconds()


def test_peaks_are_measured_once() -> None:
    first = peaks(repeats=1)
    assert peaks() is first
    assert first.best == max(first.matmul, first.convolution) > 1
    assert first.memory > 0.1 and first.convolution_contiguous > 0.1


# --- growth


def test_fit_recovers_a_known_exponent() -> None:
    sizes = [1, 2, 4, 8, 16]
    assert scaling.fitted_exponent(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    noisy = [5 * size**-1 * factor for size, factor in zip(sizes, (1.05, 0.95, 1.0, 1.05, 0.95), strict=True)]
    assert scaling.fitted_exponent(sizes, noisy) == pytest.approx(-1, abs=0.05)


@pytest.mark.parametrize(("sizes", "costs"), [([1], [1.0]), ([1, 2], [1.0, 0.0])])
def test_fit_needs_two_sizes_and_positive_costs(sizes: list[int], costs: list[float]) -> None:
    with pytest.raises(ValueError, match="an exponent needs two sizes or more, and positive numbers"):
        scaling.fitted_exponent(sizes, costs)


@pytest.mark.parametrize("part", [scaling.adaptation_by_batch, scaling.corruptions_by_size, scaling.unet_by_size])
def test_growth_is_measured(part: object) -> None:
    (curve,) = part(True)  # type: ignore[operator]
    assert len(curve.sizes) == len(curve.costs) == 2 and min(curve.costs) > 0
    assert math.isfinite(curve.exponent)


def test_growth_is_printed_plotted_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    curve = scaling.Curve("work", "images", "core s", [1, 10, 100], [2.0, 20.0, 200.0], 1.0)
    monkeypatch.setattr(scaling, "PARTS", {"work": lambda quick: [curve]})
    scaling.main(["--quick", "--out", str(tmp_path)])
    assert "work ~ images^1.00 (ideal 1)" in capsys.readouterr().out
    (written,) = json.loads((tmp_path / "scaling.json").read_text())["curves"]
    assert written["exponent"] == pytest.approx(1)
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
