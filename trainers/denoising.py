"""Diffusion models: noise prediction as in DDPM (Ho et al., NeurIPS 2020, eq. 14), with the classes
of the images or without.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from undegrade.models.diffusion.denoiser import Denoiser, build_denoiser, denoising_loss, describe
from undegrade.models.diffusion.loading import initialise_denoiser
from undegrade.models.diffusion.sampling import sample
from undegrade.trainers.method import Context, Method
from undegrade.utils.data.batches import Batch
from undegrade.utils.data.pixels import from_signed, unit_to_signed
from undegrade.utils.figures import sample_grid
from undegrade.utils.ranges import Count, ShareBelowOne, Whole
from undegrade.utils.seeding import torch_generator

_PICTURED = 10  # classes in samples.png


@dataclasses.dataclass(frozen=True)
class DenoiserConfig:
    """The U-Net that is trained to predict noise (`models.diffusion.denoiser.build_denoiser`).

    Attributes:
        channels: width of each level, highest resolution first.
        blocks_per_level: residual blocks a level.
        attention_levels: levels with self-attention (0 = highest resolution).
        noise_schedule: linear | cosine.
        diffusion_steps: length T of the chain.
        dropout: within residual blocks.
        class_conditional: the network is told the class of each image.
        init_from: checkpoint file, run folder or run name of a diffusion model to start from, of
            the same widths and schedule. A class-conditional network may start from an
            unconditional one.
    """

    channels: list[Count] = field(default_factory=lambda: [32, 64, 64])
    blocks_per_level: Count = 1
    attention_levels: list[Whole] = field(default_factory=list)
    noise_schedule: Literal["linear", "cosine"] = "cosine"
    diffusion_steps: Count = 1000
    dropout: ShareBelowOne = 0.0
    class_conditional: bool = False
    init_from: str | None = None


@dataclasses.dataclass(frozen=True)
class DenoisingConfig:
    """Noise prediction on clean images.

    Attributes:
        name: denoising.
        label_dropout: of a class-conditional network: share of the training labels that the null
            label replaces, for guidance (Ho & Salimans 2022). 0: the network has no null label.
    """

    name: str = "denoising"
    label_dropout: ShareBelowOne = 0.1


class Denoising(Method):
    """L = E ||eps - eps_theta(sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, t, y)||^2, t uniform (Ho et
    al. 2020, eq. 14).

    A network without classes is not told y; in training, y is the null label for a share
    `label_dropout` of the images. In eval mode time and noise of an image come from its key and y
    is its label, so that validation losses of different epochs compare.

    Args:
        student: what is trained.
        classes: names of its classes, for its description.
        label_dropout: see `DenoisingConfig`.
    """

    def __init__(self, student: Denoiser, classes: Sequence[str] = (), label_dropout: float = 0.0) -> None:
        super().__init__()
        self.student: Denoiser = student
        self.description = {"classes": list(classes)} if student.num_classes is not None else {}
        self.label_dropout = label_dropout

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x0 = unit_to_signed(batch["clean"])
        y = None if self.student.num_classes is None else batch["label"]
        if self.student.training:
            t = torch.randint(0, self.student.diffusion_steps, (len(x0),), device=x0.device)
            noise = torch.randn_like(x0)
            if y is not None and self.label_dropout:
                assert self.student.num_classes is not None
                y = y.masked_fill(torch.rand(len(y), device=y.device) < self.label_dropout, self.student.num_classes)
        else:
            generators = [torch_generator("denoising", key) for key in batch["key"]]
            t = torch.cat([torch.randint(0, self.student.diffusion_steps, (1,), generator=g) for g in generators]).to(x0.device)
            noise = torch.stack([torch.randn(x0.shape[1:], generator=g) for g in generators]).to(x0)
        return {"loss": denoising_loss(self.student, x0, t, noise, y).mean()}

    def picture(self, parts: Mapping[str, nn.Module]) -> np.ndarray:
        """64 samples of a chain of 50 steps (all, if fewer) from fixed noise; of a conditional
        network, a class in each row.
        """
        student = parts["student"]
        assert isinstance(student, Denoiser)
        y, count = None, 64
        if student.num_classes is not None:
            count = 8 * min(student.num_classes, _PICTURED)
            y = torch.arange(count, device=next(student.parameters()).device) // 8
        generators = [torch_generator("samples", i) for i in range(count)]
        schedule, size = student.schedule(str(min(50, student.diffusion_steps))), student.image_size
        images = sample(student, schedule, (3, size, size), generators, y=y)
        return sample_grid(from_signed(images).permute(0, 2, 3, 1).cpu().numpy(), columns=8, scale=2)

    def export(self, parts: Mapping[str, nn.Module]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        student = parts["student"]
        assert isinstance(student, Denoiser)
        return student.unet.state_dict(), {**describe(student), **self.description}


def build_denoising(model: DenoiserConfig, config: DenoisingConfig, context: Context) -> Method:
    """The method that trains a network of the size and the classes of the training images.

    Raises:
        ValueError: a checkpoint to start from that does not fit.
    """
    source, options = context.source, dataclasses.asdict(model)
    options.pop("init_from")
    if options.pop("class_conditional"):
        options |= {"num_classes": len(source.classes), "null_label": config.label_dropout > 0}
    student = build_denoiser(image_size=source.image_size, **options)
    if model.init_from:
        initialise_denoiser(student, context.find_checkpoint(model.init_from))
    return Denoising(student, source.classes, config.label_dropout)
