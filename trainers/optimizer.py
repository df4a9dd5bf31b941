"""The optimiser and its learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from trainers.config import OptimizerConfig


def learning_rate_factor(config: OptimizerConfig, epoch: float, epochs: int) -> float:
    """Factor on the peak learning rate at a (fractional) epoch."""
    if epoch < config.warmup_epochs:
        return epoch / config.warmup_epochs
    if config.schedule == "multistep":
        return config.gamma ** sum(epoch >= m for m in config.milestones)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / epochs)))
    return 1.0


def build_optimizer(config: OptimizerConfig, module: nn.Module) -> torch.optim.Optimizer:
    """The optimiser over the parameters that require gradients."""
    arguments: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.name == "SGD":
        arguments["momentum"] = config.momentum
    return getattr(torch.optim, config.name)([p for p in module.parameters() if p.requires_grad], **arguments)
