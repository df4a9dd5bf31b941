"""T3A (Iwasawa & Matsuo, NeurIPS 2021): class means of the test images instead of the last layer.

    logit_k = f . c_k,  c_k = mean of f_j / |f_j| over the supports of class k, brought to length 1

Supports of class k are at first the last layer's weights of k, then also the features of test
images that are predicted as k; the `supports` with the lowest entropy stay.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from undegrade.evaluation.surroundings import Surroundings
from undegrade.evaluation.tta.adapting import Adapting, Options, register
from undegrade.evaluation.tta.losses import entropy
from undegrade.models.classification.classifier import Classifier, final_layer
from undegrade.utils.ranges import Count


@dataclasses.dataclass(frozen=True)
class T3aOptions(Options):
    """Keys of `predictor: {name: t3a}`; further keys: see Options.

    Attributes:
        supports: of a class that stay (null: all). The authors choose it on validation images.
    """

    supports: Count | None = 100


class T3a(Adapting):
    """Class means of the test images."""

    def __init__(self, classifier: Classifier, options: T3aOptions, surroundings: Surroundings) -> None:
        super().__init__(classifier, options, surroundings)
        self.supports = options.supports
        head = final_layer(classifier)
        with torch.no_grad():
            weights = head.weight.detach()
            logits = head(weights)
        self.memory |= {"features": F.normalize(weights), "labels": logits.argmax(1), "entropies": entropy(logits)}

    @torch.no_grad()
    def adapt(self, x: Tensor) -> Tensor:
        logits, found = self.classifier.forward_features(x, ["pooled"])
        features, kept = found["pooled"], self.memory
        new = {"features": F.normalize(features), "labels": logits.argmax(1), "entropies": entropy(logits)}
        for key, values in new.items():
            kept[key] = torch.cat([kept[key], values])
        if self.supports is not None:
            order = kept["entropies"].argsort(stable=True)
            rank = F.one_hot(kept["labels"][order], self.num_classes).cumsum(0)
            stay = order[rank.gather(1, kept["labels"][order, None])[:, 0] <= self.supports].sort().values
            for key in new:
                kept[key] = kept[key][stay]
        means = F.one_hot(kept["labels"], self.num_classes).to(features).T @ kept["features"]
        return features @ F.normalize(means).T


register("t3a", T3a, T3aOptions, "T3A: class means of the test images instead of the last layer")
