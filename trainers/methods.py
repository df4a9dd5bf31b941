"""Methods by name. A row says all that the training scripts need to know of a method; whoever has
another one adds a row (docs/extending/method.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from undegrade.trainers.autoencoder import AutoencoderConfig, AutoencodingConfig, build_autoencoding
from undegrade.trainers.classification import ClassifierConfig
from undegrade.trainers.consistency import ConsistencyConfig, ConsistentDenoiserConfig, build_consistency
from undegrade.trainers.denoising import DenoiserConfig, DenoisingConfig, build_denoising
from undegrade.trainers.dense import (
    BiSeNetConfig,
    HeatmapConfig,
    LandmarksConfig,
    SegmentationConfig,
    build_landmarks,
    build_segmentation,
)
from undegrade.trainers.distillation import DistillationConfig, build_distillation
from undegrade.trainers.editing import EditingConfig, EditorConfig, build_editing
from undegrade.trainers.editor_consistency import DistilledEditorConfig, EditorConsistencyConfig, build_editor_consistency
from undegrade.trainers.method import Context, Method
from undegrade.trainers.repfusion import RepFusionConfig, build_repfusion
from undegrade.trainers.restoration import RestorationConfig, RestorerConfig, build_restoration
from undegrade.trainers.supervised import SupervisedConfig, build_supervised
from undegrade.utils.registry import Registry


@dataclasses.dataclass(frozen=True)
class MethodKind:
    """A row of `METHODS`.

    Attributes:
        model: dataclass of the section `model`: the network that is trained.
        method: dataclass of the section `method`; has the key `name`.
        build: makes the method from both sections and the context of the run.
    """

    model: type
    method: type
    build: Callable[[Any, Any, Context], Method]


METHODS: Registry[MethodKind] = Registry("method", "undegrade.methods")
METHODS.add("supervised", MethodKind(ClassifierConfig, SupervisedConfig, build_supervised))
METHODS.add("distillation", MethodKind(ClassifierConfig, DistillationConfig, build_distillation))
METHODS.add("denoising", MethodKind(DenoiserConfig, DenoisingConfig, build_denoising))
METHODS.add("consistency", MethodKind(ConsistentDenoiserConfig, ConsistencyConfig, build_consistency))
METHODS.add("autoencoding", MethodKind(AutoencoderConfig, AutoencodingConfig, build_autoencoding))
METHODS.add("editing", MethodKind(EditorConfig, EditingConfig, build_editing))
METHODS.add("editor_consistency", MethodKind(DistilledEditorConfig, EditorConsistencyConfig, build_editor_consistency))
METHODS.add("segmentation", MethodKind(BiSeNetConfig, SegmentationConfig, build_segmentation))
METHODS.add("landmarks", MethodKind(HeatmapConfig, LandmarksConfig, build_landmarks))
METHODS.add("restoration", MethodKind(RestorerConfig, RestorationConfig, build_restoration))
METHODS.add("repfusion", MethodKind(ClassifierConfig, RepFusionConfig, build_repfusion))
