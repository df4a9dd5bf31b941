"""Lean blocks: the network's function and gradient stay, what is kept for the gradient shrinks, no
convolution is done again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional as F

from tests.openai_networks import TINY, answer_and_gradient, joined, reference, relative_error
from undegrade.models.diffusion.denoiser import Denoiser, build_denoiser
from undegrade.models.diffusion.inference_blocks import (
    InferenceResnetBlock,
    InferenceUpsample,
    upsampling_kernel,
    use_inference_blocks,
)
from undegrade.models.diffusion.openai import denoiser_from_openai
from undegrade.models.diffusion.openai_flags import ModelFlags


def converted(**more: object) -> Denoiser:
    flags = ModelFlags(**{**TINY, **more})
    return denoiser_from_openai(reference(flags).state_dict(), flags)


def own() -> Denoiser:
    torch.manual_seed(0)
    return build_denoiser(16, [8, 16], attention_levels=[1], norm_groups=4, learn_sigma=True)


NETWORKS: dict[str, Callable[[], Denoiser]] = {
    "own": own,
    "guided": converted,
    "improved": lambda: converted(resblock_updown=False, use_scale_shift_norm=False),
}


def prepared(name: str, dtype: torch.dtype = torch.float32) -> tuple[Denoiser, Denoiser]:
    """The network as it is and inference, both frozen."""
    plain = NETWORKS[name]().eval().requires_grad_(False).to(dtype, memory_format=torch.channels_last)
    inference = copy.deepcopy(plain)
    use_inference_blocks(inference)
    return plain, inference


@pytest.mark.parametrize("name", NETWORKS)
def test_answer_and_gradient_are_those_of_the_plain_network(name: str) -> None:
    plain, inference = prepared(name, torch.float64)
    kinds = {type(module) for module in inference.modules()}
    assert InferenceResnetBlock in kinds and ResnetBlock2D not in kinds
    assert InferenceUpsample in kinds or name == "guided"
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tau = torch.tensor([3, 700])
    for found, expected in zip(*(answer_and_gradient(joined(n), x, tau) for n in (inference, plain)), strict=True):
        assert relative_error(found, expected) < 1e-12
    with torch.no_grad():
        assert relative_error(joined(inference)(x, tau), joined(plain)(x, tau)) < 1e-12


def kept(network: Denoiser, x: Tensor) -> int:
    """Bytes kept for the backward pass besides the weights."""
    own = {t.untyped_storage().data_ptr() for t in [*network.parameters(), *network.buffers()]}
    found: dict[int, Tensor] = {}  # by place; the tensors are held, so that no place is used twice

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = joined(network)(x.clone().requires_grad_(), torch.zeros(len(x)).long())
    assert output.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


@pytest.mark.parametrize("name", NETWORKS)
def test_less_than_half_is_kept_for_the_gradient(name: str) -> None:
    plain, inference = prepared(name)
    x = torch.randn(1, 3, 16, 16)
    assert 0 < kept(inference, x) < 0.5 * kept(plain, x)


def test_no_convolution_is_done_again() -> None:
    inference, calls = prepared("guided")[1], []
    norms: list[int] = []
    for module in inference.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_: calls.append(1))
        if isinstance(module, InferenceResnetBlock):
            module.norm1.register_forward_hook(lambda *_: norms.append(1))
    x = torch.randn(1, 3, 16, 16)
    output = joined(inference)(x.requires_grad_(), torch.zeros(1).long())
    before, normalised = len(calls), len(norms)
    torch.autograd.grad(output.sum(), x)
    assert len(calls) == before > 0
    assert len(norms) == 2 * normalised


def test_upsampling_kernel_enlarges_and_convolves() -> None:
    x, weight = torch.randn(2, 3, 5, 7).double(), torch.randn(4, 3, 3, 3).double()
    expected = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, padding=1)
    torch.testing.assert_close(F.conv_transpose2d(x, upsampling_kernel(weight), stride=2, padding=1), expected)


def test_combined_weights_are_no_part_of_a_checkpoint() -> None:
    plain, inference = prepared("own")
    assert plain.state_dict().keys() == inference.state_dict().keys()


@pytest.mark.parametrize(
    "module",
    [
        ResnetBlock2D(in_channels=32, temb_channels=8, output_scale_factor=2.0),
        ResnetBlock2D(in_channels=32, temb_channels=None),  # type: ignore[arg-type]
        ResnetBlock2D(in_channels=32, temb_channels=8, up=True, kernel="fir"),  # type: ignore[arg-type]
        Upsample2D(8, use_conv=False),
        Upsample2D(8, use_conv_transpose=True),
    ],
    ids=["scaled", "timeless", "fir", "no_conv", "transposed"],
)
def test_blocks_of_other_kinds_stay_as_they_are(module: nn.Module) -> None:
    kind = type(module)
    use_inference_blocks(module)
    assert type(module) is kind
