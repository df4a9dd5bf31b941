"""Networks of guided-diffusion as diffusers networks: the same function, for every flag; and flags
read off a file.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from guided_diffusion.unet import UNetModel
from torch import Tensor

from benchmarks.networks import published_unet
from tests.openai_networks import (
    ADM_256,
    IMPROVED_CIFAR,
    TINY,
    all_double,
    answer_and_gradient,
    joined,
    reference,
    relative_error,
)
from undegrade.models.diffusion.denoiser import Denoiser
from undegrade.models.diffusion.openai import convert_state_dict, denoiser_from_openai, infer_flags, unet_config
from undegrade.models.diffusion.openai_flags import CHANNEL_MULT, ModelFlags

CASES: dict[str, dict[str, Any]] = {
    "resblock_updown, scale-shift, head width": {},
    "without learn_sigma": {"learn_sigma": False},
    "conv up and down": {"resblock_updown": False},
    "additive embedding": {"use_scale_shift_norm": False},
    "additive embedding, conv": {"use_scale_shift_norm": False, "resblock_updown": False},
    "new attention order": {"use_new_attention_order": True},
    "class-conditional": {"class_cond": True},
    "number of heads, one width": {"num_head_channels": -1, "num_heads": 2},
    "number of heads, two widths": {"num_head_channels": -1, "num_heads": 4, "attention_resolutions": "16,8"},
    "number of heads, two widths, new order": {
        "num_head_channels": -1, "num_heads": 4, "attention_resolutions": "16,8", "use_new_attention_order": True,
    },
    "three blocks, three levels, attention on the last two": {
        "num_res_blocks": 3, "channel_mult": "1,2,2", "attention_resolutions": "8,4",
    },
    "attention in the middle alone": {"attention_resolutions": "2"},
    "one level": {"channel_mult": "1", "attention_resolutions": "16"},
    "first multiplier below 1, as at 512 px": {"num_channels": 64, "channel_mult": "0.5,1"},
}  # fmt: skip


def network(**changes: Any) -> tuple[ModelFlags, UNetModel, Denoiser]:
    """(flags, OpenAI network, converted network)."""
    flags = ModelFlags(**{**TINY, **changes})
    theirs = reference(flags)
    return flags, theirs, denoiser_from_openai(theirs.state_dict(), flags).eval().requires_grad_(False)


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)).to(dtype), torch.tensor([3, 700])


# --- the same function


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_converted_network_gives_the_same_output_and_gradient(changes: dict[str, Any]) -> None:
    flags, theirs, ours = network(**changes)
    y = torch.tensor([1, 9]) if flags.class_cond else None
    expected, expected_gradient = answer_and_gradient(theirs, *inputs(), y)
    found, gradient = answer_and_gradient(joined(ours), *inputs(), y)
    assert expected.abs().max() > 0.5
    assert relative_error(found, expected) < 1e-5
    assert relative_error(gradient, expected_gradient) < 1e-5
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("name", ["without learn_sigma", "additive embedding, conv", "number of heads, two widths"])
def test_in_double_precision_nothing_but_rounding_differs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flags, theirs, ours = network(**CASES[name])
    all_double(monkeypatch, theirs, ours)
    expected, expected_gradient = answer_and_gradient(theirs, *inputs(torch.float64))
    found, gradient = answer_and_gradient(joined(ours), *inputs(torch.float64))
    assert found.dtype == torch.float64
    assert relative_error(found, expected) < 1e-13
    assert relative_error(gradient, expected_gradient) < 1e-13


@pytest.mark.parametrize("new_order", [False, True])
def test_queries_keys_and_values_in_the_wrong_order_are_noticed(new_order: bool) -> None:
    flags, theirs, _ = network(use_new_attention_order=new_order)
    wrong = ModelFlags(**{**TINY, "use_new_attention_order": not new_order})
    ours = denoiser_from_openai(theirs.state_dict(), wrong).eval()
    expected, expected_gradient = answer_and_gradient(theirs, *inputs())
    found, gradient = answer_and_gradient(joined(ours), *inputs())
    assert relative_error(found, expected) > 0.01
    assert relative_error(gradient, expected_gradient) > 0.01


def test_each_part_of_the_split_is_the_rows_that_the_head_reads() -> None:
    flags = ModelFlags(**{**TINY, "num_head_channels": -1, "num_heads": 2})
    state = {"middle_block.1.qkv.bias": torch.arange(12.0)}  # 2 heads of width 2: q0 q0 k0 k0 v0 v0 q1 q1 ...
    split = convert_state_dict(state, flags)
    assert split["mid_block.attentions.0.to_q.bias"].tolist() == [0, 1, 6, 7]
    assert split["mid_block.attentions.0.to_k.bias"].tolist() == [2, 3, 8, 9]
    assert split["mid_block.attentions.0.to_v.bias"].tolist() == [4, 5, 10, 11]


def test_fractional_times_of_a_rescaled_chain_are_the_same() -> None:
    flags, theirs, ours = network(rescale_timesteps=True, diffusion_steps=4000)
    x, _ = inputs()
    expected = theirs(x, torch.tensor([10, 3001]).float() * (1000 / 4000))
    assert relative_error(joined(ours)(x, torch.tensor([10, 3001])), expected) < 1e-5


def test_half_precision_weights_are_widened() -> None:
    flags, theirs, _ = network()
    theirs.convert_to_fp16()
    ours = denoiser_from_openai(theirs.state_dict(), flags).eval()
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    theirs.convert_to_fp32()
    assert relative_error(joined(ours)(*inputs()), theirs(*inputs())) < 1e-5


def test_weights_are_shared_with_the_state_that_they_come_from() -> None:
    flags = ModelFlags(**TINY)
    state = reference(flags).state_dict()
    held = {p.data_ptr() for p in denoiser_from_openai(state, flags).parameters()}
    shared = [name for name, tensor in state.items() if tensor.data_ptr() in held]
    assert set(state) - set(shared) == {name for name in state if ".qkv." in name}


# --- the published networks, by their shapes

PUBLISHED = {
    "256x256_diffusion_uncond": (ADM_256, 552_814_086),
    "cifar10_uncond_50M_500K": (IMPROVED_CIFAR, 52_546_438),
    "imagenet64_uncond_100M_1500K": (ModelFlags(num_res_blocks=3, learn_sigma=True), None),
    "64x64_diffusion": (
        ModelFlags(image_size=64, attention_resolutions="32,16,8", num_channels=192, num_head_channels=64, num_res_blocks=3,
                   resblock_updown=True, learn_sigma=True, class_cond=True, use_new_attention_order=True), None,
    ),
    "128x128_diffusion": (
        ModelFlags(image_size=128, attention_resolutions="32,16,8", num_channels=256, num_heads=4, num_res_blocks=2,
                   resblock_updown=True, learn_sigma=True, class_cond=True), None,
    ),
    "512x512_diffusion": (
        ModelFlags(image_size=512, attention_resolutions="32,16,8", num_channels=256, num_head_channels=64, num_res_blocks=2,
                   resblock_updown=True, learn_sigma=True, class_cond=True), None,
    ),
    "lsun_bedroom": (
        ModelFlags(image_size=256, attention_resolutions="32,16,8", num_channels=256, num_head_channels=64, num_res_blocks=2,
                   resblock_updown=True, learn_sigma=True, dropout=0.1), 552_814_086,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_network_has_the_same_tensors(name: str) -> None:
    flags, count = PUBLISHED[name]
    explicit = {} if flags.image_size != 32 else {"channel_mult": "1,2,2,2"}  # the reference has no default at 32 px
    with torch.device("meta"):
        state = published_unet(ModelFlags(**{**vars(flags), **explicit})).state_dict()
    denoiser = denoiser_from_openai(state, flags)  # names and shapes are compared strictly
    found = sum(p.numel() for p in denoiser.parameters())
    assert found == sum(tensor.numel() for tensor in state.values()) and count in (None, found)
    assert denoiser.num_classes == (1000 if flags.class_cond else None)
    inferred = infer_flags(state)
    assert inferred.pop("in_channels") == 3
    assert inferred.pop("channel_mult") == ",".join(f"{m:g}" for m in CHANNEL_MULT[flags.image_size])
    assert inferred == {flag: getattr(flags, flag) for flag in inferred} and len(inferred) == 8


# --- flags read off a file


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_flags_are_inferred_from_names_and_shapes(changes: dict[str, Any]) -> None:
    flags = ModelFlags(**{**TINY, **changes})
    found = infer_flags(reference(flags).state_dict(), image_size=16)
    levels = len(flags.multipliers())
    sizes = ",".join(str(16 >> level) for level in flags.attention_levels(levels))
    assert found.pop("resblock_updown", None) == (flags.resblock_updown if levels > 1 else None)  # one level: nothing to see
    assert found == {
        "in_channels": 3, "image_size": 16, "num_channels": flags.num_channels, "channel_mult": flags.channel_mult,
        "num_res_blocks": flags.num_res_blocks, "learn_sigma": flags.learn_sigma, "class_cond": flags.class_cond,
        "use_scale_shift_norm": flags.use_scale_shift_norm, "attention_resolutions": sizes,
    }  # fmt: skip
    assert "image_size" not in infer_flags(reference(flags).state_dict())  # no published network has these levels


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_channels": 64}, r"another network: --num_channels 64 \(the file: 32\)"),
        ({"channel_mult": "1,2,2"}, r"--channel_mult 1,2,2 \(the file: 1,2\)"),
        ({"num_res_blocks": 2}, r"--num_res_blocks 2 \(the file: 1\)"),
        ({"learn_sigma": False}, r"--learn_sigma False \(the file: True\)"),
        ({"class_cond": True}, r"--class_cond True \(the file: False\)"),
        ({"resblock_updown": False}, r"--resblock_updown False \(the file: True\)"),
        ({"use_scale_shift_norm": False}, r"--use_scale_shift_norm False \(the file: True\)"),
        ({"attention_resolutions": "16,8"}, r"--attention_resolutions 16,8 \(the file: 8\)"),
        ({"image_size": 32}, r"--attention_resolutions 8 \(the file: 16\)"),
        (
            {"num_res_blocks": 2, "learn_sigma": False},
            r"--num_res_blocks 2 \(the file: 1\); --learn_sigma False \(the file: True\)",
        ),
        ({"predict_xstart": True}, "--predict_xstart True is not supported"),
        ({"num_head_channels": 48}, r"--num_head_channels 48 does not divide the widths \[64\]"),
        ({"num_head_channels": -1, "num_heads": 0}, r"--num_heads 0 does not divide the widths \[64\]"),
        ({"num_head_channels": -1, "num_heads_upsample": 8}, "--num_heads_upsample 8 with --num_heads 4 cannot be represented"),
        ({"channel_mult": ""}, r"--channel_mult is needed for --image_size 16, e.g. 1,2,2,2 \(only sizes 32, 64, 128, 256, 512"),
        ({"channel_mult": "1;2"}, "--channel_mult 1;2 is not understood: give numbers joined by commas"),
        ({"noise_schedule": "quadratic"}, "unknown noise schedule 'quadratic'"),
    ],
)
def test_flags_of_another_network_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    state = reference(ModelFlags(**TINY)).state_dict()
    with pytest.raises(ValueError, match=message):
        denoiser_from_openai(state, ModelFlags(**{**TINY, **changes}))


def test_refusal_says_which_flags_the_file_looks_like_and_which_it_does_not_show() -> None:
    with torch.device("meta"):
        state = published_unet(ADM_256).state_dict()
    likely = (
        "looks like --num_channels 256 --channel_mult 1,1,2,2,4,4 --num_res_blocks 2 --learn_sigma True --class_cond False "
        "--use_scale_shift_norm True --resblock_updown True --image_size 256 --attention_resolutions 32,16,8; "
        "it does not show num_heads or num_head_channels, use_new_attention_order, diffusion_steps"
    )
    with pytest.raises(ValueError, match=likely):
        denoiser_from_openai(state, IMPROVED_CIFAR)


def test_width_that_has_no_groups_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"--num_channels 48 with multipliers 1,2 gives widths \[48\]: widths must be multiples of 32"
    ):
        unet_config(ModelFlags(**{**TINY, "num_channels": 48}))


def test_what_is_no_such_network_is_refused() -> None:
    flags = ModelFlags(**TINY)
    state = reference(flags).state_dict()
    with pytest.raises(ValueError, match=r"not a U-Net of guided-diffusion .*it holds 1 tensors: fc.weight"):
        infer_flags({"fc.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="it holds 0 tensors: nothing"):
        infer_flags({})
    with pytest.raises(ValueError, match=r"1 tensors that this network does not have: extra\.weight"):
        denoiser_from_openai({**state, "extra.weight": torch.zeros(1)}, flags)
    with pytest.raises(ValueError, match="do not fit.*Missing key.*mid_block.resnets.0.norm1.bias"):
        denoiser_from_openai({k: v for k, v in state.items() if k != "middle_block.0.in_layers.0.bias"}, flags)
    wide = {**state, "input_blocks.0.0.weight": torch.zeros(32, 6, 3, 3)}
    with pytest.raises(ValueError, match="takes 6 channels, RGB images have 3 .super-resolution networks are not supported"):
        denoiser_from_openai(wide, flags)
