"""Short adaptations of digits and of folders, and what they left; a tiny network and its inputs for
one chain.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tests.editing import tiny_editor
from tests.photo_like import photo_like, save_all
from tests.scripts import Done, run_script
from undegrade.image_adapt.adapters import ADAPTERS, Adapter
from undegrade.models.diffusion.denoiser import Denoiser, build_denoiser
from undegrade.models.restoration.ffdnet import FFDNet
from undegrade.models.restoration.restorer import Restorer
from undegrade.utils.data.manifest import PROVENANCE

SCRIPT = "image_adapt/scripts/image_sample.py"
SIZE = 16  # of what `tiny_denoiser` takes
SHORT = ("--timestep_respacing", 10, "--N", 3, "--D", 4, "--guidance_weight", 3)


def adapt(ddpm: Path, save_dir: Path, *words: object) -> Done:
    return run_script(SCRIPT, "--model_path", ddpm, "--save_dir", save_dir, *SHORT, *words)


def digits(ddpm: Path, save_dir: Path, *words: object) -> Done:
    """Six digits under gaussian noise and jpeg, in batches of 4."""
    return adapt(ddpm, save_dir, "--corruption", "gaussian_noise,jpeg", "--limit", 6, "--batch_size", 4, *words)


def pngs(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.png")) if p.is_file()}


def files(folder: Path) -> dict[str, bytes]:
    """All but what says which launches there were."""
    paths = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != PROVENANCE)
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def save_images(folder: Path, names: list[str], side: int = 32) -> None:
    save_all(folder, names, photo_like(len(names), side))


def manifest_of(folder: Path) -> list[dict]:
    """Lines of the images that are there."""
    return [row for row in _lines_of(folder) if "error" not in row]


def errors_of(folder: Path) -> dict[str, str]:
    """Key and reason of the images that could not be made."""
    return {row["key"]: row["error"] for row in _lines_of(folder) if "error" in row}


def _lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def tiny_denoiser(noise_schedule: str = "linear", learn_sigma: bool = False) -> Denoiser:
    torch.manual_seed(0)
    return build_denoiser(SIZE, [8, 16], norm_groups=4, noise_schedule=noise_schedule, learn_sigma=learn_sigma).eval()


def random_images(n: int) -> Tensor:
    """[n, 3, SIZE, SIZE] in [-1, 1]."""
    return torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5)) * 2 - 1


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def opened(config: Any) -> Adapter:
    """The adapter of a configuration on a small network; of an editor the distilled one, since that
    is shipped; of a restorer FFDNet.
    """
    options = getattr(config, config.adapter)
    if config.adapter == "decorruptor":
        return ADAPTERS[config.adapter](tiny_editor(6), options)
    if config.adapter == "restoration":
        return ADAPTERS[config.adapter](Restorer(FFDNet(4, 2), "FFDNet", True), options)
    if not ADAPTERS[config.adapter].needs_model:
        return ADAPTERS[config.adapter](options)
    denoiser = build_denoiser(32, [8])
    denoiser.consistency = {"respacing": "trailing50", "levels": 30}
    return ADAPTERS[config.adapter](denoiser, **vars(options))
