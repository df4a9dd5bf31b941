"""RepFusion: a network learns the features of a frozen diffusion model, at time steps that may be
chosen by reinforcement learning (Yang & Wang, ICCV 2023, "Diffusion model as representation
learner"). Teachers may be classifiers, too, for comparison.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import field

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from undegrade.models.classification.classifier import Classifier, as_map, final_layers
from undegrade.trainers.classification import ClassifierConfig, ClassifierMethod, View, build_student
from undegrade.trainers.feature_teachers import ClassifierTeacher, FeatureTeacher, FeatureTeacherConfig, open_teacher
from undegrade.trainers.losses import (
    attention_transfer,
    channel_cosine_distance,
    info_nce,
    kd_loss,
    l1,
    l2,
    l2_normalised,
    relational,
)  # fmt: skip
from undegrade.trainers.method import Context, Method
from undegrade.trainers.time_steps import Policy, TimeStepConfig, draw_steps, entropy_weight, gumbel_noise, policy_losses
from undegrade.utils.choices import check_choice
from undegrade.utils.data.batches import Batch
from undegrade.utils.data.label_budget import label_count
from undegrade.utils.data.pixels import unit_to_signed
from undegrade.utils.figures import PALETTE, new_figure, tidy
from undegrade.utils.ranges import Count, NotNegative, Positive

_PROJECTED = {"l2": l2, "l1": l1, "l2_normalised": l2_normalised, "cosine": channel_cosine_distance}
_OF_MAPS, _OF_VECTORS = {"attention": attention_transfer}, {"rkd": relational, "info_nce": info_nce}
LOSSES = (*_PROJECTED, *_OF_MAPS, *_OF_VECTORS, "soft_targets")


@dataclasses.dataclass(frozen=True)
class RepFusionConfig:
    """Distillation of features.

    Attributes:
        name: repfusion.
        teacher: see `FeatureTeacherConfig`.
        layers: feature of the student for each layer of the teacher; `last` is its last map.
        losses: weights by name, summed: l2, l1, l2_normalised, cosine (of the student's features
            after a linear map to the teacher's channels), attention, rkd, info_nce, and, with a
            classifier as teacher, soft_targets (temperature 4).
        pooled: compare means over the places instead of maps ("hint" against "dense"); attention is
            of maps, rkd and info_nce are of means in any case.
        resize: bring maps of the student to the size of the teacher's, bilinearly.
        time: see `trainers.time_steps.TimeStepConfig`.
        head_width: of the hidden layers of the classifier that rewards a policy (null: the
            teacher's channels).
        view: image that both see: clean | degraded.
    """

    name: str = "repfusion"
    teacher: FeatureTeacherConfig = field(default_factory=FeatureTeacherConfig)
    layers: list[str] = field(default_factory=lambda: ["last"])
    losses: dict[str, NotNegative] = field(default_factory=lambda: {"l2": 1.0})
    pooled: bool = True
    resize: bool = False
    time: TimeStepConfig = field(default_factory=TimeStepConfig)
    head_width: Count | None = None
    temperature: Positive = 4.0
    view: View = "clean"


class RepFusion(ClassifierMethod):
    """L = sum_k w_k d_k(p(f_S(x)), f_T(x, t)), mean over the layers; with a policy pi also
    CE(g(f_T(x, t)), y) for the head g that rewards it, and REINFORCE with r = -CE, less its
    entropy.

    The student's final layer is not trained and stays as it was initialised, unless there are soft
    targets.

    Args:
        student: a classifier.
        teacher: frozen.
        config: section `method`.
        context: of the run.
        steps: time steps that may be chosen.

    Raises:
        ValueError: a feature that the student does not have; maps of different sizes without
            `resize`.
    """

    monitors = {"distance": "min", "loss": "min"}
    student: Classifier

    def __init__(
        self, student: Classifier, teacher: FeatureTeacher, config: RepFusionConfig, context: Context, steps: list[int]
    ) -> None:
        super().__init__(student, context)
        if not config.losses.get("soft_targets"):
            self.description |= {"untrained": "the final layer"}
            for path in final_layers(student.network):
                student.network.get_submodule(path).requires_grad_(False)
        self.teacher, self.config, self.steps = teacher, config, steps
        self.layers = [student.feature_names[-2] if layer == "last" else layer for layer in config.layers]  # `pooled` comes last
        self.losses = {name: weight for name, weight in config.losses.items() if weight}
        size = context.source.image_size
        channels = self._compared(student, size)
        if set(self.losses) & set(_PROJECTED) or "info_nce" in self.losses:
            pairs = zip(channels, teacher.shapes, strict=True)
            self.projector = nn.ModuleList(nn.Conv2d(mine, theirs[0], 1) for mine, theirs in pairs)
            self.parts = ("student", "projector")
        self.labelled: set[str] | None = None
        if config.time.strategy == "policy":
            width, classes = sum(shape[0] for shape in teacher.shapes), len(context.source.classes)
            hidden = config.head_width or width
            layers = (nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes))
            self.head, self.policy = nn.Sequential(*layers), Policy(size, len(steps))
            self.parts = (*self.parts, "head", "policy")
            if config.time.labels is not None:
                count = label_count(config.time.labels, len(context.source), classes)
                self.labelled = set(context.source.limited(count).keys)
        self.epoch, self.chosen = -1.0, np.zeros(len(steps), dtype=np.int64)  # how often each time step was, in this epoch

    def _compared(self, student: Classifier, size: int) -> list[int]:
        """Channels of the student's maps; checks that the maps can be compared."""
        with torch.no_grad():
            own = [m.shape[1:] for m in self._features(student.eval(), torch.zeros(1, 3, size, size))[1]]
        for name, mine, other in zip(self.layers, own, self.teacher.shapes, strict=True):
            places = [f"{shape[1]} x {shape[2]}" for shape in (mine, other)]
            of_maps = "attention" in self.losses or (not self.config.pooled and set(self.losses) & set(_PROJECTED))
            if of_maps and places[0] != places[1] and not self.config.resize:
                raise ValueError(
                    f"the student's feature {name} has {places[0]} places, the teacher's {places[1]}: set method.resize true, "
                    "method.pooled true, or take other layers"
                )
        return [shape[0] for shape in own]

    def _features(self, student: Classifier, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        logits, features = student(images, self.layers)
        return logits, [as_map(student, name, features[name]) for name in self.layers]

    def prepare(self, batch: Batch, *stream: object) -> Batch:
        time, keys, epoch = self.config.time, batch["key"], float(str(stream[1]))
        if epoch != self.epoch:
            self.epoch, self.chosen = epoch, np.zeros_like(self.chosen)
        batch = {**batch, "epoch": epoch}
        if time.strategy == "policy":
            return {**batch, "gumbel": gumbel_noise(keys, len(self.steps), *stream[:2]).to(batch["label"].device)}
        t, layer = draw_steps(time, keys, epoch, *stream)
        return {**batch, "t": t.to(batch["label"].device), "layer": layer}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images, time = batch[self.config.view], self.config.time
        out: dict[str, Tensor] = {}
        layer = batch.get("layer")
        if time.strategy == "policy":
            logits = self.policy(unit_to_signed(images))
            actions = (logits.detach() + batch.get("gumbel", 0)).argmax(1)  # the most probable one in validation
            t = torch.tensor(self.steps, device=actions.device)[actions]
            if self.policy.training:
                self.chosen += np.bincount(actions.cpu().numpy(), minlength=len(self.steps))
            out["time_step"] = t.float()
        elif "t" in batch:
            t = batch["t"]
        else:  # of validation images by their keys, so that epochs compare
            t = draw_steps(time, batch["key"], time.end_epoch, "validation")[0].to(batch["label"].device)
        targets = self.teacher(images, t, batch)
        own_logits, features = self._features(self.student, images)
        loss = self._distance(features, targets, layer) + 0 * own_logits.sum()  # of several processes, all layers need a gradient
        if "soft_targets" in self.losses:
            assert isinstance(self.teacher, ClassifierTeacher)
            loss = loss + self.losses["soft_targets"] * kd_loss(own_logits, self.teacher.logits, self.config.temperature)
        out["distance"] = loss.detach()
        if time.strategy == "policy":
            loss = loss + self._policy_loss(logits, actions, targets, batch, out)
        return {"loss": loss, **out}

    def _distance(self, features: list[Tensor], targets: list[Tensor], layer: int | None) -> Tensor:
        total = features[0].new_zeros(())
        pairs = list(enumerate(zip(features, targets, strict=True)))
        for index, (mine, other) in pairs if layer is None else pairs[layer : layer + 1]:
            means = mine.mean((2, 3), keepdim=True), other.mean((2, 3), keepdim=True)
            maps = (mine, other)
            if self.config.resize and mine.shape[2:] != other.shape[2:]:
                maps = F.interpolate(mine, other.shape[2:], mode="bilinear", align_corners=False), other
            for name, weight in self.losses.items():
                if name in _PROJECTED:
                    source, target = means if self.config.pooled else maps
                    total = total + weight * _PROJECTED[name](self.projector[index](source), target)
                elif name in _OF_MAPS:
                    total = total + weight * _OF_MAPS[name](*maps)
                elif name == "info_nce":
                    total = total + weight * info_nce(self.projector[index](means[0]).flatten(1), means[1].flatten(1))
                elif name == "rkd":
                    total = total + weight * relational(means[0].flatten(1), means[1].flatten(1))
        if layer is None:
            return total / len(pairs)
        return total + 0 * sum(p.sum() for p in self.projector.parameters()) if "projector" in self.parts else total

    def _policy_loss(self, logits: Tensor, actions: Tensor, targets: list[Tensor], batch: Batch, out: dict[str, Tensor]) -> Tensor:
        seen = torch.cat([m.mean((2, 3)) for m in targets], 1).detach()
        rewarded = None
        if self.labelled is not None:
            rewarded = torch.tensor([key in self.labelled for key in batch["key"]], device=logits.device)
        errors = F.cross_entropy(self.head(seen), batch["label"], reduction="none")
        known = errors if rewarded is None else errors[rewarded]
        head = known.mean() if len(known) else 0 * errors.sum()
        reinforce, entropy = policy_losses(logits, actions, -errors.detach(), self.config.time.baseline, rewarded)
        out |= {"head_cross_entropy": head.detach(), "policy_entropy": entropy.detach()}
        return head + reinforce - entropy_weight(self.config.time, batch.get("epoch", 0.0)) * entropy

    def picture(self, parts: Mapping[str, nn.Module]) -> Figure | None:
        """How often a policy chose each time step in the last epoch; None for other strategies."""
        if self.config.time.strategy != "policy":
            return None
        figure = new_figure(6, 3)
        axes = figure.subplots()
        axes.bar(self.steps, 100 * self.chosen / max(1, self.chosen.sum()), width=max(1, self.steps[-1] / 60), color=PALETTE[0])
        axes.set(
            xlabel="time step", ylabel="% of the images", title=f"Time steps that the policy chose in epoch {self.epoch + 1:.0f}"
        )
        tidy(axes)
        return figure


def build_repfusion(model: ClassifierConfig, config: RepFusionConfig, context: Context) -> Method:
    """The method that the configuration describes, its teacher loaded.

    Raises:
        FileNotFoundError, ValueError: a teacher that is not there, or does not fit the images; an
            unknown loss; layers that are not of one number; a policy without labels.
    """
    for name in config.losses:
        check_choice(name, LOSSES, "loss", "section 'method.losses'")
    if not any(config.losses.values()):
        raise ValueError(f"method.losses has no weight above 0: give one of {', '.join(LOSSES)}, such as {{l2: 1}}")
    if len(config.layers) != len(config.teacher.layers):
        raise ValueError(f"method.layers {config.layers} and method.teacher.layers {config.teacher.layers}: one for one")
    teacher, steps = open_teacher(config.teacher, config.time, config.pooled, config.view, context)
    if "soft_targets" in config.losses and not isinstance(teacher, ClassifierTeacher):
        raise ValueError("method.losses.soft_targets: a diffusion model has no classes, take a classifier as teacher")
    if config.time.strategy == "policy" and len(context.source.classes) < 2:
        raise ValueError("a policy is rewarded by labels, and these images have none: choose another method.time.strategy")
    student, context = build_student(model, context, fewest=0 if config.losses.get("soft_targets") else 2)
    return RepFusion(student, teacher, config, context, steps)
