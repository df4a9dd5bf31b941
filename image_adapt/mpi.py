"""Ranks of an `mpiexec` or `srun` launch. They share the file system, one list of work and a
progress counter, nothing else.

Ranks may lie on several machines, with GPUs or without. Without mpi4py, or without a launcher, a
single process does the same work.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

_PROGRESS_TAG = 7
# environment variable of a launcher with the number of processes that it started; the last is
# torchrun's
_LAUNCHED = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_NUM_TASKS", "WORLD_SIZE")


class World:
    """Rank, size and the few things that ranks tell each other.

    Attributes:
        rank, size: of this process among all.
        local_rank: of this process among those on its machine (that share memory with it): selects
            its GPU.
    """

    def __init__(self, communicator: Any = None) -> None:
        self.communicator = communicator
        self.rank = 0 if communicator is None else communicator.Get_rank()
        self.size = 1 if communicator is None else communicator.Get_size()
        self.local_rank = 0
        if communicator is not None and self.size > 1:
            from mpi4py import MPI

            self.local_rank = communicator.Split_type(MPI.COMM_TYPE_SHARED).Get_rank()

    def broadcast(self, value: Any) -> Any:
        """The value of rank 0, on every rank."""
        return value if self.size == 1 else self.communicator.bcast(value, root=0)

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all ranks on rank 0, None elsewhere."""
        return [value] if self.size == 1 else self.communicator.gather(value, root=0)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """An exception on one rank ends them all: the others would wait for it for ever."""
        try:
            yield
        except SystemExit:  # --help and mistakes in a flag, on every rank alike
            raise
        except BaseException as error:
            if self.size == 1:
                raise
            if self.rank:
                time.sleep(1)  # mistakes in the command hit every rank: rank 0 says so, once
            if isinstance(error, ValueError | FileNotFoundError) and not os.environ.get("UNDEGRADE_TRACEBACK"):
                print(f"error: {error}", file=sys.stderr, flush=True)
            else:
                traceback.print_exc()
            time.sleep(0.5)  # launchers drop what they have not passed on when they are told to end
            self.communicator.Abort(2)
            os._exit(2)  # some MPIs return from Abort before they end the process


def connect() -> World:
    """The world that this process was launched in.

    Raises:
        ValueError: launched as several ranks, but mpi4py or its MPI library cannot be loaded, or
            does not see the others: each process would do all the work.
    """
    launched = max((int(os.environ[v]) for v in _LAUNCHED if os.environ.get(v, "").isdigit()), default=1)
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        if launched > 1:
            raise ValueError(
                f"launched as {launched} MPI ranks, but mpi4py cannot be loaded ({error}); install it against this MPI "
                '(pip install "undegrade[mpi]", or "undegrade[mpich]" for an MPI from PyPI), or run without mpiexec'
            ) from error
        return World()
    if launched > 1 and MPI.COMM_WORLD.Get_size() == 1:
        raise ValueError(
            f"launched as {launched} processes, but MPI sees one rank: the launcher is not that of mpi4py's MPI. Use the mpiexec "
            "of that MPI (inside a SLURM allocation too), or srun with the --mpi that it supports (`srun --mpi=list`: pmi2, pmix)"
        )
    return World(MPI.COMM_WORLD)


class Progress:
    """One bar over the images of all ranks, drawn by rank 0.

    The other ranks send how many images they finished; rank 0 takes these in whenever it finishes
    some itself, and at the end waits for the rest.
    """

    def __init__(self, world: World, total: int, done: int, description: str) -> None:
        self.world, self.total, self.seen = world, total, done
        self.bar = tqdm(
            total=total,
            initial=done,
            desc=description,
            unit="img",
            disable=world.rank != 0,
            dynamic_ncols=True,
            mininterval=1.0,
        )
        self._pending: list[Any] = []

    def add(self, images: int) -> None:
        """This rank finished `images` more."""
        if self.world.rank:
            self._pending.append(self.world.communicator.isend(images, dest=0, tag=_PROGRESS_TAG))
            return
        self._count(images)
        self.take_in()

    def take_in(self) -> None:
        """On the first rank: count what the others have reported."""
        while self.world.size > 1 and self.world.communicator.iprobe(tag=_PROGRESS_TAG):
            self._count(self.world.communicator.recv(tag=_PROGRESS_TAG))

    def finish(self) -> None:
        """Wait until every rank has reported all its images."""
        if self.world.rank == 0:
            while self.seen < self.total:
                self._count(self.world.communicator.recv(tag=_PROGRESS_TAG))
        for request in self._pending:
            request.wait()
        self.bar.close()

    def _count(self, images: int) -> None:
        self.seen += images
        self.bar.update(images)
