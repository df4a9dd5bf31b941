"""Which images of a large set can be decoded, before an evaluation says of how many it is."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from undegrade.utils.data.sources.folders import say_broken
from undegrade.utils.data.sources.image_source import Broken, ImageSource
from undegrade.utils.data.sources.images import FileSlice
from undegrade.utils.files import read_texts, write_atomic
from undegrade.utils.progress import progress_bar

_AT_ONCE = 32  # images that a thread decodes at a time


def without_broken(source: ImageSource, folder: Path | None) -> ImageSource:
    """The source without images that cannot be decoded, which are named and counted.

    Args:
        source: that decodes its files when it is read; others are returned as they are.
        folder: where `broken-<digest>.json` remembers what was found, so that files of the same
            names, sizes and times are decoded for this once only; None to remember nothing.

    Raises:
        ValueError: none can be decoded.
    """
    if source.files is None or source.in_memory or source.listing_of is not None:
        return source
    path = folder and folder / f"broken-{_digest(source)}.json"
    if path and path.is_file():
        broken = [Broken(*entry) for entry in read_texts(path, "remove it, and all images are decoded once more").items()]
    else:
        broken = _broken(source)
        if path:
            write_atomic(path, json.dumps(dict(broken)))
    say_broken([entry.reason for entry in broken], len(source))
    gone = {entry.key for entry in broken}
    return source.subset([row for row, key in enumerate(source.keys) if key not in gone]) if gone else source


def _broken(source: ImageSource) -> list[Broken]:
    steps = [list(range(start, min(start + _AT_ONCE, len(source)))) for start in range(0, len(source), _AT_ONCE)]
    broken = []
    with (
        ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool,
        progress_bar(total=len(source), unit="img", desc=f"decoding {source.name} once") as bar,
    ):
        for rows, (_, _, bad) in zip(steps, pool.map(source.readable, steps), strict=True):
            broken += bad
            bar.update(len(rows))
    return broken


def _digest(source: ImageSource) -> str:
    assert source.files is not None
    digest = hashlib.sha256(source.frame.encode())
    for key, file in zip(source.keys, source.files, strict=True):
        path = file.path if isinstance(file, FileSlice) else file
        try:
            found = os.stat(path)
            state = f"{found.st_size} {found.st_mtime_ns}"
        except OSError as error:
            state = str(error.errno)
        digest.update(f"{key}\t{os.fspath(path)}\t{state}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]
