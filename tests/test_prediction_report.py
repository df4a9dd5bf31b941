"""--predict --report: the page of labelled images, and WordNet classes in words."""

from __future__ import annotations

import base64
import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.browser import looks, needs_chromium
from tests.checkpoints import save_random
from tests.photo_like import photo_like, save_all
from tests.scripts import Done, run_script
from tests.test_report import Page
from undegrade.evaluation import prediction_report
from undegrade.evaluation.prediction_report import Labelled, write_prediction_report
from undegrade.evaluation.predictions import Prediction
from undegrade.evaluation.report.prediction_page import histogram
from undegrade.utils.data.sources.folders import plain_source

WORDNET = ("n01440764", "n02012849", "n03126707", "bee")
WORDS = {"n01440764": "tench", "n02012849": "crane (n02012849)", "n03126707": "crane (n03126707)", "bee": "bee"}
NAMES = [f"{number} <b>.png" for number in range(7)]
EVIL = "a very long name of a file that has no space in it ".replace(" ", "_") * 3 + ".png"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """What the command left: an ensemble of two random networks, one of which sees other images."""
    root = tmp_path_factory.mktemp("page")
    names = [*NAMES, EVIL]
    save_all(root / "photos", names, photo_like(len(names), 24))
    save_all(root / "adapted", names, photo_like(len(names), 24, seed=1))
    (root / "photos/broken.png").write_bytes(b"no image")
    (root / "adapted/broken.png").write_bytes(b"no image")
    for seed in (0, 1):
        save_random(root / f"{seed}.safetensors", seed, classes=WORDNET, image_size=16, resize=18)
    members = {"one": {"checkpoint": str(root / "0.safetensors")}, "two": {"checkpoint": str(root / "1.safetensors"), "view": "x"}}
    system = {"both": {"members": ["one", "two"], "rule": "sum"}}
    (root / "c.yaml").write_text(yaml.safe_dump({"members": members, "systems": system, "views": {"x": str(root / "adapted")}}))
    words = ("-c", root / "c.yaml", "--predict", root / "photos", "--top", 2, "--out", root / "p.csv")
    return root, run_script("test_ensemble.py", *words, "--report", root / "new/page.html")


def test_the_table_has_words_with_their_numbers_beside_them(done: tuple[Path, Done]) -> None:
    root, said = done
    with (root / "p.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "class", "wnid", "confidence", "class_2", "wnid_2", "confidence_2"]
    assert all(WORDS[row[f"wnid{place}"]] == row[f"class{place}"] for row in rows for place in ("", "_2"))
    head, *lines = said.out.splitlines()
    assert head.split() == ["class", "wnid", "images", "mean", "confidence"] and said.status == 1
    shown = {line[: head.index("wnid")].strip(): line[head.index("wnid") :].split()[0] for line in lines[:-2]}
    assert shown == {WORDS[row["wnid"]]: row["wnid"] for row in rows}
    assert said.out.endswith(f"report: {root}/new/page.html\n")


def test_the_page_shows_every_image_in_every_view_with_what_is_said_of_it(done: tuple[Path, Done]) -> None:
    root, _ = done
    page = Page((root / "new/page.html").read_text(encoding="utf-8"))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [image["alt"] for image in images] == [f"{name}, {view}" for name in [*NAMES, EVIL] for view in ("as it is", "x")]
    data = str(images[0]["src"]).removeprefix("data:image/png;base64,")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    seen = plain_source(root / "photos", 16, "raw", sorted((root / "photos").glob("0*")), None)
    assert pixels.shape == (16, 16, 3) and abs(int(pixels.mean()) - int(seen.images([0]).float().mean())) < 9
    rows = [attributes for tag, attributes in page.tags if tag == "tr" and "data-share" in attributes]
    with (root / "p.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(row["data-share"] or 0) for row in rows] == pytest.approx([float(row["confidence"]) for row in table], abs=1e-6)
    assert page.inside("b") == [row["class"] for row in table]
    assert "broken.png" in " ".join(page.inside("li")) and page.inside("h1") == ["8 images of photos"]
    text = (root / "new/page.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text and "http://" not in text and "https://" not in text


@needs_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_is_readable_at_every_width_and_filters(done: tuple[Path, Done], tmp_path: Path, dark: bool) -> None:
    ask = """(() => {
      const shown = () => [...document.querySelectorAll(".images tbody tr")].filter((row) => !row.hidden).length;
      const set = (id, value) => { const e = document.getElementById(id); e.value = value;
        e.dispatchEvent(new Event("input", { bubbles: true })); return shown(); };
      const found = [shown(), set("low", 99), set("low", 0), set("text", "0 <B>"), set("text", ""), set("members", "no")];
      set("members", "");
      set("order", "least");
      const shares = [...document.querySelectorAll(".images tbody tr")].map((row) => Number(row.dataset.share));
      return [found, shares, document.getElementById("count").textContent, getComputedStyle(document.body).backgroundColor];
    })()"""
    root, _ = done
    wide, narrow = looks(root / "new/page.html", tmp_path, dark=dark, ask=ask)
    for look, width in ((wide, 1280), (narrow, 390)):
        assert (look.width, look.scroll, look.wide, look.faint) == (width, width, [], [])
        found, shares, count, background = look.answer
        odd = (root / "new/page.html").read_text(encoding="utf-8").count('data-agrees="no"')
        assert found == [8, 0, 8, 1, 8, odd] and shares == sorted(shares) and count == "8 of 8 images"
        assert background == ("rgb(15, 19, 24)" if dark else "rgb(255, 255, 255)")
    assert "confidence" in narrow.text and "members disagree" in wide.text


def prediction(row: int, share: float, member: str, restored: bool | None = None) -> Prediction:
    return Prediction(f"{row}.png", [("cat", share)], restored, ["cat"], [("cat", 0.9), (member, 0.6)], row)


def test_of_many_images_the_doubtful_ones_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_all(tmp_path, [f"{number}.png" for number in range(5)], photo_like(5, 80))
    source = plain_source(tmp_path, 80, "raw")
    said = [prediction(0, 0.9, "cat"), prediction(1, 0.3, "cat"), prediction(2, 0.95, "dog"), prediction(3, 0.8, "cat")]
    monkeypatch.setattr(prediction_report, "SHOWN", 2)
    members = {"one": ("raw", source), "two": ("raw", source)}
    write_prediction_report(tmp_path / "p.html", Labelled(tmp_path, "S", "sum", members, said, [], len(said)))
    page = Page((tmp_path / "p.html").read_text(encoding="utf-8"))
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == ["1.png, as it is", "2.png, as it is"]
    assert any("shows 2 of 4 images" in text for text in page.inside("li"))
    assert "one: cat, 90 %" in page.inside("small") and "two: dog, 60 %" in page.inside("small")
    assert "its members disagree on 1." in page.inside("p")[0]
    assert page.inside("td")[-1] and "data:image/jpeg" in (tmp_path / "p.html").read_text(encoding="utf-8")


def test_a_gate_tells_which_way_each_image_went(tmp_path: Path) -> None:
    save_all(tmp_path, ["0.png", "1.png"], photo_like(2, 20))
    members = {"one": ("raw", plain_source(tmp_path, 20, "raw")), "two": ("adapted", plain_source(tmp_path, 20, "raw"))}
    said = [prediction(0, 0.9, "dog", True), prediction(1, 0.8, "cat", False)]
    write_prediction_report(tmp_path / "p.html", Labelled(tmp_path, "G", "gate", members, said, [], len(said)))
    text = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert re.findall(r'data-restored="(\w+)"', text) == ["yes", "no"] and "it restores 1 of 2 images" in text
    assert [word for word in Page(text).inside("span") if word in ("restored", "kept as it is")] == ["restored", "kept as it is"]


def test_the_histogram_counts_every_image_once() -> None:
    shares = [0.0, 0.049, 0.05, 0.5, 0.999, 1.0, 1.0]
    bars, ticks = histogram(shares, [False, True, False, False, True, False, False])
    counts = {bar.low: (bar.agree, bar.disagree) for bar in bars if bar.agree + bar.disagree}
    assert counts == {0: (1, 1), 5: (1, 0), 50: (1, 0), 95: (2, 1)}
    assert [count for count, _ in ticks] == [0, 1, 2, 3] and ticks[3][1] == pytest.approx(bars[-1].parts[1][0])
    assert [count for count, _ in histogram([0.1] * 4321, [False] * 4321)[1]] == [0, 2000, 4000, 6000]


def test_a_folder_is_no_report(tmp_path: Path) -> None:
    done = run_script("test.py", "-r", tmp_path / "none", "--report", tmp_path)
    assert done.status == 2 and f"--report {tmp_path} is a folder: name a file in it, such as {tmp_path}/report.html" in done.err
