"""Learning masks and points: the tasks on which diffusion features were judged as starts of
training (Yang and Wang 2023, "Diffusion model as representation learner").

The data set says which classes or points there are (`utils.data.targets`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undegrade.models.dense.backbone import build_backbone, initialise_backbone
from undegrade.models.dense.landmarks import LandmarkNetwork, decode, encode
from undegrade.models.dense.loading import DenseNetwork
from undegrade.models.dense.scores import check_mask, overlaps, point_errors
from undegrade.models.dense.segmentation import BiSeNet
from undegrade.trainers.classification import View
from undegrade.trainers.method import Context, Method, Monitors
from undegrade.trainers.tasks import Task
from undegrade.utils.checkpoint import file_digest
from undegrade.utils.data.batches import Batch
from undegrade.utils.data.targets import IGNORED, Mask, Points
from undegrade.utils.ranges import Count, Positive, Share, Whole


class Segmentation(Task):
    """Mean cross-entropy of the pixels that have a class; intersection over union.

    Args:
        classes: names of the K classes.
    """

    monitors: Monitors = {"miou": "max", "pixel_accuracy": "max", "loss": "min"}

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)

    def loss(self, output: Tensor | tuple[Tensor, ...], batch: Batch, label_smoothing: float) -> Tensor:
        """Of logits [B,K,H,W]; of several the sum, each with weight 1: main and auxiliary heads."""
        target: Tensor = batch["target"]
        check_mask(target, self.classes, batch["key"])
        pixels = (target != IGNORED).sum().clamp_min(1)

        def of(logits: Tensor) -> Tensor:
            total = F.cross_entropy(logits.float(), target, ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing)
            return total / pixels

        return torch.stack([of(logits) for logits in _every(output)]).sum()

    def metrics(self, output: Tensor | tuple[Tensor, ...], batch: Batch) -> dict[str, Tensor]:
        """Of the first head: pixels in `both` and in `either` of the masks, class by class."""
        both, either = overlaps(_every(output)[0].argmax(1), batch["target"], len(self.classes))
        found = {"right": both.sum(1), "pixels": (batch["target"] != IGNORED).flatten(1).sum(1)}
        for k in range(len(self.classes)):
            found |= {f"both_{k}": both[:, k], f"either_{k}": either[:, k]}
        return found

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """`loss`; `miou`, the mean over the classes that occur, in truth or prediction, of
        intersection over union, both summed over all images; `pixel_accuracy`.
        """
        numbers = range(len(self.classes))
        shares = [means[f"both_{k}"] / means[f"either_{k}"] for k in numbers if means[f"either_{k}"]]
        accuracy = means["right"] / means["pixels"] if means["pixels"] else 0.0
        return {"loss": means["loss"], "miou": sum(shares) / max(1, len(shares)), "pixel_accuracy": accuracy}


class Landmarks(Task):
    """Mean squared error of heatmaps; normalised mean error of points.

    Args:
        points: says the unit of errors.
    """

    monitors: Monitors = {"nme": "min", "loss": "min"}

    def __init__(self, points: Points) -> None:
        self.points = points

    def loss(self, output: Tensor, batch: Batch, label_smoothing: float) -> Tensor:
        """Of heatmaps [B,P,h,h]; points outside of the image have weight 0."""
        if label_smoothing:
            raise ValueError(f"label_smoothing {label_smoothing:g}: points have no classes, leave it 0")
        truth, seen = encode(batch["target"], batch["clean"].shape[-1], output.shape[-1])
        return ((output.float() - truth).square() * seen[..., None, None]).mean()

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """`error` of each image and whether it is `judged`."""
        size = batch["clean"].shape[-1]
        error, judged = point_errors(decode(output.detach().float(), size), batch["target"], size, self.points.unit)
        return {"error": error, "judged": judged}

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """`loss`; `nme`, the mean error over the images that have one."""
        return {"loss": means["loss"], "nme": means["error"] / means["judged"] if means["judged"] else 0.0}


def _every(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else output


@dataclasses.dataclass(frozen=True)
class SegmentationConfig:
    """Classes of pixels.

    Attributes:
        name: segmentation.
        view: image that the network sees: clean | degraded.
    """

    name: str = "segmentation"
    view: View = "degraded"


@dataclasses.dataclass(frozen=True)
class LandmarksConfig:
    """Points by heatmaps.

    Attributes:
        name: landmarks.
        view: image that the network sees: clean | degraded.
    """

    name: str = "landmarks"
    view: View = "degraded"


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """What the network stands on.

    Attributes:
        arch: ResNet20 | ResNet56 | ResNet110 | ResNet18_CIFAR | ResNet50_CIFAR or a timm name.
        init_from: classifier that the backbone starts from: checkpoint file (also timm's or
            mm-classification's), run folder or run name; its head is left out.
        pretrained: start from timm's published weights.
        mean, std: input normalisation, range [0,1] (null: that of the weights it starts from, else
            of the training images).
    """

    arch: str = "resnet18"
    init_from: str | None = None
    pretrained: bool = False
    mean: list[Share] | None = None
    std: list[Positive] | None = None


@dataclasses.dataclass(frozen=True)
class BiSeNetConfig(BackboneConfig):
    """BiSeNetV1; further keys: see BackboneConfig.

    Attributes:
        width: channels of the context path, on which all others depend (128 goes with ResNet-18,
            512 with ResNet-50).
        stride: of the spatial path and of the logits, a power of 2 (published: 8).
    """

    width: Count = 128
    stride: Count = 8


@dataclasses.dataclass(frozen=True)
class HeatmapConfig(BackboneConfig):
    """Heatmaps on a backbone; further keys: see BackboneConfig.

    Attributes:
        deconvolutions: on the last map, each doubles its side (published: 3 on a ResNet); 0: all
            maps side by side, at the finest (published for HRNet).
        width: channels of the deconvolutions (published: 256).
        flip_test: in validation and test the mean of the heatmaps of image and mirror image.
    """

    deconvolutions: Whole = 3
    width: Count = 256
    flip_test: bool = True


class Dense(Method):
    """L = loss of the task."""

    def __init__(self, student: DenseNetwork, task: Task, view: View, context: Context) -> None:
        super().__init__()
        self.student, self.task, self.view, self.monitors = student, task, view, task.monitors
        self.context = context

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        output = self.student(batch[self.view])
        return {"loss": self.task.loss(output, batch, 0.0), **self.task.metrics(output, batch)}

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        return self.task.summary(means)

    def export(self, parts: Mapping[str, nn.Module]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        student, context = parts["student"], self.context
        assert isinstance(student, DenseNetwork)
        facts = {"degradations": context.degradations, "initial_weights": context.init_digest}
        return student.state_dict(), {**student.describe(), "image_size": context.source.image_size, **facts}


def build_segmentation(model: BiSeNetConfig, config: SegmentationConfig, context: Context) -> Method:
    """The method that the configuration describes.

    Raises:
        ValueError: images without masks, or masks without names of classes.
    """
    source, target = context.source, context.source.target
    if not isinstance(target, Mask) or not target.classes:
        raise ValueError(
            f"method segmentation learns masks, and {source.name} has none with named classes: take DigitScenes, CelebAMaskHQ or "
            "a data set of your own with a target Mask (docs/extending/target.md)"
        )
    backbone = build_backbone(model.arch, model.pretrained)
    student = BiSeNet(backbone, model.arch, target.classes, source.rgb_mean, source.rgb_std, model.width, model.stride)
    return Dense(student, Segmentation(target.classes), config.view, _started(student, model, context))


def build_landmarks(model: HeatmapConfig, config: LandmarksConfig, context: Context) -> Method:
    """The method that the configuration describes.

    Raises:
        ValueError: images without points, or points without names.
    """
    source, target = context.source, context.source.target
    if not isinstance(target, Points) or not target.names:
        raise ValueError(
            f"method landmarks learns points, and {source.name} has none with names: take DigitPoints, WFLW or a data set of your "
            "own with a target Points (docs/extending/target.md)"
        )
    backbone = build_backbone(model.arch, model.pretrained)
    student = LandmarkNetwork(
        backbone, model.arch, target.names, source.rgb_mean, source.rgb_std,
        model.deconvolutions, model.width, model.flip_test, target.swap,
    )  # fmt: skip
    return Dense(student, Landmarks(target), config.view, _started(student, model, context))


def _started(student: DenseNetwork, model: BackboneConfig, context: Context) -> Context:
    """Give the student the weights and the normalisation that it starts from; the context with the
    digest of its checkpoint.
    """
    if model.pretrained:
        import timm  # here, since it takes seconds

        published = timm.get_pretrained_cfg(model.arch)
        assert published is not None
        student.set_normalisation(published.mean, published.std)
    if model.init_from:
        path = context.find_checkpoint(model.init_from)
        student.set_normalisation(**initialise_backbone(student.backbone, model.arch, path))
        context = dataclasses.replace(context, init_digest=file_digest(path))
    student.set_normalisation(model.mean, model.std)
    return context
