"""Training that saves and stops within an epoch, and damaged states: gone on with to the bit."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import pytest
import torch

from tests.loops import AUGMENT, Killed, Spoiled, assert_equal_runs, last_of, scripted, spoiled, trainer
from tests.scripts import forget_accelerator
from tests.tiny import supervised
from undegrade.trainers.config import LoopConfig, OptimizerConfig
from undegrade.trainers.pauses import GO_ON, SAVE, STOP, Pauses
from undegrade.trainers.trainer import Trainer
from undegrade.utils.interruption import Interrupted, Interruption

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

# 5 batches an epoch, gradients of 2 added up: a state is saved after 2, 4 and 5 of them
OPTIONS = {"norm": True, "dropout": 0.3, "view": "degraded"}
LOOP = {"epochs": 3, "accumulate": 2, "ema_decay": 0.9, "clip_norm": 1.0}
OPTIMIZER = OptimizerConfig("AdamW", lr=0.01, schedule="cosine", warmup_epochs=1.5)


def small(run: Path, method: Spoiled, workers: int = 0, save_every: int | str | None = None, batch_size: int = 5) -> Trainer:
    forget_accelerator()
    torch.manual_seed(99)  # as in a new process: other global state
    loop = LoopConfig(**LOOP, save_every=save_every)
    return trainer(run, method, loop, OPTIMIZER, batch_size, AUGMENT, ("noise", "jpeg"), workers)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    small(folder, supervised(**OPTIONS)).fit()
    return folder


def batches_done(run: Path) -> tuple[int, int]:
    progress = last_of(run)["progress"]
    return progress["epoch"], progress["batch"]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("at", "saved"), [(0, (0, 2)), (6, (1, 2)), (7, (1, 4)), (9, (1, 5))])
def test_a_signal_ends_after_the_optimiser_step_and_the_run_goes_on_to_the_bit(
    whole: Path, tmp_path: Path, workers: int, at: int, saved: tuple[int, int]
) -> None:
    def interrupt(method: Spoiled, step: int) -> None:
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)

    loop = small(tmp_path, spoiled(interrupt, **OPTIONS), workers)
    with loop.pauses.interruption.listening(), pytest.raises(Interrupted, match=r"SIGTERM.* and \d of 5 batches"):
        loop.fit()
    assert batches_done(tmp_path) == saved and not (tmp_path / "DONE").exists()
    small(tmp_path, supervised(seed=55, **OPTIONS), workers).fit()
    assert_equal_runs(whole, tmp_path)


@pytest.mark.parametrize("at", [3, 5, 9, 12])
def test_a_run_that_is_killed_goes_on_from_the_last_saved_step_to_the_bit(whole: Path, tmp_path: Path, at: int) -> None:
    def kill(method: Spoiled, step: int) -> None:
        if step == at:
            raise Killed

    with pytest.raises(Killed):
        small(tmp_path, spoiled(kill, **OPTIONS), save_every=1).fit()
    assert batches_done(tmp_path) == (at // 5, at % 5 // 2 * 2)
    small(tmp_path, supervised(seed=55, **OPTIONS)).fit()
    assert_equal_runs(whole, tmp_path)


def test_a_run_that_ends_within_a_validation_makes_it_when_it_goes_on(whole: Path, tmp_path: Path) -> None:
    loop = small(tmp_path, supervised(**OPTIONS))
    train, ends = loop._train_epoch, loop.pauses.interruption

    def then_the_signal_comes(*arguments: object) -> dict[str, float]:
        metrics = train(*arguments)
        ends._signal = "SIGUSR1"
        return metrics

    loop._train_epoch = then_the_signal_comes
    loop.validation_loader = _Repeated(loop.validation_loader, 4)
    with pytest.raises(Interrupted, match="SIGUSR1"):
        loop.fit()
    assert batches_done(tmp_path) == (0, 5) and not (tmp_path / "best.safetensors").exists()
    small(tmp_path, supervised(seed=55, **OPTIONS)).fit()
    assert_equal_runs(whole, tmp_path)


class _Repeated:
    def __init__(self, loader: object, times: int) -> None:
        self.loader, self.times = loader, times

    def epoch(self, epoch: int) -> object:
        return (batch for _ in range(self.times) for batch in self.loader.epoch(epoch))


def test_wishes() -> None:
    assert [Pauses(3).wish(step) for step in (1, 2, 3, 4, 6)] == [GO_ON, GO_ON, SAVE, GO_ON, SAVE]
    assert Pauses("10m").wish(1) == GO_ON and Pauses("0.000000001s").wish(1) == SAVE and Pauses().wish(1) == GO_ON
    assert Pauses(3, Interruption(0)).wish(3) == STOP
    for wrong in (0, -1, "soon", "0s"):
        with pytest.raises(ValueError, match="loop.save_every"):
            Pauses(wrong)


# --- damaged states


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbage(path: Path) -> None:
    path.write_bytes(b"garbage")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    """One bit of a weight."""
    content = bytearray(path.read_bytes())
    weights = last_of(path.parent.parent)["parts"]["student"]["network.fc.weight"].numpy().tobytes()
    place = content.index(weights)
    content[place + 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [cut, garbage, empty, flip, Path.unlink])
def test_a_damaged_state_falls_back_to_the_one_before_and_the_run_goes_on_to_the_bit(
    whole: Path, tmp_path: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    def kill(method: Spoiled, step: int) -> None:
        if step == 13:
            raise Killed

    with pytest.raises(Killed):
        small(tmp_path, spoiled(kill, **OPTIONS), save_every=1).fit()
    damage(tmp_path / "last/state.pt")
    with caplog.at_level(logging.INFO):
        small(tmp_path, supervised(seed=55, **OPTIONS)).fit()
    assert f"{tmp_path}/last/state.pt cannot be read" in caplog.text and "the state before it" in caplog.text
    assert "after epoch 2 of 3\n" in caplog.text
    assert_equal_runs(whole, tmp_path)


def test_two_damaged_states_are_one_line_with_the_mend(whole: Path, tmp_path: Path) -> None:
    small(tmp_path, supervised(**OPTIONS)).fit()
    for name in ("state", "previous"):
        garbage(tmp_path / f"last/{name}.pt")
    with pytest.raises(ValueError, match=r"state\.pt cannot be read .* and .*previous\.pt cannot be read .*remove .*last"):
        small(tmp_path, supervised(**OPTIONS)).fit()


def test_a_damaged_state_never_takes_the_place_of_the_good_one_before_it(tmp_path: Path) -> None:
    small(tmp_path, supervised(**OPTIONS)).fit()
    before = (tmp_path / "last/previous.pt").read_bytes()
    garbage(tmp_path / "last/state.pt")
    loop = small(tmp_path, supervised(**OPTIONS))
    loop.state.load()
    loop.state.save(loop.means)
    assert (tmp_path / "last/previous.pt").read_bytes() == before


def test_the_state_of_another_network_is_refused_by_name(tmp_path: Path) -> None:
    small(tmp_path, supervised(**OPTIONS)).fit()
    with pytest.raises(ValueError, match=r"state\.pt is the state of other networks or optimisers.*start a new run"):
        small(tmp_path, supervised(**{**OPTIONS, "norm": False})).fit()


def test_an_epoch_that_is_cut_otherwise_now_begins_again_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loop = small(tmp_path, supervised(**OPTIONS))
    loop.pauses.interruption._signal = "SIGTERM"
    with pytest.raises(Interrupted):
        loop.fit()
    small(tmp_path, supervised(**OPTIONS), batch_size=12).fit()
    assert "now cut into 2 batches, before 1 into 5: it begins again" in caplog.text
    assert last_of(tmp_path)["progress"]["step"] == 1 + 3


def test_a_finished_run_stays_as_old_as_it_is(tmp_path: Path) -> None:
    trainer(tmp_path, scripted([1]), LoopConfig(epochs=1)).fit()
    os.utime(tmp_path / "DONE", (100, 100))
    forget_accelerator()
    trainer(tmp_path, scripted([1]), LoopConfig(epochs=1)).fit()
    assert (tmp_path / "DONE").stat().st_mtime == 100
