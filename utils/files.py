"""Writing a file so that a reader never meets half of it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_atomic(path: str | os.PathLike[str], data: str | bytes) -> None:
    """Write `data` to `path` in one step: `path` holds the old or the new content, never a part.

    The data goes to a uniquely named file in the same folder (several processes, also on several hosts, may write
    the same `path`: the last one wins), which then takes the place of `path`. Missing parent folders are created.

    Args:
        path: the file to write or replace.
        data: text (written as UTF-8, line ends unchanged) or bytes.

    Raises:
        OSError: the folder cannot be written; no temporary file is left behind.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile.mkstemp: it makes files that only their owner can read, which breaks results shared on a cluster.
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
