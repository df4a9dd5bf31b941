"""Paths and names from outside: whether they lie inside the folder that they may speak of, and how
they are shown and written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path


def inside(folder: str | Path, name: str | Path, where: str = "") -> Path:
    """The path `name` below `folder`; links are followed on both sides.

    Args:
        folder: that must not be left.
        name: relative path, as a manifest, a list or an image key has it.
        where: what names it, for the message.

    Raises:
        ValueError: absolute, or a path that leaves the folder, by `..` or by a link.
    """
    path = Path(folder) / name
    root = Path(folder).resolve()
    if Path(name).is_absolute() or not path.resolve().is_relative_to(root) or path.resolve() == root:
        raise ValueError(
            f"{f'{where}: ' if where else ''}the path {str(name)!r} would leave the output folder {folder}: it must lie inside"
        )
    return path


def utf8(name: str) -> str:
    r"""A file name as text that can be hashed and written: bytes that are not UTF-8 become `\xe9`.

    What is text stays as it is, so that a file of the new name has that name.
    """
    return name if name.isascii() else re.sub("[\udc80-\udcff]", lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", name)


def escaped(name: object) -> str:
    """The text of a name, or of a message that holds one, for people: control characters and bytes
    that are not UTF-8 as backslash escapes, so that it is one line that every terminal shows.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in utf8(str(name)))


def few(lines: Sequence[str], most: int = 20) -> str:
    """The first lines of a long list, indented, and how many more there are: for messages."""
    return "\n  ".join([*lines[:most], *([f"... and {len(lines) - most} more"] if len(lines) > most else [])])
