"""Whether a path that a file or a key names lies inside the output folder that it may speak of."""

from __future__ import annotations

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
