"""Diffusion-driven adaptation (Gao et al. 2023, "Back to the Source"): noise an image, denoise it under guidance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from image_adapt.lowpass import LowPass
from models.diffusion import Denoiser, ReverseStep, draw_noise, p_mean_variance
from utils.choices import check_choice

GUIDANCE_NORMS = ("per_image", "batch")


class DDA:
    """Moves images towards the domain of a diffusion model's training images, keeping their low frequencies.

    The image is noised to a level of the chain, then denoised step by step; each step is pulled by the gradient of
    ||phi_D(reference) - phi_D(predicted clean image)|| with respect to its noisy input, through the network.

    Args:
        denoiser: is frozen (no weight gets a gradient) and put in eval mode and channels_last layout, in place.
        respacing: see `models.schedule.respaced_timesteps`; its length S is the length of the chain.
        start_step: N, number of denoising steps. The same N means other noise in another schedule: for a noise level
            that carries over, give `denoiser.schedule(respacing).index_of_noise_level(alpha_bar) + 1`.
        downscale_factor: D of the low-pass operator, a divisor of the image size.
        guidance_weight: factor of the gradient, >= 0; 0 skips it and its cost (about half of the time).
        guidance_norm: "per_image": the sum of each image's own norm, so that an image does not depend on its batch.
            "batch": the published code's one norm over the batch, which weakens the guidance by about 1 / sqrt(B).
        border: see `LowPass`.
        clip_denoised: clamp the predicted clean image to [-1, 1].
        autocast: run the network in bfloat16; the arithmetic around it stays float32.
        start_mismatch: start, like the published code, with the noise of level N although the first step takes it for
            level N - 1. By default both are level N - 1.

    Raises:
        ValueError: any option outside its range; names the value and the range.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        respacing: str = "100",
        start_step: int = 50,
        downscale_factor: int = 4,
        guidance_weight: float = 3.0,
        guidance_norm: str = "per_image",
        border: str = "reflect",
        clip_denoised: bool = True,
        start_mismatch: bool = False,
        autocast: bool = False,
    ) -> None:
        check_choice(guidance_norm, GUIDANCE_NORMS, "guidance_norm")
        if not guidance_weight >= 0:
            raise ValueError(f"guidance_weight {guidance_weight} is not >= 0: 0 leaves it out, 3 is the published strength")
        self.schedule = denoiser.schedule(respacing)
        last = len(self.schedule) - start_mismatch
        if not 1 <= start_step <= last:
            raise ValueError(
                f"start_step {start_step} is outside 1..{last}: the chain of respacing {respacing!r} has "
                f"{len(self.schedule)} levels{' and start_mismatch needs one above' if start_mismatch else ''}; "
                "give a start_step in that range or a longer respacing"
            )
        self.low_pass = LowPass(denoiser.image_size, downscale_factor, border)
        self.denoiser = denoiser.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.start_step = start_step
        self.start_level = start_step if start_mismatch else start_step - 1
        self.guidance_weight = guidance_weight
        self.guidance_norm = guidance_norm
        self.clip_denoised = clip_denoised
        self.autocast = autocast

    @torch.no_grad()
    def adapt(self, x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Adapted images, same shape, about [-1, 1] (not clamped).

        Args:
            x: [B,3,H,W] float32 in [-1, 1] on the denoiser's device, H = W = the denoiser's image size.
            generators: B CPU generators. Image b draws start_step + 1 noise images from generator b, so that with
                guidance_norm "per_image" its result depends on (image, generator, options) only.

        Raises:
            ValueError: another shape; not one generator per image.
        """
        size = self.denoiser.image_size
        if x.shape[1:] != (3, size, size):
            raise ValueError(f"images have shape {list(x.shape)}: this diffusion model needs [B, 3, {size}, {size}]")
        if len(generators) != len(x):
            raise ValueError(f"{len(generators)} generators for {len(x)} images: give one for each image")
        reference = x
        x = self.schedule.q_sample(reference, self.start_level, draw_noise(x.shape[1:], generators, x))
        for i in reversed(range(self.start_step)):
            noise = draw_noise(x.shape[1:], generators, x)
            if self.guidance_weight:
                x = self._guided_step(x, reference, noise, i)
            else:
                step = self._reverse_step(x, i)
                x = step.mean + step.std * noise
        return x

    def _reverse_step(self, x: Tensor, i: int) -> ReverseStep:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
            return p_mean_variance(self.denoiser, self.schedule, x, i, self.clip_denoised)

    def _guided_step(self, x: Tensor, reference: Tensor, noise: Tensor, i: int) -> Tensor:
        with torch.enable_grad():
            x.requires_grad_()
            step = self._reverse_step(x, i)
            residual = self.low_pass(reference - step.x0)
            per_image = self.guidance_norm == "per_image"
            distance = residual.flatten(1).norm(dim=1).sum() if per_image else residual.norm()
            (gradient,) = torch.autograd.grad(distance, x)
        return step.mean + step.std * noise - self.guidance_weight * gradient  # under no_grad again: no graph is kept
