"""Work that ranks take piece by piece: who is free takes the next, so that a slow rank or a hard
image holds nobody up, and a rank that hangs loses its piece to another.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from undegrade.image_adapt.board import WAIT, Board
from undegrade.image_adapt.launch import LaunchOptions
from undegrade.image_adapt.mpi import World
from undegrade.utils.interruption import Interruption

log = logging.getLogger(__name__)

_SAY, _GRANT = 1, 2  # tags: to the first rank, from it
_PAUSE = 0.002  # seconds between looks at what other ranks say; a piece of work takes far longer

Work = Callable[[int, Callable[[int], bool]], Any]


def distribute(
    world: World,
    names: list[str],
    work: Work,
    options: LaunchOptions,
    progress: Callable[[int], None] = lambda images: None,
) -> Board | None:
    """Do pieces of work, each on one rank, in ascending order on each; all ranks call this
    together. It ends when all are done, when an interruption is due on some rank, or when what is
    left is held by ranks that hang.

    The first rank hands them out from a thread of its own while it works. Another rank asks when it
    is free and waits for some milliseconds: a number asked for in advance would wait for a slow
    rank at the end, where pieces are large. Where the MPI library does not allow threads, rank r
    takes r, r + size, ..., and a rank that hangs is not noticed.

    Args:
        world: all ranks.
        names: of the pieces, for messages.
        work: does the piece of a number, and returns what becomes of it. Its second argument is to
            be called after each batch with the number of its images; False: end the piece early.
        options: of the launch.
        progress: the first rank calls it now and then with the number of images that are done.

    Returns:
        On the first rank the board at its end, None on others.
    """
    board = Board(len(names), world.size, options.rank_timeout)
    if world.size > 1:
        from mpi4py import MPI

        if world.broadcast(MPI.Query_thread()) >= MPI.THREAD_MULTIPLE:
            channel = world.communicator.Dup()  # its messages meet no others
            hosts = world.gather(socket.gethostname())
            if hosts is None:
                _follow(channel, work, options.interruption)
                return None
            _lead(channel, board, names, hosts, work, options.interruption, progress)
            return board
    return _fixed_share(world, board, work, options.interruption, progress)


def _fixed_share(
    world: World, board: Board, work: Work, interruption: Interruption, progress: Callable[[int], None]
) -> Board | None:
    def goes_on(images: int) -> bool:
        board.report(world.rank, images)
        progress(board.images)
        return not interruption.due

    results = []
    for number in range(world.rank, board.count, world.size):
        if interruption.due:
            break
        results.append((number, work(number, goes_on)))
    reasons = world.gather(interruption.reason)
    for part in world.gather(results) or []:
        for number, result in part:
            board.finish(world.rank, number, result)
    if any(reasons or ()):
        board.stop(next(reason for reason in reasons or () if reason))
    return board if world.rank == 0 else None


def _lead(
    channel: Any,
    board: Board,
    names: list[str],
    hosts: list[str],
    work: Work,
    interruption: Interruption,
    progress: Callable[[int], None],
) -> None:
    """What the first rank does: a thread listens to the others, gives them pieces, and watches."""
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            _serve(channel, board, names, hosts, interruption)
        except BaseException as failure:  # noqa: BLE001  raised by the rank's own thread
            failures.append(failure)

    def goes_on(images: int) -> bool:
        board.report(0, images)
        progress(board.images)
        return not (failures or board.stopped or interruption.due)

    thread = threading.Thread(target=serve, name="work queue", daemon=True)  # a failure of this rank must not wait for it
    thread.start()
    while not failures and (number := board.take(0)) is not None:
        if number == WAIT:
            time.sleep(_PAUSE)
            progress(board.images)
        else:
            board.finish(0, number, work(number, goes_on))
    while thread.is_alive():
        thread.join(0.1)
        progress(board.images)
    if failures:
        raise failures[0]  # the other ranks wait for an answer: this one ends them all


def _serve(channel: Any, board: Board, names: list[str], hosts: list[str], interruption: Interruption) -> None:
    others = set(range(1, channel.Get_size()))
    asking: set[int] = set()
    told: set[int] = set()  # that it is the end; who works then finishes its batch and asks once more
    ended: set[int] = set()
    sent: list[Any] = []
    while not (board.done and others <= ended | board.silent.keys()):
        if interruption.reason:
            board.stop(interruption.reason)
        heard = _listen(channel, board, asking)
        for rank, number in board.find_silent():
            held = "it holds nothing" if number is None else f"it holds {names[number]}, which another rank makes"
            log.error("rank %d on %s has given no sign of life for %.0f s: %s", rank, hosts[rank], board.limit, held)
        for rank in others - told if board.stopped else ():
            sent.append(channel.isend(None, dest=rank, tag=_GRANT))  # a rank that hangs does not receive it
            told.add(rank)
        for rank in sorted(asking):
            number = board.take(rank)
            if number == WAIT:
                continue
            if rank not in told:
                channel.send(number, dest=rank, tag=_GRANT)
            if number is None:
                told.add(rank)
                ended.add(rank)
            asking.discard(rank)
        if board.done and 0 in board.silent and others <= ended | board.silent.keys():
            _end_all(channel, "the first rank hangs: all that others could make is made, the same command goes on from there")
        if not heard:
            time.sleep(_PAUSE)


def _listen(channel: Any, board: Board, asking: set[int]) -> bool:
    """Take in what other ranks have said; whether there was anything."""
    heard = False
    while channel.iprobe(tag=_SAY):
        heard = True
        rank, images, finished, reason = channel.recv(tag=_SAY)
        if images is not None:
            board.report(rank, images)
        elif reason is not None:
            board.stop(reason)
        else:
            if finished is not None:
                board.finish(rank, *finished)
            asking.add(rank)
    return heard


def _end_all(channel: Any, why: str) -> None:
    log.error("error: %s", why)
    time.sleep(0.5)  # launchers drop what they have not passed on when they are told to end
    channel.Abort(2)
    os._exit(2)


def _follow(channel: Any, work: Work, interruption: Interruption) -> None:
    """What another rank does."""
    rank = channel.Get_rank()

    def say(images: int | None = None, finished: tuple[int, Any] | None = None, reason: str | None = None) -> None:
        channel.send((rank, images, finished, reason), dest=0, tag=_SAY)

    def goes_on(images: int) -> bool:
        say(images)
        return not (interruption.due or channel.iprobe(source=0, tag=_GRANT))

    finished = None
    while True:
        if interruption.reason:
            say(reason=interruption.reason)
        say(finished=finished)
        told = interruption.due
        while not channel.iprobe(source=0, tag=_GRANT):
            if interruption.reason and not told:
                told = True
                say(reason=interruption.reason)
            time.sleep(_PAUSE)
        number = channel.recv(source=0, tag=_GRANT)
        if number is None:
            return
        finished = (number, work(number, goes_on))
