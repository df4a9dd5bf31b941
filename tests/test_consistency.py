"""Consistency distillation: the function, the objective, and adaptation in few passes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.adapting import SIZE, generators, random_images, tiny_denoiser
from undegrade.image_adapt.dda import DDA, DDAOptions
from undegrade.models.diffusion.consistency import boundary, consistency_levels, pseudo_huber
from undegrade.models.diffusion.denoiser import Denoiser, describe, from_description
from undegrade.models.diffusion.schedule import make_schedule, respaced_timesteps
from undegrade.trainers.consistency import ConsistencyConfig, ConsistentDenoiser
from undegrade.trainers.method import check_parts
from undegrade.trainers.methods import METHODS
from undegrade.utils.data.batches import Batch
from undegrade.utils.data.pixels import unit_to_signed


def batch(count: int = 4) -> Batch:
    images = (random_images(count) + 1) / 2
    return {
        "clean": images,
        "degraded": images,
        "label": torch.zeros(count, dtype=torch.int64),
        "key": [str(i) for i in range(count)],
    }


class KnowsTheImage(nn.Module):
    """The diffusion model of one image: the noise in x if the clean image is `image`."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.config = {"in_channels": 3, "out_channels": 3, "sample_size": SIZE}
        self.image, self.shift = image, nn.Parameter(torch.zeros(()))
        self.alpha_bar = make_schedule("cosine").alpha_bar.float()

    def forward(self, x: Tensor, tau: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        a = self.alpha_bar[tau].reshape(-1, 1, 1, 1)
        return ((x - a.sqrt() * (self.image + self.shift)) / (1 - a).sqrt(),)


def distilled(levels: int = 30) -> Denoiser:
    denoiser = tiny_denoiser("cosine")
    denoiser.consistency = {"respacing": "trailing50", "levels": levels}
    return denoiser


def test_the_function_is_the_identity_at_step_0_and_the_predicted_image_later() -> None:
    from diffusers import LCMScheduler

    tau = torch.tensor([0, 1, 19, 500, 999])
    skip, out = boundary(tau)
    assert (skip[0], out[0]) == (1, 0)
    published = LCMScheduler()
    assert torch.allclose(torch.stack([skip, out], 1)[1:], torch.tensor([
        published.get_scalings_for_boundary_condition_discrete(int(t)) for t in tau[1:]], dtype=torch.float64))  # fmt: skip


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_levels_are_those_of_the_published_scheduler(steps: int) -> None:
    from diffusers import LCMScheduler

    published = LCMScheduler(original_inference_steps=50)
    published.set_timesteps(steps)
    chain = respaced_timesteps(1000, "trailing50")
    assert [chain[i] for i in consistency_levels(50, steps)] == published.timesteps.tolist()


@pytest.mark.parametrize("text", ["trailing", "trailing1", "trailing7", "trailing-5"])
def test_parts_that_do_not_divide_the_chain_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a number that divides"):
        respaced_timesteps(1000, text)


def test_pseudo_huber_is_the_distance_of_large_differences_and_smooth_at_0() -> None:
    difference = torch.tensor([0.0, 1.0, -2.0], requires_grad=True)
    loss = pseudo_huber(difference, 1e-3)
    assert torch.allclose(loss, difference.abs(), atol=1e-3) and loss[0] == 0
    loss.sum().backward()
    assert difference.grad is not None and difference.grad[0] == 0


def test_a_model_that_knows_the_image_is_consistent() -> None:
    images = batch()
    teacher = Denoiser(KnowsTheImage(unit_to_signed(images["clean"])), noise_schedule="cosine")
    method = ConsistentDenoiser(teacher, ConsistencyConfig(loss="l2")).train()
    # but near step 0, where the function keeps a little of its input
    assert method(images)["loss"] < 1e-5


def test_the_first_part_ends_at_time_step_0_and_not_at_the_clean_image(monkeypatch: pytest.MonkeyPatch) -> None:
    method = ConsistentDenoiser(tiny_denoiser("cosine"), ConsistencyConfig(top=0.02, loss="l2"))
    asked: list[Tensor] = []
    predict = method.predict
    monkeypatch.setattr(
        method, "predict", lambda network, x, tau, condition: asked.append(tau) or predict(network, x, tau, condition)
    )
    images = batch()
    out = method.train()(images)
    target, student = asked  # the target is asked first
    assert target.tolist() == [0] * 4 and student.tolist() == [19] * 4 and torch.isfinite(out["loss"])


def test_the_target_gets_no_gradient_and_follows_the_student() -> None:
    method = ConsistentDenoiser(tiny_denoiser("cosine"), ConsistencyConfig(target_decay=0.9)).train()
    check_parts(method)
    method(batch())["loss"].backward()
    assert all(p.grad is None for p in [*method.target.parameters(), *method.teacher.parameters()])
    mine, theirs = next(method.student.parameters()), next(method.target.parameters())
    before = theirs.clone()
    with torch.no_grad():
        mine += 1
        method.after_step(1)
    assert torch.allclose(theirs, 0.9 * before + 0.1 * mine)


def test_validation_compares_and_training_draws_anew() -> None:
    method, images = ConsistentDenoiser(tiny_denoiser("cosine"), ConsistencyConfig()), batch()
    assert method.eval()(images)["loss"] == method(images)["loss"]
    method.train()
    assert method(images)["loss"] != method(images)["loss"]


def test_the_checkpoint_says_along_which_chain_it_was_distilled() -> None:
    method = ConsistentDenoiser(tiny_denoiser("cosine"), ConsistencyConfig(top=0.6))
    weights, description = method.export({"student": method.student})
    again = from_description(description, weights)
    assert again.consistency == {"respacing": "trailing50", "levels": 30} and describe(again) == describe(method.student)
    assert "consistency" in METHODS and tiny_denoiser().consistency is None


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_adaptation_asks_the_model_so_often_and_repeats_itself(steps: int) -> None:
    dda = DDA(distilled(), sampler="consistency", steps=steps, respacing="trailing50", start_step=25, guidance_weight=0.0)
    calls: list[int] = []
    dda.denoiser.register_forward_hook(lambda module, inputs, output: calls.append(int(inputs[1][0])))
    images = random_images(2)
    once = dda.adapt(images, generators(0, 1))
    assert dda.passes == (steps, 0) and calls == [19 + 20 * i for i in consistency_levels(25, steps)]
    assert torch.equal(once, dda.adapt(images, generators(0, 1)))
    assert torch.allclose(once[1:], dda.adapt(images[1:], generators(1)), atol=1e-5)


def test_one_pass_is_the_function_of_the_noised_image() -> None:
    images = random_images(2)
    knows = Denoiser(KnowsTheImage(images.flip(3)), noise_schedule="cosine", consistency={"respacing": "trailing50", "levels": 50})
    dda = DDA(knows, sampler="consistency", respacing="trailing50", start_step=30, guidance_weight=0.0)
    assert torch.allclose(dda.adapt(images, generators(0, 1)), images.flip(3), atol=1e-3)


def test_guidance_brings_few_steps_nearer_to_the_low_frequencies_of_the_image() -> None:
    images = random_images(2)

    def distance(weight: float) -> Tensor:
        options = {"steps": 4, "respacing": "trailing50", "start_step": 25, "guidance": "jacobian_free"}
        dda = DDA(distilled(), sampler="consistency", guidance_weight=weight, **options)
        return dda.low_pass(dda.adapt(images, generators(0, 1)) - images).norm()

    assert distance(1.0) < distance(0.0)


@pytest.mark.parametrize(("options", "message"), [
    ({"respacing": "100"}, "distilled along 'trailing50'"),
    ({"respacing": "trailing50", "start_step": 31}, "start_step of at most 30"),
    ({"respacing": "trailing50", "start_step": 3, "steps": 4}, "give 1..3"),
])  # fmt: skip
def test_another_chain_than_the_distilled_one_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DDA(distilled(), sampler="consistency", **{"start_step": 20, **options})


def test_an_ordinary_model_is_refused_and_steps_belong_to_this_sampler() -> None:
    with pytest.raises(ValueError, match="method consistency"):
        DDA(tiny_denoiser(), sampler="consistency", respacing="trailing50", start_step=20)
    with pytest.raises(ValueError, match="steps 4 is for sampler consistency"):
        DDAOptions(steps=4)


def test_training_and_adaptation_by_the_commands(tmp_path: Path) -> None:
    from tests.scripts import run_script

    common = ("--save_dir", tmp_path, "--data.limit", 40, "--loop.epochs", 1, "--model.channels", "[8,16]")
    run_script("train.py", "-c", "configs/diffusion/Digits/ddpm.yaml", *common).check()
    run_script("train.py", "-c", "tests/recipes/consistency.yaml", "--save_dir", tmp_path, "--data.limit", 40).check()
    done = run_script(
        "image_adapt/scripts/image_sample.py", "--model_path", "diffusion/Digits/consistency", "--runs", tmp_path, "--save_dir",
        tmp_path / "adapted", "--corruption", "fog", "--limit", 4, "--sampler", "consistency", "--timestep_respacing", "trailing50",
        "--N", 25, "--dda.steps", 2, "--guidance_weight", 0,
    ).check()  # fmt: skip
    assert len(list((tmp_path / "adapted").rglob("*.png"))) == 4, done.err
