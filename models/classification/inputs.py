"""How a network wants its photographs: side of the images, shorter side that they are cut from, and
interpolation.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from undegrade.models.classification.resnet import ARCHS
from undegrade.models.classification.weights import foreign_format, without_wrappers
from undegrade.utils.checkpoint import load_checkpoint, read_description
from undegrade.utils.data.sources.images import INTERPOLATIONS

log = logging.getLogger(__name__)


INPUT_KEYS = "data.image_size, data.resize and data.interpolation change it"


class Inputs(NamedTuple):
    """What goes into `SourceConfig` under the same names."""

    image_size: int
    resize: int | None  # None: the whole shorter side, `center_crop`
    interpolation: str | None

    def __str__(self) -> str:
        return f"{self.image_size}" + (f" of {self.resize}, {self.interpolation}" if self.resize else "")


def timm_inputs(arch: str) -> Inputs | None:
    """Those with which timm's weights `arch` are evaluated; None for networks that are not timm's,
    that have none, or whose images are no squares.
    """
    if arch in ARCHS:
        return None
    import timm  # here, since it takes seconds and the CIFAR networks do without

    published = timm.get_pretrained_cfg(arch) if timm.is_model(arch) else None
    if published is None or published.input_size[1] != published.input_size[2]:
        return None
    size, share = published.input_size[1], published.crop_pct or 0.875
    interpolation = published.interpolation if published.interpolation in INTERPOLATIONS else "bilinear"
    if (published.crop_mode, published.interpolation) != ("center", interpolation):
        log.warning(
            "timm brings whole images for %s to a square (%s, %s); here their centre is cut (%s)",
            arch, published.crop_mode, published.interpolation, interpolation,
        )  # fmt: skip
    return Inputs(size, math.floor(size / share), interpolation)


def checkpoint_inputs(path: Path, arch: str | None) -> Inputs | None:
    """Those of a checkpoint: as it describes the images that it was trained on, else of timm's
    weights `arch`; None where neither is known, and for files of mm-classification.
    """
    described = read_description(path)
    if described:
        return described_inputs(described)
    inputs = None if arch is None else timm_inputs(arch)
    if inputs is None or foreign_format(without_wrappers(load_checkpoint(path)[0])) is not None:
        return None
    return inputs


def described_inputs(description: Mapping[str, Any]) -> Inputs | None:
    """Those of a checkpoint's description; None where it does not have them."""
    if "image_size" not in description:
        return None
    resize = description.get("resize")
    interpolation = None if resize is None else description.get("interpolation", "bilinear")
    return Inputs(int(description["image_size"]), resize, interpolation)
