"""Features of diffusion models: the right maps, in a pass that ends early, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.adapting import SIZE, random_images, tiny_denoiser
from undegrade.models.diffusion.denoiser import Denoiser, build_denoiser
from undegrade.models.diffusion.features import DiffusionFeatures, Standardised


def whole_pass(denoiser: Denoiser, path: str, x: Tensor, t: Tensor) -> Tensor:
    """A map of a pass that is not cut short."""
    taken = []
    handle = denoiser.unet.get_submodule(path).register_forward_hook(lambda module, inputs, output: taken.append(output))
    with torch.no_grad():
        denoiser(x, t)
    handle.remove()
    return taken[0]


@pytest.mark.parametrize(("layer", "path"), [
    ("branch", "mid_block.resnets.1.conv2"), ("block", "mid_block"), ("down_blocks.0.resnets.0", "down_blocks.0.resnets.0"),
])  # fmt: skip
def test_maps_are_those_of_a_whole_pass_bit_for_bit(layer: str, path: str) -> None:
    denoiser, x, t = tiny_denoiser(), random_images(3), torch.tensor([0, 500, 999])
    weights = [p.clone() for p in denoiser.parameters()]
    found = DiffusionFeatures(denoiser, [layer])(x, t)[0]
    assert torch.equal(found, whole_pass(denoiser, path, x, t))
    assert not found.requires_grad and not any(p.requires_grad for p in denoiser.parameters())
    assert all(torch.equal(a, b) for a, b in zip(weights, denoiser.parameters(), strict=True))


def test_the_way_up_is_not_computed_and_several_maps_come_from_one_pass() -> None:
    denoiser = tiny_denoiser()
    called = []
    for name in ("down_blocks.0", "mid_block", "up_blocks.0"):
        denoiser.unet.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: called.append(name))
    first, second = DiffusionFeatures(denoiser, ["down_blocks.0.resnets.0", "branch"])(random_images(2), torch.tensor([3, 4]))
    assert called == ["down_blocks.0"] and first.shape[2] >= second.shape[2]


def test_noised_features_are_those_of_the_noised_image() -> None:
    denoiser, x, t = tiny_denoiser(), random_images(2), torch.tensor([100, 900])
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    found = DiffusionFeatures(denoiser, noised=True)(x, t, noise)[0]
    assert torch.equal(found, whole_pass(denoiser, "mid_block.resnets.1.conv2", denoiser.schedule().q_sample(x, t, noise), t))


@pytest.mark.parametrize(("low", "high"), [(-2.1, 2.6), (0.0, 255.0)])
def test_images_as_classifiers_normalise_them_are_refused(low: float, high: float) -> None:
    x = torch.linspace(low, high, 3 * SIZE**2).reshape(1, 3, SIZE, SIZE)
    with pytest.raises(ValueError, match=rf"images reach from {low:.2f} to {high:.2f}: a diffusion model takes \[-1, 1\]"):
        DiffusionFeatures(tiny_denoiser())(x, torch.tensor([0]))


def test_layers_and_time_steps_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match=r"layer 'brunch' in UNet2DModel: did you mean 'branch'\?.*block.*mid_block"):
        DiffusionFeatures(tiny_denoiser(), ["brunch"])
    with pytest.raises(ValueError, match=r"time steps from 5 to 1000: this diffusion model has 0\.\.999"):
        DiffusionFeatures(tiny_denoiser())(random_images(2), torch.tensor([5, 1000]))
    with pytest.raises(ValueError, match=r"layer time_embedding gives \[2, \d+\], a map \[B, C, h, w\] is needed"):
        DiffusionFeatures(tiny_denoiser(), ["time_embedding"])(random_images(2), torch.tensor([5, 6]))


def test_a_conditional_model_sees_its_null_label_or_the_label_that_it_is_told() -> None:
    denoiser = build_denoiser(SIZE, [8, 16], num_classes=3).eval()
    nn.init.normal_(denoiser.unet.class_embedding.weight)
    features, x, t = DiffusionFeatures(denoiser), random_images(2), torch.tensor([10, 20])
    null = features(x, t, y=torch.tensor([3, 3]))[0]
    assert torch.equal(features(x, t)[0], null) and not torch.equal(features(x, t, y=torch.tensor([0, 1]))[0], null)


def test_standardised_maps_have_mean_0_and_deviation_1_of_each_step_where_asked() -> None:
    generator = torch.Generator().manual_seed(0)
    t = torch.tensor([0, 500] * 50)
    maps = torch.randn(100, 2, 3, 3, generator=generator) * torch.tensor([2.0, 5.0])[:, None, None] + t[:, None, None, None] / 100
    for steps, groups in ((None, [slice(None)]), ([500, 0], [t == 0, t == 500])):
        statistics = Standardised(2, steps)
        for start in range(0, 100, 30):
            statistics.add(maps[start : start + 30], t[start : start + 30])
        found = statistics(maps, t)
        for group in groups:
            assert found[group].mean((0, 2, 3)).tolist() == pytest.approx([0, 0], abs=1e-4)
            assert found[group].std((0, 2, 3), correction=0).tolist() == pytest.approx([1, 1], rel=1e-4)
