"""Classifiers as timm saves them, for the Hugging Face Hub or a folder: weights beside a
config.json, which says what they are.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from undegrade.utils.data.sources.class_names import timm_classes
from undegrade.utils.data.sources.images import INTERPOLATIONS
from undegrade.utils.files import read_object

log = logging.getLogger(__name__)

CONFIG = "config.json"
OWN = "undegrade"  # key of the config.json of networks that timm does not have
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there


def saved_weights(folder: Path) -> Path | None:
    """The weights of a classifier in a folder that timm or `save_pretrained` wrote; None for other
    folders.
    """
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    return found if found is not None and _config_of(found, ("architecture", OWN)) is not None else None


def timm_description(weights: Path) -> dict[str, Any]:
    """What the config.json beside weights says, in the words of our checkpoints: kind, arch,
    num_classes, mean, std, and, where they are known, classes, image_size, resize, interpolation;
    `{}` where there is none of timm.

    Classes without names are those of ImageNet, where their number is that of 1,000 or of another
    of its lists.

    Raises:
        ValueError: it is damaged, or says that the network was built with arguments of its own.
    """
    config = _config_of(weights)
    if config is None:
        return {}
    published = config.get("pretrained_cfg") or config  # timm before 0.9 wrote all of it in one
    arch, count = config["architecture"], config.get("num_classes", published.get("num_classes"))
    mean, std = (list(published.get(key) or ()) for key in ("mean", "std"))
    names = config.get("label_names") or config.get("labels") or published.get("label_names")
    if isinstance(names, dict) and set(names) == {str(number) for number in range(len(names))}:
        names = [names[str(number)] for number in range(len(names))]
    if not (isinstance(arch, str) and isinstance(count, int) and len(mean) == len(std) == 3):
        raise ValueError(
            f"{weights.with_name(CONFIG)} does not say what the network is (architecture, num_classes, and mean and std of "
            "pretrained_cfg): take another copy of it"
        )
    own = {key: value for key, value in (config.get("model_args") or {}).items() if (key, value) not in _usual(count)}
    if own:
        raise ValueError(
            f"{weights.with_name(CONFIG)}: the network was built with {own}, which is not done here: build it with "
            "timm.create_model, and give it to undegrade.wrap"
        )
    if not isinstance(names, list) or len(names) != count:
        names = timm_classes(count)
    found: dict[str, Any] = {"kind": "classifier", "arch": arch, "num_classes": count, "mean": mean, "std": std}
    found |= {**timm_frame(arch, published), **({"tag": tag} if (tag := published.get("tag")) else {})}
    return found if names is None else {**found, "classes": list(names)}


def _usual(count: int) -> list[tuple[str, Any]]:
    """Arguments that timm names though they change nothing; of kinds of pooling those that differ
    in their weights, so that the wrong one is noticed.
    """
    return [("in_chans", 3), ("num_classes", count), *(("global_pool", kind) for kind in ("avg", "token", "map"))]


def timm_config(name: str) -> Any:
    """timm's `PretrainedCfg` of a network of that name, of which the tag may be left out; None
    where timm has no such network or tag.
    """
    import timm  # here, since it takes seconds

    try:
        return timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    except RuntimeError:  # a tag that it does not know
        return None


def timm_frame(arch: str, published: Mapping[str, Any]) -> dict[str, Any]:
    """image_size, resize and interpolation with which timm evaluates weights (`pretrained_cfg`);
    `{}` where that says no size, or images that are no squares.
    """
    sides = list(published.get("input_size") or ())[1:]
    if len(sides) != 2 or sides[0] != sides[1]:
        return {}
    asked, mode = published.get("interpolation"), published.get("crop_mode") or "center"
    interpolation = asked if asked in INTERPOLATIONS else "bilinear"
    if (mode, asked or interpolation) != ("center", interpolation):
        log.warning(
            "timm brings whole images for %s to a square (%s, %s); here their centre is cut (%s)", arch, mode, asked, interpolation
        )
    share = published.get("crop_pct") or 0.875
    return {"image_size": sides[0], "resize": math.floor(sides[0] / share), "interpolation": interpolation}


def _config_of(weights: Path, keys: Sequence[str] = ("architecture",)) -> dict[str, Any] | None:
    """The config.json beside weights, if it has one of these keys; usually, if it is timm's."""
    path = weights.with_name(CONFIG)
    if weights.name not in WEIGHTS or not path.is_file():
        return None
    config = read_object(path, "take another copy of it")
    return config if any(key in config for key in keys) else None
