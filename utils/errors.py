"""Mistakes of the user end a script with one line, not with a traceback."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from undegrade.utils.interruption import STATUS, Interrupted
from undegrade.utils.registry import include
from undegrade.utils.run_log import setup_logging

_MENDS = {  # of an answer of the operating system
    errno.ENOENT: "is not there",
    errno.EACCES: "may not be read or written by you: change its permissions, or name another one",
    errno.EPERM: "may not be changed by you: change its permissions, or name another one",
    errno.EROFS: "lies on a file system that is read only: name another one",
    errno.EISDIR: "is a folder, and a file is needed",
    errno.ENOTDIR: "is no folder, or lies below something that is a file",
    errno.EEXIST: "is there already: remove it, or name another one",
    errno.ENAMETOOLONG: "is a longer name than the file system takes: name a shorter one",
    errno.ENOSPC: "cannot be written, the disk is full: free some space, and start the same command again",
    errno.EDQUOT: "cannot be written, your quota is used up: free some space, and start the same command again",
}


class Stopped(RuntimeError):
    """A run ended early for a reason that its message gives in full; what was done before is
    kept.
    """


def run_main(main: Callable[[], object]) -> NoReturn:
    """Start a script and end the process: with the status that `main` returns if it is a number,
    else with 0. ValueError, OSError and Stopped become the line `error: ...` and status
    2 (UNDEGRADE_TRACEBACK=1: the traceback), an interruption that was saved status 75, another 130.
    """
    setup_logging()
    try:
        include(sys.argv)  # before the script makes its parser, which lists the options of all rows
        status = main()
    except Interrupted as reason:
        print(f"stopped: {reason}; {reason.go_on}", file=sys.stderr)
        sys.exit(STATUS)
    except BrokenPipeError:  # who reads has enough: `undegrade list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the end
        sys.exit(1)
    except (ValueError, OSError, Stopped) as error:
        if os.environ.get("UNDEGRADE_TRACEBACK"):
            raise
        print(f"error: {_words(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; nothing that was finished is lost", file=sys.stderr)
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def _words(error: Exception) -> str:
    """The message of an error; what the operating system answered as a sentence about the path."""
    if not isinstance(error, OSError) or error.errno is None or not error.strerror:
        return str(error)
    place = error.filename2 or error.filename
    said = _MENDS.get(error.errno, f"cannot be used: {error.strerror.lower()}") if place else error.strerror.lower()
    return f"{os.fsdecode(place)} {said}" if place else said
