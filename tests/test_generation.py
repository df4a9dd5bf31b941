"""generate.py on digits: which files, that they depend on seed and number alone, going on,
settings, mistakes; with MPI.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.adapting import SCRIPT as ADAPT
from tests.adapting import files, manifest_of, pixels, pngs, save_images
from tests.scripts import Done, launch, program, run_script
from undegrade.image_adapt.generate import job_of, parse_classes
from undegrade.image_adapt.generator import GenerateConfig, ImageGenerator
from undegrade.models.diffusion.denoiser import build_denoiser, describe
from undegrade.models.diffusion.loading import load_denoiser
from undegrade.models.diffusion.sampling import sample
from undegrade.utils.checkpoint import save_checkpoint
from undegrade.utils.data.pixels import from_signed
from undegrade.utils.seeding import torch_generator

MPIEXEC = program("mpiexec")
SCRIPT = "image_adapt/scripts/generate.py"
CLASSES = ["zero", "one", "two"]


def save_model(path: Path, null_label: bool = True, num_classes: int | None = 3) -> Path:
    torch.manual_seed(0)
    denoiser = build_denoiser(8, [8], norm_groups=2, num_classes=num_classes, null_label=null_label)
    save_checkpoint(path, denoiser.unet.state_dict(), {**describe(denoiser), "classes": CLASSES})
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "best.safetensors")


def words(model: Path, save_dir: Path, count: int = 3) -> tuple[object, ...]:
    return "--model_path", model, "--save_dir", save_dir, "--num_per_class", count, "--timestep_respacing", 4, "--batch_size", 4


def generated(model: Path, save_dir: Path, count: int = 3, *more: object) -> Done:
    return run_script(SCRIPT, *words(model, save_dir, count), *more)


def test_files_are_numbered_by_class_and_image_and_listed(model: Path, tmp_path: Path) -> None:
    done = generated(model, tmp_path, 3).check()
    assert "generated 9 images in " in done.err and " images/s), 0 were there already" in done.err
    assert list(pngs(tmp_path)) == [f"{c:04d}/{3 * j + c:06d}.png" for c in range(3) for j in range(3)]
    assert (tmp_path / "classes.txt").read_text() == "0000 zero\n0001 one\n0002 two\n"
    assert [(row["file"], row["label"], row["level"], row["seed"]) for row in manifest_of(tmp_path)] == [
        (name, int(name[:4]), None, 0) for name in pngs(tmp_path)
    ]
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["parameters"] == {
        "respacing": "4", "guidance_scale": 1.0, "variance": "fixed_large", "clip_denoised": True,
    }  # fmt: skip
    assert settings["generator"] == "pixels" and settings["classes"] == 3


def test_an_image_is_the_sample_of_its_seed_and_number(model: Path, tmp_path: Path) -> None:
    generated(model, tmp_path, 3, "--seed", 5).check()
    denoiser = load_denoiser(model).to(memory_format=torch.channels_last)
    for g in (0, 5, 7):
        image = sample(denoiser, denoiser.schedule("4"), (3, 8, 8), [torch_generator(5, "generate", g)], y=torch.tensor([g % 3]))
        found = pixels(tmp_path / f"{g % 3:04d}/{g:06d}.png")
        assert np.abs(found - from_signed(image)[0].permute(1, 2, 0).numpy().astype(int)).max() <= 1
    other = generated(model, tmp_path / "other", 3, "--global-seed", 6).check()
    assert "generated 9" in other.err and pngs(tmp_path / "other")["0000/000000.png"] != pngs(tmp_path)["0000/000000.png"]


def test_more_images_and_other_classes_keep_the_first(model: Path, tmp_path: Path) -> None:
    generated(model, tmp_path, 2).check()
    first = pngs(tmp_path)
    some = generated(model, tmp_path, 4, "--classes", "0,2").check()
    assert "generated 4 images" in some.err and "2 were there already" not in some.err and "4 were there already" in some.err
    generated(model, tmp_path, 4).check()
    many = pngs(tmp_path)
    assert len(many) == 12 and {name: many[name] for name in first} == first
    generated(model, tmp_path / "alone", 4, "--classes", "1-1").check()
    alone = pngs(tmp_path / "alone")
    assert len(alone) == 4 and alone == {name: many[name] for name in alone}
    generated(model, tmp_path, 1, "--classes", "1").check()
    assert len(manifest_of(tmp_path)) == 12  # all that is there, whichever command made it


def test_same_command_makes_what_is_missing(model: Path, tmp_path: Path) -> None:
    generated(model, tmp_path).check()
    all_files = pngs(tmp_path)
    for name in ("0000/000003.png", "0002/000008.png"):
        (tmp_path / name).unlink()
    (tmp_path / "manifest.jsonl").unlink()
    assert "7 there, 2 to do" in generated(model, tmp_path, 3, "--dry_run").check().out
    assert "generated 2 images" in generated(model, tmp_path).check().err
    assert pngs(tmp_path) == all_files and len(manifest_of(tmp_path)) == 9


def test_other_settings_are_refused_or_replaced(model: Path, tmp_path: Path) -> None:
    generated(model, tmp_path, 3).check()
    before = pngs(tmp_path)
    more = ("--classes", "0", "--cfg-scale", 2)
    for extra in ((), ("--dry_run",)):
        done = generated(model, tmp_path, 1, *more, *extra)
        assert (
            done.status == 2
            and "other settings (guidance_scale: 1.0 there, 2.0 now; guided_channels: None there, 3 now):" in done.err
        )
    assert pngs(tmp_path) == before
    assert "0 there, 1 to do" in generated(model, tmp_path, 1, *more, "--overwrite", "--dry_run").check().out
    generated(model, tmp_path, 1, *more, "--overwrite").check()
    assert list(pngs(tmp_path)) == ["0000/000000.png"] and len(manifest_of(tmp_path)) == 1
    assert pngs(tmp_path)["0000/000000.png"] != before["0000/000000.png"]


def test_dry_run_counts_passes_and_writes_nothing(model: Path, tmp_path: Path) -> None:
    out = generated(model, tmp_path / "out", 3, "--dry_run", "--classes", "0,2", "--guidance_scale", 3).check().out
    assert "classes: 2 of 3, 3 images each, 8 px" in out and "at most 2 batches of 4 each" in out
    assert "steps: 4; passes of the network: 8 an image, 48 in all" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--classes", "0-3"), "--classes 0-3: the generator has the classes 0..2"),
        (("--classes", "2-1"), "--classes 2-1: '2-1' is not understood: give all, or numbers and ranges"),
        (("--classes", "one"), "'one' is not understood"),
        (("--guidance_scale", 2, "--guided_channels", 4), "4 guided channels: this diffusion model has 3"),
        (("--image_size", 16), "image_size 16: this model makes images of 8 px"),
        (("--vae", "vae"), "makes pixels, leave it out"),
        (("--variance", "learned"), "has no learned variance"),
        (("--class_names", "imagenet-1k"), "class_names imagenet-1k: 1000 names for the 3 classes"),
        (("--cfgscale", 2), "did you mean '--cfg-scale'"),
    ],
)
def test_mistakes_are_named(model: Path, tmp_path: Path, more: tuple[object, ...], message: str) -> None:
    done = generated(model, tmp_path / "out", 3, *more)
    assert done.status == 2 and message in done.err and "Traceback" not in done.err
    assert not list((tmp_path / "out").rglob("*.png"))


def test_models_that_cannot_generate_are_refused(ddpm: Path, tmp_path: Path) -> None:
    done = generated(ddpm, tmp_path / "out", 3, "--dataset", "Digits")
    assert done.status == 2 and str(ddpm) in done.err
    command = "python train.py -c configs/diffusion/Digits/conditional.yaml"
    assert f"an unconditional diffusion model knows no classes: give a class-conditional one ({command} makes one)" in done.err
    done = generated("diffusion/my photos/conditional", tmp_path / "out", 3, "--dataset", "all/my photos")
    command = "python train.py -c configs/diffusion/ImageFolder/conditional.yaml --data.dataset 'all/my photos'"
    assert done.status == 2 and f"; make it with: {command}\n" in done.err
    without = save_model(tmp_path / "without.safetensors", null_label=False)
    done = generated(without, tmp_path / "out", 3, "--guidance_scale", 2)
    assert done.status == 2 and "needs a model with a null label" in done.err
    generated(without, tmp_path / "out", 1).check()
    done = run_script(SCRIPT, "--save_dir", tmp_path)
    assert done.status == 2 and "--model_path is missing" in done.err


def test_half_precision_is_close_and_another_setting(model: Path, tmp_path: Path) -> None:
    generated(model, tmp_path / "full", 1).check()
    generated(model, tmp_path / "half", 1, "--use_fp16").check()
    name = "0001/000001.png"
    difference = np.abs(pixels(tmp_path / "full" / name) - pixels(tmp_path / "half" / name))
    assert difference.max() > 0 and difference.mean() < 4
    assert json.loads((tmp_path / "half/settings.json").read_text())["precision"] == "float16"


def test_classes_as_text() -> None:
    assert parse_classes("all", 3) == [0, 1, 2] and parse_classes(2, 3) == [2]
    assert parse_classes("0-2, 7,1-3", 8) == [0, 1, 2, 3, 7]
    assert job_of([2003, 1_000_000], 1000, 8, Path("x")).source.keys == ["0003/002003", "0000/1000000"]


def test_full_chain_and_learned_variance_by_default() -> None:
    denoiser = build_denoiser(8, [8], num_classes=2, learn_sigma=True)
    generator = ImageGenerator(denoiser, None, GenerateConfig("m", "s", guidance_scale=2))
    assert (generator.steps, generator.passes, generator.variance, generator.clip_denoised) == (1000, 2000, "learned", True)
    assert generator.parameters["guided_channels"] == 3


@pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec beside this Python or on the PATH: pip install mpich")
def test_two_ranks_write_the_bytes_of_one_process(model: Path, tmp_path: Path) -> None:
    generated(model, tmp_path / "one", 3, "--guidance_scale", 2).check()
    arguments = (*words(model, tmp_path / "two"), "--guidance_scale", 2)
    done = launch(MPIEXEC, "-n", 2, sys.executable, SCRIPT, *arguments).check()
    assert "2 rank(s) on cpu" in done.err and done.err.count("generated 9 images") == 1
    one = files(tmp_path / "one")
    assert len(one) == 9 + 3 and one == files(tmp_path / "two")


def test_train_then_generate_digits_by_their_names(tmp_path: Path) -> None:
    short = ("--data.limit", 40, "--data.batch_size", 20, "--loop.epochs", 1, "--model.channels", "[8, 8]")
    short += ("--save_dir", tmp_path, "--run_id", "a", "--model.diffusion_steps", 10)
    run_script("train.py", "-c", "configs/diffusion/Digits/conditional.yaml", *short).check()
    run = tmp_path / "diffusion/Digits/conditional/a"
    assert pixels(run / "samples.png").shape == (10 * 66 + 2, 8 * 66 + 2, 3)  # a class a row, enlarged twice, gaps of two
    denoiser = load_denoiser(run / "best.safetensors")
    assert (denoiser.num_classes, denoiser.null_label) == (10, True)
    out = ("--save_dir", tmp_path / "out", "--timestep_respacing", 4, "--num_per_class", 1)
    run_script(SCRIPT, "-c", "configs/generate/Digits/conditional.yaml", "--runs", tmp_path, *out).check()
    assert len(pngs(tmp_path / "out")) == 10 and (tmp_path / "out/classes.txt").read_text().splitlines()[3] == "0003 3"
    # unconditional as well: images of unknown class can be adapted by it
    save_images(tmp_path / "in", ["a.png"])
    adapted = ("--base_samples", tmp_path / "in", "--timestep_respacing", 4, "--N", 2, "--save_dir", tmp_path / "adapted")
    run_script(ADAPT, "--model_path", run, *adapted).check()
    assert list(pngs(tmp_path / "adapted")) == ["a.png"]
