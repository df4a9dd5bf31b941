"""Normalisation layers of a network: which there are, what of them moves, and where their
statistics come from.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

NORMALISATION = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)
TOP_LAYERS = ("layer4", "blocks.9", "blocks.10", "blocks.11", "norm.")
"""In names of layers near the output, ResNet's and ViT's, which SAR and DeYO leave alone."""


def layers_of(network: nn.Module, kinds: tuple[type, ...] = NORMALISATION) -> dict[str, nn.Module]:
    """The layers of some kinds by name."""
    layers: list[tuple[str, nn.Module]] = list(network.named_modules())
    return {name: layer for name, layer in layers if isinstance(layer, kinds)}


def affine_parameters(network: nn.Module, without: Collection[str] = ()) -> dict[str, nn.Parameter]:
    """Weights and biases of normalisation layers by name, and from now on with gradients.

    Args:
        network: all of it, frozen before.
        without: parts of names of layers to leave alone; a layer called `norm` is left alone, too,
            where there are any.
    """
    found: dict[str, nn.Parameter] = {}
    for name, layer in layers_of(network).items():
        if without and (name == "norm" or any(part in name for part in without)):
            continue
        for key, parameter in layer.named_parameters(recurse=False):
            if key in ("weight", "bias"):
                parameter.requires_grad_(True)
                found[f"{name}.{key}"] = parameter
    return found


class Blending:
    """BatchNorm layers in eval mode take a mixture of their own statistics and the batch's:

        mean = (1 - share) mean_own + share mean_batch, the variance likewise.

    It works by hooks, so that layers which do more than normalise (timm's BatchNormAct2d) stay what
    they are.

    Args:
        network: its BatchNorm layers are changed.
        share: of the batch, 0..1.
        keep: the mixture becomes the layer's own statistics (an exponential moving average).
        unbiased: variance of the batch over N - 1 instead of N.

    Attributes:
        on: whether they mix; else they have their own statistics. With `keep` and `on`, gradients
            go through the statistics of the batch.
    """

    def __init__(self, network: nn.Module, share: float, keep: bool = False, unbiased: bool = False) -> None:
        self.share, self.keep, self.unbiased, self.on = share, keep, unbiased, True
        for layer in layers_of(network, (_BatchNorm,)).values():
            for name in ("mean", "var"):
                layer.register_buffer(f"own_{name}", getattr(layer, f"running_{name}").clone())
            layer.register_forward_pre_hook(self._mix)

    def _mix(self, layer: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (x,) = inputs
        if not self.on:
            layer.running_mean, layer.running_var = layer.own_mean, layer.own_var
            return inputs
        var, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=int(self.unbiased))
        mean = (1 - self.share) * layer.own_mean + self.share * mean
        var = (1 - self.share) * layer.own_var + self.share * var
        layer.running_mean, layer.running_var = mean.detach(), var.detach()
        if not self.keep:
            return inputs
        layer.own_mean, layer.own_var = layer.running_mean, layer.running_var
        if not torch.is_grad_enabled():
            return inputs
        # the same values, with the gradient of the statistics, which the layer takes as given
        shape = [1, -1, *[1] * (x.ndim - 2)]
        scale = ((layer.running_var + layer.eps) / (var + layer.eps)).sqrt().view(shape)
        return ((x - mean.view(shape)) * scale + layer.running_mean.view(shape),)
