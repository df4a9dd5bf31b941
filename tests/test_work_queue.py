"""Pieces of work that MPI ranks take in turn."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time

import pytest

from tests.scripts import Done, launch, program
from undegrade.image_adapt.board import WAIT, Board
from undegrade.image_adapt.launch import LaunchOptions
from undegrade.image_adapt.mpi import World
from undegrade.image_adapt.work_queue import _lead, distribute
from undegrade.utils.interruption import Interruption

MPIEXEC = program("mpiexec")
needs_mpiexec = pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec beside this Python or on the PATH: pip install mpich")
# each piece is two batches; rank 1 works for as long as is said, the others for 10 ms
WORK = """
import json, os, signal, sys, time
from undegrade.image_adapt.launch import LaunchOptions
from undegrade.image_adapt.mpi import connect
from undegrade.image_adapt.work_queue import distribute
from undegrade.utils.interruption import Interruption
world, count, seconds, interrupted = connect(), int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
timeout = float(sys.argv[4]) if len(sys.argv) > 4 else None
def work(number, goes_on):
    for batch in range(2):
        time.sleep(seconds if world.rank == 1 else 0.01)
        if world.rank == interrupted and number >= 5:
            os.kill(os.getpid(), signal.SIGUSR1)
        if not goes_on(1):
            break
    return world.rank, batch + 1
with Interruption().listening() as interruption:
    board = distribute(world, [f"piece {n}" for n in range(count)], work, LaunchOptions(False, interruption, timeout))
if world.rank == 0:
    print(json.dumps({name: getattr(board, name) for name in ("results", "stopped", "silent", "images")}), flush=True)
    if board.silent:
        world.communicator.Abort(3)
"""


def shared_by(ranks: int, count: int, seconds: float, interrupted: int = -1, *more: object) -> tuple[dict, Done]:
    done = launch(MPIEXEC, "-n", ranks, sys.executable, "-c", WORK, count, seconds, interrupted, *more, timeout=120)
    return json.loads(next(line for line in done.out.splitlines() if line.startswith("{"))), done


# --- the board


def test_pieces_are_given_out_in_their_order_and_the_end_is_said_when_all_are_done() -> None:
    board = Board(2, 2)
    assert (board.take(0), board.take(1), board.take(0)) == (0, 1, WAIT)
    board.report(1, 5)
    board.finish(1, 1, "b")
    assert board.take(0) == 0 or board.take(0) == WAIT
    board.finish(0, 0, "a")
    assert board.take(0) is board.take(1) is None and board.done
    assert board.results == {0: "a", 1: "b"} and board.images == 5


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_piece_of_a_silent_rank_is_given_to_another_and_counts_once() -> None:
    clock = Clock()
    board = Board(3, 3, 20, clock)
    assert [board.take(rank) for rank in range(3)] == [0, 1, 2]
    clock.now = 15
    board.report(0, 4)
    board.finish(2, 2, "c")
    assert board.take(2) == WAIT
    clock.now = 21
    assert board.find_silent() == [(1, 1)] and board.silent == {1: 1} and not board.done
    assert board.find_silent() == []
    assert board.take(2) == 1
    board.finish(2, 1, "b")
    board.finish(0, 0, "a")
    assert board.take(0) is None and board.done and board.silent == {1: 1}
    board.finish(1, 1, "late")  # it comes back, and is a rank like any other
    assert board.take(1) is None and board.silent == {} and board.results[1] == "b"


def test_a_rank_that_comes_back_in_time_has_done_its_piece() -> None:
    clock = Clock()
    board = Board(1, 2, 20, clock)
    assert board.take(1) == 0
    clock.now = 21
    board.find_silent()
    board.finish(1, 0, "a")
    assert board.take(0) is None and board.results == {0: "a"}


def test_a_piece_on_which_two_ranks_hang_is_given_up() -> None:
    clock = Clock()
    board = Board(1, 3, 20, clock)
    assert board.take(0) == 0 and board.take(1) == WAIT and board.take(2) == WAIT
    clock.now = 21
    assert board.find_silent() == [(0, 0)] and board.take(1) == 0 and board.take(2) == WAIT
    clock.now = 42
    assert board.find_silent() == [(1, 0)]
    assert board.take(2) is None and board.done and board.results == {}


def test_a_rank_that_has_not_come_yet_may_hang_too_and_one_that_waits_does_not() -> None:
    clock = Clock()
    board = Board(1, 3, 20, clock)
    assert board.take(0) == 0 and board.take(1) == WAIT
    clock.now = 15
    board.report(0, 1)
    clock.now = 30
    assert board.find_silent() == [(2, None)]


def test_the_limit_follows_the_slowest_batch() -> None:
    clock = Clock()
    board = Board(2, 2, None, clock)
    assert board.take(0) == 0 and board.limit is None
    clock.now = 30
    board.report(0, 1)
    assert board.limit == 600
    clock.now = 120
    board.report(0, 1)
    assert board.limit == 900


def test_nothing_is_given_out_after_a_stop() -> None:
    board = Board(5, 2)
    assert board.take(0) == 0 and board.take(1) == 1
    board.stop("a signal")
    board.stop("another")
    assert not board.done
    board.finish(1, 1, "part")
    assert board.take(1) is None and not board.done
    board.finish(0, 0, "part")
    assert board.done and board.stopped == "a signal"


# --- ranks


def do(number: int, goes_on: object) -> int:
    assert callable(goes_on)
    goes_on(2)
    return number * number


def test_one_process_takes_everything() -> None:
    counts: list[int] = []
    board = distribute(World(), ["piece"] * 4, do, LaunchOptions(), counts.append)
    assert board is not None and board.results == {0: 0, 1: 1, 2: 4, 3: 9} and counts == [2, 4, 6, 8]
    assert distribute(World(), [], do, LaunchOptions()).results == {}  # type: ignore[union-attr]


def test_one_process_stops_when_told_to() -> None:
    board = distribute(World(), ["piece"] * 4, do, LaunchOptions(interruption=Interruption(1e-9)))
    assert board is not None and board.results == {} and "--max_time" in str(board.stopped)


@needs_mpiexec
@pytest.mark.parametrize(("ranks", "count"), [(2, 30), (3, 2)])
def test_every_piece_is_taken_once(ranks: int, count: int) -> None:
    shared, done = shared_by(ranks, count, 0.01)
    assert sorted(map(int, shared["results"])) == list(range(count)) and shared["images"] == 2 * count
    assert done.check() and (shared["stopped"], shared["silent"]) == (None, {})
    if count > ranks:
        assert {rank for rank, _ in shared["results"].values()} == set(range(ranks))


@needs_mpiexec
def test_a_slow_rank_holds_nobody_up_and_takes_nothing_in_advance() -> None:
    shared, _ = shared_by(2, 30, 0.3)
    assert sum(rank for rank, _ in shared["results"].values()) <= 6  # a fixed share would be 15, in 9 seconds


@needs_mpiexec
@pytest.mark.parametrize("interrupted", [0, 1])
def test_a_signal_to_one_rank_ends_all_of_them_after_their_batch(interrupted: int) -> None:
    shared, done = shared_by(3, 40, 0.05, interrupted)
    assert done.check() and shared["stopped"] == "SIGUSR1 was received"
    assert 5 <= len(shared["results"]) < 40
    assert any(batches == 1 for _, batches in shared["results"].values())


@needs_mpiexec
def test_the_piece_of_a_rank_that_hangs_is_made_by_another_and_the_rank_is_named() -> None:
    start = time.monotonic()
    shared, done = shared_by(3, 30, 3600, -1, 3)
    assert time.monotonic() - start < 60 and done.status != 0
    assert sorted(map(int, shared["results"])) == list(range(30)) and list(shared["silent"]) == ["1"]
    assert 1 not in {rank for rank, _ in shared["results"].values()}
    told = f"has given no sign of life for 3 s: it holds piece {shared['silent']['1']}, which another rank makes"
    assert f"rank 1 on {socket.gethostname()} {told}" in done.err


class _Lost:
    """A channel that cannot hear the other rank."""

    def Get_size(self) -> int:
        return 2

    def iprobe(self, tag: int) -> bool:
        raise RuntimeError("connection lost")


def test_a_failure_of_the_thread_that_hands_out_is_one_of_its_rank() -> None:
    """The others wait for an answer, and would for ever."""
    with pytest.raises(RuntimeError, match="connection lost"):
        _lead(_Lost(), Board(3, 2), ["piece"] * 3, ["host"] * 2, do, Interruption(), lambda images: None)


class _Slow:
    """Another rank that asks once, after half a second, and is told that nothing is left."""

    def __init__(self) -> None:
        self.since, self.asked = time.monotonic(), False

    def Get_size(self) -> int:
        return 2

    def iprobe(self, tag: int) -> bool:
        return not self.asked and time.monotonic() > self.since + 0.5

    def recv(self, tag: int) -> tuple[int, None, None, None]:
        self.asked = True
        return 1, None, None, None

    def send(self, number: int | None, dest: int, tag: int) -> None:
        assert number is None and threading.current_thread() is not threading.main_thread()


def test_the_first_rank_is_called_back_while_it_waits() -> None:
    calls: list[float] = []
    board = Board(3, 2)
    _lead(_Slow(), board, ["piece"] * 3, ["host"] * 2, do, Interruption(), lambda images: calls.append(time.monotonic()))
    assert board.results == {0: 0, 1: 1, 2: 4} and len(calls) >= 6
