"""Pieces of work: which are left, who holds which, and who gives no sign of life."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable
from typing import Any

WAIT = -1  # in the place of a number: nothing is left, but somebody may lose what it holds
_PATIENCE = 600.0  # seconds that are always granted
_FACTOR = 10  # times the slowest batch so far
_TRIES = 2  # ranks that may hang on a piece before it is given up


class Board:
    """The pieces 0..count-1 and the ranks that take them. Threads may share it.

    A rank gives a sign of life when it takes a piece, and with each batch. One that gives none for
    too long is silent: another rank gets its piece. When it comes back, it is a rank like any
    other, and what it made counts if nobody else was done before.

    Args:
        count: of the pieces.
        ranks: of the launch.
        timeout: seconds without a sign of life after which a rank is silent (None: ten times the
            slowest batch so far, at least ten minutes, and no limit until a batch is done).
        clock: gives the time, seconds.

    Attributes:
        count: of the pieces.
        images: done so far.
        silent: ranks without sign of life, and what they hold (None: nothing).
        results: of the pieces that are done, by number.
        stopped: why no more are given out; None while they are.
    """

    def __init__(self, count: int, ranks: int, timeout: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.count, self._timeout, self._clock = count, timeout, clock
        self._left = collections.deque(range(count))
        self._held: dict[int, int] = {}
        self._seen = dict.fromkeys(range(ranks), clock())  # ranks that work, and their last signs of life
        self._lost: collections.Counter[int] = collections.Counter()
        self._slowest = 0.0
        self._lock = threading.RLock()
        self.images = 0
        self.silent: dict[int, int | None] = {}
        self.results: dict[int, Any] = {}
        self.stopped: str | None = None

    @property
    def limit(self) -> float | None:
        """Seconds after which a rank is silent."""
        if self._timeout is not None:
            return self._timeout
        return max(_PATIENCE, _FACTOR * self._slowest) if self._slowest else None

    @property
    def done(self) -> bool:
        """Whether nothing is left to be waited for."""
        with self._lock:
            return not self._held and (self.stopped is not None or not self._left)

    def take(self, rank: int) -> int | None:
        """A piece for a rank; WAIT where it is to ask again; None at the end."""
        with self._lock:
            self._seen.pop(rank, None)
            self.silent.pop(rank, None)
            if self.done or self.stopped is not None:
                return None
            if not self._left:
                return WAIT
            self._seen[rank] = self._clock()
            self._held[rank] = self._left.popleft()
            return self._held[rank]

    def report(self, rank: int, images: int) -> None:
        """A rank finished a batch."""
        with self._lock:
            now = self._clock()
            if rank in self._seen:
                self._slowest = max(self._slowest, now - self._seen[rank])
                self._seen[rank] = now
                self.images += images

    def finish(self, rank: int, number: int, result: Any) -> None:
        """A rank finished its piece, or the part of it that it could when all were stopped."""
        with self._lock:
            self._seen.pop(rank, None)
            self._held.pop(rank, None)
            if number in self._left:
                self._left.remove(number)
            self.results.setdefault(number, result)

    def stop(self, reason: str) -> None:
        """Give out no more."""
        with self._lock:
            self.stopped = self.stopped or reason

    def find_silent(self) -> list[tuple[int, int | None]]:
        """Ranks that have become silent, and their pieces, which others get now."""
        with self._lock:
            limit, now = self.limit, self._clock()
            found = [rank for rank, seen in self._seen.items() if limit is not None and now - seen > limit]
            for rank in found:
                del self._seen[rank]
                number = self.silent[rank] = self._held.pop(rank, None)
                if number is not None and number not in self.results:
                    self._lost[number] += 1
                    if self._lost[number] < _TRIES:
                        self._left.appendleft(number)
            return [(rank, self.silent[rank]) for rank in found]
