"""Latent editors: a diffusion model of latents that is told the image to be edited and an
instruction (Brooks et al. 2023, "InstructPix2Pix"; Oh et al. 2024, "Decorruptor").

The U-Net sees the noised latent and, as further channels, the latent of the image. The instruction
is constant, so that of the text encoder two embeddings are all that is needed: those of the
instruction and of no text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from undegrade.models.diffusion.diffusers_folder import settings_of_scheduler, without_private
from undegrade.models.diffusion.sampling import draw_noise
from undegrade.models.diffusion.schedule import NoiseSchedule, make_schedule
from undegrade.models.diffusion.vae import LatentAutoencoder

TEXT, NULL = 0, 1  # rows of the embeddings
# of Stable Diffusion 1.5, with which InstructPix2Pix and Decorruptor were trained
SCHEDULER: dict[str, Any] = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
}  # fmt: skip
TRAINED_SCALES = {"text_weight": [5.0, 15.0], "image_weight": [1.0, 1.5]}  # of the published distillation
TOP_IMAGE_WEIGHT = 1.8  # of the published list of image weights, at its first step


class EditorFrame(nn.Module):
    """All of a latent editor but its U-Net.

    Args:
        autoencoder: of its latents.
        embeddings: [2, length, width] of the instruction and of no text.
        scheduler: configuration of diffusers' scheduler that it is trained with.

    Attributes:
        prediction: what the U-Net predicts, see `Denoiser`.

    Raises:
        ValueError: a scheduler that is not supported.
    """

    def __init__(self, autoencoder: LatentAutoencoder, embeddings: Tensor, scheduler: Mapping[str, Any] = SCHEDULER) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.register_buffer("embeddings", embeddings)
        self.scheduler = {**SCHEDULER, **without_private(dict(scheduler))}
        self._settings = settings_of_scheduler(self.scheduler, "scheduler")
        self.prediction: str = self._settings["prediction"]

    def schedule(self) -> NoiseSchedule:
        """The whole chain."""
        s = self._settings
        ends = tuple(s["betas"]) if "betas" in s else None
        return make_schedule(s["noise_schedule"], s["diffusion_steps"], "", ends, s["zero_terminal_snr"])

    def predict(
        self, unet: Any, z: Tensor, tau: Tensor, condition: Tensor, text: Tensor, scales: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """What a U-Net predicts of z [B,C,H,W].

        Args:
            unet: diffusers' `UNet2DConditionModel` with twice as many input as output channels.
            tau: time steps int64 [B].
            condition: latents of the images to be edited, shape of z, not scaled.
            text: TEXT or NULL for each, int64 [B].
            scales: guidance scales of text and image [B] each, of a distilled editor.
        """
        told = None if scales is None else scale_embedding(*scales, unet.config["time_cond_proj_dim"]).to(z.dtype)
        embeddings = self.get_buffer("embeddings")[text].to(z.dtype)
        inputs = torch.cat([z, condition], 1)
        return unet(inputs, tau, encoder_hidden_states=embeddings, timestep_cond=told, return_dict=False)[0]

    def guided(
        self, unet: Any, z: Tensor, tau: Tensor, condition: Tensor, text_weight: float | Tensor, image_weight: float | Tensor
    ) -> Tensor:
        """The three-way guidance of an ordinary editor, three rows of the U-Net an image (Brooks et
        al. 2023, equation 3).

        Args:
            z, tau, condition: see `predict`.
            text_weight, image_weight: w_T and w_I, of all or [B, 1, 1, 1].
        """
        text = torch.tensor([TEXT, NULL, NULL], device=z.device).repeat_interleave(len(z))
        conditions = torch.cat([condition, condition, torch.zeros_like(condition)])
        rows = self.predict(unet, torch.cat([z] * 3), tau.repeat(3), conditions, text)
        with_text, with_image, without = rows.chunk(3)
        return without + text_weight * (with_text - with_image) + image_weight * (with_image - without)


class Editor(EditorFrame):
    """All that editing needs.

    Args:
        unet: see `EditorFrame.predict`.
        autoencoder, embeddings, scheduler: see `EditorFrame`.

    Attributes:
        scale_width: width of the embedding of the guidance scales that a consistency-distilled
            editor is told; None for an ordinary one.
        trained_scales: ranges of both, of a distilled one.

    Raises:
        ValueError: numbers of channels that do not fit.
    """

    def __init__(
        self, unet: Any, autoencoder: LatentAutoencoder, embeddings: Tensor, scheduler: Mapping[str, Any] = SCHEDULER
    ) -> None:
        super().__init__(autoencoder, embeddings, scheduler)
        channels = (unet.config["in_channels"], unet.config["out_channels"])
        if channels != (2 * autoencoder.channels, autoencoder.channels):
            raise ValueError(
                f"the U-Net takes {channels[0]} channels and gives {channels[1]}: an editor of latents of {autoencoder.channels} "
                f"channels needs {2 * autoencoder.channels} and {autoencoder.channels}"
            )
        self.unet = unet
        self.scale_width: int | None = unet.config.get("time_cond_proj_dim")
        self.trained_scales: dict[str, list[float]] = self.scheduler.get("trained_scales", TRAINED_SCALES)


def scale_embedding(text_scale: Tensor, image_scale: Tensor, width: int) -> Tensor:
    """[B, width]: the product of the sinusoids of both guidance scales [B] (Oh et al. 2024; each as
    in Luo et al. 2023, but of the scale itself).
    """
    return _sinusoid(text_scale, width) * _sinusoid(image_scale, width)


def _sinusoid(scale: Tensor, width: int) -> Tensor:
    half = width // 2
    rates = torch.exp(torch.arange(half, device=scale.device) * (-math.log(10000.0) / (half - 1)))
    angles = 1000.0 * scale[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()] + [torch.zeros_like(angles[:, :1])] * (width % 2), 1)


def image_weights(steps: int) -> list[float]:
    """The published list of image guidance weights, one for each step: strong in noise, 0 at the
    end; sqrt(linspace(1.8^2, 0)).
    """
    return torch.linspace(TOP_IMAGE_WEIGHT**2, 0, steps, dtype=torch.float64).sqrt().tolist()


def check_weights(weights: float | Sequence[float], steps: int) -> list[float]:
    """One image weight for each step, from a list or from one number for all.

    Raises:
        ValueError: a list of another length.
    """
    if isinstance(weights, int | float):
        return [float(weights)] * steps
    if len(weights) != steps:
        raise ValueError(f"{len(weights)} image guidance weights for {steps} steps: give one for each step, or one number for all")
    return [float(weight) for weight in weights]


@torch.no_grad()
def edit(
    editor: Editor,
    condition: Tensor,
    generators: Sequence[torch.Generator],
    steps: int,
    text_weight: float,
    image_weight: float | Sequence[float],
) -> Tensor:
    """Edited latents, scaled, [B,C,H,W].

    An ordinary editor runs DDIM from pure noise with the three-way guidance of InstructPix2Pix
    (equation 3), three rows of the U-Net a step and image; a distilled one is told the weights and
    runs the multistep sampling of consistency models, one row.

    Args:
        condition: latents of the images, not scaled.
        generators: B CPU generators; image b depends on generator b only.
        steps: passes of the U-Net.
        text_weight: w_T.
        image_weight: w_I; of an ordinary editor also a list, a value for each step.

    Raises:
        ValueError: a list for a distilled editor, or of another length; more steps than a distilled
            editor knows.
    """
    z = draw_noise(condition.shape[1:], generators, condition)
    if editor.scale_width is not None:
        return _edit_distilled(editor, condition, generators, steps, text_weight, image_weight, z)
    from diffusers import DDIMScheduler  # noqa: PLC0415

    weights = check_weights(image_weight, steps)
    scheduler: Any = DDIMScheduler.from_config(
        {**editor.scheduler, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 0, "timestep_spacing": "leading"}
    )
    scheduler.set_timesteps(steps, device=z.device)
    for tau, weight in zip(scheduler.timesteps, weights, strict=True):
        predicted = editor.guided(editor.unet, z, tau.expand(len(z)), condition, text_weight, weight)
        z = scheduler.step(predicted, tau, z, return_dict=False)[0]
    return z


def _edit_distilled(
    editor: Editor,
    condition: Tensor,
    generators: Sequence[torch.Generator],
    steps: int,
    text_weight: float,
    image_weight: Any,
    z: Tensor,
) -> Tensor:
    from diffusers import LCMScheduler  # noqa: PLC0415

    if not isinstance(image_weight, int | float):
        raise ValueError("a distilled editor is told one image guidance weight, not a list for the steps: give a number, e.g. 1.3")
    known = int(editor.scheduler.get("original_inference_steps", 50))
    if not 1 <= steps <= known:
        raise ValueError(f"steps {steps}: this editor was distilled along {known}, give 1..{known} (4 is the published number)")
    settings = {key: value for key, value in editor.scheduler.items() if key != "trained_scales"}  # that is ours
    scheduler: Any = LCMScheduler.from_config({**settings, "original_inference_steps": known, "clip_sample": False})
    scheduler.set_timesteps(steps, device=z.device)
    scales = (z.new_full((len(z),), text_weight), z.new_full((len(z),), image_weight))
    told = torch.full((len(z),), TEXT, device=z.device)
    for tau in scheduler.timesteps:
        predicted = editor.predict(editor.unet, z, tau.expand(len(z)), condition, told, scales)
        z, clean = scheduler.step(predicted, tau, z, generator=list(generators), return_dict=False)
    return clean
