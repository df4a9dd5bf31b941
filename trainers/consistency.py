"""Consistency distillation: a student says in one pass where its teacher's chain ends (Song et al.
2023, "Consistency models", algorithm 2; Luo et al. 2023, "Latent consistency models").
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from undegrade.models.diffusion.consistency import consistent, pseudo_huber
from undegrade.models.diffusion.denoiser import Denoiser, describe
from undegrade.models.diffusion.editor import EditorFrame
from undegrade.models.diffusion.loading import load_denoiser
from undegrade.models.diffusion.sampling import clean_image, draw_noise, renoised
from undegrade.models.diffusion.schedule import respaced_timesteps
from undegrade.trainers.method import Context, Method
from undegrade.utils.data.batches import Batch
from undegrade.utils.data.pixels import from_signed, unit_to_signed
from undegrade.utils.figures import sample_grid
from undegrade.utils.ranges import Count, Positive, PositiveShare, ShareBelowOne
from undegrade.utils.seeding import torch_generator


@dataclasses.dataclass(frozen=True)
class ConsistentDenoiserConfig:
    """The teacher, from whose weights the student starts.

    Attributes:
        init_from: checkpoint file, run folder or run name of a diffusion model.
    """

    init_from: str = "diffusion/{dataset}/ddpm"


@dataclasses.dataclass(frozen=True)
class ConsistencyConfig:
    """Consistency distillation.

    Attributes:
        name: consistency.
        steps: K steps of equal length into which the chain is cut; the teacher takes one DDIM step
            of that length.
        top: share of the chain, from its clean end, that is distilled: adaptation starts in its
            middle and needs no more.
        loss: pseudo_huber | l2.
        huber_c: where the pseudo-Huber loss turns from square to linear.
        target_decay: of the target network, a moving average of the student that follows every
            step.
    """

    name: str = "consistency"
    steps: Count = 50
    top: PositiveShare = 1.0
    loss: Literal["pseudo_huber", "l2"] = "pseudo_huber"
    huber_c: Positive = 1e-3
    target_decay: ShareBelowOne = 0.95


class ConsistencyDistillation(Method):
    """L = E d(F(x_s, s), F'(x_e, e)): x_s is a noised image, x_e what one DDIM step of the teacher
    makes of it, F' the target network, d the pseudo-Huber or the squared distance.

    s is uniform on the ends of K equal parts of the chain and e one part earlier, time step 0 for
    the first of them. A subclass says what is noised and how student and teacher are asked.

    Args:
        student: predicts as `prediction` says; `describe` gives its chain.
        denoiser: whose chain it is.
        config: section `method`.

    Raises:
        ValueError: K that does not divide the chain.
    """

    kept = ("target",)

    def __init__(self, student: nn.Module, denoiser: Denoiser | EditorFrame, config: Any) -> None:
        super().__init__()
        self.student, self.target = student, copy.deepcopy(student).requires_grad_(False)
        self.config, self.prediction, self.schedule = config, denoiser.prediction, denoiser.schedule()
        steps = torch.tensor(respaced_timesteps(len(self.schedule), f"trailing{config.steps}"))
        self.levels = steps[: max(1, round(config.top * len(steps)))]

    def encoded(self, batch: Batch) -> tuple[Tensor, Any]:
        """(what is noised [B,C,H,W], what else the networks are told) of a batch."""
        raise NotImplementedError

    def predict(self, network: Any, x: Tensor, tau: Tensor, condition: Any) -> Tensor:
        """What the student or the target network predicts."""
        raise NotImplementedError

    def teach(self, x: Tensor, tau: Tensor, condition: Any) -> Tensor:
        """The clean image that the teacher predicts."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x0, condition = self.encoded(batch)
        s, noise = self._drawn(x0, batch["key"])
        e = (s - len(self.schedule) // self.config.steps).clamp(min=0)
        x = self.schedule.q_sample(x0, s, noise)
        with torch.no_grad():
            alpha_bar = self.schedule.alpha_bar.to(x.device)
            level, before = (alpha_bar[t].reshape(-1, 1, 1, 1) for t in (s, e))
            earlier = renoised(x, self.teach(x, s, condition), level, before)
            target = self._consistent(self.target, earlier, e, condition)
        difference = self._consistent(self.student, x, s, condition) - target
        distance = difference.square() if self.config.loss == "l2" else pseudo_huber(difference, self.config.huber_c)
        distance = distance.flatten(1).mean(1)
        return {"loss": distance.mean(), "distance": distance}

    def _consistent(self, network: Any, x: Tensor, tau: Tensor, condition: Any) -> Tensor:
        return consistent(lambda x, tau: self.predict(network, x, tau, condition), self.prediction, self.schedule, x, tau)

    def _drawn(self, x0: Tensor, keys: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Time steps and noise: of validation images by their keys, so that epochs compare."""
        if self.student.training:
            s = self.levels[torch.randint(0, len(self.levels), (len(x0),))].to(x0.device)
            return s, torch.randn_like(x0)
        generators = [torch_generator("consistency", key) for key in keys]
        s = torch.cat([self.levels[torch.randint(0, len(self.levels), (1,), generator=g)] for g in generators])
        return s.to(x0.device), draw_noise(x0.shape[1:], generators, x0)

    def after_step(self, step: int) -> None:
        for mine, theirs in zip(self.target.parameters(), self.student.parameters(), strict=True):
            mine.lerp_(theirs, 1 - self.config.target_decay)
        for kept, new in zip(self.target.buffers(), self.student.buffers(), strict=True):
            kept.copy_(new)


class ConsistentDenoiser(ConsistencyDistillation):
    """Of a diffusion model of pixels.

    Args:
        teacher: from whose weights the student starts; is frozen.
        config: section `method`.
        classes: names of its classes, for the description.
    """

    def __init__(self, teacher: Denoiser, config: ConsistencyConfig, classes: Sequence[str] = ()) -> None:
        student = copy.deepcopy(teacher).requires_grad_(True)
        super().__init__(student, teacher, config)
        student.consistency = {"respacing": f"trailing{config.steps}", "levels": len(self.levels)}
        self.teacher = teacher.eval().requires_grad_(False)
        self.description = {"classes": list(classes)} if teacher.num_classes is not None else {}

    def encoded(self, batch: Batch) -> tuple[Tensor, Any]:
        return unit_to_signed(batch["clean"]), None if self.teacher.num_classes is None else batch["label"]

    def predict(self, network: Denoiser, x: Tensor, tau: Tensor, condition: Tensor | None) -> Tensor:
        return network(x, tau, condition)[0]

    def teach(self, x: Tensor, tau: Tensor, condition: Tensor | None) -> Tensor:
        alpha_bar = self.schedule.alpha_bar.to(x.device)[tau].reshape(-1, 1, 1, 1)
        return clean_image(self.prediction, x, self.teacher(x, tau, condition)[0], alpha_bar).clamp(-1, 1)

    def export(self, parts: Mapping[str, nn.Module]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        student = parts["student"]
        assert isinstance(student, Denoiser)
        return student.unet.state_dict(), {**describe(student), **self.description}

    def picture(self, parts: Mapping[str, nn.Module]) -> np.ndarray:
        """Images of one pass from pure noise, or from the highest level that was distilled."""
        student = parts["student"]
        assert isinstance(student, Denoiser)
        generators = [torch_generator("samples", i) for i in range(64)]
        shape, weight = (student.channels, student.image_size, student.image_size), next(student.parameters())
        noise = draw_noise(shape, generators, weight)
        labels = None if student.num_classes is None else torch.arange(64, device=weight.device) % student.num_classes
        tau = self.levels[-1].expand(64).to(weight.device)
        with torch.no_grad():
            images = self._consistent(student, noise, tau, labels)
        return sample_grid(from_signed(images).permute(0, 2, 3, 1).cpu().numpy(), columns=8, scale=2)


def build_consistency(model: ConsistentDenoiserConfig, config: ConsistencyConfig, context: Context) -> Method:
    """The method that distils the diffusion model that `model.init_from` names.

    Raises:
        FileNotFoundError, ValueError: missing, no diffusion model, or one of other images.
    """
    teacher = load_denoiser(context.find_checkpoint(model.init_from))
    if teacher.image_size != context.source.image_size:
        raise ValueError(
            f"model.init_from {model.init_from} is of images of {teacher.image_size} px, the training images have "
            f"{context.source.image_size}: set data.image_size"
        )
    return ConsistentDenoiser(teacher, config, context.source.classes)
