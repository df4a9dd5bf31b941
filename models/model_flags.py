"""The network flags of guided-diffusion's command line, read off a `Denoiser` that already says what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from models.diffusion import Denoiser

_Config = Mapping[str, Any]


def _attention_sizes(unet: _Config) -> list[int]:
    """Pixel sizes at which the network attends, largest first."""
    sizes = [unet["sample_size"] >> level for level in range(len(unet["block_out_channels"]))]
    return [size for size, block in zip(sizes, unet["down_block_types"], strict=True) if block.startswith("Attn")]


# flag -> what it would be for a network with this UNet2DModel configuration
_OF_NETWORK: dict[str, Callable[[_Config], object]] = {
    "image_size": lambda unet: unet["sample_size"],
    "num_channels": lambda unet: unet["block_out_channels"][0],
    "num_res_blocks": lambda unet: unet["layers_per_block"],
    "num_head_channels": lambda unet: unet["attention_head_dim"] or -1,
    "attention_resolutions": lambda unet: ",".join(str(size) for size in _attention_sizes(unet)),
    "class_cond": lambda unet: unet["num_class_embeds"] is not None,
    "resblock_updown": lambda unet: unet["downsample_type"] == "resnet",
    "use_scale_shift_norm": lambda unet: unet["resnet_time_scale_shift"] == "scale_shift",
}
_OF_CHAIN = ("learn_sigma", "diffusion_steps", "noise_schedule")
MODEL_FLAGS: tuple[str, ...] = (*_OF_NETWORK, *_OF_CHAIN)
_TRUE, _FALSE = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")


def check_model_flags(denoiser: Denoiser, flags: Mapping[str, str]) -> None:
    """Compare given flags with what the checkpoint holds.

    Args:
        denoiser: the loaded network.
        flags: texts by flag, names of `MODEL_FLAGS`.

    Raises:
        ValueError: names every flag that contradicts the checkpoint, with both values.
    """
    unet: Any = denoiser.unet.config
    wrong = []
    for flag, text in flags.items():
        held = getattr(denoiser, flag) if flag in _OF_CHAIN else _OF_NETWORK[flag](unet)
        if not _says(text, held):
            wrong.append(f"--{flag} {text} (the checkpoint: {held})")
    if wrong:
        raise ValueError(
            f"flags contradict the checkpoint: {'; '.join(wrong)}. Leave them out, or give the checkpoint they belong to"
        )


def _says(text: str, held: object) -> bool:
    if isinstance(held, bool):
        return text.lower() in (_TRUE if held else _FALSE)
    return text.replace(" ", "") == str(held)
