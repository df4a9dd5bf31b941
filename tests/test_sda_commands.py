"""SDA's published commands of generation, alignment and vote, on tiny networks and trees; what is
said of what does not fit.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.adapting import SCRIPT as ALIGN
from tests.adapting import manifest_of, pngs, save_images
from tests.checkpoints import save_random
from tests.dit_networks import OriginalDiT
from tests.openai_networks import ADM_256
from tests.scoring import logits_by_hand, rows_of
from tests.scripts import Done, run_script
from tests.test_dit import save_vae
from tests.test_released import stored_logits
from undegrade.image_adapt import generator
from undegrade.models.diffusion.denoiser import Denoiser, build_denoiser, describe
from undegrade.models.diffusion.openai_flags import ModelFlags, parse_flags
from undegrade.utils.checkpoint import load_checkpoint, save_checkpoint
from undegrade.utils.data.sources.images import read_image

GENERATE = "image_adapt/scripts/generate.py"
CLASSES = ("n01", "n02", "n03", "n04", "n05")  # of the tiny DiT
MADE = "data/DiT-XL-2-DiT-XL-2-256x256-size-8-vae-ema-cfg-1.0-seed-0"
MODEL_FLAGS = "--class_cond False --diffusion_steps 1000 --learn_sigma False --noise_schedule linear --use_fp16 False"
SIDE, LARGE = 28, 32  # of the files of ImageNet-C and W, and of the diffusion model


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`pretrained_ckpt` as the published commands expect it, with tiny networks in it, and the list
    of classes.
    """
    monkeypatch.setitem(generator.NETWORKS, "DiT-XL/2", (2, 24, 2))
    (tmp_path / "pretrained_ckpt").mkdir()
    torch.save(OriginalDiT().state_dict(), tmp_path / "pretrained_ckpt/DiT-XL-2-256x256.pt")
    save_vae(tmp_path / "pretrained_ckpt/sd-vae-ft-ema")
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    return tmp_path


def gen(place: Path, *more: object, images: int = 10, size: int = 8) -> Done:
    """gen.sh, at 3 steps."""
    words = f"--image-size {size} --cfg-scale 1.0 --global-seed 0 --num-fid-samples {images} --num-sampling-steps 3 --num_heads 3"
    folders = ("--sample-dir", place / "data", "--ckpt", place / "pretrained_ckpt/DiT-XL-2-256x256.pt")
    return run_script(GENERATE, *shlex.split(words), *folders, "--class_names", place / "names.txt", *more)


def align(place: Path, *more: object, size: int = LARGE) -> Done:
    """align.sh, from step 2 of 10, with an unconditional network of this size."""
    path = place / f"{size}.safetensors"
    if not path.is_file():
        torch.manual_seed(0)
        denoiser = build_denoiser(size, [8, 8], norm_groups=2)
        save_checkpoint(path, denoiser.unet.state_dict(), describe(denoiser))
    sampling = "--batch_size 10 --num_samples 50000 --timestep_respacing 10 --D 4 --N 2 --scale 6"
    words = shlex.split(f"--image_size {size} {MODEL_FLAGS.replace('linear', 'cosine')} {sampling}")
    return run_script(ALIGN, *words, "--model_path", path, "--save_dir", place / "data", *more)


# --- generation


def test_gen_writes_the_folder_that_align_reads(place: Path) -> None:
    gen(place).check()
    files = [f"{c:04d}/{5 * j + c:06d}.png" for c in range(5) for j in range(2)]
    assert list(pngs(place / MADE)) == files
    assert (place / MADE / "classes.txt").read_text().splitlines()[4] == "0004 n05"
    (place / MADE / files[3]).unlink()
    named = ("--model", "DiT-XL/2", "--vae", "ema", "--per-proc-batch-size", 10, "--num-classes", 5)
    before = pngs(place / MADE)
    assert "generated 1 images" in gen(place, *named).check().err
    assert pngs(place / MADE).keys() == {*before, files[3]}


def test_an_interrupted_generation_is_completed_to_the_same_files(place: Path) -> None:
    gen(place).check()
    before = {p.name: p.read_bytes() for p in (place / MADE).rglob("*.*") if p.name != "provenance.jsonl"}
    for name in ("0002/000002.png", "0002/000007.png", "0004/000009.png"):
        (place / MADE / name).unlink()
    assert "generated 3 images" in gen(place).check().err
    after = {p.name: p.read_bytes() for p in (place / MADE).rglob("*.*") if p.name != "provenance.jsonl"}
    assert after == before  # but for when it was made


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--num-fid-samples", 12), "--num-fid-samples 12 is no multiple of the 5 classes, which get as many each: e.g. 10"),
        (("--num-fid-samples", 3), "--num-fid-samples 3 is no multiple of the 5 classes, which get as many each: e.g. 5"),
        (("--num_per_class", 2), "--num-fid-samples and --num_per_class say the same thing twice: give one"),
        (("--save_dir", "x"), "--sample-dir and --save_dir say the same thing twice: give one"),
        (("--classes", "3-5"), "--classes 3-5: the generator has the classes 0..4"),
        (("--num-classes", 1000), "num_classes 1000: this model has 5, take one trained on those classes"),
        (("--class_names", "imagenet-1k"), "class_names imagenet-1k: 1000 names for the 5 classes of "),
        (("--image-size", 256), "image_size 256: this model makes images of 8 px"),
        (("--image-size", 9), "image_size 9 is no multiple of 2, the pixels that the VAE makes of a latent position"),
        (("--model", "DiT-B/4"), "holds a DiT of 2 blocks, width 24, patches of 2, DiT-B/4 has 12 blocks, width 768, patches of 4"),
        (("--model", "DiT-XXL/2"), "unknown network 'DiT-XXL/2' in --model, which names that of --ckpt: did you mean 'DiT-XL/2'?"),
        (("--vae", "mse"), "pretrained_ckpt/sd-vae-ft-mse; needed is one of diffusers with an AutoencoderKL (config.json"),
        (("--vae", "eight"), "the VAE eight has latents of 8 channels, the diffusion model makes 4"),
    ],
)
def test_what_the_generator_cannot_do_is_named(
    place: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[object, ...], message: str
) -> None:
    monkeypatch.chdir(place)
    if "eight" in more:
        save_vae(place / "eight", 8)
    done = gen(place, *more)
    assert done.status == 2 and message in done.err and "Traceback" not in done.err
    assert not [*place.rglob("*.png")]


def test_flags_of_the_published_generation_need_the_weights(place: Path) -> None:
    for words, message in (
        (("--model", "DiT-XL/2", "--save_dir", "x"), "--model DiT-XL/2 names a network: give its weights with --ckpt"),
        (("--model_path", "x", "--sample-dir", "data"), "--sample-dir names its folder after the weights of --ckpt"),
        (("--ckpt", place / "x/DiT-XL-2-256x256.pt", "--sample-dir", "data"), "with: undegrade download DiT-XL-2-256x256\n"),
    ):
        done = run_script(GENERATE, *words)
        assert done.status == 2 and message in done.err


def test_processes_of_torchrun_are_not_ranks(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mpi4py.MPI")
    monkeypatch.setenv("WORLD_SIZE", "5")
    done = gen(place)
    assert done.status == 2 and "launched as 5 processes, but MPI sees one rank" in done.err


# --- alignment


def test_align_d_keeps_the_numbered_folders_and_their_names(place: Path) -> None:
    gen(place).check()
    align(place, "--base_samples", place / MADE, "--datatype", "D", size=8).check()
    assert pngs(place / "data/DiT-Syn").keys() == pngs(place / MADE).keys()
    assert (place / "data/DiT-Syn/classes.txt").read_text() == (place / MADE / "classes.txt").read_text()


ALIGN_SH = (
    "--attention_resolutions 32,16,8 --class_cond False --diffusion_steps 1000 --image_size 256 --learn_sigma True "
    "--noise_schedule linear --num_channels 256 --num_head_channels 64 --num_res_blocks 2 --resblock_updown True --use_fp16 True "
    "--use_scale_shift_norm True --batch_size 10 --num_samples 50000 --timestep_respacing 100 --D 4 --N 50 --scale 6 "
    "--save_dir data/ --model_path pretrained_ckpt/256x256_diffusion_uncond.pt --base_samples "
)


@pytest.mark.parametrize(
    ("words", "file", "below"),
    [
        (f"{MADE.replace('size-8', 'size-256')} --datatype D", "0000/000000.png", "DiT-Syn"),
        (
            "data/ImageNet-C --datatype C --corruption gaussian_noise --severity 5",
            "gaussian_noise/5/n01/a.JPEG",
            "ImageNet-C-Syn",
        ),
        ("data/ImageNet-W --datatype W", "val/n01/a.JPEG", "ImageNet-W-Syn"),
    ],
)
def test_align_is_understood_as_written(place: Path, monkeypatch: pytest.MonkeyPatch, words: str, file: str, below: str) -> None:
    def open_denoiser(path: Path, flags: dict[str, str]) -> Denoiser:
        assert ModelFlags(**parse_flags(flags)) == ADM_256
        return build_denoiser(256, [8] * 6, learn_sigma=True)

    (place / "pretrained_ckpt/256x256_diffusion_uncond.pt").write_bytes(b"weights")
    save_images(place / words.split()[0], [file], 224)
    monkeypatch.chdir(place)
    monkeypatch.setattr("undegrade.image_adapt.reverse.open_denoiser", open_denoiser)
    out = run_script(ALIGN, *shlex.split(ALIGN_SH + words), "--dry_run").check().out
    assert re.search(r"total +1 +0 +1 +1\n", out) and "batches of 10 each" in out and "50 forward, 50 backward" in out
    assert re.search(rf" in data/{below}\n", out)


def tree_of(place: Path, kind: str) -> str:
    """A test set with two images of each of three classes, as it is released; the folder of its
    files.
    """
    below = {"ImageNet-C": "gaussian_noise/5", "ImageNet-W": "val"}[kind]
    names = [f"{wnid}/ILSVRC2012_val_{10 * k + i:08d}.JPEG" for k, wnid in enumerate(CLASSES[:3]) for i in range(2)]
    save_images(place / "data" / kind / below, names, SIDE)
    (place / "data" / kind / "classes.txt").write_text("\n".join(CLASSES))
    return below


DATATYPES = [
    ("ImageNet-C", ("--datatype", "C", "--corruption", "gaussian_noise", "--severity", "5"), "gaussian_noise-5"),
    ("ImageNet-W", ("--datatype", "W"), "watermark-0"),
]


@pytest.mark.parametrize("suffix", [".png", ".jpeg"])
@pytest.mark.parametrize(("kind", "words", "cell"), DATATYPES)
def test_align_keeps_the_tree_of_a_test_set(place: Path, kind: str, words: tuple[str, ...], cell: str, suffix: str) -> None:
    below = tree_of(place, kind)
    more = ("--output", "jpeg") if suffix == ".jpeg" else ()
    align(place, "--base_samples", place / "data" / kind, *words, *more).check()
    made = place / f"data/{kind}-Syn" / below
    stems = {p.relative_to(place / "data" / kind / below).with_suffix("") for p in (place / "data" / kind / below).rglob("*.JPEG")}
    assert {p.relative_to(made).with_suffix("") for p in made.rglob(f"*{suffix}")} == stems and len(stems) == 6
    assert {row["input_side"] for row in manifest_of(made)} == {SIDE}
    assert "adapted 0 images" in align(place, "--base_samples", place / "data" / kind, *words, *more).check().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--datatype", ""), "unknown datatype '': allowed: D, C, W"),
        (("--datatype", "c"), "unknown datatype 'c'"),
        ((), "lie in one another: choose folders apart, or say what is adapted with --datatype (D, C, W)"),
        (("--datatype", "C"), "input.corruptions is empty"),
        (("--datatype", "C", "--corruption", "fog"), "ImageNet-C/fog/5 does not exist"),
        (("--datatype", "W"), "ImageNet-C/val does not exist"),
        (("--datatype", "W", "--corruption", "fog"), "--corruption fog has no meaning for a folder of the layout imagenetw"),
        (("--datatype", "D", "--corruption", "fog"), "--corruption fog has no meaning for a plain folder"),
        (("--datatype", "C", "--dataset", "imagenet"), "--datatype C and --dataset imagenet both say what is adapted"),
    ],
)
def test_a_datatype_that_does_not_fit_is_named(place: Path, words: tuple[str, ...], message: str) -> None:
    tree_of(place, "ImageNet-C")
    done = align(place, "--base_samples", place / "data/ImageNet-C", *words)
    assert done.status == 2 and message in done.err and "Traceback" not in done.err
    assert [p.name for p in (place / "data").iterdir()] == ["ImageNet-C"]


def test_a_datatype_needs_its_images(place: Path) -> None:
    done = align(place, "--datatype", "W")
    assert done.status == 2 and "--datatype W needs the folder of the images: give --base_samples" in done.err
    done = run_script(ALIGN, "--model_path", "x", "--base_samples", "y", "--datatype", "W")
    assert done.status == 2 and "--save_dir is missing: give it, images go to <save_dir>/ImageNet-W-Syn" in done.err


# --- the vote


def seen(files: Sequence[Path]) -> Tensor:
    """The whole of each file at the size of the classifier."""
    return torch.from_numpy(np.stack([read_image(file, SIDE) for file in files]))


@pytest.mark.parametrize(("kind", "words", "cell"), DATATYPES)
def test_eval_scores_a_test_set_and_its_adapted_images_by_the_two_trees_alone(
    place: Path, kind: str, words: tuple[str, ...], cell: str
) -> None:
    """Both show the whole of the files: the second is not cut again."""
    below = tree_of(place, kind)
    align(place, "--base_samples", place / "data" / kind, *words).check()
    source, tuned = (save_random(place / f"{seed}.safetensors", seed, classes=CLASSES) for seed in (0, 1))
    given = ("eval/configs/ensemble/resnet50.py", tuned, "--originckpt", source, "--metrics", "accuracy", *words[:4])
    trees = ("--data_prefix1", place / "data" / kind, "--data_prefix2", place / f"data/{kind}-Syn", "--ensemble", "sda")
    size = ("--data.image_size", SIDE, "--data.resize", LARGE, "--out", place / "out")
    run_script("test_ensemble.py", *given, *trees, *size).check()
    files = [sorted((place / "data" / name / below).glob("*/*")) for name in (kind, f"{kind}-Syn")]
    logits = [logits_by_hand(path, seen(paths)) for path, paths in zip((source, tuned), files, strict=True)]
    for member, by_hand in zip(("first", "second"), logits, strict=True):
        assert np.allclose(stored_logits(place / "out", member, cell), by_hand, atol=1e-4)
    (row,) = rows_of(place / "out")
    right = (logits[0].softmax(1) + logits[1].softmax(1)).argmax(1) == torch.tensor([0, 0, 1, 1, 2, 2])
    assert (row["system"], row["n"], row["correct"]) == ("sda", 6, int(right.sum()))


def test_a_file_that_does_not_say_its_network_has_that_of_the_configuration(place: Path) -> None:
    tree_of(place, "ImageNet-W")
    path = save_random(place / "x.safetensors", classes=CLASSES)
    torch.save(load_checkpoint(path)[0], place / "x.pth")
    (place / "own.yaml").write_text(
        "members: {}\nsystems: {}\narch: ResNet20\ndata: {dataset: Imagenet, image_size: 28, resize: 32}\n"
    )
    words = (place / "own.yaml", place / "x.pth", "--originckpt", path, "--datatype", "W", "--ensemble", "sda")
    statistics = ("--members.second.mean", "[0.5, 0.5, 0.5]", "--members.second.std", "[0.25, 0.25, 0.25]")
    views = ("--data_prefix1", place / "data/ImageNet-W", "--out", place / "out")
    run_script("test_ensemble.py", *words, *statistics, *views).check()
    first, second = (stored_logits(place / "out", member, "watermark-0") for member in ("first", "second"))
    assert np.allclose(first, second)
