"""BN-EMA: the statistics of BatchNorm follow the test images, by an exponential moving average with
the layer's own momentum. Two passes a batch: one that moves them, one that uses them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from undegrade.evaluation.tta.adapting import BATCHNORM, Adapting, Options, register
from undegrade.evaluation.tta.layers import layers_of


class BnEma(Adapting):
    """Statistics that follow the test images."""

    needs = BATCHNORM

    @torch.no_grad()
    def adapt(self, x: Tensor) -> Tensor:
        layers = layers_of(self.classifier, (_BatchNorm,)).values()
        for layer in layers:
            layer.train()
        self.look(x)
        for layer in layers:
            layer.eval()
        return self.look(x)


register("bn_ema", BnEma, Options, "BatchNorm with a moving average of the test images' statistics")
