"""EATA (Niu et al., ICML 2022): entropy of reliable and new images goes down, important weights
stay.

    loss = mean_{i in S} exp(E0 - H_i) H_i + beta sum_j F_j (w_j - w_j^0)^2                (eq. 8)
    S = {i: H_i < E0 = margin ln K, |cos(p_i, m)| < d},  m = 0.9 m + 0.1 mean_{i in S} p_i

F_j, the Fisher information of weight j, is the mean of squared gradients of the cross-entropy with
the network's own predictions on clean training images; it is worked out once and kept on disk. With
`fisher: 0` this is the authors' ETA, which needs no images.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from undegrade.evaluation.surroundings import Surroundings, TrainingImages
from undegrade.evaluation.tta.adapting import NORMALISED, STEPS, Adapting, StepOptions, register, with_constants
from undegrade.evaluation.tta.layers import affine_parameters
from undegrade.evaluation.tta.losses import entropy, mean_of
from undegrade.models.classification.classifier import Classifier
from undegrade.utils.ranges import Count, NotNegative, Positive


@dataclasses.dataclass(frozen=True)
class EataOptions(StepOptions):
    """Keys of `predictor: {name: eata}`; further keys: see StepOptions.

    Attributes:
        margin: E0 as a share of ln K.
        similarity: d.
        fisher: beta.
        images: clean training images for F; `batch` of them at a time (null: the authors').
    """

    margin: Positive = 0.4
    similarity: Positive | None = None
    fisher: NotNegative | None = None
    images: Count = 2000
    batch: Count | None = None


CONSTANTS = {**STEPS, "similarity": (0.4, 0.1, 0.05), "fisher": (1.0, 1.0, 2000.0), "batch": (200, 200, 64)}


class Eata(Adapting):
    """Entropy of chosen images goes down."""

    needs = NORMALISED

    def __init__(self, classifier: Classifier, options: EataOptions, surroundings: Surroundings) -> None:
        super().__init__(classifier, options, surroundings)
        self.own = own = with_constants(options, classifier.num_classes, **CONSTANTS)
        self.use_batch_statistics()
        self.step_with(affine_parameters(classifier.network), own)
        self.start = [parameter.detach().clone() for parameter in self.moved.values()]
        self.margin, self.memory["mean"] = own.margin * math.log(classifier.num_classes), None
        self.fisher: list[Tensor] = []
        if own.fisher:
            images = surroundings.training_images(own.images, "EATA's Fisher information (`fisher: 0` does without, as ETA)")
            kept = surroundings.worked_out("fisher information", images, self._fisher, batch=own.batch)
            self.fisher = [kept[name].to(self.device) for name in self.moved]

    def adapt(self, x: Tensor) -> Tensor:
        logits = self.look(x)
        uncertainty, chances = entropy(logits), logits.detach().softmax(1)
        chosen = uncertainty.detach() < self.margin
        if (mean := self.memory["mean"]) is not None:
            assert self.own.similarity is not None
            chosen &= F.cosine_similarity(mean[None], chances).abs() < self.own.similarity
        if chosen.any():
            own = chances[chosen].mean(0)
            self.memory["mean"] = own if mean is None else 0.9 * mean + 0.1 * own
            weights = (self.margin - uncertainty.detach()).exp()
            self.descend(mean_of(weights * uncertainty, chosen) + self._distance())
        return logits

    def _distance(self) -> Tensor | float:
        if not self.fisher:
            return 0.0
        parts = zip(self.fisher, self.moved.values(), self.start, strict=True)
        assert self.own.fisher is not None
        return self.own.fisher * torch.stack([(f * (w - start).square()).sum() for f, w, start in parts]).sum()

    def _fisher(self, images: TrainingImages) -> dict[str, Tensor]:
        """Mean over batches of squared gradients of the batch's mean loss, by parameter."""
        assert self.own.batch is not None
        sums, count = [torch.zeros_like(parameter) for parameter in self.moved.values()], -(-len(images) // self.own.batch)
        for number in range(count):
            logits = self.look(images.batch(number, self.own.batch, self.device)[0])
            loss = F.cross_entropy(logits, logits.argmax(1))
            for total, gradient in zip(sums, torch.autograd.grad(loss, list(self.moved.values())), strict=True):
                total += gradient.square() / count
        return dict(zip(self.moved, sums, strict=True))


register("eata", Eata, EataOptions, "EATA: entropy of reliable, new images; important weights stay")
