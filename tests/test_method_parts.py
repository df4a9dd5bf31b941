"""Methods that train several parts, or keep a module that is not trained: both through the loop."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tests.loops import AUGMENT, SGD, Killed, assert_equal_runs, last_of, metrics_of, trainer
from tests.scripts import forget_accelerator
from tests.tiny import supervised, tiny_batch, tiny_source
from tests.toy_methods import StudentAndPolicy, StudentAndTarget
from undegrade.trainers.config import LoopConfig, OptimizerConfig, TrainConfig
from undegrade.trainers.means import ImageMeans
from undegrade.trainers.method import Method, check_parts
from undegrade.trainers.supervised import Supervised
from undegrade.utils.checkpoint import load_checkpoint
from undegrade.utils.config import build

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

POLICY = {"name": "SGD", "lr": 0.5, "schedule": "cosine"}
TWO_RATES = OptimizerConfig("AdamW", lr=0.01, schedule="constant", parts={"policy": POLICY})
LOOP = LoopConfig(epochs=3, accumulate=2, clip_norm=1.0, ema_decay=0.9)


def interrupted(method: Method, at: int) -> Method:
    """The method; it is killed in the training step `at`."""
    forward, steps = method.forward, itertools.count()

    def counted(batch: dict) -> dict[str, Tensor]:
        if method.student.training and next(steps) == at:
            raise Killed
        return forward(batch)

    method.forward = counted  # type: ignore[method-assign]
    return method


# --- through the loop


@pytest.mark.parametrize("kind", [StudentAndPolicy, StudentAndTarget])
def test_all_parts_are_trained_averaged_exported_and_resumed_to_the_bit(tmp_path: Path, kind: type[Method]) -> None:
    optimizer = TWO_RATES if kind is StudentAndPolicy else dataclasses.replace(TWO_RATES, parts={})
    more = {"batch_size": 5, "augment": AUGMENT, "degradations": ("noise",)}
    trainer(tmp_path / "whole", kind(), LOOP, optimizer, **more).fit()
    forget_accelerator()
    with pytest.raises(Killed):
        trainer(tmp_path / "parts", interrupted(kind(), 7), LOOP, optimizer, **more).fit()
    assert last_of(tmp_path / "parts")["progress"]["epoch"] == 1
    torch.manual_seed(99)  # a new process: other global state, weights overwritten on resuming
    forget_accelerator()
    trainer(tmp_path / "parts", kind(seed=55), LOOP, optimizer, **more).fit()
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")

    state, start = last_of(tmp_path / "whole"), kind()
    assert set(state["parts"]) == set(state["ema"]) == set(state["optimizers"]) == set(kind.parts)
    assert set(state["kept"]) == set(kind.kept)
    for group, names in (("parts", kind.parts), ("kept", kind.kept)):
        for name in names:
            before = getattr(start, name).state_dict()
            moved = [key for key, value in state[group][name].items() if not torch.equal(value, before[key])]
            assert {key for key, _ in getattr(start, name).named_parameters()} <= set(moved)
    assert load_checkpoint(tmp_path / "whole/best.safetensors", "classifier")[1]["epoch"] >= 1


def test_a_policy_learns_in_train_mode_at_its_own_rate_and_its_average_is_exported(tmp_path: Path) -> None:
    method = StudentAndPolicy()
    loop = trainer(tmp_path, method, LoopConfig(epochs=2, validate_every=2, ema_decay=0.5), TWO_RATES, batch_size=24)
    kinds = {name: type(optimizer).__name__ for name, optimizer in loop.parts.optimizers.items()}
    assert kinds == {"student": "AdamW", "policy": "SGD"}
    tracked: Tensor = method.policy[1].num_batches_tracked  # type: ignore[assignment]
    loop.fit()
    assert tracked == 2  # BatchNorm saw two training steps, and no validation
    rows = metrics_of(tmp_path)
    assert [(row["train/lr_student"], row["train/lr_policy"]) for row in rows] == [(0.01, 0.5), (0.01, 0.25)]
    assert "validation/entropy" in rows[1]
    weights, description = load_checkpoint(tmp_path / "best.safetensors")
    averaged = last_of(tmp_path)["ema"]["policy"]["module.0.weight"]
    assert description["epoch"] == 2 and torch.equal(weights["policy.0.weight"], averaged)
    assert not torch.equal(averaged, method.policy[0].weight)


def test_a_kept_module_stays_in_eval_mode_without_gradients_and_follows_each_step(tmp_path: Path) -> None:
    method, start = StudentAndTarget(), StudentAndTarget()
    trainer(tmp_path, method, LoopConfig(epochs=1, accumulate=2), dataclasses.replace(SGD, lr=1.0), batch_size=12).fit()
    assert method.steps == (1,)
    assert method.train().student.training and not any(m.training for m in method.target.modules())
    assert all(p.grad is None and not p.requires_grad for p in method.target.parameters())
    assert torch.equal(method.target.network.norm.running_mean, start.target.network.norm.running_mean)
    for mine, first, student in zip(*(m.parameters() for m in (method.target, start.target, method.student)), strict=True):
        torch.testing.assert_close(mine, 0.8 * first + 0.2 * student)


def test_one_norm_of_all_parts_is_clipped(tmp_path: Path) -> None:
    method, start = StudentAndPolicy(), StudentAndPolicy()
    optimizer = dataclasses.replace(SGD, lr=1.0, parts={"policy": {"lr": 2.0}})
    trainer(tmp_path, method, LoopConfig(epochs=1, clip_norm=1e-3), optimizer, batch_size=24).fit()
    squares = {}
    for name, rate in (("student", 1.0), ("policy", 2.0)):
        pairs = zip(getattr(method, name).parameters(), getattr(start, name).parameters(), strict=True)
        squares[name] = sum(((a - b) / rate).double().square().sum().item() for a, b in pairs)
    assert sum(squares.values()) ** 0.5 == pytest.approx(1e-3, rel=0.01) and min(squares.values()) > 0


def test_every_part_gets_batchnorm_over_all_processes(tmp_path: Path) -> None:
    with mock.patch.object(Accelerator, "num_processes", new_callable=mock.PropertyMock, return_value=2):
        method: Method = StudentAndPolicy()
        trainer(tmp_path, method, LoopConfig(epochs=1))
    assert [type(m).__name__ for m in (method.student.network.norm, method.policy[1])] == ["SyncBatchNorm2d"] * 2


def test_a_metric_that_is_no_mean_over_images_is_logged_and_monitored(tmp_path: Path) -> None:
    class Ratio(Supervised):
        def forward(self, batch: dict) -> dict[str, Tensor]:
            part, whole = batch["clean"][:, 0].sum((1, 2)), batch["clean"].sum((1, 2, 3))
            return {"loss": super().forward(batch)["loss"], "part": part, "whole": whole}

        def summary(self, means: dict[str, float]) -> dict[str, float]:
            return {"loss": means["loss"], "ratio": means["part"] / means["whole"]}

    method = supervised(kind=Ratio)
    method.monitors = {"ratio": "max"}
    best = trainer(tmp_path, method, LoopConfig(epochs=1, monitor="ratio"), batch_size=9).fit()
    images = tiny_source().images(range(24)).double()
    assert best["validation/ratio"] == pytest.approx((images[:, 0].sum() / images.sum()).item())
    logged = {f"{stage}/{name}" for stage in ("train", "validation") for name in ("loss", "ratio")}
    assert set(metrics_of(tmp_path)[0]) == {"epoch", "step", "train/lr", *logged}


# --- options by part


def test_options_of_a_part_that_are_not_set_are_those_of_all(tmp_path: Path) -> None:
    tree = {"lr": 0.1, "weight_decay": 0.3, "parts": {"policy": {"lr": 0.2, "milestones": [4]}}}
    section = build(TrainConfig, {"name": "x", "optimizer": tree}).optimizer.by_part(("student", "policy"))
    policy = section["policy"]
    assert (policy.lr, policy.weight_decay, policy.milestones, policy.name) == (0.2, 0.3, [4], "SGD")
    assert (section["student"].lr, section["student"].milestones) == (0.1, [])


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"policy": {"lrr": 1}}, ("'optimizer'", "'parts.policy'", "'lrr'", "'lr'")),
        ({"policy": {"parts": {}}}, ("'optimizer'", "'parts.policy'", "'parts'")),
        ({"policy": {"lr": -1}}, ("config key 'optimizer.parts.policy.lr': expected a number of at least 0, got -1",)),
        ({"policy": {"min_lr": 0.5}}, ("config section 'optimizer.parts.policy': min_lr 0.5 is above lr, 0.1",)),
        ({"policy": {"name": "SDG"}}, ("parts.policy.name", "'SDG'", "'SGD'")),
    ],
)
def test_unfit_options_of_a_part_are_refused_by_name(parts: dict, words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        build(TrainConfig, {"name": "x", "optimizer": {"parts": parts}})
    assert all(word in str(caught.value) for word in words)


def test_options_of_a_part_that_the_method_does_not_train_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown trainable part 'polcy'.*did you mean 'policy'.*student, policy"):
        trainer(tmp_path, StudentAndPolicy(), LOOP, dataclasses.replace(SGD, parts={"polcy": {"lr": 1.0}}))


# --- what is refused


def test_a_part_without_a_gradient_in_the_first_step_is_named(tmp_path: Path) -> None:
    class Forgotten(StudentAndPolicy):
        def forward(self, batch: dict) -> dict[str, Tensor]:
            return {"loss": self.student(batch["clean"]).square().mean()}

    with pytest.raises(ValueError, match="part 'policy' of Forgotten got a gradient in the first step"):
        trainer(tmp_path, Forgotten(), LoopConfig(epochs=1, accumulate=2, monitor="loss")).fit()
    assert not (tmp_path / "last").exists()


def test_parameters_that_nothing_would_train_are_refused() -> None:
    method = supervised()
    check_parts(method)
    method.policy = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"2 parameters require gradients but belong to no part .* e\.g\. policy\.weight"):
        check_parts(method)
    method.policy.requires_grad_(False)
    check_parts(method)


def test_parts_that_are_no_parts_are_refused() -> None:
    method = StudentAndTarget()
    method.target = method.student
    with pytest.raises(ValueError, match="'student' and 'target' share a parameter"):
        check_parts(method)
    method = StudentAndPolicy()
    method.policy.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the part 'policy' requires a gradient"):
        check_parts(method)
    method.parts = ("student", "polcy")
    with pytest.raises(ValueError, match="unknown submodule 'polcy'.*'policy'"):
        check_parts(method)


# --- means over images


def test_means_are_exact_whatever_the_batch_sizes_and_kinds(tmp_path: Path) -> None:
    means = ImageMeans(trainer(tmp_path, supervised(), LOOP).accelerator)
    for values in ([1.0, 2.0, 3.0], [10.0]):
        each = torch.tensor(values)
        means.add({"each": each, "mean": each.mean(), "right": each > 2}, len(values))
    assert means.means() == {"each": 4.0, "mean": 4.0, "right": 0.5}
    with pytest.raises(ValueError, match=r"'map' .* \[2, 8, 8\].* 2 images"):
        means.add({"map": tiny_batch(images=2)["clean"][:, 0]}, 2)
