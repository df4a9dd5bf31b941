"""Any damage of a file that is read back gives what is right in it, or one line that names the
file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from undegrade.models.diffusion.diffusers_folder import read_json
from undegrade.utils.checkpoint import read_description, save_checkpoint
from undegrade.utils.data.manifest import MANIFEST, SETTINGS, read_manifest, read_settings
from undegrade.utils.files import read_texts
from undegrade.utils.run_log import read_rows, write_rows

ROWS = [{"key": f"c/{i}", "file": f"c/{i}.png", "size": i, "level": [0.5, i], "digest": "0" * 16} for i in range(3)]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=4) | st.just("../../x.png"),
    lambda below: st.lists(below, max_size=2) | st.dictionaries(st.text(max_size=3), below, max_size=2),
    max_leaves=4,
)


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """What befalls a file: it ends early, bytes are replaced, a line is another or there twice."""
    kind, at, length = draw(st.integers(0, 3)), draw(st.floats(0, 1)), draw(st.integers(0, 30))
    written = draw(st.binary(max_size=30)) if draw(st.booleans()) else json.dumps(draw(VALUES)).encode()

    def damaged(content: bytes) -> bytes:
        start, lines = int(at * len(content)), content.splitlines(keepends=True)
        line = min(int(at * len(lines)), len(lines) - 1)
        if kind == 0:
            return content[:start]
        if kind == 1:
            return content[:start] + written + content[start + length :]
        return b"".join([*lines[:line], written + b"\n" if kind == 2 else lines[line], *lines[line + (kind == 2) :]])

    return damaged


def spoilt(path: Path, how: Callable[[bytes], bytes], read: Callable[[], Any]) -> Any:
    """What is read of the damaged file; None where it is refused in one line that names it."""
    path.write_bytes(how(path.read_bytes()))
    try:
        return read()
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return None


@given(how=damage())
def test_a_damaged_manifest(tmp_path: Path, how: Callable[[bytes], bytes]) -> None:
    write_rows(tmp_path / MANIFEST, ROWS)
    rows = spoilt(tmp_path / MANIFEST, how, lambda: read_manifest(tmp_path)) or []
    assert len({row["key"] for row in rows}) == len(rows)
    for row in rows:
        assert (tmp_path / row["file"]).resolve().is_relative_to(tmp_path.resolve())
        assert row.get("size", 0) >= 0


@given(row=st.fixed_dictionaries({}, optional=dict.fromkeys(("key", "file", "offset", "size", "level", "error"), VALUES)))
def test_a_line_of_a_manifest_with_any_values(tmp_path: Path, row: dict[str, Any]) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps(row) + "\n")
    rows = spoilt(tmp_path / MANIFEST, lambda content: content, lambda: read_manifest(tmp_path))
    assert rows in (None, [], [row])


@given(how=damage())
def test_damaged_settings(tmp_path: Path, how: Callable[[bytes], bytes]) -> None:
    (tmp_path / SETTINGS).write_text(json.dumps({"adapter": "dda", "parameters": {"start_step": 50}}, indent=1))
    assert isinstance(spoilt(tmp_path / SETTINGS, how, lambda: read_settings(tmp_path)), dict | None)


@given(how=damage())
def test_a_damaged_log_of_epochs(tmp_path: Path, how: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "metrics.jsonl"
    write_rows(path, [{"epoch": epoch, "loss": 0.5} for epoch in range(3)])
    rows = spoilt(path, how, lambda: read_rows(path, "epoch")) or []
    assert all(isinstance(row["epoch"], int) for row in rows)


@given(how=damage())
def test_a_damaged_description_of_a_checkpoint(tmp_path: Path, how: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, {"w": torch.ones(3)}, {"kind": "classifier", "arch": "ResNet20", "classes": ["a", "b"]})
    assert isinstance(spoilt(path, how, lambda: read_description(path)), dict | None)


@given(how=damage())
def test_a_damaged_configuration_of_diffusers(tmp_path: Path, how: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"_class_name": "UNet2DModel", "sample_size": 32}, indent=1))
    assert isinstance(spoilt(path, how, lambda: read_json(path)), dict | None)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "\x00", "é".encode("latin-1").decode("latin-1")])
def test_json_that_is_too_deep_or_no_text(tmp_path: Path, text: str) -> None:
    for name, read in ((MANIFEST, read_manifest), (SETTINGS, read_settings)):
        (tmp_path / name).write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match=name):
            read(tmp_path)
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"config\.json"):
        read_json(tmp_path / "config.json")


@given(how=damage())
def test_a_damaged_note_of_broken_images(tmp_path: Path, how: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "broken.json"
    path.write_text(json.dumps({"c/1": "truncated", "c/2": "no image"}, indent=1))
    found = spoilt(path, how, lambda: read_texts(path, "remove it")) or {}
    assert all(isinstance(reason, str) for reason in found.values())
