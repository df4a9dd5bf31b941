"""Diffusion networks that predict the noise in an image, and the reverse step that sampling and adaptation share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.schedule import NOISE_SCHEDULES, NoiseSchedule, make_schedule
from utils.choices import check_choice

_FACTS = ("noise_schedule", "diffusion_steps", "learn_sigma", "rescale_timesteps")


class Denoiser(nn.Module):
    """A diffusers `UNet2DModel` with the facts needed to use it. It predicts the noise (eps).

    Args:
        unet: `UNet2DModel`; twice as many output as input channels if `learn_sigma`, else as many.
        noise_schedule: name in `models.schedule.NOISE_SCHEDULES`.
        diffusion_steps: length T of the chain that it was trained on.
        learn_sigma: the second half of the output channels sets the variance (Nichol & Dhariwal 2021, equation 15).
        rescale_timesteps: the network is told tau * 1000 / T, as float, instead of tau.

    Raises:
        ValueError: unknown noise schedule; output channels that do not fit `learn_sigma`.
    """

    def __init__(
        self,
        unet: nn.Module,
        *,
        noise_schedule: str,
        diffusion_steps: int = 1000,
        learn_sigma: bool = False,
        rescale_timesteps: bool = False,
    ) -> None:
        super().__init__()
        check_choice(noise_schedule, NOISE_SCHEDULES, "noise schedule")
        config: Any = unet.config
        expected = config["in_channels"] * (2 if learn_sigma else 1)
        if config["out_channels"] != expected:
            raise ValueError(
                f"the network has {config['out_channels']} output channels: learn_sigma={learn_sigma} needs {expected}"
            )
        self.unet = unet
        self.noise_schedule = noise_schedule
        self.diffusion_steps = diffusion_steps
        self.learn_sigma = learn_sigma
        self.rescale_timesteps = rescale_timesteps
        self.image_size: int = config["sample_size"]

    def schedule(self, respacing: str = "") -> NoiseSchedule:
        """The chain that this network was trained on, whole or respaced (ValueError as `make_schedule`)."""
        return make_schedule(self.noise_schedule, self.diffusion_steps, respacing)

    def forward(self, x: Tensor, tau: Tensor) -> tuple[Tensor, Tensor | None]:
        """Noise in x [B,3,H,W] (an image in [-1,1] plus noise) at time steps tau [B] int64 of the whole chain.

        Returns:
            eps [B,3,H,W], and r [B,3,H,W] which places the log variance between its lower (-1) and upper (1) limit, or
            None without `learn_sigma`. Both have the dtype of x, under autocast too.
        """
        times = tau.float() * (1000 / self.diffusion_steps) if self.rescale_timesteps else tau
        output = self.unet(x, times, return_dict=False)[0].to(x.dtype)
        if not self.learn_sigma:
            return output, None
        eps, r = output.chunk(2, dim=1)
        return eps, r


def build_denoiser(
    image_size: int,
    channels: Sequence[int],
    *,
    blocks_per_level: int = 1,
    attention_levels: Sequence[int] = (),
    norm_groups: int = 8,
    dropout: float = 0.0,
    noise_schedule: str = "cosine",
    diffusion_steps: int = 1000,
    learn_sigma: bool = False,
) -> Denoiser:
    """A new small U-Net for RGB images, weights from torch's global generator.

    Args:
        image_size: height and width in pixels, divisible by 2 ** (levels - 1).
        channels: one number per level; level 0 works at full size, each next one at half the size of the one before.
        blocks_per_level: residual blocks on the way down (one more on the way up).
        attention_levels: indices of the levels with single-head self-attention (the middle always has it).
        norm_groups: groups of the group normalisation; divides every number of channels.
        dropout: rate inside the residual blocks.
        noise_schedule, diffusion_steps, learn_sigma: see `Denoiser`.

    Raises:
        ValueError: a size, number of channels or level that does not fit.
    """
    from diffusers import UNet2DModel  # noqa: PLC0415  importing it takes seconds

    levels = range(len(channels))
    if not channels:
        raise ValueError("channels is empty: give the width of each level, e.g. [32, 64, 64]")
    if image_size % 2 ** levels[-1]:
        raise ValueError(
            f"image_size {image_size} cannot be halved {levels[-1]} times, as channels {list(channels)} needs: "
            "give fewer levels or another size"
        )
    unfit = [c for c in channels if c < 1 or c % norm_groups]
    if unfit:
        raise ValueError(f"channels {unfit} are not multiples of norm_groups {norm_groups}")
    if not set(attention_levels) <= set(levels):
        raise ValueError(f"attention_levels {list(attention_levels)}: the levels are 0..{levels[-1]}")
    unet: Any = UNet2DModel(
        sample_size=image_size,
        in_channels=3,
        out_channels=6 if learn_sigma else 3,
        block_out_channels=tuple(channels),
        layers_per_block=blocks_per_level,
        down_block_types=tuple("AttnDownBlock2D" if i in attention_levels else "DownBlock2D" for i in levels),
        up_block_types=tuple("AttnUpBlock2D" if i in attention_levels else "UpBlock2D" for i in reversed(levels)),
        attention_head_dim=None,
        norm_num_groups=norm_groups,
        attn_norm_num_groups=norm_groups,
        dropout=dropout,
    )
    return Denoiser(unet, noise_schedule=noise_schedule, diffusion_steps=diffusion_steps, learn_sigma=learn_sigma)


def describe(denoiser: Denoiser) -> dict[str, Any]:
    """JSON-able facts from which `from_description` builds the same network again."""
    config: Any = denoiser.unet.config
    unet = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items() if not k.startswith("_")}
    facts = {name: getattr(denoiser, name) for name in _FACTS}
    return {"kind": "diffusion", "image_size": denoiser.image_size, "unet": unet, **facts}


def from_description(meta: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> Denoiser:
    """Denoiser of the description `meta` (see `describe`) with the weights `state_dict` of its `unet`.

    Raises:
        ValueError: not the description of a diffusion network; weights that do not fit it (names what differs).
    """
    missing = [name for name in ("unet", *_FACTS) if name not in meta]
    if meta.get("kind") != "diffusion" or missing:
        raise ValueError(
            f"not the description of a diffusion network: kind is {meta.get('kind')!r} ('diffusion' is needed), "
            f"missing: {', '.join(missing) or 'nothing'}"
        )
    from diffusers import UNet2DModel  # noqa: PLC0415  importing it takes seconds

    try:
        unet: Any = UNet2DModel(**meta["unet"])
    except TypeError as error:
        raise ValueError(f"the installed diffusers cannot build the described network ({error}): update it") from error
    try:
        unet.load_state_dict(state_dict)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise ValueError(f"the weights do not fit the described network: {text[:600]}") from error
    return Denoiser(unet, **{name: meta[name] for name in _FACTS})


class ReverseStep(NamedTuple):
    """p(x_{i-1} | x_i) = N(mean, std^2) and the clean image behind it; `mean + std * noise` draws from it."""

    x0: Tensor
    mean: Tensor
    std: Tensor | float  # 0 at i = 0: the last step adds no noise


def p_mean_variance(denoiser: Denoiser, schedule: NoiseSchedule, x: Tensor, i: int, clip_denoised: bool = True) -> ReverseStep:
    """One reverse step from level `i` of `schedule` (Ho et al. 2020, equations 7 and 15; differentiable in x).

    The variance is the learned one (Nichol & Dhariwal 2021, equation 15) or, without `learn_sigma`, beta_i.

    Args:
        x: [B,3,H,W] at level i.
        clip_denoised: clamp the predicted clean image to [-1, 1]; where it is clamped its gradient is 0.
    """
    eps, r = denoiser(x, schedule.timesteps[i].expand(len(x)).to(x.device))
    alpha_bar, beta = schedule.alpha_bar[i].item(), schedule.betas[i].item()
    x0 = math.sqrt(1 / alpha_bar) * x - math.sqrt(1 / alpha_bar - 1) * eps
    if clip_denoised:
        x0 = x0.clamp(-1, 1)
    mean = schedule.x0_weight[i].item() * x0 + schedule.xi_weight[i].item() * x
    if i == 0:
        return ReverseStep(x0, mean, 0.0)
    if r is None:
        return ReverseStep(x0, mean, math.sqrt(beta))
    share = (r + 1) / 2
    log_variance = share * math.log(beta) + (1 - share) * schedule.posterior_log_variance[i].item()
    return ReverseStep(x0, mean, (log_variance / 2).exp())


def draw_noise(shape: Sequence[int], generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
    """Standard normal [B, *shape]: image b from `generators[b]` alone, hence equal for any batch and device.

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
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    shape: Sequence[int],
    generators: Sequence[torch.Generator],
    *,
    clip_denoised: bool = True,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2): new images [B,3,H,W] in about [-1,1], on the denoiser's device.

    Args:
        schedule: from `denoiser.schedule(respacing)`.
        shape: of one image, (3, H, W).
        generators: B CPU generators; image b depends on generator b only.
        clip_denoised: see `p_mean_variance`.
        on_step: called with (i, x) after level i is done, i falling to 0.
    """
    x = draw_noise(shape, generators, next(denoiser.parameters()))
    for i in reversed(range(len(schedule))):
        step = p_mean_variance(denoiser, schedule, x, i, clip_denoised)
        x = step.mean + step.std * draw_noise(shape, generators, x)
        if on_step is not None:
            on_step(i, x)
    return x


def denoising_loss(denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error [B] of the predicted noise (Ho et al. 2020, equation 14); the learned variance is not trained.

    Args:
        x0: clean images [B,3,H,W] in [-1, 1].
        t: time steps [B] int64 in [0, diffusion_steps).
        noise: standard normal, shape of x0.
    """
    noisy = denoiser.schedule().q_sample(x0, t, noise)
    eps, _ = denoiser(noisy, t.to(x0.device))
    return (eps - noise).square().flatten(1).mean(1)
