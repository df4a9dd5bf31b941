"""Ranks of an `mpiexec` or `srun` launch. They share the file system and one list of work, nothing
else.

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

from undegrade.utils.errors import Stopped
from undegrade.utils.extras import how_to_install
from undegrade.utils.interruption import STATUS, Interrupted

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
        except Interrupted:  # likewise: ranks agree on it
            if self.rank:
                sys.exit(STATUS)
            raise
        except BaseException as error:
            if self.size == 1:
                raise
            if self.rank:
                time.sleep(5)  # mistakes in the command hit every rank: rank 0 says so, once
            if isinstance(error, KeyboardInterrupt):
                print("interrupted; nothing that was finished is lost", file=sys.stderr, flush=True)
            elif isinstance(error, ValueError | OSError | Stopped) and not os.environ.get("UNDEGRADE_TRACEBACK"):
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
                f"({how_to_install('mpi')}, or {how_to_install('mpich')} for an MPI from PyPI), or run without mpiexec"
            ) from error
        return World()
    if launched > 1 and MPI.COMM_WORLD.Get_size() == 1:
        raise ValueError(
            f"launched as {launched} processes, but MPI sees one rank: the launcher is not that of mpi4py's MPI. Use the mpiexec "
            "of that MPI (inside a SLURM allocation too), or srun with the --mpi that it supports (`srun --mpi=list`: pmi2, pmix)"
        )
    return World(MPI.COMM_WORLD)
