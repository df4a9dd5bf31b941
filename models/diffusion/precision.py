"""Diffusion networks in half precision, with float32 arithmetic around them.

As guided-diffusion's `--use_fp16`: the convolutions and attention of the U-Net's blocks are in half
precision, from weights to results; normalisation, time embedding and last layer are in float32, and
so is everything outside of the network. Here the first convolution, too, computes in float32.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from undegrade.models.diffusion.denoiser import Denoiser

Precision = Literal["float32", "bfloat16", "float16"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def use_precision(denoiser: Denoiser, precision: Precision) -> None:
    """Change the network in place; it stays on its device from here on.

    On CPUs products of float16 numbers are computed in float32 and rounded to float16: that is what
    GPUs do, which add up in float32, and most CPUs have no float16 arithmetic of their own (8 times
    the time of float32, docs/adaptation.md).

    Args:
        denoiser: frozen (`models.diffusion.inference_blocks.frozen`). A network other than a
            `UNet2DModel`, such as a DiT, runs under `torch.autocast`.
        precision: of the network's blocks.
    """
    dtype = _DTYPES[precision]
    network: Any = denoiser.unet
    if dtype == torch.float32:
        return
    device = next(network.parameters()).device.type
    if not hasattr(network, "conv_norm_out"):
        network.forward = torch.autocast(device, dtype)(network.forward)
        return
    products = torch.float32 if device == "cpu" and dtype == torch.float16 else dtype
    for part in (network.down_blocks, network.mid_block, network.up_blocks):
        for name, module in part.named_modules() if part is not None else ():
            if isinstance(module, nn.Conv2d | nn.Linear) and not name.endswith("time_emb_proj"):
                module.to(dtype).to(products)
                _between(module, products, dtype)
            elif not list(module.children()) and list(module.parameters(recurse=False)):
                _between(module, torch.float32, dtype)
            if isinstance(getattr(module, "combined", None), torch.Tensor):
                module.combined = module.combined.to(dtype).to(products)
    _between(network.conv_in, torch.float32, dtype)
    _between(network.conv_norm_out, torch.float32, torch.float32)


def _between(module: nn.Module, inside: torch.dtype, outside: torch.dtype) -> None:
    """Let a layer compute in one type, and what comes out of it have another."""

    def before(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0].to(inside), *inputs[1:])

    def behind(_: nn.Module, __: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return output.to(outside)

    module.register_forward_pre_hook(before)
    module.register_forward_hook(behind)
