"""What lies beside adapted images: settings.json, how they were made, manifest.jsonl, a line an
image, and provenance.jsonl, a line a launch.

The first two may come from strangers: whatever they hold is checked before it is used.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from undegrade.utils.files import parse_json, read_object
from undegrade.utils.paths import inside

MANIFEST = "manifest.jsonl"
SETTINGS = "settings.json"
PROVENANCE = "provenance.jsonl"


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """The lines of the images that are there, each with at least `key` and `file`, a path below
    `folder`; none where there is no manifest. Lines of images that could not be made are left out.

    Raises:
        ValueError: a line that is no such line, a key that is there twice, a file outside `folder`;
            names file, line and mend.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return []
    rows: dict[str, dict[str, Any]] = {}
    parents: set[str] = set()  # known to lie inside: each is looked at once
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        where = f"{path}, line {number}"
        row = parse_json(line, where, _MEND)
        if isinstance(row, dict) and "error" in row:
            continue
        mistake = _mistake(row) or (f"the key {row['key']!r} is there twice" if row["key"] in rows else "")
        if mistake:
            raise ValueError(f"{where}: {mistake}; {_MEND}")
        parent, _, name = row["file"].rpartition("/")
        if parent not in parents or name in ("", ".", ".."):
            inside(folder, row["file"], where)
            parents.add(parent)
        rows[row["key"]] = row
    if len({"offset" in row for row in rows.values()}) > 1:
        raise ValueError(f"{path}: some lines have an offset in a shard, others have none; {_MEND}")
    return list(rows.values())


_MEND = "remove the manifest, and the command that made the images writes it anew"


def read_settings(folder: Path) -> dict[str, Any]:
    """How the images were made; {} where nothing says it.

    Raises:
        ValueError: damaged; names the file and the mend.
    """
    path = folder / SETTINGS
    if not path.is_file():
        return {}
    return read_object(path, "make the images anew, with --overwrite true")


def _mistake(row: Any) -> str:
    """What is wrong with a line; "" if nothing is."""
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) and row[name] for name in ("key", "file")):
        return "expected an object with the texts key and file"
    wrong = [name for name in ("offset", "size") if name in row and not (type(row[name]) is int and row[name] >= 0)]
    if wrong:
        return f"{wrong[0]} {row[wrong[0]]!r} is no number of bytes"
    level = row.get("level")
    levels = level if isinstance(level, list) else [] if level is None else [level]
    if not all(type(entry) in (int, float) and math.isfinite(entry) for entry in levels):
        return f"level {level!r} is no number"
    return ""
