"""The state of training on the disk: a run goes on from it as if it had never stopped.

`last/state.pt` holds everything that the next step depends on, `last/previous.pt` the state before
it, for the case that the first is damaged.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from undegrade.trainers.means import ImageMeans
from undegrade.trainers.processes import from_first
from undegrade.utils.files import replacing
from undegrade.utils.seeding import global_state, set_global_state

log = logging.getLogger(__name__)

LAST, PREVIOUS = Path("last", "state.pt"), Path("last", "previous.pt")  # in the run folder


@dataclasses.dataclass
class Progress:
    """How far a run is.

    Attributes:
        epoch: epochs done, validation included.
        batch: batches of the next epoch that are done; of the epoch's number, where only its
            validation is missing.
        step: optimiser steps done.
        best, best_epoch: best value of the monitored metric, and where.
        stale: validations since then.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float | None = None
    best_epoch: int = 0
    stale: int = 0

    def words(self, epochs: int, batches: int) -> str:
        """As a person says it."""
        within = f" and {self.batch} of {batches} batches of the next" if self.batch else ""
        return f"after epoch {self.epoch} of {epochs}{within}"


class RunState:
    """Saves and takes up what changes in a run. All processes call its methods, the first one
    writes.

    Args:
        run: its folder.
        members: what has a state dict, by kind and name.
        batches: in an epoch.
        accelerator: of the run.
    """

    def __init__(self, run: Path, members: Mapping[str, Mapping[str, Any]], batches: int, accelerator: Accelerator) -> None:
        self.run, self.members, self.batches, self.accelerator = run, members, batches, accelerator
        self.progress = Progress()
        self._intact = False  # whether last/state.pt is known to be

    def not_finite(self) -> str | None:
        """Place of the first number that is NaN or infinite, as `parts.student.network.fc.bias`;
        None if there is none.
        """
        for kind, members in self.members.items():
            for name, member in members.items():
                for place, tensor in _tensors(member.state_dict(), f"{kind}.{name}"):
                    if not tensor.isfinite().all():
                        return place
        return None

    def save(self, means: ImageMeans) -> None:
        """Everything that the next step depends on, in one step; what was there becomes the state
        before.

        Args:
            means: of the epoch so far.
        """
        own = None
        if self.progress.batch:
            own = {"random": global_state(self.accelerator.device), "means": means.state_dict()}
        everyone = gather_object([own])
        if not self.accelerator.is_main_process:
            return
        state = {
            **{kind: {name: m.state_dict() for name, m in members.items()} for kind, members in self.members.items()},
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            "progress": dataclasses.asdict(self.progress),
            "batches": self.batches,
            "processes": everyone,
        }
        path, before = self.run / LAST, self.run / PREVIOUS
        with replacing(path) as temporary:
            with temporary.open("wb") as file:
                torch.save(state, file)
            if self._intact:
                before.unlink(missing_ok=True)
                os.link(path, before)
        self._intact = True

    def load(self) -> dict[str, Any] | None:
        """Take up the state that was saved, if there is one; returns what `resume_epoch` needs.

        Raises:
            ValueError: all that is there is damaged, or does not fit what is trained.
        """
        path = from_first(self.accelerator, self._readable)
        if path is None:
            return None
        state = torch.load(path, map_location="cpu", weights_only=True)
        try:
            for kind, members in self.members.items():
                for name, member in members.items():
                    member.load_state_dict(state[kind][name])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is the state of other networks or optimisers than the configuration now describes ({_first_line(error)}): "
                "go on with the run's own configuration, or start a new run"
            ) from error
        self.progress = Progress(**state["progress"])
        if not self.progress.batch:
            return None
        if (state["batches"], len(state["processes"])) != (self.batches, self.accelerator.num_processes):
            log.warning(
                "%s lies within epoch %d, which %d processes now cut into %d batches, before %d into %d: it begins again, with the "
                "weights as they are", path, self.progress.epoch + 1, self.accelerator.num_processes, self.batches,
                len(state["processes"]), state["batches"],
            )  # fmt: skip
            self.progress.batch = 0
            return None
        return state["processes"][self.accelerator.process_index]

    def resume_epoch(self, own: Mapping[str, Any], means: ImageMeans) -> None:
        """The random streams and means of this process as they were within the epoch."""
        means.load_state_dict(own["means"])
        set_global_state(own["random"], self.accelerator.device)

    def _readable(self) -> Path | None:
        """The newest state that is not damaged."""
        last, before = self.run / LAST, self.run / PREVIOUS
        problems: list[str] = []
        for path in (last, before):
            why = _damage(path) if path.is_file() else "it is missing"
            if why is None:
                if problems:
                    log.warning("%s: going on from the state before it, %s", problems[0], path)
                self._intact = path == last
                return path
            problems.append(f"{path} cannot be read ({why})")
        if not last.is_file() and not before.is_file():
            return None
        raise ValueError(
            f"{' and '.join(problems)}: remove {last.parent} to train this run anew from its start, or give another --run_id"
        )


def _damage(path: Path) -> str | None:
    """What is wrong with the file of a state, None if nothing is."""
    try:
        with zipfile.ZipFile(path) as file:
            part = file.testzip()  # torch.load does not compare checksums
        if part is not None:
            return f"the checksum of its part {part} is wrong"
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        Progress(**state["progress"])
        return None if isinstance(state["processes"], list) and isinstance(state["batches"], int) else "it lacks entries"
    except OSError:
        raise
    except Exception as error:  # a damaged file raises almost any of them
        return _first_line(error)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _tensors(tree: Any, place: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a state dict with their places."""
    if isinstance(tree, Tensor):
        yield place, tree
    elif isinstance(tree, Mapping):
        for name, below in tree.items():
            yield from _tensors(below, f"{place}.{name}")
