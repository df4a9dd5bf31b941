"""Runs as the demo leaves them, with networks of random weights."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoints import finished_run
from undegrade.models.diffusion.denoiser import build_denoiser, describe
from undegrade.utils.checkpoint import save_checkpoint
from undegrade.utils.runs import BEST, create_run, mark_done
from undegrade.utils.seeding import seed_everything

CLASSIFIERS = ("ind/Digits/ResNet20_clean", "deg_all/Digits/ResNet20_degDistill", "deg_all/Digits/ResNet20_adaptDistill")
DENOISER = "diffusion/Digits/ddpm"


def demo_runs(root: Path) -> Path:
    """Classifiers of 32 px and a small diffusion model below `root`."""
    for seed, name in enumerate(CLASSIFIERS):
        finished_run(root, name, seed=seed, image_size=32)
    run = create_run(root, DENOISER, "one")
    run.mkdir(parents=True)
    seed_everything(0)
    denoiser = build_denoiser(32, [8, 16], norm_groups=4)
    save_checkpoint(run / BEST, denoiser.unet.state_dict(), describe(denoiser))
    mark_done(run)
    return root
