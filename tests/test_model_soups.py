"""utils/model_soups.py: which members it takes and refuses, and what it writes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import finished_run, save_random, specialists
from tests.scripts import Done, run_script
from undegrade.utils.checkpoint import file_digest, load_checkpoint
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.runs import BEST

CONFIG = "configs/deg_all/Digits/ResNet20_soups.yaml"
SOUP = "deg_all/Digits/ResNet20_soups"
SMALL = ("--data.limit", 20, "--data.batch_size", 10, "--run_id", "one")
NAME = "sl/Digits/ResNet20-ResNet20"


def soup(root: Path, *words: object) -> Done:
    return run_script("utils/model_soups.py", "-c", CONFIG, "--save_dir", root, *SMALL, *words)


def of(*members: object) -> tuple[str, ...]:
    return ("--members", f"[{', '.join(str(m) for m in members)}]", "--data.degradations", "[jpeg, noise]")


# --- the recipes


@pytest.mark.parametrize("buffers", ["recalibrate", "average", "copy_first"])
def test_average_is_the_mean_of_the_specialists_and_says_what_it_is_made_of(tmp_path: Path, buffers: str) -> None:
    members = specialists(tmp_path, "jpeg", "blur+noise", "fog")
    done = soup(tmp_path, "--data.degradations", "[jpeg, blur+noise, fog]", "--buffers", buffers).check()
    assert f"average of 3 networks ({buffers} buffers)" in done.err
    fused, description = load_checkpoint(tmp_path / SOUP / "one" / BEST)
    assert description["degradations"] == ["jpeg", "blur+noise", "fog"] and description["image_size"] == 32
    assert description["fused_from"] == [f"{NAME}/{deg}" for deg in members]
    states = [load_checkpoint(path)[0] for path in members.values()]
    for name in (n for n in fused if "running_" not in n and "tracked" not in n):
        torch.testing.assert_close(fused[name], sum(state[name] for state in states) / 3, rtol=0, atol=1e-6)
    measured = not torch.equal(fused["bn1.running_mean"], torch.zeros(16))  # those of fresh members are zeros
    assert measured == (buffers == "recalibrate")
    assert (tmp_path / SOUP / "one/DONE").is_file()


def test_greedy_soup_keeps_the_trained_network_and_its_copy_and_leaves_out_a_random_one(classifier: Path, tmp_path: Path) -> None:
    stranger = save_random(tmp_path / "random.safetensors", seed=3, degradations=["jpeg", "noise"])
    copy = tmp_path / "copy.safetensors"
    shutil.copy(classifier, copy)
    done = soup(tmp_path, *of(stranger, classifier, copy), "--recipe", "greedy", "--buffers", "average").check()
    assert f"greedy soup of {classifier}, {copy}" in done.err
    fused, description = load_checkpoint(tmp_path / SOUP / "one" / BEST)
    assert description["fused_from"] == [str(classifier), str(copy)]
    trained = load_checkpoint(classifier)[0]
    assert all(torch.allclose(fused[name], trained[name], atol=1e-6) for name in trained)


def test_a_network_and_those_that_started_from_it_are_one_line(tmp_path: Path) -> None:
    base = save_random(tmp_path / "base.safetensors", 0, initial_weights=None)
    child = save_random(tmp_path / "child.safetensors", 1, initial_weights=file_digest(base))
    soup(tmp_path, *of(base, child), "--buffers", "average").check()
    other = save_random(tmp_path / "other.safetensors", 2, initial_weights=None)
    assert "did not start from one checkpoint" in soup(tmp_path, *of(base, other), "--buffers", "average").err


def test_greedy_soup_takes_no_weights(tmp_path: Path) -> None:
    done = soup(tmp_path, *of("a", "b"), "--recipe", "greedy", "--weights", "[0.5, 0.5]")
    assert done.status == 2 and "weights are of the recipe average" in done.err


def test_weights_weigh_the_members(tmp_path: Path) -> None:
    members = [load_checkpoint(path)[0] for path in specialists(tmp_path, "jpeg", "noise").values()]
    soup(tmp_path, "--data.degradations", "[jpeg, noise]", "--weights", "[0.25, 0.75]", "--buffers", "average").check()
    fused = load_checkpoint(tmp_path / SOUP / "one" / BEST)[0]
    expected = 0.25 * members[0]["conv1.weight"] + 0.75 * members[1]["conv1.weight"]
    torch.testing.assert_close(fused["conv1.weight"], expected, rtol=0, atol=1e-6)


def test_recalibration_sees_as_many_batches_as_asked_for(tmp_path: Path) -> None:
    specialists(tmp_path, "jpeg", "noise")
    for steps, seen in (("null", 2), (1, 1)):  # 20 images in batches of 10
        soup(tmp_path, "--data.degradations", "[jpeg, noise]", "--recalibration_steps", steps).check()
        assert load_checkpoint(tmp_path / SOUP / "one" / BEST)[0]["bn1.num_batches_tracked"] == seen


# --- the members


def test_members_of_the_run_that_is_asked_for(tmp_path: Path) -> None:
    for run_id, seed in (("one", 0), ("two", 2)):
        for i, deg in enumerate(("jpeg", "noise")):
            finished_run(tmp_path, f"{NAME}/{deg}", run_id, seed=seed + i, degradations=[deg], initial_weights=run_id)
    soup(tmp_path, "--data.degradations", "[jpeg, noise]", "--run", "one", "--buffers", "average").check()
    states = [load_checkpoint(tmp_path / NAME / deg / "one" / BEST)[0] for deg in ("jpeg", "noise")]
    fused = load_checkpoint(tmp_path / SOUP / "one" / BEST)[0]
    assert torch.allclose(fused["fc.weight"], (states[0]["fc.weight"] + states[1]["fc.weight"]) / 2, atol=1e-6)
    done = soup(tmp_path, "--data.degradations", "[jpeg, noise]", "--run", "three")
    assert done.status == 2 and "no finished run 'three'" in done.err and "(finished there: one, two)" in done.err


def test_members_of_different_parents_are_refused_unless_asked_for(tmp_path: Path) -> None:
    members = [
        save_random(tmp_path / f"{i}.safetensors", i, initial_weights=parent)
        for i, parent in enumerate(("abc", "abc", "def", None))
    ]
    for strange, shown in ((members[2], "from def"), (members[3], "from random weights")):
        done = soup(tmp_path, *of(*members[:2], strange), "--buffers", "average")
        assert done.status == 2 and "the members did not start from one checkpoint" in done.err
        assert f"{members[0]} from abc" in done.err and f"{strange} {shown}" in done.err and "set same_start to false" in done.err
    soup(tmp_path, *of(*members[:2]), "--buffers", "average").check()
    soup(tmp_path, *of(*members), "--buffers", "average", "--same_start", "false").check()


def test_members_of_another_architecture_or_other_classes_are_refused(tmp_path: Path) -> None:
    first = save_random(tmp_path / "first.safetensors")
    larger = save_random(tmp_path / "larger.safetensors", arch="ResNet56")
    done = soup(tmp_path, *of(first, larger))
    assert done.status == 2 and f"{larger} is a ResNet56, {first} a ResNet20: only one architecture has an average" in done.err
    letters = save_random(tmp_path / "letters.safetensors", classes=tuple("abcdefghij"))
    done = soup(tmp_path, *of(first, letters))
    assert done.status == 2 and "class 0 is 'a' there, '0' here" in done.err
    assert not (tmp_path / SOUP).exists()  # no empty run is left


def test_specialist_of_another_degradation_is_refused(tmp_path: Path) -> None:
    for deg in ("jpeg", "noise"):
        finished_run(tmp_path, f"{NAME}/{deg}", degradations=["jpeg"])
    done = soup(tmp_path, "--data.degradations", "[jpeg, noise]")
    assert done.status == 2 and "stands for the degradation 'noise' but was trained on jpeg" in done.err


def test_specialist_that_is_missing_is_reported_with_the_command_that_trains_it(tmp_path: Path) -> None:
    specialists(tmp_path, "jpeg")
    done = soup(tmp_path, "--data.degradations", "[jpeg, noise]")
    command = f"python train.py -c configs/sl/Digits/ResNet20-20.yaml --dt noise --save_dir {tmp_path}"
    assert done.status == 2 and f"no checkpoint '{NAME}/noise'" in done.err and f"make it with: {command}" in done.err


def test_no_members_are_refused(tmp_path: Path) -> None:
    done = soup(tmp_path, "--data.degradations", "[]")
    assert done.status == 2 and "no members: name checkpoints or runs" in done.err


# --- the configuration


def test_data_set_alone_means_the_larger_network_and_arch_another(tmp_path: Path) -> None:
    for words, arch in (((), "ResNet56"), (("--arch", "ResNet20"), "ResNet20")):
        done = run_script("utils/model_soups.py", "--dataset", "Digits", "--save_dir", tmp_path, *words)
        assert done.status == 2 and f"no checkpoint 'sl/Digits/{arch}-{arch}/jpeg'" in done.err
    done = run_script("utils/model_soups.py", "--dataset", "Digits", "--arch", "ResNet110")
    assert done.status == 2 and "configs/deg_all/Digits/ResNet110_soups.yaml does not exist" in done.err


def test_published_program_has_no_validation_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It measures on all but the test images, on which a greedy soup would choose."""
    asked = []

    def spied(dataset: str, split: str, *more: Any, **options: Any) -> ImageSource:
        asked.append(split)
        return open_source(dataset, split, *more, **options)

    monkeypatch.setattr("undegrade.utils.data.sources.registry.open_source", spied)
    specialists(tmp_path, "jpeg", "noise")
    for compat, expected in (((), ["train", "validation"]), (("configs/_compat/fusiondistill.yaml",), ["trainval", "test"])):
        asked.clear()
        words = ("--save_dir", tmp_path, *SMALL, "--data.degradations", "[jpeg, noise]", "--recipe", "greedy")
        run_script("utils/model_soups.py", "-c", CONFIG, *compat, *words).check()
        assert asked == expected
