"""How a network wants its photographs: side of the images, shorter side that they are cut from, and
interpolation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from undegrade.models.classification.resnet import ARCHS
from undegrade.models.classification.weights import foreign_format, network_of, without_wrappers
from undegrade.utils.checkpoint import load_checkpoint, read_description
from undegrade.utils.timm_folders import timm_config, timm_frame

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
    published = timm_config(arch)
    return None if published is None else described_inputs(timm_frame(arch, published.to_dict()))


def checkpoint_inputs(path: Path, arch: str | None) -> Inputs | None:
    """Those of a checkpoint: as it describes the images that it was trained on, else of timm's
    weights `arch`; None where neither is known, and for files of mm-classification.
    """
    described = read_description(path)
    if described:
        return described_inputs(described)
    arch = network_of(path, arch)
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
