"""Tiny latent editors: as our own object, and as a pipeline that diffusers saved."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from undegrade.models.diffusion.editor import SCHEDULER, Editor
from undegrade.models.diffusion.editor_loading import build_editor_unet
from undegrade.models.diffusion.prompt import small_text_parts
from undegrade.models.diffusion.vae import LatentAutoencoder

TEXT_WIDTH = 16


def tiny_vae(channels: tuple[int, ...] = (8, 8)) -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=channels, norm_num_groups=4, layers_per_block=1, scaling_factor=0.5,
        down_block_types=("DownEncoderBlock2D",) * len(channels), up_block_types=("UpDecoderBlock2D",) * len(channels),
    )  # fmt: skip


def tiny_unet(scale_width: int | None = None, channels: int = 8) -> Any:
    torch.manual_seed(2)
    return build_editor_unet({
        "sample_size": 8, "in_channels": channels, "out_channels": 4, "block_out_channels": (8, 16), "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 4, "cross_attention_dim": TEXT_WIDTH, "norm_num_groups": 4, "time_cond_proj_dim": scale_width,
    })  # fmt: skip


def tiny_editor(scale_width: int | None = None) -> Editor:
    embeddings = torch.randn(2, 5, TEXT_WIDTH, generator=torch.Generator().manual_seed(3))
    return Editor(tiny_unet(scale_width), LatentAutoencoder(tiny_vae()), embeddings).eval().requires_grad_(False)


def saved_pipeline(folder: Path, scale_width: int | None = None, channels: int = 8, **how: Any) -> Any:
    """The pipeline, saved by diffusers with arguments `how`; of 4 channels a text-to-image one."""
    from diffusers import DDIMScheduler, StableDiffusionInstructPix2PixPipeline

    tokenizer, text = small_text_parts(TEXT_WIDTH, folder.with_name(f"{folder.name} tokenizer"))
    scheduler = DDIMScheduler(**SCHEDULER, clip_sample=False, set_alpha_to_one=False, steps_offset=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = StableDiffusionInstructPix2PixPipeline(
            vae=tiny_vae(), text_encoder=text, tokenizer=tokenizer, unet=tiny_unet(scale_width, channels), scheduler=scheduler,
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        pipeline.set_progress_bar_config(disable=True)
        pipeline.save_pretrained(folder, **how)
    return pipeline
