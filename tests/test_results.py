"""Intervals against scipy and hand-computed values; files; tables."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from undegrade.evaluation.evaluate import gains
from undegrade.evaluation.report.plots import heat_map
from undegrade.evaluation.result_files import read_json, write_csv, write_json
from undegrade.evaluation.results import (
    Z95,
    Result,
    average_rows,
    cell_result,
    difference_words,
    mean_result,
    paired_difference,
    percent,
    wilson_interval,
)
from undegrade.evaluation.seeds import Statistic
from undegrade.evaluation.tables import caption, markdown_table, pivot, table
from undegrade.utils.data.cells import Cell
from undegrade.utils.files import write_atomic


def right(text: str) -> np.ndarray:
    return np.array([letter == "1" for letter in text])


def row(system: str, corruption: str, severity: float | None, accuracy: float, rule: str = "single", half: float = 0.01) -> Result:
    correct = round(accuracy * 1000)
    return Result(system, "Digits", corruption, severity, rule, 1000, correct, accuracy, accuracy - half, accuracy + half)


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (7, 10), (1, 1), (431, 1797), (9990, 10000)])
def test_wilson_interval_agrees_with_scipy(correct: int, n: int) -> None:
    expected = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("correct", "n"), [(-1, 10), (11, 10), (0, 0), (math.nan, 10)])
def test_wilson_interval_refuses_impossible_counts(correct: float, n: int) -> None:
    with pytest.raises(ValueError, match="needs 0 <= correct <= n and n > 0"):
        wilson_interval(correct, n)


def test_cell_result_counts_what_is_right_and_always_contains_its_accuracy() -> None:
    result = cell_result("DDA", "Digits", "fog", 5, "sum", right("1101"))
    assert (result.n, result.correct, result.accuracy, result.severity) == (4, 3, 0.75, 5)
    assert (result.ci95_low, result.ci95_high) == wilson_interval(3, 4)
    assert cell_result("DDA", "Digits", "fog", 5, "sum", right("1111")).ci95_high == 1.0


@pytest.mark.parametrize("wrong", [np.array([1, 0, 1]), np.zeros((2, 2), bool), np.zeros(0, bool)])
def test_arrays_that_are_not_a_bool_vector_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"needs bool \[n\]"):
        cell_result("DDA", "Digits", "fog", 5, "sum", wrong)


def test_mean_interval_follows_the_images_by_hand() -> None:
    result = mean_result("DDA", "Digits", "sum", {("fog", 5): right("1100"), ("snow", 5): right("1010")})
    # shares of right cells per image: 1, 1/2, 1/2, 0 -> mean 1/2, sample variance 1/6
    half = Z95 * math.sqrt(1 / 6 / 4)
    assert (result.corruption, result.severity, result.n, result.correct) == ("mean", 5, 8, 4)
    assert (result.accuracy, result.ci95_low, result.ci95_high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))


def test_copies_of_one_cell_do_not_narrow_the_mean_interval() -> None:
    one = np.arange(400) % 4 > 0
    single = mean_result("DDA", "Digits", "sum", {("fog", 1): one})
    copies = mean_result("DDA", "Digits", "sum", {("fog", severity): one for severity in range(1, 6)})
    assert copies.severity is None
    assert (copies.ci95_low, copies.ci95_high) == pytest.approx((single.ci95_low, single.ci95_high))
    # close to Wilson's interval of the 400 images, not of the 2000 predictions
    assert copies.ci95_low == pytest.approx(wilson_interval(300, 400)[0], abs=0.005)


def test_mean_interval_covers_the_truth_in_95_percent_of_test_sets() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        chance = rng.beta(2, 1, 200)  # images differ in difficulty: the cells are correlated; the true mean is 2/3
        result = mean_result("s", "d", "r", {(name, 5): rng.random(200) < chance for name in "abcdefgh"})
        covered += result.ci95_low <= 2 / 3 <= result.ci95_high
    assert 0.92 <= covered / 400 <= 0.98


def test_mean_of_images_that_all_agree_still_has_an_interval() -> None:
    result = mean_result("DDA", "Digits", "sum", {("fog", 5): right("1111"), ("snow", 5): right("1111")})
    assert (result.ci95_low, result.ci95_high) == wilson_interval(4, 4)


def test_mean_over_cells_of_different_length_weighs_cells_equally_and_averages_their_bounds() -> None:
    result = mean_result("DDA", "Digits", "sum", {("fog", 5): right("1100"), ("snow", 5): right("11111111")})
    assert (result.accuracy, result.n, result.correct) == (0.75, 12, 10)
    assert result.ci95_low == pytest.approx((wilson_interval(2, 4)[0] + wilson_interval(8, 8)[0]) / 2)


def test_mean_over_no_cells_is_refused() -> None:
    with pytest.raises(ValueError, match="mean over no cells"):
        mean_result("DDA", "Digits", "sum", {})


def test_paired_difference_by_hand_and_antisymmetric() -> None:
    a = {("fog", 5): right("1110"), ("snow", 5): right("1100")}
    b = {("snow", 5): right("1100"), ("fog", 5): right("1000")}
    # per image: 0, 1/2, 1/2, 0 -> mean 1/4, sample variance 1/12
    half = Z95 * math.sqrt(1 / 12 / 4)
    difference = paired_difference(a, b)
    assert difference == pytest.approx((0.25, 0.25 - half, 0.25 + half))
    assert paired_difference(b, a) == pytest.approx((-difference[0], -difference[2], -difference[1]))
    assert paired_difference(a, a) == (0, 0, 0)


def test_paired_difference_names_cells_of_only_one_system() -> None:
    with pytest.raises(ValueError, match=r"\('snow', 5\)"):
        paired_difference({("fog", 5): right("10")}, {("fog", 5): right("10"), ("snow", 5): right("10")})


@pytest.mark.parametrize(("a", "b"), [("110", "10"), ("1", "0")])
def test_paired_difference_needs_the_same_images(a: str, b: str) -> None:
    with pytest.raises(ValueError, match="needs one number, at least 2"):
        paired_difference({("fog", 5): right(a)}, {("fog", 5): right(b)})


def test_json_restores_rows_and_gives_the_same_bytes_for_the_same_rows(tmp_path: Path) -> None:
    rows = [row("DDA", "fog", 5, 0.1 + 0.2), row("größer", "mean", 0.25, 1 / 3)]
    write_json(tmp_path / "new" / "a.json", rows, {"seed": 1, "data": "Digits"})
    write_json(tmp_path / "b.json", [replace(rows[0], severity=5.0), rows[1]], {"data": "Digits", "seed": 1})
    assert read_json(tmp_path / "new" / "a.json") == (rows, {"seed": 1, "data": "Digits"})
    assert (tmp_path / "new" / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    write_json(tmp_path / "empty.json", [], {})
    assert read_json(tmp_path / "empty.json") == ([], {})


def test_csv_has_the_fields_in_order_and_a_column_a_metric_and_quotes_commas(tmp_path: Path) -> None:
    known = [replace(row("a, b", "fog", 5, 0.5), metrics={"top5": 0.75}), replace(row("c", "mean", 0, 0.5), metrics={"miou": 0.25})]
    write_csv(tmp_path / "r.csv", [*known, row("d", "fog", 0.5, 0.5)])
    assert (tmp_path / "r.csv").read_bytes().decode() == (
        "system,dataset,corruption,severity,rule,n,correct,accuracy,ci95_low,ci95_high,top5,miou\n"
        '"a, b",Digits,fog,5,single,1000,500,0.5,0.49,0.51,0.75,\n'
        "c,Digits,mean,0,single,1000,500,0.5,0.49,0.51,,0.25\n"
        "d,Digits,fog,0.5,single,1000,500,0.5,0.49,0.51,,\n"
    )


def test_json_has_one_row_a_line_with_its_metrics_by_name(tmp_path: Path) -> None:
    rows = [replace(row("a", "clean", 0, 0.5), metrics={"p_carton": 0.25, "carton_n": 2}), row("a", "mean", 0, 0.5)]
    write_json(tmp_path / "r.json", rows, {})
    assert read_json(tmp_path / "r.json") == (rows, {})
    lines = [line for line in (tmp_path / "r.json").read_text().splitlines() if "system" in line]
    assert len(lines) == 2 and '"metrics": {"p_carton": 0.25, "carton_n": 2}' in lines[0] and '"metrics": {}' in lines[1]


def test_a_mean_knows_the_metrics_that_all_its_rows_know() -> None:
    rows = [replace(row("a", "fog", level, 0.5), metrics={"top5": level / 10, **more}) for level, more in ((1, {}), (3, {"x": 1}))]
    assert average_rows(rows, "fog", 0).metrics == {"top5": pytest.approx(0.2)}
    assert average_rows(rows[1:], "fog", 0).metrics == {"top5": 0.3, "x": 1}


def test_halves_of_a_percentage_are_rounded_up_wherever_it_is_written() -> None:
    assert f"{100 * 1261 / 2000:.1f}" == "63.0"  # what the binary form gives
    assert percent(100 * 1261 / 2000) == "63.1" and percent(63.05 - 1e-6) == "63.0"
    assert [percent(v, "+") for v in (0.25, -0.25, 0.0)] == ["+0.3", "-0.3", "+0.0"]
    for n in (8, 40, 1000, 2000, 10_000, 50_000):  # against exact arithmetic
        for correct in range(0, n + 1, max(1, n // 2000)):
            assert percent(100 * correct / n) == f"{math.floor(Fraction(1000 * correct, n) + Fraction(1, 2)) / 10:.1f}"
    rows = [Result("a", "d", "fog", level, "r", 2000, 1261, 1261 / 2000, 0.6, 0.65) for level in (1, 2)]
    assert "63.1" in table(rows[:1]) and "63.1" in markdown_table(rows)
    assert "63.1" in [text.get_text() for text in heat_map(rows).axes[0].texts]
    assert str(Statistic(100 * 1261 / 2000)) == "63.1"
    assert gains({"a": {Cell("fog", 1): right("10" * 1000)}, "b": {Cell("fog", 1): right("1" * 1261 + "0" * 739)}})[0].startswith(
        "b minus a: +13.1 points"  # 50 to 63.05
    )


def test_a_difference_that_no_image_shows_is_not_printed_as_certain() -> None:
    same = {Cell("fog", 1): right("1" * 20 + "0" * 10)}
    assert difference_words(same, same, ", 95 % interval") == (
        "+0.0 points, no image gains or loses: 30 of them show, with 95 % confidence, that at most 9.5 % of all images do"
    )
    worse = {Cell("fog", 1): right("0" * 30)}
    better = {Cell("fog", 1): right("1" * 30)}
    assert difference_words(better, worse).startswith("+100.0 points, every image changes alike: 30 of them show")
    one = {Cell("fog", 1): right("1" * 21 + "0" * 9)}
    assert difference_words(one, same, ", 95 % interval") == "+3.3 points, 95 % interval [-3.2, +9.9]"
    assert difference_words(one, same) == "+3.3 points [-3.2, +9.9]"
    for n in (5, 30, 359, 10_000):  # so many in a row have a probability of 5 %
        same = {Cell("fog", 1): right("1" * n)}
        bound = float(difference_words(same, same).split("at most ")[1].split(" ")[0])
        assert 100 * (1 - 0.05 ** (1 / n)) == pytest.approx(bound, rel=0.05)


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "f", "old\n")

    def no_replace(*_: object) -> None:
        raise OSError("disk on fire")

    monkeypatch.setattr(os, "replace", no_replace)
    with pytest.raises(OSError, match="disk on fire"):
        write_atomic(tmp_path / "f", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("f", b"old\n")]


def test_table_puts_the_mean_last_with_its_interval_and_marks_the_best() -> None:
    rows = [row("clean", "mean", 5, 0.5, half=0.021), row("clean", "snow", 5, 0.6), row("clean", "fog", 5, 0.4)]
    rows += [row("DDA", "snow", 5, 0.6), row("DDA", "mean", 5, 0.55, half=0.01)]
    heading, columns, _, *lines = table(rows).splitlines()
    assert heading == "Accuracy in %, severity 5, 1000 images per cell"
    assert columns.split() == ["corruption", "clean", "DDA"]
    assert [line.split() for line in lines] == [
        ["snow", "60.0*", "60.0*"],
        ["fog", "40.0*", "-"],
        ["mean", "50.0", "±2.1", "55.0", "±1.0*"],
    ]
    assert "| mean | 50.0 ±2.1 | **55.0 ±1.0** |" in markdown_table(rows)


def test_severities_are_averaged_per_corruption_and_the_overall_mean_is_preferred() -> None:
    rows = [row("a", name, severity, 0.9 - severity / 10) for name in ("fog", "snow", "mean") for severity in (1, 2, 3)]
    arranged = pivot([*rows, row("a", "mean", None, 0.7, half=0.005), row("a", "clean", 0, 0.9)])
    assert arranged.lines == ["fog", "snow", "clean", "mean"]
    assert arranged.cells["fog", "a"].accuracy == pytest.approx(0.7)
    assert arranged.cells["mean", "a"].ci95_low == pytest.approx(0.695)
    assert arranged.scope == "mean of severities 1, 2, 3"
    assert arranged.best["fog"] == set()  # a single system has no rival
    # the mean at level 0 of a sweep is one level among others
    swept = pivot([*rows, row("a", "fog", 0, 0.9), row("a", "snow", 0, 0.9), row("a", "mean", 0, 0.9)])
    assert swept.cells["mean", "a"].accuracy == pytest.approx((0.8 + 0.7 + 0.6 + 0.9) / 4)


def test_rules_become_columns_and_data_sets_become_lines() -> None:
    rows = [row("DDA", "fog", 5, 0.5, "sum"), row("DDA", "fog", 5, 0.6, "vote"), row("clean", "fog", 5, 0.4)]
    arranged = pivot([*rows, replace(rows[2], dataset="CIFAR")])
    assert arranged.systems == ["DDA (sum)", "DDA (vote)", "clean"]
    assert arranged.lines == ["Digits: fog", "CIFAR: fog"]


def test_doubled_and_missing_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="two rows for 'DDA', 'fog', severity 5: keep one"):
        pivot([row("DDA", "fog", 5, 0.5), row("DDA", "fog", 5.0, 0.6)])
    with pytest.raises(ValueError, match="no result rows"):
        table([])


def test_caption_says_what_the_numbers_stand_for() -> None:
    rows = [row("a", "jpeg", 30, 0.5), row("a", "noise", 0.1, 0.5), replace(row("a", "clean", 0, 0.5), n=900)]
    assert caption(rows) == "Accuracy in %, mean over the levels of each corruption, 900 to 1000 images per cell"
    assert caption(rows[2:]) == "Accuracy in %, 900 images per cell"


def test_caption_knows_levels_that_are_drawn_for_each_image() -> None:
    drawn, one_level = [row("a", name, None, 0.5) for name in ("jpeg", "blur+noise", "mean")], row("a", "watermark", 0, 0.5)
    drawn.append(row("a", "clean", 0, 0.5))
    assert caption(drawn) == "Accuracy in %, random levels, 1000 images per cell"
    fog = row("a", "fog", 5, 0.5)
    assert caption([*drawn, fog, one_level]) == (
        "Accuracy in %, severity 5 (jpeg, blur+noise: random levels), 1000 images per cell"
    )
    assert caption([fog, one_level]) == "Accuracy in %, severity 5, 1000 images per cell"
    assert caption([one_level]) == "Accuracy in %, 1000 images per cell"


def test_average_interval_is_no_narrower_than_the_clustered_one() -> None:
    rng = np.random.default_rng(1)
    cells = {("fog", severity): rng.random(500) < 0.7 for severity in (1, 2, 3)}
    average = average_rows([cell_result("s", "d", *cell, "r", array) for cell, array in cells.items()], "fog", 0)
    clustered = mean_result("s", "d", "r", cells)
    assert average.accuracy == pytest.approx(clustered.accuracy)
    assert average.ci95_high - average.ci95_low > clustered.ci95_high - clustered.ci95_low
