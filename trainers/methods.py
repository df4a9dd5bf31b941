"""Methods: what is trained and by which loss. A row of `METHODS` is a new system's only entry here.

Sources: knowledge distillation by feature cosine as in FusionDistill (Daultani & Larochelle, WACVW 2024) and DiffAUD (Daultani et
al., CVPRW 2024); noise prediction as in DDPM (Ho et al., NeurIPS 2020, eq. 14).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import field
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
from trainers.trainer import Method
from utils.data.batches import Batch
from utils.data.image_source import ImageSource
from utils.data.pixels import from_signed, unit_to_signed
from utils.plots import sample_grid
from utils.seeding import torch_generator

View = Literal["clean", "degraded"]


@dataclasses.dataclass(frozen=True)
class Context:
    """What a method needs to know of the run."""

    source: ImageSource
    degradations: list[str]
    config: TrainConfig

    def reference(self, text: str, deg: str | None = None) -> str:
        """The parent run that `text` names, its placeholders replaced; `deg` one degradation of several."""
        return fill(text if deg is None else text.replace("{deg}", deg), self.config)


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """The classifier that is trained.

    Attributes:
        arch: ResNet20 | ResNet56 | ResNet110 or any timm name.
        init_from: checkpoint file, run folder or run name whose weights it starts from; `{deg}` stands for the run's degradation.
        pretrained: start from timm's published weights.
    """

    arch: str = "ResNet20"
    init_from: str | None = None
    pretrained: bool = False


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
    """Cross-entropy plus feature cosine to one frozen teacher a degradation.

    Attributes:
        name: distillation.
        teachers: checkpoint file, run folder or run name; `{deg}` stands for the degradation, so that one line names all teachers.
        teacher_view: image that the teachers see: clean (FusionDistill) | degraded (DiffAUD).
        ce_weight: weight of the cross-entropy, mean over all images of the batch.
        feature_weights: weight of 1 - cosine by feature name (stage1..stage3, pooled), mean over a degradation's images, summed
            over degradations.
    """

    name: str = "distillation"
    teachers: str = ""
    teacher_view: View = "clean"
    ce_weight: float = 1.0
    feature_weights: dict[str, float] = field(default_factory=lambda: {"stage3": 1.0})


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

    def __init__(self, student: Classifier, source: ImageSource) -> None:
        super().__init__()
        self.student: Classifier = student
        self.classes = source.classes

    def checkpoint(self, student: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
        assert isinstance(student, Classifier)
        return student.network.state_dict(), {**describe(student), "classes": list(self.classes)}


class Supervised(_ClassifierMethod):
    """L = CE(f(x), y)."""

    def __init__(self, student: Classifier, source: ImageSource, config: SupervisedConfig) -> None:
        super().__init__(student, source)
        self.view = config.view

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        logits = self.student(batch[self.view])
        return {"loss": F.cross_entropy(logits, batch["label"]), "hits": logits.argmax(1) == batch["label"]}


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean over images of 1 - cosine between flattened features [B, ...]; 0 when parallel, 1 when orthogonal or when one is zero.

    The 1e-12 under the root is that of torch's cosine embedding loss (FusionDistill's COS with target +1).
    """
    a, b = a.flatten(1).float(), b.flatten(1).float()
    norms = ((a.square().sum(1) + 1e-12) * (b.square().sum(1) + 1e-12)).sqrt()
    return (1 - (a * b).sum(1) / norms).mean()


class Distillation(_ClassifierMethod):
    """L = w_ce CE(f_S(x_d), y) + sum_d sum_k w_k mean_i (1 - cos(f_S^k(x_d,i), f_Td^k(view_i))).

    With one degradation and the clean model as teacher this is FusionDistill's step 2 (self-distillation), with the specialists as
    teachers its step 4; with `teacher_view: degraded` and the feature `pooled` it is DiffAUD's distilled classifier.
    """

    def __init__(self, student: Classifier, teachers: list[Classifier], source: ImageSource, config: DistillationConfig) -> None:
        super().__init__(student, source)
        self.teachers = nn.ModuleList(teachers).requires_grad_(False)
        self.config = config

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        names = list(self.config.feature_weights)
        logits, features = self.student.forward_features(batch["degraded"], names)
        supervised = F.cross_entropy(logits, batch["label"])
        distance = logits.new_zeros(())
        for d, teacher in enumerate(self.teachers):
            assert isinstance(teacher, Classifier)
            mine = batch["deg"] == d
            with torch.no_grad():
                targets = teacher.features(batch[self.config.teacher_view][mine], names)
            for name, weight in self.config.feature_weights.items():
                distance = distance + weight * cosine_distance(features[name][mine], targets[name])
        loss = self.config.ce_weight * supervised + distance
        return {
            "loss": loss,
            "cross_entropy": supervised,
            "feature_distance": distance,
            "hits": logits.argmax(1) == batch["label"],
        }


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


def _student(model: ClassifierConfig, context: Context) -> Classifier:
    source = context.source
    student = build_classifier(model.arch, len(source.classes), source.rgb_mean, source.rgb_std, model.pretrained)
    if model.init_from:
        initialise_classifier(student, context.reference(model.init_from), context.config.save_dir, source.classes)
    return student


def _build_supervised(model: ClassifierConfig, config: SupervisedConfig, context: Context) -> Method:
    return Supervised(_student(model, context), context.source, config)


def _build_distillation(model: ClassifierConfig, config: DistillationConfig, context: Context) -> Method:
    if not config.teachers:
        raise ValueError("method.teachers is empty: name a checkpoint, run folder or run; `{deg}` stands for each degradation")
    if not context.degradations:
        raise ValueError("distillation needs data.degradations, e.g. [jpeg, blur, noise], or --dt jpeg for one")
    references = [context.reference(config.teachers, deg) for deg in context.degradations]
    teachers = [load_classifier(r, context.config.save_dir, context.source.classes) for r in references]
    return Distillation(_student(model, context), teachers, context.source, config)


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
