"""The autoencoder of a latent diffusion model, at sizes that a CPU can train (Rombach et al. 2022,
section 3.1, without the adversarial part).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from undegrade.models.diffusion.diffusers_folder import without_private
from undegrade.trainers.method import Context, Method
from undegrade.utils.data.batches import Batch
from undegrade.utils.data.pixels import from_signed, to_signed, unit_to_signed
from undegrade.utils.figures import sample_grid
from undegrade.utils.ranges import Count, NotNegative
from undegrade.utils.seeding import torch_generator

_MEASURED = 512  # training images by which latents are scaled
_PICTURED = 24


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """diffusers' `AutoencoderKL`.

    Attributes:
        channels: width of each level, highest resolution first; each level after the first halves
            the sides.
        latent_channels: of a latent.
        blocks_per_level: residual blocks a level.
        norm_groups: groups of the group normalisation; divides every number of channels.
    """

    channels: list[Count] = field(default_factory=lambda: [32, 64])
    latent_channels: Count = 4
    blocks_per_level: Count = 1
    norm_groups: Count = 8


@dataclasses.dataclass(frozen=True)
class AutoencodingConfig:
    """Reconstruction of clean images, and of degraded ones if `data.degradations` names any.

    Attributes:
        name: autoencoding.
        kl_weight: of the divergence from a standard normal posterior.
    """

    name: str = "autoencoding"
    kl_weight: NotNegative = 1e-6


class Autoencoding(Method):
    """L = |D(z) - x| + w KL(q(z | x) || N(0, 1)), z ~ q(z | x): means over values.

    In eval mode z is the mode of q, so that validation losses compare. The exported scaling factor
    is 1 / the standard deviation of latents of training images, measured.

    Args:
        student: what is trained.
        measured: uint8 [N, 3, H, W], training images by which latents are scaled.
        kl_weight: w.
    """

    def __init__(self, student: Any, measured: Tensor, kl_weight: NotNegative = 1e-6) -> None:
        super().__init__()
        self.student, self.measured, self.kl_weight = student, measured, kl_weight

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        views = [batch["clean"]] if batch["degraded"] is batch["clean"] else [batch["clean"], batch["degraded"]]
        x = unit_to_signed(torch.cat(views))
        posterior = self.student.encode(x).latent_dist
        z = posterior.mode()
        if self.student.training:
            z = z + posterior.std * torch.randn_like(z)
        error = (self.student.decode(z).sample - x).abs().flatten(1).mean(1)
        divergence = posterior.kl() / z[0].numel()
        own = len(batch["clean"])  # of a degraded image is logged with its clean one
        return {
            "loss": (error + self.kl_weight * divergence).mean(),
            "error": error.unflatten(0, (-1, own)).mean(0),
            "divergence": divergence.unflatten(0, (-1, own)).mean(0),
        }

    def export(self, parts: Mapping[str, nn.Module]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        student: Any = parts["student"]
        settings = {k: list(v) if isinstance(v, tuple) else v for k, v in without_private(dict(student.config)).items()}
        latents = self._latents(student, self.measured)
        return student.state_dict(), {"kind": "autoencoder", "vae": {**settings, "scaling_factor": 1 / latents.std().item()}}

    def picture(self, parts: Mapping[str, nn.Module]) -> np.ndarray:
        """Training images, and below each what comes back."""
        student: Any = parts["student"]
        images = self.measured[:_PICTURED]
        with torch.no_grad():
            back = student.decode(self._latents(student, images)).sample
        shown = torch.stack([images.view(-1, 8, *images.shape[1:]), from_signed(back).cpu().view(-1, 8, *images.shape[1:])], 1)
        return sample_grid(shown.flatten(0, 2).permute(0, 2, 3, 1).numpy(), columns=8, scale=2)

    @staticmethod
    @torch.no_grad()
    def _latents(student: Any, images: Tensor) -> Tensor:
        weight = next(student.parameters())
        return torch.cat([student.encode(to_signed(part).to(weight)).latent_dist.mode() for part in images.split(64)])


def build_autoencoding(model: AutoencoderConfig, config: AutoencodingConfig, context: Context) -> Method:
    """The method that trains an autoencoder of the size of the training images.

    Raises:
        ValueError: an image size that the levels do not divide.
    """
    size, factor = context.source.image_size, 2 ** (len(model.channels) - 1)
    if size % factor:
        raise ValueError(
            f"model.channels {model.channels} halve the sides {len(model.channels) - 1} times, which {size} px cannot be"
        )
    count = min(_MEASURED, len(context.source))
    rows = torch.randperm(len(context.source), generator=torch_generator("measured latents"))[:count].numpy()
    return Autoencoding(autoencoder_network(model, size), context.source.images(rows), config.kl_weight)


def autoencoder_network(model: AutoencoderConfig, size: int) -> Any:
    """diffusers' `AutoencoderKL` with random weights, for images of `size` pixels a side."""
    from diffusers import AutoencoderKL  # noqa: PLC0415  importing it takes seconds

    return AutoencoderKL(
        block_out_channels=tuple(model.channels), latent_channels=model.latent_channels, layers_per_block=model.blocks_per_level,
        norm_num_groups=model.norm_groups, sample_size=size, down_block_types=("DownEncoderBlock2D",) * len(model.channels),
        up_block_types=("UpDecoderBlock2D",) * len(model.channels),
    )  # fmt: skip
