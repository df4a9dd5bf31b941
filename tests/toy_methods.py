"""Methods of more than a student, small enough for unit tests."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.tiny import tiny_classifier, tiny_context
from undegrade.trainers.classification import ClassifierMethod
from undegrade.utils.data.batches import Batch
from undegrade.utils.seeding import seed_everything

BRIGHTNESS = torch.tensor([0.2, 1.0, 3.0])  # what the policy chooses from


class StudentAndPolicy(ClassifierMethod):
    """The policy chooses how bright the student sees an image and is rewarded for a low loss
    (REINFORCE, Williams 1992): L = CE + mean_i (CE_i - mean CE) log pi(a_i | x_i).
    """

    parts = ("student", "policy")

    def __init__(self, seed: int = 0) -> None:
        seed_everything(seed)
        super().__init__(tiny_classifier(norm=True, dropout=0.2), tiny_context())
        self.policy = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, len(BRIGHTNESS))
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        choice = torch.distributions.Categorical(logits=self.policy(batch["degraded"]))
        action = choice.sample() if self.policy.training else choice.probs.argmax(1)
        logits = self.student(batch["degraded"] * BRIGHTNESS[action][:, None, None, None])
        losses = F.cross_entropy(logits, batch["label"], reduction="none")
        advantage = (losses.mean() - losses).detach()
        loss = losses.mean() - (advantage * choice.log_prob(action)).mean()
        return {"loss": loss, "entropy": choice.entropy(), "accuracy": logits.argmax(1) == batch["label"]}

    def export(self, parts: Mapping[str, nn.Module]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Both parts in one file."""
        weights, description = super().export(parts)
        return weights | {f"policy.{name}": value for name, value in parts["policy"].state_dict().items()}, description


class StudentAndTarget(ClassifierMethod):
    """The student agrees with a moving average of itself that is updated after each step."""

    kept = ("target",)
    steps: tuple[int, ...] = ()

    def __init__(self, seed: int = 0) -> None:
        seed_everything(seed)
        super().__init__(tiny_classifier(norm=True, dropout=0.2), tiny_context())
        self.target = copy.deepcopy(self.student)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        logits, target = self.student(batch["degraded"]), self.target(batch["clean"]).softmax(1)
        distance = (logits.softmax(1) - target).square().sum(1)
        loss = F.cross_entropy(logits, batch["label"]) + distance.mean()
        return {"loss": loss, "distance": distance, "accuracy": logits.argmax(1) == batch["label"]}

    def after_step(self, step: int) -> None:
        self.steps += (step,)
        for mine, theirs in zip(self.target.parameters(), self.student.parameters(), strict=True):
            mine.lerp_(theirs, 0.2)
