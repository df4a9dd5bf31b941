"""Predictors that adapt themselves go through the stream of a protocol: their logits, what has to
be gone through for a test set, and where to go on after an interruption.
"""

from __future__ import annotations

import dataclasses
import logging
import pickle
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from undegrade.evaluation.logit_store import StoredLogits
from undegrade.evaluation.predictors import Predictor
from undegrade.evaluation.protocols import Stretch
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.pixels import to_unit
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.files import replacing

log = logging.getLogger(__name__)

_KEEP_EVERY = 60.0  # seconds: between two states on disk within a stretch


@runtime_checkable
class Resumable(Protocol):
    """A predictor whose state can be kept: of tensors and plain values."""

    def state(self) -> dict[str, Any]:
        """All that images may change."""

    def load(self, state: dict[str, Any]) -> None:
        """Go to a state; it is not shared afterwards."""


@dataclasses.dataclass
class Position:
    """How far a stream has come.

    Attributes:
        done: stretches.
        images: of the stretch after them.
        logits: so far, of the cells of that stretch.
    """

    done: int = 0
    images: int = 0
    logits: dict[Cell, StoredLogits] = dataclasses.field(default_factory=dict)


class Stream:
    """One predictor on its way through a protocol.

    Args:
        name: of the member, for messages.
        predictor: stateful.
        source: gives the images of a cell.
        plan: the protocol's stretches.
        predict: (name, predictor, images) -> logits, checked.
        size: images of a batch.
        path: file of the state for going on after an interruption; None: none is kept.
        identity: of all that the state depends on; one of another identity is not read.
        exact: see StoredLogits.
    """

    def __init__(
        self, name: str, predictor: Predictor, source: Callable[[Cell], ImageSource], plan: Sequence[Stretch],
        predict: Callable[[str, Predictor, Tensor], Tensor], size: int, path: Path | None, identity: str, exact: bool,
    ) -> None:  # fmt: skip
        self.name, self.predictor, self.source, self.plan, self.predict = name, predictor, source, plan, predict
        self.size, self.path, self.identity, self.exact = size, path, identity, exact
        self.position: Position | None = None  # of the predictor's state; None: unknown

    def before(self, cell: Cell) -> list[Cell]:
        """The cells whose images the logits of a cell depend on, itself included."""
        number = self._stretch_of(cell)
        start = self._start_of(number)
        return [other for stretch in self.plan[start : number + 1] for other in stretch.cells]

    def through(
        self,
        cell: Cell,
        known: Callable[[Cell], bool],
        store: Callable[[Cell, StoredLogits], None],
        on_images: Callable[[int], object],
    ) -> None:
        """Go on until the logits of a cell are there, from where the predictor has to start anew,
        or from a position further on that it is at or whose state is on disk.

        Args:
            cell: one of the plan.
            known: whether a cell's logits are stored already.
            store: takes those that are not, with the cell.
            on_images: called with the number of images after each batch; may raise.
        """
        number = self._stretch_of(cell)
        start = self._start_of(number)
        position = self.position or self._kept() or Position(start)
        if not start <= position.done <= number:
            position = Position(start)
        for current in range(position.done, number + 1):
            stretch = self.plan[current]
            if current < number and all(map(known, stretch.cells)):
                log.info("member %s goes through %s again", self.name, ", ".join(other.folder for other in stretch.cells))
            if stretch.anew and not position.images:
                self.predictor.reset()
            for found, logits in self._go(current, position, on_images).items():
                if self._stretch_of(found) == current and not known(found):
                    store(found, logits)
            position = self.position = Position(current + 1)
            self._keep(position)

    def _stretch_of(self, cell: Cell) -> int:
        """The first stretch with images of a cell."""
        return next(number for number, stretch in enumerate(self.plan) if cell in stretch.cells)

    def _start_of(self, number: int) -> int:
        """The stretch before which the predictor last starts anew."""
        return max(i for i in range(number + 1) if self.plan[i].anew)

    def _go(self, number: int, position: Position, on_images: Callable[[int], object]) -> dict[Cell, StoredLogits]:
        stretch, self.position = self.plan[number], None
        sources = [self.source(cell) for cell in stretch.cells]
        logits = position.logits or {
            cell: StoredLogits.empty(len(source), self.predictor.num_classes, self.exact)
            for cell, source in zip(stretch.cells, sources, strict=True)
        }
        last = time.monotonic()
        for start in range(position.images, len(stretch.rows), self.size):
            place, rows = (values[start : start + self.size] for values in (stretch.place, stretch.rows))
            found = self.predict(self.name, self.predictor, images_of(sources, place, rows))
            for number_of_cell in np.unique(place):
                own = place == number_of_cell
                logits[stretch.cells[number_of_cell]][torch.from_numpy(rows[own])] = found[torch.from_numpy(own)]
            position.images, position.logits = start + len(rows), logits
            try:
                on_images(len(rows))
            except BaseException:
                self._keep(position)
                raise
            if time.monotonic() - last > _KEEP_EVERY:
                self._keep(position)
                last = time.monotonic()
        return logits

    def _keep(self, position: Position) -> None:
        """Write the state, where the next stretch needs it or this one is not at its end."""
        goes_on = position.images > 0 or (position.done < len(self.plan) and not self.plan[position.done].anew)
        if self.path is None or not isinstance(self.predictor, Resumable):
            return
        if not goes_on:
            self.path.unlink(missing_ok=True)
            return
        logits = [(cell.folder, stored.values, stored.highest) for cell, stored in position.logits.items()]
        state = {"identity": self.identity, "done": position.done, "images": position.images, "logits": logits}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as temporary:
            torch.save(state | {"state": self.predictor.state()}, temporary)

    def _kept(self) -> Position | None:
        """The position of the state on disk, to which the predictor goes."""
        if self.path is None or not isinstance(self.predictor, Resumable) or not self.path.is_file():
            return None
        try:
            kept = torch.load(self.path, weights_only=True, map_location=self.predictor.device)
        except (OSError, RuntimeError, pickle.UnpicklingError) as error:
            log.warning("%s cannot be read, its test sets are gone through again: %s", self.path, error)
            return None
        if kept["identity"] != self.identity:
            return None
        self.predictor.reset()  # so that it knows where a reset goes back to
        self.predictor.load(kept["state"])
        cells = {cell.folder: cell for cell in (self.plan[kept["done"]].cells if kept["images"] else ())}
        logits = {
            cells[folder]: StoredLogits(values.cpu(), None if highest is None else highest.cpu())
            for folder, values, highest in kept["logits"]
        }
        return Position(kept["done"], kept["images"], logits)


def images_of(sources: Sequence[ImageSource], place: np.ndarray, rows: np.ndarray) -> Tensor:
    """Images [B,3,H,W] in [0,1] of several sources of one size.

    Args:
        sources: one a cell.
        place, rows: [B], which source and which of its images.
    """
    first = sources[place[0]]
    if (place == place[0]).all():
        return to_unit(first.images(rows))
    out = torch.empty(len(rows), 3, first.image_size, first.image_size, dtype=torch.uint8)
    for number in np.unique(place):
        own = place == number
        out[torch.from_numpy(own)] = sources[number].images(rows[own])
    return to_unit(out)
