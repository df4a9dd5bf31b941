"""Latent editors on disk: our own checkpoints, and folders in the layout of diffusers'
`StableDiffusionInstructPix2PixPipeline`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from undegrade.models.diffusion.diffusers_folder import network_folder, read_json, read_network, scheduler_file, without_private
from undegrade.models.diffusion.editor import Editor
from undegrade.models.diffusion.prompt import INSTRUCTION, embed, transformers
from undegrade.models.diffusion.unet import assign_weights
from undegrade.models.diffusion.vae import LatentAutoencoder, build_vae
from undegrade.utils.checkpoint import file_digest, load_checkpoint, save_checkpoint
from undegrade.utils.files import replacing
from undegrade.utils.weights import located

log = logging.getLogger(__name__)

EMBEDDINGS = "prompt_embeds.safetensors"  # in a folder, in place of tokenizer and text encoder


def describe_editor(editor: Editor) -> dict[str, Any]:
    """JSON-able entries from which `editor_from_description` builds the same editor again."""
    unet, vae = (
        {k: list(v) if isinstance(v, tuple) else v for k, v in network.config.items() if not k.startswith("_")}
        for network in (editor.unet, editor.autoencoder.vae)
    )
    return {"kind": "editor", "unet": unet, "vae": vae, "scheduler": editor.scheduler}


def editor_from_description(description: Mapping[str, Any], state: Mapping[str, Tensor], where: str) -> Editor:
    """The editor of a checkpoint, frozen, in eval mode.

    Raises:
        ValueError: not of an editor; weights that do not fit.
    """
    if description.get("kind") != "editor":
        raise ValueError(f"{where} holds no latent editor: train one by the method editing (trainers/editing.py)")
    autoencoder = build_vae(description["vae"], _part(state, "vae."), where)
    unet = build_editor_unet(description["unet"], _part(state, "unet."), where)
    return Editor(unet, autoencoder, state["embeddings"], description["scheduler"]).eval().requires_grad_(False)


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def editor_state(editor: Editor) -> dict[str, Tensor]:
    """The tensors of an editor by name."""
    networks = {"unet": editor.unet, "vae": editor.autoencoder.vae}
    state = {f"{part}.{name}": tensor for part, network in networks.items() for name, tensor in network.state_dict().items()}
    return state | {"embeddings": editor.get_buffer("embeddings")}


def build_editor_unet(config: Mapping[str, Any], state: Mapping[str, Tensor] | None = None, where: str = "") -> Any:
    """diffusers' `UNet2DConditionModel`, new or with weights.

    Raises:
        ValueError: weights that do not fit.
    """
    from accelerate import init_empty_weights  # noqa: PLC0415
    from diffusers import UNet2DConditionModel  # noqa: PLC0415

    if state is None:
        return UNet2DConditionModel(**config)
    with init_empty_weights(include_buffers=False):
        unet: Any = UNet2DConditionModel(**without_private(dict(config)))
    try:
        assign_weights(unet, state)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return unet


def with_image_channels(unet: Any) -> Any:
    """The U-Net of a text-to-image model with as many input channels more, whose weights are 0: at
    first it does not see the image (Brooks et al. 2023, section 3.2).
    """
    wide = copy.deepcopy(unet)
    old, channels = unet.conv_in, 2 * unet.config["in_channels"]
    wide.conv_in = nn.Conv2d(channels, old.out_channels, old.kernel_size, padding=old.padding)
    with torch.no_grad():
        wide.conv_in.weight.zero_()
        wide.conv_in.weight[:, : old.in_channels] = old.weight
        wide.conv_in.bias.copy_(old.bias)
    wide.register_to_config(in_channels=channels)
    return wide


def with_scale_embedding(unet: Any, width: int) -> Any:
    """The U-Net of an ordinary editor with an input for the embedding of guidance scales, whose
    weights are 0: at first it does not see them.
    """
    wide = build_editor_unet({**without_private(dict(unet.config)), "time_cond_proj_dim": width})
    state = unet.state_dict() | {"time_embedding.cond_proj.weight": torch.zeros_like(wide.time_embedding.cond_proj.weight)}
    wide.load_state_dict(state)
    return wide


def editor_folder(reference: str | Path) -> Path | None:
    """The folder if `reference` is one of a diffusers pipeline, or a downloaded one, else None."""
    path = located(reference)
    return path if path.is_dir() and any((path / part).is_dir() for part in ("unet", "vae", "scheduler")) else None


def editor_digest(path: Path) -> str:
    """16 hexadecimal digits that name the editor of `open_editor(path)`."""
    if path.is_file():
        return file_digest(path)
    wanted = ("config.json", "*.safetensors", "*.bin", "scheduler_config.json", "vocab.json", "tokenizer.json", "merges.txt")
    files = sorted({file for pattern in wanted for file in path.rglob(pattern)})
    return hashlib.sha256("".join(f"{file.relative_to(path)} {file_digest(file)}\n" for file in files).encode()).hexdigest()[:16]


def open_editor(reference: str | Path) -> Editor:
    """A frozen editor in eval mode, float32, from our own checkpoint, or from a folder in the
    layout of diffusers' `StableDiffusionInstructPix2PixPipeline`.

    Raises:
        FileNotFoundError, ValueError: missing, damaged, another kind of pipeline; names the part.
    """
    path = Path(reference)
    if not path.is_dir():
        state, description = load_checkpoint(path, kind="editor")
        return editor_from_description(description, state, f"checkpoint {path}")
    editor = Editor(*_folder_parts(path))
    log.info("latent editor from %s", path)
    return editor.eval().requires_grad_(False)


def editor_of_pipeline(folder: Path) -> Editor:
    """A new editor in eval mode, float32, from a text-to-image pipeline that diffusers saved, such
    as Stable Diffusion 1.5: its U-Net gets further channels for the image, which it does not see
    yet.

    Raises:
        FileNotFoundError, ValueError: missing, damaged, an editor already; names the part.
    """
    unet, autoencoder, embeddings, scheduler = _folder_parts(folder)
    channels = unet.config["in_channels"]
    if channels != unet.config["out_channels"]:
        raise ValueError(f"folder {folder}: its U-Net takes {channels} channels, an editor starts from a text-to-image pipeline, "
                         f"whose U-Net takes {unet.config['out_channels']}")  # fmt: skip
    log.info("a latent editor starts from %s", folder)
    return Editor(with_image_channels(unet), autoencoder, embeddings, scheduler).eval()


def _folder_parts(path: Path) -> tuple[Any, LatentAutoencoder, Tensor, dict[str, Any]]:
    """U-Net, autoencoder, embeddings of the instruction and of no text, and scheduler of a folder
    of a pipeline.
    """
    missing = [part for part in ("unet", "vae") if network_folder(path / part) is None]
    if missing:
        raise ValueError(
            f"folder {path} is no pipeline of a latent editor: it lacks {' and '.join(f'{part}/config.json' for part in missing)}"
        )
    unet = build_editor_unet(*read_network(path / "unet", ["UNet2DConditionModel"]), f"folder {path / 'unet'}")
    autoencoder = build_vae(*read_network(path / "vae", ["AutoencoderKL"]), f"folder {path / 'vae'}")
    scheduler = scheduler_file(path / "unet")
    if not scheduler.is_file():
        raise ValueError(f"folder {path} lacks {scheduler.parent.name}/{scheduler.name}, which says how the U-Net was trained")
    return unet, autoencoder, _folder_embeddings(path), read_json(scheduler)


def _folder_embeddings(folder: Path) -> Tensor:
    if (folder / EMBEDDINGS).is_file():
        return load_checkpoint(folder / EMBEDDINGS)[0]["prompt_embeds"]
    missing = [part for part in ("tokenizer", "text_encoder") if not (folder / part).is_dir()]
    if missing:
        raise ValueError(f"folder {folder} lacks {' and '.join(missing)}, and has no {EMBEDDINGS} in their place")
    package = transformers()
    tokenizer = package.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    half = (folder / "text_encoder" / "model.fp16.safetensors").is_file()
    encoder = package.CLIPTextModel.from_pretrained(folder / "text_encoder", variant="fp16" if half else None).float().eval()
    return embed(tokenizer, encoder, [INSTRUCTION, ""])


def save_folder(editor: Editor, folder: str | Path) -> None:
    """Write a folder in the layout of diffusers' pipeline, but that the embeddings of the two texts
    stand in for tokenizer and text encoder.

    Raises:
        ValueError: the folder exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists already: choose another folder, or remove it")
    kind = "DDIMScheduler" if editor.scale_width is None else "LCMScheduler"
    with replacing(folder) as temporary:
        editor.unet.save_pretrained(temporary / "unet")
        editor.autoencoder.vae.save_pretrained(temporary / "vae")
        (temporary / "scheduler").mkdir()
        text = json.dumps({"_class_name": kind, **editor.scheduler}, indent=1)
        (temporary / "scheduler" / "scheduler_config.json").write_text(text + "\n", encoding="utf-8")
        save_checkpoint(temporary / EMBEDDINGS, {"prompt_embeds": editor.get_buffer("embeddings")}, {})
