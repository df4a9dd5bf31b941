"""Weights of a classifier's network, by our names, those of wrappers, or of other programs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undegrade.models.classification import mmcls, option_a
from undegrade.models.classification.classifier import KIND, Classifier, build_classifier, describe, final_layers
from undegrade.models.classification.resnet import ARCHS
from undegrade.utils.checkpoint import split_entry
from undegrade.utils.choices import check_choice
from undegrade.utils.timm_folders import timm_config

log = logging.getLogger(__name__)
# What wrappers put before every name: data parallel, this module's Classifier, torch.compile,
# Lightning modules.
_WRAPPER_PREFIXES = ("module.", "network.", "_orig_mod.", "model.", "net.")


def network_of(path: Path, arch: str | None) -> str | None:
    """Name of the network that a file without description holds: `arch` if it is given, else the
    one of timm with which the file's name begins (`resnet18.a1_in1k.safetensors`,
    `resnet50_a1_0-14fe96d1.pth`); None where that says nothing.
    """
    if arch is not None:
        return arch
    stem = split_entry(path)[0].stem
    words = stem.partition("-")[0].split("_")
    for name in (stem, *("_".join(words[:count]) for count in range(len(words), 0, -1))):
        if timm_config(name) is not None:
            log.info("checkpoint %s: by its name it holds timm's %s (arch says otherwise)", path, name)
            return name
    return None


def unnamed(path: Path) -> ValueError:
    """The error of a file of which nothing says what network it holds."""
    return ValueError(
        f"checkpoint {path} does not say what network it holds: name it (--arch <timm name>, or `arch` of an ensemble's member), "
        "or start a run from it (model.arch and model.init_from in a training config), the run's own checkpoint will say it"
    )


def load_network_state(classifier: Classifier, state_dict: Mapping[str, Tensor]) -> None:
    """Load weights into `classifier.network`, strictly: every entry, and none more.

    A prefix of wrappers before all names ("module.", "network.", "_orig_mod.") is taken off, and
    the names of mm-classification are translated. Only BatchNorm's `num_batches_tracked` may be
    absent (files older than PyTorch 0.4.1).

    Raises:
        ValueError: weights of another architecture (names the first differing entries) or number of
            classes (found, expected); the classifier is then unchanged.
    """
    state = _by_our_names(state_dict)
    own = classifier.network.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    misshapen = [name for name in own if name in state and own[name].shape != state[name].shape]
    head = tuple(f"{path}." for path in final_layers(classifier.network))
    if not missing and not unexpected and misshapen and all(name.startswith(head) for name in misshapen):
        raise ValueError(
            f"the weights are for {len(state[misshapen[0]])} classes, {classifier.arch} was built for "
            f"{classifier.num_classes}: take weights trained on this data set, or, where it holds some of their classes only, "
            "name all of them in their order (data.classes)"
        )
    if missing or unexpected or misshapen:
        shapes = [f"{name} {list(state[name].shape)} instead of {list(own[name].shape)}" for name in misshapen]
        parts = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        found = "; ".join(f"{len(names)} {what}: {_first_few(names)}" for what, names in parts if names)
        raise ValueError(f"the weights are not those of {classifier.arch} but of another architecture ({found})")
    classifier.network.load_state_dict(dict(state))


def outputs_of(arch: str, state_dict: Mapping[str, Tensor]) -> int | None:
    """Number of classes that weights of a network of timm are for; None where the network is not
    timm's, or does not say which layer is the last.
    """
    if arch in ARCHS:
        return None
    with torch.device("meta"):
        network = build_classifier(arch, 2, (0.0,) * 3, (1.0,) * 3).network
    state = _by_our_names(state_dict)
    return next((len(state[f"{path}.weight"]) for path in final_layers(network) if f"{path}.weight" in state), None)


def _by_our_names(state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    state = without_wrappers(state_dict)
    program = foreign_format(state)
    return state if program is None else program.convert(state)


def foreign_format(state: Mapping[str, Tensor]) -> Any:
    """The module that converts weights with names of another program; None for names as they
    are.
    """
    return next((module for module in (mmcls, option_a) if module.matches(state)), None)


def without_wrappers(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The weights without the prefix that data parallelism, `Classifier` or torch.compile puts
    before every name.
    """
    for prefix in _WRAPPER_PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            return without_wrappers({name.removeprefix(prefix): tensor for name, tensor in state.items()})
    return state


def _first_few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def from_description(meta: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> Classifier:
    """Classifier of the description `meta` (see `describe`) with the weights `state_dict` of its
    network.

    Raises:
        ValueError: an entry of `meta` is missing, another kind of model, or what
            `load_network_state` raises.
    """
    missing = [key for key in ("kind", "arch", "num_classes", "mean", "std") if key not in meta]
    if missing:
        raise ValueError(
            f"the description of the weights lacks {', '.join(missing)} (a file of another program has none): "
            "name them yourself with build_classifier, then load_network_state"
        )
    check_choice(meta["kind"], [KIND], "kind of model")
    classifier = build_classifier(meta["arch"], meta["num_classes"], meta["mean"], meta["std"])
    load_network_state(classifier, state_dict)
    classifier.about = {key: value for key, value in meta.items() if key not in describe(classifier)}
    return classifier
