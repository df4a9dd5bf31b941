"""Blocks of diffusers' `UNet2DModel` in a cheaper form with the same result, for frozen networks,
differentiated by their input.

Imported where it is needed only, since importing diffusers takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Network = TypeVar("Network", bound=nn.Module)


def frozen(network: Network) -> Network:
    """The same network, ready to be used as it is: no weight gets a gradient, eval mode,
    channels_last layout, blocks for inference.
    """
    network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    use_inference_blocks(network)
    return network


def use_inference_blocks(network: nn.Module) -> None:
    """Change residual blocks and upsampling layers in place; those of kinds that are not known here
    stay as they are.

    Args:
        network: a `UNet2DModel`, or what holds one, in eval mode. Its weights must not change
            afterwards: some are combined here.
    """
    for module in network.modules():
        if type(module) is ResnetBlock2D and _is_plain(module):
            module.__class__ = InferenceResnetBlock
            if module.upsample is not None:
                _combine(module, module.conv1)
        elif type(module) is Upsample2D and _is_nearest(module) and module.use_conv:
            module.__class__ = InferenceUpsample
            _combine(module, module.conv)


def _is_plain(block: ResnetBlock2D) -> bool:
    time = block.time_emb_proj is not None and not block.skip_time_act and block.time_embedding_norm in ("default", "scale_shift")
    return time and block.output_scale_factor == 1 and (block.upsample is None or _is_nearest(block.upsample))


def _is_nearest(layer: object) -> bool:
    return type(layer) is Upsample2D and layer.interpolate and not layer.use_conv_transpose and layer.norm is None


def _combine(module: nn.Module, conv: Any) -> None:
    module.register_buffer("combined", upsampling_kernel(conv.weight.detach()), persistent=False)


def upsampling_kernel(weight: Tensor) -> Tensor:
    """[C_in, C_out, 4, 4] of the transposed convolution (stride 2, padding 1) that enlarges twice
    (nearest pixel) and convolves.

    Of the pixels under a kernel of 3 x 3 only four differ: their weights are added beforehand, 4
    products a pixel instead of 9.

    Args:
        weight: [C_out, C_in, 3, 3] of the convolution (padding 1).
    """
    flipped = weight.flip(2, 3).transpose(0, 1)
    shifted = [F.pad(flipped, (j, 1 - j, i, 1 - i)) for i in (0, 1) for j in (0, 1)]
    return torch.stack(shifted).sum(0).contiguous(memory_format=torch.channels_last)


class InferenceUpsample(Upsample2D):
    """Enlarging and convolution in one (see `upsampling_kernel`)."""

    combined: Tensor

    def forward(self, hidden_states: Tensor, output_size: int | None = None) -> Tensor:
        """As `Upsample2D`; [B,C,H,W] -> [B,C_out,2H,2W]."""
        if output_size is not None:
            return super().forward(hidden_states, output_size)
        conv: Any = self.conv
        return _enlarged(hidden_states, self.combined, conv.bias)


class InferenceResnetBlock(ResnetBlock2D):
    """Keeps two tensors for the backward pass instead of six.

    Normalisation and activation are cheap, and are done again in the backward pass (Chen et al.
    2016, "Training deep nets with sublinear memory cost"). No convolution is: recomputation stops
    at the last tensor that the backward pass needs, which is the input of the convolution.
    """

    combined: Tensor

    def forward(self, input_tensor: Tensor, temb: Tensor) -> Tensor:
        """As `ResnetBlock2D`."""
        time = self.time_emb_proj(self.nonlinearity(temb))[:, :, None, None]
        hidden = _recomputed(self._first, input_tensor)
        hidden = _recomputed(partial(self._second, time=time), hidden)
        if self.upsample is not None:
            input_tensor = F.interpolate(input_tensor, scale_factor=2.0, mode="nearest")
        elif self.downsample is not None:
            input_tensor = self.downsample(input_tensor)
        return hidden + (input_tensor if self.conv_shortcut is None else _pointwise(self.conv_shortcut, input_tensor))

    def _first(self, x: Tensor) -> Tensor:
        x = self.nonlinearity(self.norm1(x))
        if self.upsample is not None:
            return _enlarged(x, self.combined, self.conv1.bias)
        return self.conv1(x if self.downsample is None else self.downsample(x))

    def _second(self, x: Tensor, time: Tensor) -> Tensor:
        if self.time_embedding_norm == "scale_shift":
            scale, shift = time.chunk(2, dim=1)
            x = torch.addcmul(shift, self.norm2(x), 1 + scale)
        else:
            x = self.norm2(x + time)
        return self.conv2(self.nonlinearity(x))


def _recomputed(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return function(x)
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)


def _enlarged(x: Tensor, combined: Tensor, bias: Tensor | None) -> Tensor:
    """A layer of its own as far as precision goes: computed in the type of its weights
    (`models.diffusion.precision`).
    """
    return F.conv_transpose2d(x.to(combined.dtype), combined, bias, stride=2, padding=1).to(x.dtype)


def _pointwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution of one pixel as a matrix product over channels_last memory; small ones are slow
    otherwise on a CPU.
    """
    weight = conv.weight.flatten(1)
    return F.linear(x.permute(0, 2, 3, 1).to(weight.dtype), weight, conv.bias).to(x.dtype).permute(0, 3, 1, 2)
