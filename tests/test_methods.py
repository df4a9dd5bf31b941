"""Losses against values worked out by hand, and what methods refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.checkpoints import save_random
from tests.tiny import CLASSES, SIDE, negative_log_likelihood, supervised, tiny_batch, tiny_source
from undegrade.models.diffusion.denoiser import build_denoiser
from undegrade.trainers.config import TrainConfig, fill
from undegrade.trainers.denoising import Denoising
from undegrade.trainers.method import Context
from undegrade.trainers.methods import METHODS
from undegrade.utils.checkpoint import file_digest
from undegrade.utils.config import build
from undegrade.utils.data.training import DataConfig
from undegrade.utils.seeding import seed_everything

# --- supervised


@pytest.mark.parametrize("view", ["clean", "degraded"])
def test_supervised_is_the_cross_entropy_of_its_view(view: str) -> None:
    method, batch = supervised(view=view), tiny_batch()
    out = method(batch)
    logits = method.student(batch[view])
    assert out["loss"].item() == pytest.approx(negative_log_likelihood(logits, batch["label"]), abs=1e-6)
    assert out["accuracy"].tolist() == (logits.argmax(1) == batch["label"]).tolist()


def test_checkpoint_of_a_classifier_says_what_network_and_classes_it_holds() -> None:
    method = supervised()
    weights, description = method.export(method.named_parts())
    assert description["classes"] == list(CLASSES)
    assert (description["image_size"], description["resize"]) == (SIDE, None)
    assert description["kind"] == "classifier" and description["num_classes"] == 3
    assert set(weights) == set(method.student.network.state_dict())


# --- denoising


def small_denoiser() -> Denoising:
    seed_everything(0)
    return Denoising(build_denoiser(SIDE, [8, 8]))


def test_denoising_loss_in_eval_mode_is_deterministic_and_belongs_to_the_images() -> None:
    method, batch = small_denoiser().eval(), tiny_batch(images=4)
    losses = [method(batch)["loss"].item() for _ in range(2)]
    assert losses[0] == losses[1]
    halves = [{k: v[part] for k, v in batch.items()} for part in (slice(0, 2), slice(2, 4))]
    assert sum(method(half)["loss"].item() for half in halves) / 2 == pytest.approx(losses[0], rel=1e-5)


def test_denoising_loss_in_training_draws_new_noise() -> None:
    method, batch = small_denoiser().train(), tiny_batch()
    assert method(batch)["loss"].item() != method(batch)["loss"].item()


def test_denoising_loss_of_a_network_that_says_zero_is_the_mean_square_of_the_noise() -> None:
    method = small_denoiser().eval()
    for p in method.student.unet.conv_out.parameters():
        nn.init.zeros_(p)
    batch = tiny_batch(images=64)
    batch["key"] = [f"other{i}" for i in range(64)]
    assert method(batch)["loss"].item() == pytest.approx(1, abs=0.05)  # 12,288 standard normal numbers


def test_checkpoint_of_a_denoiser_says_what_network_it_holds() -> None:
    method = small_denoiser()
    weights, description = method.export(method.named_parts())
    assert description["kind"] == "diffusion" and description["image_size"] == SIDE
    assert set(weights) == set(method.student.unet.state_dict())


# --- built from a configuration


def built(name: str, save_dir: Path, degradations: tuple[str, ...] = (), model: dict | None = None, **method: object) -> nn.Module:
    config = TrainConfig("run", str(save_dir), data=DataConfig(degradations=list(degradations)), model=model or {})
    kind = METHODS[name]
    parts = build(kind.model, config.model, "model"), build(kind.method, {"name": name, **method}, "method")
    return kind.build(*parts, Context(tiny_source(), list(degradations), config))


def test_placeholders_of_names_are_filled_from_the_configuration() -> None:
    config = TrainConfig("run", data=DataConfig("some/photos", degradations=["jpeg", "blur"]), model={"arch": "ResNet20"})
    assert fill("sl/{dataset}/{arch}-{arch}/{deg}/{split}", config, split="test") == "sl/photos/ResNet20-ResNet20/jpeg+blur/test"
    assert fill("{deg}", TrainConfig("run")) == "clean"


def test_one_line_names_a_teacher_for_each_degradation(tmp_path: Path) -> None:
    for seed, deg in enumerate(("jpeg", "blur")):
        save_random(tmp_path / "sl" / deg / "best.safetensors", seed, classes=CLASSES)
    method = built("distillation", tmp_path, ("jpeg", "blur"), teachers="sl/{deg}", feature_weights={"pooled": 1.0})
    first, second = (t.network.conv1.weight for t in method.teachers)
    assert not torch.equal(first, second)


def test_distillation_without_teachers_or_degradations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="method.teachers is empty: name a checkpoint, run folder or run"):
        built("distillation", tmp_path, ("jpeg",))
    with pytest.raises(ValueError, match="distillation needs data.degradations, e.g. .*--dt jpeg"):
        built("distillation", tmp_path, teachers="somewhere")


def test_teacher_of_other_classes_is_refused(tmp_path: Path) -> None:
    save_random(tmp_path / "best.safetensors", classes=("circle", "line", "triangle"))
    with pytest.raises(ValueError, match="class 2 is 'triangle' there, 'square' here"):
        built("distillation", tmp_path, ("jpeg",), teachers=str(tmp_path))


def test_init_from_loads_the_weights_and_refuses_another_architecture(tmp_path: Path) -> None:
    save_random(tmp_path / "best.safetensors", classes=CLASSES)
    method = built("supervised", tmp_path, model={"init_from": str(tmp_path)})
    twin = built("supervised", tmp_path, model={"init_from": str(tmp_path)})
    assert torch.equal(method.student.network.fc.weight, twin.student.network.fc.weight)
    with pytest.raises(ValueError, match="holds a ResNet20, model.arch is ResNet56"):
        built("supervised", tmp_path, model={"init_from": str(tmp_path), "arch": "ResNet56"})


def test_checkpoint_says_the_degradations_and_the_parent_that_the_student_started_from(tmp_path: Path) -> None:
    parent = save_random(tmp_path / "best.safetensors", classes=CLASSES)
    for name, more in (("supervised", {}), ("distillation", {"teachers": str(tmp_path)})):
        for model, expected in (({"init_from": str(tmp_path)}, file_digest(parent)), ({}, None)):
            method = built(name, tmp_path, ("jpeg", "blur+noise", "fog"), model, **more)
            description = method.export(method.named_parts())[1]
            assert (description["degradations"], description["initial_weights"]) == (["jpeg", "blur+noise", "fog"], expected)


def test_teacher_that_was_trained_on_another_degradation_is_refused(tmp_path: Path) -> None:
    for deg in ("jpeg", "blur"):
        save_random(tmp_path / "sl" / deg / "best.safetensors", classes=CLASSES, degradations=["jpeg"])
    built("distillation", tmp_path, ("jpeg",), teachers="sl/{deg}")
    with pytest.raises(ValueError, match="stands for the degradation 'blur' but was trained on jpeg"):
        built("distillation", tmp_path, ("jpeg", "blur"), teachers="sl/{deg}")
    built("distillation", tmp_path, ("jpeg", "blur"), teachers="sl/jpeg")  # named on purpose, for both
