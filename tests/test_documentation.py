"""The README is short; links, anchors and paths in documents lead somewhere; its numbers are those
of the pages behind it; the site has every page.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.api import demo_runs
from tests.documents import blocks_of
from tests.scripts import ROOT
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.figures import save

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted((ROOT / "docs").rglob("*.md"))
BESIDE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")]
DOCUMENTS = [*BESIDE, *PAGES]
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def prose(text: str) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def links(path: Path) -> Iterator[tuple[str, str]]:
    """(text, target) of the links and pictures of a document that lead into the repository."""
    for mark, text, target in LINK.findall(prose(path.read_text(encoding="utf-8"))):
        if not target.startswith(("http://", "https://")):
            yield f"{mark}{text}", target


def anchors(path: Path) -> set[str]:
    """Those of a document's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", prose(path.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- links


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_to_files_and_headings(path: Path) -> None:
    for text, target in links(path):
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"[{text}]({target}): no such file"
        assert not anchor or anchor in anchors(there), f"[{text}]({target}): no such heading"
        if path in PAGES:
            assert there.is_relative_to(ROOT / "docs"), f"[{text}]({target}) leads out of the site: name the file instead"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_pictures_say_what_they_show_and_are_small(path: Path) -> None:
    for text, target in links(path):
        if text.startswith("!"):
            assert len(text) > 20, f"{target} has no text for those who do not see it"
            assert (path.parent / target).stat().st_size < 150_000


def test_pages_that_are_named_anywhere_are_there() -> None:
    kinds = ("*.py", "*.yaml", "*.yml", "*.toml", "*.md", "*.j2", "*.sh", "Makefile", "Dockerfile")
    folders = [
        "benchmarks",
        "configs",
        "docker",
        "docs",
        "evaluation",
        "image_adapt",
        "models",
        "tests",
        "trainers",
        "undegrade",
        "utils",
    ]
    files = [path for kind in kinds for path in [*ROOT.glob(kind), *(p for f in folders for p in (ROOT / f).rglob(kind))]]
    named = {name: path for path in files for name in re.findall(r"\bdocs/[\w/]+\.md", path.read_text(encoding="utf-8"))}
    assert len(named) > 15
    assert {name: name_of(path) for name, path in named.items() if not (ROOT / name).is_file()} == {}


# --- README


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150
    assert len(README) <= 10_000


@pytest.mark.parametrize("name", ["README.md", "docs/choosing.md", "docs/results/index.md"])
def test_numbers_of_overviews_are_those_of_the_pages_behind_them(name: str) -> None:
    behind = [path for place in ("results", "systems") for path in (ROOT / "docs" / place).glob("*.md") if name_of(path) != name]
    known = {number for path in behind for number in re.findall(r"\d+\.\d+", path.read_text(encoding="utf-8"))}
    numbers = re.findall(
        r"\d+\.\d+", re.sub(r"Python \d\.\d+|alpha: [\d.]+|max_loss [\d.]+", "", (ROOT / name).read_text(encoding="utf-8"))
    )
    assert [number for number in numbers if number not in known] == []


def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    predict, rule = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)
    assert rule in blocks_of("extending/rule.md", "python")  # which test_predictors.py runs
    assert predict in blocks_of("label.md", "python")
    demo_runs(tmp_path / "runs/demo/models")
    (tmp_path / "scans").mkdir()
    save(open_source("Digits", "test").images([0])[0].permute(1, 2, 0).numpy(), tmp_path / "scans/seven.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(predict, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("seven.png ['")


# --- the site


def site() -> dict:
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def pages_of(nav: object) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:  # type: ignore[attr-defined]
            yield from pages_of(entry)


def test_the_site_has_every_page_once() -> None:
    assert sorted(pages_of(site()["nav"])) == sorted(path.relative_to(ROOT / "docs").as_posix() for path in PAGES)


def test_the_functions_for_python_are_all_described() -> None:
    import undegrade

    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: undegrade\.(\w+)$", text, re.M)) == sorted(undegrade.__all__)


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed: make docs brings it")
def test_the_site_is_built_without_warnings_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        words, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(PAGES)
    loaded = r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=[\"']?(?:https?:)?//[^\"'> ]+"
    assert {found for page in pages for found in re.findall(loaded, page.read_text(encoding="utf-8"))} == set()
    assert "BatchNorm" in (tmp_path / "search/search_index.json").read_text(encoding="utf-8")
    assert 'id="undegrade.load"' in (tmp_path / "api.html").read_text(encoding="utf-8")


# --- citations and forms


def test_citation_file_and_bibtex_name_the_same_papers() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    papers = {one["title"]: [f"{a['family-names']}, {a['given-names']}" for a in one["authors"]] for one in cited["references"]}
    text = (ROOT / "docs/citing.md").read_text(encoding="utf-8")
    titles = re.findall(r"^  title\s+= \{(.*)\},?$", text, re.M)
    authors = [names.split(" and ") for names in re.findall(r"^  author\s+= \{(.*)\},?$", text, re.M)]
    assert dict(zip(titles, authors, strict=True)) == papers and len(papers) == 6
    assert (cited["cff-version"], cited["type"], cited["license"]) == ("1.2.0", "software", "MIT")
    (version,) = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    assert cited["version"] == version


def test_forms_of_issues_are_whole() -> None:
    forms = [path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"]
    assert len(forms) == 3
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= set(form)
        names = [field["id"] for field in form["body"]]
        assert len(names) == len(set(names)) and all(
            field["attributes"]["label"] for field in form["body"] if field["type"] != "checkboxes"
        )


def test_hooks_before_a_commit_are_the_tools_of_make_lint() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert [hook["entry"].split("/")[-1] for hook in hooks] == [
        "ruff check --force-exclude",
        "ruff format --force-exclude",
        "make types",
    ]
    assert re.search(r"^types: ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
