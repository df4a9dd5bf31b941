"""What a training run is made from: several YAML files, the published program's data, any list of
degradations, parents by run.
"""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml

from tests.checkpoints import finished_run
from tests.scripts import Done, run_script
from undegrade.trainers.trainer import Trainer
from undegrade.utils.checkpoint import file_digest, read_description
from undegrade.utils.data.label_budget import label_count
from undegrade.utils.data.training import DataConfig
from undegrade.utils.runs import BEST

CLEAN = "configs/ind/Digits/ResNet20_clean.yaml"
SPECIALIST = "configs/sl/Digits/ResNet20-20.yaml"
SCRATCH = "configs/deg_all/Digits/ResNet20_base_scratch.yaml"
COMPAT = "configs/_compat/fusiondistill.yaml"
SMALL = ("--data.limit", 20, "--loop.epochs", 1, "--bs", 10, "--run_id", "a")
NAME = "sl/Digits/ResNet20-ResNet20"


def train(save_dir: Path, *words: object, script: str = "train.py") -> Done:
    return run_script(script, *words, "--save_dir", save_dir)


def config_of(run: Path) -> dict:
    return yaml.safe_load((run / "config.yaml").read_text())


@pytest.fixture
def parents(tmp_path: Path) -> dict[str, Path]:
    """Two runs of the clean classifier."""
    return {name: finished_run(tmp_path, "ind/Digits/ResNet20_clean", name, seed=i) for i, name in enumerate(("first", "second"))}


@pytest.mark.usefixtures("parents")
def test_later_files_change_what_they_name_and_nothing_else(tmp_path: Path) -> None:
    with mock.patch.object(Trainer, "fit", return_value={}):
        for run_id, compat in (("plain", ()), ("compat", (COMPAT,))):
            train(tmp_path, "-c", SPECIALIST, *compat, "--dt", "jpeg", "--run_id", run_id).check()
    plain, changed = (config_of(tmp_path / NAME / "jpeg" / name) for name in ("plain", "compat"))
    assert changed["data"] == {
        **plain["data"],
        "compat": {"rounding": "truncate", "salt_value": 1, "blur_intermediate": "uint8", "watermark_font": None},
        "levels": "shared",
        "validation": "test",
        "seed": 123,
    }
    assert plain["data"]["validation"] == "held_out" and plain["data"]["pairing"] == changed["data"]["pairing"] == "paired"
    assert {**changed, "data": None} == {**plain, "data": None}


@pytest.mark.parametrize(
    ("words", "counts"), [((), "1295 training and 143 validation images"), ((COMPAT,), "1438 training and 359 validation images")]
)
def test_validation_on_the_test_images_leaves_all_others_for_training(tmp_path: Path, words: tuple[str, ...], counts: str) -> None:
    with mock.patch.object(Trainer, "fit", return_value={}):
        done = train(tmp_path, "-c", CLEAN, *words).check()
    assert counts in done.err
    assert ("chosen on the test images, whose accuracy is then too high" in done.err) == bool(words)


def test_command_line_wins_over_every_file(tmp_path: Path) -> None:
    with mock.patch.object(Trainer, "fit", return_value={}):
        train(tmp_path, "-c", CLEAN, COMPAT, "--data.validation", "held_out", "--run_id", "a").check()
    data = config_of(tmp_path / "ind/Digits/ResNet20_clean/a")["data"]
    assert (data["validation"], data["levels"]) == ("held_out", "shared")


@pytest.mark.parametrize("words", [(), (COMPAT,), (COMPAT, "--data.pairing", "independent")], ids=str)
def test_any_number_of_degradations_sequences_and_corruptions_is_trained_on(tmp_path: Path, words: tuple[str, ...]) -> None:
    names = ["jpeg", "blur+noise", "fog", "saltpepper", "noise"]
    done = train(tmp_path, "-c", SCRATCH, *words, "--dt", ",".join(names), *SMALL, script="train_all_deg.py").check()
    assert "jpeg+blur+noise+fog+saltpepper+noise" in done.err
    run = tmp_path / "deg_all/Digits/ResNet20_base_scratch/a"
    assert config_of(run)["data"]["degradations"] == names
    description = read_description(run / BEST)
    assert (description["degradations"], description["initial_weights"]) == (names, None)


def test_combined_deg_keeps_the_list_of_the_configuration(tmp_path: Path) -> None:
    with mock.patch.object(Trainer, "fit", return_value={}):
        train(tmp_path, "-c", SCRATCH, "--dt", "combined_deg", "--run_id", "a", script="train_all_deg.py").check()
    config = config_of(tmp_path / "deg_all/Digits/ResNet20_base_scratch/a")
    assert config["data"]["degradations"] == ["jpeg", "blur", "saltpepper", "noise"]


def test_specialist_starts_from_the_run_that_is_asked_for_and_says_so(tmp_path: Path, parents: dict[str, Path]) -> None:
    for words, parent in (((), "second"), (("--run", "first"), "first")):
        run_id = ("--run_id", f"of {parent}")
        done = train(tmp_path, "-c", SPECIALIST, "--dt", "blur+noise", *SMALL, *words, *run_id).check()
        for line in (f"weights from {parents[parent]}\n", f"classifier ResNet20 from {parents[parent]}\n"):  # and the teacher
            assert line in done.err
        description = read_description(tmp_path / NAME / "blur+noise" / f"of {parent}" / BEST)
        assert (description["degradations"], description["initial_weights"]) == (["blur+noise"], file_digest(parents[parent]))
    done = train(tmp_path, "-c", SPECIALIST, "--dt", "jpeg", "--run", "third")
    assert done.status == 2 and "no finished run 'third'" in done.err and "(finished there: first, second)" in done.err


def test_student_needs_a_specialist_of_each_of_its_degradations(tmp_path: Path) -> None:
    finished_run(tmp_path, "deg_all/Digits/ResNet20_soups")
    finished_run(tmp_path, f"{NAME}/jpeg", degradations=["jpeg"])
    words = ("-c", "configs/deg_all/Digits/ResNet20-20_fusiondistill.yaml", "--dt", "jpeg,noise", *SMALL)
    done = train(tmp_path, *words, script="train_all_deg.py")
    command = f"python train.py -c configs/sl/Digits/ResNet20-20.yaml --dt noise --save_dir {tmp_path}"
    assert done.status == 2 and f"make it with: {command}" in done.err
    finished_run(tmp_path, f"{NAME}/noise", degradations=["blur"])
    done = train(tmp_path, *words, script="train_all_deg.py")
    assert done.status == 2 and "stands for the degradation 'noise' but was trained on blur" in done.err
    assert not (tmp_path / "deg_all/Digits/ResNet20-ResNet20_fusiondistill").exists()


@pytest.mark.parametrize(("labels", "count"), [(100, 100), ("100", 100), ("10%", 130), ("0.5 %", 6), ("5 a class", 50)])
def test_budgets_of_labels(labels: int | str, count: int) -> None:
    assert label_count(labels, 1295, 10) == count


@pytest.mark.parametrize(("labels", "message"), [
    ("ten", "labels 'ten': give a number of images, a share such as 10%, or 5 a class"),
    ("0%", "labels '0%' are 0 of the 1295 training images: give 1 to 1295"), ("200 a class", "are 2000 of the 1295"),
])  # fmt: skip
def test_budgets_that_cannot_be_had_are_refused(labels: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label_count(labels, 1295, 10)


def test_a_budget_of_labels_leaves_the_validation_images_whole() -> None:
    data = DataConfig(labels="2 a class")
    train, validation = (data.open(split) for split in ("train", "validation"))
    assert torch.bincount(train.labels).tolist() == [2] * 10 and len(validation) == 143
