"""A lock on a folder, so that two launches never write into it at once."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

LOCK = ".lock"  # in the folder
_STALE = 120.0  # seconds without a sign of life after which a holder on another host is given up


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold the folder for the block; the same process may not hold it twice.

    A lock whose process is gone is taken over: of this host by its process number, of another one
    when its file was not touched for two minutes (`touch` it now and then: `renew`).

    Args:
        folder: is made if it is not there.
        what: the work, for the message that another launch is shown.

    Raises:
        ValueError: somebody else holds it; names who.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    holder = {"host": socket.gethostname(), "process": os.getpid(), "what": what, "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    while True:
        try:
            with path.open("x", encoding="utf-8") as file:
                json.dump(holder, file)
            break
        except FileExistsError:
            found = _holder(path)
            if found is not None:
                raise ValueError(
                    f"{folder} is in use: process {found.get('process', '?')} on {found.get('host', '?')} writes there since "
                    f"{found.get('since', '?')} ({found.get('what', '?')}); wait for it, choose another folder, or, if that "
                    f"process is gone, remove {path}"
                ) from None
            path.unlink(missing_ok=True)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def renew(folder: Path) -> None:
    """A sign of life of the holder, for launches on other hosts."""
    with contextlib.suppress(OSError):
        os.utime(folder / LOCK)


def _holder(path: Path) -> dict[str, object] | None:
    """Who holds a lock; None where nobody does any more."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return None
    except ValueError:  # cut short by a kill
        return None if time.time() - path.stat().st_mtime > 1 else {}
    if holder.get("host") != socket.gethostname():
        return None if age > _STALE else holder
    try:
        os.kill(int(holder["process"]), 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # somebody else's process
        pass
    return holder
