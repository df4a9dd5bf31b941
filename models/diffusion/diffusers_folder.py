"""Folders that diffusers writes: a network is its configuration and its weights, a pipeline is a
folder of networks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from undegrade.utils.checkpoint import load_checkpoint

CONFIG = "config.json"
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
# attention in folders that diffusers wrote before 2023
_OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def network_folder(reference: str | Path, part: str = "") -> Path | None:
    """The folder of a network: `reference` itself, or `part` of it where it is a pipeline; None if
    there is none.
    """
    return next((f for f in (Path(reference), Path(reference) / part) if (f / CONFIG).is_file()), None)


def weights_file(folder: Path) -> Path:
    """Where the weights of a network folder are, the safe format first (which need not exist)."""
    return next((folder / name for name in _WEIGHTS if (folder / name).is_file()), folder / _WEIGHTS[0])


def read_network(folder: Path, classes: Sequence[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(configuration, weights by their present names) of a network that diffusers wrote.

    Args:
        folder: holds `config.json` and the weights.
        classes: of diffusers; the network must be of one of them.

    Raises:
        FileNotFoundError: no configuration, no weights.
        ValueError: another class; a file that cannot be read.
    """
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"folder {folder} holds no {CONFIG}: give a folder that diffusers wrote, or a checkpoint file")
    config = read_json(folder / CONFIG)
    if config.get("_class_name") not in classes:
        raise ValueError(f"folder {folder} holds a {config.get('_class_name')}, a {' or '.join(classes)} is needed here")
    state, _ = load_checkpoint(weights_file(folder), kind="diffusion")
    for old, new in _OLD_NAMES.items():
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    return config, state


def read_json(path: Path) -> dict[str, Any]:
    """Names and values of a JSON file (ValueError: it holds something else)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, names and values are needed")
    return content


def without_private(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without what diffusers notes about itself."""
    return {key: value for key, value in config.items() if not key.startswith("_")}
