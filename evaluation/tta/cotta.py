"""CoTTA (Wang et al., CVPR 2022): a teacher that is the moving average of the network, augmented
where the source network is not sure, and weights that go back to the source's at random.

    loss = mean_i -sum_k q_k log p_k(x_i)                                                   (eq. 2)
    teacher = momentum teacher + (1 - momentum) network
    w_j = w_j^0 with probability `restore`                                                  (eq. 8)

q is the teacher's mean over augmented images if the source's mean confidence is below `threshold`.
On ImageNet the loss is the mean of both directions of the cross-entropy. All parameters move.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from undegrade.evaluation.surroundings import Surroundings
from undegrade.evaluation.tta.adapting import Adapting, StepOptions, move_towards, register, with_constants
from undegrade.evaluation.tta.augmentation import strong_augmentation
from undegrade.evaluation.tta.losses import cross_entropy, symmetric_cross_entropy
from undegrade.models.classification.classifier import Classifier
from undegrade.utils.ranges import Count, Share


@dataclasses.dataclass(frozen=True)
class CottaOptions(StepOptions):
    """Keys of `predictor: {name: cotta}`; further keys: see StepOptions.

    Attributes:
        momentum: of the teacher.
        restore: probability for a weight and step.
        threshold: of the source's mean confidence.
        augmentations: that the teacher sees.
        symmetric: the loss of both directions.
    """

    momentum: Share = 0.999
    restore: Share | None = None
    threshold: Share | None = None
    augmentations: Count = 32
    symmetric: bool | None = None


CONSTANTS = {
    "optimizer": ("adam", "adam", "sgd"), "lr": (1e-3, 1e-3, 0.01), "restore": (0.01, 0.01, 0.001),
    "threshold": (0.92, 0.72, 0.1), "symmetric": (False, False, True),
}  # fmt: skip


class Cotta(Adapting):
    """A network that learns from its moving average."""

    def __init__(self, classifier: Classifier, options: CottaOptions, surroundings: Surroundings) -> None:
        super().__init__(classifier, options, surroundings)
        self.own = own = with_constants(options, classifier.num_classes, **CONSTANTS)
        self.use_batch_statistics()
        self.teacher, self.source = self.copy_of_classifier("teacher"), self.copy_of_classifier("source")
        classifier.network.requires_grad_(True)
        self.step_with(dict(classifier.network.named_parameters()), own)
        self.distance = symmetric_cross_entropy if own.symmetric else cross_entropy

    def adapt(self, x: Tensor) -> Tensor:
        logits = self.look_at(x)
        with torch.no_grad():
            sure = self.source(x).softmax(1).amax(1).mean() >= self.own.threshold
            if sure:
                target = self.teacher(x)
            else:
                change = strong_augmentation(x.shape[-1])
                target = torch.stack([self.teacher(change(x)) for _ in range(self.own.augmentations)]).mean(0)
        self.descend(self.distance(logits, target).mean())
        move_towards(self.teacher.parameters(), self.classifier.parameters(), self.own.momentum)
        self._restore()
        return target

    def look_at(self, x: Tensor) -> Tensor:
        """The network's own logits."""
        return self.classifier(x)  # type: ignore[no-any-return]

    def look(self, x: Tensor) -> Tensor:
        return self.teacher(x)  # type: ignore[no-any-return]

    @torch.no_grad()
    def _restore(self) -> None:
        if not self.own.restore:
            return
        for own, start in zip(self.classifier.parameters(), self.source.parameters(), strict=True):
            own.copy_(torch.where((torch.rand(own.shape) < self.own.restore).to(self.device), start, own))


register("cotta", Cotta, CottaOptions, "CoTTA: learns from its augmented moving average, restores weights")
