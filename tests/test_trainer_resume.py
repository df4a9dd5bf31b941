"""The training loop when it is interrupted: resuming to the bit, losses that are not finite."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.loops import AUGMENT, Killed, Spoiled, assert_equal_runs, last_of, metrics_of, spoiled, trainer
from tests.scripts import forget_accelerator
from tests.tiny import supervised
from undegrade.trainers.config import LoopConfig, OptimizerConfig
from undegrade.trainers.supervised import Supervised
from undegrade.utils.checkpoint import load_checkpoint
from undegrade.utils.data.batches import Batch
from undegrade.utils.errors import Stopped

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.mark.parametrize("after", [1, 3], ids=["killed in epoch 2", "killed in epoch 4"])
@pytest.mark.parametrize("name", ["SGD", "AdamW", "RAdam"])
def test_resumed_run_equals_an_uninterrupted_one_to_the_bit(tmp_path: Path, name: str, after: int) -> None:
    # 5 batches an epoch, gradients of 2 added up: the last step of an epoch has one batch only
    options = {"norm": True, "dropout": 0.3, "view": "degraded"}
    loop = LoopConfig(epochs=4, accumulate=2, ema_decay=0.9, clip_norm=1.0)
    optimizer = OptimizerConfig(name, lr=0.01, schedule="cosine", warmup_epochs=1.5)
    more = {"batch_size": 5, "augment": AUGMENT, "degradations": ("noise", "jpeg")}

    def interrupt(method: Spoiled, step: int) -> None:
        if step == 5 * after + 2:
            raise Killed

    trainer(tmp_path / "whole", supervised(**options), loop, optimizer, **more).fit()
    forget_accelerator()
    with pytest.raises(Killed):
        trainer(tmp_path / "parts", spoiled(interrupt, **options), loop, optimizer, **more).fit()
    assert last_of(tmp_path / "parts")["progress"]["epoch"] == after and not (tmp_path / "parts" / "DONE").exists()
    torch.manual_seed(99)  # a new process: other global state, weights overwritten on resuming
    forget_accelerator()
    trainer(tmp_path / "parts", supervised(seed=55, **options), loop, optimizer, **more).fit()
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    trainer(tmp_path, supervised(), LoopConfig(epochs=1)).fit()
    before = (tmp_path / "metrics.jsonl").read_bytes(), (tmp_path / "best.safetensors").stat().st_mtime_ns
    forget_accelerator()
    again = trainer(tmp_path, supervised(), LoopConfig(epochs=1)).fit()
    assert ((tmp_path / "metrics.jsonl").read_bytes(), (tmp_path / "best.safetensors").stat().st_mtime_ns) == before
    assert 0 <= again["validation/accuracy"] <= 1


# --- losses that are not finite


def poison(at: int) -> Callable[[Spoiled, int], None]:
    def spoil(method: Spoiled, step: int) -> None:
        if step == at:
            nn.init.constant_(method.student.network.fc.bias, float("nan"))

    return spoil


def test_nan_loss_stops_the_run_naming_epoch_and_step_and_keeps_what_was_good(tmp_path: Path) -> None:
    loop = trainer(tmp_path, spoiled(poison(5)), LoopConfig(epochs=3))
    with pytest.raises(Stopped, match=r"loss is nan at epoch 2, step 2 of 4.*lower optimizer.lr \(now 0.1\)"):
        loop.fit()
    state = last_of(tmp_path)
    assert state["progress"]["epoch"] == 1
    assert all(torch.isfinite(v).all() for v in state["parts"]["student"].values())
    weights, description = load_checkpoint(tmp_path / "best.safetensors")
    assert description["epoch"] == 1 and all(torch.isfinite(v).all() for v in weights.values())
    assert not (tmp_path / "DONE").exists() and len(metrics_of(tmp_path)) == 1


def test_nan_in_validation_stops_the_run_and_never_becomes_the_best(tmp_path: Path) -> None:
    class Broken(Supervised):
        def forward(self, batch: Batch) -> dict[str, Tensor]:
            out = super().forward(batch)
            late = not self.student.training and (tmp_path / "last" / "state.pt").is_file()
            return {**out, "loss": out["loss"] * (float("nan") if late else 1)}

    with pytest.raises(Stopped, match="validation loss is nan after epoch 2"):
        trainer(tmp_path, supervised(kind=Broken), LoopConfig(epochs=3, monitor="loss")).fit()
    assert load_checkpoint(tmp_path / "best.safetensors")[1]["epoch"] == 1
    assert last_of(tmp_path)["progress"]["epoch"] == 1


class Ruined(Supervised):
    """A number becomes infinite after a step, where no loss shows it."""

    def after_step(self, step: int) -> None:
        if step == 8:  # the last one of the second epoch
            self.ruin()


@pytest.mark.parametrize("place", ["parts.student.network.fc.bias", "optimizers.student.state.0.momentum_buffer", "ema"])
def test_what_the_last_step_of_an_epoch_ruins_reaches_no_checkpoint(tmp_path: Path, place: str) -> None:
    method = supervised(kind=Ruined)
    loop = trainer(tmp_path, method, LoopConfig(epochs=3, ema_decay=0.5), OptimizerConfig("SGD", momentum=0.9))
    first = next(iter(method.student.parameters()))
    method.ruin = {
        "p": lambda: nn.init.constant_(method.student.network.fc.bias, float("inf")),
        "o": lambda: nn.init.constant_(loop.parts.optimizers["student"].state[first]["momentum_buffer"], float("nan")),
        "e": lambda: nn.init.constant_(next(loop.parts.averages["student"].parameters()), float("nan")),
    }[place[0]]
    when = re.escape(" is not finite after epoch 1 of 3 and 4 of 4 batches of the next: stopped, and not saved")
    with pytest.raises(Stopped, match=f"^{re.escape(place)}.*{when}"):
        loop.fit()
    assert last_of(tmp_path)["progress"]["epoch"] == 1
    assert load_checkpoint(tmp_path / "best.safetensors")[1]["epoch"] == 1 and not (tmp_path / "DONE").exists()


def test_a_decay_of_nan_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(Stopped, match=r"ema\.student\."):
        trainer(tmp_path, supervised(), LoopConfig(epochs=2, ema_decay=float("nan"))).fit()
    assert not any((tmp_path / name).exists() for name in ("best.safetensors", "last/state.pt", "DONE"))
