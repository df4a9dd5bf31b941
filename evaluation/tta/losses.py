"""What several methods minimise; all of logits [B,K], a value an image [B]."""

from __future__ import annotations

import torch
from torch import Tensor


def entropy(logits: Tensor) -> Tensor:
    """Shannon's, in nats: -sum_k p_k log p_k."""
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)


def cross_entropy(logits: Tensor, teacher: Tensor) -> Tensor:
    """Of the teacher's probabilities: -sum_k q_k log p_k."""
    return -(teacher.softmax(1) * logits.log_softmax(1)).sum(1)


def symmetric_cross_entropy(logits: Tensor, teacher: Tensor) -> Tensor:
    """The mean of both directions (Wang et al. 2019, with equal weights)."""
    return (cross_entropy(logits, teacher) + cross_entropy(teacher, logits)) / 2


def mean_of(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the values [B] that are chosen, bool [B]; 0, with a gradient of 0, of none."""
    return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp_min(1)
