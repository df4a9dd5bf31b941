"""The optimiser and its learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from undegrade.trainers.config import OptimizerConfig


def learning_rate_factor(config: OptimizerConfig, epoch: float, epochs: int) -> float:
    """Factor on the peak learning rate at a (fractional) epoch."""
    warmup = config.warmup_epochs
    if epoch < warmup:
        return config.warmup_start + (1 - config.warmup_start) * epoch / warmup
    if config.schedule == "multistep":
        return config.gamma ** sum(epoch >= m for m in config.milestones)
    if config.schedule == "poly":
        lowest = _lowest(config)
        return lowest + (1 - lowest) * max(0.0, 1 - epoch / epochs) ** config.power
    if config.schedule == "cosine":
        return _cosine(config, epoch / epochs)
    if config.schedule == "epoch_cosine":
        return _cosine(config, max(0.0, math.floor(epoch) - warmup) / (epochs - warmup))
    return 1.0


def _cosine(config: OptimizerConfig, done: float) -> float:
    """Factor after a share of the way from 1 to min_lr."""
    lowest = _lowest(config)
    return lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _lowest(config: OptimizerConfig) -> float:
    return config.min_lr / config.lr if config.min_lr else 0.0


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """`rate` for every group of parameters, times the group's own scale
    (`OptimizerConfig.layer_decay`).
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def build_optimizer(config: OptimizerConfig, module: nn.Module) -> torch.optim.Optimizer:
    """The optimiser over the parameters of one trainable part that require gradients.

    Raises:
        ValueError: layer_decay for a network whose layers timm does not know.
    """
    arguments: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.name == "SGD":
        arguments["momentum"] = config.momentum
    return getattr(torch.optim, config.name)(_parameters(config, module), **arguments)


def _parameters(config: OptimizerConfig, module: nn.Module) -> list[Any]:
    """Parameters, or groups of them that differ in weight decay and learning rate."""
    if config.decay_norm_and_bias and config.layer_decay is None:
        return [p for p in module.parameters() if p.requires_grad]
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay  # here, since it takes seconds

    network: Any = getattr(module, "network", module)  # of a classifier: timm's own, which knows its layers
    if config.layer_decay is not None and not hasattr(network, "group_matcher"):
        raise ValueError(
            f"optimizer.layer_decay needs a network of timm, whose layers are known, not a {type(network).__name__}: leave it out"
        )
    exempt = network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()
    if config.layer_decay is None:
        return param_groups_weight_decay(network, config.weight_decay, no_weight_decay_list=exempt)
    groups = param_groups_layer_decay(network, config.weight_decay, exempt, layer_decay=config.layer_decay)
    if config.decay_norm_and_bias:
        groups = [{**group, "weight_decay": config.weight_decay} for group in groups]
    return groups
