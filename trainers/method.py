"""The contract of a method: what is trained, and the loss that trains it."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from undegrade.utils.data.batches import Batch


class Method(nn.Module):
    """What is trained, and the loss that trains it.

    Subclasses set `student` (the module whose weights are optimised and saved) and `monitors`
    (validation metrics that may choose the best checkpoint), and give `forward(batch) -> dict` with
    `loss` (scalar), optionally `hits` (bool [B], right predictions) and further scalars to be
    logged. Frozen teachers live in the module and stay in eval mode.
    """

    student: nn.Module
    monitors: tuple[str, ...] = ("loss",)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError

    def prepare(self, batch: Batch, *stream: object) -> Batch:
        """A training batch on its device, as `forward` takes it; what is drawn at random comes from
        the stream of that name.
        """
        return batch

    def train(self, mode: bool = True) -> Method:
        """Only the student ever leaves eval mode."""
        super().train(False)
        self.student.train(mode)
        return self

    def checkpoint(self, student: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(state dict, description) of `student`, which is `self.student` or its moving average."""
        raise NotImplementedError

    def picture(self, student: nn.Module) -> np.ndarray | None:
        """uint8 [H, W, 3] that shows what `student` has learnt, for methods that have something to
        show.
        """
        return None
