"""Losses between a student and a teacher."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean over images of 1 - cosine between flattened features [B, ...]; 0 when parallel, 1 when
    orthogonal or when one is zero.

    The 1e-12 under the root is that of torch's cosine embedding loss (FusionDistill's COS with
    target +1).

    Raises:
        ValueError: shapes differ (teacher and student of architectures that do not fit).
    """
    if a.shape != b.shape:
        raise ValueError(
            f"the student's feature is {list(a.shape[1:])} an image, the teacher's {list(b.shape[1:])}: distil another feature, or "
            "logits (method.logit_weight with feature weights 0), or take a teacher whose features have the student's shape"
        )
    a, b = a.flatten(1).float(), b.flatten(1).float()
    norms = ((a.square().sum(1) + 1e-12) * (b.square().sum(1) + 1e-12)).sqrt()
    return (1 - (a * b).sum(1) / norms).mean()


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over images of logits [B,K]
    (Hinton et al. 2015).
    """
    log_student, log_teacher = (F.log_softmax(x.float() / temperature, 1) for x in (student, teacher))
    return temperature**2 * F.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean")
