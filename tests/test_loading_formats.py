"""Diffusion models in every format that --model_path takes, the conversion between them, and
damaged ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from tests.adapting import adapt, pngs, save_images
from tests.openai_networks import TINY, answer_and_gradient, joined, reference, relative_error, save, texts, words
from tests.scripts import run_script
from undegrade.models.diffusion.denoiser import build_denoiser
from undegrade.models.diffusion.loading import denoiser_digest, diffusers_folder, open_denoiser
from undegrade.models.diffusion.openai_flags import ModelFlags

CONVERT = "image_adapt/scripts/convert_checkpoint.py"
FLAGS = texts(TINY)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def noisy() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([321])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OpenAI file of the tiny network."""
    path = tmp_path_factory.mktemp("openai") / "model.pt"
    save(path, ModelFlags(**TINY))
    return path


@pytest.fixture
def converted(checkpoint: Path, tmp_path: Path) -> Path:
    """The folder made of it."""
    chain = {"noise_schedule": "cosine", "rescale_timesteps": True, "diffusion_steps": 4000}
    run_script(CONVERT, "--model_path", checkpoint, "--out", tmp_path / "net", *words({**TINY, **chain})).check()
    return tmp_path / "net"


# --- OpenAI files


@pytest.mark.parametrize("zipped", [True, False])
def test_an_openai_file_is_loaded_by_its_flags_frozen_in_eval_mode(tmp_path: Path, zipped: bool) -> None:
    theirs = save(tmp_path / "model.pt", ModelFlags(**TINY))
    torch.save(theirs.state_dict(), tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    ours = open_denoiser(tmp_path / "model.pt", {**FLAGS, "noise_schedule": "cosine", "diffusion_steps": "400"})
    assert not ours.training and not any(p.requires_grad for p in ours.parameters())
    assert (ours.noise_schedule, ours.diffusion_steps, ours.image_size, ours.learn_sigma) == ("cosine", 400, 16, True)
    assert relative_error(joined(ours)(*noisy()), theirs(*noisy())) < 1e-5


def test_flags_of_another_network_are_refused_with_the_file(checkpoint: Path) -> None:
    message = r"checkpoint \S*model\.pt: the flags describe another network: --num_channels 128 \(the file: 32\)"
    with pytest.raises(ValueError, match=message):
        open_denoiser(checkpoint, {"image_size": "64"})


def test_a_number_of_heads_that_diffusers_has_no_option_for_survives_conversion(tmp_path: Path) -> None:
    """Both widths have 4 heads; the first level is half as wide as the time embedding."""
    values = {
        **TINY, "num_channels": 64, "channel_mult": "0.5,1", "num_head_channels": -1, "num_heads": 4,
        "attention_resolutions": "16,8",
    }  # fmt: skip
    theirs = save(tmp_path / "model.pt", ModelFlags(**values))
    run_script(CONVERT, "--model_path", tmp_path / "model.pt", "--out", tmp_path / "net", *words(values)).check()
    ours = open_denoiser(tmp_path / "net", texts(values))
    assert relative_error(joined(ours)(*noisy()), theirs(*noisy())) < 1e-5
    with pytest.raises(ValueError, match=r"--num_heads 2 \(the checkpoint: 4\)"):
        open_denoiser(tmp_path / "net", {"num_heads": "2"})


def test_recomputing_activations_gives_the_same_gradient(checkpoint: Path) -> None:
    plain, saving = (open_denoiser(checkpoint, {**FLAGS, "use_checkpoint": text}) for text in ("False", "True"))
    assert saving.unet.is_gradient_checkpointing and not plain.unet.is_gradient_checkpointing
    assert torch.equal(answer_and_gradient(joined(plain), *noisy())[1], answer_and_gradient(joined(saving), *noisy())[1])


class Trap:
    """Leaves a trace when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, ("sprung",)


def test_damaged_files_and_files_with_code_are_refused_by_name(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cut.pt").write_bytes(checkpoint.read_bytes()[:-5000])
    Path("page.pt").write_text("<html>not found</html>")
    torch.save({"state_dict": {}, "model": Trap()}, "code.pt")
    torch.save({"fc.weight": torch.ones(3)}, "other.pt")
    for name, message in (
        ("cut", r"cut\.pt cannot be read as a file of tensors"),
        ("page", r"page\.pt cannot be read as a file of tensors"),
        ("code", r"code\.pt cannot be read as a file of tensors \(holds \S*mkdir\)"),
        ("other", r"other\.pt: not a U-Net of guided-diffusion or improved-diffusion \(it holds 1 tensors: fc\.weight"),
    ):
        with pytest.raises(ValueError, match=message):
            open_denoiser(f"{name}.pt", FLAGS)
    assert not Path("sprung").exists()
    with pytest.raises(FileNotFoundError, match=r"checkpoint gone\.pt does not exist"):
        open_denoiser("gone.pt", FLAGS)


# --- folders


def test_a_converted_folder_says_all_itself_and_gives_the_same(checkpoint: Path, converted: Path) -> None:
    direct, ours = open_denoiser(checkpoint, FLAGS), open_denoiser(converted, {})
    assert json.loads((converted / "denoiser.json").read_text()) == {
        "noise_schedule": "cosine", "diffusion_steps": 4000, "learn_sigma": True, "rescale_timesteps": True,
    }  # fmt: skip
    x, tau = noisy()
    networks: tuple[Any, ...] = (direct.unet, ours.unet, UNet2DModel.from_pretrained(converted))
    expected, found, by_diffusers = (network(x, tau).sample.detach() for network in networks)
    assert torch.equal(found, expected)
    assert relative_error(by_diffusers, expected) < 1e-5
    assert (ours.noise_schedule, ours.diffusion_steps, ours.rescale_timesteps) == ("cosine", 4000, True)
    assert sorted(path.name for path in converted.iterdir()) == ["config.json", "denoiser.json", WEIGHTS]
    assert len({path.stat().st_mode for path in converted.iterdir()}) == 1
    open_denoiser(converted, {**FLAGS, "noise_schedule": "cosine", "diffusion_steps": "4000", "rescale_timesteps": "True"})
    with pytest.raises(
        ValueError, match=r"--num_res_blocks 3 \(the checkpoint: 1\); --noise_schedule linear \(the checkpoint: cosine\)"
    ):
        open_denoiser(converted, {"num_res_blocks": "3", "noise_schedule": "linear"})


def test_half_precision_rounds_what_the_published_code_rounds_and_is_read_as_float32(
    checkpoint: Path, converted: Path, tmp_path: Path
) -> None:
    run_script(CONVERT, "--model_path", checkpoint, "--out", tmp_path / "half", "--use_fp16", "True", *words(TINY)).check()
    assert (tmp_path / "half" / WEIGHTS).stat().st_size < 0.65 * (converted / WEIGHTS).stat().st_size
    theirs = reference(ModelFlags(**TINY))
    theirs.convert_to_fp16()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    expected = open_denoiser(tmp_path / "theirs.pt", FLAGS).state_dict()
    found = open_denoiser(tmp_path / "half", {}).state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}


def test_conversion_writes_into_no_existing_folder_and_leaves_nothing_when_it_fails(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    done = run_script(CONVERT, "--model_path", checkpoint, "--out", tmp_path / "there", *words(TINY))
    assert done.status == 2 and "there exists already: choose another folder, or remove it" in done.err
    done = run_script(CONVERT, "--model_path", checkpoint, "--out", tmp_path / "new")
    assert done.status == 2 and "the flags describe another network" in done.err and "Traceback" not in done.err
    done = run_script(CONVERT, "--model_path", checkpoint, "--out", tmp_path / "new", "--dda.respacing", "10", *words(TINY))
    assert done.status == 2 and "this command has flags only" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_folder_of_diffusers_needs_to_be_told_its_noise_schedule(tmp_path: Path) -> None:
    torch.manual_seed(0)
    unet: Any = build_denoiser(8, [8, 16], attention_levels=[1], learn_sigma=True).unet.eval()
    unet.save_pretrained(tmp_path / "pipeline/unet")
    folder = diffusers_folder(tmp_path / "pipeline")
    assert folder is not None and folder == tmp_path / "pipeline/unet" == diffusers_folder(folder)
    assert diffusers_folder(tmp_path) is None
    with pytest.raises(ValueError, match=r"does not say how its network was trained.*--noise_schedule \(linear or cosine\)"):
        open_denoiser(folder, {})
    ours = open_denoiser(folder, {"noise_schedule": "cosine"})
    assert (ours.noise_schedule, ours.diffusion_steps, ours.learn_sigma) == ("cosine", 1000, True)
    x, tau = torch.randn(1, 3, 8, 8), torch.tensor([7])
    with torch.no_grad():
        assert torch.equal(joined(ours)(x, tau), unet(x, tau).sample)


def test_a_folder_with_the_attention_names_of_old_diffusers_is_read(converted: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(converted / WEIGHTS)
    expected = joined(open_denoiser(converted, {}))(*noisy())
    for old, new in {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}.items():
        state = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in state.items()}
    assert any(".query." in name for name in state)
    save_file(state, converted / WEIGHTS)
    assert torch.equal(joined(open_denoiser(converted, {}))(*noisy()), expected)


def test_damaged_folders_are_refused_by_name(converted: Path, tmp_path: Path) -> None:
    def refused(kind: type[Exception], message: str) -> None:
        with pytest.raises(kind, match=message):
            open_denoiser(converted, {})

    config = (converted / "config.json").read_text()
    (converted / WEIGHTS).write_bytes((converted / WEIGHTS).read_bytes()[:-9])
    refused(ValueError, rf"{WEIGHTS} cannot be read as safetensors \(truncated")
    (converted / WEIGHTS).unlink()
    refused(FileNotFoundError, f"{WEIGHTS} does not exist")
    (converted / "config.json").write_text(config.replace("UNet2DModel", "UNet2DConditionModel"))
    refused(ValueError, "net holds a UNet2DConditionModel, a UNet2DModel is needed here")
    (converted / "config.json").write_text("{")
    refused(ValueError, r"config\.json is damaged \(JSONDecodeError")
    (converted / "config.json").write_text("[]")
    refused(ValueError, r"config\.json holds no names with values: take another copy of that folder")
    (converted / "config.json").unlink()
    refused(FileNotFoundError, r"net holds no config\.json: give a folder that diffusers wrote")


# --- adaptation


def test_adaptation_takes_the_file_and_the_folder_alike(checkpoint: Path, tmp_path: Path) -> None:
    run_script(CONVERT, "--model_path", checkpoint, "--out", tmp_path / "net", *words(TINY)).check()
    save_images(tmp_path / "in", ["a.png", "b.png"], side=16)
    inputs = ("--base_samples", tmp_path / "in")
    adapt(checkpoint, tmp_path / "of_file", *inputs, *words(TINY)).check()
    adapt(tmp_path / "net", tmp_path / "of_folder", *inputs).check()
    assert len(pngs(tmp_path / "of_file")) == 2 and pngs(tmp_path / "of_file") == pngs(tmp_path / "of_folder")
    again = adapt(checkpoint, tmp_path / "of_file", *inputs, *words({**TINY, "num_head_channels": 32}))
    assert again.status == 2 and "holds images made with other settings (model:" in again.err


def test_adaptation_needs_an_unconditional_model(tmp_path: Path) -> None:
    values = {**TINY, "class_cond": True}
    save(tmp_path / "model.pt", ModelFlags(**values))
    done = adapt(tmp_path / "model.pt", tmp_path / "out", *words(values))
    assert done.status == 2 and "model.pt is class-conditional and the classes of the images are not known" in done.err


def test_digest_tells_networks_apart_and_not_flags_without_effect(checkpoint: Path, converted: Path) -> None:
    base = denoiser_digest(checkpoint, FLAGS)
    assert base == denoiser_digest(checkpoint, {**FLAGS, "use_checkpoint": "True", "num_heads_upsample": "-1", "class_cond": "no"})
    others = [
        denoiser_digest(checkpoint, {**FLAGS, **change}) for change in ({"num_head_channels": "32"}, {"noise_schedule": "cosine"})
    ]
    assert len({base, *others, denoiser_digest(converted, {})}) == 4
    assert denoiser_digest(converted, {}) == denoiser_digest(converted, FLAGS)
    (converted / "denoiser.json").unlink()
    bare = [denoiser_digest(converted, {"noise_schedule": name}) for name in ("linear", "cosine")]
    assert len({*bare, denoiser_digest(checkpoint, FLAGS)}) == 3
