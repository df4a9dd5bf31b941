"""image_sample.py: what it writes, resuming, layouts of folders, broken files, mistakes. Ranks: test_adaptation_mpi.py."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from image_adapt.dda import DDA
from image_adapt.work import Job
from models.loading import load_denoiser
from tests.photo_like import photo_like
from tests.scripts import Done, run_script
from utils.checkpoint import file_digest
from utils.data.cells import Cell, OnTheFly
from utils.data.image_source import array_source
from utils.data.pixels import from_signed, to_signed
from utils.data.sources import open_source
from utils.seeding import torch_generator

SCRIPT = "image_adapt/scripts/image_sample.py"
SHORT = ("--timestep_respacing", 10, "--N", 3, "--D", 4, "--guidance_weight", 3)


def adapt(ddpm: Path, save_dir: Path, *words: object) -> Done:
    return run_script(SCRIPT, "--model_path", ddpm, "--save_dir", save_dir, *SHORT, *words)


def digits(ddpm: Path, save_dir: Path, *words: object) -> Done:
    """Six digits under gaussian noise and jpeg, in batches of 4."""
    return adapt(ddpm, save_dir, "--corruption", "gaussian_noise,jpeg", "--limit", 6, "--batch_size", 4, *words)


def pngs(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.png"))}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def save_images(folder: Path, names: list[str], side: int = 32) -> None:
    for name, image in zip(names, photo_like(len(names), side).numpy(), strict=True):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(path)


def manifest_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def done_before(ddpm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `digits`."""
    folder = tmp_path_factory.mktemp("adapted")
    assert "adapted 12 images" in digits(ddpm, folder).check().err
    return folder


# --- what is written


def test_files_hold_what_the_adapter_makes_of_each_image_alone(done_before: Path, ddpm: Path) -> None:
    source = OnTheFly(open_source("Digits", "test", limit=6)).source(Cell("gaussian_noise", 5))
    adapter = DDA(load_denoiser(ddpm), respacing="10", start_step=3, downscale_factor=4, guidance_weight=3.0)
    folder = done_before / "gaussian_noise/5"
    assert set(pngs(folder)) == {f"{key}.png" for key in source.keys}
    for i, key in enumerate(source.keys):
        alone = adapter.adapt(to_signed(source.images([i])), [torch_generator(0, "adapt", key)])
        expected = from_signed(alone)[0].permute(1, 2, 0).numpy().astype(int)
        found = pixels(folder / f"{key}.png")
        assert np.abs(found - expected).max() <= 1
        assert np.abs(found - source.images([i])[0].permute(1, 2, 0).numpy()).mean() > 1  # it was changed


def test_manifest_lists_each_image_with_label_level_and_settings(done_before: Path, ddpm: Path) -> None:
    source = open_source("Digits", "test", limit=6)
    levels = dict(zip(source.keys, OnTheFly(source).levels(Cell("jpeg"), source.keys).tolist(), strict=True))
    digests = set()
    for cell, drawn in (("gaussian_noise/5", False), ("jpeg/random", True)):
        rows = manifest_of(done_before / cell)
        assert [row["key"] for row in rows] == sorted(source.keys)
        for row in rows:
            assert list(row) == ["key", "file", "label", "level", "seed", "settings"]
            assert row["file"] == f"{row['key']}.png" and (done_before / cell / row["file"]).is_file()
            assert row["label"] == int(row["key"].split("/")[0]) and row["seed"] == 0
            assert row["level"] == (levels[row["key"]] if drawn else None)
        digests |= {row["settings"] for row in rows}
    assert len(digests) == 2
    settings = json.loads((done_before / "gaussian_noise/5/settings.json").read_text())
    parameters = {
        "respacing": "10", "start_step": 3, "downscale_factor": 4, "guidance_weight": 3, "guidance_norm": "per_image",
        "border": "reflect", "start_mismatch": False,
    }  # fmt: skip
    assert settings == {
        "adapter": "dda", "parameters": parameters, "model": file_digest(ddpm), "seed": 0, "bfloat16": False,
        "corruption": "gaussian_noise", "severity": 5,
        "input": {"dataset": "Digits", "split": "test", "constants": None, "seed": 0},
    }  # fmt: skip


def test_batches_of_1_and_of_16_differ_by_a_grey_level_at_most(ddpm: Path, tmp_path: Path) -> None:
    for size in (1, 16):
        words = ("--corruption", "gaussian_noise", "--limit", 18, "--batch_size", size)
        adapt(ddpm, tmp_path / str(size), *words).check()
    names = list(pngs(tmp_path / "1"))
    assert names == list(pngs(tmp_path / "16")) and len(names) == 18
    difference = np.abs(np.stack([pixels(tmp_path / "1" / n) - pixels(tmp_path / "16" / n) for n in names]))
    assert difference.max() <= 1 and (difference > 0).mean() <= 1e-3


def test_num_samples_takes_the_same_images_of_every_cell_with_their_levels(done_before: Path, ddpm: Path, tmp_path: Path) -> None:
    digits(ddpm, tmp_path, "--num_samples", 3).check()
    keys = [[row["key"] for row in manifest_of(tmp_path / cell)] for cell in ("gaussian_noise/5", "jpeg/random")]
    assert keys[0] == keys[1] and len(keys[0]) == 3
    every = {row["key"]: row for row in manifest_of(done_before / "jpeg/random")}
    assert manifest_of(tmp_path / "jpeg/random") == [every[key] for key in keys[1]]
    assert pngs(tmp_path).items() <= pngs(done_before).items()


def test_another_seed_gives_other_images(done_before: Path, ddpm: Path, tmp_path: Path) -> None:
    digits(ddpm, tmp_path, "--seed", 1).check()
    first, second = pngs(done_before), pngs(tmp_path)
    assert first.keys() == second.keys() and all(first[name] != second[name] for name in first)


# --- the same command again


def test_deleted_outputs_come_back_to_the_byte_and_the_others_are_left_alone(ddpm: Path, tmp_path: Path) -> None:
    digits(ddpm, tmp_path).check()
    before = pngs(tmp_path)
    lost = list(before)[1::4]
    assert len(lost) == 3
    for name in lost:
        (tmp_path / name).unlink()
    (tmp_path / "jpeg/random/manifest.jsonl").unlink()
    (tmp_path / "jpeg/random/3").mkdir(exist_ok=True)
    (tmp_path / "jpeg/random/3/.half.png.part").write_bytes(b"a write that was cut off")
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in before if name not in lost}
    assert "adapted 3 images" in (done := digits(ddpm, tmp_path).check()).err and "9 were there already" in done.err
    assert pngs(tmp_path) == before
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in times} == times
    assert len(manifest_of(tmp_path / "jpeg/random")) == 6
    assert "adapted 0 images" in digits(ddpm, tmp_path).check().err


def test_images_of_other_settings_are_refused_and_replaced_when_asked(ddpm: Path, tmp_path: Path) -> None:
    digits(ddpm, tmp_path).check()
    before = pngs(tmp_path)
    done = digits(ddpm, tmp_path, "--N", 2)
    assert done.status == 2 and "gaussian_noise/5 holds images adapted with other settings (parameters: " in done.err
    assert "'start_step': 3" in done.err and "'start_step': 2" in done.err and "--overwrite true" in done.err
    assert pngs(tmp_path) == before
    assert "adapted 12 images" in digits(ddpm, tmp_path, "--N", 2, "--overwrite", "true").check().err
    after = pngs(tmp_path)
    assert after.keys() == before.keys() and all(after[name] != before[name] for name in before)
    assert "adapted 0 images" in digits(ddpm, tmp_path, "--N", 2, "--overwrite", "true").check().err  # the same settings: kept


# --- folders


@pytest.mark.parametrize(
    ("layout", "words", "below"),
    [
        (None, (), "some/deep"),
        ("imagenetc", ("--corruption", "fog", "--severity", "2"), "fog/2/n01"),
        ("imagenet", ("--corruption", "jpeg"), "jpeg/val/n01"),
        ("imagenet", ("--corruption", "jpeg", "--train", "True"), "jpeg/train/n01"),
        ("cifar10", ("--corruption", "blur"), "blur/cifar_test/cat"),
        ("cifar10", ("--corruption", "blur", "--train", "True"), "blur/cifar_train/cat"),
        ("cifar10c", ("--corruption", "clean,fog", "--severity", "1"), "fog/1/cat"),
    ],
)
def test_folders_of_every_layout_come_out_as_they_went_in(
    ddpm: Path, tmp_path: Path, layout: str | None, words: tuple[str, ...], below: str
) -> None:
    save_images(tmp_path / "in", [f"{below}/a.png", f"{below}/b.jpg"])
    if layout == "cifar10c":
        save_images(tmp_path / "in", ["clean/0/cat/a.png"])
    if layout:
        save_images(tmp_path / "in", ["not/asked/for.png"])
        words += ("--dataset", layout)
    adapt(ddpm, tmp_path / "out", "--base_samples", tmp_path / "in", *words, "--batch_size", 2).check()
    names = {f"{below}/a.png", f"{below}/b.png"} | ({"clean/0/cat/a.png"} if layout == "cifar10c" else set())
    assert set(pngs(tmp_path / "out")) == names
    root = tmp_path / "out" / ("" if layout is None else "/".join(below.split("/")[:2]))
    key = f"{below}/a".removeprefix("/".join(below.split("/")[:2]) + "/" if layout else "")
    row = manifest_of(root)[0]
    assert row["key"] == key and row["label"] == -1 and (root / row["file"]).is_file()


def test_photos_of_any_size_and_kind_are_cropped_to_the_models_size(ddpm: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, mode, size in (("wide.png", "RGB", (90, 40)), ("grey.png", "L", (32, 50)), ("clear.png", "RGBA", (64, 64))):
        Image.new(mode, size).save(tmp_path / "in" / name)
    adapt(ddpm, tmp_path / "out", "--base_samples", tmp_path / "in").check()
    assert {Image.open(p).size for p in (tmp_path / "out").glob("*.png")} == {(32, 32)}
    assert len(pngs(tmp_path / "out")) == 3


def test_files_that_differ_by_suffix_alone_keep_it(ddpm: Path, tmp_path: Path) -> None:
    save_images(tmp_path / "in", ["a.png", "a.jpg", "b.png"])
    adapt(ddpm, tmp_path / "out", "--base_samples", tmp_path / "in").check()
    assert set(pngs(tmp_path / "out")) == {"a.png.png", "a.jpg.png", "b.png"}


def test_broken_files_are_named_and_counted_and_the_others_adapted(ddpm: Path, tmp_path: Path) -> None:
    save_images(tmp_path / "in", [f"{i}.png" for i in range(6)])
    whole = (tmp_path / "in/2.png").read_bytes()
    (tmp_path / "in/2.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in/4.png").write_text("no image at all")
    words = ("--base_samples", tmp_path / "in", "--batch_size", 4)
    done = adapt(ddpm, tmp_path / "out", *words)
    assert done.status == 1
    assert "adapted 4 images" in done.err and "2 broken" in done.err
    for name, reason in (("2", "truncated"), ("4", "no image format that Pillow knows")):
        assert re.search(rf"broken: {name}: .*{name}.png: .*{reason}", done.err)
    assert "2 files could not be adapted; mend them and run the same command, or accept that with --skip_broken true" in done.err
    good = pngs(tmp_path / "out")
    assert set(good) == {f"{i}.png" for i in (0, 1, 3, 5)}
    assert [row["key"] for row in manifest_of(tmp_path / "out")] == ["0", "1", "3", "5"]
    accepted = adapt(ddpm, tmp_path / "out", *words, "--skip_broken", "true")
    assert accepted.status == 0 and "2 broken" in accepted.err and "broken: 4: " in accepted.err
    (tmp_path / "in/2.png").write_bytes(whole)
    (tmp_path / "in/4.png").unlink()
    assert "adapted 1 images" in adapt(ddpm, tmp_path / "out", *words).check().err
    assert {name: data for name, data in pngs(tmp_path / "out").items() if name != "2.png"} == good


# --- flags


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
    assert settings["bfloat16"] is False and settings["input"] == {"folder": str(tmp_path / "in"), "layout": "imagenetc"}


@pytest.mark.parametrize(("words", "weight"), [((), 3), (("--guidance_norm", "batch"), 6), (("--dda.guidance_norm", "batch"), 6)])
def test_scale_is_the_weight_of_a_batch_norm_and_twice_that_of_an_image(
    ddpm: Path, tmp_path: Path, words: tuple[str, ...], weight: float
) -> None:
    digits(ddpm, tmp_path, "--scale", 6, "--num_samples", 1, *words).check()
    assert json.loads((tmp_path / "jpeg/random/settings.json").read_text())["parameters"]["guidance_weight"] == weight


def test_yaml_gives_the_keys_and_flags_go_over_them(ddpm: Path, tmp_path: Path) -> None:
    words = ("-c", "configs/adapt/Digits/dda.yaml", "--corruption", "gaussian_noise", "--limit", 2, "--N", 2, "--dda.guidance_weight", 1)
    run_script(SCRIPT, *words, "--model_path", ddpm, "--save_dir", tmp_path / "{dataset}/{split}", "--split", "validation").check()
    settings = json.loads((tmp_path / "Digits/validation/gaussian_noise/5/settings.json").read_text())
    assert settings["parameters"]["respacing"] == "20" and settings["parameters"]["start_step"] == 2
    assert settings["parameters"]["guidance_weight"] == 1 and settings["input"]["constants"] == "imagenet"


def test_model_is_found_by_the_name_of_its_run(runs: Path, tmp_path: Path) -> None:
    words = ("--model_path", "diffusion/{dataset}/ddpm", "--runs", runs, "--save_dir", tmp_path, *SHORT)
    run_script(SCRIPT, *words, "--corruption", "clean", "--limit", 1).check()
    assert len(pngs(tmp_path / "clean/0")) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--D", "5"), "downscale_factor 5 does not divide the image size 32: use one of 1, 2, 4, 8, 16, 32"),
        (("--N", "500"), "start_step 500 is outside 1..10: the chain of respacing '10' has 10 levels"),
        (("--N", "0"), "start_step 0 is outside 1..10"),
        (("--timestep_respacing", "ten"), "respacing 'ten' is not understood"),
        (("--timestep_respaceing", "10"), "unknown option '--timestep_respaceing': did you mean '--timestep_respacing'?"),
        (("--dda.start_stp", "3"), "unknown config key 'start_stp' in section 'dda': did you mean 'start_step'?"),
        (("--guidance_norm", "image"), "unknown value 'image' in config key 'dda.guidance_norm'"),
        (("--guidance_weight", "-1"), "guidance_weight -1"),
        (("--image_size", "256"), "flags contradict the checkpoint: --image_size 256 (the checkpoint: 32)"),
        (("--learn_sigma", "True", "--class_cond", "True"), "--class_cond True (the checkpoint: False); --learn_sigma True"),
        (("--severity", "6"), "severities [6] for gaussian_noise: choose from 1, 2, 3, 4, 5"),
        (("--severity", "0"), "severities [0] for gaussian_noise"),
        (("--corruption", "gausian_noise"), "unknown corruption or degradation 'gausian_noise': did you mean 'gaussian_noise'?"),
        (("--split", "tests"), "unknown value 'tests' in config key 'input.split': did you mean 'test'?"),
        (("--batch_size", "four"), "batch_size"),
        (("--num_samples", "0"), "num_samples 0: use at least 1"),
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


# --- without MPI


def test_single_process_works_without_mpi4py(done_before: Path, ddpm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    digits(ddpm, tmp_path).check()
    assert pngs(tmp_path) == pngs(done_before)


@pytest.mark.parametrize("variable", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_ranks_without_mpi4py_are_refused_instead_of_working_apart(
    ddpm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setitem(os.environ, variable, "2")
    done = digits(ddpm, tmp_path)
    assert done.status == 2 and "launched as 2 MPI ranks, but mpi4py cannot be loaded" in done.err
    assert "undegrade[mpi]" in done.err


def test_sequences_draw_a_level_for_each_stage(ddpm: Path, tmp_path: Path) -> None:
    adapt(ddpm, tmp_path, "--corruption", "blur+noise+jpeg", "--limit", 2).check()
    rows = manifest_of(tmp_path / "blur+noise+jpeg/random")
    assert all(len(row["level"]) == 3 for row in rows) and rows[0]["level"] != rows[1]["level"]
    assert all(torch.isfinite(torch.tensor(row["level"])).all() for row in rows)
