"""The reverse step of a diffusion model, which generation and adaptation share, and the chain of
them that makes new images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from undegrade.models.diffusion.denoiser import Denoiser
from undegrade.models.diffusion.guidance import Guided
from undegrade.models.diffusion.schedule import NoiseSchedule
from undegrade.utils.choices import check_choice

# variance of the reverse step at level i of a chain; "learned" is the network's own
_FIXED: dict[str, Callable[[NoiseSchedule], Tensor]] = {
    "fixed_large": lambda schedule: schedule.betas,
    "fixed_small": lambda schedule: schedule.posterior_variance,
}
VARIANCES = ("learned", *_FIXED)


def clean_image(prediction: str, x: Tensor, predicted: Tensor, alpha_bar: float | Tensor) -> Tensor:
    """The clean image behind x [B,C,H,W] at a level of `alpha_bar`, by what a network of this
    `Denoiser.prediction` says of it (Ho et al. 2020, equation 15; Salimans & Ho 2022).

    Args:
        alpha_bar: of all of them, or float64 [B, 1, 1, 1] on the device of x.
    """
    if prediction == "sample":
        return predicted
    if prediction == "epsilon":
        return _root(1 / alpha_bar, x) * x - _root(1 / alpha_bar - 1, x) * predicted
    return _root(alpha_bar, x) * x - _root(1 - alpha_bar, x) * predicted


def _root(number: float | Tensor, like: Tensor) -> float | Tensor:
    return number.sqrt().to(like.dtype) if isinstance(number, Tensor) else math.sqrt(number)


def check_variance(variance: str | None, denoiser: Denoiser) -> str:
    """The variance that reverse steps have: as given, by default learned if the network has it,
    else fixed_large.

    Raises:
        ValueError: an unknown name; learned, but the network has none.
    """
    if variance is None:
        return "learned" if denoiser.learn_sigma else "fixed_large"
    if variance == "learned" and not denoiser.learn_sigma:
        raise ValueError("variance learned: this diffusion model has no learned variance, use fixed_large or fixed_small")
    return check_choice(variance, VARIANCES, "variance")


class ReverseStep(NamedTuple):
    """p(x_{i-1} | x_i) = N(mean, std^2) and the clean image behind it; `mean + std * noise` draws
    from it.
    """

    x0: Tensor
    mean: Tensor
    std: Tensor | float  # 0 at i = 0: the last step adds no noise


def p_mean_variance(
    denoiser: Denoiser | Guided,
    schedule: NoiseSchedule,
    x: Tensor,
    i: int,
    clip_denoised: bool = True,
    y: Tensor | None = None,
    variance: str | None = None,
) -> ReverseStep:
    """One reverse step from level `i` of `schedule` (Ho et al. 2020, equations 7 and 15;
    differentiable in x).

    Args:
        denoiser: a `Denoiser`, or one with guidance (`models.diffusion.guidance`).
        x: [B,C,H,W] at level i.
        clip_denoised: clamp the predicted clean image to [-1, 1]; where it is clamped its gradient
            is 0.
        y: labels [B] of a class-conditional network, see `Denoiser.forward`.
        variance: "learned" (Nichol & Dhariwal 2021, equation 15), "fixed_large" (beta_i) or
            "fixed_small" (of the posterior; Ho et al. 2020, section 3.2). None: learned if the
            network has it, else fixed_large.
    """
    predicted, r = denoiser(x, schedule.timesteps[i].expand(len(x)).to(x.device), y)
    x0 = clean_image(denoiser.prediction, x, predicted, schedule.alpha_bar[i].item())
    if clip_denoised:
        x0 = x0.clamp(-1, 1)
    mean = schedule.x0_weight[i].item() * x0 + schedule.xi_weight[i].item() * x
    if i == 0:
        return ReverseStep(x0, mean, 0.0)
    if r is None or variance in _FIXED:
        return ReverseStep(x0, mean, math.sqrt(_FIXED[variance or "fixed_large"](schedule)[i].item()))
    share = (r + 1) / 2
    log_variance = share * math.log(schedule.betas[i].item()) + (1 - share) * schedule.posterior_log_variance[i].item()
    return ReverseStep(x0, mean, (log_variance / 2).exp())


def ddim_step(schedule: NoiseSchedule, x: Tensor, x0: Tensor, i: int) -> Tensor:
    """x at level i -> level i - 1 without new noise (DDIM: Song et al. 2021, equation 12 with sigma
    = 0).

    Args:
        x: at level i.
        x0: the clean image predicted from it; where it was clamped, the noise is taken to be what
            then remains of x.
    """
    return renoised(x, x0, schedule.alpha_bar[i].item(), schedule.alpha_bar[i - 1].item() if i else 1.0)


def renoised(x: Tensor, x0: Tensor, alpha_bar: float | Tensor, before: float | Tensor) -> Tensor:
    """x at a level of `alpha_bar`, of clean image x0, at a level of `before` with the noise that it
    has.

    Args:
        alpha_bar, before: as in `clean_image`.
    """
    eps = (x - _root(alpha_bar, x) * x0) / _root(1 - alpha_bar, x)
    return _root(before, x) * x0 + _root(1 - before, x) * eps


def draw_noise(shape: Sequence[int], generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
    """Standard normal [B, *shape]: image b from `generators[b]` alone, hence equal for any batch
    and device.

    Drawn in float32 on the CPU, then brought to the dtype and device of `like`.

    Raises:
        ValueError: a generator that is not on the CPU (its numbers would depend on the device).
    """
    foreign = {str(g.device) for g in generators if g.device.type != "cpu"}
    if foreign:
        raise ValueError(f"generators on {', '.join(sorted(foreign))}: give CPU generators, the noise is moved to {like.device}")
    return torch.stack([torch.randn(tuple(shape), generator=g) for g in generators]).to(like)


@torch.no_grad()
def sample(
    denoiser: Denoiser | Guided,
    schedule: NoiseSchedule,
    shape: Sequence[int],
    generators: Sequence[torch.Generator],
    *,
    clip_denoised: bool = True,
    y: Tensor | None = None,
    variance: str | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2): new images [B,C,H,W] in about [-1,1], on
    the denoiser's device.

    Args:
        schedule: from `Denoiser.schedule(respacing)`.
        shape: of one image, (C, H, W).
        generators: B CPU generators; image b depends on generator b only.
        denoiser, clip_denoised, y, variance: see `p_mean_variance`.
        on_step: called with (i, x) after level i is done, i falling to 0.
    """
    x = draw_noise(shape, generators, next(denoiser.parameters()))
    for i in reversed(range(len(schedule))):
        step = p_mean_variance(denoiser, schedule, x, i, clip_denoised, y, variance)
        x = step.mean + step.std * draw_noise(shape, generators, x)
        if on_step is not None:
            on_step(i, x)
    return x
