"""What a launch does besides its work."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

from undegrade.image_adapt.job import Job
from undegrade.image_adapt.mpi import World
from undegrade.utils.files import remove_litter
from undegrade.utils.interruption import Interruption
from undegrade.utils.lock import locked


@dataclasses.dataclass(frozen=True)
class LaunchOptions:
    """How a launch goes about its work.

    Attributes:
        verify: see `image_adapt.output.find_outputs`.
        interruption: what asks for its end.
        rank_timeout: seconds, see `image_adapt.board.Board`.
    """

    verify: bool = False
    interruption: Interruption = dataclasses.field(default_factory=Interruption)
    rank_timeout: float | None = None


@contextlib.contextmanager
def sole_writer(world: World, jobs: Sequence[Job], what: str) -> Iterator[None]:
    """The first rank holds the folder of each job for the block, and removes first what killed
    writes left there.

    Raises:
        ValueError: another launch writes into one of them; names it.
    """
    with contextlib.ExitStack() as held:
        for job in jobs if world.rank == 0 else ():
            held.enter_context(locked(job.folder, what))
            for folder in {job.folder, *(job.path(i).parent for i in range(len(job.source)))}:
                remove_litter(folder)
        yield
