"""Networks in half precision: what is rounded, how far that is from float32, and the flags."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.adapting import digits, generators, manifest_of, random_images
from tests.dit_networks import OriginalDiT
from tests.openai_networks import TINY, answer_and_gradient, joined, reference, relative_error
from undegrade.image_adapt.dda import DDA
from undegrade.models.diffusion.denoiser import Denoiser, build_denoiser
from undegrade.models.diffusion.dit import open_dit
from undegrade.models.diffusion.inference_blocks import frozen
from undegrade.models.diffusion.openai import denoiser_from_openai
from undegrade.models.diffusion.openai_flags import ModelFlags
from undegrade.models.diffusion.precision import Precision, use_precision

TIMES = torch.tensor([3, 700])


def inputs(side: int) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1)), TIMES


def openai(**changes: object) -> Denoiser:
    """A narrow network of guided-diffusion with attention, enlarging and learned variances."""
    flags = ModelFlags(**{**TINY, **changes})
    return denoiser_from_openai(reference(flags).state_dict(), flags)


def ours() -> Denoiser:
    torch.manual_seed(0)
    return build_denoiser(16, [16, 32], norm_groups=4, attention_levels=[1])


def errors(make: Callable[[], Denoiser], precision: Precision) -> tuple[float, float]:
    """Of the answer and of its gradient, relative to float32."""
    full, half = frozen(make()), frozen(make())
    use_precision(half, precision)
    expected, found = (answer_and_gradient(joined(network), *inputs(16)) for network in (full, half))
    assert found[0].dtype == found[1].dtype == torch.float32
    return relative_error(found[0], expected[0]), relative_error(found[1], expected[1])


@pytest.mark.parametrize("make", [ours, openai, lambda: openai(resblock_updown=False, use_scale_shift_norm=False)])
def test_the_error_of_float16_is_about_an_eighth_of_that_of_bfloat16(make: Callable[[], Denoiser]) -> None:
    small, large = errors(make, "float16"), errors(make, "bfloat16")
    assert all(0 < error < 4e-3 for error in small)
    assert all(0 < error < 3e-2 for error in large)
    assert all(5 < there / here < 12 for here, there in zip(small, large, strict=True))
    assert errors(make, "float32") == (0, 0)


def test_float16_is_as_near_to_float32_as_guided_diffusions_own() -> None:
    flags = ModelFlags(**TINY)
    full, half = reference(flags), reference(flags)
    half.convert_to_fp16()
    half.dtype = torch.float16
    expected, _ = answer_and_gradient(full, *inputs(16))
    with torch.no_grad():
        theirs = relative_error(half(*inputs(16)), expected)
    error, _ = errors(openai, "float16")
    assert theirs / 2 < error < 1.5 * theirs


@pytest.mark.parametrize(("precision", "products"), [("bfloat16", torch.bfloat16), ("float16", torch.float32)])
def test_convolutions_and_attention_are_rounded_and_everything_around_them_is_float32(
    precision: Precision, products: torch.dtype
) -> None:
    network = frozen(openai())
    before = copy.deepcopy(network.unet.state_dict())
    use_precision(network, precision)
    half = torch.float16 if precision == "float16" else torch.bfloat16
    came: dict[str, torch.dtype] = {}
    for name, module in network.unet.named_modules():
        if not list(module.children()):
            module.register_forward_pre_hook(lambda _, args, name=name: came.__setitem__(name, args[0].dtype))
    network(*inputs(16))
    for name, module in network.unet.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear | nn.GroupNorm):
            continue
        torso = "_blocks." in name or name.startswith("mid_block")
        rounded = torso and not isinstance(module, nn.GroupNorm) and not name.endswith("time_emb_proj")
        assert module.weight.dtype == (products if rounded else torch.float32), name
        expected = before[f"{name}.weight"].to(half).float() if rounded else before[f"{name}.weight"]
        assert torch.equal(module.weight.float(), expected), name
        assert came.get(name, module.weight.dtype) == module.weight.dtype, name  # some weights are used without a call


def test_a_transformer_runs_under_autocast(tmp_path: Path) -> None:
    torch.save(OriginalDiT().state_dict(), tmp_path / "dit.pt")
    full, half = (open_dit(tmp_path / "dit.pt", None, 3).eval() for _ in range(2))
    use_precision(half, "bfloat16")
    x = torch.randn(2, full.channels, full.image_size, full.image_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = (network(x, TIMES, torch.tensor([0, 1]))[0] for network in (full, half))
    assert 1e-4 < relative_error(found, expected) < 3e-2


@pytest.mark.parametrize(("precision", "bound"), [("float16", 2e-3), ("bfloat16", 1e-2)])
def test_adapted_images_stay_near_those_of_float32(precision: Precision, bound: float) -> None:
    def adapted(chosen: Precision) -> Tensor:
        # unclipped: where a pixel of x0 crosses the limit its gradient jumps, in any precision
        chain = DDA(ours(), start_step=5, clip_denoised=False, precision=chosen)
        return chain.adapt(random_images(2), generators(0, 1))

    assert 0 < (adapted(precision) - adapted("float32")).abs().max() < bound


# --- flags


def test_the_published_flag_means_float16_and_settings_name_the_precision(ddpm: Path, tmp_path: Path) -> None:
    for folder, words in (("a", ("--use_fp16", "True")), ("b", ("--precision", "float16")), ("c", ("--use_fp16", "False"))):
        digits(ddpm, tmp_path / folder, *words).check()
    settings = [json.loads((tmp_path / name / "jpeg/random/settings.json").read_text())["precision"] for name in "abc"]
    assert settings == ["float16", "float16", "float32"]
    files = [[row["digest"] for row in manifest_of(tmp_path / name / "jpeg/random")] for name in "abc"]
    assert files[0] == files[1] != files[2]
    done = digits(ddpm, tmp_path / "d", "--use_fp16", "yes", "--precision", "bfloat16")
    assert done.status == 2 and "--use_fp16 yes and --precision bfloat16 say the same thing twice: give one" in done.err
    assert digits(ddpm, tmp_path / "a", "--use_fp16", "False").status == 2  # images of other settings
