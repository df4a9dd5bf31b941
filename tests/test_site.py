"""The leaderboard's pages, and published numbers beside ours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.browser import looks, needs_chromium
from tests.scripts import run_script
from undegrade.evaluation.leaderboard import AGREES, NOT_RUN, ledger, network_names, read_entries
from undegrade.evaluation.published import PublishedConfig
from undegrade.evaluation.result_files import write_json
from undegrade.evaluation.results import Result

SITE = "evaluation/site_command.py"
META = {"configuration": {"arch": "resnet50.tv_in1k"}, "images": 100, "systems": {}, "protocol": "mixed", "provenance": [
    {"commit": "0123456789abc", "dirty": True, "gpu": None, "cpu": "a processor", "libraries": {"torch": "2.14.1"}}]}  # fmt: skip


def results(folder: Path, *cells: tuple[str, str, int | None, float], dataset: str = "Imagenet") -> Path:
    """A results file of (system, corruption, severity, accuracy)."""
    rows = [Result(s, dataset, c, level, "first", 100, round(100 * a), a, a - 0.05, a + 0.05) for s, c, level, a in cells]
    folder.mkdir(parents=True)
    write_json(folder / "results.json", rows, META)
    return folder / "results.json"


@pytest.fixture
def found(tmp_path: Path) -> Path:
    cells = [("fog", 5, 0.5), ("snow", 5, 0.3), ("mean", 5, 0.4), ("clean", 0, 0.9)]
    return results(tmp_path / "runs/a", *(("DDA", *cell) for cell in cells), ("own <b>", "fog", 5, 0.6))


def test_a_system_has_its_mean_its_cells_and_what_made_it(found: Path) -> None:
    entry, other = read_entries(found)
    assert (other.row.accuracy, other.protocol) == (0.6, "fog, severity 5, mixed")
    assert (entry.row.accuracy, entry.clean, entry.network, entry.images) == (0.4, 0.9, "ResNet50", 100)
    assert entry.cells == {("fog", 5), ("snow", 5)} and entry.protocol == "fog, snow, severity 5, mixed"
    assert entry.made_by == "0123456789, changed, a processor, torch 2.14.1" and entry.cost is None
    (entry,) = read_entries(results(found.parent / "clean", ("x", "clean", 0, 0.7), dataset="Digits"))
    assert (entry.row.accuracy, entry.clean, entry.protocol) == (0.7, None, "clean images, mixed")
    assert network_names()["swin_tiny_patch4_window7_224.ms_in1k"] == network_names()["swinT_CIFAR"] == "swinT"


def test_the_ledger_tells_what_agrees_what_differs_and_what_was_not_run(found: Path) -> None:
    columns = {"fog": "Fog", "snow": "Snow"}
    rows = {"Imagenet ResNet50": {"DDA": {"mean": 37.0}}, "Imagenet swinT": {"DDA": {"mean": 40.0}, "SDA": {"fog": 1.0}}}
    config = PublishedConfig("a paper", columns, rows, [5])
    first, second, third = ledger(config, read_entries(found))
    assert (first.verdict, first.difference) == (AGREES, "ours on 100 of 50000 test images")
    assert (second.verdict, second.difference) == (NOT_RUN, "run on Imagenet ResNet50 only")
    assert (third.verdict, third.difference, third.published) == (NOT_RUN, "", 1.0)
    other = PublishedConfig("a paper", {"fog": "Fog"}, {"Imagenet ResNet50": {"DDA": {"fog": 46.2}}}, [1, 2])
    (line,) = ledger(other, read_entries(found))
    assert line.verdict == "-6.2 points"
    assert line.difference.startswith("ours is over fog, snow, published over fog; ours at severity 5, published at 1, 2; ours on")


def test_the_site_is_two_pages_that_need_nothing_else(found: Path, tmp_path: Path) -> None:
    (found.parent / "report.html").write_text("a report")
    (tmp_path / "runs/masks").mkdir()
    (tmp_path / "runs/masks/results.json").write_text('{"meta": {}, "rows": [{"system": "x"}]}')
    results(tmp_path / "runs/b", ("own <b>", "fog", 5, 0.6))
    out = tmp_path / "runs/site"
    for _ in range(2):  # the second time its own pages are there
        done = run_script(SITE, tmp_path / "runs", "--out", out, "--title", "Ours").check()
        assert "3 systems of 2 evaluations" in done.out and "is of masks or points" in done.err
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*.html")) == ["index.html", "ledger.html", "reports/001.html"]
    index, published = ((out / name).read_text() for name in ("index.html", "ledger.html"))
    assert "own &lt;b&gt;" in index and "40.0 <small>[35.0, 45.0]" in index and 'href="reports/001.html"' in index
    assert index.index("own &lt;b&gt;") < index.index(">DDA<")  # best first
    assert "prefers-color-scheme: dark" in index and not re.search(r"(src|href)=\"(https?:)?//", index + published)
    assert published.count("not run here") > 20 and published.count("<h2>") == 4
    assert "+10.3 points" in published and "ours is over fog, snow, published over 15 corruptions" in published


def test_what_cannot_be_shown_is_named(tmp_path: Path) -> None:
    done = run_script(SITE, tmp_path / "runs", "--out", tmp_path / "site")
    assert done.status == 2 and f"folder {tmp_path}/runs does not exist" in done.err
    (tmp_path / "runs").mkdir()
    done = run_script(SITE, tmp_path / "runs", "--out", tmp_path / "site")
    assert done.status == 2 and f"no results.json below {tmp_path}/runs" in done.err


@needs_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("page", ["index", "ledger"])
def test_the_pages_are_readable_at_every_width(found: Path, tmp_path: Path, page: str, dark: bool) -> None:
    run_script(SITE, tmp_path / "runs", "--out", tmp_path / "site").check()
    for look, width in zip(looks(tmp_path / "site" / f"{page}.html", tmp_path, dark=dark), (1280, 390), strict=True):
        assert (look.width, look.scroll, look.wide, look.faint) == (width, width, [], [])
