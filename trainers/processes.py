"""What the processes of one training have to decide alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

T = TypeVar("T")


def largest(accelerator: Accelerator, *values: float | Tensor) -> list[float]:
    """Of each value the largest among all processes, for all of them; scalars in, numbers out."""
    if accelerator.num_processes == 1:
        return [float(value) for value in values]
    told = torch.stack([torch.as_tensor(value, dtype=torch.float32, device=accelerator.device) for value in values])
    torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
    return told.tolist()


def from_first(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """What `work` gives in the first process, for all of them.

    Raises:
        ValueError, OSError: what `work` raised there, in all of them: none waits for one that has
            ended.
    """
    told: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            told[0] = work()
        except (ValueError, OSError) as error:
            told[1] = error
    if accelerator.num_processes > 1:
        torch.distributed.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    return told[0]
