"""`torchrun --nproc_per_node 2 train.py` against one process with the doubled batch: the same
training, to rounding.

The network is one with smooth activations. A ReLU whose input is zero to rounding makes the
gradient jump: after 9 steps two trainings of a ResNet20 in one process that differ only in the
memory layout of the convolutions are several per cent of their way apart.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.loops import last_of, metrics_of
from tests.photo_like import save_all
from tests.scripts import launch, program, run_script
from undegrade.models.classification.loading import load_classifier
from undegrade.utils.data.sources.registry import open_source

CLEAN = "configs/ind/Digits/ResNet20_clean.yaml"
STUDENT = "configs/deg_all/Digits/ResNet20-20_fusiondistill.yaml"
# in steps of 2 x 12 images: in the last one of an epoch the first process has 6 training images and
# the second 5, and the second has none for validation
IMAGES = {"train": 59, "validation": 25, "test": 10}
COMMON = ("-d", "cpu", "--model.arch", "test_efficientnet")
SGD = ("--optimizer.name", "SGD", "--optimizer.schedule", "constant", "--optimizer.warmup_epochs", 0, "--lr", 0.003)
NOISY = ("--dt", "noise", "--method.view", "degraded")


def one(root: Path, config: str, *words: object) -> Path:
    """A run of one process; its folder."""
    run_script("train.py", "-c", config, "--save_dir", root, "--run_id", "one", "--bs", 24, *COMMON, *SGD, *words).check()
    (run,) = root.glob("*/*/*/one")
    return run


def two(root: Path, config: str, *words: object) -> Path:
    """A run of two processes with half the batch each; its folder."""
    torchrun("-c", config, "--save_dir", root, "--run_id", "two", "--bs", 12, *COMMON, *SGD, *words)
    (run,) = root.glob("*/*/*/two")
    return run


def torchrun(*words: object) -> None:
    command = program("torchrun")
    assert command is not None, "torchrun comes with PyTorch"
    launch(command, "--standalone", "--nproc_per_node", 2, "train.py", *words).check()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed as Linux does")
def test_no_thread_of_the_process_group_is_left_when_training_has_ended(data: tuple[object, ...], tmp_path: Path) -> None:
    """One that lets go of a tensor while its process ends makes it abort, once in some hundred
    runs.
    """
    words = ("-c", CLEAN, "--save_dir", tmp_path, "--run_id", "two", "--bs", 12, *COMMON, *data, "--loop.epochs", 1)
    script = tmp_path / "train_and_list_threads.py"
    script.write_text(
        "import pathlib, torch.distributed, undegrade.trainers.entry\n"
        "undegrade.trainers.entry.main()\n"
        "assert not torch.distributed.is_initialized()\n"
        "for task in pathlib.Path('/proc/self/task').iterdir(): print('thread', (task / 'comm').read_text(), flush=True)\n",
        encoding="utf-8",
    )
    done = launch(program("torchrun"), "--standalone", "--nproc_per_node", 2, script, *words).check()
    assert done.out.count("thread ") >= 2
    assert "gloo" not in done.out


def assert_same_training(a: Path, b: Path) -> None:
    """The same metrics, weights and checkpoint; what is allowed is ten times what rounding does."""
    rows, others = metrics_of(a), metrics_of(b)
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        assert other == pytest.approx(row, rel=1e-4, abs=1e-5)
    last, other_last = last_of(a), last_of(b)
    assert_close(last["parts"]["student"], other_last["parts"]["student"])
    assert_close(last["ema"].get("student", {}), other_last["ema"].get("student", {}))
    assert_close(*(load_classifier(run / "best.safetensors", run).state_dict() for run in (a, b)))


def assert_close(state: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert state.keys() == other.keys()
    for name, value in state.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """Words for an image folder of digits."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    for split, count in IMAGES.items():
        source = open_source("Digits", split, limit=count)
        save_all(folder / split, [f"{key}.png" for key in source.keys], source.images(range(count)))
    return "--data.dataset", folder


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, data: tuple[object, ...]) -> Path:
    """Three epochs in one process."""
    return one(tmp_path_factory.mktemp("single"), CLEAN, *data, *NOISY, "--loop.epochs", 3)


def test_two_processes_train_as_one_also_when_the_run_is_gone_on_with(
    single: Path, data: tuple[object, ...], tmp_path: Path
) -> None:
    run = two(tmp_path, CLEAN, *data, *NOISY, "--loop.epochs", 2)
    assert len(metrics_of(run)) == 2
    torchrun("-r", run, "-d", "cpu", "--loop.epochs", 3)
    assert_same_training(single, run)
    first, _, third = (row["train/loss"] for row in metrics_of(run))
    assert third < first - 0.3  # it did learn


def test_two_processes_distil_as_one(single: Path, data: tuple[object, ...], tmp_path: Path) -> None:
    """Two degradations, gradients of two steps added up, clipped, a moving average of the
    weights.
    """
    teacher = single / "best.safetensors"
    words = (
        *data, "--model.init_from", teacher, "--method.teachers", teacher, "--data.degradations", "[jpeg, noise]",
        "--method.feature_weights", "{stage3: 0, pooled: 1}", "--method.logit_weight", 1,
        "--loop.epochs", 2, "--loop.accumulate", 2, "--loop.clip_norm", 0.5, "--loop.ema_decay", 0.5,
    )  # fmt: skip
    a, b = one(tmp_path, STUDENT, *words), two(tmp_path, STUDENT, *words)
    assert [row["step"] for row in metrics_of(b)] == [2, 4]
    assert_same_training(a, b)


def test_two_processes_choose_time_steps_and_learn_features_as_one(data: tuple[object, ...], tmp_path: Path) -> None:
    """A policy, its reward's classifier and a linear map beside the network, each with its
    optimiser.
    """
    small = ("--model.channels", "[8, 16]", "--loop.epochs", 0, "--run_id", "teacher", "--save_dir", tmp_path / "teacher")
    run_script("train.py", "-c", "configs/diffusion/Digits/ddpm.yaml", "-d", "cpu", *data, *small).check()
    (teacher,) = (tmp_path / "teacher").glob("*/*/*/teacher/best.safetensors")
    words = (
        *data, "--method.teacher.checkpoint", teacher, "--loop.epochs", 2, "--method.time.baseline", "none",
        "--optimizer.parts", "{head: {name: SGD, lr: 0.01}, policy: {name: SGD, lr: 0.01}}", "--loop.validate_every", 1,
    )  # fmt: skip
    a, b = (make(tmp_path / make.__name__, "configs/repfusion/Digits/ResNet20_hint.yaml", *words) for make in (one, two))
    assert_same_training(a, b)
    for part in ("projector", "head", "policy"):
        assert_close(last_of(a)["parts"][part], last_of(b)["parts"][part])


def test_statistics_of_each_process_alone_train_otherwise(single: Path, data: tuple[object, ...], tmp_path: Path) -> None:
    """The comparison can fail, and the option does what it says."""
    run = two(tmp_path, CLEAN, *data, *NOISY, "--loop.epochs", 1, "--loop.sync_batchnorm", "false")
    first, other = metrics_of(single)[0], metrics_of(run)[0]
    assert other.keys() == first.keys()
    assert not math.isclose(other["train/loss"], first["train/loss"], rel_tol=5e-3)
