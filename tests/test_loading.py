"""Networks from checkpoints on disk, and the flags of guided-diffusion checked against one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from undegrade.models.classification.classifier import Classifier, build_classifier, describe
from undegrade.models.classification.loading import initialise_classifier, load_classifier
from undegrade.models.diffusion.denoiser import Denoiser, build_denoiser
from undegrade.models.diffusion.denoiser import describe as describe_denoiser
from undegrade.models.diffusion.loading import load_denoiser
from undegrade.models.diffusion.openai_flags import MODEL_FLAGS, check_model_flags
from undegrade.utils.checkpoint import save_checkpoint
from undegrade.utils.runs import BEST, mark_done

CLASSES = ["cat", "dog", "horse"]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)
TIMM = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of test_efficientnet


def make_classifier(seed: int = 0, arch: str = "ResNet20") -> Classifier:
    torch.manual_seed(seed)
    return build_classifier(arch, len(CLASSES), MEAN, STD)


def save_run(save_dir: Path, classifier: Classifier, name: str = "ind/clean", classes: list[str] = CLASSES) -> Path:
    """A finished run; returns its checkpoint."""
    path = save_dir / name / "run1" / BEST
    save_checkpoint(path, classifier.network.state_dict(), {**describe(classifier), "classes": classes})
    mark_done(path.parent)
    return path


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    return build_denoiser(8, [8, 16], attention_levels=[1], noise_schedule="linear", diffusion_steps=50)


# --- classifiers


def test_a_classifier_is_loaded_by_run_name_in_eval_mode_with_its_weights_and_normalisation(tmp_path: Path) -> None:
    saved = make_classifier().eval()
    save_run(tmp_path, saved)
    loaded = load_classifier("ind/clean", tmp_path, CLASSES)
    images = torch.rand(2, 3, 16, 16)
    assert not loaded.training
    assert torch.equal(loaded(images), saved(images))


def test_a_missing_checkpoint_is_reported_with_the_finished_runs(tmp_path: Path) -> None:
    save_run(tmp_path, make_classifier())
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 'ind/claen'.*; did you mean ind/clean\?"):
        load_classifier("ind/claen", tmp_path)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["cat", "cow", "horse"], "was trained on 3 classes, the data set has 3 (class 1 is 'dog' there, 'cow' here): choose"),
        (["cat", "dog"], "was trained on 3 classes, the data set has 2 (class 2 is 'horse' there, none here): choose"),
        (["dog", "cat", "horse"], "was trained on 3 classes, the data set has 3 (class 0 is 'cat' there, 'dog' here): choose"),
    ],
)
def test_a_checkpoint_of_other_classes_is_refused_with_the_first_that_differs(
    tmp_path: Path, classes: list[str], message: str
) -> None:
    path = save_run(tmp_path, make_classifier())
    with pytest.raises(ValueError, match=re.escape(f"checkpoint {path} {message}")):
        load_classifier("ind/clean", tmp_path, classes)
    with pytest.raises(ValueError, match=re.escape(f"checkpoint {path} {message}")):
        initialise_classifier(make_classifier(), "ind/clean", tmp_path, classes)


def test_classes_are_not_compared_where_the_checkpoint_names_none(tmp_path: Path) -> None:
    save_run(tmp_path, make_classifier(), classes=[])
    assert load_classifier("ind/clean", tmp_path, ["other", "names", "here"]).num_classes == 3


def test_a_classifier_without_description_cannot_be_loaded_but_says_how_to_use_it(tmp_path: Path) -> None:
    torch.save(make_classifier().network.state_dict(), tmp_path / "theirs.pth")
    message = r"theirs\.pth does not say what network it holds: name it \(--arch.*start a run from it \(model\.arch and"
    with pytest.raises(ValueError, match=message):
        load_classifier(tmp_path / "theirs.pth")


def test_a_diffusion_model_is_no_classifier(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "ddpm.safetensors", {"w": torch.ones(1)}, {"kind": "diffusion"})
    with pytest.raises(ValueError, match=r"ddpm\.safetensors holds a diffusion model, a classifier model is needed here"):
        load_classifier(tmp_path / "ddpm.safetensors")


# --- starting from weights


@pytest.mark.parametrize("foreign", [False, True])
def test_a_classifier_starts_from_the_weights_of_a_run_or_of_a_foreign_file(tmp_path: Path, foreign: bool) -> None:
    source, target = make_classifier(0), make_classifier(1)
    path = save_run(tmp_path, source)
    if foreign:
        path = tmp_path / "theirs.pth"
        torch.save({"state_dict": {f"module.{k}": v for k, v in source.network.state_dict().items()}}, path)
    initialise_classifier(target, path, tmp_path, CLASSES)
    for name, tensor in source.network.state_dict().items():
        assert torch.equal(target.network.state_dict()[name], tensor)


def test_weights_of_another_architecture_are_refused_with_both_names(tmp_path: Path) -> None:
    path = save_run(tmp_path, make_classifier())
    message = f"checkpoint {path} holds a ResNet20, model.arch is ResNet56: make them equal"
    with pytest.raises(ValueError, match=re.escape(message)):
        initialise_classifier(make_classifier(arch="ResNet56"), "ind/clean", tmp_path, CLASSES)


def test_foreign_weights_of_another_architecture_are_refused_with_the_names_that_differ(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.ones(1)}, tmp_path / "theirs.pth")
    message = r"theirs\.pth: the weights are not those of ResNet20 but of another architecture .*unexpected: conv\.weight"
    with pytest.raises(ValueError, match=message):
        initialise_classifier(make_classifier(), tmp_path / "theirs.pth", tmp_path, CLASSES)


# --- lone files of other programs, and normalisation


def save_lone(path: Path, arch: str) -> Classifier:
    torch.manual_seed(0)
    inside = build_classifier(arch, len(CLASSES), MEAN, STD).eval()
    save_file(inside.network.state_dict(), path)
    return inside


def test_a_lone_file_of_a_timm_network_is_loaded_by_its_name_with_timms_normalisation(tmp_path: Path) -> None:
    inside = save_lone(tmp_path / "lone.safetensors", "test_efficientnet")
    loaded = load_classifier(tmp_path / "lone.safetensors", classes=CLASSES, arch="test_efficientnet")
    inside.set_normalisation(*TIMM)
    images = torch.rand(1, 3, 32, 32)
    assert not loaded.training
    assert torch.equal(loaded(images), inside(images))
    told = load_classifier(tmp_path / "lone.safetensors", classes=CLASSES, arch="test_efficientnet", std=STD)
    assert (describe(told)["mean"], describe(told)["std"]) == (list(TIMM[0]), list(STD))


def test_a_lone_file_of_our_networks_needs_its_normalisation(tmp_path: Path) -> None:
    inside = save_lone(tmp_path / "lone.safetensors", "ResNet20")
    options = {"classes": CLASSES, "arch": "ResNet20"}
    for given in ({}, {"mean": MEAN}):
        with pytest.raises(ValueError, match=r"does not say with which mean and std its ResNet20 was trained: give both"):
            load_classifier(tmp_path / "lone.safetensors", **options, **given)  # type: ignore[arg-type]
    loaded = load_classifier(tmp_path / "lone.safetensors", **options, mean=MEAN, std=STD)  # type: ignore[arg-type]
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(loaded(images), inside(images))


def test_a_lone_file_of_other_classes_or_another_network_is_refused_by_name(tmp_path: Path) -> None:
    save_lone(tmp_path / "lone.safetensors", "ResNet20")
    with pytest.raises(ValueError, match=r"lone\.safetensors: the weights are for 3 classes, ResNet20 was built for 2: take"):
        load_classifier(tmp_path / "lone.safetensors", classes=CLASSES[:2], arch="ResNet20")
    with pytest.raises(ValueError, match=r"lone\.safetensors: the weights are not those of ResNet56"):
        load_classifier(tmp_path / "lone.safetensors", classes=CLASSES, arch="ResNet56")


def test_a_name_that_contradicts_the_checkpoint_is_refused_and_its_normalisation_may_be_replaced(tmp_path: Path) -> None:
    path = save_run(tmp_path, make_classifier())
    with pytest.raises(ValueError, match=re.escape(f"checkpoint {path} holds a ResNet20, arch is ResNet56: make them equal")):
        load_classifier("ind/clean", tmp_path, CLASSES, arch="ResNet56")
    loaded = load_classifier("ind/clean", tmp_path, CLASSES, arch="ResNet20", mean=(0.1, 0.2, 0.3))
    assert (describe(loaded)["mean"], describe(loaded)["std"]) == ([0.1, 0.2, 0.3], list(STD))


def test_a_student_takes_over_the_normalisation_of_the_weights_it_starts_from(tmp_path: Path) -> None:
    save_run(tmp_path, make_classifier())
    save_lone(tmp_path / "timm.safetensors", "test_efficientnet")
    save_lone(tmp_path / "ours.safetensors", "ResNet20")
    other = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    for reference, arch, mean in (
        ("ind/clean", "ResNet20", MEAN),
        (tmp_path / "timm.safetensors", "test_efficientnet", TIMM[0]),
        (tmp_path / "ours.safetensors", "ResNet20", other[0]),
    ):
        student = build_classifier(arch, len(CLASSES), *other)
        initialise_classifier(student, reference, tmp_path, CLASSES)
        assert describe(student)["mean"] == list(mean)


# --- diffusion models


def test_a_diffusion_model_is_loaded_frozen_in_eval_mode_with_its_weights(tmp_path: Path, denoiser: Denoiser) -> None:
    save_checkpoint(tmp_path / "ddpm.safetensors", denoiser.unet.state_dict(), describe_denoiser(denoiser))
    loaded = load_denoiser(tmp_path / "ddpm.safetensors")
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert (loaded.noise_schedule, loaded.diffusion_steps, loaded.image_size) == ("linear", 50, 8)
    x, tau = torch.randn(1, 3, 8, 8), torch.tensor([7])
    with torch.no_grad():
        assert torch.equal(loaded(x, tau)[0], denoiser.eval()(x, tau)[0])


def test_a_classifier_is_no_diffusion_model(tmp_path: Path) -> None:
    path = save_run(tmp_path, make_classifier())
    with pytest.raises(
        ValueError, match=re.escape(f"checkpoint {path} holds a classifier model, a diffusion model is needed here")
    ):
        load_denoiser("ind/clean", tmp_path)


def test_a_diffusion_model_without_description_is_refused_with_the_commands_that_make_one(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "theirs.pt")
    message = r"theirs\.pt does not say what .*: train one with train\.py -c .*convert it with .*/convert_checkpoint\.py"
    with pytest.raises(ValueError, match=message):
        load_denoiser(tmp_path / "theirs.pt")


# --- flags

AGREEING = {
    "image_size": "8", "num_channels": "8", "num_res_blocks": "1", "num_heads": "1", "num_heads_upsample": "-1",
    "num_head_channels": "-1", "attention_resolutions": "4", "channel_mult": "1,2", "dropout": "0", "class_cond": "False",
    "resblock_updown": "no", "use_scale_shift_norm": "f", "learn_sigma": "0", "diffusion_steps": "50", "noise_schedule": "linear",
    "rescale_timesteps": "n", "predict_xstart": "False",
    # of the file's layout, of memory, of training: these leave no trace in a network
    "use_new_attention_order": "True", "use_checkpoint": "True", "use_kl": "True", "rescale_learned_sigmas": "True",
}  # fmt: skip


def test_flags_that_agree_with_the_checkpoint_pass(denoiser: Denoiser) -> None:
    check_model_flags(denoiser, AGREEING)
    check_model_flags(denoiser, {})


@pytest.mark.parametrize(
    ("flag", "text", "held"),
    [
        ("image_size", "64", "8"), ("num_channels", "128", "8"), ("num_res_blocks", "3", "1"), ("num_heads", "4", "1"),
        ("num_head_channels", "64", "16"), ("num_heads_upsample", "2", "1"), ("channel_mult", "1,2,2", "1,2"),
        ("dropout", "0.3", "0.0"),
        ("attention_resolutions", "8,4", "4"), ("class_cond", "True", "False"), ("resblock_updown", "yes", "False"),
        ("use_scale_shift_norm", "true", "False"), ("learn_sigma", "True", "False"), ("diffusion_steps", "1000", "50"),
        ("noise_schedule", "cosine", "linear"), ("rescale_timesteps", "True", "False"), ("predict_xstart", "True", "False"),
    ],
)  # fmt: skip
def test_a_flag_that_contradicts_the_checkpoint_is_reported_with_both_values(
    denoiser: Denoiser, flag: str, text: str, held: str
) -> None:
    message = f"flags contradict the checkpoint: --{flag} {text} (the checkpoint: {held}). Leave them out, or give the checkpoint"
    with pytest.raises(ValueError, match=re.escape(message)):
        check_model_flags(denoiser, {**AGREEING, flag: text})


def test_all_contradicting_flags_are_reported_at_once(denoiser: Denoiser) -> None:
    with pytest.raises(ValueError, match=r"--image_size 64 \(the checkpoint: 8\); --learn_sigma True \(the checkpoint: False\)\."):
        check_model_flags(denoiser, {"image_size": "64", "num_channels": "8", "learn_sigma": "True"})


def test_attention_sizes_are_named_from_the_largest_down() -> None:
    both = build_denoiser(8, [8, 8], attention_levels=[0, 1])
    check_model_flags(both, {"attention_resolutions": "8, 4"})


def test_number_of_heads_has_no_meaning_beside_their_width(denoiser: Denoiser) -> None:
    check_model_flags(denoiser, {"num_heads": "4", "num_head_channels": "16"})


@pytest.mark.parametrize(
    ("flag", "text", "message"),
    [
        ("image_size", "large", "--image_size large is not understood: give a whole number"),
        ("dropout", "some", "--dropout some is not understood: give a number"),
        ("class_cond", "maybe", "--class_cond maybe is not understood: give True or False"),
        ("attention_resolutions", "16;8", "--attention_resolutions 16;8 is not understood: give numbers joined by commas"),
    ],
)
def test_a_text_that_is_no_value_of_its_flag_is_refused(denoiser: Denoiser, flag: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check_model_flags(denoiser, {flag: text})


def test_the_table_of_flags_is_the_one_that_is_tested() -> None:
    assert set(MODEL_FLAGS) == set(AGREEING)
