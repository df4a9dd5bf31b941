"""Methods: what is trained and by which loss. A row of `METHODS` is a new system's only entry here.

Sources: knowledge distillation by feature cosine as in FusionDistill (Daultani & Larochelle, WACVW 2024) and DiffAUD (Daultani et
al., CVPRW 2024); noise prediction as in DDPM (Ho et al., NeurIPS 2020, eq. 14).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.classifiers import Classifier, build_classifier, describe
from models.diffusion import Denoiser, build_denoiser, denoising_loss, sample
from models.diffusion import describe as describe_denoiser
from models.loading import initialise_classifier, load_classifier
from trainers.config import TrainConfig, fill
from trainers.parents import check_specialist, find_parent
from trainers.trainer import Method
from utils.checkpoint import file_digest
from utils.data.batches import Batch
from utils.data.image_source import ImageSource
from utils.data.pixels import from_signed, unit_to_signed
from utils.plots import sample_grid
from utils.seeding import torch_generator

View = Literal["clean", "degraded"]


@dataclasses.dataclass(frozen=True)
class Context:
    """What a method needs to know of the run.

    Attributes:
        source: training images.
        degradations: names.
        config: of the run.
        parent_run: run id that parents shall have (None: the latest finished run of each).
        parent: digest of the checkpoint that the student starts from; None for random or published weights.
    """

    source: ImageSource
    degradations: list[str]
    config: TrainConfig
    parent_run: str | None = None
    parent: str | None = None

    def find(self, text: str, deg: str | None = None) -> Path:
        """Checkpoint of the parent that `text` names, its placeholders replaced; `deg` one degradation of several."""
        name = fill(text if deg is None else text.replace("{deg}", deg), self.config)
        path = find_parent(name, self.config.save_dir, self.parent_run)
        if deg is not None and "{deg}" in text:
            check_specialist(path, deg)
        return path


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """The classifier that is trained.

    Attributes:
        arch: ResNet20 | ResNet56 | ResNet110 | ResNet18_CIFAR | ResNet50_CIFAR or any timm name.
        init_from: checkpoint file (also timm's or mm-classification's), run folder or run name; `{deg}` is the run's degradation.
        pretrained, drop_path: start from timm's published weights; rate of stochastic depth (null: timm's default).
        mean, std: input normalisation, range [0,1] (null: that of the weights it starts from, else of the training images).
    """

    arch: str = "ResNet20"
    init_from: str | None = None
    pretrained: bool = False
    drop_path: float | None = None
    mean: list[float] | None = None
    std: list[float] | None = None


@dataclasses.dataclass(frozen=True)
class DenoiserConfig:
    """The U-Net that is trained to predict noise (`models.diffusion.build_denoiser`).

    Attributes:
        channels: width of each level, highest resolution first.
        blocks_per_level: residual blocks a level.
        attention_levels: levels with self-attention (0 = highest resolution).
        noise_schedule: linear | cosine.
        diffusion_steps: length T of the chain.
        dropout: within residual blocks.
    """

    channels: list[int] = field(default_factory=lambda: [32, 64, 64])
    blocks_per_level: int = 1
    attention_levels: list[int] = field(default_factory=list)
    noise_schedule: Literal["linear", "cosine"] = "cosine"
    diffusion_steps: int = 1000
    dropout: float = 0.0


@dataclasses.dataclass(frozen=True)
class SupervisedConfig:
    """Cross-entropy.

    Attributes:
        name: supervised.
        view: image that the student sees: clean | degraded.
    """

    name: str = "supervised"
    view: View = "degraded"


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
    """Cross-entropy plus what one frozen teacher a degradation adds: feature cosine, softened logits (KD), or both.

    Attributes:
        name: distillation.
        teachers: checkpoint file, run folder or run name; `{deg}` stands for the degradation, so that one line names all teachers.
        teacher_view: image that the teachers see: clean (FusionDistill) | degraded (DiffAUD).
        ce_weight: weight of the cross-entropy, mean over all images of the batch.
        feature_weights: weight of 1 - cosine by feature name (stage1..stage3, pooled), mean over a degradation's images, summed
            over degradations; to leave out a feature that a base names, give it the weight 0.
        logit_weight: weight of T^2 KL(teacher || student) between logits softened by the temperature T (Hinton et al. 2015), summed
            likewise.
        temperature: T.
    """

    name: str = "distillation"
    teachers: str = ""
    teacher_view: View = "clean"
    ce_weight: float = 1.0
    feature_weights: dict[str, float] = field(default_factory=lambda: {"stage3": 1.0})
    logit_weight: float = 0.0
    temperature: float = 4.0


@dataclasses.dataclass(frozen=True)
class DenoisingConfig:
    """Noise prediction on clean images.

    Attributes:
        name: denoising.
    """

    name: str = "denoising"


class _ClassifierMethod(Method):
    """A classifier as student."""

    monitors = ("accuracy", "loss")

    def __init__(self, student: Classifier, context: Context) -> None:
        super().__init__()
        self.student: Classifier = student
        self.facts = {"classes": list(context.source.classes), "degradations": context.degradations, "parent": context.parent}

    def checkpoint(self, student: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
        assert isinstance(student, Classifier)
        return student.network.state_dict(), {**describe(student), **self.facts}


class Supervised(_ClassifierMethod):
    """L = CE(f(x), y)."""

    def __init__(self, student: Classifier, context: Context, config: SupervisedConfig) -> None:
        super().__init__(student, context)
        self.view = config.view

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        logits = self.student(batch[self.view])
        return {"loss": F.cross_entropy(logits, batch["label"]), "hits": logits.argmax(1) == batch["label"]}


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean over images of 1 - cosine between flattened features [B, ...]; 0 when parallel, 1 when orthogonal or when one is zero.

    The 1e-12 under the root is that of torch's cosine embedding loss (FusionDistill's COS with target +1).

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


def softened_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over images of logits [B,K] (Hinton et al. 2015)."""
    log_student, log_teacher = (F.log_softmax(x.float() / temperature, 1) for x in (student, teacher))
    return temperature**2 * F.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean")


class Distillation(_ClassifierMethod):
    """L = w_ce CE(f_S(x_d), y) + sum_d [sum_k w_k mean_i (1 - cos(f_S^k(x_d,i), f_Td^k(view_i))) + w_kd KD(f_S(x_d), f_Td(view))].

    With one degradation and the clean model as teacher this is FusionDistill's step 2 (self-distillation), with the specialists as
    teachers its step 4; with `teacher_view: degraded` and the feature `pooled` it is DiffAUD's distilled classifier.
    """

    def __init__(self, student: Classifier, teachers: list[Classifier], context: Context, config: DistillationConfig) -> None:
        super().__init__(student, context)
        self.teachers = nn.ModuleList(teachers).requires_grad_(False)
        self.config = config
        self.weights = {name: weight for name, weight in config.feature_weights.items() if weight}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        names, config = list(self.weights), self.config
        # called, not asked for forward_features: only a call goes through a wrapper around the student
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
                divergence = config.logit_weight * softened_divergence(logits[mine], target, config.temperature)
                out["logit_divergence"] = out.get("logit_divergence", 0) + divergence
        parts += [out[name] for name in ("feature_distance", "logit_divergence") if name in out]
        return {"loss": torch.stack(parts).sum(), **out, "hits": logits.argmax(1) == batch["label"]}


class Denoising(Method):
    """L = E ||eps - eps_theta(sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, t)||^2, t uniform (Ho et al. 2020, eq. 14).

    In eval mode time and noise of an image come from its key, so that validation losses of different epochs compare.
    """

    def __init__(self, student: Denoiser) -> None:
        super().__init__()
        self.student: Denoiser = student

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x0 = unit_to_signed(batch["clean"])
        if self.student.training:
            t = torch.randint(0, self.student.diffusion_steps, (len(x0),), device=x0.device)
            noise = torch.randn_like(x0)
        else:
            generators = [torch_generator("denoising", key) for key in batch["key"]]
            t = torch.cat([torch.randint(0, self.student.diffusion_steps, (1,), generator=g) for g in generators]).to(x0.device)
            noise = torch.stack([torch.randn(x0.shape[1:], generator=g) for g in generators]).to(x0)
        return {"loss": denoising_loss(self.student, x0, t, noise).mean()}

    def picture(self, student: nn.Module) -> np.ndarray:
        """64 samples of a chain of 50 steps (or all, if there are fewer), from fixed noise."""
        assert isinstance(student, Denoiser)
        generators = [torch_generator("samples", i) for i in range(64)]
        size = student.image_size
        with torch.no_grad():
            images = sample(student, student.schedule(str(min(50, student.diffusion_steps))), (3, size, size), generators)
        return sample_grid(from_signed(images).permute(0, 2, 3, 1).cpu().numpy(), scale=2)

    def checkpoint(self, student: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
        assert isinstance(student, Denoiser)
        return student.unet.state_dict(), describe_denoiser(student)


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
    return Denoising(build_denoiser(image_size=context.source.image_size, **dataclasses.asdict(model)))


@dataclasses.dataclass(frozen=True)
class MethodKind:
    """A row of `METHODS`: schema of the `model` and `method` sections, and what builds the method from them."""

    model: type
    method: type
    build: Callable[[Any, Any, Context], Method]


METHODS: dict[str, MethodKind] = {
    "supervised": MethodKind(ClassifierConfig, SupervisedConfig, _build_supervised),
    "distillation": MethodKind(ClassifierConfig, DistillationConfig, _build_distillation),
    "denoising": MethodKind(DenoiserConfig, DenoisingConfig, _build_denoising),
}
