"""The trainable parts of a method, each with its optimiser, learning rate and moving average."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from undegrade.trainers.config import OptimizerConfig
from undegrade.trainers.method import Method
from undegrade.trainers.optimizer import build_optimizer, learning_rate_factor, set_learning_rate


class Parts:
    """Modules, optimisers and moving averages by the name of the part.

    Args:
        method: on its device.
        optimizer: config section.
        ema_decay: of the moving averages (None: there are none).

    Raises:
        ValueError: `optimizer.parts` names a part that the method does not have.
    """

    def __init__(self, method: Method, optimizer: OptimizerConfig, ema_decay: float | None) -> None:
        self.owner = type(method).__name__
        self.configs, self.modules = optimizer.by_part(method.parts), method.named_parts()
        self.optimizers = {name: build_optimizer(self.configs[name], part) for name, part in self.modules.items()}
        self.averages: dict[str, AveragedModel] = {}
        if ema_decay is not None:
            average = get_ema_multi_avg_fn(ema_decay)
            self.averages = {n: AveragedModel(part, multi_avg_fn=average, use_buffers=True) for n, part in self.modules.items()}
        self._reached = False

    @property
    def validated(self) -> dict[str, nn.Module]:
        """What is validated and exported: the moving averages if there are any."""
        return {name: self.averages[name].module if self.averages else part for name, part in self.modules.items()}

    @property
    def stateful(self) -> dict[str, Mapping[str, Any]]:
        """What has a state dict, by kind and name."""
        return {"parts": self.modules, "optimizers": self.optimizers, "ema": self.averages}

    def set_learning_rates(self, epoch: float, epochs: int) -> dict[str, float]:
        """Those of a (fractional) epoch of `epochs`; returned as they are logged, as `lr`, or as
        `lr_<part>` of several parts.
        """
        rates = {}
        for name, config in self.configs.items():
            rate = config.lr * learning_rate_factor(config, epoch, epochs)
            set_learning_rate(self.optimizers[name], rate)
            rates["lr" if len(self.configs) == 1 else f"lr_{name}"] = rate
        return rates

    def step(self, scaler: torch.amp.GradScaler | None, clip_norm: float | None) -> None:
        """A step of each optimiser, after the norm of all gradients together was clipped to
        `clip_norm`; averages follow.

        Raises:
            ValueError: in the first step, a part that no gradient reaches.
        """
        self._check_gradients()
        if scaler is not None:
            for optimizer in self.optimizers.values():
                scaler.unscale_(optimizer)
        if clip_norm is not None:
            nn.utils.clip_grad_norm_([p for part in self.modules.values() for p in part.parameters()], clip_norm)
        for optimizer in self.optimizers.values():
            optimizer.step() if scaler is None else scaler.step(optimizer)
            optimizer.zero_grad()
        if scaler is not None:
            scaler.update()
        for name, average in self.averages.items():
            average.update_parameters(self.modules[name])

    def _check_gradients(self) -> None:
        for name, part in self.modules.items() if not self._reached else ():
            if all(p.grad is None for p in part.parameters()):
                raise ValueError(
                    f"no parameter of the trainable part {name!r} of {self.owner} got a gradient in the first step: the loss does "
                    "not depend on it; let it, or take the part out of the method's `parts`"
                )
        self._reached = True
