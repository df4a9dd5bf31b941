"""TENT (Wang et al., ICLR 2021): entropy goes down.

    loss = mean_i H(p(x_i))                                                        (eq. 1)

by weights and biases of the normalisation layers; BatchNorm takes the statistics of each batch.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from undegrade.evaluation.surroundings import Surroundings
from undegrade.evaluation.tta.adapting import NORMALISED, STEPS, Adapting, StepOptions, register, with_constants
from undegrade.evaluation.tta.layers import affine_parameters
from undegrade.evaluation.tta.losses import entropy
from undegrade.models.classification.classifier import Classifier


@dataclasses.dataclass(frozen=True)
class TentOptions(StepOptions):
    """Keys of `predictor: {name: tent}`: see StepOptions."""


class Tent(Adapting):
    """Entropy goes down."""

    needs = NORMALISED

    def __init__(self, classifier: Classifier, options: TentOptions, surroundings: Surroundings) -> None:
        super().__init__(classifier, options, surroundings)
        self.use_batch_statistics()
        self.step_with(affine_parameters(classifier.network), with_constants(options, classifier.num_classes, **STEPS))

    def adapt(self, x: Tensor) -> Tensor:
        logits = self.look(x)
        self.descend(entropy(logits).mean())
        return logits


register("tent", Tent, TentOptions, "TENT: entropy minimised by normalisation layers")
