"""The training loop: schedules, selection, moving average, resuming to the bit, what stops it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tests.scripts import forget_accelerator
from tests.tiny import supervised, tiny_source
from trainers.config import LoopConfig, OptimizerConfig
from trainers.methods import Supervised
from trainers.trainer import Trainer, learning_rate_factor
from utils.checkpoint import load_checkpoint
from utils.data.batches import AugmentConfig, Batch, BatchLoader, BatchSet
from utils.errors import Stopped

AUGMENT = AugmentConfig(flip=True, crop_padding=1, cutout=2)
SGD = OptimizerConfig("SGD", lr=0.1, weight_decay=0.0, momentum=0.0, schedule="constant")


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> Iterator[None]:
    forget_accelerator()
    yield
    forget_accelerator()


def trainer(
    run: Path,
    method: Supervised,
    loop: LoopConfig,
    optimizer: OptimizerConfig = SGD,
    batch_size: int = 6,
    augment: AugmentConfig | None = None,
    degradations: tuple[str, ...] = (),
) -> Trainer:
    run.mkdir(parents=True, exist_ok=True)
    source = tiny_source()
    train = BatchSet(source, degradations, batch_size, 7, augment or AugmentConfig())
    validation = BatchSet(source, degradations, 10, 7)
    accelerator = Accelerator(cpu=True, mixed_precision=loop.mixed_precision, gradient_accumulation_steps=loop.accumulate)
    return Trainer(method, BatchLoader(train), BatchLoader(validation), optimizer, loop, accelerator, run, 3)


def metrics_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def last_of(run: Path) -> dict:
    return torch.load(run / "last" / "state.pt", weights_only=True)


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
    """Validates with the accuracies of a list, one an epoch (24 images in batches of 10, 10 and 4)."""

    hits: list[int]
    calls = 0

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        out = super().forward(batch)
        if not self.student.training:
            right = self.hits[self.calls // 3] if self.calls % 3 == 0 else 0
            self.calls += 1
            out["hits"] = torch.arange(len(batch["key"])) < right
        return out


def scripted(hits: list[int]) -> Scripted:
    method = supervised(kind=Scripted)
    method.hits = hits
    return method


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
    method = spoiled(lambda m, step: seen.append(loop.optimizer.param_groups[0]["lr"]))
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
    assert best["validation/accuracy"] == expected["hits"].double().mean().item()


def test_accumulated_gradients_equal_those_of_the_doubled_batch(tmp_path: Path) -> None:
    weights = []
    for name, size, accumulate in (("halves", 6, 2), ("whole", 12, 1)):
        loop = LoopConfig(epochs=3, accumulate=accumulate)
        trainer(tmp_path / name, supervised(), loop, dataclasses.replace(SGD, momentum=0.9), size, AUGMENT).fit()
        weights.append(last_of(tmp_path / name))
    halves, whole = weights
    assert halves["progress"]["step"] == whole["progress"]["step"] == 6
    for name, value in whole["student"].items():
        torch.testing.assert_close(halves["student"][name], value, rtol=0, atol=1e-6)


def test_gradient_norm_is_clipped(tmp_path: Path) -> None:
    method = supervised()
    before = [p.detach().clone() for p in method.student.parameters()]
    loop = LoopConfig(epochs=1, clip_norm=1e-3)
    trainer(tmp_path, method, loop, dataclasses.replace(SGD, lr=1.0), batch_size=24).fit()
    moved = torch.cat([(a - b).flatten() for a, b in zip(method.student.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(1e-3, rel=0.01)


def test_bf16_autocast_runs_on_a_cpu(tmp_path: Path) -> None:
    method, kinds = supervised(norm=True), set()
    method.student.network.stage.register_forward_hook(lambda module, given, result: kinds.add(result.dtype))
    best = trainer(tmp_path, method, LoopConfig(epochs=2, mixed_precision="bf16"), batch_size=8).fit()
    assert kinds == {torch.bfloat16}
    assert 0 < best["validation/loss"] < 3
    assert {v.dtype for v in last_of(tmp_path)["student"].values()} == {torch.float32, torch.int64}


# --- the best checkpoint


def test_best_is_chosen_by_validation_and_ties_go_to_the_later_epoch(tmp_path: Path) -> None:
    loop = trainer(tmp_path, scripted([3, 8, 5, 8, 2]), LoopConfig(epochs=5))
    best = loop.fit()
    assert best["validation/accuracy"] == pytest.approx(8 / 24)
    assert loop.progress.best_epoch == 4
    description = load_checkpoint(tmp_path / "best.safetensors", "classifier")[1]
    assert description["epoch"] == 4 and description["accuracy"] == pytest.approx(8 / 24, abs=1e-6)


def test_monitored_loss_chooses_the_lowest(tmp_path: Path) -> None:
    rises = dataclasses.replace(SGD, schedule="multistep", milestones=[0], gamma=-1.0)  # every step makes it worse
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
        students.append(state["student"]["network.fc.weight"])
        averages.append(state["ema"]["module.network.fc.weight"])
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


# --- resuming


class Interrupted(Exception):
    """Stands for a killed process."""


def assert_equal_runs(a: Path, b: Path) -> None:
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
    assert (a / "best.safetensors").read_bytes() == (b / "best.safetensors").read_bytes()
    first, second = last_of(a), last_of(b)
    assert first["progress"] == second["progress"]
    for part in ("student", "ema"):
        assert first[part].keys() == second[part].keys()
        assert all(torch.equal(first[part][k], second[part][k]) for k in first[part])
    for i, values in first["optimizer"]["state"].items():
        others = second["optimizer"]["state"][i]
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(others[k])) for k, v in values.items())


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
            raise Interrupted

    trainer(tmp_path / "whole", supervised(**options), loop, optimizer, **more).fit()
    forget_accelerator()
    with pytest.raises(Interrupted):
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
    assert all(torch.isfinite(v).all() for v in state["student"].values())
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
