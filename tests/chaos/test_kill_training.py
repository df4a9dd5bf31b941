"""12 kills of training, with one process and with two of torchrun: the checkpoints of a run that
was never stopped, to the bit. Signals of schedulers end it on purpose.
"""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.chaos.launches import Launch, kill_at, tree_of, wait_until
from tests.scripts import program
from undegrade.utils.interruption import STATUS

pytestmark = pytest.mark.slow

RUN = "ind/Digits/ResNet20_clean/one"
EPOCHS = 16


def training(root: Path, processes: int, *words: object) -> Launch:
    """ResNet20 on 80 digits: 8 steps an epoch in all."""
    launcher = [sys.executable] if processes == 1 else [program("torchrun"), "--standalone", "--nproc_per_node", processes]
    given = ("-c", "configs/ind/Digits/ResNet20_clean.yaml", "--save_dir", root, "--run_id", "one", "-d", "cpu")
    small = ("--bs", 10 // processes, "--data.limit", 80, "--loop.epochs", EPOCHS, "--loop.ema_decay", 0.9, "--loop.save_every", 3)
    return Launch(*launcher, "train.py", *given, *small, *words)


def epochs_of(root: Path) -> int:
    path = root / RUN / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def assert_same_run(root: Path, expected: Path) -> None:
    """Checkpoints and metrics to the bit, the same files, none of a write that was killed."""
    one, other = (tree_of(place / RUN) for place in (root, expected))
    names = [sorted(name for name in tree if "tfevents" not in name) for tree in (one, other)]
    assert names[0] == names[1]
    for name in ("best.safetensors", "metrics.jsonl"):
        assert one[name] == other[name], f"{name} differs"
    for name in (name for name in names[0] if name.endswith(".pt")):
        first, second = (torch.load(place / RUN / name, weights_only=True) for place in (root, expected))
        assert_same_values(first, second, name)


def assert_same_values(one: object, other: object, place: str) -> None:
    """The same tree of numbers, to the bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_same_values(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        assert len(one) == len(other), place
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same_values(a, b, f"{place}.{i}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, torch.as_tensor(other)), place
    else:
        assert one == other, place


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The run of so many processes that was never stopped."""

    @functools.cache
    def trained(processes: int) -> Path:
        root = tmp_path_factory.mktemp("whole")
        training(root, processes).finish(300).check()
        return root

    return trained


@pytest.mark.parametrize(("processes", "kills", "seed"), [(1, 7, 11), (2, 5, 12)], ids=["one process", "torchrun, two processes"])
def test_training_that_was_killed_again_and_again_ends_with_the_bits_of_one_run(
    processes: int, kills: int, seed: int, whole: Callable[[int], Path], tmp_path: Path
) -> None:
    rng = random.Random(seed)
    for number in range(kills):
        launch, before = training(tmp_path, processes), epochs_of(tmp_path)
        if number % 3 == 1:  # while it starts and reads what is there
            assert kill_at(launch, lambda: True, rng.uniform(0, 8))
            continue
        goal = min(EPOCHS - 1, before + rng.choice((1, 2)))
        assert kill_at(launch, lambda goal=goal: epochs_of(tmp_path) >= goal, rng.choice((0, rng.uniform(0, 0.5)))), "too late"
    training(tmp_path, processes).finish(300).check()
    assert_same_run(tmp_path, whole(processes))


@pytest.mark.parametrize(("name", "processes"), [("SIGTERM", 1), ("SIGUSR1", 1), ("SIGINT", 1), ("SIGTERM", 2)], ids=str)
def test_a_signal_ends_training_with_a_status_of_its_own_and_nothing_is_lost(
    name: str, processes: int, whole: Callable[[int], Path], tmp_path: Path
) -> None:
    launch = training(tmp_path, processes)
    assert wait_until(lambda: epochs_of(tmp_path) >= 2 or not launch.running, 120)
    launch.signal(name)
    done = launch.finish(60)
    if processes == 1:  # torchrun has a status of its own
        assert done.status == STATUS and "Traceback" not in done.err, done.err[-2000:]
    assert name in done.err and epochs_of(tmp_path) < EPOCHS
    training(tmp_path, processes).finish(300).check()
    assert_same_run(tmp_path, whole(processes))
