"""The table of approaches: hand-computed means and deviations, published rows, what is written, and
every refusal.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr

from tests.scripts import run_script
from tests.seed_results import HEADINGS, SMALL, cell, make, rows_of, write_runs
from undegrade.evaluation.approach_table import rank_correlation, result_paths
from undegrade.evaluation.published import PublishedConfig, check_published, published_rows
from undegrade.evaluation.report.plots_approaches import dot_plot
from undegrade.evaluation.results import MEAN
from undegrade.evaluation.seeds import Statistic, layout, read_seeds, statistics
from undegrade.utils.config import build, read_yaml

FUSIONDISTILL = Path("configs/published/fusiondistill.yaml")


def lines_of(text: str) -> dict[str, list[str]]:
    """First cell -> the other cells, of a Markdown table without doubled lines."""
    return {
        parts[0]: parts[1:] for parts in ([t.strip() for t in x.strip("| ").split("|")] for x in text.splitlines() if x[:1] == "|")
    }


def test_columns_are_means_over_levels_and_their_average_does_not_weigh_by_the_number_of_levels(tmp_path: Path) -> None:
    done = make(tmp_path, [rows_of()]).check()
    lines = lines_of(done.out)
    assert lines["approach"] == ["JPEG", "AWGN", "Avg", "Clean", "Unseen"]
    # jpeg (40+60+80)/3, noise (70+20)/2, average of these two 52.5 (of all five levels 54); the
    # unseen corruptions have the mean of their three rows, 30, and not that of two means, 25
    assert lines["soup"] == ["60.0", "45.0", "52.5", "90.0", "30.0"]
    assert lines["oracle"] == ["52.0", "-", "-", "-", "-"]
    assert lines["published"] == ["50.0", "61.0", "55.5", "-", "-"]
    names = [line.split("|")[1].rstrip() for line in done.out.splitlines() if line.startswith("| ")]
    assert names == [" approach", " -----------", " oracle", " soup", "   published"]  # each published row below ours


def test_several_seeds_give_the_mean_and_the_sample_standard_deviation(tmp_path: Path) -> None:
    shifts = (-1.0, 0.0, 4.0)  # mean 1, sample variance (4 + 1 + 9) / 2 = 7
    lines = lines_of(make(tmp_path, [rows_of(shift) for shift in shifts]).check().out)
    assert lines["soup"] == ["61.0 ±2.6", "46.0 ±2.6", "53.5 ±2.6", "91.0 ±2.6", "31.0 ±2.6"]
    assert lines["oracle"][0] == "52.0 ±0.0"
    seeds = read_seeds([tmp_path / f"seed{seed}" / "results.json" for seed in (1, 2, 3)], "Digits")
    found = statistics(seeds, layout(seeds.runs[0], HEADINGS))["soup"]["Avg"]
    assert (found.mean, found.deviation) == pytest.approx((53.5, math.sqrt(7)))


def test_caption_says_what_the_numbers_are(tmp_path: Path) -> None:
    done = make(tmp_path, [rows_of(), rows_of(1)]).check()
    first = (tmp_path / "out/table.md").read_text().splitlines()[0]
    assert first == done.out.splitlines()[0] == (
        "Digits (test): Accuracy in %, mean over the levels of each corruption, 1000 images per cell. Number of levels: JPEG 3, "
        "AWGN 2. Avg is the mean of these 2 columns, each counting the same. Unseen is the mean over 3 pairs of corruption and "
        "severity. 2 seeds: mean ± sample standard deviation over seeds (trained anew from each; not over images). "
        "Published: A paper."
    )  # fmt: skip
    assert "1 seed." in make(tmp_path, [rows_of()]).check().out.splitlines()[0]


def test_degradations_that_were_not_published_become_columns_and_the_rest_is_named(tmp_path: Path) -> None:
    more = [cell("soup", "blur", level, 20) for level in (0.1, 0.2)] + [
        cell("soup", "saltpepper", 0, 30),
        cell("soup", "weak_seq", 0, 5),
    ]
    done = make(tmp_path, [rows_of() + more]).check()
    lines = lines_of(done.out)
    assert lines["approach"] == ["JPEG", "AWGN", "blur", "Avg", "Clean", "Unseen"]
    assert lines["soup"][2:4] == ["20.0", "41.7"]
    assert lines["published"] == ["50.0", "61.0", "-", "-", "-", "-"]  # the average of other columns would not compare
    assert "Evaluated but in no column: saltpepper, weak_seq." in done.out
    assert "Published but not evaluated: single, other." in done.out


def test_columns_that_no_result_has_are_left_out_and_corruptions_may_be_columns(tmp_path: Path) -> None:
    published = {"source": "B", "columns": {"snow": "Snow", "glass_blur": "Glass", "fog": "Fog"}, "rows": {}}
    rows = [r for r in rows_of() if r.corruption in ("fog", "snow", MEAN)]
    lines = lines_of(make(tmp_path, [rows], published=published).check().out)
    assert lines == {"approach": ["Snow", "Fog", "Avg"], "soup": ["10.0", "40.0", "25.0"], "-" * 8: ["---:", "---:", "---:"]}


def test_csv_has_a_line_an_approach_and_source(tmp_path: Path) -> None:
    make(tmp_path, [rows_of(), rows_of(2)]).check()
    with (tmp_path / "out/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["approach"], row["source"], row["seeds"]) for row in rows] == [
        ("oracle", "ours", "2"), ("soup", "ours", "2"), ("soup", "published", "")
    ]  # fmt: skip
    assert (rows[1]["Avg"], rows[1]["Avg deviation"], rows[0]["Avg"], rows[2]["Avg"]) == ("53.5000", "1.4142", "", "55.5000")
    make(tmp_path, [rows_of()]).check()
    assert (tmp_path / "out/table.csv").read_text().splitlines()[0] == "approach,source,seeds,JPEG,AWGN,Avg,Clean,Unseen"


def test_pictures_are_written_and_levels_only_where_there_are_several(tmp_path: Path) -> None:
    done = make(tmp_path, [rows_of(), rows_of(2)]).check()
    assert done.out.splitlines()[-1].count(str(tmp_path / "out")) == 4
    for name in ("table.png", "levels.png"):
        image = np.asarray(Image.open(tmp_path / "out" / name).convert("L"))
        assert min(image.shape) > 200 and np.ptp(image) > 200
    one_level = [r for r in rows_of() if r.severity in (0, 5) and r.corruption in ("fog", "snow", MEAN)]
    (tmp_path / "flat").mkdir()
    make(tmp_path / "flat", [one_level], published=SMALL | {"columns": {"snow": "Snow", "fog": "Fog"}, "rows": {}}).check()
    assert {path.name for path in (tmp_path / "flat/out").iterdir()} == {"table.md", "table.csv", "table.png"}


def test_dot_plot_shows_our_mean_with_its_deviation_and_the_published_value() -> None:
    ours = {"soup": {"JPEG": Statistic(60, 2), "Avg": Statistic(50, 3)}, "new": {"JPEG": Statistic(70, 1)}}
    figure = dot_plot(["JPEG", "Avg"], ours, {"soup": {"JPEG": 55.0}}, {"soup": "#0072B2", "new": "#E69F00"}, seeds=2)
    jpeg, mean = figure.axes
    assert [label.get_text() for label in jpeg.get_yticklabels()] == ["soup", "new"]
    (low, high) = jpeg.containers[0].lines[2][0].get_segments()[0][:, 0]
    assert (low, high) == (58, 62)
    diamonds = [(line.get_xdata()[0], line.get_ydata()[0]) for line in jpeg.lines if line.get_marker() == "D"]
    assert diamonds == [(55, 0)] and not [line for line in mean.lines if line.get_marker() == "D"]
    assert [text.get_text() for text in mean.texts] == ["50.0 ±3.0", "-"]
    assert [text.get_text() for text in figure.legends[0].texts] == ["ours, mean ± standard deviation over 2 seeds", "published"]


def test_one_seed_shows_the_interval_of_a_mean_over_all_columns(tmp_path: Path) -> None:
    rows = [cell("soup", "snow", 5, 20), cell("soup", "fog", 5, 40)]
    mean = dataclasses.replace(cell("soup", MEAN, 5, 30), ci95_low=0.27, ci95_high=0.33)
    published = SMALL | {"columns": {"snow": "Snow", "fog": "Fog"}, "rows": {}}
    done = make(tmp_path, [[*rows, mean]], published=published).check()
    assert lines_of(done.out)["soup"] == ["20.0", "40.0", "30.0 ±3.0"]
    assert "1 seed; ± of Avg is half of its 95 % interval over images." in done.out and "Number of levels" not in done.out
    other = dataclasses.replace(mean, accuracy=0.31)  # of other cells than the columns show
    assert lines_of(make(tmp_path, [[*rows, other]], published=published).check().out)["soup"][2] == "30.0"


# --- published numbers


MEANS = SMALL | {"columns": {"snow": "Snow", "fog": "Fog"}, "rows": {"Digits Net": {"soup": {"mean": 33.0}}}, "severities": [5]}


@pytest.mark.parametrize(
    ("change", "severity", "corruptions", "shown"),
    [
        ({}, 5, ("snow", "fog"), ["-", "-", "33.0"]),
        ({}, 3, ("snow", "fog"), None),  # published at severity 5 only
        ({"severities": []}, 3, ("snow", "fog"), ["-", "-", "33.0"]),
        ({}, 5, ("snow",), ["-", "-"]),  # a mean over fewer columns would not compare
        ({"rows": {"Digits Other": {"soup": {"mean": 33.0}}}}, 5, ("snow", "fog"), None),
    ],
)
def test_a_mean_that_alone_was_published_stands_beside_ours_where_it_compares(
    tmp_path: Path, change: dict, severity: int, corruptions: tuple[str, ...], shown: list[str] | None
) -> None:
    rows = [cell("soup", name, severity, 40) for name in corruptions] + [cell("soup", MEAN, severity, 40)]
    lines = lines_of(make(tmp_path, [rows], published=MEANS | change).check().out)
    assert lines.get("published") == shown


# Section 9 of the specification: the paper's cells and its printed averages
PRINTED = {
    "CIFAR100": {
        "Base separate (Oracle)": (63.4, 58.2, 65.4, 74.1, 65.3), "Ensemble": (59.3, 25.3, 43.6, 58.7, 46.7),
        "Scratch": (59.1, 54.3, 61.0, 66.0, 60.1), "Vanilla fine-tuning": (62.2, 56.0, 63.8, 70.2, 63.1),
        "ModelSoups": (1.1, 1.0, 1.2, 1.0, 1.1), "Fusing": (62.3, 56.4, 64.1, 70.5, 63.3),
        "FusionDistill": (64.5, 58.6, 66.4, 73.7, 65.8),
    },
    "TinyImagenet": {
        "Base separate (Oracle)": (56.3, 50.3, 57.7, 60.6, 56.2), "Ensemble": (53.1, 17.4, 45.4, 49.9, 41.5),  # printed 35.5
        "Scratch": (54.0, 48.2, 55.3, 58.2, 53.9), "Vanilla fine-tuning": (55.2, 48.1, 56.6, 59.7, 54.9),
        "ModelSoups": (0.5, 0.5, 0.5, 0.5, 0.5), "Fusing": (54.2, 47.1, 55.2, 58.8, 53.8),
        "FusionDistill": (56.7, 48.5, 58.2, 61.9, 56.3),
    },
}  # fmt: skip


@pytest.mark.parametrize("dataset", PRINTED)
def test_published_rows_and_their_averages_are_those_of_the_paper(tmp_path: Path, dataset: str) -> None:
    levels = [
        ("jpeg", 10),
        ("jpeg", 90),
        ("blur", 1),
        ("blur", 2),
        ("noise", 1),
        ("noise", 2),
        ("saltpepper", 0.1),
        ("saltpepper", 0.2),
    ]
    names = list(PRINTED[dataset])
    rows = [cell(name, *level, 50 + index) for index, name in enumerate(names) for level in levels]
    rows += [cell(name, MEAN, 0, 50) for name in names]
    paths = write_runs(tmp_path, [[dataclasses.replace(row, dataset=dataset) for row in rows]])
    words = ("-c", FUSIONDISTILL, "--dataset", dataset, "--arch", "ResNet56", "--out", tmp_path / "out", "--results", *paths)
    out = run_script("evaluation/approach_table.py", *words).check().out
    table = [[t.strip() for t in line.strip("| ").split("|")] for line in out.splitlines() if line.startswith("| ")]
    assert table[0][1:] == ["JPEG", "Blur", "AWGN", "SAPN", "Avg"]
    shown = {above[0]: tuple(map(float, line[1:])) for above, line in zip(table, table[1:], strict=False) if line[0] == "published"}
    assert shown == PRINTED[dataset]


def test_order_is_compared_with_the_published_one_of_the_same_data_set_else_with_all(tmp_path: Path) -> None:
    names = ["Fusing", "FusionDistill", "Scratch", "New"]
    rows = [cell(name, "jpeg", level, 80 - index) for index, name in enumerate(names) for level in (10, 90)]
    rows += [cell(name, MEAN, 0, 50) for name in names]
    published = read_yaml(FUSIONDISTILL)
    out = make(tmp_path, [rows], published=published).check().out
    # JPEG alone was evaluated: ours Fusing, FusionDistill, Scratch; published FusionDistill,
    # Fusing, Scratch differences of ranks 1, 1, 0: 1 - 6 * 2 / (3 * 8) = 0.5
    for dataset, order in (
        ("CIFAR100 ResNet56", "FusionDistill 64.5, Fusing 62.3, Scratch 59.1"),
        ("TinyImagenet ResNet56", "FusionDistill 56.7, Fusing 54.2, Scratch 54.0"),
    ):
        heading = f"Order by the mean of JPEG, ours on Digits against published on {dataset}: Spearman rank correlation 0.50 "
        text = f"{heading}over 3 approaches.\n\n- ours: Fusing 80.0, FusionDistill 79.0, Scratch 78.0\n- published: {order}\n"
        assert text in out
    published["rows"]["Digits Other"] = published["rows"]["CIFAR100 ResNet56"]
    out = make(tmp_path, [rows], published=published).check().out
    assert "published on Digits Other" in out and out.count("Order by") == 1


@pytest.mark.parametrize(
    ("first", "second"), [([1.0, 2, 3], [3.0, 1, 2]), ([5.0, 5, 1, 2], [2.0, 3, 1, 1]), ([0.1, 0.4, 0.3], [1.0, 9, 2])]
)
def test_rank_correlation_agrees_with_scipy(first: list[float], second: list[float]) -> None:
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic)


def test_rank_correlation_of_equal_values_is_not_a_number() -> None:
    assert math.isnan(rank_correlation([1.0, 1.0], [1.0, 2.0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": {"clean": "Photographs"}}, "clean images have the column 'Clean'"),
        ({"columns": {"jpg": "JPEG"}}, "unknown perturbation 'jpg': did you mean 'jpeg'"),
        ({"columns": {"jpeg": "JPEG", "noise": "JPEG"}}, "heading 'JPEG' of 'noise' is taken"),
        ({"columns": {"jpeg": "Avg"}}, "heading 'Avg' of 'jpeg' is taken"),
        ({"rows": {"D": {"soup": {"blur": 1.0}}}}, "unknown column 'blur' in rows.D.soup: allowed: jpeg, noise"),
        ({"rows": {"D": {"soup": {"jpeg": 101.0}}}}, "'rows.D.soup.jpeg': expected a number of at least 0 and of at most 100"),
        ({"rows": {"D": {"soup": {"jpeg": "high"}}}}, "high"),
        ({"colums": {}}, "unknown config key 'colums': did you mean 'columns'"),
    ],
)
def test_mistakes_in_the_published_numbers_are_named(tmp_path: Path, change: dict, message: str) -> None:
    done = make(tmp_path, [rows_of()], published=SMALL | change)
    assert done.status == 2 and message in done.err and not (tmp_path / "out").exists()


def test_published_rows_carry_the_columns_headings() -> None:
    config = build(PublishedConfig, SMALL)
    check_published(config)
    assert published_rows(config, "Digits Net")["soup"] == {"JPEG": 50.0, "AWGN": 61.0}
    assert published_rows(config, "Digits") == {}


def test_seeds_fill_a_path(tmp_path: Path) -> None:
    assert result_paths(["r/{seed}.json", "one.json"], "1,7") == ["r/1.json", "r/7.json", "one.json"]
    assert result_paths(["a", "b"], "") == ["a", "b"]
    done = make(tmp_path, [rows_of(), rows_of(2)], "--results", tmp_path / "seed{seed}/results.json", "--seeds", "1,2").check()
    assert lines_of(done.out)["soup"][0] == "61.0 ±1.4"
    for patterns, seeds in ((["seed{seed}.json"], ""), (["seed1.json"], "1,2")):
        with pytest.raises(ValueError, match="`{seed}` in a path and --seeds 1,2,3 go together"):
            result_paths(patterns, seeds)
