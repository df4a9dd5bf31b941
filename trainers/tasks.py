"""Tasks: by which loss a network learns from labelled images, and by which metrics it is judged."""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from undegrade.trainers.method import Monitors
from undegrade.utils.data.batches import Batch
from undegrade.utils.registry import Registry


class Task(Protocol):
    """What a network is asked for.

    Attributes:
        monitors: as those of a `Method`.
    """

    monitors: Monitors

    def loss(self, output: Tensor, batch: Batch, label_smoothing: float) -> Tensor:
        """Mean over the images of what `output` [B, ...], the network's, is away from the batch's
        `label` or `target`.

        `label_smoothing` is 0 outside of training. A task that has no classes raises ValueError for
        another value.
        """
        ...

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Metrics by name, a value for each image [B] or a mean, as of `Method.forward`."""
        ...

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """As `Method.summary`."""
        return means


class Classification(Task):
    """Cross-entropy of logits [B, K] with the labels, or with `soft_label` [B, K] where images were
    mixed; accuracy.
    """

    monitors: Monitors = {"accuracy": "max", "loss": "min"}

    def loss(self, output: Tensor, batch: Batch, label_smoothing: float) -> Tensor:
        answer = batch["soft_label"] if "soft_label" in batch else batch["label"]
        return F.cross_entropy(output, answer, label_smoothing=label_smoothing)

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"accuracy": output.argmax(1) == batch["label"]}


TASKS: Registry[Task] = Registry("task", "undegrade.tasks")
TASKS.add("classification", Classification())
