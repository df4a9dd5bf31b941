"""Files that are written in one step."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from safetensors import SafetensorError

from undegrade.utils.files import read_lines, replacing, write_atomic


def test_a_full_disk_is_said_with_the_file_and_leaves_what_was_there(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", "old")
    full = OSError(errno.ENOSPC, "No space left on device")  # of a write: without the name of its file
    with mock.patch.object(Path, "write_bytes", side_effect=full), pytest.raises(OSError, match=f"No space left.*{tmp_path / 'a'}"):
        write_atomic(tmp_path / "a", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def _fill_by_safetensors() -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def _fill_by_torch() -> None:
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError:  # as PyTorch's writer answers while it closes its file
        raise RuntimeError("unexpected pos 800832 vs 800784")  # noqa: B904


@pytest.mark.parametrize("fill", [_fill_by_safetensors, _fill_by_torch])
def test_a_full_disk_is_said_alike_where_a_library_says_it_in_its_own_way(fill: Callable[[], None], tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"No space left on device.*{tmp_path / 'a'}") as caught, replacing(tmp_path / "a"):
        fill()
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(RuntimeError, match="another"), replacing(tmp_path / "a"):
        raise RuntimeError("another")


def test_a_list_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"cat\n\xe9toile\n")
    with pytest.raises(ValueError, match=r"list.txt is not UTF-8 .* at byte 4"):
        read_lines(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text(" a \n\nb\n")
    assert read_lines(tmp_path / "list.txt") == ["a", "b"]
