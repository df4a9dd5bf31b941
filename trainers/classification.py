"""What the methods that train a classifier have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from undegrade.models.classification.classifier import Classifier, build_classifier, describe, final_layers
from undegrade.models.classification.loading import initialise_classifier
from undegrade.trainers.method import Context, Method, Monitors
from undegrade.utils.checkpoint import file_digest
from undegrade.utils.ranges import Positive, Share, ShareBelowOne

View = Literal["clean", "degraded"]


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """The classifier that is trained.

    Attributes:
        arch: ResNet20 | ResNet56 | ResNet110 | ResNet18_CIFAR | ResNet50_CIFAR or any timm name.
        init_from: checkpoint file (also timm's or mm-classification's), run folder or run name;
            `{deg}` is the run's degradation.
        pretrained, drop_path: start from timm's published weights; rate of stochastic depth (null:
            timm's default).
        trained: all | head: the final layer alone, a linear probe; the rest stays as it starts.
        mean, std: input normalisation, range [0,1] (null: that of the weights it starts from, else
            of the training images).
    """

    arch: str = "ResNet20"
    init_from: str | None = None
    pretrained: bool = False
    drop_path: ShareBelowOne | None = None
    trained: Literal["all", "head"] = "all"
    mean: list[Share] | None = None
    std: list[Positive] | None = None


class ClassifierMethod(Method):
    """A classifier as student; whoever trains another network gives its own `export`."""

    monitors: Monitors = {"accuracy": "max", "loss": "min"}

    def __init__(self, student: nn.Module, context: Context) -> None:
        super().__init__()
        self.student = student
        self.description = {
            **context.source.description,
            "degradations": context.degradations,
            "initial_weights": context.init_digest,
        }

    def train(self, mode: bool = True) -> ClassifierMethod:
        """As every method; layers that are not trained keep their running statistics."""
        super().train(mode)
        if mode and any(not p.requires_grad for p in self.student.parameters()):
            for module in self.student.modules():
                own = list(module.parameters(recurse=False))
                if own and not any(p.requires_grad for p in own):
                    module.eval()
        return self

    def export(self, parts: Mapping[str, nn.Module]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        student = parts["student"]
        assert isinstance(student, Classifier)
        return student.network.state_dict(), {**describe(student), **self.description}


def build_student(model: ClassifierConfig, context: Context, fewest: int = 0) -> tuple[Classifier, Context]:
    """The student, and the context with the digest of the checkpoint that it starts from.

    Args:
        model: which network.
        context: of the run.
        fewest: classes of the final layer at least, where it is not trained.
    """
    source, options = context.source, (model.pretrained, model.drop_path)
    student = build_classifier(model.arch, max(fewest, len(source.classes)), source.rgb_mean, source.rgb_std, *options)
    if model.init_from:
        path = context.find_checkpoint(model.init_from)
        initialise_classifier(student, path, context.config.save_dir, source.classes)
        context = dataclasses.replace(context, init_digest=file_digest(path))
    student.set_normalisation(model.mean, model.std)
    if model.trained == "head":
        student.requires_grad_(False)
        for layer in final_layers(student.network):
            student.network.get_submodule(layer).requires_grad_(True)
    return student, context
