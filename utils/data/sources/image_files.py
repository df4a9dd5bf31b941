"""Which files of a folder are images: by their suffix, links followed; and what is left out, by
kinds.

Hidden files and folders, and files that belong to a data set or to adapted images, are passed over.
The names of the others become keys that no two share, nor the files that are written under them.
"""

from __future__ import annotations

import collections
import functools
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from undegrade.utils.data.sources.images import IMAGE_SUFFIXES
from undegrade.utils.paths import escaped, utf8

log = logging.getLogger(__name__)

Kinds = collections.Counter[str]  # number of files left out, by their kind

# class maps, labels, and what adaptation writes beside its images
_KNOWN = ("classes.txt", "val_labels.txt", "val_annotations.txt", "_boxes.txt", "LOC_val_solution.csv", "labels.npy",
          "manifest.jsonl", "settings.json", "provenance.jsonl")  # fmt: skip
_WRITTEN = (".png", ".jpeg", ".jpg")  # suffixes of files that are written under a key
_SHOWN = 8  # kinds in a message


def list_images(folder: Path) -> list[Path]:
    """Image files below `folder` in sorted order; a line in the log says what was left out."""
    found, left_out = find_images(folder)
    say_left_out(folder, left_out)
    return found


def find_images(folder: Path) -> tuple[list[Path], Kinds]:
    """Image files below `folder` in sorted order, and what else is there. A link into one of its
    own parents is not followed.
    """
    found, left_out = [], Kinds()
    start = (str(folder), (os.path.realpath(folder),))
    waiting: list[tuple[str, tuple[str, ...]]] = [start] if folder.is_dir() else []
    while waiting:
        place, parents = waiting.pop()
        for entry in entries_of(place, left_out):
            if entry.is_dir():
                inner = os.path.realpath(entry.path) if entry.is_symlink() else f"{parents[-1]}/{entry.name}"
                if inner in parents:
                    left_out["link to a parent folder"] += 1
                else:
                    waiting.append((entry.path, (*parents, inner)))
            else:
                found.append(Path(entry.path))
    return sorted(found), left_out


def entries_of(place: str, left_out: Kinds) -> Iterator[os.DirEntry[str]]:
    """The folders and the image files in a folder, in no order; the rest is counted in
    `left_out`.
    """
    with os.scandir(place) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                wanted = entry.is_dir() or (entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file())
            except OSError:  # a link to itself
                wanted = False
            if wanted:
                yield entry
            elif not entry.name.endswith(_KNOWN):
                left_out[_kind(entry)] += 1


def _kind(entry: os.DirEntry[str]) -> str:
    if not os.path.isfile(entry.path):
        return "no regular file" if os.path.exists(entry.path) else "dangling link"
    return escaped(os.path.splitext(entry.name)[1].lower()) or "without suffix"


@functools.cache  # once for each folder: the parts of a data set are opened several times
def _say(line: str) -> None:
    log.warning(line)


def say_left_out(folder: str | Path, left_out: Kinds) -> None:
    """One line on what was left out below a folder; none where nothing was."""
    if left_out:
        kinds = [f"{count} {kind}" for kind, count in sorted(left_out.items(), key=lambda item: (-item[1], item[0]))]
        more = f", and {len(kinds) - _SHOWN} other kinds" if len(kinds) > _SHOWN else ""
        _say(f"left out {left_out.total()} files below {escaped(folder)}: {', '.join(kinds[:_SHOWN])}{more}")


def found_at(path: Path) -> str:
    """For messages: what the folder `path`, or the closest parent that exists, holds."""
    folder = next(p for p in (path.resolve(), *path.resolve().parents) if p.is_dir())
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())
    more = f", ... ({len(names)} in all)" if len(names) > 8 else ""
    return f"{folder} holds {', '.join(names[:8]) or 'nothing'}{more}"


def keys_of(names: Sequence[str]) -> list[str]:
    """Keys of image files: their relative paths without suffix, as UTF-8.

    With it where two would have the same key, or where a file written under the key, such as
    `c.png`, would have the name of a folder of other keys, such as `c.png/x`. In the rare case that
    this does not help, underscores follow. The key of an adapted image is that of its original.
    """
    names = [utf8(name) for name in names]
    keys, added = [os.path.splitext(name)[0] for name in names], [-1] * len(names)
    folders = {parent for name in {name.rpartition("/")[0] for name in names} for parent in _with_parents(name)}
    blocked = {folder.removesuffix(suffix) for folder in folders for suffix in _WRITTEN if folder.endswith(suffix)}
    while len(set(keys)) < len(keys) or not blocked.isdisjoint(keys):
        rows: dict[str, list[int]] = {}
        for row, key in enumerate(keys):
            rows.setdefault(key, []).append(row)
        for key, group in rows.items():
            if key in blocked or len(group) > 1:
                plain = [row for row in group if added[row] < 0]
                for row in plain or group[key not in blocked :]:  # one may keep a key that no folder takes
                    added[row] += 1
                    keys[row] = names[row] + "_" * added[row]
    return keys


def _with_parents(folder: str) -> Iterator[str]:
    while folder:
        yield folder
        folder = os.path.dirname(folder)
