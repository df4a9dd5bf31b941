"""What every adapter here does: noise an image to a level of the chain, denoise it step by step (Ho
et al. 2020).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from undegrade.image_adapt.lowpass import LowPass
from undegrade.models.diffusion.denoiser import Denoiser
from undegrade.models.diffusion.sampling import ReverseStep, check_variance, draw_noise, p_mean_variance

START_STEP = 50


class ReverseChain:
    """Moves images towards the domain of a diffusion model's training images; a subclass says how a
    step holds on to the image.

    Args:
        denoiser: is frozen (no weight gets a gradient), put in eval mode and channels_last layout,
            and its blocks are made lean (`models.diffusion.inference_blocks`), in place.
        respacing: see `models.diffusion.schedule.respaced_timesteps`; its length S is the length of
            the chain.
        start_step: N, number of denoising steps (None: 50, unless `noise_level` is given). The same
            N means other noise in another schedule or respacing.
        noise_level: in place of `start_step`: alpha_bar in (0, 1), the share of the signal in the
            variance of the noised image (near 1 = clean); the nearest level of the chain is the
            first that is denoised.
        downscale_factor: D of the low-pass operator, a divisor of the image size.
        border: see `LowPass`.
        variance: of a reverse step, see `models.diffusion.sampling.p_mean_variance`; the default is
            what was published. In short chains fixed_large leaves grain.
        clip_denoised: clamp the predicted clean image to [-1, 1].
        autocast: run the network in bfloat16; the arithmetic around it stays float32.
        start_mismatch: start, like the published code, with the noise of level N although the first
            step takes it for level N - 1. By default both are level N - 1.

    Attributes:
        start_step: N.
        start_level: level of the chain to which an image is noised.

    Raises:
        ValueError: any option outside its range; names the value and the range.
    """

    uses_gradient = False  # of the network, in every step

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        respacing: str = "100",
        start_step: int | None = None,
        noise_level: float | None = None,
        downscale_factor: int = 4,
        border: str = "reflect",
        variance: str | None = None,
        clip_denoised: bool = True,
        start_mismatch: bool = False,
        autocast: bool = False,
    ) -> None:
        from undegrade.models.diffusion.inference_blocks import frozen  # noqa: PLC0415  it imports diffusers, which takes seconds

        self.schedule = denoiser.schedule(respacing)
        self.start_step = self._steps(start_step, noise_level)
        last = len(self.schedule) - start_mismatch
        if not 1 <= self.start_step <= last:
            raise ValueError(
                f"start_step {self.start_step} is outside 1..{last}: the chain of respacing {respacing!r} has "
                f"{len(self.schedule)} levels{' and start_mismatch needs one above' if start_mismatch else ''}; "
                "give a start_step in that range or a longer respacing"
            )
        self.low_pass = LowPass(denoiser.image_size, downscale_factor, border)
        self.variance = check_variance(variance, denoiser)
        self.denoiser = frozen(denoiser)
        self.start_level = self.start_step if start_mismatch else self.start_step - 1
        self.clip_denoised = clip_denoised
        self.autocast = autocast

    def _steps(self, start_step: int | None, noise_level: float | None) -> int:
        if noise_level is None:
            return START_STEP if start_step is None else start_step
        if start_step is not None:
            raise ValueError(f"start_step {start_step} and noise_level {noise_level} say the same thing twice: give one of them")
        return self.schedule.index_of_noise_level(noise_level) + 1

    @torch.no_grad()
    def adapt(self, x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Adapted images, same shape, about [-1, 1] (not clamped).

        Args:
            x: [B,3,H,W] float32 in [-1, 1] on the denoiser's device, H = W = the denoiser's image
                size.
            generators: B CPU generators. Image b draws all its noise from generator b, so that its
                result depends on (image, generator, options) only, unless an option says otherwise
                (`guidance_norm` of `DDA`).

        Raises:
            ValueError: another shape; not one generator per image.
        """
        size = self.denoiser.image_size
        if x.shape[1:] != (3, size, size):
            raise ValueError(f"images have shape {list(x.shape)}: this diffusion model needs [B, 3, {size}, {size}]")
        if len(generators) != len(x):
            raise ValueError(f"{len(generators)} generators for {len(x)} images: give one for each image")
        reference = x
        x = self._noised(reference, self.start_level, generators)
        for i in reversed(range(self.start_step)):
            x = self._step(x, reference, generators, i)
        return x

    def _step(self, x: Tensor, reference: Tensor, generators: Sequence[torch.Generator], i: int) -> Tensor:
        """x at level i -> x at level i - 1 (clean for i = 0), held to `reference`."""
        raise NotImplementedError

    def _noised(self, reference: Tensor, level: int, generators: Sequence[torch.Generator]) -> Tensor:
        return self.schedule.q_sample(reference, level, draw_noise(reference.shape[1:], generators, reference))

    def _reverse_step(self, x: Tensor, i: int) -> ReverseStep:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
            return p_mean_variance(self.denoiser, self.schedule, x, i, self.clip_denoised, variance=self.variance)
