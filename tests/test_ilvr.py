"""ILVR against its algorithm, and what all reverse chains have in common: variance and start by
noise level.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.adapting import SIZE, generators, random_images, tiny_denoiser
from undegrade.image_adapt.dda import DDA
from undegrade.image_adapt.ilvr import ILVR
from undegrade.image_adapt.lowpass import LowPass
from undegrade.models.diffusion.denoiser import Denoiser
from undegrade.models.diffusion.schedule import make_schedule


@torch.no_grad()
def written_out(denoiser: Denoiser, ref: Tensor, seed: int, steps: int, range_t: int, late: int) -> Tensor:
    """The algorithm for one image from its formulas; `late` is added to the level of the
    reference.
    """
    chain, low = make_schedule("linear", 1000, "20"), LowPass(SIZE, 4)
    a, stream = chain.alpha_bar.tolist(), generators(seed)[0]

    def noised(level: int) -> Tensor:
        return math.sqrt(a[level]) * ref + math.sqrt(1 - a[level]) * torch.randn(3, SIZE, SIZE, generator=stream)

    x = noised(steps - 1)
    for i in range(steps - 1, -1, -1):
        before = a[i - 1] if i else 1.0
        beta = 1 - a[i] / before
        eps = denoiser.unet(x, torch.tensor([chain.timesteps[i].item()])).sample
        x0 = ((x - math.sqrt(1 - a[i]) * eps) / math.sqrt(a[i])).clamp(-1, 1)
        mean = beta * math.sqrt(before) / (1 - a[i]) * x0 + (1 - before) * math.sqrt(1 - beta) / (1 - a[i]) * x
        x = mean + (math.sqrt(beta) if i else 0) * torch.randn(3, SIZE, SIZE, generator=stream)
        if i > range_t:
            x = x - low(x) + low(noised(i - 1 + late))
    return x


@pytest.mark.parametrize(("options", "range_t", "late"), [({}, 3, 0), ({"reference_mismatch": True}, 0, 1)])
def test_ilvr_is_its_algorithm(options, range_t, late):
    ilvr = ILVR(tiny_denoiser(), respacing="20", start_step=8, downscale_factor=4, range_t=range_t, **options)
    ref = random_images(1)
    expected = written_out(tiny_denoiser(), ref, 3, 8, range_t, late)
    torch.testing.assert_close(ilvr.adapt(ref, generators(3)), expected, rtol=0, atol=1e-4)
    assert (
        expected - written_out(tiny_denoiser(), ref, 3, 8, range_t, 1 - late)
    ).abs().max() > 0.01  # the level is seen by this test


def test_ilvr_keeps_the_low_frequencies_of_the_image_without_a_gradient():
    denoiser, ref, low, graphs = tiny_denoiser(), random_images(2), LowPass(SIZE, 4), []
    denoiser.unet.register_forward_hook(lambda module, args, output: graphs.append(output[0].requires_grad))
    held = ILVR(denoiser, respacing="20", start_step=12, downscale_factor=4, range_t=0).adapt(ref, generators(0, 1))
    assert graphs == [False] * 12
    free = DDA(denoiser, respacing="20", start_step=12, guidance_weight=0).adapt(ref, generators(0, 1))
    assert low(held - ref).norm() < 0.5 * low(free - ref).norm()


def test_ilvr_result_of_an_image_is_byte_equal_with_other_companions():
    ref, ilvr = random_images(5), ILVR(tiny_denoiser("cosine"), respacing="20", start_step=8, range_t=2)
    three = ilvr.adapt(ref[:3], generators(0, 1, 2))
    other = ilvr.adapt(ref[[4, 2, 3]], generators(4, 2, 3))
    assert torch.equal(three[2], other[1])


def test_range_beyond_the_steps_is_refused():
    with pytest.raises(ValueError, match="range_t 8 is outside 0..7"):
        ILVR(tiny_denoiser(), respacing="20", start_step=8, range_t=8)


# --- every chain


@pytest.mark.parametrize(("variance", "table"), [("fixed_large", "betas"), ("fixed_small", "posterior_variance")])
@pytest.mark.parametrize("learn_sigma", [False, True])
def test_fixed_variance_is_that_of_the_table_and_nothing_at_the_last_step(variance, table, learn_sigma):
    dda = DDA(tiny_denoiser(learn_sigma=learn_sigma), respacing="20", start_step=5, variance=variance)
    x = random_images(1)
    for i in (1, 4, 19):
        assert dda._reverse_step(x, i).std == pytest.approx(getattr(dda.schedule, table)[i].item() ** 0.5)
    assert dda._reverse_step(x, 0).std == 0


def test_variance_is_the_learned_one_if_there_is_one_and_else_large():
    def results(learn_sigma: bool, *variances: str | None) -> list[Tensor]:
        made = (DDA(tiny_denoiser(learn_sigma=learn_sigma), start_step=5, guidance_weight=0, variance=v) for v in variances)
        return [dda.adapt(random_images(1), generators(0)) for dda in made]

    default, learned, large = results(True, None, "learned", "fixed_large")
    assert torch.equal(default, learned) and not torch.equal(default, large)
    default, large, small = results(False, None, "fixed_large", "fixed_small")
    assert torch.equal(default, large) and not torch.equal(default, small)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_noise_level_is_the_nearest_step_of_the_chain(name):
    dda = DDA(tiny_denoiser(name), noise_level=0.5)
    assert dda.schedule.alpha_bar[dda.start_level].item() == pytest.approx(0.5, abs=0.02)
    same = DDA(tiny_denoiser(name), start_step=dda.start_step)
    assert torch.equal(dda.adapt(random_images(1), generators(0)), same.adapt(random_images(1), generators(0)))
    assert DDA(tiny_denoiser(name)).start_step == 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_level": 0.5, "start_step": 7}, "start_step 7 and noise_level 0.5 say the same thing twice"),
        ({"variance": "learned"}, "has no learned variance, use fixed_large or fixed_small"),
    ],
)
def test_option_that_has_no_meaning_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DDA(tiny_denoiser(), **options)
