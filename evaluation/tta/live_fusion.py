"""Live fusion, ours: FusionDistill's specialists, one a known degradation, are fused anew for every
batch, by how certain each of them is of it.

    w_j = softmax_j(-mean_i H(p_j(x_i)) / T),  network = sum_j w_j specialist_j

Each specialist sees the batch once with the batch's BatchNorm statistics, then the fused network
does. T large is the uniform soup of model soups (Wortsman et al. 2022), T small the most certain
specialist. Nothing is learnt or remembered.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from undegrade.evaluation.surroundings import Surroundings
from undegrade.evaluation.tta.adapting import BATCHNORM, Adapting, Options, register
from undegrade.evaluation.tta.losses import entropy
from undegrade.models.classification.classifier import Classifier
from undegrade.models.classification.loading import load_classifier
from undegrade.utils.checkpoint import file_digest
from undegrade.utils.ranges import Positive


@dataclasses.dataclass(frozen=True)
class LiveFusionOptions(Options):
    """Keys of `predictor: {name: live_fusion}`; further keys: see Options. The member's own
    checkpoint is one of the fused.

    Attributes:
        specialists: runs or files of further networks, fine-tuned from one start, as the member.
        temperature: T, in nats.
    """

    specialists: list[str] = dataclasses.field(default_factory=list)
    temperature: Positive = 0.1


class LiveFusion(Adapting):
    """Specialists fused for each batch."""

    needs = BATCHNORM

    def __init__(self, classifier: Classifier, options: LiveFusionOptions, surroundings: Surroundings) -> None:
        super().__init__(classifier, options, surroundings)
        if not options.specialists:
            raise ValueError("predictor 'live_fusion' fuses networks: name some (predictor.specialists: [run, ...])")
        self.temperature, self.weights = options.temperature, [_weights(classifier)]
        for name in options.specialists:
            path = surroundings.find(name)
            other = load_classifier(path)
            if (other.arch, other.num_classes) != (classifier.arch, classifier.network_classes):
                raise ValueError(
                    f"predictor 'live_fusion': {path} is a {other.arch} of {other.num_classes} classes, the member a "
                    f"{classifier.arch} of {classifier.network_classes}: only networks of one kind can be fused"
                )
            self.files.append(file_digest(path))
            self.weights.append([value.to(self.device) for value in _weights(other)])
        self.use_batch_statistics()

    @torch.no_grad()
    def adapt(self, x: Tensor) -> Tensor:
        certainty = []
        for weights in self.weights:
            self._take(weights)
            certainty.append(-entropy(self.look(x)).mean())
        shares = (torch.stack(certainty) / self.temperature).softmax(0)
        self._take([torch.tensordot(shares, torch.stack(values), 1) for values in zip(*self.weights, strict=True)])
        return self.look(x)

    def _take(self, weights: list[Tensor]) -> None:
        torch._foreach_copy_(list(self.classifier.parameters()), weights)


def _weights(classifier: Classifier) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in classifier.parameters()]


register("live_fusion", LiveFusion, LiveFusionOptions, "live fusion: specialists fused for each batch by their certainty")
