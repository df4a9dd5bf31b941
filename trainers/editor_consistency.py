"""Consistency distillation of latent editors ("CM"), as in Decorruptor (Oh et al., ECCV 2024)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor, nn

from undegrade.models.diffusion.editor import TEXT, Editor
from undegrade.models.diffusion.editor_loading import describe_editor, editor_state, open_editor, with_scale_embedding
from undegrade.models.diffusion.sampling import clean_image
from undegrade.trainers.consistency import ConsistencyDistillation
from undegrade.trainers.editing import EditorMethod, find_editor, shown_pairs
from undegrade.trainers.method import Context, Method
from undegrade.utils.data.batches import Batch
from undegrade.utils.ranges import Count, NotNegative, Positive, PositiveShare, ShareBelowOne
from undegrade.utils.seeding import torch_generator


@dataclasses.dataclass(frozen=True)
class DistilledEditorConfig:
    """The editor that is distilled.

    Attributes:
        init_from: checkpoint file, run folder or run name of an editor, or the folder of its
            pipeline.
        scale_width: of the embedding of the guidance scales.
    """

    init_from: str = "editor/{dataset}/dpm"
    scale_width: Annotated[int, Interval(ge=4)] = 256


@dataclasses.dataclass(frozen=True)
class EditorConsistencyConfig:
    """Consistency distillation of an editor under guidance.

    Attributes:
        name: editor_consistency.
        text_weights: range from which w_T is drawn for each image.
        image_weights: range from which w_I is drawn.
        steps, top, loss, huber_c, target_decay: see `ConsistencyConfig`.
    """

    name: str = "editor_consistency"
    text_weights: list[NotNegative] = field(default_factory=lambda: [5.0, 15.0])
    image_weights: list[NotNegative] = field(default_factory=lambda: [1.0, 1.5])
    steps: Count = 50
    top: PositiveShare = 1.0
    loss: Literal["pseudo_huber", "l2"] = "pseudo_huber"
    huber_c: Positive = 1e-3
    target_decay: ShareBelowOne = 0.95


class EditorConsistency(EditorMethod, ConsistencyDistillation):
    """Consistency distillation of an editor under three-way guidance, whose weights the student is
    told (Oh et al. 2024; Luo et al. 2023, algorithm 1).

    Args:
        editor: the teacher, frozen.
        config: section `method`.
        scale_width: of the embedding of the guidance scales.
        shown: see `EditorMethod`.
    """

    def __init__(self, editor: Editor, config: EditorConsistencyConfig, scale_width: int, shown: tuple[Tensor, Tensor]) -> None:
        student = with_scale_embedding(editor.unet, scale_width).requires_grad_(True)
        super().__init__(student, editor, config)
        self.frame = self.teacher = editor.eval().requires_grad_(False)
        self.shown = shown

    def encoded(self, batch: Batch) -> tuple[Tensor, Any]:
        x0, condition = self.pair(batch, self.student.training)
        if self.student.training:
            shares = torch.rand(2, len(x0), device=x0.device)
        else:
            shares = torch.stack([torch.rand(2, generator=torch_generator("scales", key)) for key in batch["key"]], 1).to(x0.device)
        ranges = (self.config.text_weights, self.config.image_weights)
        scales = tuple(low + (high - low) * share for (low, high), share in zip(ranges, shares, strict=True))
        return x0, (condition, scales)

    def predict(self, network: Any, x: Tensor, tau: Tensor, condition: Any) -> Tensor:
        image, scales = condition
        text = torch.full((len(x),), TEXT, device=x.device)
        return self.frame.predict(network, x, tau, image, text, scales)

    def teach(self, x: Tensor, tau: Tensor, condition: Any) -> Tensor:
        image, scales = condition
        weights = (scale.reshape(-1, 1, 1, 1) for scale in scales)
        predicted = self.frame.guided(self.teacher.unet, x, tau, image, *weights)
        alpha_bar = self.schedule.alpha_bar.to(x.device)[tau].reshape(-1, 1, 1, 1)
        return clean_image(self.prediction, x, predicted, alpha_bar)

    def export(self, parts: Mapping[str, nn.Module]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        editor = self.edited(parts["student"])
        scales = {"text_weight": self.config.text_weights, "image_weight": self.config.image_weights}
        editor.scheduler |= {"original_inference_steps": self.config.steps, "trained_scales": scales}
        return editor_state(editor), describe_editor(editor)

    def picture(self, parts: Mapping[str, nn.Module]) -> np.ndarray:
        return self.pictured(parts["student"], 4, 7.5, 1.3)


def build_editor_consistency(model: DistilledEditorConfig, config: EditorConsistencyConfig, context: Context) -> Method:
    """The method that distils an editor.

    Raises:
        ValueError: not exactly one degradation; no editor, or one that is distilled already.
    """
    editor = open_editor(find_editor(context, model.init_from))
    if editor.scale_width is not None:
        raise ValueError(f"model.init_from {model.init_from}: this editor is distilled already, name the one that it was made of")
    return EditorConsistency(editor, config, model.scale_width, shown_pairs(context))
