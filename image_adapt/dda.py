"""Diffusion-driven adaptation (Gao et al. 2023, "Back to the Source"): noise an image, denoise it
under guidance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from undegrade.image_adapt.reverse import ReverseChain
from undegrade.models.diffusion.denoiser import Denoiser
from undegrade.models.diffusion.sampling import ReverseStep, ddim_step, draw_noise
from undegrade.utils.choices import check_choice

GUIDANCE_NORMS = ("per_image", "batch")
GUIDANCES = ("full", "jacobian_free")
SAMPLERS = ("ddpm", "ddim")


class DDA(ReverseChain):
    """Keeps an image's low frequencies by guidance.

    Each step is pulled by the gradient of ||phi_D(reference) - phi_D(predicted clean image)|| with
    respect to its noisy input, through the network or past it.

    Args:
        denoiser, chain: see `ReverseChain`.
        guidance_weight: factor of the gradient, >= 0; 0 skips it and its cost (about half of the
            time). The published strength is w = 6 with the norm over batches of 4 images, which
            weakens it by about 1 / sqrt(4): 3 an image.
        guidance_norm: "per_image": the sum of each image's own norm, so that an image does not
            depend on its batch. "batch": the published code's one norm over the batch, which
            weakens the guidance by about 1 / sqrt(B).
        guidance: "full": the gradient through the network, as published. "jacobian_free": that with
            respect to the predicted clean image x0, times 1 / sqrt(alpha_bar): dx0/dx of Ho et al.
            2020, equation 15, with the network's prediction held fixed (He et al. 2024, "Manifold
            preserving guided diffusion", guide x0 in the same way). No pass backward through the
            network.
        sampler: "ddpm": ancestral steps, as published. "ddim": without new noise
            (`models.diffusion.sampling.ddim_step`), for short chains.

    Raises:
        ValueError: any option outside its range; names the value and the range.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        guidance_weight: float = 3.0,
        guidance_norm: str = "per_image",
        guidance: str = "full",
        sampler: str = "ddpm",
        **chain: Any,
    ) -> None:
        check_choice(guidance_norm, GUIDANCE_NORMS, "guidance_norm")
        check_choice(guidance, GUIDANCES, "guidance")
        check_choice(sampler, SAMPLERS, "sampler")
        if not guidance_weight >= 0:
            raise ValueError(f"guidance_weight {guidance_weight} is not >= 0: 0 leaves it out, 3 is the published strength")
        if sampler == "ddim" and chain.get("variance") is not None:
            raise ValueError(f"variance {chain['variance']} has no meaning with sampler ddim, which adds no noise: leave it out")
        super().__init__(denoiser, **chain)
        self.guidance_weight = guidance_weight
        self.guidance_norm = guidance_norm
        self.sampler = sampler
        self.uses_gradient = guidance_weight > 0 and guidance == "full"

    def _step(self, x: Tensor, reference: Tensor, generators: Sequence[torch.Generator], i: int) -> Tensor:
        with torch.set_grad_enabled(self.uses_gradient):
            step = self._reverse_step(x.requires_grad_(self.uses_gradient), i)
        pull = self._pull(x, step.x0, reference, i) if self.guidance_weight else 0.0
        return self._drawn(x, step, generators, i) - self.guidance_weight * pull  # under no_grad: no graph is kept

    def _pull(self, x: Tensor, x0: Tensor, reference: Tensor, i: int) -> Tensor:
        """Gradient of the distance with respect to x."""
        with torch.enable_grad():
            x0 = x0.requires_grad_()
            residual = self.low_pass(reference - x0)
            per_image = self.guidance_norm == "per_image"
            distance = residual.flatten(1).norm(dim=1).sum() if per_image else residual.norm()
            (gradient,) = torch.autograd.grad(distance, x if self.uses_gradient else x0)
        return gradient if self.uses_gradient else gradient / math.sqrt(self.schedule.alpha_bar[i].item())

    def _drawn(self, x: Tensor, step: ReverseStep, generators: Sequence[torch.Generator], i: int) -> Tensor:
        if self.sampler == "ddim":
            return ddim_step(self.schedule, x, step.x0, i)
        return step.mean + step.std * draw_noise(x.shape[1:], generators, x)
