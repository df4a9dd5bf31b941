"""Devices by name, and mistakes that end a script with one line."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable

import pytest
import torch

from tests.scripts import ROOT
from undegrade.trainers import entry
from undegrade.trainers.config import TrainConfig
from undegrade.utils.config import build, read_yaml
from undegrade.utils.device import choose_device, keep_freed_memory, move_batch
from undegrade.utils.errors import Stopped, run_main


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine that seems to have two GPUs."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    return monkeypatch


@pytest.fixture
def no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def _raises(error: BaseException) -> Callable[[], object]:
    """The `main` of a script that ends with `error`."""

    def main() -> object:
        raise error

    return main


@pytest.mark.usefixtures("no_gpus")
@pytest.mark.parametrize("requested", [None, "cpu"])
def test_without_gpu_the_cpu_is_taken(requested: str | None) -> None:
    assert choose_device(requested) == torch.device("cpu")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is another one")
def test_glibc_can_be_told_to_keep_freed_memory() -> None:
    assert keep_freed_memory()


def test_memory_is_left_to_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()


@pytest.mark.usefixtures("no_gpus")
@pytest.mark.parametrize("requested", ["cuda", "cuda:1", "0,1"])
def test_a_gpu_that_is_not_there_is_reported_as_it_was_asked_for(requested: str) -> None:
    with pytest.raises(ValueError, match=rf"device '{requested}' was asked for, but this machine shows no GPU.*use -d cpu"):
        choose_device(requested)


@pytest.mark.parametrize("requested", ["gpu", "cuda:x", "", "cuda:0,1"])
def test_a_text_that_is_no_device_is_reported_with_those_that_are(requested: str) -> None:
    with pytest.raises(ValueError, match=rf"device '{requested}' is not understood: cpu, cuda, cuda:N, or GPU numbers such as 0,1"):
        choose_device(requested)


@pytest.mark.usefixtures("gpus")
def test_ranks_are_spread_over_the_gpus_in_turn() -> None:
    assert [choose_device(None, rank).index for rank in range(4)] == [0, 1, 0, 1]
    assert choose_device("cuda", 3) == torch.device("cuda", 1)
    assert choose_device("cuda:0", 3) == torch.device("cuda", 0)


@pytest.mark.usefixtures("gpus")
def test_gpu_numbers_choose_the_visible_gpus() -> None:
    assert choose_device("3,5", 1) == torch.device("cuda", 1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"


@pytest.mark.usefixtures("gpus")
def test_a_gpu_beyond_the_last_is_reported_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"device 'cuda:2' was asked for, but PyTorch sees 2 GPU\(s\): use cuda:0 to cuda:1"):
        choose_device("cuda:2")


@pytest.mark.parametrize(("requested", "current"), [("cuda:1", [torch.device("cuda", 1)]), ("cuda", []), (None, [])])
def test_training_makes_the_gpu_that_is_named_the_current_one_which_accelerate_takes(
    gpus: pytest.MonkeyPatch, requested: str | None, current: list[torch.device]
) -> None:
    made: list[torch.device] = []
    gpus.setattr(torch.cuda, "set_device", made.append)
    gpus.setattr(entry, "Accelerator", lambda **options: pytest.fail("on the CPU") if options["cpu"] else sys.exit())
    tree = read_yaml(ROOT / "configs/ind/Digits/ResNet20_clean.yaml")
    with pytest.raises(SystemExit):
        entry.run(build(TrainConfig, tree), requested)
    assert made == current


def test_a_batch_is_moved_with_its_keys_untouched() -> None:
    moved = move_batch({"clean": torch.ones(2), "key": ["a", "b"]}, torch.device("meta"))
    assert moved["clean"].device.type == "meta"
    assert moved["key"] == ["a", "b"]


@pytest.mark.parametrize("error", [ValueError("seed 'x': use a number"), FileNotFoundError("a.yaml"), Stopped("stage 'x' failed")])
def test_a_mistake_of_the_user_ends_with_one_line_and_status_2(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UNDEGRADE_TRACEBACK", raising=False)
    with pytest.raises(SystemExit, match="2"):
        run_main(_raises(error))
    assert capsys.readouterr().err == f"error: {error}\n"


def test_the_traceback_is_shown_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDEGRADE_TRACEBACK", "1")
    with pytest.raises(ValueError, match="as it is"):
        run_main(_raises(ValueError("as it is")))


def test_our_own_faults_keep_their_traceback() -> None:
    with pytest.raises(KeyError):
        run_main(_raises(KeyError("bug")))


def test_an_interrupt_ends_with_status_130_and_says_that_nothing_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="130"):
        run_main(_raises(KeyboardInterrupt))
    assert "nothing that was finished is lost" in capsys.readouterr().err
