"""Progress bars in files, and beside lines of the log."""

from __future__ import annotations

import io
import logging
import time

import pytest

from undegrade.utils import progress
from undegrade.utils.progress import progress_bar
from undegrade.utils.run_log import setup_logging


def test_in_a_file_a_bar_is_a_line_a_minute_and_one_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now, file = [0.0], io.StringIO()
    monkeypatch.setattr("sys.stderr", file)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    setup_logging()
    with progress_bar(total=300, unit="img", desc="scoring") as bar:
        for second in range(150):
            now[0] = float(second)
            bar.update(2)
            bar.set_postfix(loss=second)
            if second == 100:
                logging.getLogger("x").info("a line of the log")
    lines = file.getvalue().splitlines()
    assert [line.split("|")[0].split(":")[0] for line in lines] == ["scoring", "a line of the log", "scoring", "scoring"]
    assert "\r" not in file.getvalue() and "300/300" in lines[-1] and "loss=149" in lines[-1]


def test_a_bar_that_is_not_shown_prints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", file := io.StringIO())
    assert list(progress_bar([1, 2], disable=True)) == [1, 2] and not file.getvalue()
    assert list(progress_bar([1, 2], desc="x")) == [1, 2] and file.getvalue().startswith("x: 100%")


def test_on_a_terminal_a_bar_is_redrawn_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    file.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", file)
    bar = progress_bar(total=2)
    assert not isinstance(bar, progress._Lines)
    bar.close()
    assert "\r" in file.getvalue()
