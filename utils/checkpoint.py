"""Weights on disk: safetensors with a JSON description inside, so that a checkpoint says what it
is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from undegrade.utils.choices import check_choice
from undegrade.utils.files import replacing
from undegrade.utils.timm_folders import timm_description
from undegrade.utils.weights import how_to_download

log = logging.getLogger(__name__)

_META = "undegrade"
_CHECKED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# entries of a description that programs depend on: their types, and those of the items of lists
_DESCRIBED: dict[str, type] = {
    "kind": str, "arch": str, "num_classes": int, "image_size": int, "diffusion_steps": int, "unet": dict,
    "classes": list, "points": list, "degradations": list, "mean": list, "std": list, "sizes": dict,
}  # fmt: skip
_ITEMS: dict[str, tuple[type, ...]] = {
    "classes": (str,),
    "points": (str,),
    "degradations": (str,),
    "mean": (float, int),
    "std": (float, int),
}


def save_checkpoint(path: str | Path, state_dict: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write `state_dict` and its description in one file, atomically.

    Args:
        path: file to write (`*.safetensors`).
        state_dict: tensors by name, on any device.
        description: JSON-able entries needed to build the network again (`kind`, `arch`,
            `num_classes`, ...).

    Raises:
        ValueError: a tensor holds NaN or infinite values; nothing is written.
    """
    broken = not_finite(state_dict)
    if broken is not None:
        raise ValueError(f"{path} is not written: {broken} holds NaN or infinite values")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={_META: json.dumps(description, sort_keys=True)})


def not_finite(state_dict: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor that holds NaN or infinite values, None if none does."""
    return next((name for name, t in state_dict.items() if t.dtype in _CHECKED and not t.isfinite().all()), None)


def split_entry(reference: str | Path) -> tuple[Path, str]:
    """(file, entry) of `file.pth#entry`, which names one of several state dicts in a file; the
    entry is empty where none is named.
    """
    path = Path(reference)
    name, sign, entry = path.name.rpartition("#")
    return (path.with_name(name), entry) if sign and name and not path.exists() else (path, "")


def load_checkpoint(path: str | Path, kind: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read `(state_dict, description)`; a foreign file without description, and without the
    config.json of timm beside it, gives `{}` for it.

    Args:
        path: `.safetensors`, or a PyTorch file of tensors (read with `weights_only=True`). Of one
            that holds raw and averaged weights the averaged ones are taken, and a line says so;
            `file.pth#entry` takes the entry of that name.
        kind: expected `description["kind"]` ("classifier", "diffusion").

    Raises:
        FileNotFoundError: names the path.
        ValueError: truncated or not a checkpoint; holds Python objects; another kind than expected;
            a tensor holds NaN or infinite values.
    """
    path, entry = split_entry(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist{how_to_download(path)}")
    if entry and path.suffix == ".safetensors":
        raise ValueError(f"{path}#{entry}: a safetensors file holds one state dict, leave out #{entry}")
    state, description = _read_safetensors(path) if path.suffix == ".safetensors" else (_read_torch(path, entry), {})
    description = description or timm_description(path)
    broken = not_finite(state)
    if broken is not None:
        raise ValueError(f"checkpoint {path}: {broken} holds NaN or infinite values: its training went wrong, take another one")
    found = description.get("kind")
    if kind is not None and found is not None and found != kind:
        raise ValueError(f"checkpoint {path} holds a {found} model, a {kind} model is needed here")
    return state, description


def read_description(path: str | Path) -> dict[str, Any]:
    """The description of a checkpoint without its tensors; `{}` for a foreign file."""
    path, _ = split_entry(path)
    own = _read_safetensors(path, tensors=False)[1] if path.suffix == ".safetensors" else {}
    return own or timm_description(path)


def _read_safetensors(path: Path, tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt" if tensors else "np") as file:
            names = file.keys() if tensors else ()
            return {name: file.get_tensor(name) for name in names}, _described(path, (file.metadata() or {}).get(_META, "{}"))
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as safetensors (truncated, or another format?): {error}") from error


def _described(path: Path, text: str) -> dict[str, Any]:
    """The description in a file's header, the types of its entries checked."""
    try:
        description = json.loads(text)
        if not isinstance(description, dict):
            raise ValueError(f"it is {text[:40]}")
        for name, kind in _DESCRIBED.items():
            value = description.get(name)
            items = value if isinstance(value, list) else ()
            fits = isinstance(value, kind) and all(isinstance(item, _ITEMS[name]) for item in items)
            if value is not None and not fits:
                raise ValueError(f"{name} is {str(value)[:40]!r}")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: the description in it is damaged ({error}): take another copy of the file, or make the checkpoint anew"
        ) from error
    return description


# entries of files of other programs that hold a state dict, by what they hold; of each the first is
# taken that is there
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "ema_model", "params_ema")
_RAW = ("state_dict", "model", "model_state_dict", "net", "network", "params")


def _read_torch(path: Path, entry: str = "") -> dict[str, Tensor]:
    mapped = zipfile.is_zipfile(path)  # files from before PyTorch 1.6 are none
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged pickle raises almost any of them
        refused = re.search(r"GLOBAL (\S+)", str(error))
        text = str(error).rpartition("WeightsUnpickler error: ")[2].strip()  # before it stands advice that is not ours
        reason = f"holds {refused[1]}" if refused else f"{type(error).__name__}: {text.partition(chr(10))[0]}"
        raise ValueError(
            f"{path} cannot be read as a file of tensors ({reason}). Files that hold Python objects are not "
            "loaded, since they can run any code: save the state dict alone with the program that wrote it."
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, a state dict (tensors by name) is needed")
    state = _entry(path, state, entry)
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def _entry(path: Path, content: dict[str, Any], wanted: str) -> dict[str, Any]:
    """The state dict in the content of a file, the averaged one of several."""
    there = [name for name in (*_AVERAGED, *_RAW) if isinstance(content.get(name), dict)]
    if wanted:
        named = [name for name, value in content.items() if isinstance(value, dict)]
        return content[check_choice(wanted, named, "entry", str(path))]
    if not there:
        return content
    if there[0] in _AVERAGED and any(name in _RAW for name in there):
        others = ", ".join(f"{path}#{name}" for name in there[1:])
        log.info("%s holds raw and averaged weights: the averaged ones, %s, are taken (for others name %s)", path, there[0], others)
    return _entry(path, content[there[0]], "")  # Lightning and others put one into another


def file_digest(path: str | Path) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a file, to name a model in manifests and
    caches.
    """
    path, entry = split_entry(path)
    sha = hashlib.sha256(entry.encode())
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            sha.update(block)
    return sha.hexdigest()[:16]
