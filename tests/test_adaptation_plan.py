"""image_sample.py --dry_run, the published commands as they are printed, and what imitates the
published program.
"""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from string import Template

import numpy as np
import pytest
import torch
from PIL import Image

from tests.adapting import SCRIPT, adapt, digits, pngs, save_images
from tests.commands import check_command
from tests.openai_networks import ADM_256
from tests.scripts import ROOT, run_script
from undegrade.image_adapt.adapters import Adapter
from undegrade.image_adapt.config import AdaptConfig, InputConfig
from undegrade.image_adapt.mpi import World
from undegrade.image_adapt.work import plan_jobs, run_jobs
from undegrade.models.diffusion.denoiser import Denoiser, build_denoiser, describe
from undegrade.models.diffusion.openai_flags import ModelFlags, parse_flags
from undegrade.utils.checkpoint import save_checkpoint
from undegrade.utils.data.pixels import from_signed

# --- dry run


def test_dry_run_prints_the_plan_and_writes_nothing(ddpm: Path, tmp_path: Path) -> None:
    done = digits(ddpm, tmp_path / "out", "--dry_run").check()
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[:4] == [
        ["cell", "images", "there", "to", "do", "batches"],
        ["gaussian_noise/5", "6", "0", "6", "2"],
        ["jpeg/random", "6", "0", "6", "2"],
        ["total", "12", "0", "12", "4"],
    ]
    assert "ranks: 1, at most 4 batches of 4 each" in done.out
    assert "steps: 3 of a chain of 10, from noise level alpha_bar" in done.out
    assert "network passes an image: 3 forward, 3 backward; in all 36 and 36" in done.out
    assert re.search(r"disk: at most about 0\.0 MiB \(png\) in .*out", done.out) and "time:" not in done.out
    assert not (tmp_path / "out").exists()
    assert "3 forward, 0 backward" in digits(ddpm, tmp_path / "out", "--dry_run", "--guidance", "jacobian_free").check().out


def test_dry_run_times_a_batch_when_told_to(ddpm: Path, tmp_path: Path) -> None:
    done = digits(ddpm, tmp_path / "out", "--dry_run", "--time").check()
    found = re.search(r"time: ([\d.]+) seconds \(([\d.]+) s for a batch on this machine\)", done.out)
    assert found and float(found[1]) == pytest.approx(4 * float(found[2]), abs=0.1)
    assert not (tmp_path / "out").exists()
    refused = digits(ddpm, tmp_path / "out", "--time")
    assert refused.status == 2 and "--time is a part of --dry_run" in refused.err


def test_dry_run_counts_what_is_there_and_refuses_what_the_launch_would(ddpm: Path, tmp_path: Path) -> None:
    digits(ddpm, tmp_path).check()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    next(tmp_path.glob("jpeg/random/*/*.png")).rename(tmp_path / "kept.png")
    assert "total                 12     11      1        1" in digits(ddpm, tmp_path, "--dry_run").check().out
    done = digits(ddpm, tmp_path, "--dry_run", "--N", 2)
    assert done.status == 2 and "holds images made with other settings" in done.err
    assert re.search(r"total +12 +0 +12 +4", digits(ddpm, tmp_path, "--dry_run", "--N", 2, "--overwrite", "true").check().out)
    assert {path for path, time in before.items() if path.is_file() and path.stat().st_mtime_ns != time} == set()


# --- flags


@pytest.mark.parametrize(("word", "value"), [("t", True), ("y", True), ("1", True), ("True", True), ("f", False), ("n", False)])
def test_booleans_are_read_as_the_published_program_reads_them(ddpm: Path, tmp_path: Path, word: str, value: bool) -> None:
    save_images(tmp_path / "in", ["jpeg/train/a/1.png", "jpeg/val/a/1.png"])
    words = ("--base_samples", tmp_path / "in", "--dataset", "imagenet", "--corruption", "jpeg", "--train", word)
    adapt(ddpm, tmp_path / "out", *words).check()
    assert set(pngs(tmp_path / "out")) == {f"jpeg/{'train' if value else 'val'}/a/1.png"}


def test_boolean_that_is_none_is_refused(ddpm: Path, tmp_path: Path) -> None:
    done = digits(ddpm, tmp_path / "out", "--train", "maybe")
    assert done.status == 2 and "--train maybe is not understood: give True or False" in done.err


def test_flags_that_did_nothing_say_so(ddpm: Path, tmp_path: Path) -> None:
    done = digits(ddpm, tmp_path / "out", "--use_ddim", "True", "--save_latents", "False", "--dry_run").check()
    assert "--use_ddim has no effect" in done.err and "--save_latents has" not in done.err


def settings(folder: Path) -> dict:
    return json.loads((folder / "jpeg/random/settings.json").read_text())


def test_noise_level_takes_the_place_of_steps_in_the_yaml_and_the_settings_say_the_steps(ddpm: Path, tmp_path: Path) -> None:
    words = ("-c", "configs/adapt/Digits/dda.yaml", "--model_path", ddpm, "--corruption", "jpeg", "--limit", 1)
    run_script(SCRIPT, *words, "--save_dir", tmp_path, "--noise_level", 0.9).check()
    found = settings(tmp_path)["parameters"]
    alpha_bar = build_denoiser(32, [8]).schedule("20").alpha_bar
    assert "noise_level" not in found and (alpha_bar - 0.9).abs().argmin() == found["start_step"] - 1
    again = run_script(SCRIPT, *words, "--save_dir", tmp_path, "--N", found["start_step"]).check()
    assert "adapted 0 images" in again.err
    both = run_script(SCRIPT, *words, "--save_dir", tmp_path, "--N", 3, "--noise_level", 0.9)
    assert both.status == 2 and "say the same thing twice" in both.err


def test_ilvr_has_its_own_options_and_settings(ddpm: Path, tmp_path: Path) -> None:
    words = ("--model_path", ddpm, "--adapter", "ilvr", "--timestep_respacing", 10, "--N", 3, "--D", 4, "--range_t", 1)
    words += ("--variance", "fixed_small", "--corruption", "jpeg", "--limit", 2)
    run_script(SCRIPT, *words, "--save_dir", tmp_path / "{adapter}").check()
    found = settings(tmp_path / "ilvr")
    assert found["adapter"] == "ilvr" and found["parameters"] == {
        "respacing": "10", "start_step": 3, "downscale_factor": 4, "border": "reflect", "start_mismatch": False,
        "clip_denoised": True, "variance": "fixed_small", "range_t": 1, "reference_mismatch": False,
    }  # fmt: skip
    for flag in ("--scale", "--guidance_norm", "--dda.guidance_norm"):
        done = run_script(SCRIPT, *words, "--save_dir", tmp_path / "x", flag, 1)
        assert done.status == 2 and f"{flag} is an option of the adapter dda, ilvr is used here" in done.err
    done = digits(ddpm, tmp_path / "x", "--range_t", 1)
    assert done.status == 2 and "--range_t is an option of the adapter ilvr, dda is used here" in done.err


def test_class_conditional_model_is_refused(tmp_path: Path) -> None:
    denoiser = build_denoiser(32, [8])
    described = describe(denoiser)
    described["unet"]["num_class_embeds"] = 10
    state = {**denoiser.unet.state_dict(), "class_embedding.weight": torch.zeros(10, 32)}
    save_checkpoint(tmp_path / "best.safetensors", state, described)
    done = digits(tmp_path / "best.safetensors", tmp_path / "out")
    assert done.status == 2 and "is class-conditional and the classes of the images are not known" in done.err


# --- the published commands, placeholders replaced

FLAGS = {
    "MODEL_PATHS": "--model_path ckpt/256x256_diffusion_uncond.pt",
    "MODEL_FLAGS": "--image_size 256 --attention_resolutions 32,16,8 --class_cond False --learn_sigma True  --num_channels 256 "
    "--num_head_channels 64 --num_res_blocks 2 --resblock_updown True --use_fp16 True --use_scale_shift_norm True",
    "DIFFUSION_FLAGS": "--diffusion_steps 1000 --noise_schedule linear",
    "SAMPLE_FLAGS": "--batch_size 4 --num_samples 10000 --timestep_respacing 100",
}
TREES = {
    "True": "--base_samples dataset/imagenetc_5k --dataset imagenetc --save_dir dataset/generated/imagenetc_5k/",
    "False": "--base_samples dataset/imagenet_50k_deg --dataset imagenet --save_dir dataset/generated/imagenet_50k_deg",
}
COMMAND = "$MODEL_FLAGS $DIFFUSION_FLAGS $SAMPLE_FLAGS $DATA_FLAGS $MODEL_PATHS --D 50 --N 4 --scale 6"


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[ModelFlags]:
    """A folder with the files that the published commands name; the flags that the network was
    opened with.
    """
    opened: list[ModelFlags] = []

    def open_denoiser(path: Path, flags: dict[str, str]) -> Denoiser:
        assert path.name == "256x256_diffusion_uncond.pt"
        opened.append(ModelFlags(**parse_flags(flags)))
        return build_denoiser(256, [8] * 6, noise_schedule=opened[-1].noise_schedule, learn_sigma=opened[-1].learn_sigma)

    save_images(tmp_path / "dataset/imagenetc_5k", [f"fog/5/n01/{i}.JPEG" for i in range(5)], 224)
    save_images(tmp_path / "dataset/imagenet_50k_deg", ["jpeg/val/n01/a.JPEG"], 300)
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt/256x256_diffusion_uncond.pt").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("undegrade.image_adapt.reverse.open_denoiser", open_denoiser)
    return opened


@pytest.mark.parametrize(("train", "corruption", "images"), [("True", "fog", 5), ("False", "jpeg", 1)])
def test_published_commands_are_understood_once_their_swap_is_mended(
    published: list[ModelFlags], train: str, corruption: str, images: int
) -> None:
    line = Template(COMMAND).substitute(FLAGS, DATA_FLAGS=TREES[train]) + f' --corruption "{corruption}" --train {train}'
    done = run_script(SCRIPT, *shlex.split(line), "--dry_run")
    assert done.status == 2 and "swapped" in done.err and "use --D 4 --N 50" in done.err
    done = run_script(SCRIPT, *shlex.split(line.replace("--D 50 --N 4", "--D 4 --N 50")), "--dry_run").check()
    assert published == [ADM_256]
    assert re.search(rf"total +{images} +0 +{images} ", done.out)
    assert "steps: 50 of a chain of 100, from noise level alpha_bar 0.08264" in done.out
    assert "50 forward, 50 backward" in done.out and "batches of 4 each" in done.out


def test_small_pictures_of_the_published_size_are_enlarged(published: list[ModelFlags], tmp_path: Path) -> None:
    given = InputConfig(folder="dataset/imagenetc_5k", layout="imagenetc", corruptions=["fog"])
    (job,) = plan_jobs(AdaptConfig("out", input=given), 256)
    assert job.source.images([0]).shape == (1, 3, 256, 256)


# --- what imitates the published program


class Recorder(Adapter):
    """An adapter that returns its input, a little brighter, and notes the sizes of its batches."""

    def __init__(self, batch_matters: bool) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.batch_matters = batch_matters

    def adapt(self, x: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        self.batches.append(len(x))
        return x + 0.006


@pytest.fixture
def run_recorded(tmp_path: Path) -> Callable[..., tuple[list[int], Path]]:
    def run(batch_matters: bool = False, **options: object) -> tuple[list[int], Path]:
        given = InputConfig(corruptions=["clean"], limit=6)
        config = AdaptConfig(str(tmp_path), batch_size=4, input=given, **options)  # type: ignore[arg-type]
        recorder = Recorder(batch_matters)
        run_jobs(plan_jobs(config, 32), recorder, config, World(), torch.device("cpu"))
        return recorder.batches, tmp_path / "clean/0"

    return run


def test_jpeg_is_what_pillow_writes_by_default_of_truncated_levels(run_recorded: Callable) -> None:
    _, folder = run_recorded(output="jpeg", rounding="truncate")
    (job,) = plan_jobs(AdaptConfig("x", input=InputConfig(corruptions=["clean"], limit=6)), 32)
    for i, key in enumerate(job.source.keys):
        x = job.source.images([i])[0].float() / 127.5 - 1 + 0.006
        expected = io.BytesIO()
        Image.fromarray(from_signed(x, "truncate").permute(1, 2, 0).numpy()).save(expected, "jpeg")
        assert (folder / f"{key}.jpeg").read_bytes() == expected.getvalue()
    found = json.loads((folder / "settings.json").read_text())
    assert (found["output"], found["rounding"]) == ("jpeg", "truncate")
    assert json.loads((folder / "manifest.jsonl").read_text().splitlines()[0])["file"].endswith(".jpeg")
    with pytest.raises(ValueError, match="holds images made with other settings .*output: jpeg there, png now"):
        run_recorded()


def test_png_gives_back_the_adapted_levels_rounded(run_recorded: Callable) -> None:
    _, folder = run_recorded()
    (job,) = plan_jobs(AdaptConfig("x", input=InputConfig(corruptions=["clean"], limit=6)), 32)
    expected = from_signed(job.source.images([0])[0].float() / 127.5 - 1 + 0.006)
    assert np.array_equal(np.asarray(Image.open(folder / f"{job.source.keys[0]}.png")), expected.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(("batch_matters", "batches"), [(False, [4, 4]), (True, [4, 2])])
def test_last_batch_is_filled_up_unless_copies_would_weigh(run_recorded: Callable, batch_matters: bool, batches: list[int]) -> None:
    assert run_recorded(batch_matters)[0] == batches


def test_compat_file_sets_what_the_published_program_does(ddpm: Path, tmp_path: Path) -> None:
    words = ("-c", "configs/adapt/Digits/dda.yaml", "configs/_compat/dda.yaml", "--model_path", ddpm, "--corruption", "jpeg")
    run_script(SCRIPT, *words, "--save_dir", tmp_path, "--limit", 2, "--N", 2).check()
    found = settings(tmp_path)
    assert {k: found[k] for k in ("output", "rounding", "batch_size")} == {
        "output": "jpeg",
        "rounding": "truncate",
        "batch_size": 4,
    }
    parameters = {"guidance_norm": "batch", "guidance_weight": 6, "border": "zero", "start_mismatch": True, "respacing": "20"}
    assert parameters.items() <= found["parameters"].items()
    assert len(list(tmp_path.rglob("*.jpeg"))) == 2 and not list(tmp_path.rglob("*.png"))


# --- documents


def test_batch_script_of_the_documents_is_understood() -> None:
    text = (ROOT / "docs/adaptation.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("srun ")]
    assert len(lines) == 1
    check_command(["mpiexec", "-n", "8", *shlex.split(lines[0])[2:]])
