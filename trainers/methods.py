"""Methods: what is trained and by which loss. A row of `METHODS` is a new system's only entry here.

Sources: knowledge distillation by feature cosine as in FusionDistill (Daultani & Larochelle, WACVW
2024) and DiffAUD (Daultani et al., CVPRW 2024); noise prediction as in DDPM (Ho et al., NeurIPS
2020, eq. 14).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undegrade.models.classification.classifier import Classifier, build_classifier, describe
from undegrade.models.classification.loading import initialise_classifier, load_classifier
from undegrade.trainers.config import TrainConfig, fill
from undegrade.trainers.denoising import DenoiserConfig, DenoisingConfig, build_denoising
from undegrade.trainers.losses import cosine_distance, kd_loss
from undegrade.trainers.method import Method
from undegrade.trainers.mixup import mixed
from undegrade.utils.checkpoint import file_digest
from undegrade.utils.data.batches import Batch
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.runs import check_specialist, find_checkpoint

View = Literal["clean", "degraded"]


@dataclasses.dataclass(frozen=True)
class Context:
    """What a method needs to know of the run.

    Attributes:
        source: training images.
        degradations: names.
        config: of the run.
        parent_run: run id that parents shall have (None: the latest finished run of each).
        parent: digest of the checkpoint that the student starts from; None for random or published
            weights.
    """

    source: ImageSource
    degradations: list[str]
    config: TrainConfig
    parent_run: str | None = None
    parent: str | None = None

    def find(self, text: str, deg: str | None = None) -> Path:
        """Checkpoint of the parent that `text` names, its placeholders replaced; `deg` one
        degradation of several.
        """
        name = fill(text if deg is None else text.replace("{deg}", deg), self.config)
        path = find_checkpoint(name, self.config.save_dir, self.parent_run)
        if deg is not None and "{deg}" in text:
            check_specialist(path, deg)
        return path


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """The classifier that is trained.

    Attributes:
        arch: ResNet20 | ResNet56 | ResNet110 | ResNet18_CIFAR | ResNet50_CIFAR or any timm name.
        init_from: checkpoint file (also timm's or mm-classification's), run folder or run name;
            `{deg}` is the run's degradation.
        pretrained, drop_path: start from timm's published weights; rate of stochastic depth (null:
            timm's default).
        mean, std: input normalisation, range [0,1] (null: that of the weights it starts from, else
            of the training images).
    """

    arch: str = "ResNet20"
    init_from: str | None = None
    pretrained: bool = False
    drop_path: float | None = None
    mean: list[float] | None = None
    std: list[float] | None = None


@dataclasses.dataclass(frozen=True)
class SupervisedConfig:
    """Cross-entropy.

    Attributes:
        name: supervised.
        view: image that the student sees: clean | degraded.
        label_smoothing: share of a training label that is spread evenly over all classes (Szegedy
            et al. 2016, sec. 7).
        mixup, cutmix: alpha of the Beta distribution by which training images are mixed in pairs
            (`trainers.mixup`); 0 for none. Training accuracy is then that of the first image of
            each pair.
    """

    name: str = "supervised"
    view: View = "degraded"
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1 or min(self.mixup, self.cutmix) < 0:
            raise ValueError("method.label_smoothing must be a share below 1, method.mixup and method.cutmix positive; 0 is none")


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
    ce_weight: float = 1.0
    feature_weights: dict[str, float] = field(default_factory=lambda: {"stage3": 1.0})
    logit_weight: float = 0.0
    temperature: float = 4.0


class _ClassifierMethod(Method):
    """A classifier as student."""

    monitors = ("accuracy", "loss")

    def __init__(self, student: Classifier, context: Context) -> None:
        super().__init__()
        self.student: Classifier = student
        self.facts = {**context.source.facts, "degradations": context.degradations, "parent": context.parent}

    def checkpoint(self, student: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
        assert isinstance(student, Classifier)
        return student.network.state_dict(), {**describe(student), **self.facts}


class Supervised(_ClassifierMethod):
    """L = CE(f(x), y), with softened labels in training where the configuration says so."""

    def __init__(self, student: Classifier, context: Context, config: SupervisedConfig) -> None:
        super().__init__(student, context)
        self.view, self.config = config.view, config

    def prepare(self, batch: Batch, *stream: object) -> Batch:
        alphas = self.config.mixup, self.config.cutmix
        if not any(alphas):
            return batch
        images, target = mixed(batch[self.view], batch["label"], self.student.num_classes, *alphas, (*stream, "mixing"))
        return {**batch, self.view: images, "target": target}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        logits = self.student(batch[self.view])
        smoothing = self.config.label_smoothing if self.student.training else 0.0
        target = batch["target"] if "target" in batch else batch["label"]
        loss = F.cross_entropy(logits, target, label_smoothing=smoothing)
        return {"loss": loss, "hits": logits.argmax(1) == batch["label"]}


class Distillation(_ClassifierMethod):
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
        return {"loss": torch.stack(parts).sum(), **out, "hits": logits.argmax(1) == batch["label"]}


def _student(model: ClassifierConfig, context: Context) -> tuple[Classifier, Context]:
    """The student, and the context with its parent."""
    source, options = context.source, (model.pretrained, model.drop_path)
    student = build_classifier(model.arch, len(source.classes), source.rgb_mean, source.rgb_std, *options)
    if model.init_from:
        path = context.find(model.init_from)
        initialise_classifier(student, path, context.config.save_dir, source.classes)
        context = dataclasses.replace(context, parent=file_digest(path))
    student.set_normalisation(model.mean, model.std)
    return student, context


def _build_supervised(model: ClassifierConfig, config: SupervisedConfig, context: Context) -> Method:
    student, context = _student(model, context)
    return Supervised(student, context, config)


def _build_distillation(model: ClassifierConfig, config: DistillationConfig, context: Context) -> Method:
    if not config.teachers:
        raise ValueError("method.teachers is empty: name a checkpoint, run folder or run; `{deg}` stands for each degradation")
    if not context.degradations:
        raise ValueError("distillation needs data.degradations, e.g. [jpeg, blur, noise], or --dt jpeg for one")
    if config.temperature <= 0:
        raise ValueError(f"method.temperature {config.temperature:g} must be positive")
    paths = [context.find(config.teachers, deg) for deg in context.degradations]
    teachers = [load_classifier(path, context.config.save_dir, context.source.classes) for path in paths]
    student, context = _student(model, context)
    return Distillation(student, teachers, context, config)


def _build_denoising(model: DenoiserConfig, config: DenoisingConfig, context: Context) -> Method:
    parent = context.find(model.init_from) if model.init_from else None
    return build_denoising(model, config, context.source, parent)


@dataclasses.dataclass(frozen=True)
class MethodKind:
    """A row of `METHODS`: schema of the `model` and `method` sections, and what builds the method
    from them.
    """

    model: type
    method: type
    build: Callable[[Any, Any, Context], Method]


METHODS: dict[str, MethodKind] = {
    "supervised": MethodKind(ClassifierConfig, SupervisedConfig, _build_supervised),
    "distillation": MethodKind(ClassifierConfig, DistillationConfig, _build_distillation),
    "denoising": MethodKind(DenoiserConfig, DenoisingConfig, _build_denoising),
}
