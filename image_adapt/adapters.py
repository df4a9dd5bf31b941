"""The adapters by name, built from a configuration."""

from __future__ import annotations

import dataclasses
from typing import Any

from undegrade.image_adapt.config import AdaptConfig
from undegrade.image_adapt.dda import DDA
from undegrade.image_adapt.ilvr import ILVR
from undegrade.image_adapt.reverse import ReverseChain
from undegrade.models.diffusion.denoiser import Denoiser

# name -> class; the section of the same name in `AdaptConfig` holds its options
ADAPTERS: dict[str, type[Any]] = {"dda": DDA, "ilvr": ILVR}


def build_adapter(config: AdaptConfig, denoiser: Denoiser) -> ReverseChain:
    """The adapter that a configuration names (ValueError: an option outside its range)."""
    return ADAPTERS[config.adapter](denoiser, autocast=config.use_fp16, **dataclasses.asdict(config.options))


def with_start_step(config: AdaptConfig, start_step: int) -> AdaptConfig:
    """The configuration with its noise level written as the number of steps that it comes to: what
    settings are compared by.
    """
    options: Any = dataclasses.replace(config.options, start_step=start_step, noise_level=None)
    return dataclasses.replace(config, **{config.adapter: options})
