"""Diffusion networks that predict the noise in an image, what they are, and the loss that trains
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from undegrade.models.diffusion.schedule import NOISE_SCHEDULES, NoiseSchedule, make_schedule
from undegrade.models.diffusion.unet import assign_weights, build_unet
from undegrade.utils.choices import check_choice

DIFFUSION_SETTINGS = ("noise_schedule", "diffusion_steps", "learn_sigma", "rescale_timesteps")
# further ones, which a description holds where they are not the usual ones
_FURTHER: dict[str, Any] = {
    "prediction": "epsilon", "betas": None, "zero_terminal_snr": False, "null_label": False, "consistency": None,
}  # fmt: skip
PREDICTIONS = ("epsilon", "v_prediction", "sample")


class Denoiser(nn.Module):
    """A network of diffusers with the settings needed to use it. It predicts the noise (eps),
    or what stands for it.

    Args:
        unet: `UNet2DModel`, or the transformer of `models.diffusion.dit`; twice as many output as
            input channels if `learn_sigma`, else as many.
        noise_schedule: name in `models.diffusion.schedule.NOISE_SCHEDULES`.
        diffusion_steps: length T of the chain that it was trained on.
        learn_sigma: the second half of the output channels sets the variance (Nichol & Dhariwal
            2021, equation 15).
        rescale_timesteps: the network is told tau * 1000 / T, as float, instead of tau.
        prediction: what the network says of x = sqrt(abar) x0 + sqrt(1 - abar) eps: "epsilon" eps,
            "v_prediction" sqrt(abar) eps - sqrt(1 - abar) x0 (Salimans & Ho 2022), "sample" x0.
        betas: first and last beta of a linear schedule (None: the published ones).
        zero_terminal_snr: see `models.diffusion.schedule.make_schedule`.
        null_label: the last row of the label table stands for no label, so that the network is
            conditional and unconditional in one (Ho & Salimans 2022): what
            `models.diffusion.guidance` needs.
        consistency: of a consistency model (`models.diffusion.consistency`), `respacing` of the
            chain along which it was distilled and `levels`, how many of it from its clean end; None
            for an ordinary one.

    Attributes:
        num_classes: of a class-conditional network, the null label not counted; None for any other.
        image_size, channels: of what it denoises, [B, channels, image_size, image_size].

    Raises:
        ValueError: unknown noise schedule; output channels that do not fit `learn_sigma`;
            `null_label` without classes; an unknown prediction; epsilon on a chain whose last level
            has no signal.
    """

    def __init__(
        self,
        unet: nn.Module,
        *,
        noise_schedule: str,
        diffusion_steps: int = 1000,
        learn_sigma: bool = False,
        rescale_timesteps: bool = False,
        prediction: str = "epsilon",
        betas: Sequence[float] | None = None,
        zero_terminal_snr: bool = False,
        null_label: bool = False,
        consistency: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_choice(noise_schedule, NOISE_SCHEDULES, "noise schedule")
        check_choice(prediction, PREDICTIONS, "prediction")
        if zero_terminal_snr and prediction == "epsilon":
            raise ValueError(
                "prediction epsilon: of pure noise (zero_terminal_snr) no image can be told, use v_prediction or sample"
            )
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
        self.prediction = prediction
        self.betas = None if betas is None else (float(betas[0]), float(betas[1]))
        self.zero_terminal_snr = zero_terminal_snr
        self.null_label = null_label
        self.consistency = consistency
        self.image_size: int = config["sample_size"]
        self.channels: int = config["in_channels"]
        rows = config.get("num_class_embeds")
        if rows is None and "num_embeds_ada_norm" in config:
            rows = config["num_embeds_ada_norm"] + 1  # a transformer's number leaves the null label out
        if rows is None and null_label:
            raise ValueError("null_label True: an unconditional network has no labels, leave it out")
        self.num_classes: int | None = None if rows is None else rows - null_label

    def schedule(self, respacing: str = "") -> NoiseSchedule:
        """The chain that this network was trained on, whole or respaced (ValueError as
        `make_schedule`).
        """
        return make_schedule(self.noise_schedule, self.diffusion_steps, respacing, self.betas, self.zero_terminal_snr)

    def forward(self, x: Tensor, tau: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """What `prediction` says of x [B,C,H,W] (an image in [-1,1], or a latent, plus noise) at
        time steps tau [B] int64 of the whole chain.

        Args:
            x, tau: see above.
            y: labels [B] int64 in [0, num_classes) of a class-conditional network (num_classes, or
                None for all of them, is the null label where there is one), None for any other.

        Returns:
            the prediction [B,C,H,W], and r [B,C,H,W] which places the log variance between its
            lower (-1) and upper (1) limit, or None without `learn_sigma`. Both have the dtype of x,
            under autocast too.

        Raises:
            ValueError: labels missing, or given to a network without classes.
        """
        if y is None and self.null_label:
            assert self.num_classes is not None
            y = torch.full((len(x),), self.num_classes, device=x.device)
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
    num_classes: int | None = None,
    null_label: bool = True,
) -> Denoiser:
    """A new small U-Net for RGB images, weights from torch's global generator.

    Args:
        image_size: height and width in pixels, divisible by 2 ** (levels - 1).
        channels: one number per level; level 0 works at full size, each next one at half the size
            of the one before.
        blocks_per_level: residual blocks on the way down (one more on the way up).
        attention_levels: indices of the levels with single-head self-attention (the middle always
            has it).
        norm_groups: groups of the group normalisation; divides every number of channels.
        dropout: rate inside the residual blocks.
        noise_schedule, diffusion_steps, learn_sigma: see `Denoiser`.
        num_classes: of a class-conditional network.
        null_label: whether that has a null label besides.

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
        num_class_embeds=None if num_classes is None else num_classes + null_label,
    )
    return Denoiser(
        unet,
        noise_schedule=noise_schedule,
        diffusion_steps=diffusion_steps,
        learn_sigma=learn_sigma,
        null_label=null_label and num_classes is not None,
    )


def describe(denoiser: Denoiser) -> dict[str, Any]:
    """JSON-able entries from which `from_description` builds the same network again."""
    config: Any = denoiser.unet.config
    unet = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items() if not k.startswith("_")}
    return {"kind": "diffusion", "image_size": denoiser.image_size, "unet": unet, **diffusion_settings(denoiser)}


def diffusion_settings(denoiser: Denoiser) -> dict[str, Any]:
    """What `Denoiser` is given besides its network."""
    settings = {name: getattr(denoiser, name) for name in (*DIFFUSION_SETTINGS, *_FURTHER)}
    return {name: value for name, value in settings.items() if name not in _FURTHER or value != _FURTHER[name]}


def from_description(meta: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> Denoiser:
    """Denoiser of the description `meta` (see `describe`) with the weights `state_dict` of its
    `unet`.

    Raises:
        ValueError: not the description of a diffusion network; weights that do not fit it (names
            what differs).
    """
    missing = [name for name in ("unet", *DIFFUSION_SETTINGS) if name not in meta]
    if meta.get("kind") != "diffusion" or missing:
        raise ValueError(
            f"not the description of a diffusion network: kind is {meta.get('kind')!r} ('diffusion' is needed), "
            f"missing: {', '.join(missing) or 'nothing'}"
        )
    with torch.device("meta"):  # weights that are replaced at once take neither memory nor time
        unet = build_unet(meta["unet"])
    assign_weights(unet, state_dict)
    return Denoiser(unet, **{name: meta[name] for name in (*DIFFUSION_SETTINGS, *_FURTHER) if name in meta})


def denoising_loss(denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, y: Tensor | None = None) -> Tensor:
    """Mean squared error [B] of the prediction: of the noise (Ho et al. 2020, equation 14), of v or
    of the image; the learned variance is not trained.

    Args:
        x0: clean images [B,3,H,W] in [-1, 1].
        t: time steps [B] int64 in [0, diffusion_steps).
        noise: standard normal, shape of x0.
        y: labels [B] of a class-conditional network.
    """
    predicted, _ = denoiser(denoiser.schedule().q_sample(x0, t, noise), t.to(x0.device), y)
    return (predicted - denoising_target(denoiser, x0, t, noise)).square().flatten(1).mean(1)


def denoising_target(denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """What a perfect network would say [B,3,H,W]; arguments as in `denoising_loss`."""
    known = {"epsilon": noise, "sample": x0}.get(denoiser.prediction)
    return denoiser.schedule().velocity(x0, t, noise) if known is None else known
