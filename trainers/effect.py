"""Keys of a training's command line that would change nothing: refused, with what to use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from undegrade.trainers.config import TrainConfig
from undegrade.utils.command_line import check_effect
from undegrade.utils.config import Tree
from undegrade.utils.data.perturbations.registry import options_without_effect
from undegrade.utils.data.sources.registry import source_keys_without_effect
from undegrade.utils.data.training import DataConfig

_SCHEDULES = {
    "milestones": ("multistep",), "gamma": ("multistep",), "power": ("poly",), "min_lr": ("cosine", "epoch_cosine", "poly"),
}  # fmt: skip


def check_keys(config: TrainConfig, given: Tree) -> None:
    """Raise ValueError where a key has no effect on the run.

    Args:
        config: of the run.
        given: the keys of the command line, those that its flags stand for among them.
    """
    check_effect(given, _of_optimizer(config) | data_keys_without_effect(config.data) | _of_method(config.method, config.model))


def _of_optimizer(config: TrainConfig) -> dict[str, str]:
    one, parts = config.optimizer, config.optimizer.parts
    several = [one, *config.optimizer.by_part(parts).values()]
    reasons = {
        f"optimizer.{key}": "" if any(each.schedule in schedules for each in several) else f"the schedule is {one.schedule}"
        for key, schedules in _SCHEDULES.items()
    }
    reasons["optimizer.momentum"] = "" if any(each.name == "SGD" for each in several) else f"{one.name} has none"
    reasons["optimizer.warmup_start"] = "" if any(each.warmup_epochs for each in several) else "optimizer.warmup_epochs is 0"
    return reasons


def data_keys_without_effect(data: DataConfig) -> dict[str, str]:
    """For `utils.command_line.check_effect`: keys of the section `data` that change nothing."""
    augment = data.augment
    reasons = source_keys_without_effect(data, "data") | {
        "data.augment.interpolation": "" if augment.resized_crop or augment.randaugment else "nothing is interpolated",
        "data.augment.erasing_area": "" if augment.erasing else "data.augment.erasing is 0",
        "data.augment.cutout_clean": "" if augment.cutout or augment.erasing else "data.augment.cutout and erasing are 0",
    }
    if not data.degradations:
        without = "data.degradations are none"
        reasons |= dict.fromkeys(("data.pairing", "data.levels", "data.adapted", "data.adapted_view", "method.view"), without)
    if data.adapted is None:
        reasons["data.adapted_view"] = reasons.get("data.adapted_view", "data.adapted is null")
        return reasons | options_without_effect(data.degradations, "data")
    reasons["data.levels"] = reasons.get("data.levels", "the levels of adapted images are those that they were adapted at")
    if data.adapted_view == "adapted":
        return reasons | options_without_effect(data.degradations, "data")
    degraded = "the images of data.adapted are degraded already"
    return reasons | {f"data.{key}": degraded for key in ("constants", "compat", "perturbations")}


def _of_method(method: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, str]:
    """Of the methods of this project."""
    reasons: dict[str, str] = {}
    name = method.get("name")
    if name == "denoising":
        clean = "a diffusion model learns from clean images"
        reasons |= {f"data.{key}": clean for key in ("degradations", "pairing", "levels", "adapted", "adapted_view")}
        if not model.get("class_conditional"):
            reasons["method.label_dropout"] = "the network is told no class, see model.class_conditional"
    if name == "restoration":
        reasons["model.layers" if model.get("network") == "nafnet" else "model.blocks"] = "it is of the other network"
    if name == "distillation" and not method.get("logit_weight"):
        reasons["method.temperature"] = "method.logit_weight is 0"
    if name in ("supervised", "distillation", "segmentation", "landmarks") and model.get("init_from") and model.get("pretrained"):
        reasons["model.pretrained"] = "the weights are those of model.init_from"
    return reasons
