"""Adapters in a folder: `adapter.yaml`, an adaptation YAML, and the model beside it. A published
model (`undegrade download`) is referred to by its name.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import torch

from undegrade.utils.checkpoint import file_digest, load_checkpoint, save_checkpoint
from undegrade.utils.config import build, dump_yaml
from undegrade.utils.files import write_atomic
from undegrade.utils.runs import find_checkpoint
from undegrade.utils.weights import known
from undegrade.utils.yaml_trees import load_yaml
from undegrade.view_adapter import ViewAdapter, open_view_adapter

_YAML = "adapter.yaml"
_KEPT = ("seed", "batch_size", "rounding", "precision")  # of what all adapters share
_MODEL, _NETWORK, _PIPELINE = "model.safetensors", "unet", "pipeline"
_FILES = (".json", ".txt", ".safetensors")  # of folders that diffusers wrote


def save_adapter(folder: Path, view: ViewAdapter) -> dict[str, Any]:
    """Write an adapter; returns its facts as `open_adapter_folder` will find them.

    Raises:
        ValueError: its settings are not known, or its model is a file that only a pickle can hold.
    """
    settings: Any = view.settings
    if settings is None:
        raise ValueError(
            f"the settings of the adapter {view.facts.get('adapter')} are not known: load the system with undegrade.load"
        )
    facts = dict(view.facts)
    tree = {"adapter": settings.adapter, **{key: getattr(settings, key) for key in _KEPT}}
    tree[settings.adapter] = dataclasses.asdict(getattr(settings, settings.adapter))
    folder.mkdir(parents=True)
    if settings.model is not None:
        published = known(settings.fill(settings.model))
        tree["model"] = published.name if published else _save_model(folder, settings)
        if published is None and facts.get("model"):
            facts["model"] = _digest(settings.adapter, folder / tree["model"])
    write_atomic(folder / _YAML, dump_yaml(tree))
    return facts


def open_adapter_folder(folder: Path, device: torch.device) -> ViewAdapter:
    """The adapter of `save_adapter`.

    Raises:
        FileNotFoundError, ValueError: missing, damaged, or a model that is not here.
    """
    from undegrade.image_adapt.config import adapt_schema  # here, since diffusion models take seconds to import

    tree = load_yaml(folder / _YAML)
    model = tree.get("model")
    if model in (_MODEL, _NETWORK, _PIPELINE):
        tree["model"] = str(folder / model)
    return open_view_adapter(build(adapt_schema(), {**tree, "save_dir": str(folder)}), device)


def _save_model(folder: Path, settings: Any) -> str:
    """Copy the model; returns its name in the folder."""
    from undegrade.models.diffusion.diffusers_folder import scheduler_file
    from undegrade.models.diffusion.editor_loading import editor_folder
    from undegrade.models.diffusion.loading import diffusers_folder

    reference = settings.fill(settings.model)
    pipeline = editor_folder(reference) if settings.adapter == "decorruptor" else None
    network = None if pipeline is not None else diffusers_folder(reference)
    if pipeline is not None:
        _copy_folder(pipeline, folder / _PIPELINE)
        return _PIPELINE
    if network is not None:
        _copy_folder(network, folder / _NETWORK)
        scheduler = scheduler_file(network)
        if scheduler.is_file():
            (folder / scheduler.parent.name).mkdir(exist_ok=True)
            shutil.copyfile(scheduler, folder / scheduler.parent.name / scheduler.name)
        return _NETWORK
    path = find_checkpoint(reference, settings.runs)
    if path.suffix == ".safetensors":
        shutil.copyfile(path, folder / _MODEL)
    elif settings.adapter == "restoration":
        save_checkpoint(folder / _MODEL, *load_checkpoint(path))
    else:
        raise ValueError(f"{path} holds a pickle, which is not published: make a folder of it by undegrade convert, and name that")
    return _MODEL


def _copy_folder(source: Path, target: Path) -> None:
    wanted = [path for path in sorted(source.rglob("*")) if path.is_file() and path.suffix in _FILES]
    if not any(path.suffix == ".safetensors" for path in wanted):
        raise ValueError(
            f"{source} holds no .safetensors, and pickles are not published: save it by diffusers with safe_serialization"
        )
    for path in wanted:
        (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / path.relative_to(source))


def _digest(adapter: str, model: Path) -> str:
    """What the adapter will say of the copied model."""
    from undegrade.models.diffusion.editor_loading import editor_digest
    from undegrade.models.diffusion.loading import denoiser_digest

    if model.is_dir():
        return editor_digest(model) if adapter == "decorruptor" else denoiser_digest(model, {})
    return file_digest(model)
