"""Training of latent editors: the diffusion model that cleans an image ("DPM"), as in Decorruptor
(Oh et al., ECCV 2024); its distillation is `trainers.editor_consistency`.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor, nn

from undegrade.models.diffusion.editor import NULL, TEXT, Editor, EditorFrame, edit, image_weights
from undegrade.models.diffusion.editor_loading import (
    build_editor_unet,
    describe_editor,
    editor_digest,
    editor_folder,
    editor_of_pipeline,
    editor_state,
)
from undegrade.models.diffusion.prompt import INSTRUCTION, embed, small_text_parts
from undegrade.models.diffusion.vae import LatentAutoencoder, build_vae
from undegrade.trainers.config import fill
from undegrade.trainers.method import Context, Method
from undegrade.utils.checkpoint import load_checkpoint
from undegrade.utils.data.batches import Batch
from undegrade.utils.data.perturbations.perturbation import changed_fields
from undegrade.utils.data.perturbations.registry import find_perturbation
from undegrade.utils.data.pixels import from_signed, to_signed, unit_to_signed
from undegrade.utils.figures import sample_grid
from undegrade.utils.ranges import Count
from undegrade.utils.seeding import torch_generator

_PICTURED = 8


@dataclasses.dataclass(frozen=True)
class EditorConfig:
    """The U-Net of a latent editor, and the autoencoder of its latents.

    Attributes:
        init_from: folder of a text-to-image pipeline that diffusers saved, such as Stable Diffusion
            1.5, whose U-Net, autoencoder and text encoder are the start (null: random weights).
            Then no other key is given.
        autoencoder: checkpoint file, run folder or run name of the autoencoder; of a folder of
            diffusers its `vae`.
        channels: width of each level, highest resolution first; all have cross-attention, but the
            last, unless there is one only.
        blocks_per_level: residual blocks a level.
        heads: of the attention.
        text_width: of the embeddings of the instruction.
        norm_groups: groups of the group normalisation.
    """

    init_from: str | None = None
    autoencoder: str = "editor/{dataset}/vae"
    channels: list[Count] = field(default_factory=lambda: [64, 128])
    blocks_per_level: Count = 1
    heads: Count = 8
    text_width: Count = 64
    norm_groups: Count = 16


@dataclasses.dataclass(frozen=True)
class EditingConfig:
    """Noise prediction in latents, given the corrupted image (Brooks et al. 2023, section 3.2).

    Attributes:
        name: editing.
        dropout: share of the images without instruction, the same share without image, and the
            same share without both, for guidance.
    """

    name: str = "editing"
    dropout: Annotated[float, Interval(ge=0, le=1 / 3)] = 0.05


class EditorMethod:
    """What training and distillation do alike: latents of the pair, and what is exported and shown.

    Attributes:
        frame: of the editor, frozen.
        shown: (clean, corrupted) uint8 [8, 3, H, W] of the picture.
    """

    frame: EditorFrame
    shown: tuple[Tensor, Tensor]

    def pair(self, batch: Batch, training: bool) -> tuple[Tensor, Tensor]:
        """(scaled latents of the clean images, a sample of the posterior in training; latents of
        the corrupted ones, its mode, not scaled).
        """
        space = self.frame.autoencoder
        with torch.no_grad():
            clean = unit_to_signed(batch["clean"])
            mode = space.encode(clean)
            x0 = space.encode(clean, torch.randn_like(mode)) if training else mode
            return space.scale * x0, space.encode(unit_to_signed(batch["degraded"]))

    def edited(self, unet: Any) -> Editor:
        """The editor with this U-Net."""
        return Editor(unet, self.frame.autoencoder, self.frame.get_buffer("embeddings"), self.frame.scheduler)

    def pictured(self, unet: Any, steps: int, text_weight: float, image_weight: Any) -> np.ndarray:
        """Corrupted images, below them the edited and the clean ones."""
        clean, corrupted = self.shown
        condition = self.frame.autoencoder.encode(to_signed(corrupted).to(next(unet.parameters()).device))
        generators = [torch_generator("samples", i) for i in range(len(clean))]
        latents = edit(self.edited(unet), condition, generators, steps, text_weight, image_weight)
        with torch.no_grad():
            back = from_signed(self.frame.autoencoder(latents)).cpu()
        return sample_grid(torch.cat([corrupted, back, clean]).permute(0, 2, 3, 1).numpy(), columns=len(clean), scale=2)


class Editing(EditorMethod, Method):
    """L = E |eps - eps_theta(z_t, t, c, text)|^2 with z_t the noised latent of the clean image, c
    that of the corrupted one; text and c are left out for shares of the images.

    Args:
        student: the U-Net.
        frame, shown: see `EditorMethod`.
        dropout: see `EditingConfig`.
    """

    def __init__(self, student: nn.Module, frame: EditorFrame, shown: tuple[Tensor, Tensor], dropout: float) -> None:
        super().__init__()
        self.student, self.frame = student, frame.requires_grad_(False)
        self.shown, self.dropout = shown, dropout

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        training = self.student.training
        x0, condition = self.pair(batch, training)
        schedule, count = self.frame.schedule(), len(x0)
        if training:
            t = torch.randint(0, len(schedule), (count,), device=x0.device)
            noise, u = torch.randn_like(x0), torch.rand(count, device=x0.device)
        else:
            generators = [torch_generator("editing", key) for key in batch["key"]]
            t = torch.cat([torch.randint(0, len(schedule), (1,), generator=g) for g in generators]).to(x0.device)
            noise = torch.stack([torch.randn(x0.shape[1:], generator=g) for g in generators]).to(x0)
            u = torch.ones(count, device=x0.device)
        text, kept = dropped(u, self.dropout)
        predicted = self.frame.predict(self.student, schedule.q_sample(x0, t, noise), t, condition * kept, text)
        error = (predicted - noise).square().flatten(1).mean(1)
        return {"loss": error.mean(), "error": error}

    def export(self, parts: Mapping[str, nn.Module]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        editor = self.edited(parts["student"])
        return editor_state(editor), describe_editor(editor)

    def picture(self, parts: Mapping[str, nn.Module]) -> np.ndarray:
        return self.pictured(parts["student"], 20, 7.5, image_weights(20))


def dropped(u: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """(TEXT or NULL [B], 1 or 0 [B, 1, 1, 1] that keeps or drops the image) by u in [0, 1]: below
    2 shares there is no text, from 1 to 3 shares no image.
    """
    text = torch.where(u < 2 * share, NULL, TEXT)
    without_image = (u >= share) & (u < 3 * share)
    return text, (~without_image).float().reshape(-1, 1, 1, 1)


def build_editing(model: EditorConfig, config: EditingConfig, context: Context) -> Method:
    """The method that trains an editor in the latents of an autoencoder.

    Raises:
        ValueError: not exactly one degradation; no autoencoder; transformers is not installed.
    """
    shown = shown_pairs(context)
    if model.init_from is not None:
        return _editing_from_pipeline(model, config, context, shown)
    space = _autoencoder(context, model.autoencoder)
    unet = editor_network(model, context.source.image_size // space.factor, space.channels)
    with tempfile.TemporaryDirectory() as folder:
        embeddings = embed(*small_text_parts(model.text_width, Path(folder)), [INSTRUCTION, ""])
    return Editing(unet, EditorFrame(space, embeddings), shown, config.dropout)


def editor_network(model: EditorConfig, size: int, channels: int) -> Any:
    """diffusers' `UNet2DConditionModel` with random weights, for latents [channels, size, size]."""
    levels = len(model.channels)
    attended = [True] * levels if levels == 1 else [True] * (levels - 1) + [False]
    return build_editor_unet({
        "sample_size": size, "in_channels": 2 * channels, "out_channels": channels,
        "block_out_channels": tuple(model.channels), "layers_per_block": model.blocks_per_level,
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attended),
        "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)),
        "attention_head_dim": model.heads, "cross_attention_dim": model.text_width, "norm_num_groups": model.norm_groups,
    })  # fmt: skip


def _editing_from_pipeline(model: EditorConfig, config: EditingConfig, context: Context, shown: tuple[Tensor, Tensor]) -> Method:
    others = sorted(changed_fields(model).keys() - {"init_from"})
    if others:
        raise ValueError(f"model.{others[0]} has no meaning beside model.init_from {model.init_from}, which says it: leave it out")
    folder = find_editor(context, str(model.init_from))
    if not folder.is_dir():
        raise ValueError(f"model.init_from {model.init_from} is no folder of a text-to-image pipeline that diffusers saved")
    editor = editor_of_pipeline(folder)
    frame = EditorFrame(editor.autoencoder, editor.get_buffer("embeddings"), editor.scheduler)
    return Editing(editor.unet.requires_grad_(True), frame, shown, config.dropout)


def find_editor(context: Context, reference: str) -> Path:
    """The folder of a pipeline, or the checkpoint that is meant."""
    folder = editor_folder(fill(reference, context.config))
    if folder is None:
        return context.find_checkpoint(reference)
    context.weights[reference] = editor_digest(folder)
    return folder


def shown_pairs(context: Context) -> tuple[Tensor, Tensor]:
    """A few pairs for the picture."""
    if len(context.degradations) != 1:
        raise ValueError(f"an editor learns from one corruption model, data.degradations has {context.degradations}: use [pixmix]")
    source, perturbation = context.source, find_perturbation(context.degradations[0])
    rows = np.arange(min(_PICTURED, len(source)))
    clean, keys = source.images(rows), [source.keys[i] for i in rows]
    return clean, perturbation.apply(clean, perturbation.draw(keys, 0, False), keys, 0, context.config.data)


def _autoencoder(context: Context, reference: str) -> LatentAutoencoder:
    path = context.find_checkpoint(reference)
    state, description = load_checkpoint(path, kind="autoencoder")
    if "vae" not in description:
        raise ValueError(f"{path} holds no autoencoder: train one by the method autoencoding")
    return build_vae(description["vae"], state, f"checkpoint {path}")
