"""The image decoder of a latent diffusion model: diffusers' `AutoencoderKL`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from undegrade.models.diffusion.denoiser import Denoiser
from undegrade.models.diffusion.diffusers_folder import read_network, without_private
from undegrade.models.diffusion.unet import assign_weights

log = logging.getLogger(__name__)


class LatentDecoder(nn.Module):
    """Latents, scaled as a diffusion model sees them, to images.

    Attributes:
        factor: pixels a side for each latent position.
        channels: of a latent.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        self.factor: int = 2 ** (len(vae.config["block_out_channels"]) - 1)
        self.channels: int = vae.config["latent_channels"]

    def forward(self, z: Tensor) -> Tensor:
        """z [B, C, S, S] -> images [B, 3, factor * S, factor * S], about [-1, 1]."""
        config = self.vae.config
        z = z / config["scaling_factor"] + (config.get("shift_factor") or 0)  # 0.18215 and none of Stable Diffusion's
        return self.vae.decode(z, return_dict=False)[0]


def open_decoder(path: str | Path, denoiser: Denoiser) -> LatentDecoder:
    """A frozen decoder in eval mode for the latents of `denoiser`, float32.

    Args:
        path: folder that diffusers wrote of an `AutoencoderKL` (`sd-vae-ft-ema`).
        denoiser: whose latents will be decoded.

    Raises:
        FileNotFoundError, ValueError: missing, damaged, another network, or latents of another
            number of channels.
    """
    from accelerate import init_empty_weights  # noqa: PLC0415  importing them takes seconds
    from diffusers import AutoencoderKL  # noqa: PLC0415

    folder = Path(path)
    config, state = read_network(folder, ["AutoencoderKL"])
    with init_empty_weights(include_buffers=False):
        vae: Any = AutoencoderKL(**without_private(config))
    try:
        assign_weights(vae, state)
    except ValueError as error:
        raise ValueError(f"folder {folder}: {error}") from error
    decoder = LatentDecoder(vae)
    if decoder.channels != denoiser.channels:
        raise ValueError(
            f"the VAE {folder} has latents of {decoder.channels} channels, the diffusion model makes {denoiser.channels}: give the "
            "VAE that it was trained with"
        )
    log.info("VAE from %s", folder)
    return decoder.eval().requires_grad_(False)
