"""NEO (Murphy et al. 2025): the mean of the features is brought back to where it was.

    logits = last layer(f - mean of the test images' f)

over all test images so far. Nothing is learnt, one pass. The authors' source mean is the origin,
which holds for ViT; for features after a ReLU give `origin: training`, the mean of training images.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from undegrade.evaluation.surroundings import Surroundings, TrainingImages
from undegrade.evaluation.tta.adapting import Adapting, Options, register
from undegrade.models.classification.classifier import Classifier, final_layer
from undegrade.utils.ranges import Count, PositiveShare


@dataclasses.dataclass(frozen=True)
class NeoOptions(Options):
    """Keys of `predictor: {name: neo}`; further keys: see Options.

    Attributes:
        origin: zero | training: where the mean is brought to.
        images: training images for it.
        rate: share of a batch in the mean, for streams that change (null: of all images so far).
    """

    origin: Literal["zero", "training"] = "zero"
    images: Count = 2000
    rate: PositiveShare | None = None


class Neo(Adapting):
    """Features are centred."""

    def __init__(self, classifier: Classifier, options: NeoOptions, surroundings: Surroundings) -> None:
        super().__init__(classifier, options, surroundings)
        self.rate = options.rate
        self.head = final_layer(classifier)
        self.memory |= {"mean": torch.zeros(self.head.in_features, device=self.device), "count": 0}
        self.origin = self.memory["mean"].clone()
        if options.origin == "training":
            images = surroundings.training_images(options.images, "the origin of NEO (`origin: zero` does without)")
            self.origin = surroundings.worked_out("feature mean", images, self._mean)["mean"].to(self.device)

    @torch.no_grad()
    def adapt(self, x: Tensor) -> Tensor:
        features, kept = self._features(x), self.memory
        kept["count"] += len(x)
        share = len(x) / kept["count"] if self.rate is None else self.rate
        kept["mean"] = (1 - share) * kept["mean"] + share * features.mean(0)
        return self.head(features - kept["mean"] + self.origin)

    def _features(self, x: Tensor) -> Tensor:
        return self.classifier.features(x, ["pooled"])["pooled"]

    @torch.no_grad()
    def _mean(self, images: TrainingImages) -> dict[str, Tensor]:
        parts = [self._features(images.batch(i, 64, self.device)[0]).sum(0) for i in range(-(-len(images) // 64))]
        return {"mean": torch.stack(parts).sum(0) / len(images)}


register("neo", Neo, NeoOptions, "NEO: features centred by the mean of the test images")
