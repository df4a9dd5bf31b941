"""Fine-tuning options: schedules with a floor, groups of parameters, softened and mixed labels; and
SDA's recipes.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.loops import SGD, metrics_of, trainer
from tests.scripts import ROOT, forget_accelerator
from tests.tiny import negative_log_likelihood, supervised, tiny_batch, tiny_classifier, tiny_context
from undegrade.models.classification.classifier import build_classifier
from undegrade.trainers.config import LoopConfig, OptimizerConfig, TrainConfig
from undegrade.trainers.mixup import mixed
from undegrade.trainers.optimizer import build_optimizer, learning_rate_factor, set_learning_rate
from undegrade.trainers.supervised import Supervised, SupervisedConfig
from undegrade.utils.config import build, read_yaml
from undegrade.utils.data.batches import Batch

RECIPES = ROOT / "configs/sda/Imagenet"
EPOCHS, STEPS = 30, 49


# --- learning rate


def trace(config: OptimizerConfig) -> list[float]:
    """Learning rate at every step of SDA's 30 epochs of 49 steps."""
    return [config.lr * learning_rate_factor(config, step / STEPS, EPOCHS) for step in range(EPOCHS * STEPS)]


@pytest.mark.parametrize("name", ["swinT", "swinB", "convnextT", "convnextB"])
def test_sdas_learning_rate_warms_up_step_by_step_and_falls_epoch_by_epoch(name: str) -> None:
    rates = trace(build(TrainConfig, read_yaml(RECIPES / f"{name}.yaml")).optimizer)
    assert rates[0] == pytest.approx(2e-5 * 2e-8)
    assert rates[49] == pytest.approx(2e-5 / 5, rel=1e-6)
    assert rates[5 * 49 - 1] < rates[5 * 49] == max(rates) == pytest.approx(2e-5)
    # the cosine has 25 epochs to reach 2e-7; the last of them begins at 24 / 25 of the way
    last = 2e-7 + (2e-5 - 2e-7) * (1 + math.cos(math.pi * 24 / 25)) / 2
    assert rates[-1] == rates[29 * 49] == pytest.approx(last) and last == pytest.approx(2.78e-7, rel=1e-3)
    assert rates[17 * 49 + 48] == rates[17 * 49] < rates[17 * 49 - 1]


def test_sdas_learning_rate_of_the_resnet_falls_by_ten_at_its_milestones() -> None:
    rates = trace(build(TrainConfig, read_yaml(RECIPES / "ResNet50.yaml")).optimizer)
    for epoch, rate in ((0, 5e-4), (9, 5e-4), (10, 5e-5), (19, 5e-5), (20, 5e-6), (25, 5e-7), (29, 5e-7)):
        assert rates[49 * epoch : 49 * (epoch + 1)] == pytest.approx([rate] * 49)


def test_self_distillations_cosine_is_torchs_stepped_once_an_epoch() -> None:
    config = build(TrainConfig, read_yaml("configs/sl/CIFAR100/ResNet56-56.yaml"))
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.RAdam([parameter], lr=config.optimizer.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=config.loop.epochs)
    for epoch in range(config.loop.epochs):
        published = optimizer.param_groups[0]["lr"]
        for step in (0, 351):  # the first and the last of the epoch
            ours = config.optimizer.lr * learning_rate_factor(config.optimizer, epoch + step / 352, config.loop.epochs)
            assert ours == pytest.approx(published, rel=1e-9, abs=1e-12), (epoch, step)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(("epoch", "factor"), [(0, 1), (5, 0.55), (10, 0.1), (12, 0.1)])
def test_a_cosine_ends_at_the_lowest_rate(epoch: int, factor: float) -> None:
    config = OptimizerConfig(schedule="cosine", lr=0.2, min_lr=0.02)
    assert learning_rate_factor(config, epoch, 10) == pytest.approx(factor)


def test_a_warm_up_of_half_an_epoch_does_not_raise_the_cosine_of_epochs_above_its_peak() -> None:
    config = OptimizerConfig(schedule="epoch_cosine", warmup_epochs=0.5, warmup_start=0.2)
    assert [learning_rate_factor(config, e, 3) for e in (0, 0.25, 0.5, 0.9)] == pytest.approx([0.2, 0.6, 1, 1])
    assert learning_rate_factor(config, 1.9, 3) == pytest.approx((1 + math.cos(math.pi * 0.5 / 2.5)) / 2)


def test_a_cosine_does_not_end_above_its_peak() -> None:
    with pytest.raises(ValueError, match="min_lr 0.2 is above lr, 0.1: it is where a cosine from lr down ends"):
        OptimizerConfig(lr=0.1, min_lr=0.2)


# --- groups of parameters


def groups_of(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict]:
    """Group of each parameter by its name."""
    owner = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return {name: owner[id(p)] for name, p in network.named_parameters()}


def test_without_options_all_parameters_are_one_group_in_their_order() -> None:
    classifier = tiny_classifier(norm=True)
    (group,) = build_optimizer(OptimizerConfig("AdamW", weight_decay=0.3), classifier).param_groups
    assert group["weight_decay"] == 0.3
    assert [id(p) for p in group["params"]] == [id(p) for p in classifier.parameters()]


@pytest.mark.parametrize("arch", ["ResNet20", "swin_tiny_patch4_window7_224", "test_convnext", "test_vit"])
def test_norms_biases_and_position_tables_are_not_decayed(arch: str) -> None:
    classifier = build_classifier(arch, 3, (0.5,) * 3, (0.25,) * 3)
    config = OptimizerConfig("AdamW", weight_decay=0.3, decay_norm_and_bias=False)
    groups = groups_of(classifier.network, build_optimizer(config, classifier))
    assert len(groups) == len([*classifier.parameters()])
    spared = {name for name, group in groups.items() if group["weight_decay"] == 0}
    parameters = dict(classifier.network.named_parameters())
    assert {name for name, p in parameters.items() if p.ndim == 1} <= spared
    special = {name for name in spared if parameters[name].ndim > 1}
    assert {name.rpartition(".")[2] for name in special} <= {"relative_position_bias_table", "pos_embed", "cls_token", "reg_token"}
    assert bool(special) == (arch.startswith("swin") or arch == "test_vit")
    assert {group["weight_decay"] for group in groups.values()} == {0, 0.3}


@pytest.mark.parametrize("decay_all", [True, False])
def test_layers_further_from_the_head_learn_more_slowly(decay_all: bool) -> None:
    classifier = build_classifier("test_vit", 3, (0.5,) * 3, (0.25,) * 3)
    config = OptimizerConfig("AdamW", lr=0.1, weight_decay=0.3, layer_decay=0.5, decay_norm_and_bias=decay_all)
    optimizer = build_optimizer(config, classifier)
    set_learning_rate(optimizer, 0.04)
    groups = groups_of(classifier.network, optimizer)
    depth = len(classifier.network.blocks)  # type: ignore[arg-type]
    assert groups["head.weight"]["lr"] == pytest.approx(0.04)
    rates = [groups[f"blocks.{i}.mlp.fc1.weight"]["lr"] for i in range(depth)]
    assert [later / earlier for earlier, later in zip(rates, rates[1:], strict=False)] == pytest.approx([2] * (depth - 1))
    assert groups["patch_embed.proj.weight"]["lr"] < rates[0] < rates[-1] < 0.04
    assert {group["weight_decay"] for group in groups.values()} == ({0.3} if decay_all else {0, 0.3})


def test_layer_decay_of_a_network_whose_layers_are_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optimizer\.layer_decay needs a network of timm, .* not a TinyNet: leave it out"):
        build_optimizer(OptimizerConfig(layer_decay=0.5), tiny_classifier())


@pytest.mark.usefixtures("fresh_accelerator")
def test_groups_are_kept_through_training_and_resuming(tmp_path: Path) -> None:
    optimizer = dataclasses.replace(SGD, name="AdamW", weight_decay=0.1, decay_norm_and_bias=False, schedule="cosine")
    for epochs in (1, 2):
        forget_accelerator()
        loop = trainer(tmp_path, supervised(norm=True), LoopConfig(epochs=epochs), optimizer)
        loop.fit()
    assert [group["weight_decay"] for group in loop.parts.optimizers["student"].param_groups] == [0.0, 0.1]
    assert metrics_of(tmp_path)[1]["train/lr"] == pytest.approx(0.1 * (1 + math.cos(math.pi * 7 / 8)) / 2, abs=1e-6)


# --- labels


def method_of(**options: float) -> Supervised:
    return Supervised(tiny_classifier(), tiny_context(), SupervisedConfig(view="clean", **options))


def test_label_smoothing_spreads_its_share_over_all_classes_in_training_only() -> None:
    method, batch = method_of(label_smoothing=0.3), tiny_batch()
    loss = method.train()(batch)["loss"].item()
    logits = method.student(batch["clean"])
    even = sum(negative_log_likelihood(logits, torch.full((4,), k)) for k in range(3)) / 3
    assert loss == pytest.approx(0.7 * negative_log_likelihood(logits, batch["label"]) + 0.3 * even, abs=1e-6)
    assert method.eval()(batch)["loss"].item() == pytest.approx(negative_log_likelihood(logits, batch["label"]), abs=1e-6)


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "both"])
@pytest.mark.parametrize("count", [6, 5])
def test_images_and_labels_are_mixed_in_the_same_proportion(kind: str, count: int) -> None:
    values = torch.arange(count, dtype=torch.float32) * 10
    images, labels = values[:, None, None, None].repeat(1, 3, 8, 8), torch.arange(count)
    before, kinds = images.clone(), set()
    for step in range(30):
        pixels, target = mixed(images, labels, 7, kind != "cutmix", kind != "mixup", ("x", step))
        assert torch.equal(images, before)
        assert target.shape == (count, 7) and target.sum(1).tolist() == pytest.approx([1] * count)
        even = count // 2 * 2
        for i in range(even):
            partner = even - 1 - i
            assert pixels[i].mean().item() == pytest.approx((target[i, :count] * values).sum().item(), abs=1e-3)
            assert set(target[i].nonzero().flatten().tolist()) <= {i, partner}
            kinds.add("mixup" if len(pixels[i].unique()) == 1 and target[i].max() < 1 else "cutmix" if target[i].max() < 1 else "")
        assert torch.equal(pixels[even:], images[even:]) and torch.equal(target[even:], F.one_hot(labels, 7)[even:].float())
    assert kinds - {""} == ({"mixup", "cutmix"} if kind == "both" else {kind})


def test_one_image_alone_is_not_mixed() -> None:
    images = torch.rand(1, 3, 4, 4)
    pixels, target = mixed(images, torch.tensor([2]), 3, 1.0, 1.0, ("x",))
    assert torch.equal(pixels, images) and target.tolist() == [[0, 0, 1]]


def test_a_mixed_batch_follows_from_the_names_of_its_stream() -> None:
    method, batch = method_of(mixup=0.8, cutmix=1.0), tiny_batch(images=6)
    first, again, other = (method.prepare(batch, 3, 0, step) for step in (1, 1, 2))
    assert torch.equal(first["clean"], again["clean"]) and torch.equal(first["soft_label"], again["soft_label"])
    assert not torch.equal(first["soft_label"], other["soft_label"])
    assert torch.equal(first["degraded"], batch["degraded"]) and torch.equal(first["label"], batch["label"])


def test_the_loss_of_a_mixed_batch_is_the_mixture_of_losses() -> None:
    method, batch = method_of(mixup=1.0).train(), tiny_batch(images=6)
    ready = method.prepare(batch, 0)
    logits = method.student(ready["clean"])
    own, partner = (negative_log_likelihood(logits, labels) for labels in (batch["label"], batch["label"].flip(0)))
    weight = ready["soft_label"][0, batch["label"][0]].item()
    assert 0 < weight < 1
    assert method(ready)["loss"].item() == pytest.approx(weight * own + (1 - weight) * partner, abs=1e-6)


def test_a_batch_is_as_it_was_without_mixing() -> None:
    batch = tiny_batch()
    assert method_of().prepare(batch, 0) is batch


class Watched(Supervised):
    """Notes what it is given to learn from and to be judged by."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        seen.append((self.student.training, batch.get("soft_label")))
        return super().forward(batch)


seen: list[tuple[bool, Tensor | None]] = []


@pytest.mark.usefixtures("fresh_accelerator")
def test_training_batches_are_mixed_step_by_step_and_validation_is_not(tmp_path: Path) -> None:
    seen.clear()
    for run in ("one", "two"):
        forget_accelerator()
        method = Watched(tiny_classifier(), tiny_context(), SupervisedConfig(view="clean", mixup=1.0))
        trainer(tmp_path / run, method, LoopConfig(epochs=2)).fit()
    targets = [target for training, target in seen if training]
    assert all(target is None for training, target in seen if not training)
    one, two = targets[:8], targets[8:]
    assert len(two) == 8 and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))  # type: ignore[arg-type]
    assert len({target.max(1).values.min().item() for target in one}) > 5  # type: ignore[union-attr]


# --- SDA's recipes

ADAMW = ("AdamW", 2e-5, 1e-8, False, 5.0, 0.1, "bicubic", "rand-m9-mstd0.5-inc1", 0.25, 128)
PUBLISHED = {
    "ResNet50": (("SGD", 5e-4, 1e-4, True, None, 0.0, "bilinear", None, 0.0, 64), "resnet50", None),
    "swinT": (ADAMW, "swin_tiny_patch4_window7_224", 0.2),
    "swinB": (ADAMW, "swin_base_patch4_window7_224", 0.2),
    "convnextT": (ADAMW, "convnext_tiny", 0.1),
    "convnextB": (ADAMW, "convnext_base", 0.5),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_recipe_is_the_published_one(name: str) -> None:
    config = build(TrainConfig, read_yaml(RECIPES / f"{name}.yaml"))
    optimizer, loop, augment, model = config.optimizer, config.loop, config.data.augment, config.model
    expected, arch, drop_path = PUBLISHED[name]
    assert expected == (
        optimizer.name, optimizer.lr, optimizer.weight_decay, optimizer.decay_norm_and_bias, loop.clip_norm,
        config.method.get("label_smoothing", 0.0), augment.interpolation, augment.randaugment, augment.erasing,
        config.data.batch_size,
    )  # fmt: skip
    assert (model["arch"].split(".")[0], model.get("drop_path"), model["pretrained"], model["init_from"]) == (
        arch, drop_path, True, None,
    )  # fmt: skip
    assert str(timm.models.get_pretrained_cfg(model["arch"]).tag).endswith("_in1k") and "in22k" not in model["arch"]
    assert (optimizer.momentum, optimizer.layer_decay, loop.epochs) == (0.9, None, 30)
    assert augment.flip and (augment.resized_crop, augment.erasing_area) == (0.08, [0.02, 1 / 3])
    assert (config.data.image_size, config.data.resize, config.data.limit, config.data.degradations) == (224, 256, None, [])
    assert not config.method.get("mixup") and not config.method.get("cutmix") and loop.mixed_precision == "no"
