"""Short adaptations of digits and of folders, and what they left."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.photo_like import photo_like
from tests.scripts import Done, run_script

SCRIPT = "image_adapt/scripts/image_sample.py"
SHORT = ("--timestep_respacing", 10, "--N", 3, "--D", 4, "--guidance_weight", 3)


def adapt(ddpm: Path, save_dir: Path, *words: object) -> Done:
    return run_script(SCRIPT, "--model_path", ddpm, "--save_dir", save_dir, *SHORT, *words)


def digits(ddpm: Path, save_dir: Path, *words: object) -> Done:
    """Six digits under gaussian noise and jpeg, in batches of 4."""
    return adapt(ddpm, save_dir, "--corruption", "gaussian_noise,jpeg", "--limit", 6, "--batch_size", 4, *words)


def pngs(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.png"))}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def save_images(folder: Path, names: list[str], side: int = 32) -> None:
    for name, image in zip(names, photo_like(len(names), side).numpy(), strict=True):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(path)


def manifest_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
