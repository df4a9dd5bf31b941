"""Mistakes of the user end a script with one line, not with a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from undegrade.utils.interruption import STATUS, Interrupted
from undegrade.utils.registry import include
from undegrade.utils.run_log import setup_logging


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
    except (ValueError, OSError, Stopped) as error:
        if os.environ.get("UNDEGRADE_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; nothing that was finished is lost", file=sys.stderr)
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)
