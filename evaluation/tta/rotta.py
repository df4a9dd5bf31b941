"""RoTTA (Yuan et al., CVPR 2023): for streams whose classes come together.

    statistics = (1 - alpha) statistics + alpha those of the memory's batch                 (eq. 2)
    loss = mean_i w(age_i) -sum_k q_k log p_k(augmented x_i),  w(a) = 1 / (1 + e^a)   (eqs. 6, 7)
    teacher = (1 - nu) teacher + nu network

over a memory of images, as many of each predicted class as there is room. Where it is full, the
image of the largest class with the highest 1 / (1 + e^(-age)) + H / ln K leaves it (equation 4).
There is a step whenever `memory` images have come. All of it is by the teacher, which also answers.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from undegrade.evaluation.surroundings import Surroundings
from undegrade.evaluation.tta.adapting import NORMALISED, Adapting, StepOptions, move_towards, register, with_constants
from undegrade.evaluation.tta.augmentation import strong_augmentation
from undegrade.evaluation.tta.layers import Blending, affine_parameters
from undegrade.evaluation.tta.losses import cross_entropy, entropy
from undegrade.models.classification.classifier import Classifier
from undegrade.utils.ranges import Count, Share


@dataclasses.dataclass(frozen=True)
class RottaOptions(StepOptions):
    """Keys of `predictor: {name: rotta}`; further keys: see StepOptions.

    Attributes:
        memory: images in it.
        every: images from one step to the next (null: as `memory`).
        nu: share of the network in the teacher's step.
        alpha: share of the memory's statistics.
    """

    memory: Count = 64
    every: Count | None = None
    nu: Share = 0.001
    alpha: Share = 0.05


class Rotta(Adapting):
    """A memory of balanced classes, from which the network learns."""

    needs = NORMALISED

    def __init__(self, classifier: Classifier, options: RottaOptions, surroundings: Surroundings) -> None:
        super().__init__(classifier, options, surroundings)
        adam = {"optimizer": ("adam",) * 3, "lr": (1e-3,) * 3}
        self.own = own = with_constants(options, classifier.num_classes, every=(options.memory,) * 3, **adam)
        teacher = self.copy_of_classifier("teacher")
        self.teacher, self.blending = teacher, [Blending(network, own.alpha, keep=True) for network in (classifier, teacher)]
        self.step_with(affine_parameters(classifier.network), own)
        self.steps = 1  # a step is not made on a batch
        self.memory |= {"images": [], "labels": [], "entropies": [], "ages": [], "count": 0}

    def adapt(self, x: Tensor) -> Tensor:
        logits = self.look(x)
        assert self.own.every is not None
        for image, label, uncertainty in zip(x, logits.argmax(1).tolist(), entropy(logits).tolist(), strict=True):
            self._remember(image, label, uncertainty)
            self.memory["count"] += 1
            if self.memory["count"] % self.own.every == 0:
                self._learn()
        return logits

    @torch.no_grad()
    def look(self, x: Tensor) -> Tensor:
        for blending in self.blending:
            blending.on = False
        return self.teacher(x)  # type: ignore[no-any-return]

    def _learn(self) -> None:
        if not self.memory["images"]:
            return
        order = sorted(range(len(self.memory["labels"])), key=self.memory["labels"].__getitem__)  # class by class
        images = torch.stack([self.memory["images"][i] for i in order])
        ages = torch.tensor([self.memory["ages"][i] for i in order], device=self.device) / self.own.memory
        for blending in self.blending:
            blending.on = True
        changed = strong_augmentation(images.shape[-1])(images)
        with torch.no_grad():
            target = self.teacher(images)
        for _ in range(self.own.steps):
            self.descend((cross_entropy(self.classifier(changed), target) * (-ages).sigmoid()).mean())
        move_towards(self.teacher.parameters(), self.classifier.parameters(), 1 - self.own.nu)

    def _remember(self, image: Tensor, label: int, uncertainty: float) -> None:
        """Take an image into the memory, if none that would have to leave is better than it."""
        kept, capacity = self.memory, self.own.memory
        counts = [0] * self.num_classes
        for other in kept["labels"]:
            counts[other] += 1
        leaving: list[int] = []  # classes of which one has to go
        if counts[label] >= capacity / self.num_classes:
            leaving = [label]
        elif len(kept["labels"]) >= capacity:
            leaving = [k for k, count in enumerate(counts) if count == max(counts)]
        enters = True
        if leaving:
            # the latest of the worst, class by class in their order
            places = sorted((i for i, other in enumerate(kept["labels"]) if other in leaving), key=kept["labels"].__getitem__)
            scores = [self._score(kept["ages"][i], kept["entropies"][i]) for i in places]
            if scores:
                worst = max(range(len(scores)), key=lambda i: (scores[i], i))
                enters = scores[worst] > self._score(0, uncertainty)
                if enters:
                    for values in self._lists():
                        del values[places[worst]]
        if enters:
            for values, value in zip(self._lists(), (image.clone(), label, uncertainty, 0), strict=True):
                values.append(value)
        kept["ages"] = [age + 1 for age in kept["ages"]]

    def _lists(self) -> list[list[Any]]:
        return [self.memory[key] for key in ("images", "labels", "entropies", "ages")]

    def _score(self, age: int, uncertainty: float) -> float:
        return 1 / (1 + math.exp(-age / self.own.memory)) + uncertainty / math.log(self.num_classes)


register("rotta", Rotta, RottaOptions, "RoTTA: a memory of balanced classes, robust statistics, a teacher")
