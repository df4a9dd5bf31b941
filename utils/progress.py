"""Progress bars: redrawn in place on a terminal, a line a minute in a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

EVERY = 60.0  # seconds between lines


class _Lines(tqdm):
    """A bar that prints a line a minute, and one when it is closed: a bar redrawn in a file would
    fill it with itself.
    """

    disable: bool

    def __init__(self, *args: Any, **options: Any) -> None:
        self._said = time.monotonic()
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if time.monotonic() - self._said >= EVERY:
            self._say()

    def clear(self, nolock: bool = False) -> None:
        """Nothing: lines stay."""

    def close(self) -> None:
        if self.disable:
            return
        self._say()
        self.disable = True
        self._decr_instances(self)

    def _say(self) -> None:
        self._said = time.monotonic()
        print(self, file=self.fp, flush=True)


def progress_bar(items: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """A bar of tqdm on stderr, to be closed or used as a context; over `items`, or for `update`.

    Args:
        items: what is gone through.
        options: those of tqdm: total, initial, desc, unit, disable.
    """
    kind = tqdm if sys.stderr.isatty() else _Lines
    return kind(items, dynamic_ncols=True, mininterval=1.0, **options)
