"""The flags of image_sample.py: those of the published command line, mistakes, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.adapting import SCRIPT, SHORT, adapt, digits, manifest_of, pngs, save_images
from tests.scripts import run_script
from undegrade.image_adapt.work import Job
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.sources.image_source import array_source


def test_flags_of_the_published_command_line_mean_what_they_meant(ddpm: Path, tmp_path: Path) -> None:
    save_images(tmp_path / "in", [f"fog/5/n01/{i}.png" for i in range(5)])
    model = "--image_size 32 --class_cond False --learn_sigma False --num_channels 8 --num_res_blocks 1 --use_fp16 False"
    chain = "--diffusion_steps 1000 --noise_schedule cosine"
    sample = "--batch_size 4 --num_samples 3 --timestep_respacing 10"
    rest = "--D 4 --N 5 --scale 6 --corruption fog --severity 5 --dataset imagenetc --train False"
    where = ("--base_samples", tmp_path / "in", "--save_dir", tmp_path / "out", "--model_path", ddpm)
    run_script(SCRIPT, *f"{model} {chain} {sample} {rest}".split(), *where).check()
    assert len(pngs(tmp_path / "out/fog/5/n01")) == 3 == len(manifest_of(tmp_path / "out/fog/5"))
    settings = json.loads((tmp_path / "out/fog/5/settings.json").read_text())
    parameters = settings["parameters"]
    assert (parameters["downscale_factor"], parameters["start_step"], parameters["respacing"]) == (4, 5, "10")
    assert parameters["guidance_weight"] == 3  # 6 for a batch of 4
    assert settings["precision"] == "float32" and settings["input"] == {"folder": str(tmp_path / "in"), "layout": "imagenetc"}


@pytest.mark.parametrize(("words", "weight"), [((), 3), (("--guidance_norm", "batch"), 6), (("--dda.guidance_norm", "batch"), 6)])
def test_scale_is_the_weight_of_a_batch_norm_and_twice_that_of_an_image(
    ddpm: Path, tmp_path: Path, words: tuple[str, ...], weight: float
) -> None:
    given = ("--model_path", ddpm, "--save_dir", tmp_path, "--timestep_respacing", 10, "--N", 3, "--scale", 6)
    run_script(SCRIPT, *given, "--corruption", "jpeg", "--num_samples", 1, *words).check()
    assert json.loads((tmp_path / "jpeg/random/settings.json").read_text())["parameters"]["guidance_weight"] == weight


def test_yaml_gives_the_keys_and_flags_go_over_them(ddpm: Path, tmp_path: Path) -> None:
    words = ("-c", "configs/adapt/Digits/dda.yaml", "--dda.respacing", "20", "--N", 2, "--dda.guidance_weight", 1, "--limit", 2)
    words += ("--corruption", "gaussian_noise")
    where = ("--save_dir", tmp_path / "{dataset}/{split}", "--split", "validation")
    done = run_script(SCRIPT, *words, "--model_path", ddpm, *where).check()
    assert f"-> {tmp_path}/Digits/validation\n" in done.err
    settings = json.loads((tmp_path / "Digits/validation/gaussian_noise/5/settings.json").read_text())
    assert settings["parameters"]["respacing"] == "20" and settings["parameters"]["start_step"] == 2
    assert settings["parameters"]["guidance_weight"] == 1 and settings["input"]["constants"] == "imagenet"


def test_flags_of_options_are_settings(ddpm: Path, tmp_path: Path) -> None:
    words = ("--guidance", "jacobian_free", "--sampler", "ddim", "--start_mismatch", "y")
    digits(ddpm, tmp_path, *words, "--num_samples", 1).check()
    parameters = json.loads((tmp_path / "jpeg/random/settings.json").read_text())["parameters"]
    assert {"guidance": "jacobian_free", "sampler": "ddim", "start_mismatch": True}.items() <= parameters.items()


def test_model_is_found_by_the_name_of_its_run(runs: Path, tmp_path: Path) -> None:
    words = ("--model_path", "diffusion/{dataset}/ddpm", "--runs", runs, "--save_dir", tmp_path, *SHORT)
    run_script(SCRIPT, *words, "--corruption", "clean", "--limit", 1).check()
    assert len(pngs(tmp_path / "clean/0")) == 1


def test_a_missing_model_is_reported_with_the_command_that_makes_it(tmp_path: Path) -> None:
    words = ("--model_path", "diffusion/{dataset}/ddpm", "--runs", tmp_path, "--save_dir", tmp_path / "out", "--corruption", "fog")
    for dataset, config in (("CIFAR10", "CIFAR10/ddpm.yaml"), ("my/photos", "ImageFolder/ddpm.yaml --data.dataset my/photos")):
        done = run_script(SCRIPT, *words, "--dataset", dataset)
        assert done.status == 2
        assert f"; make it with: python train.py -c configs/diffusion/{config} --save_dir {tmp_path}\n" in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--D", "5"), "downscale_factor 5 does not divide the image size 32: use one of 1, 2, 4, 8, 16, 32"),
        (("--N", "500"), "start_step 500 is outside 1..10: the chain of respacing '10' has 10 levels"),
        (("--timestep_respacing", "ten"), "respacing 'ten' is not understood"),
        (("--timestep_respaceing", "10"), "unknown option '--timestep_respaceing': did you mean '--timestep_respacing'?"),
        (("--dda.start_stp", "3"), "unknown config key 'start_stp' in section 'dda': did you mean 'start_step'?"),
        (("--guidance_norm", "image"), "unknown value 'image' in config key 'dda.guidance_norm'"),
        (("--scale", "6", "--guidance_weight", "3"), "--guidance_weight and --scale say the same thing twice"),
        (("--D", "4", "--downscale_factor", "4"), "--downscale_factor and --D say the same thing twice"),
        (("--guidance", "jacobian"), "unknown value 'jacobian' in config key 'dda.guidance'"),
        (("--sampler", "dim"), "unknown value 'dim' in config key 'dda.sampler': did you mean 'ddim'"),
        (("--sampler", "ddim", "--variance", "fixed_small"), "variance fixed_small has no meaning with sampler ddim"),
        (("--image_size", "256"), "flags contradict the checkpoint: --image_size 256 (the checkpoint: 32)"),
        (("--learn_sigma", "True", "--class_cond", "True"), "--class_cond True (the checkpoint: False); --learn_sigma True"),
        (("--severity", "6"), "gaussian_noise severity 6 is out of range"),
        (
            ("--severity", "rondom"),
            "--severity 'rondom': write one of 1..5, several joined by commas, or a range such as 1-5, or random",
        ),
        (("--corruption", "gausian_noise"), "unknown perturbation 'gausian_noise': did you mean 'gaussian_noise'?"),
        (("--split", "tests"), "unknown value 'tests' in config key 'input.split': did you mean 'test'?"),
        (("--batch_size", "four"), "batch_size"),
        (("--dataset", "Digit"), "unknown dataset 'Digit': did you mean 'Digits'?"),
        (("--model_path", "nowhere/ddpm"), "no checkpoint 'nowhere/ddpm'"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(ddpm: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    done = digits(ddpm, tmp_path / "out", *words)
    assert done.status == 2 and message in done.err and "Traceback" not in done.err
    assert not (tmp_path / "out").exists()


def test_what_every_call_needs_is_asked_for(ddpm: Path, tmp_path: Path) -> None:
    for words, message in (
        (("--save_dir", tmp_path), "--model_path is missing: give it, or `model:` in the YAML"),
        (("--model_path", ddpm), "--save_dir is missing"),
        (("--model_path", ddpm, "--save_dir", tmp_path), "input.corruptions is empty"),
    ):
        done = run_script(SCRIPT, *words, *SHORT)
        assert done.status == 2 and message in done.err


def test_classifier_is_no_diffusion_model(classifier: Path, tmp_path: Path) -> None:
    done = digits(classifier, tmp_path)
    assert done.status == 2 and "holds a classifier model, a diffusion model is needed" in done.err


def test_folder_that_is_missing_or_empty_is_named(ddpm: Path, tmp_path: Path) -> None:
    done = adapt(ddpm, tmp_path / "out", "--base_samples", tmp_path / "none")
    assert done.status == 2 and f"image folder {tmp_path / 'none'} does not exist" in done.err
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").write_text("no image")
    done = adapt(ddpm, tmp_path / "out", "--base_samples", tmp_path / "empty")
    assert done.status == 2 and f"no images under {tmp_path / 'empty'}" in done.err and ".png" in done.err


@pytest.mark.parametrize(("inputs", "outputs"), [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a", "link")])
def test_outputs_never_go_among_the_inputs(ddpm: Path, tmp_path: Path, inputs: str, outputs: str) -> None:
    save_images(tmp_path / inputs, ["x.png"])
    (tmp_path / "link").symlink_to(tmp_path / "a")
    done = adapt(ddpm, tmp_path / outputs, "--base_samples", tmp_path / inputs)
    assert done.status == 2 and "lie in one another: choose folders apart" in done.err
    assert len(list((tmp_path / inputs).rglob("*"))) == 1


@pytest.mark.parametrize("key", ["../outside", "a/../../outside", "/outside"])
def test_key_that_would_leave_the_output_folder_is_refused(tmp_path: Path, key: str) -> None:
    source = array_source("x", np.zeros((1, 3, 8, 8), np.uint8), np.zeros(1, int), ["c"], ["n"])
    source.keys[0] = key
    with pytest.raises(ValueError, match="would leave the output folder"):
        Job(Cell("clean", 0), source, tmp_path, [None]).path(0)
