"""How many processes a stage of a pipeline is given, and how they share its batch."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from undegrade.utils.composition import read_all

log = logging.getLogger("pipeline")

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node")
_BATCH, _ACCUMULATE = ("--data.batch_size", "--batch_size", "--bs"), ("--loop.accumulate",)


_DRIVERS = ("nvidia*", "nvhost*", "kfd", "dxg")  # files in /dev: NVIDIA's, those of its boards, AMD's, Windows' for Linux
_COUNT = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"


def available_cores() -> int:
    """Logical cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_mpiexec() -> str | None:
    """The mpiexec on the PATH, or the one of the `mpich` wheel beside this Python."""
    beside = Path(sys.executable).parent / "mpiexec"
    return shutil.which("mpiexec") or (str(beside) if beside.is_file() else None)


def visible_gpus() -> int:
    """GPUs that PyTorch sees, which is asked in a process of its own: the pipeline does without it.
    Without any driver there are none.
    """
    if not any(True for name in _DRIVERS for _ in Path("/dev").glob(name)):
        return 0
    return int(subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True, check=True).stdout)


def shared_out(name: str, words: Sequence[str], configs: Sequence[str], processes: int, recipe: int = 1) -> tuple[int, list[str]]:
    """How many processes train a stage, and its arguments for that many: together they see as many
    images a step as `recipe` processes would with the arguments as they are.

    No process gets more images at once than its configuration says, since its memory is known to
    hold those; gradients of several steps are added up where there are fewer processes.

    Args:
        name: of the stage, for the warning that fewer processes are used: as many as divide the
            images of a step.
        words: arguments of the training script.
        configs: its configurations.
        processes: that there are.
        recipe: number of processes that the batch size is for.
    """
    try:
        tree = read_all(configs)
    except FileNotFoundError:  # reported by utils.pipeline.check_files, with all others
        return 1, list(words)
    batch = _number(words, _BATCH, tree.get("data", {}).get("batch_size"))
    if batch is None:
        log.warning("%s: trained by one process, since its configuration does not say data.batch_size", name)
        return 1, list(words)
    rounds = recipe * (_number(words, _ACCUMULATE, tree.get("loop", {}).get("accumulate")) or 1)
    images = batch * rounds
    used = next(count for count in range(min(processes, images), 0, -1) if images % count == 0)
    if used < processes:
        log.warning("%s: trained by %d of %d processes, the most that divide its %d images a step", name, used, processes, images)
    accumulate = next(count for count in range(-(-rounds // used), images + 1) if images % (used * count) == 0)
    if used == recipe:
        return used, list(words)
    rest = _without(words, (*_BATCH, *_ACCUMULATE))
    return used, [*rest, "--data.batch_size", str(images // (used * accumulate)), "--loop.accumulate", str(accumulate)]


def _number(words: Sequence[str], flags: Sequence[str], usual: int | None) -> int | None:
    """The value of the last of `flags` among the words of a command."""
    given = [int(value) for flag, value in zip(words, words[1:], strict=False) if flag in flags]
    return given[-1] if given else usual


def _without(words: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The words of a command but for these flags and their values."""
    left_out = {place + after for place, word in enumerate(words) if word in flags for after in (0, 1)}
    return [word for place, word in enumerate(words) if place not in left_out]
