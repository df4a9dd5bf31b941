"""At which time step a diffusion model is asked for features: fixed, drawn, or chosen for each
image by a policy that is learnt (Yang & Wang 2023, "Diffusion model as representation learner").
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undegrade.utils.ranges import Count, NotNegative, Whole
from undegrade.utils.seeding import numpy_generator


@dataclasses.dataclass(frozen=True)
class TimeStepConfig:
    """How time steps are chosen, for each image anew.

    Attributes:
        strategy: fixed (`t`) | uniform (of those below `below`) | decaying (uniform below a bound
            that falls from `start` to `end` by the epoch `end_epoch`) | staged (in each step one of
            the layers is drawn, and a time step of its own range) | policy (learnt; needs labels).
        t: of fixed.
        below: of uniform.
        start, end, end_epoch: of decaying; the entropy of a policy is rewarded until `end_epoch`.
        bounds: of staged: falling, one for each layer; layer k has the steps from bounds[k + 1]
            (0 for the last) up to below bounds[k].
        grid: of policy: number of time steps, at equal distances from 0 on, that it chooses from
            (null: all, as published).
        baseline: of policy: what is taken off the rewards: none (as published) | mean, that of the
            batch | normalised, which also divides by their deviation.
        entropy: of policy: weight of its entropy in the loss at the beginning, from where it falls
            evenly to 0.
        labels: of policy: reward by the labels of so many training images only, as `data.labels`
            counts them (null: of all).
    """

    strategy: Literal["fixed", "uniform", "decaying", "staged", "policy"] = "fixed"
    t: Whole = 100
    below: Count = 1000
    start: Count = 1000
    end: Count = 50
    end_epoch: Count = 100
    bounds: list[Count] = field(default_factory=list)
    grid: Count | None = None
    baseline: Literal["none", "mean", "normalised"] = "none"
    entropy: NotNegative = 0.1
    labels: Count | str | None = None


def check_time_steps(config: TimeStepConfig, chain: int, layers: int) -> None:
    """Raise ValueError on steps beyond the chain of the teacher, or bounds that do not fit its
    layers.
    """
    last = {
        "fixed": {"t": config.t + 1}, "uniform": {"below": config.below}, "decaying": {"start": config.start, "end": config.end},
        "staged": {"bounds": max(config.bounds, default=0)}, "policy": {"grid": config.grid or chain},
    }[config.strategy]  # fmt: skip
    for key, value in last.items():
        if value > chain:
            raise ValueError(f"method.time.{key} reaches beyond the {chain} time steps of this diffusion model: give a lower one")
    bounds = config.bounds
    if config.strategy == "staged" and (len(bounds) != layers or sorted(set(bounds), reverse=True) != bounds):
        raise ValueError(f"method.time.bounds {bounds}: give one for each of the {layers} layers, each lower than the one before")


def possible_steps(config: TimeStepConfig, chain: int) -> list[int]:
    """All time steps that may be chosen."""
    if config.strategy == "fixed":
        return [config.t]
    if config.strategy == "policy":
        return policy_steps(config, chain)
    top = {"uniform": config.below, "decaying": max(config.start, config.end), "staged": max(config.bounds, default=1)}
    return list(range(top[config.strategy]))


def policy_steps(config: TimeStepConfig, chain: int) -> list[int]:
    """The actions of a policy."""
    return list(range(chain)) if config.grid is None else [i * chain // config.grid for i in range(config.grid)]


def draw_steps(config: TimeStepConfig, count: int, epoch: float, *stream: object) -> tuple[Tensor, int | None]:
    """(time steps [count] int64, layer that is matched, None for all) of a training batch, by a
    strategy without policy.

    Args:
        config: strategy.
        count: images.
        epoch: epochs that are done.
        stream: names the random stream.
    """
    generator, layer = numpy_generator("time steps", *stream), None
    low, high = config.t, config.t + 1
    if config.strategy == "uniform":
        low, high = 0, config.below
    elif config.strategy == "decaying":
        low, high = 0, decayed_bound(config, epoch)
    elif config.strategy == "staged":
        layer = int(generator.integers(len(config.bounds)))
        low, high = [*config.bounds, 0][layer + 1], config.bounds[layer]
    return torch.from_numpy(generator.integers(low, high, count)), layer


def decayed_bound(config: TimeStepConfig, epoch: float) -> int:
    """Bound of decaying time steps at an epoch: 1000, 525, 50 at 0, 50 and 100 by default."""
    return int(config.start + (config.end - config.start) * min(1.0, epoch / config.end_epoch))


def entropy_weight(config: TimeStepConfig, epoch: float) -> float:
    """Weight of a policy's entropy at an epoch: by default 0.1, 0.05, 0 at 0, 50 and 100."""
    return config.entropy * max(0.0, 1 - epoch / config.end_epoch)


def gumbel_noise(count: int, actions: int, *stream: object) -> Tensor:
    """[count, actions]: the first of the largest logits + noise is a draw from their softmax."""
    uniform = numpy_generator("actions", *stream).random((count, actions))
    return torch.from_numpy(-np.log(-np.log(uniform + 1e-300) + 1e-300)).float()


class Policy(nn.Sequential):
    """Images [B,3,S,S] in [-1, 1] -> logits [B, actions]: convolutions of 5 x 5 with pooling until
    at most 5 pixels are left, and three linear layers; at 32 and 64 px the published networks.
    """

    def __init__(self, size: int, actions: int) -> None:
        stages: list[nn.Module] = []
        width = 3
        while size > 5:
            following = 6 if width == 3 else 16
            stages += [nn.Conv2d(width, following, 5), nn.ReLU(), nn.MaxPool2d(2)]
            size, width = (size - 4) // 2, following
        linear = [nn.Linear(width * size**2, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, actions)]
        super().__init__(*stages, nn.Flatten(), *linear)


def policy_losses(
    logits: Tensor, actions: Tensor, reward: Tensor, baseline: str, rewarded: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(loss of REINFORCE (Williams 1992), mean entropy of the policy).

    L = -mean log pi(a | x) (r - b), over the rewarded images.

    Args:
        logits: [B, A].
        actions: [B] int64, drawn from them.
        reward: [B], without gradient.
        baseline: see `TimeStepConfig`.
        rewarded: bool [B], images that have a reward (None: all).
    """
    log_pi = F.log_softmax(logits.float(), 1)
    entropy = -(log_pi.exp() * log_pi).sum(1).mean()
    chosen = log_pi.gather(1, actions[:, None])[:, 0]
    if rewarded is not None:
        chosen, reward = chosen[rewarded], reward[rewarded]
    if len(reward) == 0:
        return 0 * chosen.sum(), entropy
    advantage = reward.detach()
    if baseline != "none":
        advantage = advantage - advantage.mean()
    if baseline == "normalised" and len(advantage) > 1:
        advantage = advantage / (advantage.std() + 1e-6)
    return -(chosen * advantage).mean(), entropy


def entropy_of_uniform(actions: int) -> float:
    """The highest entropy of a policy, in nats."""
    return math.log(actions)
