"""The training loop: schedules, learning, selection, moving average."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.loops import AUGMENT, SGD, last_of, metrics_of, scripted, spoiled, trainer
from tests.scripts import forget_accelerator
from tests.tiny import supervised, tiny_source
from undegrade.trainers.config import LoopConfig, OptimizerConfig
from undegrade.trainers.optimizer import learning_rate_factor
from undegrade.utils.checkpoint import load_checkpoint
from undegrade.utils.data.batch_loader import BatchLoader
from undegrade.utils.data.batches import BatchSet

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

# --- learning rate


@pytest.mark.parametrize(
    ("schedule", "epoch", "factor"),
    [
        ("constant", 0, 1), ("constant", 9.5, 1),
        ("multistep", 2.99, 1), ("multistep", 3, 0.2), ("multistep", 6, 0.04), ("multistep", 9.9, 0.04),
        ("cosine", 0, 1), ("cosine", 5, 0.5), ("cosine", 2.5, 0.8535534), ("cosine", 10, 0), ("cosine", 12, 0),
    ],
)  # fmt: skip
def test_learning_rate_factor_of_each_schedule(schedule: str, epoch: float, factor: float) -> None:
    config = OptimizerConfig(schedule=schedule, milestones=[3, 6], gamma=0.2)
    assert learning_rate_factor(config, epoch, 10) == pytest.approx(factor, abs=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "multistep", "cosine"])
def test_warm_up_rises_linearly_from_zero(schedule: str) -> None:
    config = OptimizerConfig(schedule=schedule, milestones=[3], warmup_epochs=2)
    assert [learning_rate_factor(config, e, 10) for e in (0, 0.5, 1, 1.5)] == [0, 0.25, 0.5, 0.75]
    assert learning_rate_factor(config, 2, 10) > 0.9


def test_learning_rate_of_the_optimiser_follows_the_schedule_step_by_step(tmp_path: Path) -> None:
    seen: list[float] = []
    method = spoiled(lambda m, step: seen.append(loop.parts.optimizers["student"].param_groups[0]["lr"]))
    loop = trainer(tmp_path, method, LoopConfig(epochs=2), dataclasses.replace(SGD, schedule="cosine", warmup_epochs=0.5))
    loop.fit()
    assert seen == pytest.approx([0, 0.05, 0.0853553, 0.0691342, 0.05, 0.0308658, 0.0146447, 0.0038060], abs=1e-6)
    assert metrics_of(tmp_path)[1]["train/lr"] == pytest.approx(seen[-1], abs=1e-6)


# --- learning


def test_tiny_set_is_learnt_by_heart(tmp_path: Path) -> None:
    optimizer = OptimizerConfig("AdamW", lr=0.03, weight_decay=0.0, schedule="constant")
    best = trainer(tmp_path, supervised(norm=True), LoopConfig(epochs=12), optimizer).fit()
    assert best["validation/accuracy"] == 1
    rows = metrics_of(tmp_path)
    assert [row["epoch"] for row in rows] == list(range(1, 13)) and rows[-1]["step"] == 48
    assert rows[-1]["train/loss"] < 0.5 * rows[0]["train/loss"]
    assert (tmp_path / "DONE").is_file()


def test_metrics_are_means_over_images_whatever_the_batch_sizes(tmp_path: Path) -> None:
    method = supervised()
    loop = trainer(tmp_path, method, LoopConfig(epochs=1), dataclasses.replace(SGD, lr=0.0), batch_size=9)  # batches of 9, 9, 6
    best = loop.fit()
    whole = next(BatchLoader(BatchSet(tiny_source(), (), 24, 7)).epoch(0))
    expected = method.eval()(whole)
    assert best["train/loss"] == pytest.approx(expected["loss"].item(), abs=1e-6)
    assert best["validation/loss"] == pytest.approx(expected["loss"].item(), abs=1e-6)
    assert best["validation/accuracy"] == expected["accuracy"].double().mean().item()


def test_accumulated_gradients_equal_those_of_the_doubled_batch(tmp_path: Path) -> None:
    weights = []
    for name, size, accumulate in (("halves", 6, 2), ("whole", 12, 1)):
        loop = LoopConfig(epochs=3, accumulate=accumulate)
        trainer(tmp_path / name, supervised(), loop, dataclasses.replace(SGD, momentum=0.9), size, AUGMENT).fit()
        weights.append(last_of(tmp_path / name))
    halves, whole = weights
    assert halves["progress"]["step"] == whole["progress"]["step"] == 6
    for name, value in whole["parts"]["student"].items():
        torch.testing.assert_close(halves["parts"]["student"][name], value, rtol=0, atol=1e-6)


def test_gradient_norm_is_clipped(tmp_path: Path) -> None:
    method = supervised()
    before = [p.detach().clone() for p in method.student.parameters()]
    loop = LoopConfig(epochs=1, clip_norm=1e-3)
    trainer(tmp_path, method, loop, dataclasses.replace(SGD, lr=1.0), batch_size=24).fit()
    moved = torch.cat([(a - b).flatten() for a, b in zip(method.student.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(1e-3, rel=0.01)


def test_one_process_keeps_its_own_batchnorm(tmp_path: Path) -> None:
    method = supervised(norm=True)
    trainer(tmp_path, method, LoopConfig(epochs=1, sync_batchnorm=True))
    assert type(method.student.network.norm) is nn.BatchNorm2d


def test_bf16_autocast_runs_on_a_cpu(tmp_path: Path) -> None:
    method, kinds = supervised(norm=True), set()
    method.student.network.stage.register_forward_hook(lambda module, given, result: kinds.add(result.dtype))
    best = trainer(tmp_path, method, LoopConfig(epochs=2, mixed_precision="bf16"), batch_size=8).fit()
    assert kinds == {torch.bfloat16}
    assert 0 < best["validation/loss"] < 3
    assert {v.dtype for v in last_of(tmp_path)["parts"]["student"].values()} == {torch.float32, torch.int64}


# --- the best checkpoint


def test_best_is_chosen_by_validation_and_ties_go_to_the_later_epoch(tmp_path: Path) -> None:
    loop = trainer(tmp_path, scripted([3, 8, 5, 8, 2]), LoopConfig(epochs=5))
    best = loop.fit()
    assert best["validation/accuracy"] == pytest.approx(8 / 24)
    assert loop.progress.best_epoch == 4
    description = load_checkpoint(tmp_path / "best.safetensors", "classifier")[1]
    assert description["epoch"] == 4 and description["accuracy"] == pytest.approx(8 / 24, abs=1e-6)


def test_monitored_loss_chooses_the_lowest(tmp_path: Path) -> None:
    rises = dataclasses.replace(SGD, schedule="multistep", milestones=[0])
    object.__setattr__(rises, "gamma", -1.0)  # no configuration may: every step makes it worse
    loop = trainer(tmp_path, supervised(), LoopConfig(epochs=3, monitor="loss"), rises)
    best = loop.fit()
    losses = [row["validation/loss"] for row in metrics_of(tmp_path)]
    assert losses == sorted(losses) and losses[0] < losses[2]
    assert loop.progress.best_epoch == 1 and best["validation/loss"] == pytest.approx(losses[0], abs=1e-6)


def test_patience_ends_the_run_after_so_many_validations_without_a_better_value(tmp_path: Path) -> None:
    loop = trainer(tmp_path, scripted([5, 6, 4, 3, 9]), LoopConfig(epochs=5, patience=2))
    loop.fit()
    assert [row["epoch"] for row in metrics_of(tmp_path)] == [1, 2, 3, 4]
    assert loop.progress.best_epoch == 2 and (tmp_path / "DONE").is_file()


def test_validation_comes_every_so_many_epochs_and_after_the_last(tmp_path: Path) -> None:
    trainer(tmp_path, scripted([1, 2, 3]), LoopConfig(epochs=5, validate_every=2)).fit()
    assert [row["epoch"] for row in metrics_of(tmp_path) if "validation/accuracy" in row] == [2, 4, 5]


# --- moving average


def test_moving_average_follows_its_recurrence_and_is_what_is_saved(tmp_path: Path) -> None:
    students, averages = [], []
    for epochs in (1, 2, 3):  # one step an epoch, each in a Trainer of its own
        loop = LoopConfig(epochs=epochs, ema_decay=0.8)
        forget_accelerator()
        trainer(tmp_path, supervised(), loop, dataclasses.replace(SGD, lr=1.0), batch_size=24).fit()
        state = last_of(tmp_path)
        students.append(state["parts"]["student"]["network.fc.weight"])
        averages.append(state["ema"]["student"]["module.network.fc.weight"])
    expected = students[0]
    for student, average in zip(students[1:], averages[1:], strict=True):
        expected = 0.8 * expected + 0.2 * student
        torch.testing.assert_close(average, expected)
    assert not torch.equal(averages[2], students[2])
    saved, description = load_checkpoint(tmp_path / "best.safetensors")
    assert torch.equal(saved["fc.weight"], averages[description["epoch"] - 1])


def test_moving_average_is_validated_in_eval_mode(tmp_path: Path) -> None:
    method = supervised(norm=True, dropout=0.5)
    best = trainer(tmp_path, method, LoopConfig(epochs=2, ema_decay=0.5, monitor="loss"), dataclasses.replace(SGD, lr=0.05)).fit()
    saved, _ = load_checkpoint(tmp_path / "best.safetensors")
    fresh = supervised(norm=True, dropout=0.5).eval()
    fresh.student.network.load_state_dict(saved)
    whole = next(BatchLoader(BatchSet(tiny_source(), (), 24, 7)).epoch(0))
    assert best["validation/loss"] == pytest.approx(fresh(whole)["loss"].item(), abs=1e-5)
    assert isinstance(method.student, nn.Module) and method.student.training is False
