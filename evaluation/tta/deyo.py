"""DeYO (Lee et al., ICLR 2024): entropy goes down of images whose class depends on shapes.

    loss = mean_{i in S} (exp(E1 - H_i) + exp(d_i)) H_i                                   (eq. 8)
    S = {i: H_i < E0 = margin ln K, d_i > `difference`},  d_i = p_y(x_i) - p_y(x_i shuffled)

in which patches are shuffled; y is the predicted class, E1 = `weight_margin` ln K.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from undegrade.evaluation.surroundings import Surroundings
from undegrade.evaluation.tta.adapting import NORMALISED, STEPS, Adapting, StepOptions, register, with_constants
from undegrade.evaluation.tta.layers import TOP_LAYERS, affine_parameters
from undegrade.evaluation.tta.losses import entropy
from undegrade.models.classification.classifier import Classifier
from undegrade.utils.ranges import Count, Positive, Share


@dataclasses.dataclass(frozen=True)
class DeyoOptions(StepOptions):
    """Keys of `predictor: {name: deyo}`; further keys: see StepOptions.

    Attributes:
        margin, weight_margin: E0 and E1 as shares of ln K.
        difference: that d has to exceed.
        patches: along a side.
    """

    margin: Positive = 0.5
    weight_margin: Positive = 0.4
    difference: Share = 0.2
    patches: Count = 4


class Deyo(Adapting):
    """Entropy goes down where shapes decide."""

    needs = NORMALISED

    def __init__(self, classifier: Classifier, options: DeyoOptions, surroundings: Surroundings) -> None:
        super().__init__(classifier, options, surroundings)
        self.own = own = with_constants(options, classifier.num_classes, **STEPS)
        self.use_batch_statistics()
        self.step_with(affine_parameters(classifier.network, TOP_LAYERS), own)
        self.margin, self.weight_margin = (m * math.log(classifier.num_classes) for m in (own.margin, own.weight_margin))

    def adapt(self, x: Tensor) -> Tensor:
        logits = self.look(x)
        uncertainty, chances = entropy(logits), logits.detach().softmax(1)
        sure = (uncertainty.detach() < self.margin).nonzero()[:, 0]
        if not len(sure):
            return logits
        with torch.no_grad():
            shuffled = self.look(shuffled_patches(x[sure], self.own.patches)).softmax(1)
        predicted = chances[sure].argmax(1, keepdim=True)
        difference = (chances[sure].gather(1, predicted) - shuffled.gather(1, predicted))[:, 0]
        by_shape = difference > self.own.difference
        if by_shape.any():
            own = uncertainty[sure][by_shape]
            self.descend((((self.weight_margin - own.detach()).exp() + difference[by_shape].exp()) * own).mean())
        return logits


def shuffled_patches(x: Tensor, count: int) -> Tensor:
    """Images [B,3,S,S] cut into `count` x `count` patches, each image's in an order of its own."""
    from torchvision.transforms.v2 import functional as F  # noqa: PLC0415  a second

    size = x.shape[-1]
    side = size // count
    fitted = x if side * count == size else F.resize(x, [side * count])
    patches = fitted.unflatten(3, (count, side)).unflatten(2, (count, side)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    order = torch.rand(len(x), count**2).argsort(1).to(x.device)
    patches = patches.gather(1, order[:, :, None, None, None].expand_as(patches)).unflatten(1, (count, count))
    whole = patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    return whole if side * count == size else F.resize(whole, [size])


register("deyo", Deyo, DeyoOptions, "DeYO: entropy of images whose class depends on shapes")
