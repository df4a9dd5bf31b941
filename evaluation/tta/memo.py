"""MEMO (Zhang et al., NeurIPS 2022): for one image; it needs no others.

    loss = H(mean_j p(augmentation_j of x))                                              (eq. 3)

All parameters make `steps` steps on the augmentations of an image, which is then classified, and go
back. Augmentations are AugMix's (torchvision), after a random crop and flip; they are of the image
alone, so that its answer does not depend on others. BatchNorm mixes the statistics of the
augmentations into its own.
"""

from __future__ import annotations

import dataclasses
import math
import zlib

import torch
from torch import Tensor

from undegrade.evaluation.surroundings import Surroundings
from undegrade.evaluation.tta.adapting import Adapting, StepOptions, register, with_constants
from undegrade.evaluation.tta.layers import Blending
from undegrade.models.classification.classifier import Classifier
from undegrade.utils.ranges import Count, Share
from undegrade.utils.seeding import torch_generator


@dataclasses.dataclass(frozen=True)
class MemoOptions(StepOptions):
    """Keys of `predictor: {name: memo}`; further keys: see StepOptions.

    Attributes:
        augmentations: of an image (null: the authors').
        alpha: share of their statistics in BatchNorm's.
    """

    augmentations: Count | None = None
    alpha: Share = 0.1


CONSTANTS = {"optimizer": ("sgd",) * 3, "lr": (0.005, 0.005, 2.5e-4), "augmentations": (32, 32, 64)}


class Memo(Adapting):
    """Entropy of the mean over augmentations of one image goes down."""

    stateful = False

    def __init__(self, classifier: Classifier, options: MemoOptions, surroundings: Surroundings) -> None:
        super().__init__(classifier, options, surroundings)
        self.own = own = with_constants(options, classifier.num_classes, **CONSTANTS)
        Blending(classifier, own.alpha, unbiased=True)
        classifier.network.requires_grad_(True)
        self.step_with(dict(classifier.network.named_parameters()), own)

    def predict(self, x: Tensor) -> Tensor:
        """Logits [B,K] of images [B,3,H,W] in [0,1], one after the other."""
        return torch.cat([self._one(image) for image in x])

    def _one(self, image: Tensor) -> Tensor:
        self.reset()
        augmented = self._augmented(image)
        with torch.enable_grad():
            for _ in range(self.own.steps):
                self.descend(marginal_entropy(self.look(augmented)))
        with torch.no_grad():
            return self.look(image[None])

    def _augmented(self, image: Tensor) -> Tensor:
        from torchvision.transforms import v2  # noqa: PLC0415  a second

        size = image.shape[-1]
        crop = v2.RandomCrop(size, 4) if size < 64 else v2.RandomResizedCrop(size, antialias=True)
        change = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.AugMix(severity=1, all_ops=False)])
        pixels = (image * 255).round().to(torch.uint8).cpu()
        before = torch.get_rng_state()
        torch.set_rng_state(torch_generator("memo", zlib.crc32(pixels.numpy().tobytes())).get_state())
        try:
            changed = [change(pixels) for _ in range(self.own.augmentations or 0)]
        finally:
            torch.set_rng_state(before)
        return torch.stack(changed).to(image) / 255


def marginal_entropy(logits: Tensor) -> Tensor:
    """Entropy, in nats, of the mean of the probabilities of logits [J,K]."""
    mean = logits.log_softmax(1).logsumexp(0) - math.log(len(logits))
    return -(mean * mean.exp()).sum()


register("memo", Memo, MemoOptions, "MEMO: one image, entropy of its augmentations' mean minimised")
