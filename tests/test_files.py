"""Files that are written in one step."""

from __future__ import annotations

import errno
from pathlib import Path
from unittest import mock

import pytest

from undegrade.utils.files import write_atomic


def test_a_full_disk_is_said_with_the_file_and_leaves_what_was_there(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", "old")
    full = OSError(errno.ENOSPC, "No space left on device")  # of a write: without the name of its file
    with mock.patch.object(Path, "write_bytes", side_effect=full), pytest.raises(OSError, match=f"No space left.*{tmp_path / 'a'}"):
        write_atomic(tmp_path / "a", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]
