"""A lock on a folder, so that two launches never write into it at once."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

LOCK = ".lock"  # in the folder
_RENEW = 20.0  # seconds between signs of life of a holder
_STALE = 120.0  # seconds without one after which a holder on another host is given up


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold the folder for the block; the same process may not hold it twice.

    A lock whose process is gone is taken over: of this host by its process number and start, of
    another one when it gave no sign of life for two minutes (the holder gives one every 20
    seconds).

    Args:
        folder: is made if it is not there.
        what: the work, for the message that another launch is shown.

    Raises:
        ValueError: somebody else holds it; names who.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    own = {"host": socket.gethostname(), "process": os.getpid(), "started": _start_of(os.getpid())}
    text = json.dumps({**own, "what": what, "since": time.strftime("%Y-%m-%d %H:%M:%S"), "token": secrets.token_hex(8)})
    while not _create(path, text):
        found = _read(path)
        if found is None:
            continue  # it was given back meanwhile
        if _alive(path, found):
            who = _parse(found)
            raise ValueError(
                f"{folder} is in use: process {who.get('process', '?')} on {who.get('host', '?')} writes there since "
                f"{who.get('since', '?')} ({who.get('what', '?')}); wait for it, choose another folder, or, if that "
                f"process is gone, remove {path}"
            )
        _remove(path, found)
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(path, ended), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        _remove(path, text)


def _create(path: Path, text: str) -> bool:
    """Write the lock in one step; False when there is one. Its content is never half there."""
    temporary = path.with_name(f"{LOCK}.{secrets.token_hex(8)}.tmp")
    temporary.write_text(text, encoding="utf-8")
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True


def _remove(path: Path, text: str) -> None:
    """Remove the lock if it still is the one with this content, and not somebody's new one."""
    taken = path.with_name(f"{LOCK}.{secrets.token_hex(8)}.tmp")
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, taken)
        if _read(taken) != text:
            with contextlib.suppress(FileExistsError):
                os.link(taken, path)
        taken.unlink()


def _renew(path: Path, ended: threading.Event) -> None:
    while not ended.wait(_RENEW):
        with contextlib.suppress(OSError):
            os.utime(path)


def _read(path: Path) -> str | None:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(encoding="utf-8", errors="replace")
    return None


def _parse(text: str) -> dict[str, object]:
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(text)
        if isinstance(found, dict):
            return found
    return {}


def _alive(path: Path, text: str) -> bool:
    """Whether the holder of a lock still works."""
    holder = _parse(text)
    process = holder.get("process")
    if holder.get("host") == socket.gethostname() and isinstance(process, int):
        start = _start_of(process)
        return start is not None and (not start or holder.get("started") in (None, "", start))
    with contextlib.suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime <= _STALE
    return False


def _start_of(process: int) -> str | None:
    """What tells a process of this host from a later one of the same number ("" where the system
    does not say it); None when it has ended, even if its parent has not taken notice.
    """
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # somebody else's process
        pass
    with contextlib.suppress(OSError):  # Linux
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    return ""
