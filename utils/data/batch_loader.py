"""Training batches made by worker processes and finished on the device."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from undegrade.utils.data.batches import Batch, BatchSet
from undegrade.utils.device import move_batch
from undegrade.utils.interruption import listen_to_parent_alone

log = logging.getLogger(__name__)


class _Made(Dataset):
    """What workers make of the batches."""

    def __init__(self, batches: BatchSet) -> None:
        self.batches = batches

    def __getitem__(self, place: tuple[int, int]) -> Batch:
        return self.batches.made(place)


class _Places(Sampler):
    """(epoch, step) pairs of the current epoch from its step `start` on."""

    def __init__(self, steps: int) -> None:
        self.steps, self.epoch, self.start = steps, 0, 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter([(self.epoch, step) for step in range(self.start, self.steps)])

    def __len__(self) -> int:
        return self.steps


class BatchLoader:
    """`for batch in loader.epoch(e)`: the batches of epoch e, on `device`, made by `workers`
    processes (0: by this one).

    What takes little time and makes the images larger (numbers from bytes, holes) is done here and
    on the device.
    """

    def __init__(self, batches: BatchSet, workers: int = 0, device: str | torch.device = "cpu") -> None:
        self._batches, self._device = batches, torch.device(device)
        self._places, self._broken = _Places(len(batches)), set[str]()
        self._loader = DataLoader(
            _Made(batches), batch_size=None, sampler=self._places, num_workers=workers, persistent_workers=workers > 0,
            pin_memory=self._device.type == "cuda", worker_init_fn=listen_to_parent_alone,
            generator=torch.Generator(),  # else it draws from the global one, in each epoch or, with workers, in the first
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._places)

    def global_images(self, step: int) -> int:
        """Images that all processes together see at a step, for each degradation."""
        return self._batches.global_images(step)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of one epoch in step order, from the step `start` on."""
        self._places.epoch, self._places.start = epoch, start
        return (self._batches.finished(move_batch(self._reported(made), self._device)) for made in iter(self._loader))

    def _reported(self, made: Batch) -> Batch:
        """Name each image that cannot be read once."""
        for key, reason in made["broken"]:
            if key not in self._broken:
                self._broken.add(key)
                what = "it is left out" if self._batches.augment is None else "the next one stands in"
                log.warning("image that cannot be read, %s (%d so far): %s", what, len(self._broken), reason)
        return made
