"""Which device a process uses, and how its memory is handled there."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Literal

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def choose_device(requested: str | None = None, local_rank: int = 0) -> torch.device:
    """The device for this process; on a CPU `keep_freed_memory` holds from here on.

    Args:
        requested: `cpu`, `cuda`, `cuda:1`, or a comma list of GPU numbers as CUDA_VISIBLE_DEVICES
            takes it (`0,1`); None takes a GPU if there is one.
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
        elif device.index < count:
            torch.cuda.set_device(device)  # Accelerator takes the current one
        if device.index >= count:
            raise ValueError(f"device {given!r} was asked for, but PyTorch sees {count} GPU(s): use cuda:0 to cuda:{count - 1}")
    else:
        keep_freed_memory()
    return device


def fast_precision(device: torch.device) -> Literal["bf16", "no"]:
    """bf16 where the device multiplies in it, which is about twice as fast as in float32: GPUs from
    NVIDIA's Ampere on, CPUs with AVX512-BF16 or AMX.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    asked = (getattr(torch.cpu, f"_is_{name}_supported", bool) for name in ("avx512_bf16", "amx_tile"))
    return "bf16" if any(supported() for supported in asked) else "no"


def keep_freed_memory() -> bool:
    """Freed memory stays with this process, for the next tensor, until it ends; returns whether
    that could be arranged (glibc).

    By default glibc gives large blocks back to the kernel, which clears every page again at the
    next allocation: an eighth of the time of a training step on a CPU, and a fifth of an evaluation
    of images of 224 x 224 (benchmarks/README.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    # glibc before 2.35 refuses thresholds above 32 MiB
    return bool((mallopt(_MMAP_THRESHOLD, 1 << 30) or mallopt(_MMAP_THRESHOLD, 1 << 25)) and mallopt(_TRIM_THRESHOLD, -1))


def move_batch(batch: dict, device: torch.device) -> dict:
    """A batch with its tensors on `device`; other entries (keys) as they are."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def peak_memory() -> int:
    """Bytes that this process took at most: of the GPU once it is in use, else of the machine; 0
    where nobody says it (Windows).
    """
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    try:
        import resource  # noqa: PLC0415  of Unix alone
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
