"""A row of the benchmark, timing in turn, and what the machine can do at most."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

Step = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the benchmark's table.

    Attributes:
        name: what is compared.
        unit: of `reference`, `ours` and `floor`.
        reference, ours: medians, the reference way and this project's.
        ratio: how many times better ours is.
        required: the least ratio that was asked for (None: nothing was).
        floor: what the machine's measured peak allows at best (None where arithmetic is not the
            limit).
        share: of the measured peak of matrix products and convolutions that ours reaches, in [0,
            1].
        note: one line for the reader.
        repeats: every measurement, by way.
    """

    name: str
    unit: str
    reference: float
    ours: float
    ratio: float
    required: float | None = None
    floor: float | None = None
    share: float | None = None
    note: str = ""
    repeats: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    @property
    def met(self) -> bool:
        """Whether the ratio is the required one."""
        return self.required is None or self.ratio >= self.required


def timed_row(name: str, reference: list[float], ours: list[float], work: float = 0.0, **more: Any) -> Row:
    """Row of durations that were taken in turn; the ratio is the median of the ratios of
    neighbours.

    Args:
        name: of the row.
        reference, ours: core seconds, as many of both.
        work: billions of floating-point operations of ours, for `floor` and `share` (0: not given).
        more: further fields of the row.
    """
    middle = statistics.median(ours)
    ratio = statistics.median(a / b for a, b in zip(reference, ours, strict=True))
    if work:
        floor = work / peaks().best
        more |= {"floor": floor, "share": floor / middle}
    repeats = {"reference": reference, "ours": ours}
    return Row(name, more.pop("unit", "core s"), statistics.median(reference), middle, ratio, repeats=repeats, **more)


def core_seconds(step: Step) -> float:
    """Processor time of a call in this process: with one thread and nothing else on the machine,
    its duration.
    """
    start = time.process_time()
    step()
    return time.process_time() - start


def in_turn(steps: dict[str, Step], repeats: int = 5, warm_up: int = 1) -> dict[str, list[float]]:
    """Core seconds of each step, taken in turn after `warm_up` rounds: a change of the machine's
    speed meets all alike.
    """
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(warm_up + repeats):
        for name, step in steps.items():
            seconds = step.seconds() if isinstance(step, Apart) else core_seconds(step)
            if repeat >= warm_up:
                taken[name].append(seconds)
    return taken


def quiet() -> contextlib.AbstractContextManager[object]:
    """A block whose progress bars are not shown."""
    return contextlib.redirect_stderr(io.StringIO())


class Apart:
    """A step in a process of its own, for what is a setting of the whole process; `with
    Apart(build, ...) as step`.

    Args:
        build: function of a module that makes the step from the other arguments, in that process.
    """

    def __init__(self, build: Callable[..., Step], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, torch.get_num_threads(), build, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def seconds(self) -> float:
        """Core seconds of one call. Raises RuntimeError if the process failed; it has printed
        why.
        """
        try:
            self._pipe.send(True)
            return float(self._pipe.recv())
        except (EOFError, OSError) as error:
            raise RuntimeError("the process of a benchmark step failed, see its message above") from error

    def __call__(self) -> None:
        self.seconds()

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *error: object) -> None:
        self._pipe.close()
        self._process.join(10)
        self._process.kill()


def _serve(pipe: Any, threads: int, build: Callable[..., Step], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(threads)
    step = build(*arguments)
    with contextlib.suppress(EOFError):  # the other end is closed: done
        while pipe.recv():
            pipe.send(core_seconds(step))


@dataclasses.dataclass(frozen=True)
class Peaks:
    """The most that this process reached for each second of a core, with its number of threads.

    Attributes:
        matmul: float32 products of 1024 x 1024 matrices, GFLOP/s.
        convolution: 3 x 3, 64 to 64 channels, 32 images of 32 x 32, float32, channels_last,
            GFLOP/s.
        convolution_contiguous: the same in the default layout.
        memory: copying 256 MB, read and written, GB/s.
    """

    matmul: float
    convolution: float
    convolution_contiguous: float
    memory: float

    @property
    def best(self) -> float:
        """GFLOP/s that a network could reach."""
        return max(self.matmul, self.convolution)


_measured: dict[int, Peaks] = {}


def peaks(repeats: int = 5) -> Peaks:
    """Measured once a process and number of threads."""
    threads = torch.get_num_threads()
    if threads not in _measured:
        _measured[threads] = _measure(repeats)
    return _measured[threads]


@torch.inference_mode()
def _measure(repeats: int) -> Peaks:
    a, b, product = (torch.rand(1024, 1024) for _ in range(3))
    images, kernel = torch.rand(32, 64, 32, 32), torch.rand(64, 64, 3, 3)
    images_last, kernel_last = (x.contiguous(memory_format=torch.channels_last) for x in (images, kernel))
    source, target = torch.rand(32 << 20), torch.empty(32 << 20)
    convolution = 2 * 9 * 64 * 64 * 32 * 32 * 32
    return Peaks(
        _highest(2 * 1024**3, lambda: torch.mm(a, b, out=product), repeats),
        _highest(convolution, lambda: F.conv2d(images_last, kernel_last, padding=1), repeats),
        _highest(convolution, lambda: F.conv2d(images, kernel, padding=1), repeats),
        _highest(2 * source.nbytes, lambda: target.copy_(source), repeats),
    )


def _highest(amount: float, step: Step, repeats: int) -> float:
    """Billions of `amount` for each core second, at best of `repeats` after a first call."""
    step()
    return amount / min(core_seconds(step) for _ in range(repeats)) / 1e9
