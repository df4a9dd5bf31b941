"""The HTML report: self-contained, escaped, complete. Parsed with the standard library's parser."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from undegrade.evaluation.report.html import write_report
from undegrade.evaluation.report.plots import heat_map
from undegrade.evaluation.results import Result
from undegrade.utils.figures import png_bytes

VOID = {"meta", "img", "input"}


class Page(HTMLParser):
    """Checks nesting; collects (tag, attributes) and the text within each tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.append((self.open[-1], data.strip()))

    def inside(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


def row(system: str, corruption: str, accuracy: float) -> Result:
    correct = round(accuracy * 100)
    return Result(system, "Digits", corruption, 5, "single", 100, correct, accuracy, accuracy - 0.02, accuracy + 0.03)


ROWS = [
    row("clean", "gaussian_noise", 0.5),
    row("clean", "mean", 0.5),
    row("DDA", "gaussian_noise", 0.6),
    row("DDA", "mean", 0.6),
]


def report(path: Path, **changes: Any) -> Page:
    parts: dict[str, Any] = {
        "title": "T", "summary": "S", "rows": ROWS, "figures": {}, "configs": {}, "provenance": {}, "notes": [],
    }  # fmt: skip
    write_report(path / "r.html", **(parts | changes))
    return Page((path / "r.html").read_text(encoding="utf-8"))


def test_report_holds_headline_table_intervals_and_best_cells(tmp_path: Path) -> None:
    page = report(tmp_path, title="DDA on Digits", summary="DDA reaches 60.0 %.")
    assert page.inside("h1") == ["DDA on Digits"]
    assert "DDA reaches 60.0 %." in page.inside("p")
    assert page.inside("th") == ["corruption", "clean", "DDA", "gaussian noise", "mean"]
    assert page.inside("td") == ["50.0", "60.0", "50.0", "60.0"]
    assert page.inside("b") == ["50.0 %", "60.0 %"]  # the means in large print
    assert page.inside("small") == ["48.0 – 53.0", "58.0 – 63.0"] * 3
    assert [attributes.get("class") for tag, attributes in page.tags if tag == "td"] == [None, "best"] * 2
    tiles = [attributes["class"] for tag, attributes in page.tags if tag == "div"][1:3]
    assert tiles == ["tile", "tile best"]
    assert [attributes for tag, attributes in page.tags if tag == "tr"][-1] == {"class": "mean"}


def test_report_embeds_figures_arrays_and_png_bytes_with_their_captions(tmp_path: Path) -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    figures = {"a figure": heat_map(ROWS), "an array": image, "bytes": png_bytes(image)}
    page = report(tmp_path, figures=figures)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [attributes["alt"] for attributes in images] == page.inside("figcaption") == list(figures)
    data = [base64.b64decode(str(attributes["src"]).removeprefix("data:image/png;base64,")) for attributes in images]
    assert data == [png_bytes(heat_map(ROWS)), png_bytes(image), png_bytes(image)]


def test_report_escapes_every_text_it_is_given(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&"
    page = report(
        tmp_path,
        title=evil,
        summary=evil,
        rows=[row(evil, evil, 0.5), row(evil, "mean", 0.5)],
        figures={evil: np.zeros((4, 4, 3), np.uint8)},
        configs={evil: evil},
        provenance={evil: {evil: [evil]}},
        notes=[evil],
    )
    assert "script" not in {tag for tag, _ in page.tags}
    for tag in ("title", "h1", "p", "th", "figcaption", "summary", "pre", "td", "li", "div"):
        assert any(evil in text for text in page.inside(tag)), tag
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == [evil]


def test_report_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = report(tmp_path, figures={"f": np.zeros((4, 4, 3), np.uint8)}, configs={"c": "a: 1"})
    assert not {"script", "link", "iframe", "object", "a"} & {tag for tag, _ in page.tags}
    text = (tmp_path / "r.html").read_text()
    assert "http" not in text and "url(" not in text and "@import" not in text


def test_report_folds_configs_and_writes_provenance_as_words(tmp_path: Path) -> None:
    facts = {
        "commit": None,
        "dirty": True,
        "seconds": 12.34567,
        "versions": {"torch": "2.15", "numpy": "2.4"},
        "seeds": [0, 1],
    }
    page = report(tmp_path, configs={"dda.yaml": "steps: 50\n  weight: 6"}, provenance=facts)
    assert page.inside("summary") == ["dda.yaml"] and page.inside("pre") == ["steps: 50\n  weight: 6"]
    assert page.inside("td")[-5:] == ["–", "yes", "12.35", "torch 2.15, numpy 2.4", "0, 1"]


def test_sections_without_content_are_left_out(tmp_path: Path) -> None:
    assert report(tmp_path).inside("h2") == ["Accuracy"]
    full = report(tmp_path, notes=["n"], configs={"c": "d"}, provenance={"e": 1}, figures={"f": np.zeros((2, 2, 3), np.uint8)})
    assert full.inside("h2") == ["Accuracy", "Figures", "Notes", "Configuration", "Provenance"]


def test_missing_cells_are_dashes_and_rows_without_a_mean_have_no_large_print(tmp_path: Path) -> None:
    page = report(tmp_path, rows=[row("clean", "fog", 0.5), row("DDA", "snow", 0.6)])
    assert page.inside("td") == ["50.0", "–", "–", "60.0"]
    assert page.inside("b") == []


def test_report_refuses_pictures_that_are_no_png_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="picture of figure 'f' starts with b'GIF89a'"):
        report(tmp_path, figures={"f": b"GIF89a"})
    assert list(tmp_path.iterdir()) == []
