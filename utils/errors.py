"""Mistakes of the user end a script with one line, not with a traceback."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


class Stopped(RuntimeError):
    """A run ended early for a reason that its message gives in full; what was done before is kept."""


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """ValueError, FileNotFoundError and Stopped become `error: ...` and exit status 2 (UNDEGRADE_TRACEBACK=1: the traceback)."""
    try:
        yield
    except (ValueError, FileNotFoundError, Stopped) as error:
        if os.environ.get("UNDEGRADE_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; nothing that was finished is lost", file=sys.stderr)
        sys.exit(130)
