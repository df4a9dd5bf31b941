"""SAR (Niu et al., ICLR 2023): entropy of reliable images goes down, to flat minima.

    min_w  max_{|e| <= rho}  mean_{i: H_i < E0} H_i(w + e),  E0 = margin ln K       (eqs. 2 to 4)

The first pass finds e, along the gradient; the second, at w + e, gives the step. When a moving
average of the second loss falls below `recovery`, the network has come close to one class for all
images, and starts anew.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from undegrade.evaluation.surroundings import Surroundings
from undegrade.evaluation.tta.adapting import NORMALISED, Adapting, StepOptions, log, register, with_constants
from undegrade.evaluation.tta.layers import TOP_LAYERS, affine_parameters, layers_of
from undegrade.evaluation.tta.losses import entropy, mean_of
from undegrade.models.classification.classifier import Classifier
from undegrade.utils.ranges import NotNegative, Positive


@dataclasses.dataclass(frozen=True)
class SarOptions(StepOptions):
    """Keys of `predictor: {name: sar}`; further keys: see StepOptions. By default SGD with momentum
    of 0.9, not Nesterov's; networks with LayerNorm alone have `lr` 0.001.

    Attributes:
        margin: E0 as a share of ln K.
        rho: radius of the ball around the weights.
        recovery: of the moving average of the loss, in nats; 0: never.
    """

    margin: Positive = 0.4
    rho: Positive = 0.05
    recovery: NotNegative = 0.2


class Sar(Adapting):
    """Entropy of reliable images goes down, to flat minima."""

    needs = NORMALISED

    def __init__(self, classifier: Classifier, options: SarOptions, surroundings: Surroundings) -> None:
        super().__init__(classifier, options, surroundings)
        self.use_batch_statistics()
        transformer = {type(layer) for layer in layers_of(classifier).values()} == {nn.LayerNorm}
        rates = (1e-3, 1e-3, 1e-3 if transformer else 2.5e-4)
        own = with_constants(options, classifier.num_classes, optimizer=("sgd", "sgd", "sgd"), lr=rates)
        self.step_with(affine_parameters(classifier.network, TOP_LAYERS), own)
        if options.optimizer is None:
            assert own.lr is not None
            self.optimizer = torch.optim.SGD(self.moved.values(), lr=own.lr, momentum=0.9)
        self.margin, self.rho, self.recovery = own.margin * math.log(classifier.num_classes), own.rho, own.recovery
        self.memory["loss"] = None

    def adapt(self, x: Tensor) -> Tensor:
        moved = list(self.moved.values())
        logits = self.look(x)
        first = entropy(logits)
        reliable = first.detach() < self.margin
        gradients = torch.autograd.grad(mean_of(first, reliable), moved)
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        start = [parameter.detach().clone() for parameter in moved]
        with torch.no_grad():
            for parameter, gradient in zip(moved, gradients, strict=True):
                parameter.add_(gradient * (self.rho / (norm + 1e-12)))
        second = entropy(self.look(x))
        still = reliable & (second.detach() < self.margin)
        loss = mean_of(second, still)
        gradients = torch.autograd.grad(loss, moved)
        for parameter, before, gradient in zip(moved, start, gradients, strict=True):
            parameter.data, parameter.grad = before, gradient
        assert self.optimizer is not None
        self.optimizer.step()
        self.optimizer.zero_grad()
        if still.any():
            before = self.memory["loss"]
            self.memory["loss"] = loss.item() if before is None else 0.9 * before + 0.1 * loss.item()
        if self.memory["loss"] is not None and self.memory["loss"] < self.recovery:
            log.info("predictor sar: the loss has fallen below %g, the network starts anew", self.recovery)
            self.recover()
        return logits.detach()

    def recover(self) -> None:
        """Weights and memory as at first; the random stream goes on."""
        assert self._first is not None
        self.load({**self._first, "random": self._random})


register("sar", Sar, SarOptions, "SAR: entropy of reliable images, sharpness-aware, with recovery")
