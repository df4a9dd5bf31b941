"""Shared by all tests: one thread, the repository's root as working folder, and two tiny trained
networks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.photo_like import save_all
from tests.scripts import ROOT, forget_accelerator, run_script
from undegrade.models.diffusion.denoiser import build_denoiser, describe
from undegrade.utils.checkpoint import save_checkpoint
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.runs import mark_done
from undegrade.utils.seeding import seed_everything

torch.set_num_threads(1)  # xdist starts a process a core

# few examples, the same every time; `make test-all` tries many (HYPOTHESIS_PROFILE=many)
settings.register_profile("few", max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.register_profile("many", max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "few"))


@pytest.fixture(autouse=True, scope="session")
def _in_the_repository() -> Iterator[None]:
    before = Path.cwd()
    os.chdir(ROOT)
    yield
    os.chdir(before)


@pytest.fixture(autouse=True, scope="session")
def _without_downloads(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No weights that somebody downloaded on this machine."""
    os.environ["UNDEGRADE_WEIGHTS"] = str(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of runs with a trained classifier, `ind/Digits/ResNet20_clean/one`, and a fresh DDPM,
    `diffusion/Digits/ddpm/one`.
    """
    folder = tmp_path_factory.mktemp("runs")
    common = ("--save_dir", folder, "--run_id", "one", "--data.batch_size", 20)
    few = ("--data.limit", 160, "--loop.epochs", 3, "--data.augment.crop_padding", 0)
    run_script("train.py", "-c", "configs/ind/Digits/ResNet20_clean.yaml", *common, *few).check()
    seed_everything(0)
    denoiser = build_denoiser(32, [8, 8])
    run = folder / "diffusion/Digits/ddpm/one"
    save_checkpoint(run / "best.safetensors", denoiser.unet.state_dict(), describe(denoiser))
    mark_done(run)
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
    """Write the digits of a split, mirrored, as if they were adapted from jpeg:
    `save_adapted(folder, split)`.
    """

    def save(folder: Path, split: str) -> None:
        source = open_source("Digits", split)
        names = [f"jpeg/random/{key}.png" for key in source.keys]
        save_all(folder, names, source.images(range(len(source))).flip(-1))

    return save


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """An Accelerator of a test chooses its precision itself."""
    forget_accelerator()
    yield
    forget_accelerator()
