"""Paths that a file names stay inside the folder that it may speak of."""

from __future__ import annotations

from pathlib import Path

import pytest

from undegrade.utils.paths import few, inside


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", ".", "link/x"])
def test_paths_that_leave_their_folder_are_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="would leave the output folder"):
        inside(folder, name, "a manifest")
    assert inside(folder, "a/b.png") == folder / "a/b.png"


def test_long_lists_end_with_how_many_more_there_are() -> None:
    assert few(["a", "b"]) == "a\n  b" and few(list("abcde"), 2) == "a\n  b\n  ... and 3 more"
