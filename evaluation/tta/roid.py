"""ROID (Marsden et al., WACV 2024): weighted soft likelihood ratios, pulled back to the source.

    loss = sum_i w_i (-sum_k p_ik ln(p_ik / (1 - p_ik)) + SCE(p(augmented x_i), p_i)) / B
    w_i = exp(diversity_i certainty_i / T), 0 where diversity_i is below its mean
    network = momentum network + (1 - momentum) source, after each step

Certainty is -H, diversity 1 - cos(p_i, m) for the moving average m of mean predictions; both are
brought to 0..1 within the batch. At the end logits are multiplied by the smoothed mean prediction
of the batch, as in the authors' program.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from undegrade.evaluation.surroundings import Surroundings
from undegrade.evaluation.tta.adapting import (
    NORMALISED,
    STEPS,
    Adapting,
    StepOptions,
    move_towards,
    register,
    with_constants,
)  # fmt: skip
from undegrade.evaluation.tta.augmentation import strong_augmentation
from undegrade.evaluation.tta.layers import affine_parameters
from undegrade.evaluation.tta.losses import entropy, symmetric_cross_entropy
from undegrade.models.classification.classifier import Classifier
from undegrade.utils.ranges import Positive, Share


@dataclasses.dataclass(frozen=True)
class RoidOptions(StepOptions):
    """Keys of `predictor: {name: roid}`; further keys: see StepOptions.

    Attributes:
        momentum: of the network against the source.
        mean_momentum: of m.
        temperature: T.
        prior: the correction by the mean prediction at the end.
    """

    momentum: Share = 0.99
    mean_momentum: Share = 0.9
    temperature: Positive = 1 / 3
    prior: bool = True


class Roid(Adapting):
    """Weighted likelihood ratios, pulled back to the source."""

    needs = NORMALISED

    def __init__(self, classifier: Classifier, options: RoidOptions, surroundings: Surroundings) -> None:
        if options.guard and options.prior:
            raise ValueError(
                "predictor 'roid': `guard` compares how sure answers are, which `prior` changes: give prior: false, too"
            )
        super().__init__(classifier, options, surroundings)
        self.own = own = with_constants(options, classifier.num_classes, **STEPS)
        self.use_batch_statistics()
        self.step_with(affine_parameters(classifier.network), own)
        self.source = [parameter.detach().clone() for parameter in self.moved.values()]
        self.memory["mean"] = torch.full((classifier.num_classes,), 1 / classifier.num_classes, device=self.device)

    def adapt(self, x: Tensor) -> Tensor:
        logits = self.look(x)
        weights = self._weights(logits.detach())
        chosen = weights > 0
        loss = soft_likelihood_ratio(logits[chosen])
        if chosen.any():
            change = strong_augmentation(x.shape[-1], "reflect", blurred=False)
            loss = loss + symmetric_cross_entropy(self.look(change(x[chosen])), logits[chosen])
        self.descend((loss * weights[chosen]).sum() / len(x))
        move_towards(self.moved.values(), self.source, self.own.momentum)
        logits = logits.detach()
        return logits * self._prior(logits) if self.own.prior else logits

    def _weights(self, logits: Tensor) -> Tensor:
        chances = logits.softmax(1)
        diversity = _within(1 - F.cosine_similarity(self.memory["mean"][None], chances))
        certainty = _within(-entropy(logits))
        keep = self.own.mean_momentum
        self.memory["mean"] = keep * self.memory["mean"] + (1 - keep) * chances.mean(0)
        weights = (diversity * certainty / self.own.temperature).exp()
        return weights.where(diversity >= diversity.mean(), 0.0)

    def _prior(self, logits: Tensor) -> Tensor:
        prior, count, classes = logits.softmax(1).mean(0), *logits.shape
        smooth = max(1 / count, 1 / classes) / prior.amax()
        return (prior + smooth) / (1 + smooth * classes)


def soft_likelihood_ratio(logits: Tensor) -> Tensor:
    """-sum_k p_k ln(p_k / (1 - p_k)) of logits [B,K], with p_k at most 0.99: [B]."""
    chances = logits.softmax(1).clamp(max=0.99)
    return -(chances * (chances / (1 - chances) + 1e-5).log()).sum(1)


def _within(values: Tensor) -> Tensor:
    """[B] brought to 0..1; all of a batch of one value are 1."""
    low, high = values.aminmax()
    return (values - low) / (high - low) if high > low else torch.ones_like(values)


register("roid", Roid, RoidOptions, "ROID: weighted likelihood ratios, pulled back to the source")
