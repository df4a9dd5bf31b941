"""Shared by all tests: one thread, the repository's root as working folder, and two tiny trained networks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.scripts import ROOT, run_script
from utils.data.sources import open_source

torch.set_num_threads(1)  # xdist starts a process a core


@pytest.fixture(autouse=True, scope="session")
def _in_the_repository() -> Iterator[None]:
    before = Path.cwd()
    os.chdir(ROOT)
    yield
    os.chdir(before)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of runs with a clean classifier, `ind/Digits/ResNet20_clean/one`, and a DDPM, `diffusion/Digits/ddpm/one`."""
    folder = tmp_path_factory.mktemp("runs")
    common = ("--save_dir", folder, "--run_id", "one", "--data.batch_size", 20)
    few = ("--data.limit", 160, "--loop.epochs", 3, "--data.augment.crop_padding", 0)
    run_script("train.py", "-c", "configs/ind/Digits/ResNet20_clean.yaml", *common, *few).check()
    small = ("--data.limit", 40, "--loop.epochs", 1, "--model.channels", "[8, 8]")
    run_script("train.py", "-c", "configs/diffusion/Digits/ddpm.yaml", *common, *small).check()
    return folder


@pytest.fixture(scope="session")
def classifier(runs: Path) -> Path:
    """Checkpoint of the clean classifier."""
    return runs / "ind/Digits/ResNet20_clean/one/best.safetensors"


@pytest.fixture(scope="session")
def ddpm(runs: Path) -> Path:
    """Checkpoint of the diffusion model."""
    return runs / "diffusion/Digits/ddpm/one/best.safetensors"


@pytest.fixture(scope="session")
def save_adapted() -> Callable[[Path, str], None]:
    """Write the digits of a split, mirrored, as if they were adapted from jpeg: `save_adapted(folder, split)`."""

    def save(folder: Path, split: str) -> None:
        source = open_source("Digits", split)
        for key, image in zip(source.keys, source.images(range(len(source))).flip(-1).numpy(), strict=True):
            path = folder / "jpeg" / "random" / f"{key}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(path, compress_level=0)

    return save
