"""Diffusion-driven adaptation (Gao et al. 2023, "Back to the Source"): noise an image, denoise it under guidance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from image_adapt.reverse import ReverseChain
from models.diffusion import Denoiser
from models.sampling import draw_noise
from utils.choices import check_choice

GUIDANCE_NORMS = ("per_image", "batch")


class DDA(ReverseChain):
    """Keeps an image's low frequencies by guidance.

    Each step is pulled by the gradient of ||phi_D(reference) - phi_D(predicted clean image)|| with respect to its noisy input,
    through the network.

    Args:
        denoiser, chain: see `ReverseChain`.
        guidance_weight: factor of the gradient, >= 0; 0 skips it and its cost (about half of the time). The published strength is
            w = 6 with the norm over batches of 4 images, which weakens it by about 1 / sqrt(4): 3 an image.
        guidance_norm: "per_image": the sum of each image's own norm, so that an image does not depend on its batch.
            "batch": the published code's one norm over the batch, which weakens the guidance by about 1 / sqrt(B).

    Raises:
        ValueError: any option outside its range; names the value and the range.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        guidance_weight: float = 3.0,
        guidance_norm: str = "per_image",
        **chain: Any,
    ) -> None:
        check_choice(guidance_norm, GUIDANCE_NORMS, "guidance_norm")
        if not guidance_weight >= 0:
            raise ValueError(f"guidance_weight {guidance_weight} is not >= 0: 0 leaves it out, 3 is the published strength")
        super().__init__(denoiser, **chain)
        self.guidance_weight = guidance_weight
        self.guidance_norm = guidance_norm
        self.uses_gradient = guidance_weight > 0

    def _step(self, x: Tensor, reference: Tensor, generators: Sequence[torch.Generator], i: int) -> Tensor:
        noise = draw_noise(x.shape[1:], generators, x)
        if not self.guidance_weight:
            step = self._reverse_step(x, i)
            return step.mean + step.std * noise
        with torch.enable_grad():
            x.requires_grad_()
            step = self._reverse_step(x, i)
            residual = self.low_pass(reference - step.x0)
            per_image = self.guidance_norm == "per_image"
            distance = residual.flatten(1).norm(dim=1).sum() if per_image else residual.norm()
            (gradient,) = torch.autograd.grad(distance, x)
        return step.mean + step.std * noise - self.guidance_weight * gradient  # under no_grad again: no graph is kept
