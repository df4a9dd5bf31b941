"""DiffAUD's configurations have the published recipe, and a student starts as its `model:` section
says.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file

from tests.scripts import ROOT
from tests.tiny import CLASSES, tiny_context
from undegrade.models.classification.classifier import build_classifier, describe
from undegrade.trainers.classification import ClassifierConfig
from undegrade.trainers.config import TrainConfig
from undegrade.trainers.methods import METHODS
from undegrade.trainers.supervised import SupervisedConfig
from undegrade.utils.config import build, read_yaml

SGD = ("SGD", 1e-3, 0.0, [15, 30, 45], 0.1, 50)
RADAM = ("RAdam", 1e-3, None, [30, 70, 90], 0.2, 100)
KNOWN = ["jpeg", "blur", "noise"]
NORMALISATION = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)

# family, file -> batch size and optimiser, learning rate, momentum, milestones, gamma, epochs
PUBLISHED = {
    ("ind/CIFAR10", "clean"): (128, ("SGD", 0.1, 0.9, [100, 150], 0.1, 200)),
    ("ind/CIFAR10", "deg"): (128, RADAM),
    ("ind/CIFAR10", "adapt"): (128, RADAM),
    ("ind/Imagenet", "deg"): (128, SGD),
    ("ind/Imagenet", "adapt"): (128, SGD),
    ("deg_all/CIFAR10", "degDistill"): (128, SGD),
    ("deg_all/CIFAR10", "adaptDistill"): (128, SGD),
    ("deg_all/CIFAR10", "deg_all"): (128, SGD),
    ("deg_all/Imagenet", "degDistill"): (64, SGD),
    ("deg_all/Imagenet", "adaptDistill"): (64, SGD),
    ("deg_all/Imagenet", "deg_all"): (64, SGD),
}
ARCHS = {
    "CIFAR10": {"ResNet18": ("ResNet18_CIFAR", None), "ResNet50": ("ResNet50_CIFAR", None)},
    "Imagenet": {"ResNet50": ("resnet50", None), "convnextT": ("convnext_tiny", 0.1),
                 "swinT": ("swin_tiny_patch4_window7_224", 0.2)},
}  # fmt: skip
WEIGHTS = {("CIFAR10", "degDistill"): 150, ("CIFAR10", "adaptDistill"): 200, ("Imagenet", "degDistill"): 50,
           ("Imagenet", "adaptDistill"): 10}  # fmt: skip
FILES = [(family, arch, file) for family, file in PUBLISHED for arch in ARCHS[family.split("/")[1]]]


@pytest.mark.parametrize(("family", "arch", "file"), FILES)
def test_the_recipe_is_the_published_one(family: str, arch: str, file: str) -> None:
    config = build(TrainConfig, read_yaml(ROOT / "configs" / family / arch / f"{file}.yaml"))
    dataset = family.split("/")[1]
    optimizer, (batch_size, (name, lr, momentum, milestones, gamma, epochs)) = config.optimizer, PUBLISHED[family, file]
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay, optimizer.schedule) == (name, lr, 1e-4, "multistep")
    assert (optimizer.milestones, optimizer.gamma, config.loop.epochs, config.data.batch_size) == (
        milestones, gamma, epochs, batch_size,
    )  # fmt: skip
    assert optimizer.momentum == momentum or momentum is None
    assert (config.model["arch"].split(".")[0], config.model.get("drop_path")) == ARCHS[dataset][arch]
    augment = config.data.augment
    crop = (4, None) if dataset == "CIFAR10" else (0, None if "adapt" in file else 0.08)
    assert augment.flip and not augment.cutout and (augment.crop_padding, augment.resized_crop) == crop
    assert bool(config.data.adapted) == ("adapt" in file)
    if "Distill" in file:
        method = config.method
        assert (method["ce_weight"], method["feature_weights"]) == (1.0, {"pooled": WEIGHTS[dataset, file]})
        assert (method["teacher_view"], "_adapt/" in method["teachers"]) == ("degraded", file == "adaptDistill")
    assert config.data.degradations == (KNOWN if family.startswith("deg_all") else ["jpeg"] if file == "deg" else [])


# --- how a student starts


def student(context: object, **model: object) -> dict[str, object]:
    """Description of the classifier that `model` builds."""
    method = METHODS["supervised"].build(ClassifierConfig(**model), SupervisedConfig(), context)  # type: ignore[arg-type]
    return describe(method.student)  # type: ignore[arg-type]


def test_a_student_with_random_weights_is_normalised_by_its_training_images_or_as_it_is_told() -> None:
    context = tiny_context()
    assert student(context)["mean"] == list(context.source.rgb_mean)
    told = student(context, mean=list(NORMALISATION[0]), std=list(NORMALISATION[1]))
    assert (told["mean"], told["std"]) == (list(NORMALISATION[0]), list(NORMALISATION[1]))


def test_a_student_is_normalised_as_the_weights_it_starts_from_unless_it_is_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, arch = tiny_context(), "test_efficientnet"
    lone = build_classifier(arch, len(CLASSES), *NORMALISATION)
    save_file(lone.network.state_dict(), tmp_path / "lone.safetensors")
    timms = list(lone.network.pretrained_cfg["mean"])  # type: ignore[index, union-attr]
    start = {"arch": arch, "init_from": str(tmp_path / "lone.safetensors")}
    assert student(context, **start)["mean"] == timms != list(context.source.rgb_mean)
    assert student(context, **start, mean=[0.1, 0.1, 0.1])["mean"] == [0.1, 0.1, 0.1]
    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *args, **options: real(*args, **{**options, "pretrained": False}))
    assert student(context, arch=arch, pretrained=True)["mean"] == timms


def test_stochastic_depth_reaches_the_student() -> None:
    config = ClassifierConfig(arch="test_convnext", drop_path=0.3)
    method = METHODS["supervised"].build(config, SupervisedConfig(), tiny_context())
    rates = [module.drop_prob for module in method.modules() if type(module).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.3)
