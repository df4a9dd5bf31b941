"""Training loops over the tiny network, and methods that fail or score as told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from tests.tiny import supervised, tiny_source
from undegrade.trainers.config import LoopConfig, OptimizerConfig
from undegrade.trainers.pauses import Pauses
from undegrade.trainers.supervised import Supervised
from undegrade.trainers.trainer import Trainer
from undegrade.utils.data.batch_loader import BatchLoader
from undegrade.utils.data.batches import AugmentConfig, Batch, BatchSet
from undegrade.utils.interruption import Interruption

AUGMENT = AugmentConfig(flip=True, crop_padding=1, cutout=2)
SGD = OptimizerConfig("SGD", lr=0.1, weight_decay=0.0, momentum=0.0, schedule="constant")


def trainer(
    run: Path,
    method: Supervised,
    loop: LoopConfig,
    optimizer: OptimizerConfig = SGD,
    batch_size: int = 6,
    augment: AugmentConfig | None = None,
    degradations: tuple[str, ...] = (),
    workers: int = 0,
    max_time: float | None = None,
) -> Trainer:
    run.mkdir(parents=True, exist_ok=True)
    source = tiny_source()
    train = BatchSet(source, degradations, batch_size, 7, augment or AugmentConfig())
    validation = BatchSet(source, degradations, 10, 7)
    accelerator = Accelerator(cpu=True, mixed_precision=loop.mixed_precision, gradient_accumulation_steps=loop.accumulate)
    pauses = Pauses(loop.save_every, Interruption(max_time))
    loaders = BatchLoader(train, workers), BatchLoader(validation)
    return Trainer(method, *loaders, optimizer, loop, accelerator, run, 3, pauses)


def metrics_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def last_of(run: Path) -> dict:
    return torch.load(run / "last" / "state.pt", weights_only=True)


class Killed(Exception):
    """Stands for a killed process."""


def assert_equal_runs(a: Path, b: Path) -> None:
    """To the bit."""
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
    assert (a / "best.safetensors").read_bytes() == (b / "best.safetensors").read_bytes()
    assert_equal_states(last_of(a), last_of(b), "")


def assert_equal_states(a: object, b: object, place: str) -> None:
    """Two trees of dicts, lists, tensors and values."""
    assert type(a) is type(b), place
    if isinstance(a, dict):
        assert a.keys() == b.keys(), place
        for name in a:
            assert_equal_states(a[name], b[name], f"{place}/{name}")
    elif isinstance(a, list):
        assert len(a) == len(b), place
        for i, (one, other) in enumerate(zip(a, b, strict=True)):
            assert_equal_states(one, other, f"{place}/{i}")
    elif isinstance(a, Tensor):
        assert torch.equal(a, b), place
    else:
        assert a == b, place


class Spoiled(Supervised):
    """Calls `spoil(training step)` before each training step; 4 steps are an epoch."""

    spoil: Callable[[Spoiled, int], None]
    steps = 0

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        if self.student.training:
            self.spoil(self, self.steps)
            self.steps += 1
        return super().forward(batch)


def spoiled(spoil: Callable[[Spoiled, int], None], **options: object) -> Spoiled:
    method = supervised(kind=Spoiled, **options)
    method.spoil = spoil
    return method


class Scripted(Supervised):
    """Validates with the accuracies of a list, one an epoch (24 images in batches of 10, 10 and
    4).
    """

    right: list[int]
    calls = 0

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        out = super().forward(batch)
        if not self.student.training:
            right = self.right[self.calls // 3] if self.calls % 3 == 0 else 0
            self.calls += 1
            out["accuracy"] = torch.arange(len(batch["key"])) < right
        return out


def scripted(right: list[int]) -> Scripted:
    method = supervised(kind=Scripted)
    method.right = right
    return method
