"""The tutorial's blocks run, one after the other."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from pathlib import Path

import pytest

from tests.api import demo_runs
from tests.scripts import ROOT


def test_the_blocks_of_the_tutorial_run_in_one_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8"), re.DOTALL)
    demo_runs(tmp_path / "runs/demo/models")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    session: dict[str, object] = {}
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        for block in blocks:
            exec(compile(block, "tutorial", "exec"), session)
    assert len(blocks) == 7
    assert "(32, 32, 3) uint8" in out.getvalue()
    assert (tmp_path / "adapted.png").is_file()
    assert [*session["table"].corruption] == ["clean", "gaussian_noise", "fog", "mean"]  # type: ignore[attr-defined]
