"""Class-conditional denoisers: the null label, guidance, label dropout, and the description that
keeps them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.dit_networks import OriginalDiT
from undegrade.models.diffusion.denoiser import Denoiser, build_denoiser, describe, from_description
from undegrade.models.diffusion.guidance import Guided, guided
from undegrade.models.diffusion.loading import initialise_denoiser, open_denoiser, save_folder
from undegrade.models.diffusion.sampling import check_variance, draw_noise, p_mean_variance, sample
from undegrade.trainers.config import TrainConfig
from undegrade.trainers.denoising import DenoiserConfig, Denoising, DenoisingConfig, build_denoising
from undegrade.trainers.method import Context
from undegrade.utils.checkpoint import save_checkpoint
from undegrade.utils.data.sources.registry import open_source


def conditional(null_label: bool = True, learn_sigma: bool = False) -> Denoiser:
    torch.manual_seed(0)
    # groups of several channels: the norm of a single channel takes the label out again
    denoiser = build_denoiser(8, [8], norm_groups=2, num_classes=4, null_label=null_label, learn_sigma=learn_sigma)
    return denoiser.eval().requires_grad_(False)


def noise(n: int) -> Tensor:
    return draw_noise((3, 8, 8), [torch.Generator().manual_seed(i) for i in range(n)], torch.empty(0))


def test_no_label_is_the_null_label_and_classes_differ_from_it() -> None:
    denoiser, x, tau = conditional(), noise(2), torch.tensor([3, 900])
    assert denoiser.num_classes == 4 and denoiser.unet.config["num_class_embeds"] == 5  # type: ignore[index]
    none, _ = denoiser(x, tau)
    assert torch.equal(none, denoiser(x, tau, torch.tensor([4, 4]))[0])
    assert not torch.allclose(none, denoiser(x, tau, torch.tensor([0, 3]))[0], atol=1e-3)


def test_without_null_label_a_label_is_needed() -> None:
    denoiser = conditional(null_label=False)
    assert denoiser.num_classes == 4 and denoiser.unet.config["num_class_embeds"] == 4  # type: ignore[index]
    with pytest.raises(ValueError, match=r"class-conditional \(4 classes\): give the label"):
        denoiser(noise(1), torch.tensor([3]))
    with pytest.raises(ValueError, match="null_label True: an unconditional network has no labels"):
        Denoiser(build_denoiser(8, [8]).unet, noise_schedule="linear", null_label=True)


@pytest.mark.parametrize("learn_sigma", [False, True])
@pytest.mark.parametrize("scale", [1.5, 4])
def test_guidance_is_its_formula_with_the_variance_of_the_class(scale: float, learn_sigma: bool) -> None:
    denoiser, x, tau, y = conditional(learn_sigma=learn_sigma), noise(2), torch.tensor([3, 900]), torch.tensor([2, 0])
    (with_class, r), (without, _) = denoiser(x, tau, y), denoiser(x, tau)
    eps, variance = guided(denoiser, scale)(x, tau, y)
    torch.testing.assert_close(eps, without + scale * (with_class - without), rtol=1e-4, atol=1e-5)
    eps, _ = guided(denoiser, scale, channels=1)(x, tau, y)
    torch.testing.assert_close(eps[:, 1:], with_class[:, 1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(eps[:, :1], (without + scale * (with_class - without))[:, :1], rtol=1e-4, atol=1e-5)
    assert (variance is None) == (r is None)
    if r is not None and variance is not None:
        torch.testing.assert_close(variance, r, rtol=1e-4, atol=1e-5)


def test_guidance_of_one_is_one_conditional_pass() -> None:
    denoiser = conditional(null_label=False)
    assert guided(denoiser, 1) is denoiser


@pytest.mark.parametrize(
    ("scale", "channels", "null_label", "message"),
    [
        (0.9, None, True, "guidance scale 0.9 is below 1: give 1 for no guidance"),
        (2, 0, True, r"0 guided channels: this diffusion model has 3, give 1\.\.3"),
        (2, None, False, "needs a model with a null label, .*method.label_dropout above 0"),
    ],
)
def test_guidance_that_cannot_be_is_refused(scale: float, channels: int | None, null_label: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        guided(conditional(null_label), scale, channels)


def test_sampling_shares_its_code_with_guidance() -> None:
    denoiser, seeds = conditional(), [3, 4]
    streams = lambda: [torch.Generator().manual_seed(s) for s in seeds]  # noqa: E731
    schedule, y = denoiser.schedule("4"), torch.tensor([1, 2])
    plain = sample(denoiser, schedule, (3, 8, 8), streams(), y=y)
    pulled = sample(Guided(denoiser, 1.0, 3), schedule, (3, 8, 8), streams(), y=y)
    torch.testing.assert_close(pulled, plain, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(sample(guided(denoiser, 3), schedule, (3, 8, 8), streams(), y=y), plain, atol=0.01)


def test_variance_of_a_step_is_chosen_by_name() -> None:
    schedule = conditional().schedule("10")
    for name, table in (("fixed_large", schedule.betas), ("fixed_small", schedule.posterior_variance)):
        step = p_mean_variance(conditional(learn_sigma=True), schedule, noise(1), 5, variance=name)
        assert step.std == pytest.approx(table[5].sqrt().item())
    assert isinstance(p_mean_variance(conditional(learn_sigma=True), schedule, noise(1), 5).std, Tensor)
    assert [check_variance(None, conditional(learn_sigma=s)) for s in (False, True)] == ["fixed_large", "learned"]


def test_description_keeps_the_null_label(tmp_path: Path) -> None:
    for null_label in (True, False):
        denoiser = conditional(null_label)
        meta = json.loads(json.dumps(describe(denoiser)))
        again = from_description(meta, denoiser.unet.state_dict())
        assert (again.num_classes, again.null_label) == (4, null_label)
        save_folder(denoiser, tmp_path / str(null_label))
        again = open_denoiser(tmp_path / str(null_label), {})
        assert (again.num_classes, again.null_label) == (4, null_label)
    assert "null_label" not in describe(build_denoiser(8, [8]))  # as it always was


# --- training


class _Seen(Denoiser):
    """Notes the labels that it is told."""

    labels: Tensor | None

    def forward(self, x: Tensor, tau: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        self.labels = y
        return super().forward(x, tau, y)


def seen_labels(train: bool, label_dropout: float) -> Tensor:
    unet = build_denoiser(8, [8], num_classes=4).unet
    student = _Seen(unet, noise_schedule="cosine", null_label=True)
    label = torch.arange(400) % 4
    batch = {"clean": torch.zeros(400, 3, 8, 8), "label": label, "key": [str(i) for i in range(400)]}
    torch.manual_seed(1)
    method = Denoising(student, list("abcd"), label_dropout).train(train)
    assert method(batch)["loss"].isfinite()  # type: ignore[arg-type]
    assert student.labels is not None
    kept = student.labels < 4
    assert torch.equal(student.labels[kept], label[kept]) and student.labels.max() <= 4
    return student.labels


def test_a_share_of_the_training_labels_is_dropped_and_none_in_validation() -> None:
    assert 0.15 < (seen_labels(True, 0.25) == 4).float().mean() < 0.35
    assert (seen_labels(True, 0.0) < 4).all() and (seen_labels(False, 0.25) < 4).all()


def test_classes_are_those_of_the_data_and_a_run_without_dropout_has_no_null_label() -> None:
    source, model = open_source("Digits", "train", limit=20), DenoiserConfig(channels=[8], class_conditional=True)
    context = Context(source, [], TrainConfig("run"))
    method = build_denoising(model, DenoisingConfig(), context)
    assert isinstance(method, Denoising) and method.label_dropout == 0.1
    _, meta = method.export(method.named_parts())
    assert meta["classes"] == list(source.classes) and meta["null_label"] is True and method.student.num_classes == 10
    assert not build_denoising(model, DenoisingConfig(label_dropout=0), context).student.null_label  # type: ignore[union-attr]
    plain = build_denoising(DenoiserConfig(channels=[8]), DenoisingConfig(), context)
    assert "classes" not in plain.export(plain.named_parts())[1] and plain.student.num_classes is None


def test_restated_dit_sees_class_time_and_place() -> None:
    """The reference of tests/test_dit.py reacts to all its inputs, so that agreement with it says
    something.
    """
    net, x = OriginalDiT(), draw_noise((4, 4, 4), [torch.Generator()], torch.empty(0))
    base = net(x, torch.tensor([5]), torch.tensor([1]))
    assert not torch.allclose(base, net(x, torch.tensor([6]), torch.tensor([1])), atol=1e-3)
    assert not torch.allclose(base, net(x, torch.tensor([5]), torch.tensor([2])), atol=1e-3)
    assert not torch.allclose(base.flip(-1), net(x.flip(-1), torch.tensor([5]), torch.tensor([1])), atol=1e-3)


def test_conditional_network_starts_from_an_unconditional_one(tmp_path: Path) -> None:
    torch.manual_seed(1)
    parent = build_denoiser(8, [8], norm_groups=2).eval()
    save_checkpoint(tmp_path / "best.safetensors", parent.unet.state_dict(), describe(parent))
    start = conditional()
    own = start.unet.state_dict()["class_embedding.weight"].clone()
    initialise_denoiser(start, tmp_path / "best.safetensors")
    x, tau = noise(2), torch.tensor([3, 900])
    torch.testing.assert_close(start(x, tau)[0], parent(x, tau)[0], rtol=1e-4, atol=1e-5)  # without a class
    embedding = start.unet.state_dict()["class_embedding.weight"]
    assert torch.equal(embedding[:4], own[:4]) and not embedding[4:].any()
    save_checkpoint(tmp_path / "again.safetensors", start.unet.state_dict(), describe(start))
    second = conditional()
    initialise_denoiser(second, tmp_path / "again.safetensors")  # of the same classes: their embedding, too
    assert torch.equal(second.unet.state_dict()["class_embedding.weight"], embedding)


def test_start_from_another_network_is_refused_with_what_differs(tmp_path: Path) -> None:
    for options, message in (
        ({"noise_schedule": "linear"}, "noise_schedule linear there, cosine here"),
        ({"diffusion_steps": 100}, "diffusion_steps 100 there, 1000 here"),
        ({"channels": [16]}, "its weights do not fit the model section"),
    ):
        given = {"channels": [8], "norm_groups": 2, **options}
        parent = build_denoiser(8, **given)  # type: ignore[arg-type]
        save_checkpoint(tmp_path / "best.safetensors", parent.unet.state_dict(), describe(parent))
        with pytest.raises(ValueError, match=message):
            initialise_denoiser(conditional(), tmp_path / "best.safetensors")
