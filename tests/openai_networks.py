"""Networks of the guided-diffusion package with random weights, as references and as files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from guided_diffusion.unet import UNetModel
from torch import Tensor

from benchmarks.networks import randomised
from undegrade.models.diffusion.denoiser import Denoiser
from undegrade.models.diffusion.openai_flags import ModelFlags

# as the published 256 px network, but 16 px and narrow: two levels of 32 and 64 channels, attention
# at 8 px
TINY: dict[str, Any] = {
    "image_size": 16, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,2", "attention_resolutions": "8",
    "num_head_channels": 16, "resblock_updown": True, "learn_sigma": True,
}  # fmt: skip
ADM_256 = ModelFlags(
    image_size=256, attention_resolutions="32,16,8", num_channels=256, num_head_channels=64, num_res_blocks=2,
    resblock_updown=True, learn_sigma=True,
)  # fmt: skip
IMPROVED_CIFAR = ModelFlags(
    image_size=32, num_channels=128, num_res_blocks=3, learn_sigma=True, dropout=0.3, noise_schedule="cosine"
)


def texts(values: dict[str, Any]) -> dict[str, str]:
    """Flags as the command line gives them."""
    return {flag: str(value) for flag, value in values.items()}


def words(values: dict[str, Any]) -> list[str]:
    """Flags as words of a command line."""
    return [word for flag, value in values.items() for word in (f"--{flag}", str(value))]


def reference(flags: ModelFlags, seed: int = 0) -> UNetModel:
    """A network whose every block matters: none of its weights is 0 (new ones end in zeros).
    Multipliers may be fractions.
    """
    torch.manual_seed(seed)
    network = UNetModel(
        image_size=flags.image_size,
        in_channels=3,
        model_channels=flags.num_channels,
        out_channels=6 if flags.learn_sigma else 3,
        num_res_blocks=flags.num_res_blocks,
        attention_resolutions=[flags.image_size // int(size) for size in flags.attention_resolutions.split(",")],
        channel_mult=flags.multipliers(),
        num_classes=10 if flags.class_cond else None,
        num_heads=flags.num_heads,
        num_head_channels=flags.num_head_channels,
        use_scale_shift_norm=flags.use_scale_shift_norm,
        resblock_updown=flags.resblock_updown,
        use_new_attention_order=flags.use_new_attention_order,
    )
    return randomised(network, seed).requires_grad_(False)


def save(path: Path, flags: ModelFlags, seed: int = 0) -> UNetModel:
    """Write a network as OpenAI's files are, and return it."""
    network = reference(flags, seed)
    torch.save(network.state_dict(), path)
    return network


def joined(denoiser: Denoiser) -> Callable[..., Tensor]:
    """The denoiser's outputs in one tensor, as the OpenAI network gives them."""
    return lambda *args: torch.cat([part for part in denoiser(*args) if part is not None], 1)


def all_double(monkeypatch: pytest.MonkeyPatch, theirs: UNetModel, ours: Denoiser) -> None:
    """Both networks in float64, also where they (and the published sampler) go to float32 whatever
    they are given.
    """
    theirs.double().dtype = torch.float64
    ours.double()
    monkeypatch.setattr(Tensor, "float", Tensor.double)


def answer_and_gradient(function: Any, x: Tensor, tau: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(output, gradient of a random linear functional of it with respect to x)."""
    x = x.clone().requires_grad_()
    output = function(x, tau) if y is None else function(x, tau, y)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(5), dtype=output.dtype)
    (gradient,) = torch.autograd.grad((output * weights).sum(), x)
    return output.detach(), gradient


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference in units of the largest value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()
