"""Networks of OpenAI's guided-diffusion and improved-diffusion as diffusers' `UNet2DModel`: the
same function, other names.

The code of these networks, not their papers, fixes the layout: Dhariwal & Nichol 2021 (guided),
Nichol & Dhariwal 2021 (improved).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from undegrade.models.diffusion.denoiser import DIFFUSION_SETTINGS, Denoiser, from_description
from undegrade.models.diffusion.openai_flags import CHANNEL_MULT, ModelFlags, format_flags, number_list

_GROUPS = 32
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",  # only where the width changes
}
_ATTENTION = {"norm": "group_norm", "proj_out": "to_out.0"}
_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_UNSEEN = "num_heads or num_head_channels, use_new_attention_order, diffusion_steps, noise_schedule, rescale_timesteps"


def unet_config(flags: ModelFlags, num_classes: int | None = None) -> dict[str, Any]:
    """Arguments of `models.diffusion.denoiser.build_unet` for the network that `flags` describe.

    Args:
        flags: the published flags.
        num_classes: rows of the label table (the published code always has 1000).

    Raises:
        ValueError: a combination that no network has, or that `UNet2DModel` cannot represent; names
            the flag.
    """
    channels = [int(mult * flags.num_channels) for mult in flags.multipliers()]
    levels = range(len(channels))
    attends = [level in flags.attention_levels(len(channels)) for level in levels]
    unfit = [width for width in channels if width < 1 or width % _GROUPS]
    if unfit:
        raise ValueError(
            f"--num_channels {flags.num_channels} with multipliers {number_list(flags.multipliers())} gives widths {unfit}: "
            f"widths must be multiples of {_GROUPS}, the groups of the normalisation"
        )
    if flags.num_heads_upsample not in (-1, flags.num_heads) and flags.num_head_channels == -1:
        raise ValueError(
            f"--num_heads_upsample {flags.num_heads_upsample} with --num_heads {flags.num_heads} cannot be represented: "
            "the network has one number of heads on both ways, leave --num_heads_upsample out"
        )
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if flags.resblock_updown else ("DownBlock2D", "UpBlock2D")
    sampling = "resnet" if flags.resblock_updown else "conv"
    config = {
        "sample_size": flags.image_size,
        "in_channels": 3,
        "out_channels": 6 if flags.learn_sigma else 3,
        "block_out_channels": channels,
        "layers_per_block": flags.num_res_blocks,
        "down_block_types": ["AttnDownBlock2D" if attends[level] else plain[0] for level in levels],
        "up_block_types": ["AttnUpBlock2D" if attends[level] else plain[1] for level in reversed(levels)],
        "downsample_type": sampling,
        "upsample_type": sampling,
        "resnet_time_scale_shift": "scale_shift" if flags.use_scale_shift_norm else "default",
        "norm_num_groups": _GROUPS,
        "attn_norm_num_groups": _GROUPS,  # else the middle attention has no norm under scale_shift
        "dropout": flags.dropout,
        "num_class_embeds": num_classes,
        **_heads(flags, {width for width, attend in zip(channels, attends, strict=True) if attend} | {channels[-1]}),
    }
    if channels[0] != flags.num_channels:
        config |= {"time_channels": flags.num_channels, "time_embedding_dim": 4 * flags.num_channels}
    return config


def _heads(flags: ModelFlags, widths: set[int]) -> dict[str, int | None]:
    """The options that split attention blocks of these widths into heads (the middle always
    attends, at the last width).
    """
    flag = "num_heads" if flags.num_head_channels == -1 else "num_head_channels"
    divisor = getattr(flags, flag)
    unfit = sorted(width for width in widths if divisor < 1 or width % divisor)
    if unfit:
        raise ValueError(f"--{flag} {divisor} does not divide the widths {unfit} at which the network attends")
    if flag == "num_head_channels":
        return {"attention_head_dim": divisor}
    if len(widths) == 1:
        return {"attention_head_dim": widths.pop() // divisor}
    return {"attention_head_dim": None, "num_heads": divisor}


def _modules(config: Mapping[str, Any]) -> Iterator[tuple[dict[str, str], str, str]]:
    """(names inside, OpenAI name, diffusers name) of every block with parameters but `_ENDS`."""
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    resnets = config["downsample_type"] == "resnet"
    attends = [block.startswith("Attn") for block in config["down_block_types"]]
    k = 1
    for i in range(levels):
        for j in range(layers):
            yield _RESNET, f"input_blocks.{k}.0", f"down_blocks.{i}.resnets.{j}"
            if attends[i]:
                yield _ATTENTION, f"input_blocks.{k}.1", f"down_blocks.{i}.attentions.{j}"
            k += 1
        if i + 1 < levels:
            yield _RESNET if resnets else {"op": "conv"}, f"input_blocks.{k}.0", f"down_blocks.{i}.downsamplers.0"
            k += 1
    yield _RESNET, "middle_block.0", "mid_block.resnets.0"
    yield _ATTENTION, "middle_block.1", "mid_block.attentions.0"
    yield _RESNET, "middle_block.2", "mid_block.resnets.1"
    for i, attend in enumerate(reversed(attends)):  # from the smallest size up
        for j in range(layers + 1):
            k = i * (layers + 1) + j
            yield _RESNET, f"output_blocks.{k}.0", f"up_blocks.{i}.resnets.{j}"
            if attend:
                yield _ATTENTION, f"output_blocks.{k}.1", f"up_blocks.{i}.attentions.{j}"
        if i + 1 < levels:
            yield _RESNET if resnets else {"conv": "conv"}, f"output_blocks.{k}.{1 + attend}", f"up_blocks.{i}.upsamplers.0"


def convert_state_dict(state: Mapping[str, Tensor], flags: ModelFlags) -> dict[str, Tensor]:
    """The same weights under the names of `UNet2DModel`; only queries, keys and values are copied,
    and split.

    Args:
        state: of the OpenAI network, complete.
        flags: that describe it.

    Raises:
        ValueError: tensors that the flags' network does not have (lacking ones are found when the
            weights are put in).
    """
    names = dict(_ENDS)
    attentions = []
    for parts, theirs, ours in _modules(unet_config(flags)):
        names |= {f"{theirs}.{part}": f"{ours}.{name}" for part, name in parts.items()}
        attentions += [(f"{theirs}.qkv", ours)] if parts is _ATTENTION else []
    converted = {}
    for theirs, ours in names.items():
        for leaf in ("weight", "bias"):
            if f"{theirs}.{leaf}" in state:
                tensor = state[f"{theirs}.{leaf}"]
                converted[f"{ours}.{leaf}"] = tensor.squeeze(-1) if theirs.endswith("proj_out") else tensor
    for theirs, ours in attentions:
        for leaf in ("weight", "bias"):
            if f"{theirs}.{leaf}" in state:
                tensor = state[f"{theirs}.{leaf}"]
                converted |= {f"{ours}.{part}.{leaf}": piece for part, piece in _split_qkv(tensor, flags).items()}
    if "label_emb.weight" in state:
        converted["class_embedding.weight"] = state["label_emb.weight"]
    known = {f"{name}.{leaf}" for name in [*names, *(name for name, _ in attentions), "label_emb"] for leaf in ("weight", "bias")}
    unknown = [name for name in state if name not in known]
    if unknown:
        raise ValueError(f"{len(unknown)} tensors that this network does not have: {', '.join(unknown[:4])}")
    return converted


def _split_qkv(qkv: Tensor, flags: ModelFlags) -> dict[str, Tensor]:
    """Rows of a weight [3C, C, 1] or bias [3C] for queries, keys and values, each [C, C] or [C]."""
    width = len(qkv) // 3
    rest = (width,) * (qkv.ndim > 1)
    if flags.use_new_attention_order:
        pieces = qkv.reshape(3, width, *rest)
    else:  # rows are q, k, v of the first head, then those of the second, ...
        heads = flags.num_heads if flags.num_head_channels == -1 else width // flags.num_head_channels
        pieces = qkv.reshape(heads, 3, width // heads, *rest).transpose(0, 1).reshape(3, width, *rest)
    return dict(zip(("to_q", "to_k", "to_v"), pieces, strict=True))


def halve_convolutions(unet: nn.Module) -> None:
    """Round to float16 what the published code does under --use_fp16, in place: convolutions and
    attention, not the last layer.
    """
    for name, module in unet.named_modules():
        projection = isinstance(module, nn.Linear) and ".attentions." in name  # a convolution of width 1 there
        if projection or (isinstance(module, nn.Conv2d) and name != "conv_out"):
            module.half()


def infer_flags(state: Mapping[str, Tensor], image_size: int | None = None) -> dict[str, Any]:
    """The flags that names and shapes of an OpenAI network show; those that they do not show are
    left out.

    Args:
        state: tensors by name.
        image_size: side in pixels, which `attention_resolutions` refers to; by default the
            published size with these levels.

    Returns:
        values by flag, and `in_channels`.

    Raises:
        ValueError: not such a network.
    """
    output = {int(name.split(".")[1]) for name in state if re.match(r"output_blocks\.\d+\.", name)}
    block = ("input_blocks.1.0.emb_layers.1.weight", "input_blocks.1.0.out_layers.3.weight")
    if not output or any(name not in state for name in ("time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight", *block)):
        some = ", ".join(list(state)[:3]) or "nothing"
        raise ValueError(f"not a U-Net of guided-diffusion or improved-diffusion (it holds {len(state)} tensors: {some}, ...)")
    samplers = [k for k in output if any(re.match(rf"output_blocks\.{k}\.[12]\.(conv|in_layers\.0)\.", name) for name in state)]
    rows = min(samplers, default=max(output)) + 1  # blocks a level on the way up
    levels = (max(output) + 1) // rows
    num_channels = state["time_embed.0.weight"].shape[1]
    first = [1 + level * rows for level in range(levels)]  # block of each level on the way down
    names = [name for name in (f"input_blocks.{k}.0.out_layers.3.weight" for k in first) if name in state]
    multipliers = tuple(len(state[name]) / num_channels for name in names)
    published = {mult: size for size, mult in CHANNEL_MULT.items()}
    side = image_size or published.get(multipliers)
    in_channels = state["input_blocks.0.0.weight"].shape[1]
    found: dict[str, Any] = {
        "in_channels": in_channels,
        "num_channels": num_channels,
        "channel_mult": number_list(multipliers),
        "num_res_blocks": rows - 1,
        "learn_sigma": len(state["out.2.weight"]) == 2 * in_channels,
        "class_cond": "label_emb.weight" in state,
        "use_scale_shift_norm": len(state["input_blocks.1.0.emb_layers.1.weight"]) == 2 * len(state[names[0]]),
    }
    if samplers:
        found["resblock_updown"] = any(re.match(r"output_blocks\.\d+\.[12]\.in_layers", name) for name in state)
    if side:
        attends = [level for level in range(levels) if f"input_blocks.{first[level]}.1.qkv.weight" in state]
        found |= {"image_size": side, "attention_resolutions": number_list([side >> level for level in attends])}
    return found


def check_fits(state: Mapping[str, Tensor], flags: ModelFlags) -> None:
    """Compare the flags with what the weights show.

    Raises:
        ValueError: names every flag that differs, with both values, and the flags that the file
            looks like.
    """
    found = infer_flags(state, flags.image_size)
    if found["in_channels"] != 3:
        raise ValueError(
            f"its network takes {found['in_channels']} channels, RGB images have 3 (super-resolution networks are not supported)"
        )
    levels = len(found["channel_mult"].split(","))
    sizes = number_list([flags.image_size >> level for level in flags.attention_levels(levels)])
    given = {"channel_mult": number_list(flags.multipliers()), "attention_resolutions": sizes}
    wrong = [
        f"--{flag} {getattr(flags, flag)} (the file: {value if value != '' else 'none'})"
        for flag, value in found.items()
        if flag != "in_channels" and given.get(flag, getattr(flags, flag)) != value
    ]
    if wrong:
        likely = {flag: value for flag, value in infer_flags(state).items() if flag != "in_channels"}
        raise ValueError(
            f"the flags describe another network: {'; '.join(wrong)}. The file looks like {format_flags(likely)}; "
            f"it does not show {'' if 'image_size' in likely else 'image_size, '}{_UNSEEN}: take these from the file's origin"
        )


def denoiser_from_openai(state: Mapping[str, Tensor], flags: ModelFlags) -> Denoiser:
    """The network of an OpenAI state dict; float32 weights are shared with it, not copied.

    Raises:
        ValueError: flags that do not fit the weights (names the flags that would) or that cannot be
            represented.
    """
    if flags.predict_xstart:
        raise ValueError("--predict_xstart True is not supported: the networks here predict the noise")
    check_fits(state, flags)
    classes = len(state["label_emb.weight"]) if flags.class_cond else None
    settings = {name: getattr(flags, name) for name in DIFFUSION_SETTINGS}
    return from_description(
        {"kind": "diffusion", "unet": unet_config(flags, classes), **settings}, convert_state_dict(state, flags)
    )
