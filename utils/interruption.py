"""Ending on purpose: by a signal of a scheduler, by the keyboard, or after the time that was given.

The work asks `Interruption.due` between steps, saves, and raises `Interrupted`; the script then
ends with the status 75 (`EX_TEMPFAIL` of sysexits.h): the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterator

STATUS = 75
_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


class Interrupted(RuntimeError):
    """The work was stopped on purpose, and what was done is kept; the message says why.

    Attributes:
        go_on: how, in words.
    """

    go_on = "the same command goes on from there"


def parse_duration(text: str) -> float:
    """Seconds of `3h50m`, `90s`, `2d`, `1.5h`, or of a number of seconds.

    Raises:
        ValueError: not of this form, or not positive.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([dhms]|$)", text.strip())
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        raise ValueError(f"duration {text!r}: write 3h50m, 90s, 2d or a number of seconds")
    seconds = sum(float(number) * _UNITS.get(unit, 1) for number, unit in parts)
    if seconds <= 0:
        raise ValueError(f"duration {text!r} must be longer than nothing")
    return seconds


class Interruption:
    """Whether it is time to stop, and why.

    Args:
        max_time: seconds from now, None for no limit.
    """

    def __init__(self, max_time: float | None = None) -> None:
        self._until = None if max_time is None else time.monotonic() + max_time
        self._max_time = max_time
        self._signal: str | None = None

    @property
    def due(self) -> bool:
        """Whether to stop at the next step."""
        return self.reason is not None

    @property
    def reason(self) -> str | None:
        """Why, in words; None while nothing asks for it."""
        if self._signal is not None:
            return f"{self._signal} was received"
        if self._until is not None and time.monotonic() >= self._until:
            return f"the {self._max_time:g} seconds of --max_time are over"
        return None

    @property
    def received(self) -> str | None:
        """Name of the signal that was received last."""
        return self._signal

    @contextlib.contextmanager
    def listening(self, *more: str) -> Iterator[Interruption]:
        """Within the block SIGTERM, SIGINT and SIGUSR1 are noted, and signals of `more` that are
        not ignored; a second SIGINT interrupts at once. Only the main thread can listen; elsewhere
        the block has no effect.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        heard = [name for name in more if signal.getsignal(getattr(signal, name, signal.SIGTERM)) != signal.SIG_IGN]
        names = [name for name in (*_SIGNALS, *heard) if hasattr(signal, name)]
        before = {name: signal.signal(getattr(signal, name), self._note) for name in names}
        try:
            yield self
        finally:
            for name, handler in before.items():
                signal.signal(getattr(signal, name), handler)

    def _note(self, number: int, frame: object) -> None:
        if self._signal == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = signal.Signals(number).name


def listen_to_parent_alone(*_: object) -> None:
    """For processes that make the batches of one that listens: a signal that everybody gets, as
    schedulers and launchers send it, must not end them before it. What the parent itself asks for
    is done, and nothing where the system cannot tell who asks.
    """
    if not hasattr(signal, "sigwaitinfo"):
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # here and in all threads that this one starts
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)
