"""Which device a process uses, and how many threads."""

from __future__ import annotations

import os

import torch


def choose_device(requested: str | None = None, local_rank: int = 0) -> torch.device:
    """The device for this process.

    Args:
        requested: `cpu`, `cuda`, `cuda:1`, or a comma list of GPU numbers as CUDA_VISIBLE_DEVICES takes it (`0,1`);
            None takes a GPU if there is one.
        local_rank: number of this process on its machine; ranks are spread over the GPUs in turn.

    Raises:
        ValueError: a GPU is asked for and there is none, or the text is not understood.
    """
    given = requested
    if requested is not None and requested.replace(",", "").isdigit():
        os.environ["CUDA_VISIBLE_DEVICES"] = requested
        requested = "cuda"
    if requested is None:
        requested = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(requested)
    except RuntimeError:
        raise ValueError(f"device {requested!r} is not understood: cpu, cuda, cuda:N, or GPU numbers such as 0,1") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {given!r} was asked for, but this machine shows no GPU to PyTorch: use -d cpu")
        count = torch.cuda.device_count()
        if device.index is None:
            device = torch.device("cuda", local_rank % count)
        if device.index >= count:
            raise ValueError(f"device {given!r} was asked for, but PyTorch sees {count} GPU(s): use cuda:0 to cuda:{count - 1}")
    return device


def move_batch(batch: dict, device: torch.device) -> dict:
    """A batch with its tensors on `device`; other entries (keys) as they are."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
