"""Noise schedules against the published tables and the guided-diffusion package."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from guided_diffusion import gaussian_diffusion as gd
from guided_diffusion.respace import SpacedDiffusion, space_timesteps

from undegrade.models.diffusion.schedule import make_schedule, respaced_timesteps

# i: (time step, alpha_bar linear, alpha_bar cosine, beta linear, beta cosine) of the 100-step chain
# over 1000
PUBLISHED = {
    0: (0, 0.9999, 0.99995872, 1.0e-4, 4.12842e-5),
    1: (10, 0.99780657, 0.9992789, 2.09364e-3, 6.7984e-4),
    4: (40, 0.97976692, 0.99433528, 8.04233e-3, 2.13809e-3),
    10: (101, 0.89325113, 0.97105405, 2.00397e-2, 5.13252e-3),
    30: (303, 0.38682615, 0.78178152, 5.88422e-2, 1.60331e-2),
    49: (494, 0.082637376, 0.50163629, 9.42541e-2, 3.01272e-2),
    50: (505, 0.073939125, 0.48449452, 1.05258e-1, 3.41717e-2),
    99: (999, 4.0358298e-5, 2.4287669e-9, 1.8218e-1, 9.9999e-1),
}


def reference(name: str, respacing: str, steps: int = 1000) -> SpacedDiffusion:
    return SpacedDiffusion(
        use_timesteps=space_timesteps(steps, respacing or [steps]),
        betas=gd.get_named_beta_schedule(name, steps),
        model_mean_type=gd.ModelMeanType.EPSILON,
        model_var_type=gd.ModelVarType.FIXED_LARGE,
        loss_type=gd.LossType.MSE,
    )


@pytest.mark.parametrize(("name", "column"), [("linear", 0), ("cosine", 1)])
def test_tables_have_the_published_values(name, column):
    schedule = make_schedule(name, 1000, "100")
    for i, row in PUBLISHED.items():
        assert schedule.timesteps[i] == row[0]
        assert schedule.alpha_bar[i].item() == pytest.approx(row[1 + column], rel=5e-8)
        assert schedule.betas[i].item() == pytest.approx(row[3 + column], rel=5e-6)


@pytest.mark.parametrize("respacing", ["", "100", "10,20,30", "ddim100", "250", "31"])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_tables_equal_guided_diffusion(name, respacing):
    ours, theirs = make_schedule(name, 1000, respacing), reference(name, respacing)
    assert ours.timesteps.tolist() == theirs.timestep_map
    for table, other in [
        (ours.alpha_bar, theirs.alphas_cumprod),
        (ours.betas, theirs.betas),
        (ours.posterior_variance, theirs.posterior_variance),
        (ours.posterior_log_variance, theirs.posterior_log_variance_clipped),
        (ours.x0_weight, theirs.posterior_mean_coef1),
        (ours.xi_weight, theirs.posterior_mean_coef2),
    ]:
        assert table.dtype == torch.float64
        np.testing.assert_allclose(table.numpy(), other, rtol=1e-9, atol=1e-15)


def test_linear_betas_of_another_length_equal_guided_diffusion():
    ours, theirs = make_schedule("linear", 4000), reference("linear", "", 4000)
    np.testing.assert_allclose(ours.alpha_bar.numpy(), theirs.alphas_cumprod, rtol=1e-9)


def test_hundred_of_a_thousand_has_ninety_strides_of_ten_and_nine_of_eleven():
    steps = respaced_timesteps(1000, "100")
    assert steps[:8] == [0, 10, 20, 30, 40, 50, 61, 71]
    assert steps[-2:] == [989, 999]
    strides = np.diff(steps).tolist()
    assert (strides.count(10), strides.count(11), len(strides)) == (90, 9, 99)


@pytest.mark.parametrize("length", [100, 333])
def test_every_count_gives_the_time_steps_of_guided_diffusion(length):
    for count in range(2, length + 1):
        assert respaced_timesteps(length, str(count)) == sorted(space_timesteps(length, str(count)))


def test_equal_stride_starts_at_zero():
    assert respaced_timesteps(1000, "ddim100") == list(range(0, 1000, 10))


@pytest.mark.parametrize(
    ("respacing", "message"),
    [
        ("1001", "asks for 1001 of the 1000 steps in section 1: ask for at most 1000"),
        ("10,600", "asks for 600 of the 500 steps in section 2"),
        ("fast", "'fast' is not understood: give a number of steps"),
        ("10,", "is not understood"),
        ("0", "is not understood"),
        ("1", "at least 2"),
        ("ddim10,20", "is not understood"),
        ("ddim301", "no equal stride over 1000 steps gives exactly 301: the closest that works is 'ddim334'"),
    ],
)
def test_impossible_respacing_is_refused(respacing, message):
    with pytest.raises(ValueError, match=message):
        respaced_timesteps(1000, respacing)


def test_unknown_schedule_and_short_chain_are_refused():
    with pytest.raises(ValueError, match="unknown noise schedule 'cosin'.*did you mean 'cosine'"):
        make_schedule("cosin")
    with pytest.raises(ValueError, match="diffusion_steps 1 is too small"):
        make_schedule("linear", 1)


def test_q_sample_takes_one_level_or_one_per_image():
    schedule = make_schedule("linear", 1000, "100")
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.rand(2, 3, 4, 4, generator=generator), torch.randn(2, 3, 4, 4, generator=generator)
    mixed = schedule.q_sample(x0, torch.tensor([0, 50]), noise)
    torch.testing.assert_close(mixed[1], 0.073939125**0.5 * x0[1] + (1 - 0.073939125) ** 0.5 * noise[1])
    for image, i in enumerate((0, 50)):
        assert torch.equal(mixed[image], schedule.q_sample(x0, i, noise)[image])
    assert mixed.dtype == torch.float32


def test_noise_level_finds_the_same_noise_in_both_schedules():
    linear, cosine = make_schedule("linear", 1000, "100"), make_schedule("cosine", 1000, "100")
    assert linear.index_of_noise_level(0.0739) == 50
    assert cosine.index_of_noise_level(0.0739) == 82
    assert cosine.alpha_bar[82].item() == pytest.approx(0.0739, abs=0.01)
    with pytest.raises(ValueError, match="alpha_bar 1.5 is not between 0"):
        linear.index_of_noise_level(1.5)
