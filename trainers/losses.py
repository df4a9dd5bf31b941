"""Losses between a student and a teacher."""

from __future__ import annotations

import torch
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


def l2(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of features of one shape, over all their numbers (Romero et al. 2015,
    "FitNets").
    """
    return F.mse_loss(student.float(), teacher.float())


def l1(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute difference."""
    return F.l1_loss(student.float(), teacher.float())


def l2_normalised(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of vectors of norm 1; they run along the channels."""
    return F.mse_loss(F.normalize(student.float(), dim=1), F.normalize(teacher.float(), dim=1))


def channel_cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine of the vectors along the channels, mean over images and places."""
    return (1 - F.cosine_similarity(student.float(), teacher.float(), dim=1)).mean()


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of attention maps: sums of the squared channels of maps [B,C,h,w], C
    may differ, as vectors of norm 1 over the places (Zagoruyko & Komodakis 2017).
    """
    maps = [x.float().square().sum(1).flatten(1) for x in (student, teacher)]
    return F.mse_loss(*(m / (m.norm(dim=1, keepdim=True) + 1e-6) for m in maps))


def info_nce(student: Tensor, teacher: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross-entropy of finding the teacher's vector of an image [B,D] among those of the batch, by
    cosine / temperature (van den Oord et al. 2018).
    """
    similarity = F.normalize(student.float(), dim=1) @ F.normalize(teacher.float(), dim=1).T / temperature
    return F.cross_entropy(similarity, torch.arange(len(student), device=student.device))


RKD_NUMBERS = 2**28  # of the angles of a batch, with their gradients some gigabytes


def relational(student: Tensor, teacher: Tensor, distance_weight: float = 25.0, angle_weight: float = 50.0) -> Tensor:
    """Relational knowledge distillation of vectors [B,D], D may differ (Park et al. 2019): smooth
    L1 between the distances of all pairs, each divided by their mean, and between the cosines of
    the angles of all triplets.

    Raises:
        ValueError: a batch whose B^3 angles do not fit into memory.
    """
    count = len(student)
    if max(count**3, count**2 * max(student.shape[1], teacher.shape[1])) > RKD_NUMBERS:
        raise ValueError(
            f"rkd compares all triplets of a batch, of {count} images {count**3:.1e}: set data.batch_size to 512 or less"
        )
    pairs = [_relations(x.float()) for x in (student, teacher)]
    distances, angles = (F.smooth_l1_loss(mine, theirs) for mine, theirs in zip(*pairs, strict=True))
    return distance_weight * distances + angle_weight * angles


def _relations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Distances [B,B] over their mean, and the cosines [B,B,B] of the angles at each vector."""
    squared = (x.square().sum(1)[:, None] + x.square().sum(1)[None] - 2 * x @ x.T).clamp(min=1e-12)
    off = 1 - torch.eye(len(x), device=x.device)
    distances = squared.sqrt() * off
    directions = F.normalize(x[None] - x[:, None], dim=2)
    return distances / distances[distances > 0].mean(), directions @ directions.transpose(1, 2)
