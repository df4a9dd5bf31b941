"""Every command line that the published FusionDistill, DiffAUD and SDA instructions give is
understood, or docs/seed_commands.md names the one in its place.

Those of SDA's align.sh, which need the flags of the published network: test_sda_commands.py.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adapting import save_images
from tests.commands import check_command
from tests.documents import blocks_of
from tests.openai_networks import ADM_256
from tests.scripts import ROOT, run_script
from tests.shipped import names_in
from undegrade.models.diffusion.denoiser import Denoiser, build_denoiser
from undegrade.models.diffusion.openai_flags import ModelFlags, parse_flags
from undegrade.utils.config import read_yaml
from undegrade.utils.published_commands import published_run

DOCUMENT = "seed_commands.md"
DEGRADATIONS = ("jpeg", "blur", "noise", "saltpepper")
PLACES = {
    "<DATASET>": ("CIFAR10", "CIFAR100", "TinyImagenet"),
    "<DEG_TYPE>": (*DEGRADATIONS, "combined_deg"),
    "<EXP_STRING>": ("latest",),
    "<EXP_STR>": ("0824_101500",),
}
BACKBONES = [("CIFAR10", "ResNet18"), *itertools.product(("CIFAR10", "Imagenet"), ("ResNet50", "convnextT", "swinT"))]
SAVED, CONFIGS = "saved/combined_deg", "configs/deg_all/<DATASET>/ResNet56"
# what an evaluation command looks for -> the configuration whose run it is
MADE_BY = {
    "saved/<DEG_TYPE>/IndTrainer/ResNet56_<DATASET>_clean": "configs/ind/<DATASET>/ResNet56_clean.yaml",
    "saved/<DEG_TYPE>/SLTrainer/ResNet56-56_<DATASET>": "configs/sl/<DATASET>/ResNet56-56.yaml",
    f"{SAVED}/SLTrainer/ResNet56-56_<DATASET>_soups": f"{CONFIGS}_soups.yaml",
    f"{SAVED}/SLDA_Trainer/ResNet56-56_<DATASET>": f"{CONFIGS}-56_consistency.yaml",
    f"{SAVED}/IndDATrainer/ResNet56_<DATASET>_deg_scratch": f"{CONFIGS}_base_scratch.yaml",
    f"{SAVED}/IndDATrainer/ResNet56_<DATASET>_deg_vanilla": f"{CONFIGS}_base_vanilla.yaml",
    f"{SAVED}/IndDATrainer/ResNet56_<DATASET>_deg_fused": f"{CONFIGS}_fused.yaml",
}
SDA = [
    "mpiexec -n 5 python image_adapt/scripts/generate.py --model DiT-XL/2 --vae ema --sample-dir data --per-proc-batch-size 10 "
    "--num-fid-samples 50000 --image-size 256 --num-classes 1000 --cfg-scale 1.0 --num-sampling-steps 250 --global-seed 0 "
    "--ckpt pretrained_ckpt/DiT-XL-2-256x256.pt",
    "torchrun --nproc_per_node 8 train.py -c configs/sda/Imagenet/<RECIPE>.yaml --data.dataset data/DiT-Syn",
    "python test_ensemble.py eval/configs/ensemble/<MODEL>.py f.pth --originckpt source.pth --metrics accuracy --datatype C "
    "--ensemble sda --corruption gaussian_noise --data_prefix1 data/ImageNet-C --data_prefix2 data/ImageNet-C-Syn",
    "python test_ensemble.py eval/configs/ensemble/<MODEL>.py f.pth --originckpt source.pth --metrics accuracy --datatype W "
    "--ensemble sda --data_prefix1 data/ImageNet-W --data_prefix2 data/ImageNet-W-Syn",
]
DIFFAUD = (
    "python test_ensemble.py model_adapt/configs/ensemble/<BACKBONE>_ensemble_b64_<DATASET>.py deg.pth "
    "--second_model_prefix adapt.pth --metrics accuracy --ensemble sum --corruption gaussian_noise --severity 5 "
    "--data_prefix1 dataset/imagenetc_5k --data_prefix2 dataset/generated/imagenetc_5k --out saved/jpeg_blur_noise/Diffusion/eval"
)


def as_written() -> Iterator[str]:
    """The published lines of the document that stand alone, `\\` joined."""
    blocks = re.findall(r"^```(sh|bash)\n(.*?)^```$", (ROOT / "docs" / DOCUMENT).read_text(), re.M | re.S)
    for (language, text), (following, _) in itertools.pairwise([*blocks, ("", "")]):
        if language == "sh" and following != "bash":
            yield from text.replace("\\\n", " ").splitlines()


def variants(line: str) -> list[str]:
    """A line with its placeholders replaced, by everything that its notes say."""
    if "<BACKBONE>" in line:
        line = line.replace("$DATASET", "<DATASET>").replace("<DEG_TYPE>", "jpeg")
        return [line.replace("<DATASET>", dataset).replace("<BACKBONE>", net) for dataset, net in BACKBONES]
    places = [place for place in PLACES if place in line]
    if "configs/sl/" in line or "SLTrainer" in line and "soups" not in line:
        values = [DEGRADATIONS if place == "<DEG_TYPE>" else PLACES[place] for place in places]  # of a specialist
    else:
        values = [PLACES[place] for place in places]
    return [replaced(line, dict(zip(places, chosen, strict=True))) for chosen in itertools.product(*values)]


def replaced(text: str, words: dict[str, str]) -> str:
    for place, word in words.items():
        text = text.replace(place, word)
    return text


@pytest.mark.parametrize("line", [line for written in as_written() for line in variants(written)])
def test_published_command_is_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = {"dataset": "CIFAR10", "degradations": [*DEGRADATIONS]}
    monkeypatch.setattr("undegrade.evaluation.checkpoint_command.run_data", lambda checkpoint: trained)
    words = shlex.split(line)
    if words[0] == "docker":
        assert "-f" not in words or (ROOT / words[words.index("-f") + 1]).is_file()
        return
    check_command(words)


def test_every_published_line_is_in_the_document() -> None:
    lines = [line for block in blocks_of(DOCUMENT, "sh") for line in block.replace("\\\n", " ").splitlines()]
    assert len([*as_written()]) == 21 and len(lines) == 48


@pytest.mark.parametrize("block", [3, 4])
def test_flags_of_the_published_adaptation_are_taken_but_for_the_misprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    def open_denoiser(path: Path, flags: dict[str, str]) -> Denoiser:
        assert ModelFlags(**parse_flags(flags)) == ADM_256
        return build_denoiser(256, [8] * 6, learn_sigma=True)

    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt/256x256_diffusion_uncond.pt").write_bytes(b"weights")
    save_images(tmp_path / "dataset/imagenetc_5k/fog/5", ["n01/a.JPEG"], 224)
    save_images(tmp_path / "dataset/imagenet_50k_deg/fog/val", ["n01/a.JPEG"], 256)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("undegrade.image_adapt.reverse.open_denoiser", open_denoiser)
    written = "".join(blocks_of(DOCUMENT, "sh")[3 : block + 1])
    variables = dict(re.findall(r'^(\w+)="(.*)"', written, re.M))  # of a name given twice the last one
    line = written.replace("\\\n", " ").splitlines()[-1].replace("<CORRUPTION>", "fog")
    words = shlex.split(re.sub(r"\$(\w+)", lambda name: variables[name[1]], line))[5:]
    done = run_script(words[0], *words[1:], "--dry_run")
    assert done.status == 2 and "use --D 4 --N 50" in done.err
    words[words.index("--D") + 1], words[words.index("--N") + 1] = "4", "50"
    assert "50 forward, 50 backward" in run_script(words[0], *words[1:], "--dry_run").check().out


@pytest.mark.parametrize(("dataset", "backbone"), BACKBONES)
def test_published_diffaud_ensemble_is_understood(dataset: str, backbone: str) -> None:
    check_command(shlex.split(replaced(DIFFAUD, {"<DATASET>": dataset, "<BACKBONE>": backbone})))


@pytest.mark.parametrize("model", ["resnet50", "swinT", "swinB", "convnextT", "convnextB"])
@pytest.mark.parametrize("line", SDA)
def test_published_sda_command_is_understood(line: str, model: str) -> None:
    check_command(shlex.split(line.replace("<MODEL>", model).replace("<RECIPE>", model.replace("resnet", "ResNet"))))


@pytest.mark.parametrize("saved", MADE_BY)
@pytest.mark.parametrize("dataset", PLACES["<DATASET>"])
def test_published_checkpoint_is_that_of_the_run_that_its_training_command_makes(saved: str, dataset: str) -> None:
    for deg in DEGRADATIONS:
        places = {"<DATASET>": dataset, "<DEG_TYPE>": deg}
        name, _ = names_in(read_yaml(replaced(MADE_BY[saved], places)), dataset, deg)
        assert published_run(replaced(f"{saved}/train/0824_101500/model_best.pth", places)) == f"{name}/0824_101500"


# --- what is installed


def test_requirements_are_those_of_the_package() -> None:
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *(word for extra in ("dev", "mpich") for word in project["optional-dependencies"][extra])]
    lines = (ROOT / "docker/requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == named


def test_the_dockerfile_installs_what_is_tried_without_docker() -> None:
    lines = [line for line in (ROOT / "docker/Dockerfile").read_text().splitlines() if "pip install" in line]
    assert len(lines) == 3 and all(line.startswith("RUN pip ") for line in lines)
    assert "grep '^RUN pip ' docker/Dockerfile" in (ROOT / "docker/check_install.sh").read_text()
