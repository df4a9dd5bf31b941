"""Diffusion-driven adaptation against its formulas, and what an image's result may depend on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.adapting import SIZE, generators, random_images, tiny_denoiser
from undegrade.image_adapt.dda import DDA
from undegrade.image_adapt.lowpass import LowPass
from undegrade.models.diffusion.denoiser import Denoiser
from undegrade.models.diffusion.schedule import make_schedule
from undegrade.utils.data.pixels import from_signed, to_signed, to_unit, unit_to_signed


def published_loop(denoiser: Denoiser, ref: Tensor, noise: list[Tensor], steps: int, factor: int, scale: float) -> Tensor:
    """DDA as published, written from its formulas: joint norm, zero border, start one level above
    the first step.
    """
    chain = make_schedule(denoiser.noise_schedule, 1000, "100")
    tau, a = chain.timesteps.tolist(), chain.alpha_bar.tolist()
    matrix = LowPass(SIZE, factor, "zero").matrix.to(ref.dtype)
    x = math.sqrt(a[steps]) * ref + math.sqrt(1 - a[steps]) * noise[0]
    for i in range(steps - 1, -1, -1):
        before = a[i - 1] if i else 1.0
        b = 1 - a[i] / before
        x = x.detach().requires_grad_(True)
        out = denoiser.unet(x, torch.full((len(ref),), tau[i])).sample
        x0 = ((x - math.sqrt(1 - a[i]) * out[:, :3]) / math.sqrt(a[i])).clamp(-1, 1)
        mean = b * math.sqrt(before) / (1 - a[i]) * x0 + (1 - before) * math.sqrt(1 - b) / (1 - a[i]) * x
        sigma = 0.0
        if i:
            small = b * (1 - before) / (1 - a[i])
            f = (out[:, 3:] + 1) / 2 if denoiser.learn_sigma else 1.0
            sigma = torch.as_tensor(f * math.log(b) + (1 - f) * math.log(small), dtype=ref.dtype).div(2).exp()
        y = mean + sigma * noise[steps - i]
        apart = (matrix @ (ref - x0) @ matrix.T).square().sum().sqrt()
        x = y - scale * torch.autograd.grad(apart, x)[0]
    return x.detach()


@pytest.mark.parametrize("learn_sigma", [False, True])
@pytest.mark.parametrize("noise_schedule", ["linear", "cosine"])
@pytest.mark.parametrize(("dtype", "steps", "tolerance"), [(torch.float32, 20, 1e-4), (torch.float64, 50, 1e-9)])
def test_published_options_give_the_published_loop(dtype, steps, tolerance, noise_schedule, learn_sigma):
    # float32 over 50 steps of an untrained network can drift by 0.1: where a pixel of x0 crosses
    # the clip limit, its gradient jumps. float64 shows that the formulas agree.
    denoiser, ref = tiny_denoiser(noise_schedule, learn_sigma).to(dtype), random_images(2).to(dtype)
    streams = generators(0, 1)
    noise = [torch.stack([torch.randn(3, SIZE, SIZE, generator=g) for g in streams]) for _ in range(steps + 1)]
    noise = [z.to(dtype) for z in noise]
    expected = published_loop(denoiser, ref, noise, steps, factor=4, scale=6)
    unguided = published_loop(denoiser, ref, noise, steps, factor=4, scale=0)
    dda = DDA(denoiser, start_step=steps, guidance_weight=6, guidance_norm="batch", border="zero", start_mismatch=True)
    actual = dda.adapt(ref, generators(0, 1))
    assert (actual - expected).abs().max() <= tolerance
    assert (actual - unguided).abs().max() > 0.05  # the guidance is seen by this test


def test_default_start_is_the_level_that_is_denoised_first():
    denoiser, ref = tiny_denoiser(), random_images(1)
    seen: list[Tensor] = []
    denoiser.unet.register_forward_pre_hook(lambda module, args: seen.append(args))
    z = torch.randn(3, SIZE, SIZE, generator=generators(0)[0])
    for mismatch, level in ((False, 0.082637376), (True, 0.073939125)):
        seen.clear()
        DDA(denoiser, guidance_weight=0, start_mismatch=mismatch).adapt(ref, generators(0))
        x, tau = seen[0]
        assert (tau.item(), len(seen)) == (494, 50)
        torch.testing.assert_close(x[0], level**0.5 * ref[0] + (1 - level) ** 0.5 * z)


def test_per_image_result_is_byte_equal_with_other_companions():
    ref, dda = random_images(6), DDA(tiny_denoiser("cosine"), start_step=20)
    four = dda.adapt(ref[:4], generators(0, 1, 2, 3))
    other = dda.adapt(ref[[4, 1, 5, 3]], generators(4, 1, 5, 3))
    assert torch.equal(four[[1, 3]], other[[1, 3]])
    moved = dda.adapt(ref[[3, 2, 1, 0]], generators(3, 2, 1, 0))
    assert torch.equal(four, moved.flip(0))


def test_per_image_result_is_equal_for_another_batch_size_to_float_tolerance():
    ref, dda = random_images(4), DDA(tiny_denoiser(), start_step=20)
    four = dda.adapt(ref, generators(0, 1, 2, 3))
    alone = torch.cat([dda.adapt(ref[b : b + 1], generators(b)) for b in range(4)])
    torch.testing.assert_close(four, alone, rtol=0, atol=1e-4)


def test_batch_norm_couples_the_images_and_weakens_the_guidance():
    ref, denoiser = random_images(4), tiny_denoiser()
    joint = DDA(denoiser, start_step=10, guidance_norm="batch")
    alone = joint.adapt(ref[:1], generators(0))
    assert (joint.adapt(ref, generators(0, 1, 2, 3))[:1] - alone).abs().max() > 1e-3
    own = DDA(denoiser, start_step=10).adapt(ref[:1], generators(0))
    torch.testing.assert_close(alone, own)


@pytest.mark.parametrize("norm", ["batch", "per_image"])
def test_guidance_is_the_weight_times_the_gradient_of_the_norm(norm):
    denoiser, ref, weight = tiny_denoiser(), random_images(3), 2.5
    options = {"start_step": 1, "guidance_norm": norm}
    guided = DDA(denoiser, guidance_weight=weight, **options).adapt(ref, generators(0, 1, 2))
    plain = DDA(denoiser, guidance_weight=0, **options).adapt(ref, generators(0, 1, 2))

    chain, low_pass = make_schedule("linear", 1000, "100"), LowPass(SIZE, 4)
    z = torch.stack([torch.randn(3, SIZE, SIZE, generator=g) for g in generators(0, 1, 2)])
    x = chain.q_sample(ref, 0, z).requires_grad_()
    a = chain.alpha_bar[0].item()
    x0 = ((x - math.sqrt(1 - a) * denoiser.unet(x, torch.zeros(3).long()).sample) / math.sqrt(a)).clamp(-1, 1)
    squares = low_pass(ref - x0).square().sum((1, 2, 3))
    distance = squares.sum().sqrt() if norm == "batch" else squares.sqrt().sum()
    torch.testing.assert_close(plain - guided, weight * torch.autograd.grad(distance, x)[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "per_image"])
def test_jacobian_free_guidance_is_the_gradient_by_x0_over_the_root_of_alpha_bar(norm):
    denoiser, ref, weight, graphs = tiny_denoiser(), random_images(3), 2.5, []
    denoiser.unet.register_forward_hook(lambda module, args, output: graphs.append(output[0].requires_grad))
    options = {"start_step": 1, "guidance_norm": norm}
    guided = DDA(denoiser, guidance="jacobian_free", guidance_weight=weight, **options).adapt(ref, generators(0, 1, 2))
    plain = DDA(denoiser, guidance_weight=0, **options).adapt(ref, generators(0, 1, 2))
    assert graphs == [False, False]

    a, low_pass = make_schedule("linear", 1000, "100").alpha_bar[0].item(), LowPass(SIZE, 4)
    residual = low_pass(plain - ref)  # the last step ends at x0
    norms = residual.norm() if norm == "batch" else residual.flatten(1).norm(dim=1).reshape(3, 1, 1, 1)
    torch.testing.assert_close(plain - guided, weight * low_pass(residual) / norms / math.sqrt(a), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("weight", [0, 2.0])
def test_ddim_is_its_formula_and_draws_noise_once(weight):
    denoiser, ref, low_pass, chain = tiny_denoiser(), random_images(1), LowPass(SIZE, 4), make_schedule("linear", 1000, "20")
    z = torch.randn(3, SIZE, SIZE, generator=generators(0)[0])
    a = [*chain.alpha_bar.tolist(), 1.0]  # index -1: before the first level
    x = math.sqrt(a[7]) * ref + math.sqrt(1 - a[7]) * z
    for i in range(7, -1, -1):
        with torch.no_grad():
            eps = denoiser.unet(x, chain.timesteps[i : i + 1]).sample
        x0 = ((x - math.sqrt(1 - a[i]) * eps) / math.sqrt(a[i])).clamp(-1, 1)
        eps = (x - math.sqrt(a[i]) * x0) / math.sqrt(1 - a[i])
        residual = low_pass(x0 - ref)
        pull = low_pass(residual) / residual.norm() / math.sqrt(a[i])
        x = math.sqrt(a[i - 1]) * x0 + math.sqrt(1 - a[i - 1]) * eps - weight * pull
    options = {"respacing": "20", "start_step": 8, "guidance": "jacobian_free", "sampler": "ddim"}
    (stream,) = generators(0)
    found = DDA(denoiser, guidance_weight=weight, **options).adapt(ref, [stream])
    torch.testing.assert_close(found, x, rtol=0, atol=1e-4)
    once = generators(0)[0]
    torch.randn(3, SIZE, SIZE, generator=once)
    assert torch.equal(stream.get_state(), once.get_state())


@pytest.mark.parametrize("guidance", ["full", "jacobian_free"])
def test_result_of_the_fast_options_is_byte_equal_with_other_companions(guidance):
    ref, dda = random_images(5), DDA(tiny_denoiser("cosine"), start_step=8, respacing="20", guidance=guidance, sampler="ddim")
    three = dda.adapt(ref[:3], generators(0, 1, 2))
    assert torch.equal(three[2], dda.adapt(ref[[4, 2, 3]], generators(4, 2, 3))[1])


def test_guidance_brings_the_result_nearer_to_the_low_frequencies_of_the_image():
    denoiser, ref, low_pass = tiny_denoiser(), random_images(2), LowPass(SIZE, 4)
    distance = []
    for weight in (0, 3):
        adapted = DDA(denoiser, start_step=30, guidance_weight=weight).adapt(ref, generators(0, 1))
        distance.append(low_pass(adapted - ref).norm().item())
    assert distance[1] < 0.8 * distance[0]


def test_zero_residual_gives_no_nan():
    class Unet(torch.nn.Module):  # predicts no noise: the black image is then already clean, the residual exactly 0
        config = {"in_channels": 3, "out_channels": 3, "sample_size": SIZE}

        def forward(self, x, tau, return_dict):
            return (0 * x,)

    for norm in ("per_image", "batch"):
        dda = DDA(Denoiser(Unet(), noise_schedule="linear"), guidance_norm=norm, start_step=5)
        adapted = dda.adapt(-torch.ones(2, 3, SIZE, SIZE), generators(0, 1))
        assert adapted.isfinite().all()


def test_weights_are_frozen_and_get_no_gradient_and_the_result_is_detached():
    denoiser = tiny_denoiser().train()
    with torch.no_grad():
        under = DDA(denoiser, start_step=3).adapt(random_images(1), generators(0))
    free = DDA(denoiser, start_step=3).adapt(random_images(1), generators(0))
    assert torch.equal(under, free)
    assert not free.requires_grad
    assert not denoiser.training
    assert all(p.grad is None and not p.requires_grad for p in denoiser.parameters())


def test_weight_zero_builds_no_graph():
    denoiser, graphs = tiny_denoiser(), []
    denoiser.unet.register_forward_hook(lambda module, args, output: graphs.append(output[0].requires_grad))
    DDA(denoiser, start_step=2, guidance_weight=0).adapt(random_images(1), generators(0))
    DDA(denoiser, start_step=1, guidance_weight=1).adapt(random_images(1), generators(0))
    assert graphs == [False, False, True]


def test_start_by_noise_level_carries_over_to_another_schedule():
    for name in ("linear", "cosine"):
        chain = tiny_denoiser(name).schedule("100")
        dda = DDA(tiny_denoiser(name), start_step=chain.index_of_noise_level(0.5) + 1)
        assert dda.schedule.alpha_bar[dda.start_level].item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_step": 101}, r"start_step 101 is outside 1..100: the chain of respacing '100' has 100 levels"),
        ({"start_step": 100, "start_mismatch": True}, r"outside 1..99: .* start_mismatch needs one above"),
        ({"start_step": 0}, r"config key 'start_step'"),
        ({"respacing": "25"}, r"start_step 50 is outside 1..25"),
        ({"guidance_norm": "image"}, "'image' in config key 'guidance_norm': did you mean 'per_image'"),
        ({"sampler": "ddim", "variance": "fixed_small"}, "variance fixed_small has no meaning with sampler ddim"),
        ({"downscale_factor": 50}, "downscale_factor 50 does not divide the image size 16"),
    ],
)
def test_option_outside_its_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DDA(tiny_denoiser(), **options)


def test_images_and_generators_that_do_not_fit_are_refused():
    dda = DDA(tiny_denoiser(), start_step=1)
    with pytest.raises(ValueError, match=r"images have shape \[1, 3, 8, 8\]: this diffusion model needs \[B, 3, 16, 16\]"):
        dda.adapt(torch.zeros(1, 3, 8, 8), generators(0))
    with pytest.raises(ValueError, match="1 generators for 2 images: give one for each image"):
        dda.adapt(random_images(2), generators(0))


def test_pixels_round_trip_for_all_levels_and_truncation_darkens_63():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(from_signed(to_signed(levels)), levels)
    assert torch.equal(from_signed(unit_to_signed(to_unit(levels))), levels)
    truncated = from_signed(to_signed(levels), rounding="truncate").int()
    assert (levels.int() - truncated).unique().tolist() == [0, 1]
    assert (truncated != levels).sum() == 63
    assert (to_unit(levels).min(), to_unit(levels).max(), to_signed(levels).min(), to_signed(levels).max()) == (
        0,
        1,
        -1,
        1,
    )
    assert from_signed(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_pixels_of_another_dtype_or_rounding_are_refused():
    for convert in (to_unit, to_signed):
        with pytest.raises(ValueError, match="pixels have dtype torch.float32: uint8 0..255 is needed"):
            convert(torch.zeros(3))
    with pytest.raises(ValueError, match="unknown rounding 'floor'"):
        from_signed(torch.zeros(3), "floor")
