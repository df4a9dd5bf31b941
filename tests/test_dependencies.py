"""Which package may import which, where command lines are read, and how long a file may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENTRIES = ("train", "train_all_deg", "test", "test_ensemble")
ALLOWED = {
    "utils": {"utils"},
    "models": {"utils", "models"},
    "trainers": {"utils", "models", "trainers"},
    "image_adapt": {"utils", "models", "image_adapt"},
    "evaluation": {"utils", "models", "evaluation"},
    "undegrade": {"utils", "models", "trainers", "image_adapt", "evaluation", "undegrade"},
    "benchmarks": {"utils", "models", "trainers", "image_adapt", "evaluation", "benchmarks"},
}
PACKAGES = tuple(ALLOWED)
SOURCES = sorted(p.relative_to(ROOT) for p in [*ROOT.glob("*.py"), *(f for name in PACKAGES for f in (ROOT / name).rglob("*.py"))])
EXEMPT = {Path("utils/model_soups.py")}  # an entry that lies in utils, since its command names it there
READ_COMMAND_LINES = {
    Path("trainers/entry.py"), Path("evaluation/command_line.py"), Path("evaluation/checkpoint_command.py"),
    Path("evaluation/ensemble_command.py"), Path("utils/pipeline.py"), Path("utils/command_line.py"), Path("utils/completion.py"),
    Path("undegrade/export_command.py"),
    Path("benchmarks/__main__.py"), Path("benchmarks/scaling.py"), Path("benchmarks/tta_parity.py"),
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


def test_every_folder_of_the_project_with_code_is_looked_at() -> None:
    folders = {p.relative_to(ROOT).parts[0] for p in ROOT.glob("*/**/*.py") if not p.relative_to(ROOT).parts[0].startswith(".")}
    assert folders - {"tests", "runs", "data", "build"} == set(PACKAGES)
    assert "undegrade.utils.config" in set(imported(Path("utils/pipeline.py")))


@pytest.mark.parametrize("path", [p for p in SOURCES if p not in EXEMPT], ids=str)
def test_packages_import_only_those_below_them_and_by_their_full_name(path: Path) -> None:
    names = set(imported(path))
    bare = {name for name in names if name.split(".")[0] in {*ALLOWED, "tests"} - {"undegrade", "benchmarks"}}
    assert not bare, f"{path} imports {sorted(bare)}: write undegrade.<package>"
    parts = [name.split(".") for name in names if name.split(".")[0] == "undegrade"]
    rooms = {part[1] if part[1:] and part[1] in PACKAGES else "undegrade" for part in parts}  # or a module of undegrade/ itself
    project = rooms | {name for name in names if name.split(".")[0] == "benchmarks"} & {"benchmarks"}
    allowed = ALLOWED.get(path.parts[0], ALLOWED["undegrade"])
    assert project <= allowed, f"{path} may import {sorted(allowed)} of the project's packages"


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_command_lines_are_read_by_entries_and_their_parser_alone(path: Path) -> None:
    if path not in READ_COMMAND_LINES and path.parts[:2] != ("image_adapt", "scripts"):
        assert "argparse" not in set(imported(path)), f"{path} reads a command line: that is the job of an entry"


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_files_stay_short(path: Path) -> None:
    lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{path} has {lines} lines: split it"
