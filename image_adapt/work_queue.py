"""Work that ranks take piece by piece: who is free takes the next, so that a slow rank or a hard
image holds nobody up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from undegrade.image_adapt.mpi import World

_ASK, _GRANT = 1, 2  # tags
_PAUSE = 0.002  # seconds between looks at what other ranks ask; a piece of work takes far longer


def dequeue(world: World, count: int, waiting: Callable[[], None] = lambda: None) -> Iterator[int]:
    """Numbers of 0..count-1, each given to one rank, ascending on each; all ranks call this
    together, and go on to the end.

    The first rank hands them out from a thread of its own while it works. Another rank asks when it
    is free and waits for some milliseconds: a number asked for in advance would wait for a slow
    rank at the end, where pieces are large. Where the MPI library does not allow threads, rank r
    takes r, r + size, ...

    Args:
        world: all ranks.
        count: of the pieces.
        waiting: the first rank calls it now and then once it has nothing left to do while others
            still work.
    """
    if world.size == 1:
        yield from range(count)
        return
    from mpi4py import MPI

    if world.broadcast(MPI.Query_thread()) < MPI.THREAD_MULTIPLE:
        yield from range(world.rank, count, world.size)
        return
    channel = world.communicator.Dup()  # its messages meet no others
    yield from _hand_out(channel, count, waiting) if world.rank == 0 else _ask(channel)
    channel.Free()


def _hand_out(channel: Any, count: int, waiting: Callable[[], None]) -> Iterator[int]:
    numbers, lock = iter(range(count)), threading.Lock()
    failures: list[BaseException] = []

    def take() -> int | None:
        if failures:
            raise failures[0]  # the other ranks wait for an answer: this one ends them all
        with lock:
            return next(numbers, None)

    def serve() -> None:
        asking = channel.Get_size() - 1  # ranks that have not been told that nothing is left
        try:
            while asking:
                if not channel.iprobe(tag=_ASK):
                    time.sleep(_PAUSE)
                    continue
                rank = channel.recv(tag=_ASK)
                number = take()
                channel.send(number, dest=rank, tag=_GRANT)
                asking -= number is None
        except BaseException as failure:  # noqa: BLE001  raised by the rank's own thread
            failures.append(failure)

    thread = threading.Thread(target=serve, name="work queue", daemon=True)  # a failure of this rank must not wait for it
    thread.start()
    while (number := take()) is not None:
        yield number
    while thread.is_alive():
        thread.join(0.1)
        waiting()
    take()


def _ask(channel: Any) -> Iterator[int]:
    def take() -> int | None:
        channel.send(channel.Get_rank(), dest=0, tag=_ASK)
        return channel.recv(source=0, tag=_GRANT)

    while (number := take()) is not None:
        yield number
