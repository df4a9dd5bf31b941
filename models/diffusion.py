"""Diffusion networks that predict the noise in an image, and the reverse step that sampling and adaptation share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.schedule import NOISE_SCHEDULES, NoiseSchedule, make_schedule
from utils.choices import check_choice

FACTS = ("noise_schedule", "diffusion_steps", "learn_sigma", "rescale_timesteps")
_OWN_KEYS = ("num_heads", "time_channels")


class Denoiser(nn.Module):
    """A diffusers `UNet2DModel` with the facts needed to use it. It predicts the noise (eps).

    Args:
        unet: `UNet2DModel`; twice as many output as input channels if `learn_sigma`, else as many.
        noise_schedule: name in `models.schedule.NOISE_SCHEDULES`.
        diffusion_steps: length T of the chain that it was trained on.
        learn_sigma: the second half of the output channels sets the variance (Nichol & Dhariwal 2021, equation 15).
        rescale_timesteps: the network is told tau * 1000 / T, as float, instead of tau.

    A network with class embeddings (`num_classes` of them, else None) needs a label for each image.

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
        self.num_classes: int | None = config.get("num_class_embeds")

    def schedule(self, respacing: str = "") -> NoiseSchedule:
        """The chain that this network was trained on, whole or respaced (ValueError as `make_schedule`)."""
        return make_schedule(self.noise_schedule, self.diffusion_steps, respacing)

    def forward(self, x: Tensor, tau: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Noise in x [B,3,H,W] (an image in [-1,1] plus noise) at time steps tau [B] int64 of the whole chain.

        Args:
            x, tau: see above.
            y: labels [B] int64 in [0, num_classes) of a class-conditional network, None for any other.

        Returns:
            eps [B,3,H,W], and r [B,3,H,W] which places the log variance between its lower (-1) and upper (1) limit, or
            None without `learn_sigma`. Both have the dtype of x, under autocast too.

        Raises:
            ValueError: labels missing, or given to a network without classes.
        """
        if y is None and self.num_classes is not None:
            raise ValueError(
                f"this diffusion model is class-conditional ({self.num_classes} classes): give the label of each image as y, "
                "or use an unconditional model where labels are not known"
            )
        if y is not None and self.num_classes is None:
            raise ValueError("this diffusion model is unconditional: leave the labels y out, or use a class-conditional model")
        times = tau.float() * (1000 / self.diffusion_steps) if self.rescale_timesteps else tau
        labels = {} if y is None else {"class_labels": y}
        output = self.unet(x, times, **labels, return_dict=False)[0].to(x.dtype)
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


def build_unet(config: Mapping[str, Any]) -> Any:
    """A `UNet2DModel` of a configuration that may hold two keys of our own, for what diffusers has no option for.

    Args:
        config: arguments of `UNet2DModel`, and
            `num_heads`: heads of every attention block, whatever its width (`attention_head_dim` fixes their width instead);
            `time_channels`: width of the sinusoidal time embedding where it is not that of the first level.

    Raises:
        ValueError: a key that the installed diffusers does not know.
    """
    from diffusers import UNet2DModel  # noqa: PLC0415  importing it takes seconds
    from diffusers.models.embeddings import TimestepEmbedding, Timesteps  # noqa: PLC0415

    own = {key: config[key] for key in _OWN_KEYS if config.get(key) is not None}
    try:
        unet: Any = UNet2DModel(**{key: value for key, value in config.items() if key not in _OWN_KEYS})
    except TypeError as error:
        raise ValueError(f"the installed diffusers cannot build the described network ({error}): update it") from error
    if "time_channels" in own:
        unet.time_proj = Timesteps(own["time_channels"], unet.config.flip_sin_to_cos, unet.config.freq_shift)
        unet.time_embedding = TimestepEmbedding(own["time_channels"], 4 * own["time_channels"])
    for attention in attentions(unet) if "num_heads" in own else ():
        attention.heads = own["num_heads"]
        attention.scale = (attention.inner_dim / attention.heads) ** -0.5
    unet.register_to_config(**own)
    return unet


def attentions(unet: nn.Module) -> list[Any]:
    """The attention blocks of a `UNet2DModel`."""
    return [module for module in unet.modules() if hasattr(module, "to_q")]


def describe(denoiser: Denoiser) -> dict[str, Any]:
    """JSON-able facts from which `from_description` builds the same network again."""
    config: Any = denoiser.unet.config
    unet = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items() if not k.startswith("_")}
    facts = {name: getattr(denoiser, name) for name in FACTS}
    return {"kind": "diffusion", "image_size": denoiser.image_size, "unet": unet, **facts}


def from_description(meta: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> Denoiser:
    """Denoiser of the description `meta` (see `describe`) with the weights `state_dict` of its `unet`.

    Aligned float32 weights become its own without a copy (hence may stay in a mapped file), others are copied to float32.

    Raises:
        ValueError: not the description of a diffusion network; weights that do not fit it (names what differs).
    """
    missing = [name for name in ("unet", *FACTS) if name not in meta]
    if meta.get("kind") != "diffusion" or missing:
        raise ValueError(
            f"not the description of a diffusion network: kind is {meta.get('kind')!r} ('diffusion' is needed), "
            f"missing: {', '.join(missing) or 'nothing'}"
        )
    with torch.device("meta"):  # weights that are replaced at once take neither memory nor time
        unet = build_unet(meta["unet"])
    try:
        unet.load_state_dict({name: _aligned(tensor.float()) for name, tensor in state_dict.items()}, assign=True)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise ValueError(f"the weights do not fit the described network: {text[:600]}") from error
    return Denoiser(unet, **{name: meta[name] for name in FACTS})


def _aligned(tensor: Tensor) -> Tensor:
    """Kernels differ by alignment in their rounding, so that results would depend on where in a file the weights lie."""
    return tensor.clone() if tensor.data_ptr() % 64 else tensor


class ReverseStep(NamedTuple):
    """p(x_{i-1} | x_i) = N(mean, std^2) and the clean image behind it; `mean + std * noise` draws from it."""

    x0: Tensor
    mean: Tensor
    std: Tensor | float  # 0 at i = 0: the last step adds no noise


def p_mean_variance(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x: Tensor,
    i: int,
    clip_denoised: bool = True,
    y: Tensor | None = None,
) -> ReverseStep:
    """One reverse step from level `i` of `schedule` (Ho et al. 2020, equations 7 and 15; differentiable in x).

    The variance is the learned one (Nichol & Dhariwal 2021, equation 15) or, without `learn_sigma`, beta_i.

    Args:
        x: [B,3,H,W] at level i.
        clip_denoised: clamp the predicted clean image to [-1, 1]; where it is clamped its gradient is 0.
        y: labels [B] of a class-conditional network, see `Denoiser.forward`.
    """
    eps, r = denoiser(x, schedule.timesteps[i].expand(len(x)).to(x.device), y)
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
    y: Tensor | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2): new images [B,3,H,W] in about [-1,1], on the denoiser's device.

    Args:
        schedule: from `denoiser.schedule(respacing)`.
        shape: of one image, (3, H, W).
        generators: B CPU generators; image b depends on generator b only.
        clip_denoised, y: see `p_mean_variance`.
        on_step: called with (i, x) after level i is done, i falling to 0.
    """
    x = draw_noise(shape, generators, next(denoiser.parameters()))
    for i in reversed(range(len(schedule))):
        step = p_mean_variance(denoiser, schedule, x, i, clip_denoised, y)
        x = step.mean + step.std * draw_noise(shape, generators, x)
        if on_step is not None:
            on_step(i, x)
    return x


def denoising_loss(denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, y: Tensor | None = None) -> Tensor:
    """Mean squared error [B] of the predicted noise (Ho et al. 2020, equation 14); the learned variance is not trained.

    Args:
        x0: clean images [B,3,H,W] in [-1, 1].
        t: time steps [B] int64 in [0, diffusion_steps).
        noise: standard normal, shape of x0.
        y: labels [B] of a class-conditional network.
    """
    noisy = denoiser.schedule().q_sample(x0, t, noise)
    eps, _ = denoiser(noisy, t.to(x0.device), y)
    return (eps - noise).square().flatten(1).mean(1)
