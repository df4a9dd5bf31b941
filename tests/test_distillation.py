"""Distillation: feature cosine and softened logits against values worked out by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import negative_log_likelihood, tiny_batch, tiny_classifier, tiny_context
from undegrade.models.classification.classifier import build_classifier
from undegrade.trainers.distillation import Distillation, DistillationConfig
from undegrade.trainers.losses import cosine_distance, kd_loss
from undegrade.utils.seeding import seed_everything


def distillation(student: object, teachers: list, **options: object) -> Distillation:
    return Distillation(student, teachers, tiny_context(), DistillationConfig(**options))


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


# --- distillation


def test_student_that_is_every_teacher_on_the_same_images_has_feature_distance_zero() -> None:
    seed_everything(0)
    student = build_classifier("ResNet20", 3, (0.5,) * 3, (0.25,) * 3)
    names = {"stage1": 1.0, "stage2": 1.0, "stage3": 1.0, "pooled": 1.0}
    method = distillation(student, [copy.deepcopy(student) for _ in range(4)], feature_weights=names).eval()
    batch = tiny_batch(degradations=4)
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
    assert len(out["accuracy"]) == 15


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


def test_unknown_feature_is_refused_with_the_names_there_are() -> None:
    method = distillation(tiny_classifier(), [tiny_classifier()], feature_weights={"stage9": 1.0})
    with pytest.raises(ValueError, match="unknown feature 'stage9'.*stage1, pooled"):
        method(tiny_batch())


def test_features_of_teacher_and_student_that_do_not_fit_are_refused_with_the_mend() -> None:
    method = distillation(tiny_classifier(), [tiny_classifier(channels=5)], feature_weights={"stage1": 1.0})
    with pytest.raises(
        ValueError, match=r"feature is \[4, 8, 8\] an image, the teacher's \[5, 8, 8\]: distil another.*logit_weight"
    ):
        method(tiny_batch())


# --- softened logits


def divergence_by_hand(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """T^2 mean_i sum_k p_ik log(p_ik / q_ik), p of the teacher and q of the student, in plain
    Python.
    """
    rows = []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = ([math.exp(v / temperature) for v in values] for values in (s, t))
        rows.append(sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True)))
    return temperature**2 * sum(rows) / len(rows)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_softened_divergence_is_the_teachers_kl_from_the_student_times_the_squared_temperature(temperature: float) -> None:
    student, teacher = torch.randn(5, 3), 3 * torch.randn(5, 3)
    found = kd_loss(student, teacher, temperature).item()
    assert found == pytest.approx(divergence_by_hand(student, teacher, temperature), rel=1e-4)
    assert found != pytest.approx(divergence_by_hand(teacher, student, temperature), rel=1e-2)  # it has a direction


def test_softened_divergence_is_zero_for_logits_that_differ_by_a_constant() -> None:
    logits = torch.randn(4, 3)
    assert kd_loss(logits, logits, 4.0).item() == pytest.approx(0, abs=1e-6)
    assert kd_loss(logits, logits + 7, 4.0).item() == pytest.approx(0, abs=1e-6)


def test_logits_alone_are_distilled_between_networks_whose_features_do_not_fit() -> None:
    seed_everything(2)
    student, teachers = tiny_classifier(), [tiny_classifier(channels=5), tiny_classifier(channels=7)]
    options = {"ce_weight": 0.5, "logit_weight": 0.3, "temperature": 2.0}
    method = distillation(student, teachers, feature_weights={"stage3": 0}, **options)
    batch = tiny_batch(degradations=2)
    out = method(batch)
    assert "feature_distance" not in out
    parts = [batch["deg"] == d for d in range(2)]
    logits = [student(batch["degraded"][mine]) for mine in parts]
    targets = [teacher(batch["clean"][mine]) for teacher, mine in zip(teachers, parts, strict=True)]
    expected = 0.3 * sum(divergence_by_hand(*pair, 2.0) for pair in zip(logits, targets, strict=True))
    assert out["logit_divergence"].item() == pytest.approx(expected, rel=1e-4)
    assert out["loss"].item() == pytest.approx(0.5 * out["cross_entropy"].item() + expected, abs=1e-5)


def test_features_and_logits_are_distilled_together() -> None:
    seed_everything(3)
    batch, networks = tiny_batch(degradations=2), [tiny_classifier() for _ in range(3)]

    def parts(**options: object) -> dict[str, float]:
        out = distillation(networks[0], networks[1:], **options)(batch)
        return {name: value.item() for name, value in out.items() if name != "accuracy"}

    features = {"feature_weights": {"stage1": 0.7, "pooled": 0.2}}
    both = parts(logit_weight=0.4, **features)
    assert both["feature_distance"] == parts(**features)["feature_distance"] > 0
    assert both["logit_divergence"] == parts(logit_weight=0.4, feature_weights={})["logit_divergence"] > 0
    assert both["loss"] == pytest.approx(sum(value for name, value in both.items() if name != "loss"), abs=1e-6)
