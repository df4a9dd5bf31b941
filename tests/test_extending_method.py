"""docs/extending: the modules and configurations in it are run as they stand there, from a folder
outside of this repository.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

from tests.loops import last_of, metrics_of
from tests.scripts import ROOT, launch, program, run_script
from tests.test_distributed import assert_close
from undegrade.models.classification.loading import load_classifier
from undegrade.trainers.methods import METHODS
from undegrade.trainers.tasks import TASKS
from undegrade.utils.checkpoint import load_checkpoint
from undegrade.utils.data.sources.registry import DATASETS

# a network without the jumps of ReLU's gradient, and a small set with an uneven last step
SMALL = (
    "-d",
    "cpu",
    "--data.limit",
    59,
    "--model.arch",
    "test_efficientnet",
    "--optimizer.name",
    "SGD",
    "--lr",
    0.003,
    "--loop.epochs",
    2,
)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the files of the documents."""
    folder = tmp_path_factory.mktemp("theirs")
    for document in sorted((ROOT / "docs/extending").glob("*.md")):
        for name, text in re.findall(r"^```\w+\n# (\S+\.(?:py|yaml))\n(.*?)^```", document.read_text(), re.M | re.S):
            (folder / name).write_text(text)
    return folder


@pytest.fixture
def included(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder, its modules within reach; what they register is forgotten afterwards."""
    monkeypatch.syspath_prepend(theirs)
    with contextlib.ExitStack() as stack:
        for rows in (METHODS._rows, METHODS._origins, TASKS._rows, TASKS._origins, DATASETS):
            stack.enter_context(mock.patch.dict(rows))
        yield theirs
    for path in theirs.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_a_method_of_another_module_is_trained_in_one_process_and_in_two_as_one(included: Path, tmp_path: Path) -> None:
    config = included / "mean_teacher.yaml"
    words = ("--include", "mean_teacher", "-c", config, "--save_dir", tmp_path, "--method.decay", 0.5, *SMALL)
    run_script("train.py", *words, "--run_id", "one", "--bs", 24).check()
    torchrun = (program("torchrun"), "--standalone", "--nproc_per_node", 2, "train.py")
    launch(*torchrun, *words, "--run_id", "two", "--bs", 12, PYTHONPATH=f"{ROOT}{os.pathsep}{included}").check()
    one, two = (tmp_path / "mean_teacher/Digits/test_efficientnet" / name for name in ("one", "two"))
    rows, others = metrics_of(one), metrics_of(two)
    assert {"train/distance", "validation/distance", "validation/accuracy"} <= set(rows[0]) and len(rows) == len(others) == 2
    for row, other in zip(rows, others, strict=True):
        assert other == pytest.approx(row, rel=1e-4, abs=1e-5)
    states = last_of(one), last_of(two)
    for group, name in (("parts", "student"), ("kept", "target")):
        assert_close(*(state[group][name] for state in states))
    weight = "network.classifier.weight"
    assert not torch.equal(states[0]["kept"]["target"][weight], states[0]["parts"]["student"][weight])
    assert load_classifier(one / "best.safetensors", tmp_path).num_classes == 10


def test_a_method_that_is_not_included_is_refused(theirs: Path, tmp_path: Path) -> None:
    done = run_script("train.py", "-c", theirs / "mean_teacher.yaml", "--save_dir", tmp_path)
    assert done.status == 2 and "'mean_teacher'" in done.err and not any(tmp_path.iterdir())


def test_masks_are_learnt_by_a_task_of_another_module(included: Path, tmp_path: Path) -> None:
    words = ("--include", "ink", "-c", included / "ink.yaml", "--save_dir", tmp_path, "-d", "cpu", "--run_id", "one")
    run_script("train.py", *words, "--data.limit", 400).check()
    run = tmp_path / "segmentation/InkDigits/one"
    rows = metrics_of(run)
    assert rows[-1]["validation/pixel_accuracy"] > 0.9 and rows[-1]["train/pixel_accuracy"] > rows[0]["train/pixel_accuracy"]
    description = load_checkpoint(run / "best.safetensors")[1]
    assert description["kind"] == "segmenter"
    assert description["pixel_accuracy"] == max(row["validation/pixel_accuracy"] for row in rows)
