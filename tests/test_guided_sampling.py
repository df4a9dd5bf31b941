"""Reverse steps and whole adaptations of a converted network against the published network and
sampler.
"""

from __future__ import annotations

import math

import pytest
import torch
from guided_diffusion.script_util import create_gaussian_diffusion
from torch import Tensor

from tests.openai_networks import TINY, all_double, reference, relative_error
from undegrade.image_adapt.dda import DDA
from undegrade.image_adapt.lowpass import LowPass
from undegrade.models.diffusion.denoiser import denoising_loss
from undegrade.models.diffusion.openai import denoiser_from_openai
from undegrade.models.diffusion.openai_flags import ModelFlags
from undegrade.models.diffusion.sampling import p_mean_variance, sample

SHAPE = (3, 16, 16)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def noisy(images: int = 2) -> Tensor:
    return torch.randn(images, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("class_cond", [False, True])
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("noise_schedule", ["linear", "cosine"])
def test_learned_variance_and_mean_equal_the_published_sampler(noise_schedule: str, rescale: bool, class_cond: bool) -> None:
    flags = ModelFlags(**{**TINY, "noise_schedule": noise_schedule, "rescale_timesteps": rescale, "class_cond": class_cond})
    theirs = reference(flags)
    ours = denoiser_from_openai(theirs.state_dict(), flags).eval()
    chain = create_gaussian_diffusion(
        learn_sigma=True, noise_schedule=noise_schedule, timestep_respacing="20", rescale_timesteps=rescale
    )
    x, y = noisy(), torch.tensor([4, 7]) if class_cond else None
    for i in (1, 7, 18, 19):
        expected = chain.p_mean_variance(theirs, x, torch.full((2,), i), model_kwargs={"y": y} if class_cond else None)
        with torch.no_grad():
            step = p_mean_variance(ours, ours.schedule("20"), x, i, y=y)
        assert torch.is_tensor(step.std)
        torch.testing.assert_close(2 * step.std.log(), expected["log_variance"], rtol=1e-5, atol=1e-5)
        # x0 is the small difference of two large terms where noise prevails
        tolerance = 1e-5 * max(1, 1 / math.sqrt(ours.schedule("20").alpha_bar[i].item()))
        torch.testing.assert_close(step.x0, expected["pred_xstart"], rtol=0, atol=tolerance)
        torch.testing.assert_close(step.mean, expected["mean"], rtol=0, atol=tolerance)
        assert i > 1 or step.std.max() / step.std.min() > 1.1  # learned, not one number; its limits meet where noise prevails


def test_in_double_precision_the_sampled_images_differ_by_rounding_only(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ModelFlags(**TINY)
    theirs = reference(flags)
    ours = denoiser_from_openai(theirs.state_dict(), flags).eval().requires_grad_(False)
    all_double(monkeypatch, theirs, ours)
    stream = generators(3)[0]
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.randn(SHAPE, generator=stream)[None].double())
    start = torch.randn(1, *SHAPE, generator=stream).double()
    chain = create_gaussian_diffusion(learn_sigma=True, timestep_respacing="10")
    expected = chain.p_sample_loop(theirs, (1, *SHAPE), noise=start, device="cpu")
    found = sample(ours, ours.schedule("10"), SHAPE, generators(3))
    assert found.dtype == torch.float64
    assert relative_error(found, expected) < 1e-10


@pytest.mark.parametrize(("noise_schedule", "steps"), [("linear", 8), ("cosine", 5)])
def test_adaptation_equals_the_formulas_on_the_published_network(noise_schedule: str, steps: int) -> None:
    flags = ModelFlags(**{**TINY, "noise_schedule": noise_schedule})
    network = reference(flags)
    ours = denoiser_from_openai(network.state_dict(), flags)
    images = noisy().clamp(-1, 1)
    adapted = DDA(
        ours, respacing="20", start_step=steps, guidance_weight=6.0, guidance_norm="batch", border="zero", start_mismatch=True
    ).adapt(images, generators(1, 2))
    expected = formulas(network, images, noise_schedule, steps, weight=6.0)
    assert (adapted - expected).abs().max() < 1e-4
    assert (adapted - images).abs().max() > 0.1


def formulas(network: torch.nn.Module, images: Tensor, noise_schedule: str, steps: int, weight: float) -> Tensor:
    """The published algorithm as it is written down, on levels of the 20-step chain; noise of image
    b from generator b.
    """
    chain = create_gaussian_diffusion(learn_sigma=True, noise_schedule=noise_schedule, timestep_respacing="20")
    a = chain.alphas_cumprod
    tau = [round(i * 999 / 19) for i in range(20)]
    low_pass = LowPass(16, 4, "zero")
    streams = generators(1, 2)

    def noise() -> Tensor:
        return torch.stack([torch.randn(SHAPE, generator=stream) for stream in streams])

    x = math.sqrt(a[steps]) * images + math.sqrt(1 - a[steps]) * noise()
    for i in range(steps - 1, -1, -1):
        z, before = noise(), a[i - 1] if i else 1.0
        b = 1 - a[i] / before
        x.requires_grad_()
        eps, r = network(x, torch.full((2,), tau[i])).chunk(2, 1)
        x0 = (x / math.sqrt(a[i]) - math.sqrt(1 / a[i] - 1) * eps).clamp(-1, 1)
        mean = b * math.sqrt(before) / (1 - a[i]) * x0 + (1 - before) * math.sqrt(1 - b) / (1 - a[i]) * x
        y = mean
        if i:
            share = (r + 1) / 2
            log_variance = share * math.log(b) + (1 - share) * math.log(b * (1 - before) / (1 - a[i]))
            y = mean + (log_variance / 2).exp() * z
        (gradient,) = torch.autograd.grad((low_pass(images) - low_pass(x0)).norm(), x)
        x = (y - weight * gradient).detach()
    return x


def test_sampling_and_loss_take_labels_and_need_them_of_a_class_conditional_network() -> None:
    flags = ModelFlags(**{**TINY, "class_cond": True})
    denoiser = denoiser_from_openai(reference(flags).state_dict(), flags).eval().requires_grad_(False)
    assert denoiser.num_classes == 10
    schedule, x, t = denoiser.schedule("5"), noisy(1), torch.tensor([500])
    images = [sample(denoiser, schedule, SHAPE, generators(0), y=torch.tensor([label])) for label in (3, 3, 4)]
    assert torch.equal(images[0], images[1]) and not torch.allclose(images[0], images[2], atol=1e-3)
    losses = [denoising_loss(denoiser, x, t, noisy(1), torch.tensor([label])).item() for label in (3, 4)]
    assert losses[0] != losses[1]
    message = r"class-conditional \(10 classes\): give the label of each image as y, or use an unconditional model"
    for call in (
        lambda: sample(denoiser, schedule, SHAPE, generators(0)),
        lambda: denoising_loss(denoiser, x, t, noisy(1)),
        lambda: DDA(denoiser, respacing="10", start_step=2).adapt(x, generators(0)),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_labels_for_an_unconditional_network_are_refused() -> None:
    flags = ModelFlags(**TINY)
    denoiser = denoiser_from_openai(reference(flags).state_dict(), flags)
    assert denoiser.num_classes is None
    with pytest.raises(ValueError, match="is unconditional: leave the labels y out"):
        denoiser(noisy(), torch.tensor([1, 2]), torch.tensor([0, 0]))
