"""The autoencoder of a latent diffusion model: diffusers' `AutoencoderKL`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from undegrade.models.diffusion.denoiser import Denoiser
from undegrade.models.diffusion.diffusers_folder import read_network, without_private
from undegrade.models.diffusion.unet import assign_weights

log = logging.getLogger(__name__)


class LatentAutoencoder(nn.Module):
    """Images to latents and back.

    Attributes:
        factor: pixels a side for each latent position.
        channels: of a latent.
        scale: brings latents to unit variance, as a diffusion model sees them.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        self.factor: int = 2 ** (len(vae.config["block_out_channels"]) - 1)
        self.channels: int = vae.config["latent_channels"]

    @property
    def scale(self) -> float:
        return float(self.vae.config["scaling_factor"])

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """images [B, 3, H, W] in [-1, 1] -> latents [B, C, H / factor, W / factor], not scaled: the
        mode of the posterior, or, with standard normal `noise` of that shape, a sample.

        Raises:
            ValueError: a side that `factor` does not divide.
        """
        if images.shape[-1] % self.factor or images.shape[-2] % self.factor:
            raise ValueError(
                f"images of {images.shape[-1]} x {images.shape[-2]} px: this autoencoder needs sides that {self.factor} divides"
            )
        posterior = self.vae.encode(images).latent_dist
        return posterior.mode() if noise is None else posterior.mean + posterior.std * noise

    def forward(self, z: Tensor) -> Tensor:
        """Scaled latents [B, C, S, S] -> images [B, 3, factor * S, factor * S], about [-1, 1]."""
        z = z / self.scale + (self.vae.config.get("shift_factor") or 0)
        return self.vae.decode(z, return_dict=False)[0]


def build_vae(config: Mapping[str, Any], state: Mapping[str, Tensor], where: str) -> LatentAutoencoder:
    """A frozen autoencoder in eval mode, float32.

    Args:
        config: of the `AutoencoderKL`.
        state: its weights.
        where: file or folder, for messages.

    Raises:
        ValueError: weights that do not fit.
    """
    from accelerate import init_empty_weights  # noqa: PLC0415  importing them takes seconds
    from diffusers import AutoencoderKL  # noqa: PLC0415

    with init_empty_weights(include_buffers=False):
        vae: Any = AutoencoderKL(**without_private(dict(config)))
    try:
        assign_weights(vae, state)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return LatentAutoencoder(vae).eval().requires_grad_(False)


def open_decoder(path: str | Path, denoiser: Denoiser) -> LatentAutoencoder:
    """A frozen autoencoder in eval mode for the latents of `denoiser`, float32.

    Args:
        path: folder that diffusers wrote of an `AutoencoderKL` (`sd-vae-ft-ema`).
        denoiser: whose latents will be decoded.

    Raises:
        FileNotFoundError, ValueError: missing, damaged, another network, or latents of another
            number of channels.
    """
    folder = Path(path)
    vae = build_vae(*read_network(folder, ["AutoencoderKL"]), f"folder {folder}")
    if vae.channels != denoiser.channels:
        raise ValueError(
            f"the VAE {folder} has latents of {vae.channels} channels, the diffusion model makes {denoiser.channels}: give the "
            "VAE that it was trained with"
        )
    log.info("VAE from %s", folder)
    return vae
