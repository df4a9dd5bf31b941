"""Networks from checkpoints on disk, with the checks that a user needs: kind, classes,
architecture.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from undegrade.models.diffusion.denoiser import DIFFUSION_SETTINGS, Denoiser, diffusion_settings
from undegrade.models.diffusion.denoiser import from_description as denoiser_from_description
from undegrade.models.diffusion.diffusers_folder import (
    CONFIG,
    network_folder,
    read_json,
    read_network,
    scheduler_file,
    settings_of_scheduler,
    weights_file,
    without_private,
)
from undegrade.models.diffusion.openai import denoiser_from_openai
from undegrade.models.diffusion.openai_flags import WITHOUT_EFFECT, ModelFlags, check_model_flags, parse_flags
from undegrade.utils.checkpoint import file_digest, load_checkpoint
from undegrade.utils.files import replacing
from undegrade.utils.runs import resolve_checkpoint
from undegrade.utils.weights import located

log = logging.getLogger(__name__)

_SETTINGS_FILE = "denoiser.json"  # in a folder of diffusers


def load_denoiser(reference: str | Path, save_dir: str | Path = "runs") -> Denoiser:
    """A frozen diffusion model in eval mode.

    Raises:
        FileNotFoundError, ValueError: missing, of another kind, or without description.
    """
    path = resolve_checkpoint(reference, save_dir)
    state, description = load_checkpoint(path, kind="diffusion")
    if not description:
        raise ValueError(
            f"checkpoint {path} does not say what diffusion model it holds: train one with train.py -c configs/diffusion/..., "
            "or convert it with image_adapt/scripts/convert_checkpoint.py if it is a checkpoint of guided-diffusion"
        )
    log.info("diffusion model from %s", path)
    return denoiser_from_description(description, state).eval().requires_grad_(False)


def initialise_denoiser(denoiser: Denoiser, path: Path) -> None:
    """Load the weights of the checkpoint `path` into `denoiser`.

    Where the checkpoint has no classes and `denoiser` has, its class embedding stays as it was
    initialised, but that the null label becomes 0: without a class it gives what the checkpoint's
    network gives.

    Raises:
        FileNotFoundError, ValueError: missing, no diffusion model, or one of other widths, schedule
            or classes.
    """
    state, description = load_checkpoint(path, kind="diffusion")
    found, own = (
        {name: description.get(name) for name in DIFFUSION_SETTINGS},
        {name: getattr(denoiser, name) for name in DIFFUSION_SETTINGS},
    )
    if found != own:
        differing = ", ".join(
            f"{name} {found[name]} there, {own[name]} here" for name in DIFFUSION_SETTINGS if found[name] != own[name]
        )
        raise ValueError(f"checkpoint {path} is of another diffusion model ({differing}): make the model section agree with it")
    embedding = "class_embedding.weight"
    if denoiser.num_classes is not None and embedding not in state:
        rows = denoiser.unet.state_dict()[embedding].clone()
        rows[denoiser.num_classes :] = 0
        state = state | {embedding: rows}
    try:
        denoiser.unet.load_state_dict(state)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise ValueError(f"checkpoint {path}: its weights do not fit the model section: {text[:400]}") from error
    log.info("weights from %s", path)


def open_denoiser(path: str | Path, flags: Mapping[str, str]) -> Denoiser:
    """A frozen diffusion model in eval mode from a file or folder of any format, float32.

    Args:
        path: our own `.safetensors`; a folder of diffusers (`UNet2DModel.save_pretrained`); else a
            state dict of guided-diffusion or improved-diffusion, read as tensors alone and from the
            disk as they are needed.
        flags: texts by names of `MODEL_FLAGS`. They describe a state dict; whatever a file says
            itself they must agree with.

    Raises:
        FileNotFoundError, ValueError: missing, damaged, holds Python objects, or does not fit the
            flags; names the path.
    """
    path = Path(path)
    given = parse_flags(flags)
    if path.is_dir():
        denoiser = _from_folder(path, given)
        check_model_flags(denoiser, flags)
    elif path.suffix == ".safetensors":
        denoiser = load_denoiser(path)
        check_model_flags(denoiser, flags)
    else:
        state, _ = load_checkpoint(path, kind="diffusion")
        try:
            denoiser = denoiser_from_openai(state, ModelFlags(**given))
        except ValueError as error:
            raise ValueError(f"checkpoint {path}: {error}") from error
        log.info("diffusion model from %s, converted", path)
    if given.get("use_checkpoint"):
        denoiser.unet.enable_gradient_checkpointing()  # type: ignore[operator]
    return denoiser.eval().requires_grad_(False)


def diffusers_folder(reference: str | Path) -> Path | None:
    """The folder of the network if `reference` is one of diffusers (of a network or of a whole
    pipeline), else None. Of a pipeline with averaged weights, `unet_ema/`, these are taken, and a
    line says so; name its `unet/` for the raw ones.
    """
    averaged = network_folder(located(reference) / "unet_ema")
    if averaged is not None and network_folder(reference) is None:
        log.info("%s holds averaged weights, which are taken (for the raw ones name %s/unet)", averaged, reference)
        return averaged
    return network_folder(reference, "unet")


def _from_folder(folder: Path, given: Mapping[str, Any]) -> Denoiser:
    config, state = read_network(folder, ["UNet2DModel"])
    scheduler = scheduler_file(folder)
    if (folder / _SETTINGS_FILE).is_file():
        settings = read_json(folder / _SETTINGS_FILE)
    elif scheduler.is_file():
        settings = settings_of_scheduler(read_json(scheduler), str(scheduler))
        settings["learn_sigma"] = config["out_channels"] == 2 * config["in_channels"]
    elif "noise_schedule" in given:
        settings = {name: given.get(name, getattr(ModelFlags, name)) for name in DIFFUSION_SETTINGS}
        settings["learn_sigma"] = config["out_channels"] == 2 * config["in_channels"]
    else:
        raise ValueError(
            f"folder {folder} does not say how its network was trained, and no {scheduler.parent.name}/{scheduler.name} of a "
            "pipeline lies beside it: give --noise_schedule (linear or cosine), "
            "and --diffusion_steps unless it is 1000"
        )
    try:
        denoiser = denoiser_from_description({"kind": "diffusion", "unet": without_private(config), **settings}, state)
    except ValueError as error:
        raise ValueError(f"folder {folder}: {error}") from error
    log.info("diffusion model from %s", folder)
    return denoiser


def save_folder(denoiser: Denoiser, folder: str | Path) -> None:
    """Write a folder that `open_denoiser` and diffusers read: the network, and beside it how it was
    trained.

    Raises:
        ValueError: the folder exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists already: choose another folder, or remove it")
    with replacing(folder) as temporary:
        denoiser.unet.save_pretrained(temporary)  # type: ignore[operator]
        (temporary / _SETTINGS_FILE).write_text(json.dumps(diffusion_settings(denoiser), indent=1) + "\n", encoding="utf-8")


def denoiser_digest(path: str | Path, flags: Mapping[str, str]) -> str:
    """16 hexadecimal digits that name the network of `open_denoiser(path, flags)`, for
    manifests.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".safetensors":
        return file_digest(path)
    told = path / _SETTINGS_FILE if (path / _SETTINGS_FILE).is_file() else scheduler_file(path)
    files = [path / CONFIG, weights_file(path), told] if path.is_dir() else [path]
    parts: list[object] = [file_digest(file) for file in files if file.is_file()]
    if not told.is_file():  # the flags then say a part of what the network is
        said = {name: value for name, value in vars(ModelFlags(**parse_flags(flags))).items() if name not in WITHOUT_EFFECT}
        parts.append(said if path.is_file() else {name: said[name] for name in DIFFUSION_SETTINGS})
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
