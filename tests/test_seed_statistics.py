"""Mean and deviation over seeds by hand; results that do not belong together are refused."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from tests.scripts import run_script
from tests.seed_results import HEADINGS, cell, make, rows_of, write_runs
from undegrade.evaluation.result_files import ResultFiles, write_json
from undegrade.evaluation.results import MEAN, Result, cell_result
from undegrade.evaluation.seeds import gains, layout, read_seeds, statistics


def test_deviation_of_the_average_is_that_of_the_seeds_averages(tmp_path: Path) -> None:
    better, worse = rows_of(), [r if r.corruption != "noise" else cell(r.system, "noise", r.severity, 33) for r in rows_of(2)]
    seeds = read_seeds(write_runs(tmp_path, [better, worse]), "Digits")
    found = statistics(seeds, layout(seeds.runs[0], HEADINGS))["soup"]
    assert found["JPEG"].deviation == pytest.approx(math.sqrt(2))  # 60, 62
    assert found["AWGN"].deviation == pytest.approx(12 / math.sqrt(2))  # 45, 33
    assert found["Avg"].deviation == pytest.approx(5 / math.sqrt(2))  # 52.5, 47.5


def without(corruption: str) -> list[Result]:
    return [row for row in rows_of() if row.corruption != corruption]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (rows_of()[:4], "differ in their systems: only the second has soup; evaluate every seed with the same"),
        (without("noise"), "differ in their cells: only the second has soup (first) on noise 0, soup (first) on noise 50; "),
        (rows_of()[:4] + rows_of()[-5:], "soup (first) on jpeg 50, soup (first) on jpeg 90 and 2 more; evaluate"),
        (rows_of(n=500), "image counts: only the first has 500 (oracle (first) on jpeg 10), 500 (oracle (first) on jpeg 50), "),
        ([dataclasses.replace(r, dataset="CIFAR10") for r in rows_of()], "holds results of CIFAR10, not of Digits"),
        (without(MEAN), "is of an evaluation that did not finish"),
        ([*rows_of(), cell("soup", "fog", 1, 3)], "has two rows for soup (first) on fog 1"),
        ([], "is of an evaluation that did not finish"),
    ],
)
def test_results_that_differ_are_refused_with_the_file_and_the_difference(
    tmp_path: Path, second: list[Result], message: str
) -> None:
    done = make(tmp_path, [rows_of(), second])
    assert done.status == 2 and message in done.err and f"error: {tmp_path}/seed2/results.json " in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("key", "value"), [("split", "validation"), ("constants", "tiny"), ("compat", {"salt_value": 1})])
def test_results_of_other_settings_are_refused(tmp_path: Path, key: str, value: object) -> None:
    first, second = write_runs(tmp_path, [rows_of(), rows_of()])
    write_json(second, rows_of(), {"split": "test", "members": {}, key: value})
    with pytest.raises(ValueError, match=f"differ in their settings: only the first has {key} "):
        read_seeds([first, second], "Digits")


def test_one_seed_cannot_be_counted_twice(tmp_path: Path) -> None:
    first, _, third = write_runs(tmp_path, [rows_of(), rows_of(1), rows_of(2)])
    with pytest.raises(ValueError, match="results.json is given twice"):
        read_seeds([first, first.parent / ".." / "seed1" / "results.json"], "Digits")
    third.write_text(first.read_text())
    with pytest.raises(ValueError, match=r"seed3.*seed1.* are of the same networks: give one file a seed"):
        read_seeds([first, tmp_path / "seed2" / "results.json", third], "Digits")


def test_missing_file_names_the_command_that_makes_it(tmp_path: Path) -> None:
    done = make(tmp_path, [rows_of()], "--results", tmp_path / "nothing.json")
    assert done.status == 2
    assert (
        done.err == f"error: results file {tmp_path}/nothing.json does not exist; it is written by: make the-table DATASET=Digits\n"
    )
    with pytest.raises(FileNotFoundError, match=r"does not exist; it is written by: test_ensemble.py"):
        read_seeds([tmp_path / "nothing.json"], "Digits")


def test_results_without_any_column_are_refused(tmp_path: Path) -> None:
    done = make(tmp_path, [[cell("soup", "weak_seq", 0, 50)]])
    assert done.status == 2 and "no column to show: the results hold weak_seq, the table jpeg, noise" in done.err


def test_heading_that_is_another_swept_degradation_is_refused() -> None:
    rows = [cell("soup", "jpeg", 1, 50), cell("soup", "noise", 1, 50), cell("soup", "noise", 2, 50)]
    with pytest.raises(ValueError, match="heading 'noise' stands for another corruption"):
        layout(rows, {"jpeg": "noise"})


def test_a_corruption_that_was_trained_on_is_a_column_and_not_unseen() -> None:
    cells = [("jpeg", 10), ("jpeg", 20), ("fog", 1), ("fog", 2), ("snow", 1), ("blur+noise", 0)]
    rows = [cell_result("s", "d", name, level, "first", np.array([True, False])) for name, level in cells]
    plan = layout(rows, {"jpeg": "JPEG"}, ["jpeg", "fog", "blur+noise"])
    assert plan.columns == {
        "JPEG": [("jpeg", 10), ("jpeg", 20)],
        "fog": [("fog", 1), ("fog", 2)],
        "blur+noise": [("blur+noise", 0)],
    }
    assert plan.extra == {"Unseen": [("snow", 1)]} and plan.left_out == []
    assert set(layout(rows, {"jpeg": "JPEG"}).columns) == {"JPEG"}


def with_correct(path: Path, right: dict[str, list[str]], corruptions: tuple[str, ...] = ("fog", "snow")) -> None:
    """Results of two cells of four images, each a text of 0 and 1."""
    files = ResultFiles(path.parent, {"split": "test", "members": {"a": str(path)}, "provenance": [], "views": {}, "systems": {}})
    for system, cells in right.items():
        for corruption, text in zip(corruptions, cells, strict=True):
            bits = np.array([c == "1" for c in text])
            files.add(cell_result(system, "Digits", corruption, 5, "first", bits), bits)
    files.write(finished=True)


def test_gains_are_paired_by_image_over_all_seeds(tmp_path: Path) -> None:
    paths = [tmp_path / f"seed{seed}" / "results.json" for seed in (1, 2)]
    with_correct(paths[0], {"a": ["0001", "0011"], "b": ["1001", "0111"], "c": ["0000", "0000"]})
    with_correct(paths[1], {"a": ["0011", "0011"], "b": ["0011", "0111"], "c": ["0011", "0011"]})
    # b - a, by image and over cells: [1, 1, 0, 0] / 2 with the first seed, then [0, 1, 0, 0] / 2
    d = np.array([0.25, 0.5, 0, 0])
    half = 1.96 * d.std(ddof=1) / 2
    lines = gains(read_seeds(paths, "Digits"), "a")
    assert (
        lines[0]
        == f"b minus a: +18.8 points [{100 * (d.mean() - half):+.1f}, {100 * (d.mean() + half):+.1f}] (by seed +25.0, +12.5)"
    )
    assert [line.split(" minus")[0] for line in lines] == ["b", "c"]
    assert lines[1].endswith("(by seed -37.5, +0.0)")


def test_gains_on_clean_images_are_apart(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with_correct(path, {"a": ["0001", "0011"], "b": ["1101", "0011"]}, ("clean", "fog"))
    given = ["--dataset", "Digits", "--results", path, "--out", tmp_path / "out", "--against", "[a]"]
    out = run_script("evaluation/approach_table.py", "-c", "configs/published/decorruptor.yaml", *given).check().out
    degraded, clean = out.index("b minus a: +0.0 points"), out.index("b minus a: +50.0 points")
    assert out.index("Means over the degraded cells") < degraded < out.index("Means over the clean images of all seeds") < clean


def test_the_table_shows_the_gains_and_says_where_they_cannot_be_had(tmp_path: Path) -> None:
    done = make(tmp_path, [rows_of()], "--against", "[soup]")
    assert done.status == 2 and "against soup: there is no correct.npz beside each of the results" in done.err
    assert "system 'soop' in against: did you mean 'soup'" in make(tmp_path, [rows_of()], "--against", "[soop]").err
    path = tmp_path / "results.json"
    with_correct(path, {"a": ["0001", "0011"], "b": ["1001", "0111"]})
    given = ["--dataset", "Digits", "--results", path, "--out", tmp_path / "out", "--against", "[a]"]
    done = run_script("evaluation/approach_table.py", "-c", "configs/published/decorruptor.yaml", *given).check()
    assert "\n- b minus a: +25.0 points [-3.3, +53.3]\n" in done.out
