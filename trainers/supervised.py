"""Learning from labels alone."""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from undegrade.trainers.classification import ClassifierConfig, ClassifierMethod, View, build_student
from undegrade.trainers.method import Context, Method
from undegrade.trainers.mixup import mixed
from undegrade.trainers.tasks import TASKS
from undegrade.utils.data.batches import Batch
from undegrade.utils.ranges import NotNegative, ShareBelowOne


@dataclasses.dataclass(frozen=True)
class SupervisedConfig:
    """The loss of a task, such as cross-entropy.

    Attributes:
        name: supervised.
        task: what the network is asked for, and with it loss and metrics: classification, or
            another row of `trainers.tasks`.
        view: image that the student sees: clean | degraded.
        label_smoothing: share of a training label that is spread evenly over all classes (Szegedy
            et al. 2016, sec. 7).
        mixup, cutmix: alpha of the Beta distribution by which training images are mixed in pairs
            (`trainers.mixup`); 0 for none. Training accuracy is then that of the first image of
            each pair.
    """

    name: str = "supervised"
    task: str = "classification"
    view: View = "degraded"
    label_smoothing: ShareBelowOne = 0.0
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0


class Supervised(ClassifierMethod):
    """L = loss of the task, of a classifier CE(f(x), y), with softened labels in training where the
    configuration says so.
    """

    def __init__(self, student: nn.Module, context: Context, config: SupervisedConfig) -> None:
        super().__init__(student, context)
        self.view, self.config = config.view, config
        self.task = TASKS.get_row(config.task, "config key 'method.task'")
        self.monitors = self.task.monitors
        if context.source.target is not None and (config.mixup or config.cutmix):
            raise ValueError("method.mixup and method.cutmix mix labels, not the targets that these images have: set them to 0")

    def prepare(self, batch: Batch, *stream: object) -> Batch:
        alphas = self.config.mixup, self.config.cutmix
        if not any(alphas):
            return batch
        classes = len(self.description["classes"])
        images, labels = mixed(batch[self.view], batch["label"], classes, *alphas, (*stream, "mixing"))
        return {**batch, self.view: images, "soft_label": labels}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        output = self.student(batch[self.view])
        smoothing = self.config.label_smoothing if self.student.training else 0.0
        return {"loss": self.task.loss(output, batch, smoothing), **self.task.metrics(output, batch)}

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        return self.task.summary(means)


def build_supervised(model: ClassifierConfig, config: SupervisedConfig, context: Context) -> Method:
    """The method that the configuration describes."""
    student, context = build_student(model, context)
    return Supervised(student, context, config)
