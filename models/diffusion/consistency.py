"""Consistency models: one pass of the network says where a diffusion model's chain ends (Song et
al. 2023, "Consistency models"; for discrete chains Luo et al. 2023, "Latent consistency models").
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from undegrade.models.diffusion.denoiser import Denoiser
from undegrade.models.diffusion.sampling import clean_image
from undegrade.models.diffusion.schedule import NoiseSchedule

SIGMA_DATA = 0.5  # standard deviation of images in [-1, 1]
TIME_SCALE = 10.0  # on time steps of a chain of 1000


def boundary(tau: Tensor, diffusion_steps: int = 1000) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out) of time steps, (1, 0) at step 0: what makes the function the identity there
    (Luo et al. 2023, section 4.1).

    Args:
        tau: time steps, any shape.
        diffusion_steps: length of the chain; others than 1000 are stretched to it.
    """
    time = TIME_SCALE * 1000 / diffusion_steps * tau.double()
    total = time.square() + SIGMA_DATA**2
    return SIGMA_DATA**2 / total, time / total.sqrt()


def consistent(
    predict: Callable[[Tensor, Tensor], Tensor], prediction: str, schedule: NoiseSchedule, x: Tensor, tau: Tensor
) -> Tensor:
    """F(x, tau) = c_skip x + c_out x0 [B,C,H,W], x0 the clean image that the network predicts.

    Args:
        predict: (x, tau) -> the network's prediction, shape of x.
        prediction: its kind, see `Denoiser`.
        schedule: the whole chain.
        x: at time steps `tau` int64 [B], which are on its device.
    """
    alpha_bar = schedule.alpha_bar.to(x.device)[tau].reshape(-1, 1, 1, 1)
    skip, out = (part.reshape(-1, 1, 1, 1).to(x.dtype) for part in boundary(tau, len(schedule)))
    return skip * x + out * clean_image(prediction, x, predict(x, tau), alpha_bar)


def consistency_levels(start_step: int, steps: int) -> list[int]:
    """Levels at which a consistency model is asked, from `start_step - 1` downwards, evenly spaced
    (of 50 and 4: 49, 37, 24, 12, the time steps 999, 759, 499, 259 of Luo et al.'s scheduler).

    Raises:
        ValueError: more steps than levels, or none.
    """
    if not 1 <= steps <= start_step:
        raise ValueError(f"steps {steps}: the chain is entered at level {start_step}, give 1..{start_step}")
    return [start_step - 1 - k * start_step // steps for k in range(steps)]


def check_consistency(denoiser: Denoiser, respacing: str, start_step: int) -> None:
    """Whether the network is a consistency model of that chain and of its levels up to
    `start_step`.

    Raises:
        ValueError: it is not; names the mend.
    """
    if denoiser.consistency is None:
        raise ValueError(
            "sampler consistency: this diffusion model was not distilled into a consistency model, which few steps need: "
            "distil it by the method consistency (trainers/consistency.py), or choose the sampler ddim"
        )
    own, levels = denoiser.consistency["respacing"], denoiser.consistency["levels"]
    if respacing != own or start_step > levels:
        raise ValueError(
            f"sampler consistency: respacing {respacing!r} and start_step {start_step}, but this model was distilled along "
            f"{own!r} up to start_step {levels}: give respacing {own} and a start_step of at most {levels}"
        )


def pseudo_huber(difference: Tensor, c: float) -> Tensor:
    """sqrt(d^2 + c^2) - c, value by value: |d| for large differences, smooth at 0 (Song & Dhariwal
    2024, "Improved techniques for training consistency models").
    """
    return torch.sqrt(difference.square() + c**2) - c
