"""Keys of an adaptation's command line that would change nothing: refused, with what to use."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from undegrade.image_adapt.adapters import ADAPTERS
from undegrade.image_adapt.config import LAYOUTS, ONE_CELL, AdaptConfig, InputConfig
from undegrade.image_adapt.decorruptor import Decorruptor
from undegrade.utils.command_line import check_effect
from undegrade.utils.config import Tree
from undegrade.utils.data.cells import CLEAN
from undegrade.utils.data.perturbations.registry import find_perturbation, options_without_effect
from undegrade.utils.data.sources.registry import source_keys_without_effect
from undegrade.utils.data.sources.released import LABELS

_WRITTEN = ("output", "shard_size", "rounding", "skip_broken", "overwrite", "edits")  # about files of images
_INSTEAD = {"save_dir": "--out", "batch_size": "--chunk", "num_samples": "--frames"}  # of a video
_OF_FILES = ("image_size", "resize", "interpolation", "classes")  # of a data set


def check_keys(config: AdaptConfig, given: Tree) -> None:
    """Raise ValueError where a key has no effect on the adapted images.

    Args:
        config: what is adapted, and how.
        given: the keys of the command line, those that its flags stand for among them.
    """
    check_effect(given, _of_adapter(config) | (_of_data_set(config.input) if config.input.folder is None else _of_folder(config)))


def check_keys_of_video(config: AdaptConfig, given: Tree, classifier: bool) -> None:
    """The same of a video, whose flags are keys of `given`, too; `classifier`: whether one looks at
    it.
    """
    reasons = {key: f"use {flag}" for key, flag in _INSTEAD.items()} | dict.fromkeys(_WRITTEN, "a video is written")
    taken = "" if "{split}" in str(config.model) else "the frames of the video are taken"
    reasons |= {f"input.{key.name}": taken if key.name == "split" else "the frames of the video are taken"
                for key in dataclasses.fields(InputConfig) if key.name != "dataset"}  # fmt: skip
    alone = not issubclass(ADAPTERS[config.adapter], Decorruptor)
    reasons["no_cross_frame"] = f"{config.adapter} does every frame by itself" if alone else ""
    reasons["classifier_size"] = "" if classifier else "it is for --classifier"
    check_effect(given, reasons | _of_adapter(config))


def _of_adapter(config: AdaptConfig) -> dict[str, str]:
    """Of its options."""
    reasons = ADAPTERS[config.adapter].without_effect(getattr(config, config.adapter))
    return {f"{config.adapter}.{key}": reason for key, reason in reasons.items()}


def _of_data_set(given: InputConfig) -> dict[str, str]:
    """Clean images that are corrupted as they are read."""
    if not given.corruptions:
        return {}  # a mistake, which has a message of its own
    names = [cell.corruption for cell in given.cells()]
    reasons = source_keys_without_effect(given, "input") | options_without_effect(names, "input") | _severities(names)
    reasons["input.seed"] = "clean images have nothing that is drawn" if set(names) == {CLEAN} else ""
    return reasons | dict.fromkeys(("input.layout", "input.train"), "it is about the folders of --base_samples, see --split")


def _of_folder(config: AdaptConfig) -> dict[str, str]:
    """Images as they are in a folder; `--train` is what published commands give to every layout."""
    given = config.input
    arrays = (Path(str(given.folder)) / LABELS).is_file()
    pattern, _ = LAYOUTS[given.layout]
    names = [cell.corruption for cell in given.cells() if cell.corruption]
    as_they_are = f"the images are those in {given.folder}, as they are"
    reasons = {**_severities(names), "input.seed": as_they_are, "input.subset": "use --list"}
    if not arrays and given.layout not in ONE_CELL and "{cell.folder}" not in pattern:
        reasons["input.severities"] = f"the layout {given.layout} has a folder for a corruption"
    reasons |= {f"input.{key}": as_they_are for key in _OF_FILES}
    reasons["input.root"] = "" if arrays and CLEAN in given.corruptions else as_they_are
    reasons["input.split"] = "" if "{split}" in f"{config.save_dir}{config.model}" else as_they_are
    return reasons


def _severities(names: list[str]) -> dict[str, str]:
    some = any(find_perturbation(name).by_severity for name in names)
    return {"input.severities": "" if some else f"{', '.join(dict.fromkeys(names)) or 'a folder of images'} has no severities"}
