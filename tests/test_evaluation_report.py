"""The report of an evaluation: the pictures are of the system in the headline, and a browser shows
it whole.
"""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml

from tests.browser import looks, needs_chromium
from tests.checkpoints import save_random
from tests.scoring import logits_by_hand
from tests.scripts import run_script
from undegrade.evaluation.report.html import write_report
from undegrade.evaluation.report.plots import heat_map, severity_plot
from undegrade.evaluation.report.plots_pictures import Picture, image_grid
from undegrade.evaluation.results import Result
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.sources.registry import SourceConfig
from undegrade.utils.data.views import open_view

CELLS = [Cell("gaussian_noise", 5), Cell("fog", 5)]


def test_pictures_are_of_the_system_in_the_headline_and_mark_the_true_class(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        save_random(tmp_path / f"{seed}.safetensors", seed, image_size=32)
    members = {f"m{seed}": {"checkpoint": str(tmp_path / f"{seed}.safetensors")} for seed in (0, 1, 2)}
    systems = {"alone": {"members": ["m0"]}, "pair": {"members": ["m1", "m2"], "rule": "sum"}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"members": members, "systems": systems, "data": {"dataset": "Digits"}}))
    words = ("-c", tmp_path / "c.yaml", "--corruption", "gaussian_noise,fog", "--severity", 5, "--limit", 20)
    with mock.patch("undegrade.evaluation.write_report.image_grid", side_effect=image_grid) as grid:
        run_script("test_ensemble.py", *words, "--out", tmp_path / "out", "--report", tmp_path / "r.html").check()
    rows = json.loads((tmp_path / "out/results.json").read_text())["rows"]
    means = {row["system"]: row["accuracy"] for row in rows if row["corruption"] == "mean"}
    best = max(means, key=lambda name: means[name])
    columns, labels = grid.call_args[0]
    assert list(columns) == ["clean", "corrupted", f"{best} says"]
    source = SourceConfig("Digits", limit=20).open("test")
    used = [int(name[1:]) for name in systems[best]["members"]]  # type: ignore[index]
    for place, (cell, pick) in enumerate(zip(CELLS, (0, 7), strict=True)):
        image = open_view("raw", source, 0).source(cell).images([pick])
        logits = [logits_by_hand(tmp_path / f"{number}.safetensors", image) for number in used]
        said, true = int(sum(each.softmax(1) for each in logits).argmax()), int(source.labels[pick])  # type: ignore[union-attr]
        assert (columns[f"{best} says"][place].text, columns[f"{best} says"][place].right) == (str(said), said == true)
        alone = ", ".join(str(int(each.argmax())) for each in logits) if len(used) > 1 else ""
        assert columns["corrupted"][place].text == alone and columns["clean"][place].text == str(true)
        assert torch.equal(torch.from_numpy(columns["clean"][place].image), source.images([pick])[0].permute(1, 2, 0))
        assert labels[place].endswith(f"true: {true}")


def result(system: str, corruption: str, accuracy: float) -> Result:
    return Result(system, "Digits", corruption, 5, "single", 100, round(100 * accuracy), accuracy, accuracy - 0.1, accuracy + 0.05)


@needs_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_report_is_readable_at_every_width(tmp_path: Path, dark: bool) -> None:
    systems = [f"a system with the number {number}" for number in range(12)]
    rows = [result(name, cell, 0.5) for name in systems for cell in ("fog", "elastic_transform", "mean")]
    figures = {"heat": heat_map(rows), "bars": severity_plot(rows)}
    facts = {"command": "python test.py " + 40 * "--a_word ", "commit": "a" * 120, "library": None}
    page = {"title": "T" * 80, "summary": "S " * 90, "rows": rows, "figures": figures, "configs": {"c": "a: " + "b" * 300}}
    write_report(tmp_path / "r.html", provenance=facts, notes=["n" * 200], **page)  # type: ignore[arg-type]
    for look, width in zip(looks(tmp_path / "r.html", tmp_path, dark=dark), (1280, 390), strict=True):
        assert (look.width, look.scroll, look.wide, look.faint) == (width, width, [], [])


def test_no_title_of_a_small_heat_map_is_cut() -> None:
    rows = [result(name, cell, 0.5) for name in ("a", "b") for cell in ("fog", "snow", "frost")]
    rows += [result(name, "mean", 0.5) for name in ("a", "b")]
    for few in (rows, [result("a", "fog", 0.5)]):
        figure = heat_map(few)
        figure.canvas.draw()
        boxes = [text.get_window_extent() for text in (figure._suptitle, *figure.axes[0].get_xticklabels())]  # type: ignore[attr-defined]
        assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height for box in boxes)
        assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("corruption", "system")


def test_bars_of_more_systems_than_colours_are_told_apart() -> None:
    rows = [result(f"system {number}", cell, 0.5) for number in range(20) for cell in ("fog", "snow")]
    handles, _ = severity_plot(rows).axes[0].get_legend_handles_labels()
    assert len({(handle[0].get_facecolor(), handle[0].get_hatch()) for handle in handles}) == 20


def test_axes_say_what_levels_are() -> None:
    fog = [result("a", "fog", 0.5), Result("a", "Digits", "fog", 3, "single", 9, 3, 1 / 3, 0.2, 0.5)]
    jpeg = [Result("a", "Digits", "jpeg", level, "single", 9, 3, 1 / 3, 0.2, 0.5) for level in (10, 90)]
    assert severity_plot(fog).get_supxlabel() == "severity"
    assert severity_plot(jpeg).get_supxlabel() == "JPEG quality, 4:2:0 chroma"
    assert [axes.get_xlabel() for axes in severity_plot([*fog, *jpeg]).axes] == ["severity", "JPEG quality, 4:2:0 chroma"]


def test_a_text_alone_is_a_picture_of_a_grid_but_not_all_of_it() -> None:
    image = torch.zeros(8, 8, 3, dtype=torch.uint8).numpy()
    figure = image_grid({"seen": [Picture(image)], "says": [Picture(None, "cat", True)]}, ["fog"])
    assert len(figure.axes) == 1 and "✓ cat" in [text.get_text() for text in figure.texts]
    with pytest.raises(ValueError, match="needs one picture for each label"):
        image_grid({"says": [Picture(None, "cat")]}, ["fog"])
