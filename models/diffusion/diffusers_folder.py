"""Folders that diffusers writes: a network is its configuration and its weights, a pipeline is a
folder of networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from undegrade.utils.checkpoint import load_checkpoint
from undegrade.utils.choices import check_choice
from undegrade.utils.files import read_object
from undegrade.utils.weights import how_to_download, located

CONFIG = "config.json"
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin")
# attention in folders that diffusers wrote before 2023
_OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def network_folder(reference: str | Path, part: str = "") -> Path | None:
    """The folder of a network: `reference` itself, or downloaded weights of that name
    (`utils.weights.located`), or `part` of it where it is a pipeline; None if there is none.
    """
    folder = located(reference)
    return next((f for f in (folder, folder / part) if (f / CONFIG).is_file()), None)


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
        raise FileNotFoundError(
            f"folder {folder} holds no {CONFIG}: give a folder that diffusers wrote, or a checkpoint file{how_to_download(folder)}"
        )
    config = read_json(folder / CONFIG)
    if config.get("_class_name") not in classes:
        raise ValueError(f"folder {folder} holds a {config.get('_class_name')}, a {' or '.join(classes)} is needed here")
    state, _ = load_checkpoint(weights_file(folder), kind="diffusion")
    for old, new in _OLD_NAMES.items():
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    return config, state


def scheduler_file(folder: Path) -> Path:
    """Where a pipeline keeps how the network in its part `folder` was trained (may not exist)."""
    return folder.parent / "scheduler" / "scheduler_config.json"


# of diffusers -> name here
_BETA_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_PREDICTIONS = ("epsilon", "v_prediction", "sample")


def settings_of_scheduler(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings of a `Denoiser` that the configuration of a pipeline's scheduler says.

    Args:
        config: content of `scheduler_config.json`.
        where: its file, for messages.

    Raises:
        ValueError: a schedule, a prediction or betas that are not supported; names the file, the
            value and what is supported.
    """

    def supported(key: str, usual: str, allowed: Iterable[str]) -> str:
        return check_choice(config.get(key, usual), allowed, key, where)

    if config.get("trained_betas") is not None:
        raise ValueError(f"{where}: trained_betas are not supported, name a schedule: {', '.join(_BETA_SCHEDULES)}")
    schedule = _BETA_SCHEDULES[supported("beta_schedule", "linear", _BETA_SCHEDULES)]
    settings = {
        "noise_schedule": schedule,
        "diffusion_steps": int(config.get("num_train_timesteps", 1000)),
        "rescale_timesteps": False,
        "prediction": supported("prediction_type", "epsilon", _PREDICTIONS),
        "zero_terminal_snr": bool(config.get("rescale_betas_zero_snr", False)),
    }
    if schedule != "cosine":
        settings["betas"] = [config.get("beta_start", 1e-4), config.get("beta_end", 0.02)]
    return settings


def read_json(path: Path) -> dict[str, Any]:
    """Names and values of a JSON file (ValueError: it holds something else)."""
    return read_object(path, "take another copy of that folder")


def without_private(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without what diffusers notes about itself."""
    return {key: value for key, value in config.items() if not key.startswith("_")}
