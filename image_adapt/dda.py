"""Diffusion-driven adaptation (Gao et al. 2023, "Back to the Source"): noise an image, denoise it
under guidance.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from undegrade.image_adapt.adapter import Passes, option
from undegrade.image_adapt.reverse import ChainOptions, ReverseChain
from undegrade.models.diffusion.consistency import check_consistency, consistency_levels, consistent
from undegrade.models.diffusion.denoiser import Denoiser
from undegrade.models.diffusion.openai_flags import parse_flag
from undegrade.models.diffusion.sampling import ReverseStep, ddim_step, draw_noise
from undegrade.utils.ranges import Count, NotNegative

_SCALE = 1024.0  # of the distance, so that no part of its gradient is too small for float16; exact


def _of_scale(text: str, section: Mapping[str, Any]) -> float:
    """guidance weight as the paper counts it, for a batch of 4: an image's is half of it"""
    scale: float = parse_flag("scale", text, float)
    return scale if section.get("guidance_norm") == "batch" else scale / 2


@dataclasses.dataclass(frozen=True)
class DDAOptions(ChainOptions):
    """Options of `DDA`.

    Attributes:
        guidance_weight: strength of the pull towards the input's low frequencies, for each image,
            >= 0 (paper: w, there for batches of 4, whose joint norm weakens it by about 1 /
            sqrt(4): w = 6 is 3 an image). 0 leaves the gradient and its cost out (about half of the
            time).
        guidance_norm: per_image | batch (as the paper's code: images of a batch share one norm, so
            results depend on batch mates; the last batch is then not filled up).
        guidance: full (gradient through the network) | jacobian_free (past it: no pass backward, a
            third of the time).
        sampler: ddpm | ddim (no new noise in a step, for short chains) | consistency (a model that
            was distilled for it is asked `steps` times for the clean image, which is noised again
            in between; respacing is then the model's own).
        steps: passes of sampler consistency, evenly spaced from start_step downwards.

    Raises:
        ValueError: a variance for a sampler that has none; steps for another sampler.
    """

    guidance_weight: NotNegative = option(3.0, scale=_of_scale)
    guidance_norm: Literal["per_image", "batch"] = "per_image"
    guidance: Literal["full", "jacobian_free"] = "full"
    sampler: Literal["ddpm", "ddim", "consistency"] = "ddpm"
    steps: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampler != "ddpm" and self.variance is not None:
            raise ValueError(f"variance {self.variance} has no meaning with sampler {self.sampler}, which has none: leave it out")
        if self.sampler != "consistency" and self.steps is not None:
            raise ValueError(f"steps {self.steps} is for sampler consistency: with {self.sampler} give start_step and respacing")


class DDA(ReverseChain):
    """Keeps an image's low frequencies by guidance.

    Each step is pulled by the gradient of ||phi_D(reference) - phi_D(predicted clean image)|| with
    respect to its noisy input: the sum of each image's own norm, or the published code's one norm
    over the batch. Guidance "full" is the gradient through the network, as published.
    "jacobian_free" is that with respect to the predicted clean image x0, times 1 / sqrt(alpha_bar):
    dx0/dx of Ho et al. 2020, equation 15, with the network's prediction held fixed (He et al. 2024,
    "Manifold preserving guided diffusion", guide x0 in the same way). Steps are ancestral ("ddpm",
    as published) or those of `models.diffusion.sampling.ddim_step`.

    Args:
        denoiser: see `ReverseChain`.
        options: `precision` and `digest` of `ReverseChain`, and those of `DDAOptions`.

    Raises:
        ValueError: any option outside its range; names the value and the range.
    """

    Options = DDAOptions

    def __init__(self, denoiser: Denoiser, **options: Any) -> None:
        super().__init__(denoiser, **options)
        if self.options.sampler == "consistency":
            check_consistency(denoiser, str(self.options.respacing), self.start_step)
            self.levels = consistency_levels(self.start_step, 1 if self.options.steps is None else self.options.steps)
            self.whole = denoiser.schedule()
        self.batch_matters = self.options.guidance_norm == "batch"
        self.uses_gradient = self.options.guidance_weight > 0 and self.options.guidance == "full"  # of the network
        self.passes = Passes(len(self.levels), len(self.levels) if self.uses_gradient else 0)

    @classmethod
    def without_effect(cls, options: Any) -> dict[str, str]:
        """See `Adapter.without_effect`."""
        if options.guidance_weight:
            return super().without_effect(options)
        return dict.fromkeys(("guidance", "guidance_norm", "downscale_factor", "border"), "guidance_weight is 0")

    def identity(self) -> dict[str, Any]:
        """As `ReverseChain.identity`; steps are those of sampler consistency alone."""
        identity = super().identity()
        if self.options.sampler != "consistency":
            del identity["parameters"]["steps"]
        return identity

    def _step(self, x: Tensor, reference: Tensor, generators: Sequence[torch.Generator], i: int) -> Tensor:
        weight = self.options.guidance_weight
        with torch.set_grad_enabled(self.uses_gradient):
            step = self._predicted(x.requires_grad_(self.uses_gradient), i)
        pull = self._pull(x, step.x0, reference, i) if weight else 0.0
        return self._drawn(x, step, generators, i) - weight * pull  # under no_grad: no graph is kept

    def _predicted(self, x: Tensor, i: int) -> ReverseStep:
        if self.options.sampler != "consistency":
            return self._reverse_step(x, i)
        tau = self.schedule.timesteps[i].expand(len(x)).to(x.device)
        x0 = consistent(lambda x, tau: self.denoiser(x, tau)[0], self.denoiser.prediction, self.whole, x, tau)
        x0 = x0.clamp(-1, 1) if self.options.clip_denoised else x0
        if i == self.levels[-1]:
            return ReverseStep(x0, x0, 0.0)
        following = self.schedule.alpha_bar[self.levels[self.levels.index(i) + 1]].item()
        return ReverseStep(x0, math.sqrt(following) * x0, math.sqrt(1 - following))

    def _pull(self, x: Tensor, x0: Tensor, reference: Tensor, i: int) -> Tensor:
        """Gradient of the distance with respect to x."""
        with torch.enable_grad():
            x0 = x0.requires_grad_()
            residual = self.low_pass(reference - x0)
            distance = residual.norm() if self.batch_matters else residual.flatten(1).norm(dim=1).sum()
            (gradient,) = torch.autograd.grad(distance * _SCALE, x if self.uses_gradient else x0)
        gradient /= _SCALE
        return gradient if self.uses_gradient else gradient / math.sqrt(self.schedule.alpha_bar[i].item())

    def _drawn(self, x: Tensor, step: ReverseStep, generators: Sequence[torch.Generator], i: int) -> Tensor:
        if self.options.sampler == "ddim":
            return ddim_step(self.schedule, x, step.x0, i)
        return step.mean + step.std * draw_noise(x.shape[1:], generators, x)
