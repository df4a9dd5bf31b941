"""Pieces of work that MPI ranks take in turn."""

from __future__ import annotations

import json
import sys
import time

import pytest

from tests.scripts import launch, program
from undegrade.image_adapt.mpi import World
from undegrade.image_adapt.work_queue import _hand_out, dequeue

MPIEXEC = program("mpiexec")
# rank 1 works for as long as is said, the others for 10 ms
WORK = """
import json, sys, time
from undegrade.image_adapt.work_queue import dequeue
from undegrade.image_adapt.mpi import connect
world, taken = connect(), []
for number in dequeue(world, int(sys.argv[1])):
    taken.append(number)
    time.sleep(float(sys.argv[2]) if world.rank == 1 else 0.01)
everything = world.gather(taken)
if world.rank == 0:
    print(json.dumps(everything))
"""


def taken_by(ranks: int, count: int, seconds: float) -> list[list[int]]:
    done = launch(MPIEXEC, "-n", ranks, sys.executable, "-c", WORK, count, seconds).check()
    return json.loads(done.out.strip().splitlines()[-1])


def test_one_process_takes_everything() -> None:
    assert list(dequeue(World(), 4)) == [0, 1, 2, 3]
    assert list(dequeue(World(), 0)) == []


@pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec beside this Python or on the PATH: pip install mpich")
@pytest.mark.parametrize(("ranks", "count"), [(2, 30), (3, 2)])
def test_every_piece_is_taken_once(ranks: int, count: int) -> None:
    taken = taken_by(ranks, count, 0.01)
    assert sorted(sum(taken, [])) == list(range(count))
    assert all(numbers == sorted(numbers) for numbers in taken)


@pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec beside this Python or on the PATH: pip install mpich")
def test_a_slow_rank_holds_nobody_up() -> None:
    fast, slow = taken_by(2, 30, 0.5)
    assert sorted(fast + slow) == list(range(30))
    assert len(slow) <= 6  # a fixed share would be 15, in 7.5 seconds


@pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec beside this Python or on the PATH: pip install mpich")
def test_a_slow_rank_takes_nothing_in_advance() -> None:
    fast, slow = taken_by(2, 5, 2.0)
    assert sorted(fast + slow) == list(range(5)) and len(slow) == 1


class _Lost:
    """A channel that cannot hear the other rank."""

    def Get_size(self) -> int:
        return 2

    def iprobe(self, tag: int) -> bool:
        raise RuntimeError("connection lost")


def test_a_failure_of_the_thread_that_hands_out_is_one_of_its_rank() -> None:
    """The others wait for an answer, and would for ever."""
    with pytest.raises(RuntimeError, match="connection lost"):
        list(_hand_out(_Lost(), 3, lambda: None))


class _Slow:
    """Another rank that asks once, after half a second, and is told that nothing is left."""

    def __init__(self) -> None:
        self.since = time.monotonic()

    def Get_size(self) -> int:
        return 2

    def iprobe(self, tag: int) -> bool:
        return time.monotonic() > self.since + 0.5

    def recv(self, tag: int) -> int:
        return 1

    def send(self, number: int | None, dest: int, tag: int) -> None:
        assert number is None


def test_the_first_rank_is_called_back_while_it_waits() -> None:
    calls: list[float] = []
    assert list(_hand_out(_Slow(), 3, lambda: calls.append(time.monotonic()))) == [0, 1, 2]
    assert len(calls) >= 3
