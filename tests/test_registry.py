"""Rows of this project and of others by name."""

from __future__ import annotations

import logging
import sys
from importlib import metadata
from pathlib import Path
from unittest import mock

import pytest

from undegrade.utils.registry import Registry, include


def test_a_row_is_found_by_its_name() -> None:
    rows: Registry[int] = Registry("thing", "undegrade.things")
    assert rows.add("one", 1) == 1
    assert rows["one"] == rows.get_row("one") == 1
    assert list(rows) == ["one"]


def test_an_unknown_name_is_refused_with_the_closest() -> None:
    rows: Registry[int] = Registry("thing", "undegrade.things")
    rows.add("median", 1)
    with pytest.raises(ValueError, match="unknown thing 'medain'.*did you mean 'median'"):
        rows.get_row("medain")


def test_two_rows_of_one_name_are_refused_and_both_origins_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: Registry[int] = Registry("thing", "undegrade.things")
    rows.add("one", 1)
    rows.add("one", 2)  # the same module again, as in a notebook
    monkeypatch.setattr(sys, "things_for_the_test", rows, raising=False)
    (tmp_path / "their_things.py").write_text("import sys\nsys.things_for_the_test.add('one', 3)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="tests.test_registry.*their_things"):
        include(["--include", "their_things"])
    assert rows["one"] == 2


def test_entry_points_add_rows_and_one_that_fails_is_named_while_the_rest_works(caplog: pytest.LogCaptureFixture) -> None:
    rows: Registry[int] = Registry("thing", "undegrade.things")
    points = [
        metadata.EntryPoint("broken", "no_such_module_of_theirs", "undegrade.things"),
        metadata.EntryPoint("theirs", "their_rows", "undegrade.things"),
    ]
    module = mock.MagicMock()

    def load(name: str) -> object:
        if name == "their_rows":
            rows.add("theirs", 7)
            return module
        raise ModuleNotFoundError(f"No module named {name!r}")

    with (
        mock.patch("undegrade.utils.registry.entry_points", return_value=points),
        mock.patch("importlib.metadata.import_module", side_effect=load),
        caplog.at_level(logging.WARNING),
    ):
        assert rows["theirs"] == 7
    assert "broken" in caplog.text and "no_such_module_of_theirs" in caplog.text


def test_an_entry_point_with_the_name_of_another_row_is_refused_too() -> None:
    rows: Registry[int] = Registry("thing", "undegrade.things")
    exec("rows.add('one', 1)", {"__name__": "module_of_ours", "rows": rows})
    points = [metadata.EntryPoint("one", "their_rows", "undegrade.things")]
    with (
        mock.patch("undegrade.utils.registry.entry_points", return_value=points),
        mock.patch("importlib.metadata.import_module", side_effect=lambda name: rows.add("one", 2)),
        pytest.raises(ValueError, match="one is of module_of_ours, one of tests.test_registry"),
    ):
        list(rows)


@pytest.mark.parametrize("words", [["--include", "-r", "runs/x"], ["--include"], ["--include="], ["--include", "--dt", "jpeg"]])
def test_include_takes_no_option_for_its_value(words: list[str]) -> None:
    with pytest.raises(ValueError, match="option --include has no value: name modules, joined by commas"):
        include(words)


@pytest.mark.parametrize("words", [["--include", "missing_module_of_mine"], ["--include=missing_module_of_mine"]])
def test_a_module_that_cannot_be_included_is_named(words: list[str]) -> None:
    with pytest.raises(ValueError, match="missing_module_of_mine"):
        include(words)
