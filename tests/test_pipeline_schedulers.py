"""Folders of diffusers' pipelines: how the network was trained is read from their scheduler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler

from undegrade.models.diffusion.denoiser import Denoiser, build_denoiser, denoising_loss, describe, from_description
from undegrade.models.diffusion.loading import denoiser_digest, diffusers_folder, open_denoiser
from undegrade.models.diffusion.sampling import p_mean_variance
from undegrade.utils.seeding import seed_everything

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "v_prediction": {"prediction_type": "v_prediction"},
    "sample": {"prediction_type": "sample", "clip_sample": False},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "500 steps": {"num_train_timesteps": 500},
    "zero terminal SNR": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "beta_schedule": "scaled_linear"},
}


def saved(folder: Path, **scheduler: Any) -> DDPMScheduler:
    """Write a pipeline with a small random network; its scheduler."""
    seed_everything(3)
    pipeline = DDPMPipeline(build_denoiser(8, [8, 8]).unet, DDPMScheduler(**scheduler))
    pipeline.save_pretrained(folder)
    return pipeline.scheduler


def opened(folder: Path) -> Denoiser:
    network = diffusers_folder(folder)
    assert network is not None
    return open_denoiser(network, {})


@pytest.mark.parametrize("kind", KINDS)
def test_chain_and_predicted_image_are_those_of_the_scheduler(kind: str, tmp_path: Path) -> None:
    scheduler = saved(tmp_path / "pipeline", **KINDS[kind])
    denoiser = opened(tmp_path / "pipeline")
    schedule = denoiser.schedule()
    assert len(schedule) == scheduler.config["num_train_timesteps"]
    assert torch.allclose(schedule.alpha_bar.float(), scheduler.alphas_cumprod, rtol=1e-4, atol=1e-7)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    i = len(schedule) - 1 if "SNR" in kind else 300
    predicted = denoiser(x, torch.full((2,), i))[0]
    theirs = scheduler.step(predicted, i, x, generator=torch.Generator().manual_seed(0)).pred_original_sample
    ours = p_mean_variance(denoiser, schedule, x, i, clip_denoised=scheduler.config["clip_sample"]).x0
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("kind", ["v_prediction", "sample", "scaled_linear"])
def test_a_description_holds_what_was_read(kind: str, tmp_path: Path) -> None:
    saved(tmp_path / "pipeline", **KINDS[kind])
    denoiser = opened(tmp_path / "pipeline")
    again = from_description(json.loads(json.dumps(describe(denoiser))), denoiser.unet.state_dict())
    assert (again.prediction, again.betas, again.noise_schedule) == (denoiser.prediction, denoiser.betas, denoiser.noise_schedule)


def test_the_digest_covers_the_scheduler(tmp_path: Path) -> None:
    digests = set()
    for kind in ("plain", "v_prediction"):
        saved(tmp_path / kind, **KINDS[kind])
        digests.add(denoiser_digest(tmp_path / kind / "unet", {}))
    assert len(digests) == 2


@pytest.mark.parametrize(
    "changed", [{"beta_schedule": "sigmoid"}, {"prediction_type": "flow_prediction"}, {"trained_betas": [0.1, 0.2]}], ids=str
)
def test_what_is_not_supported_is_refused_by_name(changed: dict[str, Any], tmp_path: Path) -> None:
    saved(tmp_path / "pipeline")
    path = tmp_path / "pipeline" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    (name,) = changed
    with pytest.raises(ValueError, match=f"scheduler_config.json.*{name}|{name}.*scheduler_config.json"):
        opened(tmp_path / "pipeline")


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_the_loss_is_that_of_the_prediction(prediction: str) -> None:
    denoiser = build_denoiser(8, [8])
    denoiser.prediction = prediction
    x0, noise, t = torch.rand(4, 3, 8, 8) * 2 - 1, torch.randn(4, 3, 8, 8), torch.tensor([0, 10, 500, 999])
    abar = denoiser.schedule().alpha_bar[t].float().reshape(-1, 1, 1, 1)
    noisy = abar.sqrt() * x0 + (1 - abar).sqrt() * noise
    target = x0 if prediction == "sample" else abar.sqrt() * noise - (1 - abar).sqrt() * x0
    expected = (denoiser(noisy, t)[0] - target).square().flatten(1).mean(1)
    assert torch.allclose(denoising_loss(denoiser, x0, t, noise), expected, rtol=1e-4)


def test_noise_cannot_be_predicted_where_no_signal_is_left() -> None:
    with pytest.raises(ValueError, match="zero_terminal_snr"):
        Denoiser(build_denoiser(8, [8]).unet, noise_schedule="linear", zero_terminal_snr=True)
