"""The sections of a training YAML. Every key is documented here; an unknown key is an error."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from undegrade.utils.choices import check_choice, fill_names
from undegrade.utils.config import build, to_tree
from undegrade.utils.data.training import DataConfig
from undegrade.utils.ranges import Count, NotNegative, Positive, PositiveShare, Seed, Share, ShareBelowOne, Whole


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimiser and learning-rate schedule.

    Attributes:
        name: class of torch.optim.
        lr: peak learning rate.
        weight_decay: as the optimiser defines it.
        momentum: SGD only.
        schedule: constant | multistep (times gamma at each milestone) | cosine (from the first step
            to the end, step by step) | epoch_cosine (from the end of the warm-up to the end, epoch
            by epoch, as mm-classification's recipes) | poly (from the first step to the end, step
            by step, by the share that is left to the power `power`).
        milestones: epochs, for multistep.
        gamma: factor, for multistep.
        power: exponent, for poly.
        min_lr: where the cosine or poly ends.
        warmup_epochs: linear rise over so many epochs (may be a fraction), step by step.
        warmup_start: factor on lr at the first step of the warm-up.
        decay_norm_and_bias: whether weight decay is also for parameters of one dimension (norms,
            biases, scales) and those that timm's network exempts (position embeddings).
        layer_decay: factor on lr for each layer further from the head, by timm's layers of its
            networks (null: one lr for all).
        parts: of a method that trains several parts, keys that are different for one of them, such
            as `parts: {policy: {lr: 0.001}}`.
    """

    name: Literal["SGD", "Adam", "AdamW", "RAdam"] = "SGD"
    lr: NotNegative = 0.1
    weight_decay: NotNegative = 1e-4
    momentum: ShareBelowOne = 0.9
    schedule: Literal["constant", "multistep", "cosine", "epoch_cosine", "poly"] = "multistep"
    milestones: list[Count] = field(default_factory=list)
    gamma: PositiveShare = 0.2
    power: Positive = 0.9
    min_lr: NotNegative = 0.0
    warmup_epochs: NotNegative = 0.0
    warmup_start: Share = 0.0
    decay_norm_and_bias: bool = True
    layer_decay: PositiveShare | None = None
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr:g} is above lr, {self.lr:g}: it is where a cosine from lr down ends")
        for part in self.parts:
            self._of_part(part)

    def by_part(self, parts: Iterable[str]) -> dict[str, OptimizerConfig]:
        """The section for each of a method's trainable parts.

        Raises:
            ValueError: `optimizer.parts` names another part.
        """
        for name in self.parts:
            check_choice(name, parts, "trainable part", "section 'optimizer.parts'")
        return {name: self._of_part(name) for name in parts}

    def _of_part(self, name: str) -> OptimizerConfig:
        if name not in self.parts:
            return self
        shared = {key: value for key, value in to_tree(self).items() if key != "parts"}
        for key in self.parts[name]:
            check_choice(key, shared, "config key", f"section 'parts.{name}'")
        return build(OptimizerConfig, {**shared, **self.parts[name]}, f"parts.{name}")


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """The training loop.

    Attributes:
        epochs: passes over the training data; 0 validates and keeps the network as it starts.
        validate_every: epochs between validations (the last epoch is always validated).
        monitor: validation metric that chooses the best checkpoint, one of the method's: accuracy
            (highest) and loss (lowest) of classifiers, loss of diffusion models; ties go to the
            later epoch.
        patience: stop after so many validations without a better value (null: never).
        mixed_precision: no | bf16 | fp16 autocast; auto: bf16 where the device multiplies in it
            (utils.device.fast_precision), else no.
        accumulate: steps over which gradients are added up before the optimiser steps.
        clip_norm: largest gradient norm (null: no clipping).
        save_every: within an epoch the state is saved after so much time, such as 10m or 2h, or
            after so many steps, a whole number (null: after each epoch only).
        ema_decay: keep an exponential moving average of the weights, validate and save it (null:
            none).
        sync_batchnorm: BatchNorm's training statistics are those of the images of all processes, so
            that n processes train as one with the n-fold batch; without effect for one process.
        channels_last: memory layout of the convolutions (faster on CPU and on tensor cores).
        compile: torch.compile the loss; falls back with a message where it does not work.
        trackers: where curves go besides metrics.jsonl: tensorboard (into the run folder), another
            tracker of accelerate (wandb, comet_ml, mlflow, aim, clearml, dvclive, swanlab,
            trackio), one that an included module registers with it, a list of them, or none.
    """

    epochs: Whole = 10
    validate_every: Count = 1
    monitor: str = "accuracy"
    patience: Count | None = None
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] = "no"
    accumulate: Count = 1
    clip_norm: Positive | None = None
    save_every: Count | str | None = "10m"
    ema_decay: ShareBelowOne | None = None
    sync_batchnorm: bool = True
    channels_last: bool = True
    compile: bool = False
    trackers: str | list[str] = "tensorboard"


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training YAML.

    Attributes:
        name: the run goes to `<save_dir>/<name>/<run id>`; `{dataset}`, `{arch}` and `{deg}` (the
            degradations joined by `+`) are replaced, here and in the names of other runs.
        save_dir: root of all runs.
        seed: of weights and, unless data.seed is given, of order, degradation and augmentation.
        data, optimizer, loop: see there.
        method: `name` and the keys of that method (a row of trainers/methods.py).
        model: keys of the network that the method trains (of the same row).
    """

    name: str
    save_dir: str = "runs"
    seed: Seed = 123
    data: DataConfig = field(default_factory=DataConfig)
    model: dict[str, Any] = field(default_factory=dict)
    method: dict[str, Any] = field(default_factory=dict)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)


def fill(text: str, config: TrainConfig, **more: str) -> str:
    """`{dataset}`, `{arch}`, `{deg}` and what `more` names, replaced in names and paths of a
    config.
    """
    values = {
        "dataset": Path(config.data.dataset).name,
        "arch": str(config.model.get("arch", "")),
        "deg": "+".join(config.data.degradations) or "clean",
        **more,
    }
    return fill_names(text, values, f"{text!r}")
