"""Knowledge distillation by feature cosine, as in FusionDistill (Daultani & Larochelle, WACVW 2024)
and DiffAUD (Daultani et al., CVPRW 2024), and by softened logits.
"""

from __future__ import annotations

import dataclasses
from dataclasses import field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undegrade.models.classification.classifier import Classifier
from undegrade.models.classification.loading import load_classifier
from undegrade.trainers.classification import ClassifierConfig, ClassifierMethod, View, build_student
from undegrade.trainers.losses import cosine_distance, kd_loss
from undegrade.trainers.method import Context, Method
from undegrade.utils.data.batches import Batch
from undegrade.utils.ranges import NotNegative, Positive


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
    """Cross-entropy plus what one frozen teacher a degradation adds: feature cosine, softened
    logits (KD), or both.

    Attributes:
        name: distillation.
        teachers: checkpoint file, run folder or run name; `{deg}` stands for the degradation, so
            that one line names all teachers.
        teacher_view: image that the teachers see: clean (FusionDistill) | degraded (DiffAUD).
        ce_weight: weight of the cross-entropy, mean over all images of the batch.
        feature_weights: weight of 1 - cosine by feature name (stage1..stage3, pooled), mean over a
            degradation's images, summed over degradations; to leave out a feature that a base
            names, give it the weight 0.
        logit_weight: weight of T^2 KL(teacher || student) between logits softened by the
            temperature T (Hinton et al. 2015), summed likewise.
        temperature: T.
    """

    name: str = "distillation"
    teachers: str = ""
    teacher_view: View = "clean"
    ce_weight: NotNegative = 1.0
    feature_weights: dict[str, NotNegative] = field(default_factory=lambda: {"stage3": 1.0})
    logit_weight: NotNegative = 0.0
    temperature: Positive = 4.0


class Distillation(ClassifierMethod):
    """L = w_ce CE(f_S(x_d), y) + sum_d [sum_k w_k mean_i (1 - cos(f_S^k(x_d,i), f_Td^k(view_i))) +
    w_kd KD(f_S(x_d), f_Td(view))].

    With one degradation and the clean model as teacher this is FusionDistill's step 2
    (self-distillation), with the specialists as teachers its step 4; with `teacher_view: degraded`
    and the feature `pooled` it is DiffAUD's distilled classifier.
    """

    def __init__(self, student: Classifier, teachers: list[Classifier], context: Context, config: DistillationConfig) -> None:
        super().__init__(student, context)
        self.teachers = nn.ModuleList(teachers).requires_grad_(False)
        self.config = config
        self.weights = {name: weight for name, weight in config.feature_weights.items() if weight}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        names, config = list(self.weights), self.config
        # called, not asked for forward_features: only a call goes through a wrapper around the
        # student
        logits, features = self.student(batch["degraded"], names)
        supervised = F.cross_entropy(logits, batch["label"])
        out = {"cross_entropy": supervised}
        parts = [config.ce_weight * supervised]
        for d, teacher in enumerate(self.teachers):
            mine = batch["deg"] == d
            with torch.no_grad():
                target, targets = teacher(batch[config.teacher_view][mine], names)
            for name, weight in self.weights.items():
                distance = weight * cosine_distance(features[name][mine], targets[name])
                out["feature_distance"] = out.get("feature_distance", 0) + distance
            if config.logit_weight:
                divergence = config.logit_weight * kd_loss(logits[mine], target, config.temperature)
                out["logit_divergence"] = out.get("logit_divergence", 0) + divergence
        parts += [out[name] for name in ("feature_distance", "logit_divergence") if name in out]
        return {"loss": torch.stack(parts).sum(), **out, "accuracy": logits.argmax(1) == batch["label"]}


def build_distillation(model: ClassifierConfig, config: DistillationConfig, context: Context) -> Method:
    """The method that the configuration describes, its teachers loaded.

    Raises:
        FileNotFoundError, ValueError: no teachers, no degradations; a teacher that is not there, of
            other classes, or trained on another degradation.
    """
    if not config.teachers:
        raise ValueError("method.teachers is empty: name a checkpoint, run folder or run; `{deg}` stands for each degradation")
    if not context.degradations:
        raise ValueError("distillation needs data.degradations, e.g. [jpeg, blur, noise], or --dt jpeg for one")
    paths = [context.find_checkpoint(config.teachers, deg) for deg in context.degradations]
    teachers = [load_classifier(path, context.config.save_dir, context.source.classes) for path in paths]
    student, context = build_student(model, context)
    return Distillation(student, teachers, context, config)
