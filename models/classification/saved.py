"""Folders of a classifier: `model.safetensors`, which says itself what it holds, and `config.json`,
of networks of timm in timm's format, so that timm loads them, too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from undegrade.models.classification.classifier import Classifier, describe
from undegrade.models.classification.resnet import ARCHS
from undegrade.models.classification.weights import from_description
from undegrade.utils.checkpoint import load_checkpoint, save_checkpoint
from undegrade.utils.files import read_object, write_atomic
from undegrade.utils.model_card import USAGE, Card, listed, training_lines
from undegrade.utils.timm_folders import CONFIG, OWN

WEIGHTS = "model.safetensors"
_TIMM_USAGE = """import timm

model = timm.create_model("{timm}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))"""
# of timm's own weights of that name, which these need not be
_OF_OTHERS = ("tag", "license", "origin_url", "paper_ids", "paper_name", "notes", "description", "test_input_size", "test_crop_pct")


def is_timm(classifier: Classifier) -> bool:
    """Whether timm builds the network from its name alone."""
    if classifier.arch in ARCHS:
        return False
    import timm  # here, since it takes seconds and the CIFAR networks do without

    return bool(timm.is_model(classifier.arch))


def check_buildable(classifier: Classifier) -> None:
    """Raise ValueError for a network that no name stands for."""
    if classifier.arch not in ARCHS and not is_timm(classifier):
        raise ValueError(
            f"the network {classifier.arch} has no name by which it could be built again, and code is not saved: take one of timm "
            "by its name or one of this project, or save it as a program (undegrade.exporting.save_program)"
        )


def save_classifier(folder: Path, classifier: Classifier) -> None:
    """Write the two files. Saving what was loaded from such a folder writes the same bytes.

    Raises:
        ValueError: a network that no name stands for; weights that are not finite.
    """
    check_buildable(classifier)
    description = {**classifier.about, **describe(classifier)}
    save_checkpoint(folder / WEIGHTS, classifier.network.state_dict(), description)
    if is_timm(classifier):
        _write_timm_config(folder / CONFIG, classifier, description)
    else:
        own = {"kind": "classifier", "architecture": classifier.arch, "num_classes": classifier.network_classes}
        write_atomic(folder / CONFIG, json.dumps({OWN: own}, indent=2) + "\n")


def classifier_card(classifier: Classifier) -> Card:
    """What the folder says of itself, from the checkpoint's description."""
    about, timm = classifier.about, is_timm(classifier)
    lines = [f"A classifier of images ({classifier.arch}, {classifier.num_classes} classes), saved by undegrade."]
    lines += [text.capitalize() + "." for text in filter(None, ["; ".join(training_lines(about))])]
    if about.get("classes"):
        lines.append(f"Classes: {listed(about['classes'])}.")
    limits = [f"Images are {frame_words(about)}, normalised with mean {classifier.normalisation['mean']} and standard "
              f"deviation {classifier.normalisation['std']}."]  # fmt: skip
    trees = [("The training's configuration", about["configuration"])] if about.get("configuration") else []
    return Card(classifier.arch, lines, _TIMM_USAGE if timm else USAGE, [], limits, trees, "timm" if timm else "undegrade")


def frame_words(description: Mapping[str, Any]) -> str:
    """How images are cut, in words."""
    side, resize = description.get("image_size"), description.get("resize")
    if side is None:
        return "of a size that is not stated"
    cut = f", the centre of a shorter side of {resize} ({description.get('interpolation') or 'bilinear'})" if resize else ""
    return f"squares of {side} pixels{cut}"


def open_classifier(folder: Path) -> Classifier:
    """The classifier of a folder, in eval mode.

    Raises:
        FileNotFoundError, ValueError: no such file, damaged, of another kind, or weights that do
            not say what they are.
    """
    state, description = load_checkpoint(folder / WEIGHTS, kind="classifier")
    try:
        return from_description(description, state).eval()
    except ValueError as error:
        raise ValueError(f"{folder / WEIGHTS}: {error}") from error


def _write_timm_config(path: Path, classifier: Classifier, description: Mapping[str, Any]) -> None:
    from timm.models._hub import save_config_for_hf  # what timm's own save_for_hf writes beside the weights

    published: dict[str, Any] = {**classifier.normalisation, "crop_mode": "center"}
    side, resize = description.get("image_size"), description.get("resize")
    if side is not None:
        published |= {"input_size": [3, side, side], "crop_pct": crop_share(side, resize or side)}
        published |= {"interpolation": description.get("interpolation") or "bilinear"}
    further: dict[str, Any] = {"pretrained_cfg": published}
    if description.get("classes"):
        further["label_names"] = list(description["classes"])
    path.parent.mkdir(parents=True, exist_ok=True)
    save_config_for_hf(classifier.network, str(path), model_config=further)
    config = read_object(path, "save the folder again")
    config.pop("model_args", None)  # the name and the number of classes build it, drop rates are for training
    for key in _OF_OTHERS:
        config["pretrained_cfg"].pop(key, None)
    write_atomic(path, json.dumps(config, indent=2) + "\n")


def crop_share(side: int, resize: int) -> float:
    """timm's `crop_pct`, from which it works out the shorter side: floor(side / crop_pct) is
    `resize`.
    """
    share = side / resize
    return share if math.floor(side / share) == resize else side / (resize + 0.5)
