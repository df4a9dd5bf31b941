"""The diffusion network, its description, sampling and training loss."""

from __future__ import annotations

import json

import pytest
import torch
from guided_diffusion import gaussian_diffusion as gd
from guided_diffusion.respace import SpacedDiffusion, space_timesteps

from undegrade.models.diffusion.denoiser import (
    Denoiser,
    build_denoiser,
    denoising_loss,
    describe,
    from_description,
)
from undegrade.models.diffusion.sampling import draw_noise, p_mean_variance, sample


def tiny(noise_schedule: str = "linear", learn_sigma: bool = False, **options) -> Denoiser:
    torch.manual_seed(0)
    denoiser = build_denoiser(8, [8, 16], norm_groups=4, noise_schedule=noise_schedule, learn_sigma=learn_sigma, **options)
    return denoiser.eval().requires_grad_(False)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def guided_diffusion_like(denoiser: Denoiser, respacing: str, rescale_timesteps: bool = False) -> SpacedDiffusion:
    return SpacedDiffusion(
        use_timesteps=space_timesteps(denoiser.diffusion_steps, respacing),
        betas=gd.get_named_beta_schedule(denoiser.noise_schedule, denoiser.diffusion_steps),
        model_mean_type=gd.ModelMeanType.EPSILON,
        model_var_type=gd.ModelVarType.LEARNED_RANGE if denoiser.learn_sigma else gd.ModelVarType.FIXED_LARGE,
        loss_type=gd.LossType.MSE,
        rescale_timesteps=rescale_timesteps,
    )


@pytest.mark.parametrize("learn_sigma", [False, True])
@pytest.mark.parametrize("noise_schedule", ["linear", "cosine"])
def test_reverse_step_equals_guided_diffusion(noise_schedule, learn_sigma):
    denoiser = tiny(noise_schedule, learn_sigma)
    theirs, schedule = guided_diffusion_like(denoiser, "20"), denoiser.schedule("20")
    x = draw_noise((3, 8, 8), generators(0, 1), torch.empty(0))
    for i in (0, 1, 7, 18, 19):
        for clip in (True, False):
            step = p_mean_variance(denoiser, schedule, x, i, clip)
            expected = theirs.p_mean_variance(lambda x, t: denoiser.unet(x, t).sample, x, torch.full((2,), i), clip_denoised=clip)
            torch.testing.assert_close(step.x0, expected["pred_xstart"], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(step.mean, expected["mean"], rtol=1e-4, atol=1e-4)
            if i:
                std = torch.as_tensor(step.std).expand_as(x)
                torch.testing.assert_close(std, (expected["log_variance"] / 2).exp(), rtol=1e-4, atol=1e-6)
            else:
                assert step.std == 0


def test_network_gets_the_original_time_steps_and_rescaled_ones_if_asked():
    seen = []
    denoiser = tiny()
    denoiser.unet.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    p_mean_variance(denoiser, denoiser.schedule("100"), torch.zeros(2, 3, 8, 8), 49)
    assert seen[0].tolist() == [494, 494]
    assert seen[0].dtype == torch.int64
    rescaled = Denoiser(denoiser.unet, noise_schedule="cosine", diffusion_steps=4000, rescale_timesteps=True)
    rescaled(torch.zeros(1, 3, 8, 8), torch.tensor([10]))
    assert seen[1].tolist() == [2.5]


def test_forward_splits_noise_and_variance_and_keeps_the_dtype_under_autocast():
    x, tau = torch.zeros(2, 3, 8, 8), torch.tensor([5, 900])
    eps, r = tiny(learn_sigma=True)(x, tau)
    assert eps.shape == r.shape == x.shape
    assert tiny()(x, tau)[1] is None
    with torch.autocast("cpu", torch.bfloat16):
        assert tiny()(x, tau)[0].dtype == torch.float32


def test_each_image_has_its_own_time_step():
    denoiser = tiny()
    x = draw_noise((3, 8, 8), generators(0, 1), torch.empty(0))
    together, _ = denoiser(x, torch.tensor([3, 800]))
    alone = torch.cat([denoiser(x[:1], torch.tensor([3]))[0], denoiser(x[1:], torch.tensor([800]))[0]])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_sampling_equals_guided_diffusion_on_the_same_noise(learn_sigma, monkeypatch):
    denoiser = tiny("cosine", learn_sigma)
    ours = sample(denoiser, denoiser.schedule("10"), (3, 8, 8), generators(3))
    stream = generators(3)[0]
    monkeypatch.setattr(gd.th, "randn_like", lambda x: torch.randn(3, 8, 8, generator=stream)[None])
    theirs = guided_diffusion_like(denoiser, "10").p_sample_loop(
        lambda x, t: denoiser.unet(x, t).sample, (1, 3, 8, 8), torch.randn(1, 3, 8, 8, generator=stream), device="cpu"
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_a_sample_depends_on_its_own_generator_only():
    denoiser = tiny()
    schedule = denoiser.schedule("10")
    many = sample(denoiser, schedule, (3, 8, 8), generators(1, 2, 3))
    other = sample(denoiser, schedule, (3, 8, 8), generators(9, 2, 8))
    alone = sample(denoiser, schedule, (3, 8, 8), generators(2))
    assert torch.equal(many[1], other[1])
    torch.testing.assert_close(many[1:2], alone, rtol=0, atol=1e-4)
    assert not torch.allclose(many[0], many[1], atol=0.1)


def test_sampling_reports_every_level_and_needs_no_gradient():
    denoiser, levels = tiny().requires_grad_(True), []
    images = sample(denoiser, denoiser.schedule("5"), (3, 8, 8), generators(0), on_step=lambda i, x: levels.append(i))
    assert levels == [4, 3, 2, 1, 0]
    assert not images.requires_grad


def test_generator_on_another_device_is_refused():
    class Foreign:
        device = torch.device("cuda", 0)

    with pytest.raises(ValueError, match="generators on cuda:0: give CPU generators"):
        draw_noise((3, 8, 8), [Foreign()], torch.empty(0))


def test_loss_is_the_error_of_the_predicted_noise_for_each_image():
    denoiser = tiny("linear", learn_sigma=True)
    x0 = draw_noise((3, 8, 8), generators(0, 1), torch.empty(0)).clamp(-1, 1)
    noise = draw_noise((3, 8, 8), generators(2, 3), torch.empty(0))
    t = torch.tensor([505, 10])
    alpha_bar = torch.tensor([0.073939125, 0.99780657]).view(2, 1, 1, 1)
    predicted = denoiser.unet(alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise, t).sample[:, :3]
    expected = torch.stack([torch.nn.functional.mse_loss(predicted[b], noise[b]) for b in (0, 1)])
    torch.testing.assert_close(denoising_loss(denoiser, x0, t, noise), expected)


def test_training_lowers_the_loss():
    denoiser = tiny().train().requires_grad_(True)
    optimiser = torch.optim.Adam(denoiser.parameters(), lr=3e-3)
    stream, losses = generators(0)[0], []
    for _ in range(40):
        x0 = torch.full((16, 3, 8, 8), 0.5)
        noise = torch.randn(x0.shape, generator=stream)
        loss = denoising_loss(denoiser, x0, torch.randint(0, 1000, (16,), generator=stream), noise).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_description_survives_json_and_builds_the_same_network():
    denoiser = tiny("cosine", learn_sigma=True, attention_levels=[1], dropout=0.1)
    meta = json.loads(json.dumps(describe(denoiser)))
    again = from_description(meta, denoiser.unet.state_dict()).eval()
    assert (meta["kind"], meta["image_size"]) == ("diffusion", 8)
    assert describe(again) == describe(denoiser)
    x, tau = draw_noise((3, 8, 8), generators(0), torch.empty(0)), torch.tensor([7])
    assert torch.equal(torch.cat(again(x, tau)), torch.cat(denoiser(x, tau)))


def test_foreign_description_and_unfit_weights_are_refused():
    denoiser = tiny()
    meta, state = describe(denoiser), denoiser.unet.state_dict()
    with pytest.raises(ValueError, match="kind is 'classifier'"):
        from_description({**meta, "kind": "classifier"}, state)
    with pytest.raises(ValueError, match="missing: unet, learn_sigma"):
        from_description({k: v for k, v in meta.items() if k not in ("unet", "learn_sigma")}, state)
    with pytest.raises(ValueError, match="installed diffusers cannot build.*new_option"):
        from_description({**meta, "unet": {**meta["unet"], "new_option": 1}}, state)
    with pytest.raises(ValueError, match="weights do not fit.*Missing key.*conv_out.bias"):
        from_description(meta, {k: v for k, v in state.items() if k != "conv_out.bias"})
    with pytest.raises(ValueError, match="weights do not fit.*Unexpected key.*extra"):
        from_description(meta, {**state, "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match="needs 6"):
        from_description({**meta, "learn_sigma": True}, state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": []}, "channels is empty"),
        ({"image_size": 10}, "image_size 10 cannot be halved 2 times"),
        ({"channels": [8, 12, 16]}, r"channels \[12\] are not multiples of norm_groups 8"),
        ({"attention_levels": [3]}, r"attention_levels \[3\]: the levels are 0..2"),
        ({"noise_schedule": "quadratic"}, "unknown noise schedule 'quadratic'.*allowed: linear, scaled_linear, cosine"),
    ],
)
def test_network_that_cannot_be_built_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_denoiser(**{"image_size": 32, "channels": [8, 16, 32], **options})
