"""When training saves its state between the ends of its epochs, and when it stops."""

from __future__ import annotations

import time

from undegrade.utils.interruption import Interruption, parse_duration

GO_ON, SAVE, STOP = 0, 1, 2  # the larger one wins among processes


class Pauses:
    """What one process wishes after a step.

    Args:
        save_every: `loop.save_every`: a duration such as `10m`, or a number of optimiser steps;
            None: at the end of epochs only.
        interruption: signals and the time limit.

    Raises:
        ValueError: `save_every` is no duration, and no number of at least 1.
    """

    def __init__(self, save_every: int | str | None = None, interruption: Interruption | None = None) -> None:
        self.interruption = interruption or Interruption()
        self._steps = save_every if isinstance(save_every, int) else None
        if self._steps is not None and self._steps < 1:
            raise ValueError(
                f"loop.save_every {save_every} must be at least 1 step, a duration such as 10m, or null for epochs only"
            )
        try:
            self._seconds = parse_duration(save_every) if isinstance(save_every, str) else None
        except ValueError as error:
            raise ValueError(f"loop.save_every: {error}; steps are a whole number") from error
        self.saved()

    def saved(self) -> None:
        """The time to the next save begins."""
        self._since = time.monotonic()

    def wish(self, step: int) -> int:
        """GO_ON, SAVE or STOP, when `step` optimiser steps are done."""
        if self.interruption.due:
            return STOP
        late = self._seconds is not None and time.monotonic() - self._since >= self._seconds
        return SAVE if late or (self._steps is not None and step % self._steps == 0) else GO_ON
