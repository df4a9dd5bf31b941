"""The network flags of guided-diffusion's command line: read, and compared with a `Denoiser` that
already says what it is.
"""

from __future__ import annotations

import dataclasses
import shlex
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

from undegrade.models.diffusion.denoiser import Denoiser
from undegrade.models.diffusion.unet import attentions
from undegrade.utils.config import check_value
from undegrade.utils.ranges import Count, ShareBelowOne

_BOOLEANS = {**dict.fromkeys(("yes", "true", "t", "y", "1"), True), **dict.fromkeys(("no", "false", "f", "n", "0"), False)}
# widths of the levels in units of num_channels where channel_mult is empty, by image_size
CHANNEL_MULT: dict[int, tuple[float, ...]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}


@dataclasses.dataclass(frozen=True)
class ModelFlags:
    """What a network file of guided- or improved-diffusion does not say itself, with the published
    defaults.

    Attributes:
        image_size: side of the images in pixels.
        num_channels: width that `channel_mult` multiplies, and of the sinusoidal time embedding.
        num_res_blocks: residual blocks a level on the way down (one more on the way up).
        num_heads: attention heads, whatever the width, unless `num_head_channels` is given.
        num_heads_upsample: heads on the way up; -1: as on the way down.
        num_head_channels: width of an attention head; -1: see `num_heads`.
        attention_resolutions: pixel sizes at which the network attends, e.g. "32,16,8".
        channel_mult: widths of the levels, e.g. "1,2,2,2"; empty: `CHANNEL_MULT` by image_size.
        dropout: rate inside the residual blocks (while training).
        class_cond: the network takes labels.
        use_checkpoint: recompute activations in the backward pass, which saves memory.
        use_scale_shift_norm: the time embedding scales and shifts the normalised features, instead
            of being added.
        resblock_updown: residual blocks change the size, instead of convolutions.
        use_new_attention_order: channels of queries, keys and values are [q | k | v], instead of
            [q, k, v] of each head in turn.
        learn_sigma: the network predicts the variance, too.
        diffusion_steps: length of the full chain.
        noise_schedule: linear | cosine.
        rescale_timesteps: the network is given steps scaled to 0..1000.
        use_kl, rescale_learned_sigmas: of the training loss, without meaning for a trained network.
        predict_xstart: the network predicts the clean image (not supported).
    """

    image_size: Count = 64
    num_channels: Count = 128
    num_res_blocks: Count = 2
    num_heads: Count = 4
    num_heads_upsample: Count | Literal[-1] = -1
    num_head_channels: Count | Literal[-1] = -1
    attention_resolutions: str = "16,8"
    channel_mult: str = ""
    dropout: ShareBelowOne = 0.0
    class_cond: bool = False
    use_checkpoint: bool = False
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    learn_sigma: bool = False
    diffusion_steps: Count = 1000
    noise_schedule: str = "linear"
    rescale_timesteps: bool = False
    use_kl: bool = False
    rescale_learned_sigmas: bool = False
    predict_xstart: bool = False

    def multipliers(self) -> tuple[float, ...]:
        """Width of each level in units of num_channels (ValueError: not numbers; none known for
        this image_size).
        """
        if not self.channel_mult and self.image_size not in CHANNEL_MULT:
            raise ValueError(
                f"--channel_mult is needed for --image_size {self.image_size}, e.g. 1,2,2,2 (only sizes "
                f"{', '.join(str(size) for size in sorted(CHANNEL_MULT))} have a default)"
            )
        return _numbers("channel_mult", self.channel_mult) if self.channel_mult else CHANNEL_MULT[self.image_size]

    def attention_levels(self, levels: int) -> list[int]:
        """Those of `levels` levels that attend: level i works at image_size / 2**i pixels, level 0
        being the first.
        """
        rates = {self.image_size // size for size in _numbers("attention_resolutions", self.attention_resolutions) if size >= 1}
        return [level for level in range(levels) if 2**level in rates]


MODEL_FLAGS: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(ModelFlags))
WITHOUT_EFFECT = ("dropout", "use_checkpoint", "use_kl", "rescale_learned_sigmas")  # on what a trained network answers


def _numbers(flag: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"--{flag} {text} is not understood: give numbers joined by commas, e.g. 1,2,2,2") from None


# by the default's type: how a text is read, and what the message asks for
_READERS: dict[type, tuple[Callable[[str], Any], str]] = {
    int: (int, "a whole number"),
    float: (float, "a number"),
    bool: (lambda text: _BOOLEANS[text.lower()], "True or False"),
    str: (lambda text: text.replace(" ", ""), "text"),
}


def parse_flags(texts: Mapping[str, str]) -> dict[str, Any]:
    """Values of given flags.

    Args:
        texts: as on the command line, by names of `MODEL_FLAGS`.

    Raises:
        ValueError: a text that is no value of its flag, or one outside its range.
    """
    hints = typing.get_type_hints(ModelFlags, include_extras=True)
    values = {flag: parse_flag(flag, text, type(getattr(ModelFlags, flag))) for flag, text in texts.items()}
    return {flag: check_value(hints[flag], value, flag) for flag, value in values.items()}


def parse_flag(flag: str, text: str, kind: type) -> Any:
    """Value of one flag, of type int, float, bool or str; ValueError names the flag and what is
    needed.
    """
    read, wanted = _READERS[kind]
    try:
        return read(text)
    except (ValueError, KeyError):
        raise ValueError(f"--{flag} {text} is not understood: give {wanted}") from None


def format_flags(values: Mapping[str, Any]) -> str:
    """Flags as a command line takes them."""
    return " ".join(f"--{flag} {shlex.quote(str(value))}" for flag, value in values.items())


def number_list(values: tuple[float, ...] | list[int]) -> str:
    """Numbers as a flag takes them: `0.5,1,2`."""
    return ",".join(f"{value:g}" for value in values)


def _unet(denoiser: Denoiser) -> Any:
    return denoiser.unet.config


def _base(denoiser: Denoiser) -> int:
    unet = _unet(denoiser)
    return unet.get("time_channels") or unet["block_out_channels"][0]


def _sizes(denoiser: Denoiser) -> str:
    """Pixel sizes at which the network attends, largest first."""
    attends = [block.startswith("Attn") for block in _unet(denoiser)["down_block_types"]]
    return number_list([denoiser.image_size >> level for level, yes in enumerate(attends) if yes])


def _one_or_all(values: list[int]) -> object:
    """The value that all blocks share, else the values that occur."""
    found = sorted(set(values))
    return found[0] if len(found) == 1 else number_list(found)


# flag -> what it would be for this network; flags that leave no trace in a converted network are
# not compared
_HELD: dict[str, Callable[[Denoiser], object]] = {
    "image_size": lambda d: d.image_size,
    "num_channels": _base,
    "num_res_blocks": lambda d: _unet(d)["layers_per_block"],
    "num_heads": lambda d: _one_or_all([block.heads for block in attentions(d.unet)]),
    "num_heads_upsample": lambda d: _one_or_all([block.heads for block in attentions(d.unet)]),
    "num_head_channels": lambda d: _one_or_all([block.inner_dim // block.heads for block in attentions(d.unet)]),
    "attention_resolutions": _sizes,
    "channel_mult": lambda d: number_list([c / _base(d) for c in _unet(d)["block_out_channels"]]),
    "dropout": lambda d: _unet(d)["dropout"],
    "class_cond": lambda d: d.num_classes is not None,
    "resblock_updown": lambda d: _unet(d)["downsample_type"] == "resnet",
    "use_scale_shift_norm": lambda d: _unet(d)["resnet_time_scale_shift"] == "scale_shift",
    "learn_sigma": lambda d: d.learn_sigma,
    "diffusion_steps": lambda d: d.diffusion_steps,
    "noise_schedule": lambda d: d.noise_schedule,
    "rescale_timesteps": lambda d: d.rescale_timesteps,
    "predict_xstart": lambda d: False,
}


def check_model_flags(denoiser: Denoiser, texts: Mapping[str, str]) -> None:
    """Compare given flags with what the checkpoint holds.

    Args:
        denoiser: the loaded network.
        texts: as on the command line, by names of `MODEL_FLAGS`.

    Raises:
        ValueError: names every flag that contradicts the checkpoint, with both values.
    """
    given = parse_flags(texts)
    if given.get("num_head_channels", -1) != -1:
        given.pop("num_heads", None)  # has no meaning beside it
    wrong = []
    for flag, value in given.items():
        if flag not in _HELD or value == -1:  # -1: the flag says nothing
            continue
        held = _HELD[flag](denoiser)
        if _meaning(flag, value, denoiser) != held:
            wrong.append(f"--{flag} {texts[flag]} (the checkpoint: {held})")
    if wrong:
        raise ValueError(
            f"flags contradict the checkpoint: {'; '.join(wrong)}. Leave them out, or give the checkpoint they belong to"
        )


def _meaning(flag: str, value: Any, denoiser: Denoiser) -> object:
    """A flag's value written as `_HELD` writes it."""
    if flag == "channel_mult":
        return number_list(ModelFlags(image_size=denoiser.image_size, channel_mult=value).multipliers())
    if flag == "attention_resolutions":
        return number_list(sorted({int(size) for size in _numbers(flag, value)}, reverse=True))
    return value
