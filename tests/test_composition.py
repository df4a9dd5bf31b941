"""Configurations that are composed of a data set, a network and a recipe."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts import ROOT, run_script
from tests.shipped import COMPOSED, CONFIGS
from undegrade.utils import composition
from undegrade.utils.composition import Composition, compositions, families, find_config, read_yaml
from undegrade.utils.training_commands import training_command
from undegrade.utils.yaml_trees import load_yaml

DATA = {"A": "data: {dataset: A, size: 1, flip: true}", "B": "data: {dataset: B, size: 2, flip: true}"}
NETWORKS = {
    "Net18": "model: {arch: net18, start: null}\nby: {A: {model: {arch: net18_small}}, B: {}}",
    "Net50": "model: {arch: net50}\nby: {B: {}}",
}
RECIPE = """
script: train.py
paths: ["{net}/fit", "{net}-{size}_fit"]
name: mine/{dataset}/{arch}
data: {flip: false, extra: 1}
model: {start: "mine/{dataset}"}
lr: 1
by:
  A, B/Net50: {lr: 2, data: {extra: 2}}
  B/Net50: {lr: 3}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with parts of its own."""
    monkeypatch.chdir(tmp_path)
    for kind, parts in {"data": DATA, "networks": NETWORKS, "recipes/mine": {"fit": RECIPE}}.items():
        for name, text in parts.items():
            file = tmp_path / "configs" / kind / f"{name}.yaml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    return tmp_path


# --- what is composed


@pytest.mark.usefixtures("folder")
def test_a_recipe_is_over_the_data_set_the_network_over_both_and_the_block_of_this_case_over_all() -> None:
    assert read_yaml("configs/mine/A/Net18/fit.yaml") == {
        "data": {"dataset": "A", "size": 1, "flip": False, "extra": 2},
        "name": "mine/{dataset}/{arch}", "model": {"start": None, "arch": "net18_small"}, "lr": 2,
    }  # fmt: skip
    assert read_yaml("configs/mine/B/Net50/fit.yaml") == {
        "data": {"dataset": "B", "size": 2, "flip": False, "extra": 2},
        "name": "mine/{dataset}/{arch}", "model": {"start": "mine/{dataset}", "arch": "net50"}, "lr": 3,
    }  # fmt: skip


def test_a_recipe_may_have_several_paths_and_is_found_from_anywhere(folder: Path) -> None:
    tree = read_yaml("configs/mine/B/Net50/fit.yaml")
    assert read_yaml("configs/mine/B/Net50-50_fit.yaml") == read_yaml(folder / "configs/mine/B/Net50/fit.yaml") == tree


@pytest.mark.usefixtures("folder")
def test_there_is_what_data_set_network_and_recipe_are_all_for() -> None:
    assert set(compositions("mine")) == {f"{name}" for name in ("A/Net18/fit", "A/Net18-18_fit", "B/Net50/fit", "B/Net50-50_fit")}
    assert "mine" in families() and "ind" in families()
    assert training_command("mine/B/net50") == "python train.py -c configs/mine/B/Net50/fit.yaml"


def test_a_recipe_may_take_single_values_and_be_based_on_another(folder: Path) -> None:
    text = 'base: fit.yaml\npaths: ["{net}_eval"]\ntakes: {input.dataset: data.dataset, arch: model.arch}\nby: {"A, B/Net50": null}'
    (folder / "configs/recipes/mine/eval.yaml").write_text(text)
    tree = read_yaml("configs/mine/B/Net50_eval.yaml")
    assert (tree["input"], tree["arch"], tree["lr"], tree["data"]) == ({"dataset": "B"}, "net50", 3, {"flip": False, "extra": 1})
    assert "mine/A/Net18_eval" not in compositions("mine")
    (folder / "configs/recipes/mine/eval.yaml").write_text(text.replace("model.arch", "model.ach"))
    with pytest.raises(ValueError, match=r"eval\.yaml takes 'model\.ach': .*B\.yaml and .*Net50\.yaml have no such key"):
        read_yaml("configs/mine/B/Net50_eval.yaml")


def test_a_file_goes_before_what_is_composed_and_may_be_based_on_it(folder: Path) -> None:
    (folder / "mine.yaml").write_text("base: configs/mine/A/Net18/fit.yaml\nlr: 9\n")
    assert read_yaml("mine.yaml")["lr"] == 9 and read_yaml("mine.yaml")["data"]["dataset"] == "A"
    (folder / "configs/mine/A").mkdir(parents=True)
    (folder / "configs/mine/A/near.yaml").write_text("base: Net18/fit.yaml\nlr: 8\n")
    assert read_yaml("configs/mine/A/near.yaml")["lr"] == 8
    (folder / "configs/mine/A/Net18-18_fit.yaml").write_text("lr: 7\n")
    assert read_yaml("configs/mine/A/Net18-18_fit.yaml") == {"lr": 7}


def test_parts_of_the_working_folder_go_before_the_shipped_ones_and_work_with_them(folder: Path) -> None:
    assert read_yaml("configs/ind/Digits/ResNet20_clean.yaml") == read_yaml(ROOT / "configs/ind/Digits/ResNet20_clean.yaml")
    (folder / "configs/networks/mine.yaml").write_text("model: {arch: mobilenetv3_small_050}")
    assert read_yaml("configs/ind/Digits/mine_clean.yaml")["model"] == {"arch": "mobilenetv3_small_050"}
    (folder / "configs/data/Digits.yaml").write_text("data: {dataset: Digits, batch_size: 7}")
    assert read_yaml("configs/ind/Digits/ResNet20_clean.yaml")["data"]["batch_size"] == 7


def test_a_data_set_may_have_the_recipes_of_another(folder: Path) -> None:
    (folder / "configs/data/C.yaml").write_text("like: A\ndata: {dataset: C}")
    tree = read_yaml("configs/mine/C/Net18/fit.yaml")
    assert (tree["data"], tree["model"]["arch"], tree["lr"]) == ({"dataset": "C", "flip": False, "extra": 2}, "net18_small", 2)
    (folder / "configs/recipes/mine/fit.yaml").write_text(RECIPE + "  C: {lr: 5}\n")
    assert read_yaml("configs/mine/C/Net18/fit.yaml")["lr"] == 5 and "like" not in read_yaml("configs/mine/C/Net18/fit.yaml")


def test_shipped_files_are_found_from_another_folder(folder: Path) -> None:
    assert find_config("configs/_compat/dda.yaml") == ROOT / "configs/_compat/dda.yaml"
    code = "from undegrade.utils.config import read_yaml; print(read_yaml('configs/sda/Imagenet/swinB.yaml')['model']['arch'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout == "swin_base_patch4_window7_224.ms_in1k\n"


def test_what_is_read_may_be_changed() -> None:
    path = "configs/ind/Digits/ResNet20/deg.yaml"
    before = json.dumps(read_yaml(path))
    tree = read_yaml(path)
    tree["data"]["augment"]["crop_padding"] = tree["data"]["degradations"] = 99
    assert json.dumps(read_yaml(path)) == before


# --- what is not there


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("configs/ind/Digits/ResNet20_claen.yaml", "did you mean configs/ind/Digits/ResNet20_clean.yaml?"),
        ("configs/ind/Digits/ResNet18/deg.yaml", "CIFAR10/ResNet18/deg"),
        ("configs/diffusion/Imagenet/ddpm.yaml", "diffusion has CIFAR10/ddpm, Digits/ddpm, ImageFolder/ddpm"),
        ("configs/adapt/Digits/dda", "adapt has "),
        ("configs/adapt/Digits", "adapt has Digits/consistency, Digits/dda, Digits/decorruptor, Digits/distilled, Digits/fast"),
        ("configs/adapt", "adapt has CIFAR10, Digits, ImageFolder, Imagenet"),
        ("configs/adept/Digits/dda.yaml", "did you mean configs/adapt/Digits/dda.yaml?"),
        ("configs/idn", "did you mean configs/ind?"),
        ("ind/Digits/ResNet20_clean.yaml", "did you mean configs/ind/Digits/ResNet20_clean.yaml?"),
        ("/undegrade.yaml", "does not exist"),
        ("other/Digits/dda.yaml", "config file other/Digits/dda.yaml does not exist"),
    ],
)
def test_a_path_that_nothing_composes_is_reported_with_what_there_is(
    path: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(FileNotFoundError) as raised:
        read_yaml(path)
    assert f"config file {path} does not exist" in str(raised.value) and message in str(raised.value)


def test_a_recipe_without_its_keys_is_reported(folder: Path) -> None:
    (folder / "configs/recipes/mine/bad.yaml").write_text("script: train.py\nlr: 1")
    with pytest.raises(ValueError, match=r"bad\.yaml: a recipe needs `script: train\.py` and `paths: \[\.\.\.\]`"):
        read_yaml("configs/mine/A/Net18/fit.yaml")


@pytest.mark.parametrize(
    ("part", "text", "message"),
    [
        ("data", "like: 3", "`like: 3` is not of the form `like: ImageFolder`, see docs/configuration.md"),
        ("networks", "by: [A]", "`by: ['A']` is not of the form `by: {CIFAR10: {loop: {epochs: 3}}}`"),
        ("networks", "by: {A: 3}", "`by: {'A': 3}` is not of the form"),
        ("recipes/mine", "{script: s, paths: x}", "`paths: 'x'` is not of the form `paths: [{net}/deg]`"),
        (
            "recipes/mine",
            "{script: s, paths: ['{nte}']}",
            "unknown name 'nte' in configs/recipes/mine/bad.yaml, paths: did you mean",
        ),
        ("recipes/mine", "{script: s, paths: [x], takes: {a: 3}}", "`takes: {'a': 3}` is not of the form"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_part_whose_own_keys_are_of_another_form_is_reported(part: str, text: str, message: str) -> None:
    Path(f"configs/{part}/bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        [composed.tree() for composed in compositions("mine").values()]


def test_what_a_path_resolves_to_is_printed_with_the_files_that_it_comes_from() -> None:
    done = run_script("train.py", "-c", "configs/ind/CIFAR10/ResNet18/deg.yaml", "--loop.epochs", 3, "--print_config").check()
    first, rest = done.out.split("\n", 1)
    parts = "configs/data/CIFAR10.yaml < configs/recipes/ind/deg.yaml < configs/networks/ResNet18.yaml"
    assert first == f"# configs/ind/CIFAR10/ResNet18/deg.yaml: {parts}"
    assert "arch: ResNet18_CIFAR\n" in rest and "epochs: 3\n" in rest


# --- what is shipped


def test_files_are_few_bases_are_shallow_and_no_part_is_based_on_another_data_set() -> None:
    def depth(path: Path) -> int:
        bases = load_yaml(path).get("base", [])
        return 1 + max((depth(path.parent / base) for base in ([bases] if isinstance(bases, str) else bases)), default=0)

    assert len(CONFIGS) <= 115
    assert max(depth(ROOT / path) for path in CONFIGS) <= 3
    assert not any("base" in load_yaml(ROOT / path) for path in CONFIGS if path.parts[1] in ("data", "networks"))


def test_every_family_of_today_is_composed() -> None:
    known = "adapt deg_all diffusion editor ensemble generate ind landmark repfusion restoration sda segmentation sl"
    assert families() == known.split()
    datasets = {"Digits", "CIFAR10", "CIFAR100", "TinyImagenet", "Imagenet", "ImageFolder"}
    datasets |= {"DigitScenes", "DigitPoints", "CelebAMaskHQ", "WFLW"}
    assert {found.dataset.stem for found in COMPOSED} == datasets and len(COMPOSED) > 163
    assert all(isinstance(find_config(found.path), Composition) for found in COMPOSED)


def test_the_command_that_makes_a_run_is_found_in_few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    composition._shipped_part.cache_clear()
    monkeypatch.setattr(composition, "load_yaml", lambda path: read.append(path) or load_yaml(path))
    assert training_command("deg_all/photos/ResNet20_fused")
    assert len(read) < 40


STEP1 = {"optimizer.name": "SGD", "optimizer.lr": 0.1, "optimizer.milestones": [60, 120, 160], "loop.epochs": 200}
TOGETHER = {
    "optimizer.milestones": [60, 140, 180],
    "loop.epochs": 200,
    "data.degradations": ["jpeg", "blur", "saltpepper", "noise"],
}
RADAM = {"optimizer.name": "RAdam", "optimizer.lr": 1e-3, "optimizer.weight_decay": 1e-4}
DDA = {"dda.respacing": "100", "dda.start_step": 50, "dda.downscale_factor": 4}
TINY_HOLES = {"ResNet56_base_scratch": 32, "ResNet56_base_vanilla": 32, "ResNet56_fused": 16, "ResNet56-56_fusiondistill": 16}
PUBLISHED = {  # DiffAUD's: test_diffaud_configs.py, SDA's: test_fine_tuning.py
    "ind/CIFAR10/ResNet56_clean": {**STEP1, "optimizer.weight_decay": 1e-4, "data.augment.cutout": 16},
    "ind/CIFAR100/ResNet56_clean": {**STEP1, "optimizer.weight_decay": 5e-4, "data.batch_size": 128},
    "ind/TinyImagenet/ResNet56_clean": {**STEP1, "optimizer.weight_decay": 5e-4, "data.augment.cutout": 32},
    "sl/CIFAR100/ResNet56-56": {**RADAM, "optimizer.schedule": "epoch_cosine", "loop.epochs": 100, "method.ce_weight": 1.0},
    "sl/TinyImagenet/ResNet56-56": {"optimizer.schedule": "epoch_cosine", "data.augment.cutout": 32},
    "deg_all/CIFAR100/ResNet56_base_scratch": {**TOGETHER, "optimizer.name": "SGD", "optimizer.lr": 0.1},
    "deg_all/CIFAR100/ResNet56_base_vanilla": {**TOGETHER, **RADAM, "model.init_from": "ind/{dataset}/{arch}_clean"},
    "deg_all/CIFAR100/ResNet56_fused": {**RADAM, "optimizer.milestones": [30, 70, 90], "loop.epochs": 100},
    **{f"deg_all/TinyImagenet/{name}": {"data.augment.cutout": side} for name, side in TINY_HOLES.items()},
    "deg_all/CIFAR100/ResNet56-56_fusiondistill": {
        **RADAM, "optimizer.milestones": [30, 70, 90], "loop.epochs": 100, "method.ce_weight": 0.1, "method.teacher_view": "clean",
        "method.feature_weights": {"stage3": 1.0}, "model.init_from": "deg_all/{dataset}/{arch}_soups",
    },
    "adapt/CIFAR10/dda": {**DDA, "dda.guidance_weight": 0.375, "model": "diffusion/{dataset}/ddpm"},
    "adapt/Imagenet/dda": {**DDA, "dda.guidance_weight": 3.0, "batch_size": 4, "model": "ckpt/256x256_diffusion_uncond"},
    "generate/Imagenet/dit": {"respacing": "250", "num_per_class": 50, "image_size": 256, "dataset": "Imagenet"},
    # not published, but numbers in docs/results are of these
    "ind/Digits/ResNet20_clean": {"optimizer.name": "AdamW", "optimizer.lr": 3e-3, "loop.epochs": 12, "data.batch_size": 64},
    "deg_all/Digits/ResNet20/adaptDistill": {"optimizer.lr": 2e-3, "loop.epochs": 6, "method.feature_weights": {"pooled": 1.0}},
    "adapt/Digits/dda": {"dda.respacing": "20", "dda.start_step": 7, "dda.guidance_weight": 0.0, "input.constants": "imagenet"},
    "adapt/Digits/fast": {"dda.start_step": 10, "dda.guidance_weight": 0.0, "dda.guidance": "full", "dda.sampler": "ddim"},
    "diffusion/Digits/ddpm": {"model.channels": [16, 32, 64], "optimizer.lr": 2e-3, "loop.ema_decay": 0.99, "data.batch_size": 32},
}  # fmt: skip


@pytest.mark.parametrize("path", PUBLISHED)
def test_published_values_are_what_the_paths_come_to(path: str) -> None:
    tree = read_yaml(f"configs/{path}.yaml")
    for place, value in PUBLISHED[path].items():
        assert functools.reduce(lambda at, key: at[key], place.split("."), tree) == value, place


@pytest.mark.parametrize(
    "found", [found for found in COMPOSED if found.path.endswith(("_consistency.yaml", "/clean.yaml"))], ids=lambda it: it.path
)
def test_other_names_of_a_recipe_mean_the_same(found: Composition) -> None:
    usual = found.path.replace("_consistency", "_fusiondistill").replace("/clean.yaml", "_clean.yaml")
    assert read_yaml(found.path) == read_yaml(usual)
