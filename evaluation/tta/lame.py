"""LAME (Boudiaf et al., CVPR 2022): the network stays, its answers on a batch are made consistent.

    z_i = argmin sum_i KL(z_i || p_i) - sum_ij w_ij z_i . z_j                            (eq. 4)
    z_i <- softmax(log p_i + sum_j w_ij z_j) until it stands still                       (eq. 5)

w_ij = exp(-|f_i - f_j|^2 / 2 s^2) for normalised features f; s is the mean distance to the k-th
neighbour, oneself counted. The logarithm of z is returned.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from undegrade.evaluation.surroundings import Surroundings
from undegrade.evaluation.tta.adapting import Adapting, Options, register
from undegrade.models.classification.classifier import Classifier
from undegrade.utils.ranges import Count


@dataclasses.dataclass(frozen=True)
class LameOptions(Options):
    """Keys of `predictor: {name: lame}`; further keys: see Options.

    Attributes:
        neighbours: k.
        rounds: at most.
    """

    neighbours: Count = 5
    rounds: Count = 100


class Lame(Adapting):
    """Consistent answers on a batch."""

    def __init__(self, classifier: Classifier, options: LameOptions, surroundings: Surroundings) -> None:
        super().__init__(classifier, options, surroundings)
        self.own = options

    @torch.no_grad()
    def adapt(self, x: Tensor) -> Tensor:
        return self.look(x)

    def look(self, x: Tensor) -> Tensor:
        logits, found = self.classifier.forward_features(x, ["pooled"])
        features = F.normalize(found["pooled"], dim=1)
        distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
        spread = distances.topk(min(self.own.neighbours, len(x)), largest=False).values[:, -1].mean()
        alike = (-distances.square() / (2 * spread.clamp_min(1e-12) ** 2)).exp()
        own = (logits.softmax(1) + 1e-10).log()
        answers, energy = own.softmax(1), torch.inf
        for step in range(self.own.rounds):
            pull = alike @ answers
            answers = (own + pull).softmax(1)
            before, energy = energy, float((answers * (answers.clamp_min(1e-20).log() - own - pull)).sum())
            if step > 1 and abs(energy - before) <= 1e-8 * abs(before):
                break
        return answers.clamp_min(1e-20).log()


register("lame", Lame, LameOptions, "LAME: answers on a batch made consistent, the network stays")
