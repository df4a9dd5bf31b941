"""Which package may import which, where command lines are read, and how long a file may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("utils", "models", "trainers", "image_adapt", "benchmarks")
ENTRIES = ("train", "train_all_deg", "test", "test_ensemble")
SOURCES = sorted(p.relative_to(ROOT) for p in [*ROOT.glob("*.py"), *(f for name in PACKAGES for f in (ROOT / name).rglob("*.py"))])
ALLOWED = {
    "utils": {"utils"},
    "models": {"utils", "models"},
    "trainers": {"utils", "models", "trainers"},
    "image_adapt": {"utils", "models", "image_adapt"},
    "benchmarks": {"utils", "models", "trainers", "image_adapt", "benchmarks"},
}
EXEMPT = {Path("utils/model_soups.py")}  # an entry that lies in utils, since its command names it there
READ_COMMAND_LINES = {
    *(Path(f"{entry}.py") for entry in ENTRIES), Path("trainers/entry.py"), Path("trainers/evaluation_entry.py"),
    Path("utils/pipeline.py"), Path("utils/model_soups.py"), Path("utils/command_line.py"),
    Path("benchmarks/__main__.py"), Path("benchmarks/scaling.py"),
}  # fmt: skip
MAX_LINES = 320


def imported(path: Path) -> Iterator[str]:
    """Dotted names of all modules that a file imports, at any place in it."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.module or ""


def test_every_package_is_looked_at() -> None:
    assert {path.parts[0] for path in SOURCES} >= set(PACKAGES)
    assert "utils.config" in set(imported(Path("utils/pipeline.py")))


@pytest.mark.parametrize("path", [p for p in SOURCES if p.parts[0] in ALLOWED and p not in EXEMPT], ids=str)
def test_packages_import_only_those_below_them(path: Path) -> None:
    project = {name.split(".")[0] for name in imported(path)} & {*PACKAGES, *ENTRIES, "tests"}
    assert project <= ALLOWED[path.parts[0]], f"{path} may import {sorted(ALLOWED[path.parts[0]])} of the project's packages"


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_command_lines_are_read_by_entries_and_their_parser_alone(path: Path) -> None:
    if path not in READ_COMMAND_LINES and path.parts[:2] != ("image_adapt", "scripts"):
        assert "argparse" not in set(imported(path)), f"{path} reads a command line: that is the job of an entry"


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_files_stay_short(path: Path) -> None:
    lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{path} has {lines} lines: split it"
