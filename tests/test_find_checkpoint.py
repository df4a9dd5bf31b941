"""Parents of a run: which run is taken, what it must have been trained on, and the command that
makes a missing one.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.checkpoints import finished_run, save_random
from tests.shipped import SHIPPED, arch_of, names_in
from undegrade.utils.config import read_yaml
from undegrade.utils.runs import check_specialist, find_checkpoint
from undegrade.utils.training_commands import training_command

STARTED = [p for p in SHIPPED if p.parts[1] in ("ind", "sl", "sda", "deg_all") and names_in(read_yaml(p), "D", "jpeg")[1]]


# --- the command that makes a parent


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("ind/Digits/ResNet20_clean", "python train.py -c configs/ind/Digits/ResNet20_clean.yaml"),
        ("sl/Digits/ResNet20-ResNet20/blur", "python train.py -c configs/sl/Digits/ResNet20-20.yaml --dt blur"),
        ("sl/CIFAR100/ResNet56-ResNet56/blur+noise", "python train.py -c configs/sl/CIFAR100/ResNet56-56.yaml --dt blur+noise"),
        ("sda/Digits/ResNet20", "python train.py -c configs/sda/Digits/ResNet20.yaml"),
        (
            "sda/my photos/ResNet20",
            "python train.py -c configs/sda/ImageFolder/ResNet20.yaml --data.dataset '<path of my photos>'",
        ),
        ("ind/Digits/ResNet20_adapt/jpeg", "python train.py -c configs/ind/Digits/ResNet20/adapt.yaml --dt jpeg"),
        ("deg_all/Digits/ResNet20_soups", "python utils/model_soups.py -c configs/deg_all/Digits/ResNet20_soups.yaml"),
        (
            "deg_all/TinyImagenet/ResNet56-ResNet56_fusiondistill",
            "python train_all_deg.py -c configs/deg_all/TinyImagenet/ResNet56-56_fusiondistill.yaml",
        ),
        (
            "ind/my photos/ResNet20_clean",
            "python train.py -c configs/ind/ImageFolder/ResNet20_clean.yaml --data.dataset '<path of my photos>'",
        ),
    ],
)
def test_a_missing_parent_is_reported_with_the_command_that_makes_it(tmp_path: Path, name: str, command: str) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(f"; make it with: {command} --save_dir {tmp_path}") + "$"):
        find_checkpoint(name, tmp_path)


def test_the_folder_of_runs_is_named_unless_it_is_the_usual_one() -> None:
    plain = "python train.py -c configs/ind/Digits/ResNet20_clean.yaml"
    assert training_command("ind/Digits/ResNet20_clean") == plain
    assert training_command("ind/Digits/ResNet20_clean", "else where") == f"{plain} --save_dir 'else where'"


@pytest.mark.parametrize(
    ("name", "dataset", "words"),
    [
        ("diffusion/CIFAR10/ddpm", "CIFAR10", "configs/diffusion/CIFAR10/ddpm.yaml"),
        ("diffusion/Digits/conditional", "photos", "configs/diffusion/Digits/conditional.yaml"),
        ("diffusion/photos/ddpm", "my/photos", "configs/diffusion/ImageFolder/ddpm.yaml --data.dataset my/photos"),
        ("diffusion/CIFAR100/ddpm", "CIFAR100", "configs/diffusion/ImageFolder/ddpm.yaml --data.dataset CIFAR100"),
        ("diffusion/photos/ddpm", "Digits", "configs/diffusion/ImageFolder/ddpm.yaml --data.dataset '<path of photos>'"),
    ],
)
def test_the_data_set_in_use_is_in_the_command_of_a_run_of_it(name: str, dataset: str, words: str) -> None:
    assert training_command(name, dataset=dataset) == f"python train.py -c {words}"


@pytest.mark.parametrize("name", ["ind/Digits/ResNet20_claen", "ind/Digits/resnet18_clean", "mine", "some/file.safetensors", ""])
def test_no_command_is_made_up_for_a_name_that_nothing_shipped_makes(tmp_path: Path, name: str) -> None:
    assert training_command(name) == ""
    if name:
        with pytest.raises(FileNotFoundError, match=f"no checkpoint {name!r}") as raised:
            find_checkpoint(name, tmp_path)
        assert "make it with" not in str(raised.value)


def test_a_published_path_is_reported_with_the_command_of_its_run(tmp_path: Path) -> None:
    text = "saved/combined_deg/IndDATrainer/ResNet56_CIFAR100_deg_fused/train/latest/model_best.pth"
    command = "python train_all_deg.py -c configs/deg_all/CIFAR100/ResNet56_fused.yaml"
    with pytest.raises(FileNotFoundError, match=f"no checkpoint 'deg_all/CIFAR100/ResNet56_fused'.*: {command}"):
        find_checkpoint(text, tmp_path)


@pytest.mark.parametrize("path", STARTED, ids=str)
def test_the_command_for_every_parent_of_a_shipped_configuration_makes_just_that_run(path: Path) -> None:
    dataset = "photos" if path.parts[2] == "ImageFolder" else path.parts[2]
    _, needed = names_in(read_yaml(path), dataset, "noise")
    for name in needed:
        words = shlex.split(training_command(name))
        config = read_yaml(words[words.index("-c") + 1])
        deg = words[words.index("--dt") + 1] if "--dt" in words else "none"
        assert names_in(config, dataset, deg)[0] == name
        assert arch_of(config) == arch_of(read_yaml(path))
        assert ("--data.dataset" in words) == (dataset == "photos")


def test_enough_configurations_start_from_others() -> None:
    assert len(STARTED) > 40


# --- which run


def test_the_latest_finished_run_of_a_name_is_taken(tmp_path: Path) -> None:
    runs = [finished_run(tmp_path, "ind/Digits/ResNet20_clean", run_id) for run_id in ("b", "a")]
    assert find_checkpoint("ind/Digits/ResNet20_clean", tmp_path) == runs[1]
    assert find_checkpoint(str(runs[0]), tmp_path) == find_checkpoint(str(runs[0].parent), tmp_path) == runs[0]


def test_the_run_of_an_id_is_taken_and_an_unknown_id_reported_with_those_there_are(tmp_path: Path) -> None:
    runs = {run_id: finished_run(tmp_path, "ind/Digits/ResNet20_clean", run_id) for run_id in ("one", "two", "three")}
    for run_id, path in runs.items():
        assert find_checkpoint("ind/Digits/ResNet20_clean", tmp_path, run_id) == path
    message = f"no finished run 'four' of 'ind/Digits/ResNet20_clean' under {tmp_path}/ (finished there: one, two, three)"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        find_checkpoint("ind/Digits/ResNet20_clean", tmp_path, "four")


def test_a_checkpoint_named_in_full_is_taken_whatever_the_id(tmp_path: Path) -> None:
    path = finished_run(tmp_path, "ind/clean", "one")
    for text in (str(path), str(path.parent), "ind/clean/one"):
        assert find_checkpoint(text, tmp_path, "two") == path


# --- what it was trained on


def test_a_specialist_is_one_whose_training_had_its_degradation(tmp_path: Path) -> None:
    several = save_random(tmp_path / "several.safetensors", degradations=["jpeg", "blur"])
    check_specialist(several, "blur")
    with pytest.raises(
        ValueError, match=r"several\.safetensors stands for the degradation 'noise' but was trained on jpeg, blur: train"
    ):
        check_specialist(several, "noise")
    clean = save_random(tmp_path / "clean.safetensors", degradations=[])
    with pytest.raises(ValueError, match="was trained on clean images: train one with --dt noise, or name another"):
        check_specialist(clean, "noise")


def test_a_checkpoint_that_does_not_say_what_it_was_trained_on_is_believed(tmp_path: Path) -> None:
    check_specialist(save_random(tmp_path / "foreign.safetensors"), "noise")
    check_specialist(tmp_path / "theirs.pth", "noise")
