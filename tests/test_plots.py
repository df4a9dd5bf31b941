"""Figures: what is drawn, read back from the axes and the pixels."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from undegrade.evaluation.report import plots
from undegrade.evaluation.report.plots import heat_map, severity_plot, system_colours
from undegrade.evaluation.report.plots_pictures import Picture, image_grid
from undegrade.evaluation.report.save_plots import save_plots
from undegrade.evaluation.results import Result
from undegrade.utils.figures import PALETTE, RIGHT, WRONG, png_bytes, sample_grid, save


def row(system: str, corruption: str, severity: float | None, accuracy: float) -> Result:
    correct = round(accuracy * 100)
    return Result(system, "Digits", corruption, severity, "single", 100, correct, accuracy, accuracy - 0.02, accuracy + 0.03)


def sweep(severities: tuple[int, ...]) -> list[Result]:
    """Two systems on three corruptions and clean images; accuracy falls by 0.1 a severity."""
    rows = [row(system, "clean", 0, 0.97) for system in ("a", "b")]
    for system, start in (("a", 0.9), ("b", 0.8)):
        rows += [row(system, name, s, start - s / 10) for name in ("fog", "gaussian_noise", "snow") for s in severities]
    return rows


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_heat_map_writes_every_accuracy_in_percent_and_the_best_in_bold() -> None:
    axes = heat_map([*sweep((5,)), row("a", "mean", 5, 0.4)]).axes[0]
    written = {(text.get_position()): (text.get_text(), text.get_weight()) for text in axes.texts}
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["clean", "fog", "gaussian noise", "snow", "mean"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b"]
    assert written[1, 0] == ("40.0", "bold")
    assert written[1, 1] == ("30.0", "normal")
    assert written[4, 1] == ("-", "normal")  # b has no mean


def test_severity_plot_draws_one_panel_a_corruption_and_their_mean() -> None:
    figure = severity_plot(sweep((1, 3, 5)))
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_visible()}
    assert list(panels) == ["fog", "gaussian noise", "snow", "mean"]
    line = panels["mean"].lines[1]
    np.testing.assert_allclose(line.get_xdata(), [1, 3, 5])
    np.testing.assert_allclose(line.get_ydata(), [70, 50, 30])
    assert (line.get_label(), line.get_color()) == ("b", PALETTE[1])
    band = panels["fog"].collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((38, 83))


def test_severity_plot_prefers_given_means_of_a_severity_but_not_the_overall_mean() -> None:
    rows = [*sweep((1, 2)), row("a", "mean", 2, 0.66), row("a", "mean", None, 0.11)]
    mean = severity_plot(rows).axes[3]
    assert mean.get_title() == "mean"
    np.testing.assert_allclose(mean.lines[0].get_ydata(), [80, 66])
    swept = severity_plot([*sweep((0, 1)), row("a", "mean", None, 0.11)]).axes[3]
    np.testing.assert_allclose(swept.lines[0].get_ydata(), [90, 80])


def test_severity_plot_of_several_seeds_draws_their_mean_and_sample_deviation() -> None:
    seeds = [[row("a", name, s, start - s / 10) for name in ("fog", "snow") for s in (1, 2)] for start in (0.5, 0.6, 0.9)]
    figure = severity_plot(*seeds)
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert list(panels) == ["fog", "snow", "mean"]
    for axes in panels.values():  # at severity 1: 40, 50, 80; mean 56.7, sample variance 433.3
        np.testing.assert_allclose(axes.lines[0].get_ydata(), [170 / 3, 140 / 3])
        band = axes.collections[0].get_paths()[0].vertices[:, 1]
        assert (band.min(), band.max()) == pytest.approx((140 / 3 - (1300 / 3) ** 0.5, 170 / 3 + (1300 / 3) ** 0.5))
    assert figure.get_supylabel() == "accuracy in %, mean ± standard deviation of 3 seeds"


def test_severity_plot_draws_chosen_corruptions_in_order_under_their_titles() -> None:
    rows = [*sweep((1, 2)), row("c", "clean", 0, 0.9), row("a", "mean", 1, 0.7)]
    panels = severity_plot(rows, titles={"snow": ("Snow", "flakes"), "fog": ("Fog", "metres")}).axes
    assert [(axes.get_title(), axes.get_xlabel()) for axes in panels if axes.get_title() != "mean"] == [
        ("Snow", "flakes"),
        ("Fog", "metres"),
    ]
    assert [line.get_color() for line in panels[0].lines] == list(PALETTE[:3])


def test_severity_plot_refuses_seeds_that_differ_or_have_one_severity() -> None:
    for first, second in ((sweep((1, 2)), sweep((1, 3))), (sweep((5,)), sweep((5,)))):
        with pytest.raises(ValueError, match="needs the same systems and cells of each, and several severities"):
            severity_plot(first, second)


def test_markers_of_a_long_sweep_are_few_and_stand_at_places_of_their_own() -> None:
    rows = [row(system, "jpeg", level, 0.5) for system in ("a", "b") for level in range(1, 102)]
    first, second = severity_plot(rows).axes[0].lines
    assert (first.get_markevery(), second.get_markevery()) == ((0, 11), (1, 11))


def test_level_sweeps_that_differ_have_no_mean_panel() -> None:
    rows = [
        row("a", "jpeg", 10, 0.4),
        row("a", "jpeg", 90, 0.8),
        row("a", "noise", 0.1, 0.7),
        row("a", "noise", 0.3, 0.5),
    ]
    assert [axes.get_title() for axes in severity_plot(rows).axes] == ["jpeg", "noise"]


def test_one_severity_becomes_a_bar_chart_with_its_intervals() -> None:
    axes = severity_plot(sweep((5,))).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["clean", "fog", "gaussian noise", "snow"]
    bars = axes.containers[1]  # the error bars of a container come before its bars
    assert [bar.get_height() for bar in bars] == pytest.approx([97, 40, 40, 40])
    low, high = bars.errorbar.lines[2][0].get_segments()[1][:, 1]
    assert (low, high) == pytest.approx((38, 43))


def test_many_corruptions_are_spread_over_panels_without_losing_one() -> None:
    names = [f"c{index}" for index in range(19)]
    panels = severity_plot([row("a", name, 5, 0.5) for name in names]).axes
    assert [tick.get_text() for axes in panels for tick in axes.get_xticklabels()] == names


@pytest.mark.parametrize("levels", [(5,), (1, 3, 5)])
def test_the_names_of_many_systems_stay_within_the_figure(levels: tuple[int, ...]) -> None:
    systems = [f"DDA consistency {index}, unguided, alone" for index in range(25)]
    figure = severity_plot([row(name, "fog", level, 0.5) for name in systems for level in levels])
    figure.canvas.draw()
    place = figure.legends[0].get_window_extent()
    assert place.x0 >= 0 and place.x1 <= figure.bbox.width and len(figure.legends[0].texts) == 25


def test_severity_plot_refuses_several_data_sets() -> None:
    other = Result("a", "CIFAR", "fog", 1, "single", 10, 5, 0.5, 0.4, 0.6)
    with pytest.raises(ValueError, match="draw one figure for each"):
        severity_plot([row("a", "fog", 1, 0.5), other])


def test_a_system_has_one_colour_in_every_figure() -> None:
    rows = sweep((1, 5))
    colours = system_colours(rows)
    assert len(set(colours.values())) == 2
    curves = {line.get_label(): line.get_color() for line in severity_plot(rows).axes[0].lines}
    chart = severity_plot([r for r in rows if r.severity != 1]).axes[0]
    handles, labels = chart.get_legend_handles_labels()
    bars = {label: to_hex(handle[0].get_facecolor()).upper() for handle, label in zip(handles, labels, strict=True)}
    assert curves == bars == colours


def test_curves_stay_distinct_when_there_are_more_systems_than_colours() -> None:
    rows = [row(f"system {index}", "fog", severity, 0.5) for index in range(20) for severity in (1, 2)]
    looks = {(line.get_color(), line.get_marker()) for line in severity_plot(rows).axes[0].lines}
    assert len(looks) == 20


def test_image_grid_enlarges_every_pixel_by_a_whole_factor_without_smoothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    figure = image_grid({"clean": [Picture(image)]}, ["fog"])
    page = decoded(png_bytes(figure))
    box = figure.axes[0].get_position()
    top, left = round((1 - box.y1) * page.shape[0]), round(box.x0 * page.shape[1])
    np.testing.assert_array_equal(page[top : top + 128, left : left + 128], image.repeat(4, 0).repeat(4, 1))


def test_image_grid_colours_predictions_by_whether_they_are_right() -> None:
    blank = np.zeros((8, 8, 3), np.uint8)
    pictures = {
        "clean": [Picture(blank, "three")],
        "raw": [Picture(blank, "8", False)],
        "adapted": [Picture(blank, "3", True)],
    }
    figure = image_grid(pictures, ["jpeg_compression"])
    colours = {text.get_text(): text.get_color() for text in figure.texts}
    assert (colours["✗ 8"], colours["✓ 3"]) == (WRONG, RIGHT)
    assert {"jpeg compression", "three", "clean"} <= set(texts(figure))


def test_image_grid_leaves_room_for_long_texts() -> None:
    name = "Chesapeake Bay retriever (93 %)"
    blank = np.zeros((8, 8, 3), np.uint8)
    figure = image_grid({view: [Picture(blank, name, True)] for view in ("raw", "adapted")}, ["a_very_long_corruption_name"])
    boxes = [text.get_window_extent() for text in figure.texts]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width for box in boxes)
    first, second = (box for box, text in zip(boxes, texts(figure), strict=True) if name in text)
    assert first.x1 < second.x0


def test_image_grid_refuses_columns_of_another_length() -> None:
    with pytest.raises(ValueError, match="needs one picture for each label"):
        image_grid({"clean": [Picture(np.zeros((8, 8, 3), np.uint8))]}, ["fog", "snow"])


def test_sample_grid_tiles_row_by_row_on_white() -> None:
    images = np.stack([np.full((4, 6, 3), value, np.uint8) for value in (10, 20, 30)])
    grid = sample_grid(images, scale=2)
    assert grid.shape == (2 * (8 + 2) + 2, 2 * (12 + 2) + 2, 3)
    assert (grid[2:10, 2:14] == 10).all() and (grid[2:10, 16:28] == 20).all() and (grid[12:20, 2:14] == 30).all()
    assert (grid == 255).sum() == grid.size - 3 * 8 * 12 * 3
    assert sample_grid(images, columns=3).shape == (8, 26, 3)


@pytest.mark.parametrize("images", [np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4, 1), np.uint8), np.zeros((4, 4, 3), np.uint8)])
def test_sample_grid_refuses_other_arrays(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="needs"):
        sample_grid(images)


def test_saved_images_come_back_exactly_and_figures_have_the_same_bytes_again(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    save(image, tmp_path / "image.png")
    np.testing.assert_array_equal(decoded((tmp_path / "image.png").read_bytes()), image)
    for name in ("one.png", "two.png"):
        save(heat_map(sweep((5,))), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_plots_are_drawn_again_only_when_what_they_show_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row("a", "fog", 1, 0.5), row("a", "fog", 2, 0.6)]
    names = ["heat_map", "severity"]
    drawn: list[str] = []
    for name, function in (("heat_map", plots.heat_map), ("severity_plot", plots.severity_plot)):
        monkeypatch.setattr(plots, name, lambda given, name=name, function=function: drawn.append(name) or function(given))

    def drawn_for(given: list[Result]) -> list[str]:
        drawn.clear()
        save_plots(tmp_path, given, {})
        return [name.removesuffix("_plot") for name in drawn]

    assert drawn_for(rows) == names and drawn_for(rows) == []
    assert (tmp_path / "heat_map.png").read_bytes()[:4] == b"\x89PNG"
    other = [rows[0], dataclasses.replace(rows[1], accuracy=0.61)]
    assert drawn_for(other) == names and drawn_for(rows) == names
    whole = (tmp_path / "severity.png").read_bytes()
    for damage in (b"", whole[: len(whole) // 2], whole[:5000] + bytes(9) + whole[5009:], png_bytes(np.zeros((2, 2, 3), np.uint8))):
        (tmp_path / "severity.png").write_bytes(damage)
        assert drawn_for(rows) == ["severity"] and (tmp_path / "severity.png").read_bytes() == whole
    (tmp_path / "heat_map.png").unlink()
    assert drawn_for(rows) == ["heat_map"]
    monkeypatch.setattr("undegrade.evaluation.report.save_plots._code", lambda: b"other code")
    assert drawn_for(rows) == names
