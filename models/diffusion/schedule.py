"""Noise levels of a diffusion model: float64 tables of a whole or a respaced chain.

A chain has S levels i = 0 (almost clean) .. S-1 (almost pure noise). Level i of a respaced chain is
the *time step* `timesteps[i]` of the chain that the network was trained on; the network is always
told the time step, never i.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from undegrade.utils.choices import check_choice

Ends = tuple[float, float]  # first and last beta of a schedule


def _linear_betas(steps: int, ends: Ends | None) -> Tensor:
    """Ho et al. 2020, section 4; without `ends` scaled so that any number of steps ends at the same
    noise.
    """
    first, last = ends or (0.1 / steps, 20 / steps)
    return torch.linspace(first, last, steps, dtype=torch.float64)


def _scaled_linear_betas(steps: int, ends: Ends | None) -> Tensor:
    """Linear in the square root, as latent diffusion was trained (Rombach et al. 2022)."""
    first, last = ends or (0.00085, 0.012)
    return torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64).square()


def _cosine_betas(steps: int, ends: Ends | None) -> Tensor:
    """Nichol & Dhariwal 2021, equation 17."""
    if ends is not None:
        raise ValueError(f"betas {list(ends)}: the cosine schedule has none, leave them out")
    signal = [math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(steps + 1)]
    return torch.tensor([min(1 - signal[t + 1] / signal[t], 0.999) for t in range(steps)], dtype=torch.float64)


NOISE_SCHEDULES = {"linear": _linear_betas, "scaled_linear": _scaled_linear_betas, "cosine": _cosine_betas}


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Tables [S] of one chain, on the CPU: `timesteps` int64, all others float64.

    With q(x_i | x_0) = N(sqrt(alpha_bar_i) x_0, 1 - alpha_bar_i), the posterior q(x_{i-1} | x_i,
    x_0) has mean `x0_weight * x_0 + xi_weight * x_i` and variance `posterior_variance` (Ho et al.
    2020, equations 6 and 7).
    """

    timesteps: Tensor
    alpha_bar: Tensor
    betas: Tensor
    posterior_variance: Tensor
    posterior_log_variance: Tensor  # entry 0 holds that of level 1, since the variance at level 0 is 0
    x0_weight: Tensor
    xi_weight: Tensor

    def __len__(self) -> int:
        return len(self.timesteps)

    def q_sample(self, x0: Tensor, i: Tensor | int, noise: Tensor) -> Tensor:
        """x0 [B,C,H,W] with `noise` at level `i`: one int, or int64 [B] on its device or the CPU
        (Ho et al. 2020, eq. 4).
        """
        signal, sigma = self._scales(x0, i)
        return signal * x0 + sigma * noise

    def velocity(self, x0: Tensor, i: Tensor | int, noise: Tensor) -> Tensor:
        """v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x0 (Salimans & Ho 2022), as
        `q_sample`.
        """
        signal, sigma = self._scales(x0, i)
        return signal * noise - sigma * x0

    def _scales(self, x0: Tensor, i: Tensor | int) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar_i) and sqrt(1 - alpha_bar_i) as factors of images."""
        tables = (table.sqrt().to(x0.dtype).to(x0.device) for table in (self.alpha_bar, 1 - self.alpha_bar))
        signal, sigma = (table[i].reshape(-1, 1, 1, 1) for table in tables)
        return signal, sigma

    def index_of_noise_level(self, alpha_bar: float) -> int:
        """The level i whose alpha_bar is nearest, so that a start carries over between schedules
        and respacings.

        Args:
            alpha_bar: share of the signal in the variance, in (0, 1): near 1 = clean, near 0 =
                noise.

        Raises:
            ValueError: not between 0 and 1.
        """
        if not 0 < alpha_bar < 1:
            raise ValueError(f"noise level alpha_bar {alpha_bar} is not between 0 (pure noise) and 1 (clean image)")
        return int((self.alpha_bar - alpha_bar).abs().argmin())


@lru_cache(maxsize=16)
def make_schedule(
    name: str, diffusion_steps: int = 1000, respacing: str = "", ends: Ends | None = None, zero_terminal_snr: bool = False
) -> NoiseSchedule:
    """Tables of a named schedule.

    Args:
        name: of `NOISE_SCHEDULES`.
        diffusion_steps: length T of the chain that the network was trained on.
        respacing: which time steps to keep, see `respaced_timesteps`.
        ends: first and last beta, in (0, 1), of the linear ones (None: the published ones).
        zero_terminal_snr: the last level is pure noise (Lin et al. 2024, algorithm 1).

    Raises:
        ValueError: unknown name; a respacing that cannot be done; a chain shorter than 2; betas
            outside (0, 1), or for the cosine.
    """
    check_choice(name, NOISE_SCHEDULES, "noise schedule")
    if diffusion_steps < 2:
        raise ValueError(f"diffusion_steps {diffusion_steps} is too small: a chain needs at least 2 steps")
    if ends is not None and not 0 < min(ends) <= max(ends) < 1:
        raise ValueError(f"betas {list(ends)}: the first and the last beta must lie between 0 and 1")
    alpha_bar = torch.cumprod(1 - NOISE_SCHEDULES[name](diffusion_steps, ends), 0)
    if zero_terminal_snr:
        root = alpha_bar.sqrt()
        alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()
    timesteps = torch.tensor(respaced_timesteps(diffusion_steps, respacing))
    alpha_bar = alpha_bar[timesteps]
    previous = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    betas = 1 - alpha_bar / previous
    variance = betas * (1 - previous) / (1 - alpha_bar)
    return NoiseSchedule(
        timesteps=timesteps,
        alpha_bar=alpha_bar,
        betas=betas,
        posterior_variance=variance,
        posterior_log_variance=torch.cat([variance[1:2], variance[1:]]).log(),
        x0_weight=betas * previous.sqrt() / (1 - alpha_bar),
        xi_weight=(1 - previous) * (1 - betas).sqrt() / (1 - alpha_bar),
    )


def respaced_timesteps(diffusion_steps: int, respacing: str) -> list[int]:
    """Ascending time steps that a respacing keeps, in the notation of guided-diffusion.

    Args:
        diffusion_steps: length T of the full chain.
        respacing: "" keeps all; "100" spreads 100 over the chain, both ends included; "10,20,30"
            cuts the chain into three sections of equal length and spreads 10, 20 and 30 over them;
            "ddim100" takes every k-th from 0, where k is the smallest stride that gives exactly
            100; "trailing50" takes the last step of each of 50 equal parts (diffusers' name; 19,
            39, ..., 999 of 1000), as consistency models are trained.

    Raises:
        ValueError: not in this notation; more steps than there are; no stride gives that number;
            fewer than 2 kept.
    """
    if not respacing:
        return list(range(diffusion_steps))
    if respacing.startswith("trailing"):
        return _trailing(diffusion_steps, respacing)
    try:
        counts = [int(part) for part in respacing.removeprefix("ddim").split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1 or sum(counts) < 2 or (respacing.startswith("ddim") and len(counts) > 1):
        raise ValueError(
            f"respacing {respacing!r} is not understood: give a number of steps ('100', at least 2), one number per "
            "section ('10,20,30'), an equal stride ('ddim100'), the ends of equal parts ('trailing50'), or '' for the whole chain"
        )
    if respacing.startswith("ddim"):
        return _equal_stride(diffusion_steps, counts[0])
    length, longer = divmod(diffusion_steps, len(counts))
    kept: list[int] = []
    start = 0
    for section, count in enumerate(counts):
        size = length + (section < longer)
        if count > size:
            raise ValueError(
                f"respacing {respacing!r} asks for {count} of the {size} steps in section {section + 1}: ask for at most {size}"
            )
        kept += [start + offset for offset in _spread(size, count)]
        start += size
    return kept


def _spread(size: int, count: int) -> list[int]:
    """`count` indices of range(size), evenly from first to last."""
    stride = (size - 1) / (count - 1) if count > 1 else 1.0
    position, indices = 0.0, []
    for _ in range(count):
        indices.append(round(position))
        position += stride  # a running sum, as in the published code: index * stride rounds otherwise for some counts
    return indices


def _trailing(diffusion_steps: int, respacing: str) -> list[int]:
    text = respacing.removeprefix("trailing")
    count = int(text) if text.isdecimal() else 0
    if not 2 <= count <= diffusion_steps or diffusion_steps % count:
        raise ValueError(
            f"respacing {respacing!r}: write trailing and a number that divides the {diffusion_steps} steps, at least 2"
        )
    part = diffusion_steps // count
    return list(range(part - 1, diffusion_steps, part))


def _equal_stride(diffusion_steps: int, count: int) -> list[int]:
    lengths = {}
    for stride in range(diffusion_steps - 1, 0, -1):
        lengths[len(range(0, diffusion_steps, stride))] = stride
    if count not in lengths:
        close = min(lengths, key=lambda length: abs(length - count))
        raise ValueError(
            f"no equal stride over {diffusion_steps} steps gives exactly {count}: the closest that works is 'ddim{close}'"
        )
    return list(range(0, diffusion_steps, lengths[count]))
