"""Losses against values worked out by hand, and what methods refuse."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.classifiers import build_classifier, describe
from models.diffusion import build_denoiser
from tests.tiny import CLASSES, SIDE, supervised, tiny_batch, tiny_classifier, tiny_source
from trainers.config import DataConfig, TrainConfig, fill
from trainers.methods import METHODS, Context, Denoising, Distillation, DistillationConfig, cosine_distance
from utils.checkpoint import save_checkpoint
from utils.config import build
from utils.seeding import seed_everything


def distillation(student: object, teachers: list, **options: object) -> Distillation:
    return Distillation(student, teachers, tiny_source(), DistillationConfig(**options))


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Mean of -log softmax(logits)[label], in plain Python."""
    rows = []
    for values, label in zip(logits.tolist(), labels.tolist(), strict=True):
        rows.append(math.log(sum(math.exp(v) for v in values)) - values[label])
    return sum(rows) / len(rows)


# --- cosine distance


def test_cosine_distance_is_zero_for_parallel_features() -> None:
    a = torch.randn(5, 3, 2, 2)
    assert cosine_distance(a, 7 * a).item() == pytest.approx(0, abs=1e-6)


def test_cosine_distance_is_one_for_orthogonal_features() -> None:
    assert cosine_distance(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 2.0]])).item() == 1


def test_cosine_distance_is_two_for_opposite_features() -> None:
    assert cosine_distance(torch.tensor([[3.0, 4.0]]), torch.tensor([[-3.0, -4.0]])).item() == pytest.approx(2)


@pytest.mark.parametrize("other", [torch.ones(2, 4), torch.zeros(2, 4)])
def test_cosine_distance_is_exactly_one_with_an_all_zero_map(other: Tensor) -> None:
    zero = torch.zeros(2, 4, requires_grad=True)
    distance = cosine_distance(zero, other)
    distance.backward()
    assert distance.item() == 1
    assert zero.grad is not None and torch.isfinite(zero.grad).all()


def test_cosine_distance_equals_torchs_cosine_embedding_loss() -> None:
    a, b = torch.randn(6, 4, 3, 3), torch.randn(6, 4, 3, 3)
    expected = nn.CosineEmbeddingLoss()(a.flatten(1), b.flatten(1), torch.ones(6))
    assert cosine_distance(a, b).item() == pytest.approx(expected.item(), abs=1e-6)


def test_cosine_distance_of_half_precision_features_is_computed_in_float32() -> None:
    a = torch.full((1, 4096), 100.0, dtype=torch.float16)  # the square sum overflows float16
    assert cosine_distance(a, a).item() == pytest.approx(0, abs=1e-6)


# --- supervised


@pytest.mark.parametrize("view", ["clean", "degraded"])
def test_supervised_is_the_cross_entropy_of_its_view(view: str) -> None:
    method, batch = supervised(view=view), tiny_batch()
    out = method(batch)
    logits = method.student(batch[view])
    assert out["loss"].item() == pytest.approx(negative_log_likelihood(logits, batch["label"]), abs=1e-6)
    assert out["hits"].tolist() == (logits.argmax(1) == batch["label"]).tolist()


def test_checkpoint_of_a_classifier_says_what_network_and_classes_it_holds() -> None:
    method = supervised()
    weights, description = method.checkpoint(method.student)
    assert description["classes"] == list(CLASSES)
    assert description["kind"] == "classifier" and description["num_classes"] == 3
    assert set(weights) == set(method.student.network.state_dict())


# --- distillation


def test_student_that_is_every_teacher_on_the_same_images_has_feature_distance_zero() -> None:
    seed_everything(0)
    student = build_classifier("ResNet20", 3, (0.5,) * 3, (0.25,) * 3)
    names = {"stage1": 1.0, "stage2": 1.0, "stage3": 1.0, "pooled": 1.0}
    method = distillation(student, [copy.deepcopy(student) for _ in range(3)], feature_weights=names).eval()
    batch = tiny_batch(degradations=3)
    batch["degraded"] = batch["clean"].clone()
    assert method(batch)["feature_distance"].item() == pytest.approx(0, abs=2e-5)


def test_all_zero_student_maps_are_at_distance_one_for_each_of_four_degradations() -> None:
    student = tiny_classifier()
    nn.init.zeros_(student.network.stage.weight)
    method = distillation(student, [tiny_classifier() for _ in range(4)], feature_weights={"stage1": 1.0})
    assert method(tiny_batch(degradations=4))["feature_distance"].item() == 4.0


def test_orthogonal_pooled_features_give_the_weight_for_each_of_three_degradations() -> None:
    student, teacher = tiny_classifier(), tiny_classifier()
    for classifier, channel in ((student, 0), (teacher, 1)):  # positive images: one channel positive, the others zero
        nn.init.zeros_(classifier.network.stage.weight)
        nn.init.ones_(classifier.network.stage.weight[channel])
    method = distillation(student, [teacher] * 3, feature_weights={"pooled": 0.7})
    assert method(tiny_batch(degradations=3))["feature_distance"].item() == pytest.approx(0.7 * 3, abs=1e-6)


@pytest.mark.parametrize("teacher_view", ["clean", "degraded"])
def test_feature_distance_is_a_sum_over_degradations_of_means_over_their_images(teacher_view: str) -> None:
    seed_everything(1)
    student, teachers = tiny_classifier(), [tiny_classifier(), tiny_classifier()]
    weights = {"stage1": 2.0, "pooled": 0.5}
    method = distillation(student, teachers, feature_weights=weights, teacher_view=teacher_view, ce_weight=0.3)
    batch = tiny_batch(degradations=2)
    keep = [0, 1, 2, 3, 4, 6]  # four images of the first degradation, two of the second
    batch = {k: [v[i] for i in keep] if k == "key" else v[keep] for k, v in batch.items()}
    out = method(batch)
    expected = 0.0
    for name, weight in weights.items():
        distances: dict[int, list[float]] = {0: [], 1: []}
        for i, d in enumerate(batch["deg"].tolist()):
            a = student.features(batch["degraded"][i : i + 1])[name].flatten()
            b = teachers[d].features(batch[teacher_view][i : i + 1])[name].flatten()
            distances[d].append(1 - (a @ b / (a.norm() * b.norm())).item())
        expected += weight * sum(sum(values) / len(values) for values in distances.values())
    assert out["feature_distance"].item() == pytest.approx(expected, abs=1e-5)
    supervised_part = negative_log_likelihood(student(batch["degraded"]), batch["label"])
    assert out["cross_entropy"].item() == pytest.approx(supervised_part, abs=1e-6)
    assert out["loss"].item() == pytest.approx(0.3 * supervised_part + expected, abs=1e-5)


def test_cross_entropy_is_the_mean_over_all_images_of_all_degradations() -> None:
    student = tiny_classifier()
    batch = tiny_batch(degradations=3, images=5)
    out = distillation(student, [tiny_classifier()] * 3, feature_weights={})(batch)
    per_image = [negative_log_likelihood(student(batch["degraded"][i : i + 1]), batch["label"][i : i + 1]) for i in range(15)]
    assert out["cross_entropy"].item() == pytest.approx(sum(per_image) / 15, abs=1e-6)
    assert out["loss"].item() == pytest.approx(out["cross_entropy"].item())  # no feature, no distance
    assert len(out["hits"]) == 15


def test_teachers_stay_in_eval_mode_and_are_never_changed() -> None:
    teacher = tiny_classifier(norm=True)
    before = copy.deepcopy(teacher.state_dict())
    method = distillation(tiny_classifier(norm=True), [teacher], feature_weights={"stage1": 1.0, "pooled": 1.0}).train()
    assert method.student.training and not any(m.training for m in method.teachers.modules())
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=1.0)
    statistics = method.student.network.norm.running_mean.clone()
    method(tiny_batch())["loss"].backward()
    optimizer.step()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(p.grad is not None for p in method.student.parameters())
    assert not torch.equal(statistics, method.student.network.norm.running_mean)
    assert not method.eval().student.training


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
    weights, description = method.checkpoint(method.student)
    assert description["kind"] == "diffusion" and description["image_size"] == SIDE
    assert set(weights) == set(method.student.unet.state_dict())


# --- built from a configuration


def built(name: str, save_dir: Path, degradations: tuple[str, ...] = (), model: dict | None = None, **method: object) -> nn.Module:
    config = TrainConfig("run", str(save_dir), data=DataConfig(degradations=list(degradations)), model=model or {})
    kind = METHODS[name]
    parts = build(kind.model, config.model, "model"), build(kind.method, {"name": name, **method}, "method")
    return kind.build(*parts, Context(tiny_source(), list(degradations), config))


def save_resnet(path: Path, classes: tuple[str, ...] = CLASSES) -> None:
    classifier = build_classifier("ResNet20", len(classes), (0.5,) * 3, (0.25,) * 3)
    save_checkpoint(path, classifier.network.state_dict(), {**describe(classifier), "classes": list(classes)})


def test_placeholders_of_names_are_filled_from_the_configuration() -> None:
    config = TrainConfig("run", data=DataConfig("some/photos", degradations=["jpeg", "blur"]), model={"arch": "ResNet20"})
    assert fill("sl/{dataset}/{arch}-{arch}/{deg}/{split}", config, split="test") == "sl/photos/ResNet20-ResNet20/jpeg+blur/test"
    assert fill("{deg}", TrainConfig("run")) == "clean"


def test_one_line_names_a_teacher_for_each_degradation(tmp_path: Path) -> None:
    for deg in ("jpeg", "blur"):
        save_resnet(tmp_path / "sl" / deg / "best.safetensors")
    method = built("distillation", tmp_path, ("jpeg", "blur"), teachers="sl/{deg}", feature_weights={"pooled": 1.0})
    first, second = (t.network.conv1.weight for t in method.teachers)
    assert not torch.equal(first, second)


def test_distillation_without_teachers_or_degradations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="method.teachers is empty: name a checkpoint, run folder or run"):
        built("distillation", tmp_path, ("jpeg",))
    with pytest.raises(ValueError, match="distillation needs data.degradations, e.g. .*--dt jpeg"):
        built("distillation", tmp_path, teachers="somewhere")


def test_teacher_of_other_classes_is_refused(tmp_path: Path) -> None:
    save_resnet(tmp_path / "best.safetensors", ("circle", "line", "triangle"))
    with pytest.raises(ValueError, match="class 2 is 'triangle' there, 'square' here"):
        built("distillation", tmp_path, ("jpeg",), teachers=str(tmp_path))


def test_init_from_loads_the_weights_and_refuses_another_architecture(tmp_path: Path) -> None:
    save_resnet(tmp_path / "best.safetensors")
    method = built("supervised", tmp_path, model={"init_from": str(tmp_path)})
    twin = built("supervised", tmp_path, model={"init_from": str(tmp_path)})
    assert torch.equal(method.student.network.fc.weight, twin.student.network.fc.weight)
    with pytest.raises(ValueError, match="holds a ResNet20, model.arch is ResNet56"):
        built("supervised", tmp_path, model={"init_from": str(tmp_path), "arch": "ResNet56"})


def test_unknown_feature_is_refused_with_the_names_there_are() -> None:
    method = distillation(tiny_classifier(), [tiny_classifier()], feature_weights={"stage9": 1.0})
    with pytest.raises(ValueError, match="unknown feature 'stage9'.*stage1, pooled"):
        method(tiny_batch())
