"""BN: BatchNorm with the statistics of the test batch, mixed with those of training (Schneider et
al., NeurIPS 2020; Nado et al. 2020). One pass, nothing is learnt.

    mean = (1 - alpha) mean_training + alpha mean_batch, the variance likewise
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from undegrade.evaluation.surroundings import Surroundings
from undegrade.evaluation.tta.adapting import BATCHNORM, Adapting, Options, register
from undegrade.evaluation.tta.layers import Blending
from undegrade.models.classification.classifier import Classifier
from undegrade.utils.ranges import Share


@dataclasses.dataclass(frozen=True)
class BnOptions(Options):
    """Keys of `predictor: {name: bn}`; further keys: see Options.

    Attributes:
        alpha: share of the batch's statistics. 1 needs batches of dozens of images; for single ones
            0.1 is usual.
    """

    alpha: Share = 1.0


class Bn(Adapting):
    """Statistics of the batch."""

    needs = BATCHNORM

    def __init__(self, classifier: Classifier, options: BnOptions, surroundings: Surroundings) -> None:
        super().__init__(classifier, options, surroundings)
        if options.alpha == 1:
            self.use_batch_statistics()
        else:
            Blending(classifier, options.alpha, unbiased=True)

    @torch.no_grad()
    def adapt(self, x: Tensor) -> Tensor:
        return self.look(x)


register("bn", Bn, BnOptions, "BatchNorm with the statistics of the batch")
